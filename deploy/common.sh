# shellcheck shell=bash
# What the scripts of this directory share: installing what is missing, a node and a relay with a directory of their own, and
# leaving nothing of them behind. Sourced, not run.

# --- words -------------------------------------------------------------------------------------------------------------

say() {
    printf '%s\n' "$*" >&2
}

# fail MESSAGE [HINT]
fail() {
    printf 'error: %s\n' "$1" >&2
    if [[ -n ${2:-} ]]; then
        printf '\nhint: %s\n' "$2" >&2
    fi
    exit 1
}

# usage SCRIPT: prints the comment that the script begins with, and ends.
usage() {
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$1" >&2
    exit 2
}

# missing WHY: fails, with REASON for whoever decides whether that is an error.
missing() {
    REASON=$1
    return 1
}

# --- installing --------------------------------------------------------------------------------------------------------

is_root() {
    [[ $(id -u) == 0 ]]
}

# install_packages PACKAGE...: or fails and sets REASON.
install_packages() {
    command -v apt-get >/dev/null || { missing "not installed, and there is no apt-get here: $*"; return; }
    is_root || { missing "not installed; as root: apt-get install $*"; return; }
    say "installing $*"
    local log status=0
    log=$(mktemp)
    # The lists are brought up to date only where the ones that are there do not do.
    apt_install "$@" >"$log" 2>&1 || { apt-get -q update >>"$log" 2>&1 && apt_install "$@" >>"$log" 2>&1; } || status=1
    if ((status > 0)); then
        tail -n 10 "$log" >&2
    fi
    rm -f "$log"
    ((status == 0)) || missing "apt-get install $* failed, see above"
}

apt_install() {
    DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "$@"
}

install_postgres() {
    # No server of the distribution's own: it would take port 5432.
    if is_root && [[ ! -e /etc/postgresql-common/createcluster.conf ]]; then
        mkdir -p /etc/postgresql-common
        echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
    fi
    install_packages postgresql
}

# What cargo needs: itself, and a C compiler, which also links.
need_compilers() {
    command -v cargo >/dev/null || fail 'no cargo on PATH' 'install Rust first: https://rustup.rs'
    command -v cc >/dev/null || install_packages gcc libc6-dev || fail "no C compiler: $REASON"
}

# --- a node and a relay ------------------------------------------------------------------------------------------------

# scratch_directory NAME: makes $SCRATCH for a node, its clones and a user of it. It goes when the script ends, however.
scratch_directory() {
    SCRATCH=$(mktemp -d "${TMPDIR:-/tmp}/zdap-$1.XXXXXX")
    chmod 711 "$SCRATCH" # where this is root the database runs as another user, who must get through to its data
    declare -gA NODES=() NODE_OPTIONS=() HAS_SERVED=()
    trap clean_up EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    unset ZDAP_STATE_DIR
    export ZDAP_HOME=$SCRATCH/home
}

# run_node NAME ZDAPD_OPTION...: starts a node with the state $SCRATCH/NAME, and waits until it serves; or ends with what it
# said. The first founds a cluster, and is the one that `zdapd` commands are about (`on NAME zdapd ...` for another). Ctrl-C at
# the terminal does not reach it (nor the relay): `clean_up` still has to ask it to destroy its clones.
run_node() {
    try_node "$@" || fail "node $1 did not start: $(<"$SCRATCH/$1.log")"
}

# try_node NAME ZDAPD_OPTION...: as `run_node`, but only fails.
try_node() {
    local name=$1 state=$SCRATCH/$1
    shift
    : "${ZDAP_STATE_DIR:=$state}"
    export ZDAP_STATE_DIR
    NODE_OPTIONS[$name]=${*@Q}
    rm -f "$state/port"
    setsid zdapd serve --network-address 127.0.0.1 --node-name "$name" --state-dir "$state" "$@" 2>"$SCRATCH/$name.log" &
    NODES[$name]=$!
    await 60 has_started "$name" || true
    [[ -s $state/port ]] && HAS_SERVED[$name]=1
}

# Also when it has ended: there is nothing more to wait for.
has_started() {
    [[ -s $SCRATCH/$1/port ]] || ! kill -0 "${NODES[$1]}" 2>/dev/null
}

# await SECONDS COMMAND...: until it succeeds.
await() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.02
    done
}

# kill_node NAME: as a power cut would.
kill_node() {
    kill -KILL "${NODES[$1]}"
    wait "${NODES[$1]}" || true # it says how it ended
} 2>/dev/null

# try_node_again NAME: with the options it had.
try_node_again() {
    eval "try_node '$1' ${NODE_OPTIONS[$1]}"
}

# on NAME COMMAND...: runs a command about that node.
on() {
    ZDAP_STATE_DIR=$SCRATCH/$1 "${@:2}"
}

# run_relay CLONE IDENTITY: starts a relay to a clone, sets RELAY and the PORT it listens on.
run_relay() {
    PORT=$(free_port)
    LISTEN_PORT=$PORT ZDAP_CLONE=$1 ZDAP_IDENTITY=$2 ZDAP_SERVERS=127.0.0.1:$(<"$ZDAP_STATE_DIR/port") \
        setsid zdap-proxyd 2>"$SCRATCH/relay.log" &
    RELAY=$!
    until LISTEN_PORT=$PORT zdap-proxyd health >/dev/null 2>&1; do
        kill -0 "$RELAY" 2>/dev/null || fail "the relay did not start: $(<"$SCRATCH/relay.log")"
        sleep 0.02
    done
}

# Of neither TCP nor UDP. Somebody else may take it meanwhile; then its user says so.
free_port() {
    local port
    for port in $(shuf -i 20000-29999 -n 50); do
        if ! grep -qs "^ *[0-9]*: [0-9A-F]*:$(printf %04X "$port") " /proc/net/{tcp,tcp6,udp,udp6}; then
            printf '%s\n' "$port"
            return
        fi
    done
    fail 'no free port between 20000 and 29999'
}

clean_up() {
    set +e
    trap '' HUP INT TERM
    if end_relay_and_nodes; then
        rm -rf "$SCRATCH"
    else
        say "clones may be left, so their data and the logs stay in $SCRATCH"
    fi
}

# Clones outlive their node unless they are destroyed: fails where they were not.
end_relay_and_nodes() {
    local name destroyed=0
    if [[ -n ${RELAY:-} ]]; then
        end "$RELAY"
    fi
    for name in "${!NODES[@]}"; do
        # One that never served has made nothing.
        if [[ -n ${HAS_SERVED[$name]:-} ]]; then
            kill -0 "${NODES[$name]}" 2>/dev/null || try_node_again "$name"
            on "$name" zdapd destroy all --yes >/dev/null || destroyed=1
        fi
        end "${NODES[$name]}"
    done
    return "$destroyed"
}

# end PID: without bash's word about it.
end() {
    kill "$1" && wait "$1"
} 2>/dev/null
