#!/bin/sh
# What a container of the stack is not told, it is told here: where PostgreSQL, PgBouncer and Redis are, and which
# files hold the passwords. What is given always wins; an empty variable is not given. STACK_POSTGRES_HOST,
# STACK_PGBOUNCER_HOST and STACK_REDIS_HOST name the stack's servers; without the first this is no stack, and nothing
# is changed. Health checks come through here, too: what it costs, each of them costs.
set -eu

[ -n "${STACK_POSTGRES_HOST:-}" ] || exec "$@"
SECRETS=${STACK_SECRETS:-/run/secrets}

# secret NAME FILE: NAME_FILE is that file, where there is one and neither NAME nor NAME_FILE is given.
secret() {
  eval "given=\${$1:-}\${$1_FILE:-}"
  if [ -z "$given" ] && [ -e "$SECRETS/$2" ]; then export "$1_FILE=$SECRETS/$2"; fi
}

# Compose starts PgBouncer by COMPOSE_PROFILES=pgbouncer, perhaps one of several, or * for all.
pooler_is_on() {
  case ",$(printf %s "${COMPOSE_PROFILES:-}" | tr -d '[:space:]')," in
    *,pgbouncer,* | *,\*,*) return 0 ;;
    *) return 1 ;;
  esac
}

# worker-3, from the name PROJECT-worker-3.NETWORK that the engine's DNS has for the own address. Nothing elsewhere.
replica() {
  address=$(hostname -i 2>/dev/null) || return 0
  # Only DNS: /etc/hosts has the container's id.
  name=$(getent -s hosts:dns hosts "${address%% *}" 2>/dev/null) || return 0
  name=${name##* }
  name=${name%%.*}
  number=${name##*-}
  case $number in '' | *[!0-9]*) return 0 ;; esac
  service=${name%-*}
  printf %s "${service##*-}-$number"
}

secret DATABASE_URL database_url
if [ -z "${DATABASE_URL:-}${DATABASE_URL_FILE:-}" ]; then
  pooler=${STACK_PGBOUNCER_HOST:-pgbouncer}
  if [ -z "${DB_HOST:-}" ]; then
    if pooler_is_on; then DB_HOST=$pooler; else DB_HOST=$STACK_POSTGRES_HOST; fi
    export DB_HOST
  fi
  if [ "$DB_HOST" = "$pooler" ]; then
    # Migrations and administrators go past it.
    export DB_PORT="${DB_PORT:-${PGBOUNCER_PORT:-6432}}" DB_DIRECT_HOST="${DB_DIRECT_HOST:-$STACK_POSTGRES_HOST}"
  fi
  export DB_USER="${DB_USER:-app}" DB_NAME="${DB_NAME:-app}"
  secret DB_PASSWORD db_password
  if [ -z "${DB_APPLICATION_NAME:-}" ]; then
    name=$(replica)
    if [ -n "$name" ]; then export DB_APPLICATION_NAME="$name"; fi
  fi
fi

secret REDIS_URL redis_url
if [ -z "${REDIS_URL:-}${REDIS_URL_FILE:-}" ]; then
  export REDIS_HOST="${REDIS_HOST:-${STACK_REDIS_HOST:-redis}}"
  secret REDIS_PASSWORD redis_password
fi

secret BOT_TOKEN bot_token
secret PGBOUNCER_PASSWORD pgbouncer_password

exec "$@"
