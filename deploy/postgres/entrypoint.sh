#!/bin/sh
# PostgreSQL's image, after a look at what its set-up will need. A set-up that fails half-way leaves a data folder that
# the image takes for a whole one at its next start; so what would make it fail is refused before there is a folder.
# A database that exists is started whatever the settings are: they cannot spoil it.
set -eu

SECRETS=${STACK_SECRETS:-/run/secrets}
SUPERUSER=${POSTGRES_USER:-postgres}
role=${DB_USER:-app}
database=${DB_NAME:-app}
pooler=${PGBOUNCER_USER:-pgbouncer}

refuse() {
  echo "postgres: $1" >&2
  exit 2
}

check_secret() {
  file=$SECRETS/$1
  [ -e "$file" ] || refuse "$file is missing: run 'make secrets'"
  [ -r "$file" ] || refuse "$file cannot be read by uid $(id -u): give it mode 0444, its folder 0700, as 'make secrets' does"
  password=$(cat "$file")
  case $password in *[![:space:]]*) ;; *) refuse "$file is empty: remove it and run 'make secrets'" ;; esac
  case $password in
    *[[:cntrl:]]*) refuse "$file has a line break or another control character: write the password on one line" ;;
  esac
}

if [ ! -s "${PGDATA:-/var/lib/postgresql/data}/PG_VERSION" ]; then
  check_secret postgres_password
  check_secret db_password
  check_secret pgbouncer_password
  case $role in
    "$SUPERUSER" | postgres) refuse "DB_USER=$role is the superuser: give the application a role of its own" ;;
    "$pooler") refuse "DB_USER=$role is PgBouncer's own role, which looks up passwords: give the application another" ;;
    pg_* | public | none) refuse "DB_USER=$role is a name that PostgreSQL keeps for itself: take another" ;;
  esac
  case $pooler in
    "$SUPERUSER") refuse "PGBOUNCER_USER=$pooler is the superuser: give PgBouncer a role of its own" ;;
    pg_* | public | none) refuse "PGBOUNCER_USER=$pooler is a name that PostgreSQL keeps for itself: take another" ;;
    [!a-z_]* | *[!a-z0-9_]*)
      refuse "PGBOUNCER_USER=$pooler is no plain name of a role: a-z, 0-9 and _, not first a digit"
      ;;
  esac
  # PgBouncer's function is in the database postgres, which must be the superuser's; new databases come from template1.
  case $database in
    postgres | template0 | template1)
      refuse "DB_NAME=$database is one of PostgreSQL's own databases: give the application another"
      ;;
  esac
  case ${DB_SCHEMA:-} in
    pg_*) refuse "DB_SCHEMA=$DB_SCHEMA is a name that PostgreSQL keeps for itself: take another" ;;
  esac
fi

exec docker-entrypoint.sh "$@"
