#!/bin/sh
# Writes pgbouncer.ini from its template and the environment, and becomes PgBouncer.
#   entrypoint.sh           starts PgBouncer
#   entrypoint.sh --print   checks the same, and prints the file instead
# Whatever is wrong is said, a line for each fault, before anything is started; the exit code is 2 then. An empty
# variable counts as unset. The template's placeholders say which variables there are and what their defaults are.
set -euf
export LC_ALL=C # bytes, whatever they mean

TEMPLATE=$(dirname "$0")/pgbouncer.ini.template
LARGEST_INT=2147483647 # PgBouncer's numbers are C's int
LARGEST_SERVER=262143  # max_connections; PostgreSQL takes no more
LONGEST_S=31536000     # a year, as in poolctl
LONGEST_PASSWORD=2047  # bytes; PgBouncer takes no more
RESERVED=3             # PostgreSQL's superuser_reserved_connections
OVERHEAD=10            # connections past the pools, as in `poolctl plan`: migrations, administrators, lookups
SPARE_FILES=50         # what PgBouncer opens beside its connections

faults=

fault() {
  faults=yes
  printf 'pgbouncer: %s\n' "$*" >&2
}

# shown VALUE: on one line, and not for ever.
shown() { printf %s "$1" | tr -c '[:print:]' '?' | cut -c 1-120; }

# one_of VALUE CHOICE...
one_of() {
  wanted=$1
  shift
  for choice; do [ "$choice" != "$wanted" ] || return 0; done
  return 1
}

# --- Checks of one variable each; they return 1 after a fault.

# number NAME LEAST MOST: a whole one. A leading zero would make it octal for PgBouncer.
number() {
  eval "value=\$$1"
  case $value in
    tcp://*)
      fault "$1=$(shown "$value") is what Kubernetes sets for a service: give the pod enableServiceLinks: false"
      return 1
      ;;
    '' | *[!0-9]* | 0?*)
      fault "$1=$(shown "$value") is no whole number: write digits, from $2 to $3"
      return 1
      ;;
  esac
  if [ ${#value} -gt 10 ] || [ "$value" -gt "$3" ]; then
    fault "$1=$(shown "$value") is greater than $3: give $3 or less"
    return 1
  fi
  if [ "$value" -lt "$2" ]; then
    fault "$1=$value is less than $2: give $2 or more"
    return 1
  fi
}

# seconds NAME: may have a fraction.
seconds() {
  eval "value=\$$1"
  case $value in
    '' | .* | *. | *.*.* | *[!0-9.]*)
      fault "$1=$(shown "$value") is no number of seconds: write digits, as 30 or 0.5"
      return 1
      ;;
  esac
  whole=${value%%.*}
  if [ ${#whole} -gt 8 ] || [ "$whole" -gt $LONGEST_S ]; then
    fault "$1=$(shown "$value") is greater than $LONGEST_S: give at most a year, $LONGEST_S"
    return 1
  fi
}

# choice NAME CHOICE...
choice() {
  name=$1
  eval "value=\$$1"
  shift
  one_of "$value" "$@" || {
    fault "$name=$(shown "$value") is not known: give one of $*"
    return 1
  }
}

# text NAME: what may end neither a line nor a word of the file.
text() {
  eval "value=\$$1"
  case $value in
    *[!A-Za-z0-9._:/@-]*)
      fault "$1=$(shown "$value") cannot stand in pgbouncer.ini: only letters, digits and . _ : / @ - may"
      return 1
      ;;
  esac
}

# readable NAME [REASON]: a file that must be there.
readable() {
  eval "value=\$$1"
  if [ -z "$value" ]; then
    fault "$1 is not set, and $2 needs it: name the file in the container"
  elif [ ! -f "$value" ] || [ ! -r "$value" ]; then
    fault "$1=$(shown "$value") is no file that uid $(id -u) can read: mount it, and see its mode"
  fi
}

# --- What is checked.

check_names() {
  known=" PGBOUNCER_HOST PGBOUNCER_PASSWORD_FILE"
  for name in $names; do
    case $name in PGBOUNCER_*) known="$known $name" ;; esac
  done
  # shellcheck disable=SC2013 # names have no blanks, and -f is set
  for name in $(awk 'BEGIN { for (name in ENVIRON) if (name ~ /^PGBOUNCER_/) print name }' | sort); do
    case "$known " in *" $name "*) continue ;; esac
    case $name in
      PGBOUNCER_PASSWORD)
        if [ -n "${PGBOUNCER_PASSWORD:-}" ]; then
          fault "PGBOUNCER_PASSWORD is set, where everybody who may inspect the container reads it:" \
            "put the password into a file, and name that in PGBOUNCER_PASSWORD_FILE"
        fi
        ;;
      PGBOUNCER_SERVICE_* | PGBOUNCER_PORT_*)
        fault "$name is what Kubernetes sets for a service: give the pod enableServiceLinks: false"
        ;;
      *) fault "$(shown "$name") is not known; known are$known" ;;
    esac
  done
}

