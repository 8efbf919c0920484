#!/bin/sh
# `make secrets`: a random password for each of the stack's secret files that is not there yet.
# DB_PASSWORD, REDIS_PASSWORD, POSTGRES_PASSWORD and PGBOUNCER_PASSWORD are taken where they are set, in the shell or,
# behind it, in .env; so are BOT_TOKEN, DATABASE_URL and REDIS_URL, which get no file otherwise.
# The folder has mode 0700, the files 0444: compose mounts them as they are, and the processes in the containers are not
# root. A file has no line break at its end, because not everybody who reads it takes that away. Nothing is overwritten,
# and no value is printed.
set -eu

refuse() {
  echo "secrets: $1" >&2
  exit 2
}

# dotenv NAME: what .env says of it, read as docker compose reads it; nothing where it says nothing. The last line of a
# name counts. What other readers might take for something else is refused.
dotenv() {
  [ -e .env ] || return 0
  if grep -q "^[[:space:]]*\(export[[:space:]]\{1,\}\)\{0,1\}$1[[:space:]]*:" .env; then
    refuse "$1 in .env has a colon behind it: write $1=…"
  fi
  text=$(sed -n "s/^[[:space:]]*\(export[[:space:]]\{1,\}\)\{0,1\}$1[[:space:]]*=[[:space:]]*//p" .env | tail -n 1 | tr -d '\r')
  quote=
  case $text in
    \'*) quote="'" ;;
    \"*) quote='"' ;;
    \#*) return 0 ;;
  esac
  if [ -n "$quote" ]; then
    text=${text#?}
    case $text in *"$quote"*) ;; *) refuse "$1 in .env has no closing quote: write it on one line" ;; esac
    text=${text%%"$quote"*}
    case $text in *\\*) refuse "$1 in .env has a backslash in quotes: write it without quotes, or set it in the shell" ;; esac
  else
    text=$(printf %s "$text" | sed 's/[[:space:]]#.*$//; s/[[:space:]]*$//')
  fi
  if [ "$quote" != "'" ]; then
    case $text in *\$*) refuse "$1 in .env has a dollar sign: put it into single quotes" ;; esac
  fi
  printf %s "$text"
}

# given NAME: its value in the shell, else in .env.
given() {
  eval "value=\${$1:-}"
  if [ -n "$value" ]; then printf %s "$value"; else dotenv "$1"; fi
}

random() {
  LC_ALL=C tr -dc 'A-Za-z0-9' </dev/urandom | head -c 32
}

# make FILE NAME [optional]
make() {
  path=$folder/$1
  value=$(given "$2")
  if [ -e "$path" ]; then
    grep -q '[^[:space:]]' "$path" || refuse "$path is empty: remove it, then run 'make secrets' again"
    if [ -n "$value" ] && [ "$value" != "$(cat "$path")" ]; then
      echo "kept    $path ($2 is another one: change the server's password, too, then remove the file)"
    else
      echo "kept    $path"
    fi
    return 0
  fi
  how="from $2"
  if [ -z "$value" ]; then
    if [ $# -gt 2 ]; then return 0; fi
    value=$(random) how=random
  fi
  case $value in
    *'
'*) refuse "$2 has several lines: give it on one line" ;;
  esac
  # Under its name only when it is whole; what a run that was killed has left cannot be written to.
  rm -f "$path.new"
  printf %s "$value" >"$path.new"
  chmod 0444 "$path.new"
  mv "$path.new" "$path"
  echo "created $path ($how)"
}

# The containers' users are not the owner of the scripts that are mounted, and a clone under umask 077 shuts them out.
here=$(dirname "$0")
for script in "$here"/postgres/*.sh "$here"/redis/*.sh "$here"/../pgbouncer/setup.sh; do
  if [ -e "$script" ] && [ -n "$(find "$script" ! -perm -004)" ]; then
    chmod a+rX "$script"
    echo "opened  ${script##*/} (a container's user may read it now)"
  fi
done

folder=${SECRETS_DIR:-}
folder=${folder:-$(dotenv SECRETS_DIR)}
folder=${folder:-./secrets}
umask 077
mkdir -p "$folder"
chmod 0700 "$folder"

make postgres_password POSTGRES_PASSWORD
make db_password DB_PASSWORD
make redis_password REDIS_PASSWORD
make pgbouncer_password PGBOUNCER_PASSWORD
make bot_token BOT_TOKEN optional
make database_url DATABASE_URL optional
make redis_url REDIS_URL optional
