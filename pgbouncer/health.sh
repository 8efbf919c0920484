#!/bin/sh
# Healthy: PgBouncer lets its role in as it would any client, by TCP and SCRAM, and answers; and since it started it has
# reached the server, with the function that logins need. That the server is away later is told, and no more: PgBouncer
# lets its clients wait for it, and whoever restarts what is unhealthy would cut them off.
set -u

SERVED=${RUNTIME_DIRECTORY:-/run/pgbouncer}/served

timeout 6 console -qtA -c 'SHOW VERSION' || exit 1
# Errors alone, on one line.
if said=$(timeout 6 console -d postgres -qtA -c "SELECT count(*) FROM pgbouncer.login('')" 2>&1 >/dev/null); then
  touch "$SERVED"
  exit 0
fi
echo "but PostgreSQL, through it, does not: ${said:-no answer in 6 s}" | tr '\n' ' '
[ -e "$SERVED" ]