check_values() {
  for name in POSTGRES_HOST DB_USER RUNTIME_DIRECTORY; do
    text $name || :
  done
  number PGBOUNCER_PORT 1 65535 || :
  number POSTGRES_PORT 1 65535 || :
  number PGBOUNCER_MAX_PREPARED_STATEMENTS 0 $LARGEST_INT || :
  for name in RESERVE_POOL_TIMEOUT QUERY_WAIT_TIMEOUT SERVER_LIFETIME SERVER_IDLE_TIMEOUT; do
    seconds "PGBOUNCER_$name" || :
  done
  if seconds PGBOUNCER_SERVER_CONNECT_TIMEOUT; then
    case $value in
      *[1-9]*) ;;
      *) fault "PGBOUNCER_SERVER_CONNECT_TIMEOUT=$value leaves no time to connect: give more than 0" ;;
    esac
  fi
  if choice PGBOUNCER_CLIENT_TLS_SSLMODE disable allow prefer require && [ "$value" != disable ]; then
    readable PGBOUNCER_CLIENT_TLS_CERT_FILE "PGBOUNCER_CLIENT_TLS_SSLMODE=$PGBOUNCER_CLIENT_TLS_SSLMODE"
    readable PGBOUNCER_CLIENT_TLS_KEY_FILE "PGBOUNCER_CLIENT_TLS_SSLMODE=$PGBOUNCER_CLIENT_TLS_SSLMODE"
  fi
  if choice PGBOUNCER_SERVER_TLS_SSLMODE disable allow prefer require verify-ca verify-full; then
    case $value in verify-*) [ -z "$PGBOUNCER_SERVER_TLS_CA_FILE" ] || readable PGBOUNCER_SERVER_TLS_CA_FILE ;; esac
  fi
  case $PGBOUNCER_USER in
    [!a-z_]* | *[!a-z0-9_]*)
      fault "PGBOUNCER_USER=$(shown "$PGBOUNCER_USER") is no plain name of a role: a-z, 0-9 and _, not first a digit"
      ;;
    "$DB_USER")
      fault "DB_USER=$DB_USER is PgBouncer's own role, which looks up passwords: give the application another"
      ;;
  esac
}

check_room() {
  number PGBOUNCER_DEFAULT_POOL_SIZE 1 $LARGEST_INT || return 0
  number PGBOUNCER_RESERVE_POOL_SIZE 0 $LARGEST_INT || return 0
  number PGBOUNCER_MAX_DB_CONNECTIONS 0 $LARGEST_INT || return 0
  number PGBOUNCER_MAX_CLIENT_CONN 1 $LARGEST_INT || return 0
  number POSTGRES_MAX_CONNECTIONS 1 $LARGEST_SERVER || return 0
  left=$((POSTGRES_MAX_CONNECTIONS - RESERVED - OVERHEAD))
  servers=$((PGBOUNCER_DEFAULT_POOL_SIZE + PGBOUNCER_RESERVE_POOL_SIZE))
  sum="PGBOUNCER_DEFAULT_POOL_SIZE=$PGBOUNCER_DEFAULT_POOL_SIZE +"
  sum="$sum PGBOUNCER_RESERVE_POOL_SIZE=$PGBOUNCER_RESERVE_POOL_SIZE = $servers"
  if [ "$PGBOUNCER_MAX_DB_CONNECTIONS" -gt 0 ] && [ "$PGBOUNCER_MAX_DB_CONNECTIONS" -lt $servers ]; then
    servers=$PGBOUNCER_MAX_DB_CONNECTIONS
    sum="PGBOUNCER_MAX_DB_CONNECTIONS=$servers"
  fi
  if [ "$servers" -gt $left ]; then
    larger=$((servers + RESERVED + OVERHEAD))
    smaller=$((left - PGBOUNCER_RESERVE_POOL_SIZE))
    remedy="lower both"
    if [ $larger -le $LARGEST_SERVER ]; then remedy="raise POSTGRES_MAX_CONNECTIONS to $larger"; fi
    if [ $smaller -ge 1 ]; then remedy="lower PGBOUNCER_DEFAULT_POOL_SIZE to $smaller, or $remedy"; fi
    fault "$sum connections are more than PostgreSQL has left, $((left > 0 ? left : 0)):" \
      "POSTGRES_MAX_CONNECTIONS=$POSTGRES_MAX_CONNECTIONS - $RESERVED reserved - $OVERHEAD overhead: $remedy"
    return
  fi
  check_files $((PGBOUNCER_MAX_CLIENT_CONN + servers + SPARE_FILES))
}

