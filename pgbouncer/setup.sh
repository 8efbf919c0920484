#!/bin/sh
# What PgBouncer needs in PostgreSQL: a role of its own, and a function with which that role looks up the SCRAM secrets
# of others. Runs in PostgreSQL's container, as a superuser, as often as you like:
#   - by PostgreSQL's image, when the data folder is new (it lies in /docker-entrypoint-initdb.d)
#   - on a database that exists:  docker compose exec postgres sh /docker-entrypoint-initdb.d/20-pgbouncer.sh
#   - to change the password, after the secret's file has changed: a container sees the file that was there when it
#     started, so first  docker compose up -d --wait --force-recreate postgres,  then the same, then restart PgBouncer
# The password never leaves the server: it reads the secret's file itself. So it is in no statement that a log,
# pg_stat_activity or pg_stat_statements could show, and in no process's arguments.
( # The image may read this into its own shell instead of running it: nothing may be left there.
set -eu

SECRET=${PGBOUNCER_PASSWORD_FILE:-/run/secrets/pgbouncer_password}
ROLE=${PGBOUNCER_USER:-pgbouncer}

fault() {
  printf 'pgbouncer setup: %s\n' "$*" >&2
  exit 2
}

[ -s "$SECRET" ] || fault "the password file $SECRET is missing or empty: run 'make secrets', and give it to postgres"
case $ROLE in
  [!a-z_]* | *[!a-z0-9_]*) fault "PGBOUNCER_USER is no plain name of a role: a-z, 0-9 and _, not first a digit" ;;
  "${POSTGRES_USER:-postgres}") fault "PGBOUNCER_USER=$ROLE is the superuser: give PgBouncer a role of its own" ;;
esac

PGOPTIONS='-c client_min_messages=warning'
export PGOPTIONS
psql --no-psqlrc --no-password --quiet --output /dev/null --set ON_ERROR_STOP=1 --set VERBOSITY=terse \
  --single-transaction --username "${POSTGRES_USER:-postgres}" --dbname postgres \
  --set role="$ROLE" --set secret="$SECRET" <<'SQL'
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL password_encryption = 'scram-sha-256';
SELECT set_config('pgbouncer.role', :'role', true), set_config('pgbouncer.secret', :'secret', true);

DO $$
BEGIN
  IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
    RAISE EXCEPTION '% is no superuser: only one may read the secrets of roles', current_user;
  END IF;
END
$$;
-- Not even the statement that sets the password, inside the block below, is kept anywhere.
SET LOCAL log_statement = none;
SET LOCAL log_min_error_statement = panic;
SET LOCAL log_min_duration_statement = -1;
SET LOCAL pg_stat_statements.track = none;

DO $$
DECLARE
  role text := current_setting('pgbouncer.role');
  file text := current_setting('pgbouncer.secret');
  password text;
  owner text;
BEGIN
  -- Whoever owns the schema decides what the function is, and with it who gets in.
  SELECT pg_get_userbyid(nspowner) INTO owner
    FROM pg_namespace WHERE nspname = 'pgbouncer' AND nspowner <> current_user::regrole;
  IF FOUND THEN
    RAISE EXCEPTION 'the schema pgbouncer in the database postgres belongs to %: drop it first', owner;
  END IF;
  password := rtrim(pg_read_file(file), E'\n');
  IF password = '' OR password ~ '[[:cntrl:]]' THEN
    RAISE EXCEPTION 'the password file % has not exactly one line', file;
  END IF;
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
    EXECUTE format('CREATE ROLE %I', role);
  END IF;
  -- Two connections of each PgBouncer, and as many again while it is replaced.
  EXECUTE format('ALTER ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS '
                 'CONNECTION LIMIT 10 VALID UNTIL ''infinity''', role);
  BEGIN
    EXECUTE format('ALTER ROLE %I PASSWORD %L', role, password);
  EXCEPTION WHEN OTHERS THEN -- its context would quote the statement
    RAISE EXCEPTION 'the password of % could not be set: SQLSTATE %', role, SQLSTATE;
  END;
END
$$;

CREATE SCHEMA IF NOT EXISTS pgbouncer;
REVOKE ALL ON SCHEMA pgbouncer FROM PUBLIC;
DROP FUNCTION IF EXISTS pgbouncer.login(text);
-- Only what a client of the pooler may be: no superuser, no replication, nobody whose password has expired, and no
-- secret but SCRAM's. No row means: refused, as a wrong password is.
CREATE FUNCTION pgbouncer.login(name text, OUT role text, OUT secret text) RETURNS SETOF record
  LANGUAGE sql STABLE STRICT SECURITY DEFINER PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS $$
  SELECT rolname::pg_catalog.text, rolpassword FROM pg_catalog.pg_authid
  WHERE rolname OPERATOR(pg_catalog.=) name AND rolcanlogin AND NOT rolsuper AND NOT rolreplication
    AND pg_catalog.starts_with(rolpassword, 'SCRAM-SHA-256$')
    AND (rolvaliduntil IS NULL OR rolvaliduntil OPERATOR(pg_catalog.>) pg_catalog.now())
$$;
REVOKE ALL ON FUNCTION pgbouncer.login(text) FROM PUBLIC;
GRANT CONNECT ON DATABASE postgres TO :"role";
GRANT USAGE ON SCHEMA pgbouncer TO :"role";
GRANT EXECUTE ON FUNCTION pgbouncer.login(text) TO :"role";
SQL
)
