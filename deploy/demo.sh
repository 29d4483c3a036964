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

main() {
    case ${1:-} in
    '' | --once) ;;
    *)
        sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
        exit 2
        ;;
    esac
    need_postgres
    if [[ -z ${ZDAP_PROGRAMS:-} ]]; then
        say 'building (the first time takes some minutes)'
        ZDAP_PROGRAMS=$(deploy/build.sh programs)
    fi
    PATH=$ZDAP_PROGRAMS:$PATH
    DEMO=$(mktemp -d "${TMPDIR:-/tmp}/zdap-demo.XXXXXX")
    # The database runs as another user where this is root: it must get through to its data.
    chmod 711 "$DEMO"
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    export ZDAP_STATE_DIR=$DEMO/state ZDAP_HOME=$DEMO/home

    start_node
    restore
    attach
    start_relay
    query
    if [[ ${1:-} != --once ]]; then
        what_next
        wait "$NODE" || true
    fi
}

# Each step says what it does and shows the command that a user would type.

start_node() {
    step 'zdapd serve' 'a node founds a cluster'
    zdapd --data-dir "$DEMO/data" --config-dir deploy/resources.example --runtime process --node-name demo \
        --network-address 127.0.0.1 --api-port 0 serve 2>"$DEMO/zdapd.log" &
    NODE=$!
    until [[ -s $ZDAP_STATE_DIR/port ]]; do
        kill -0 "$NODE" 2>/dev/null || fail "the node did not start:" "$(cat "$DEMO/zdapd.log")"
        sleep 0.02
    done
}

restore() {
    step 'zdapd create snap orders' 'the resource in deploy/resources.example is restored once, masked and snapshotted'
    zdapd create snap orders
}

attach() {
    cp -r deploy/compose.example "$DEMO/project"
    local token
    token=$(zdapd token user "$(id -un)@demo")
    step "zdap add origin TOKEN" 'a developer joins, once'
    zdap add origin "$token"
    step 'zdap init && zdap attach orders' 'the compose service `orders` becomes a private clone'
    local line # orders attached: CLONE on NODE
    line=$(cd "$DEMO/project" && zdap init --quiet && zdap attach orders)
    say "$line"
    read -r _ _ CLONE _ <<<"$line"
}

# In a compose project `docker compose up` does this, in a container; the demo needs no Docker.
start_relay() {
    step 'zdap-proxyd' 'the relay that takes the service'"'"'s place'
    PORT=$(free_port)
    LISTEN_PORT=$PORT ZDAP_CLONE=$CLONE ZDAP_SERVERS=127.0.0.1:$(<"$ZDAP_STATE_DIR/port") \
        ZDAP_IDENTITY=$DEMO/project/.zdap.d/orders zdap-proxyd 2>"$DEMO/relay.log" &
    RELAY=$!
    until LISTEN_PORT=$PORT zdap-proxyd health 2>/dev/null; do
        kill -0 "$RELAY" 2>/dev/null || fail 'the relay did not start:' "$(cat "$DEMO/relay.log")"
        sleep 0.02
    done
}

query() {
    export PGPASSWORD=secret
    local url=postgres://postgres@127.0.0.1:$PORT/orders
    step "psql $url" 'client -> relay -> QUIC -> node -> clone'
    psql --no-psqlrc "$url" --command 'select status, count(*), sum(amount) from orders group by status order by status'
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
  cd $DEMO/project && zdap detach orders              give it back
END
}

clean_up() {
    set +e
    trap '' INT TERM
    if [[ -n ${RELAY:-} ]]; then
        kill "$RELAY" && wait "$RELAY"
    fi 2>/dev/null
    if [[ -n ${NODE:-} ]] && kill -0 "$NODE" 2>/dev/null; then
        # Clones outlive their node unless they are destroyed.
        zdapd destroy all --yes >/dev/null || printf 'the clones could not be removed; see %s\n' "$DEMO" >&2
        kill "$NODE" && wait "$NODE"
    fi
    rm -rf "$DEMO"
}

need_postgres() {
    if command -v psql >/dev/null && compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null; then
        return
    fi
    [[ $(id -u) == 0 ]] || fail 'Postgres is not installed' 'as root: apt-get install postgresql'
    command -v apt-get >/dev/null || fail 'Postgres is not installed' 'install its server and psql'
    say 'installing Postgres'
    # The package would start a server of its own, which the demo does not need.
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends postgresql >/dev/null
}

free_port() {
    local port
    for port in $(shuf -i 20000-29999 -n 50); do
        if ! (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            printf '%s\n' "$port"
            return
        fi
    done
    fail 'no free port between 20000 and 29999'
}

step() {
    printf '\n\033[1m$ %s\033[0m   # %s\n' "$1" "$2" >&2
}

say() {
    printf '%s\n' "$*" >&2
}

fail() {
    printf 'error: %s\n' "$1" >&2
    if [[ -n ${2:-} ]]; then
        printf '\nhint: %s\n' "$2" >&2
    fi
    exit 1
}

main "$@"
