#!/usr/bin/env bash
# The way from a client to its clone under load, from real parts on this machine, without Docker: 200 idle sessions, 1 GiB of
# COPY each way with its checksum, 50 connects a second for 20 s; and what node and relay hold before, meanwhile and after.
#
#   deploy/stress.sh [MEBIBYTES] [SECONDS]
#
# ZDAP_BENCH_PROGRAMS names a directory with zdapd, zdap and zdap-proxyd that are built already.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. deploy/common.sh

readonly MEBIBYTES=${1:-1024} SECONDS_OF_CONNECTS=${2:-20}
readonly IDLE=200 CONNECTS_PER_SECOND=50

main() {
    need psql sha256sum
    programs
    scratch_directory stress
    write_resource
    run_node bench --api-port 0 --data-dir "$SCRATCH/data" --config-dir "$SCRATCH/resources" --runtime process
    zdapd create snap orders >&2
    attach
    run_relay "$CLONE" "$SCRATCH/project/.zdap.d/orders"

    connects 1 >/dev/null # what is made once stays: threads, caches, buffers
    until_descriptors_rest
    DESCRIPTORS_BEFORE=$DESCRIPTORS
    figures before
    idle_sessions
    figures "with $IDLE idle"
    copy_both_ways
    figures 'after COPY'
    idle_sessions_end
    connects "$SECONDS_OF_CONNECTS"
    until_descriptors_rest
    figures after
    [[ $DESCRIPTORS == "$DESCRIPTORS_BEFORE" ]] || fail "descriptors are left: $DESCRIPTORS, before $DESCRIPTORS_BEFORE"
}

# --- load --------------------------------------------------------------------------------------------------------------

idle_sessions() {
    local descriptor
    IDLE_DESCRIPTORS=()
    for ((i = 0; i < IDLE; i++)); do
        exec {descriptor}<>"/dev/tcp/127.0.0.1/$PORT"
        start_session "$descriptor"
        IDLE_DESCRIPTORS+=("$descriptor")
    done
}

idle_sessions_end() {
    local descriptor
    for descriptor in "${IDLE_DESCRIPTORS[@]}"; do
        end_session "$descriptor"
        exec {descriptor}>&-
    done
}

# connects SECONDS: prints how many sessions were opened and closed, and how many of them failed.
connects() {
    local seconds=$1 began=$EPOCHREALTIME failures=$SCRATCH/failures total=$(($1 * CONNECTS_PER_SECOND)) due
    local -a running=()
    : >"$failures"
    for ((i = 0; i < total; i++)); do
        (exec 3<>"/dev/tcp/127.0.0.1/$PORT" && start_session 3 && end_session 3) 2>>"$failures" || echo "session $i failed" >>"$failures" &
        running+=($!)
        due=$(((i + 1) * 1000 / CONNECTS_PER_SECOND - $(milliseconds_since "$began")))
        ((due <= 0)) || sleep "$(printf '0.%03d' "$due")"
    done
    wait "${running[@]}"
    printf '%-22s %d sessions in %d ms, %d failed\n' "$CONNECTS_PER_SECOND connects/s, ${seconds} s" "$total" \
        "$(milliseconds_since "$began")" "$(grep -c failed "$failures" || true)"
}

# start_session FD: says hello to Postgres (protocol 3.0, no password wanted) and waits for its yes.
start_session() {
    local kind
    printf '\0\0\0\x29\0\3\0\0user\0postgres\0database\0postgres\0\0' >&"$1"
    IFS= read -r -t 30 -n 1 -u "$1" kind
    [[ $kind == R ]]
}

end_session() {
    printf 'X\0\0\0\4' >&"$1"
}

copy_both_ways() {
    local psql=(psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --host 127.0.0.1 --port "$PORT" --username postgres)
    local rows=$((MEBIBYTES << 14)) sent back began
    rows_of_64_bytes() { seq -f '%020.0f abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG' "$rows"; }
    "${psql[@]}" --command 'create unlogged table rows (line text)'
    sent=$(rows_of_64_bytes | sha256sum)
    began=$EPOCHREALTIME
    rows_of_64_bytes | "${psql[@]}" --command 'copy rows from stdin'
    rate "COPY $MEBIBYTES MiB in" "$began"
    began=$EPOCHREALTIME
    # A scan of a large table may begin in the middle, where another one is.
    back=$(PGOPTIONS='-c synchronize_seqscans=off' "${psql[@]}" --command 'copy rows to stdout' | sha256sum)
    rate "COPY $MEBIBYTES MiB out" "$began"
    [[ $sent == "$back" ]] || fail "the bytes that came back are others: $sent, $back"
    printf '%-22s %s\n' 'SHA-256 both ways' "${sent%% *}"
}

rate() {
    local milliseconds
    milliseconds=$(milliseconds_since "$2")
    printf '%-22s %d ms, %d MiB/s\n' "$1" "$milliseconds" $((MEBIBYTES * 1000 / milliseconds))
}

# --- what is held ------------------------------------------------------------------------------------------------------

figures() {
    local program pid
    for program in zdapd zdap-proxyd; do
        pid=${NODES[bench]}
        [[ $program == zdapd ]] || pid=$RELAY
        printf '%-22s %-12s %4d descriptors, %3d threads, %7d KiB resident, %7d KiB at most\n' "$1" "$program" \
            "$(descriptors "$pid")" "$(status_of "$pid" Threads)" "$(status_of "$pid" VmRSS)" "$(status_of "$pid" VmHWM)"
    done
}

descriptors() {
    find "/proc/$1/fd" -mindepth 1 2>/dev/null | wc -l
}

status_of() {
    awk -v name="$2:" '$1 == name {print $2}' "/proc/$1/status"
}

# Until nothing has ended for a second.
until_descriptors_rest() {
    local last='' unchanged=0
    while ((unchanged < 10)); do
        DESCRIPTORS="$(descriptors "${NODES[bench]}") $(descriptors "$RELAY")"
        unchanged=$([[ $DESCRIPTORS == "$last" ]] && echo $((unchanged + 1)) || echo 0)
        last=$DESCRIPTORS
        sleep 0.1
    done
}

# --- parts -------------------------------------------------------------------------------------------------------------

programs() {
    PATH=${ZDAP_BENCH_PROGRAMS:-$(deploy/build.sh programs --release)}:$PATH
}

write_resource() {
    mkdir -p "$SCRATCH/resources" "$SCRATCH/project"
    cat >"$SCRATCH/resources/orders.resource.yml" <<'END'
name: orders
creation: ./creation.sh
docker:
  image: postgres:15
  env: [POSTGRES_HOST_AUTH_METHOD=trust]
  cmd: [postgres, -c, max_connections=500]
END
    printf '#!/bin/sh\n' >"$SCRATCH/resources/creation.sh"
    chmod +x "$SCRATCH/resources/creation.sh"
    printf 'services:\n  orders:\n    image: postgres:15\n    ports: ["5432:5432"]\n' >"$SCRATCH/project/docker-compose.yml"
}

attach() {
    zdap add origin "$(zdapd token user bench)" >&2
    CLONE=$(cd "$SCRATCH/project" && zdap init --quiet && zdap attach orders | awk '{ print $3 }')
}

# --- machinery ---------------------------------------------------------------------------------------------------------

milliseconds_since() {
    local now=$EPOCHREALTIME
    printf '%d\n' $(((${now/./} - ${1/./}) / 1000))
}

need() {
    local program
    for program in "$@"; do
        command -v "$program" >/dev/null || fail "no $program on PATH; deploy/test.sh installs what is needed"
    done
}

main "$@"
