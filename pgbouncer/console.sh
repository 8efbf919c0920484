#!/bin/sh
# PgBouncer's admin console, as its own role: `docker compose exec pgbouncer console -c 'SHOW POOLS'`. Arguments are
# psql's; without any it asks. With `-d postgres` it goes through PgBouncer to the server.
set -eu

INI=${RUNTIME_DIRECTORY:-/run/pgbouncer}/pgbouncer.ini
value() { sed -n "s/^$1 = //p" "$INI"; }

PGPASSWORD=$(cat "${PGBOUNCER_PASSWORD_FILE:-/run/secrets/pgbouncer_password}")
export PGPASSWORD PGCONNECT_TIMEOUT=5
exec psql --no-psqlrc --host 127.0.0.1 --port "$(value listen_port)" --username "$(value auth_user)" \
  --dbname pgbouncer "$@"
