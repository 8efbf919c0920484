#!/bin/sh
# Redis with the password of a secret file, and never without one: a server that is given an empty password asks for
# none. Redis reads the password from its standard input: as an argument, `ps` and `docker inspect` would show it, and
# the only folder to write to is the data's.
# With --health: whether the server answers to whoever knows the password.
set -eu

SECRET=${STACK_SECRETS:-/run/secrets}/redis_password

refuse() {
  echo "redis: $SECRET $1: $2" >&2
  exit 2
}

[ -e "$SECRET" ] || refuse 'is missing' "run 'make secrets'"
[ -r "$SECRET" ] || refuse "cannot be read by uid $(id -u)" "give it mode 0444, its folder 0700, as 'make secrets' does"
# As the clients read it: without the line break at its end.
password=$(cat "$SECRET")
password=${password%"$(printf '\r')"}
case $password in *[![:space:]]*) ;; *) refuse 'is empty' "remove it and run 'make secrets'" ;; esac
case $password in
  *'
'*) refuse 'has several lines' 'write the password on one line' ;;
esac

if [ "${1:-}" = --health ]; then
  [ "$(REDISCLI_AUTH=$password redis-cli -h 127.0.0.1 ping)" = PONG ]
  exit
fi

exec redis-server - "$@" <<CONFIG
requirepass "$(printf %s "$password" | sed 's/[\\"]/\\&/g')"
CONFIG