# shellcheck disable=SC3045 # -S and -H: dash, busybox and bash all know them
# check_files NEEDED: each connection is an open file. The soft limit is raised where the hard one allows.
check_files() {
  have=$(ulimit -S -n)
  if [ "$have" != unlimited ] && [ "$have" -lt "$1" ]; then
    if (ulimit -S -n "$1") 2>/dev/null; then
      ulimit -S -n "$1"
    else
      fault "PGBOUNCER_MAX_CLIENT_CONN=$PGBOUNCER_MAX_CLIENT_CONN needs $1 open files, and at most $(ulimit -H -n)" \
        "are allowed: raise nofile (compose: ulimits) or lower PGBOUNCER_MAX_CLIENT_CONN"
    fi
  fi
}

# The password of PgBouncer's own role, as `password`.
read_password() {
  file=${PGBOUNCER_PASSWORD_FILE:-/run/secrets/pgbouncer_password}
  if [ ! -f "$file" ] || [ ! -r "$file" ]; then
    fault "the password file $(shown "$file") is missing, or uid $(id -u) cannot read it: run 'make secrets'," \
      "or name another in PGBOUNCER_PASSWORD_FILE"
    return
  fi
  password=$(cat "$file")
  case $password in
    '') fault "the password file $(shown "$file") is empty: remove it and run 'make secrets'" ;;
    SCRAM-SHA-256\$* | md5????????????????????????????????)
      fault "the password file $(shown "$file") holds a hash: PgBouncer needs the password itself to log in with"
      ;;
    *[[:cntrl:]]*)
      fault "the password file $(shown "$file") has a line break or another control character: write one line"
      ;;
  esac
  password=$(printf %s "$password" | sed 's/"/""/g')
  if [ ${#password} -gt $LONGEST_PASSWORD ]; then
    fault "the password in $(shown "$file") is longer than $LONGEST_PASSWORD bytes, PgBouncer's bound: a shorter one"
  fi
}

# --- The template.

# NAME:-default, a line for each placeholder.
placeholders() {
  awk '{
    while (match($0, /\$[{][A-Z_]+:-[^}]*[}]/)) {
      print substr($0, RSTART + 2, RLENGTH - 3)
      $0 = substr($0, RSTART + RLENGTH)
    }
  }' "$TEMPLATE" | sort -u
}

# A value is put in as it is: what is in it is not looked at again.
render() {
  awk '{
    line = ""
    while (match($0, /\$[{][A-Z_]+:-[^}]*[}]/)) {
      name = substr($0, RSTART + 2, RLENGTH - 3)
      sub(/:-.*/, "", name)
      line = line substr($0, 1, RSTART - 1) ENVIRON[name]
      $0 = substr($0, RSTART + RLENGTH)
    }
    print line $0
  }' "$TEMPLATE"
}

case ${1:-} in
  '' | --print) ;;
  *)
    fault "unknown argument $(shown "$1"): give none, or --print"
    exit 2
    ;;
esac

names=
while IFS= read -r placeholder; do
  name=${placeholder%%:-*}
  names="${names:+$names }$name"
  eval "export $name=\"\${$name:-\${placeholder#*:-}}\""
done <<END
$(placeholders)
END
POSTGRES_MAX_CONNECTIONS=${POSTGRES_MAX_CONNECTIONS:-100}

check_names
check_values
check_room
read_password
# Whatever the checks above let through or forgot.
[ -n "$faults" ] || for name in $names; do text "$name" || :; done
[ -z "$faults" ] || exit 2

if [ "${1:-}" = --print ]; then
  render
  exit
fi
if [ ! -d "$RUNTIME_DIRECTORY" ] || [ ! -w "$RUNTIME_DIRECTORY" ]; then
  fault "uid $(id -u) cannot write to $RUNTIME_DIRECTORY: mount a tmpfs there"
  exit 2
fi
umask 077
rm -f "$RUNTIME_DIRECTORY/served"
render >"$RUNTIME_DIRECTORY/pgbouncer.ini"
printf '"%s" "%s"\n' "$PGBOUNCER_USER" "$password" >"$RUNTIME_DIRECTORY/userlist.txt"
exec pgbouncer "$RUNTIME_DIRECTORY/pgbouncer.ini"
