#!/bin/sh
# The application's role and its database. PostgreSQL's image runs this when the data folder is new; run again it mends
# what is missing, and sets the password that is in the secret's file:
#   docker compose exec postgres sh /docker-entrypoint-initdb.d/10-app-role.sh
# A container sees the file that was there when it started. After a change of the password, before that:
#   docker compose up -d --wait --force-recreate postgres
# The role is no superuser: it owns its database, and may read statistics (pg_monitor) for `poolctl plan`, check and top.
# What a pooler cannot carry as a start parameter stands at the role: the search path, jit=off (asyncpg's introspection
# switches it off on some of a pooler's connections only), and the bound of a transaction that its client forgot.
( # The image may read this into its own shell instead of running it: nothing may be left there.
set -eu

SECRET=${STACK_SECRETS:-/run/secrets}/db_password
SUPERUSER=${POSTGRES_USER:-postgres}
role=${DB_USER:-app}

refuse() {
  echo "postgres: $1" >&2
  exit 2
}

grep -q '[^[:space:]]' "$SECRET" 2>/dev/null || refuse "$SECRET is missing, empty or unreadable: run 'make secrets'"
[ "$role" != "$SUPERUSER" ] || refuse "DB_USER=$role is the superuser: give the application a role of its own"

# The password is read by psql, so it is in no argument; and it goes into no log and not into pg_stat_statements.
export PGOPTIONS='-c log_statement=none -c log_min_error_statement=panic -c log_min_duration_statement=-1
  -c pg_stat_statements.track=none -c client_min_messages=warning'
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$SUPERUSER" --dbname postgres --set secret="$SECRET" \
  --set role="$role" --set database="${DB_NAME:-app}" --set schema="${DB_SCHEMA:-}" <<'SQL'
\set password `tr -d '\r\n' < :'secret'`
SELECT format('CREATE ROLE %I', :'role') WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'role') \gexec
ALTER ROLE :"role" LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION PASSWORD :'password';
ALTER ROLE :"role" SET jit = off;
ALTER ROLE :"role" SET idle_in_transaction_session_timeout = '60s';
GRANT pg_monitor TO :"role";
SELECT format('CREATE DATABASE %I', :'database') WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'database') \gexec
ALTER DATABASE :"database" OWNER TO :"role";
\connect :"database"
CREATE EXTENSION IF NOT EXISTS pg_stat_statements;
SELECT :'schema' <> '' AS has_schema \gset
\if :has_schema
CREATE SCHEMA IF NOT EXISTS :"schema" AUTHORIZATION :"role";
ALTER ROLE :"role" SET search_path = :"schema";
\else
ALTER ROLE :"role" RESET search_path;
\endif
SQL
)
