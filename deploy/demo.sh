#!/usr/bin/env bash
# Shows zdap on this machine, with nothing but Rust and Postgres: a node with the embedded default (directory storage,
# process runtime), a sample database restored and snapshotted, a compose project attached to a private clone of it, and a
# query that goes through the relay, QUIC and the node to that clone.
#
#   deploy/demo.sh          stays up until Ctrl-C, and prints what to try
#   deploy/demo.sh --once   ends after the query
#
# With ZDAP_PROGRAMS=DIR the programs are taken from there (`deploy/build.sh programs` prints where it puts them), and
# nothing is built.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. deploy/common.sh

main() {
    case ${1:-} in
    '' | --once) ;;
    *) usage "${BASH_SOURCE[0]}" ;;
    esac
    need_postgres
    if [[ -z ${ZDAP_PROGRAMS:-} ]]; then
        say 'building (the first time takes some minutes)'
        ZDAP_PROGRAMS=$(deploy/build.sh programs)
    fi
    PATH=$ZDAP_PROGRAMS:$PATH
    scratch_directory demo

    start_node
    restore
    attach
    start_relay
    query
    if [[ ${1:-} != --once ]]; then
        what_next
        wait "$NODE" || fail "the node ended: $(<"$SCRATCH/zdapd.log")"
    fi
}

# Each step says what it does and shows the command that a user would type.

start_node() {
    step 'zdapd serve' 'a node founds a cluster'
    run_node --data-dir "$SCRATCH/data" --config-dir deploy/resources.example --runtime process --node-name demo
}

restore() {
    step 'zdapd create snap orders' 'the resource in deploy/resources.example is restored once, masked and snapshotted'
    zdapd create snap orders
}

attach() {
    cp -r deploy/compose.example "$SCRATCH/project"
    local token
    token=$(zdapd token user "$(id -un)@demo")
    step "zdap add origin TOKEN" 'a developer joins, once'
    zdap add origin "$token"
    step 'zdap init && zdap attach orders' 'the compose service `orders` becomes a private clone'
    local line # orders attached: CLONE on NODE
    line=$(cd "$SCRATCH/project" && zdap init --quiet && zdap attach orders)
    say "$line"
    read -r _ _ CLONE _ <<<"$line"
}

# In a compose project `docker compose up` does this, in a container; the demo needs no Docker.
start_relay() {
    step 'zdap-proxyd' 'the relay that takes the service'"'"'s place'
    run_relay "$CLONE" "$SCRATCH/project/.zdap.d/orders"
}

query() {
    export PGPASSWORD=secret
    local url=postgres://postgres@127.0.0.1:$PORT/orders
    step "psql $url" 'client -> relay -> QUIC -> node -> clone'
    psql --no-psqlrc --pset pager=off "$url" --command 'select status, count(*), sum(amount) from orders group by status order by status'
}

what_next() {
    cat <<END

The demo stays up until Ctrl-C. In another terminal:

  export PATH=${PATH%%:*}:\$PATH ZDAP_HOME=$ZDAP_HOME ZDAP_STATE_DIR=$ZDAP_STATE_DIR PGPASSWORD=secret
  psql postgres://postgres@127.0.0.1:$PORT/orders     the attached clone, yours to break
  zdap list clones --all                              your clones
  zdap clone orders                                   another one
  zdap psql orders                                    straight into your newest clone, without compose
  zdapd list clones                                   all clones of the node
  cd $SCRATCH/project && zdap detach orders              give it back
END
}

need_postgres() {
    if command -v psql >/dev/null && compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null; then
        return
    fi
    install_postgres || fail "no Postgres server and psql: $REASON"
}

step() {
    local bold='' plain=''
    if [[ -t 2 && -z ${NO_COLOR:-} ]]; then
        bold=$'\033[1m' plain=$'\033[0m'
    fi
    printf '\n%s$ %s%s   # %s\n' "$bold" "$1" "$plain" "$2" >&2
}

main "$@"
