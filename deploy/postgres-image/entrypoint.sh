#!/usr/bin/env bash
# Does what the official postgres image's entrypoint does for POSTGRES_PASSWORD, POSTGRES_USER, POSTGRES_DB,
# POSTGRES_INITDB_ARGS, POSTGRES_INITDB_WALDIR, POSTGRES_HOST_AUTH_METHOD (each also as NAME_FILE where it is a secret),
# PGDATA and /docker-entrypoint-initdb.d.
set -Eeuo pipefail

main() {
    if [[ ${1:-} == -* ]]; then
        set -- postgres "$@"
    fi
    if [[ ${1:-} != postgres ]] || asks_only_for_help "$@"; then
        exec "$@"
    fi
    if [[ $(id -u) == 0 ]]; then
        own_directories
        exec setpriv --reuid=postgres --regid=postgres --init-groups --inh-caps=-all "${BASH_SOURCE[0]}" "$@"
    fi
    if [[ ! -s $PGDATA/PG_VERSION ]]; then
        initialise "$@"
    fi
    exec "$@"
}

asks_only_for_help() {
    local argument
    for argument in "$@"; do
        case $argument in
        -'?' | --help | --describe-config | -V | --version) return 0 ;;
        esac
    done
    return 1
}

# Only what is not ours already: a clone's files are, and a recursive chown of them would copy every block.
own_directories() {
    mkdir -p "$PGDATA" /var/run/postgresql
    chmod 0700 "$PGDATA" || true
    chmod 3777 /var/run/postgresql || true
    find "$PGDATA" ! -user postgres -exec chown postgres:postgres '{}' +
    find /var/run/postgresql ! -user postgres -exec chown postgres:postgres '{}' +
    if [[ -n ${POSTGRES_INITDB_WALDIR:-} ]]; then
        mkdir -p "$POSTGRES_INITDB_WALDIR"
        find "$POSTGRES_INITDB_WALDIR" ! -user postgres -exec chown postgres:postgres '{}' +
    fi
}

initialise() {
    value_or_file POSTGRES_PASSWORD
    value_or_file POSTGRES_USER postgres
    value_or_file POSTGRES_DB "$POSTGRES_USER"
    value_or_file POSTGRES_INITDB_ARGS
    if [[ -z $POSTGRES_PASSWORD && ${POSTGRES_HOST_AUTH_METHOD:-} != trust ]]; then
        printf '%s\n' 'Error: Database is uninitialized and superuser password is not specified.' \
            '       You must specify POSTGRES_PASSWORD to a non-empty value for the superuser.' \
            '       You may also use "POSTGRES_HOST_AUTH_METHOD=trust" to allow all connections without a password.' >&2
        exit 1
    fi

    local -a options
    eval "options=($POSTGRES_INITDB_ARGS)" # the official image splits it as a shell does
    if [[ -n ${POSTGRES_INITDB_WALDIR:-} ]]; then
        options+=(--waldir "$POSTGRES_INITDB_WALDIR")
    fi
    initdb --username="$POSTGRES_USER" --pwfile=<(printf '%s\n' "$POSTGRES_PASSWORD") "${options[@]}"

    local method=${POSTGRES_HOST_AUTH_METHOD:-}
    : "${method:=$(postgres -C password_encryption "${@:2}")}"
    printf '\nhost all all all %s\n' "$method" >>"$PGDATA/pg_hba.conf"

    # Nobody outside sees the server before it is ready: the temporary one listens on the socket only.
    export PGHOST=/var/run/postgresql PGUSER=$POSTGRES_USER PGPASSWORD=${PGPASSWORD:-$POSTGRES_PASSWORD}
    pg_ctl --pgdata="$PGDATA" --wait start -o "$(printf '%q ' "${@:2}" -c listen_addresses= -p "${PGPORT:-5432}")"
    if [[ $POSTGRES_DB != postgres ]]; then
        psql --no-psqlrc -v ON_ERROR_STOP=1 --dbname postgres --set db="$POSTGRES_DB" <<<'CREATE DATABASE :"db";'
    fi
    run_init_files
    pg_ctl --pgdata="$PGDATA" --mode=fast --wait stop
    unset PGHOST PGUSER PGPASSWORD
    printf '\nPostgreSQL init process complete; ready for start up.\n\n'
}

run_init_files() {
    local file
    local -a sql=(psql -v ON_ERROR_STOP=1 --no-password --no-psqlrc --dbname "$POSTGRES_DB")
    for file in /docker-entrypoint-initdb.d/*; do
        case $file in
        *.sh)
            printf '%s: running %s\n' "$0" "$file"
            if [[ -x $file ]]; then
                "$file"
            else
                # shellcheck disable=SC1090
                . "$file"
            fi
            ;;
        *.sql) printf '%s: running %s\n' "$0" "$file" && "${sql[@]}" --file "$file" ;;
        *.sql.gz) printf '%s: running %s\n' "$0" "$file" && gunzip --stdout "$file" | "${sql[@]}" ;;
        esac
    done
}

# value_or_file NAME [DEFAULT]: exports NAME from itself, from the file NAME_FILE names, or from the default.
value_or_file() {
    local name=$1 file=${1}_FILE
    if [[ -n ${!name:-} && -n ${!file:-} ]]; then
        printf 'error: both %s and %s are set (but are exclusive)\n' "$name" "$file" >&2
        exit 1
    fi
    local value=${!name:-${2:-}}
    if [[ -n ${!file:-} ]]; then
        value=$(<"${!file}")
    fi
    export "$name=$value"
    unset "$file"
}

main "$@"
