#!/usr/bin/env bash
# Shows zdap on this machine, with nothing but Rust and Postgres: a cluster of three nodes of different size with the
# embedded default (directory storage, process runtime), a sample database restored and snapshotted on each, a compose project
# attached to a private clone of it, a query that goes through the relay, QUIC and the node to that clone, more clones and
# where they go and why, and what becomes of it all when a node dies.
#
#   deploy/demo.sh          stays up until Ctrl-C, and prints what to try
#   deploy/demo.sh --once   ends after the last of these
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

    start_nodes
    restore
    attach
    start_relay
    query
    attach_more
    lose_a_node
    if [[ ${1:-} != --once ]]; then
        what_next
        wait "${NODES[db1]}" || fail "the node ended: $(<"$SCRATCH/db1.log")"
    fi
}

# Each step says what it does and shows the command that a user would type.

start_nodes() {
    step 'zdapd serve' 'a node founds a cluster'
    start_node db1 2g
    step 'zdapd serve --join TOKEN' 'two more join it, each larger than the one before'
    start_node db2 4g --join "$(zdapd token node)"
    start_node db3 8g --join "$(zdapd token node)"
    step 'zdapd list nodes' 'any of them knows all'
    await 60 nodes_are_alive || fail "the nodes do not find each other: $(zdapd list nodes)"
    zdapd list nodes
}

nodes_are_alive() {
    (($(zdapd list nodes | grep -c ' alive ') == 3))
}

# start_node NAME SIZE ZDAPD_OPTION...
start_node() {
    run_node "$1" --api-port "$(free_port)" --data-dir "$SCRATCH/$1-data" --data-size "$2" \
        --config-dir deploy/resources.example --runtime process "${@:3}"
}

restore() {
    step 'zdapd create snap orders' 'the resource in deploy/resources.example is restored on each, masked and snapshotted'
    local name restores=()
    for name in db1 db2 db3; do
        on "$name" zdapd create snap orders 2>"$SCRATCH/restore-$name.log" &
        restores+=($!)
    done
    local restore
    for restore in "${restores[@]}"; do
        wait "$restore" || fail "a restore failed: $(cat "$SCRATCH"/restore-*.log)"
    done
}

attach() {
    cp -r deploy/compose.example "$SCRATCH/project"
    local token
    token=$(zdapd token user "$(id -un)@demo")
    step 'zdap add origin TOKEN' 'a developer joins, once, at any node'
    zdap add origin "$token"
    await 60 snapshots_are_known || fail "the snapshots are not known: $(zdap list snaps --all)"
    step 'zdap init && zdap attach orders' 'the compose service `orders` becomes a private clone'
    local line # orders attached: CLONE on NODE
    line=$(cd "$SCRATCH/project" && zdap init --quiet && zdap attach orders)
    say "$line"
    read -r _ _ CLONE _ <<<"$line"
}

snapshots_are_known() {
    (($(zdap list snaps --all --format yaml | grep -c taken_at) == 3))
}

attach_more() {
    step 'zdap attach orders --explain' 'five more developers, each in a project of their own: where each clone goes, and why'
    local number
    for number in 1 2 3 4 5; do
        cp -r deploy/compose.example "$SCRATCH/project$number"
        (cd "$SCRATCH/project$number" && zdap init --quiet && zdap attach orders --explain) >&2
    done
}

lose_a_node() {
    step 'kill -9' 'db3 dies; attaching goes on, elsewhere'
    kill_node db3
    cp -r deploy/compose.example "$SCRATCH/project6"
    (cd "$SCRATCH/project6" && zdap init --quiet && zdap attach orders) >&2
    await 60 db3_is_down || fail "db3 is not missed: $(zdapd list nodes)"
    zdapd list nodes >&2
    step 'zdapd serve' 'it starts again, and has its clones'
    try_node_again db3 || fail "db3 did not start again: $(<"$SCRATCH/db3.log")"
    on db3 zdapd list clones >&2
}

db3_is_down() {
    zdapd list nodes | grep '^db3 .* down ' >/dev/null
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
  zdap list nodes                                     the cluster
  zdapd list clones                                   all clones on db1
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
