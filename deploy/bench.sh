#!/usr/bin/env bash
# Measures zdap against what it cannot be faster than, in one run, in turns. As root, with ZFS and Docker (deploy/lab.sh up
# has both).
#
#   deploy/bench.sh attach [ROUNDS]   `zdap attach`, process start to exit, against the same by hand: zfs clone, docker
#                                     create, docker start, and the first answered `select 1`, tried every 5 ms
#   deploy/bench.sh tunnel [MIB] [SECONDS]   the way from a client to its clone under load: see deploy/stress.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. deploy/common.sh

main() {
    case ${1:-} in
    attach) attach_bench "${2:-10}" ;;
    tunnel) exec deploy/stress.sh "${@:2}" ;;
    *) usage "${BASH_SOURCE[0]}" ;;
    esac
}

attach_bench() {
    local rounds=$1 round floor attach
    start_node
    printf '%-6s %12s %12s %8s   %s\n' round 'floor ms' 'attach ms' ratio 'stages of attach, ms'
    for ((round = 0; round <= rounds; round++)); do
        floor=$(floor_once "$round")
        attach=$(attach_once)
        # Round 0 warms caches, and brings the relay image to this machine.
        if ((round > 0)); then
            printf '%s %s\n' "$floor" "$attach" >>"$SCRATCH/rounds"
            printf '%-6s %12s %12s %8s   %s\n' "$round" "$floor" "$attach" \
                "$(awk -v a="$attach" -v f="$floor" 'BEGIN { printf "%.3f", a / f }')" "$(stages)"
        fi
    done
    printf '\nmedian floor %s ms, median attach %s ms, median of the ratios %s\n' \
        "$(awk '{ print $1 }' "$SCRATCH/rounds" | median)" "$(awk '{ print $2 }' "$SCRATCH/rounds" | median)" \
        "$(awk '{ printf "%.3f\n", $2 / $1 }' "$SCRATCH/rounds" | median)"
}

# By hand. The prober is started beforehand, so that it costs the floor nothing.
floor_once() {
    local dataset=$POOL/floor$1 mount=$MOUNT/floor$1 container began paused address
    coproc PROBE { python3 -c "$PROBER"; }
    local probe=$PROBE_PID # bash forgets it when the prober ends
    began=$(now)
    zfs clone "$SNAPSHOT" "$dataset"
    container=$(docker create --name "$FLOOR" --network zdap --shm-size 128m --stop-signal SIGINT \
        --volume "$mount:/var/lib/postgresql/data" --env POSTGRES_PASSWORD=secret "$IMAGE")
    docker start "$container" >/dev/null
    # Asking for the address is not part of the floor, and is taken off.
    paused=$(now)
    address=$(docker inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$container")
    began=$((began + $(now) - paused))
    printf '%s\n' "$address" >&"${PROBE[1]}"
    read -r _ <&"${PROBE[0]}"
    elapsed "$began"
    wait "$probe" 2>/dev/null || true
    docker rm --force --volumes "$container" >/dev/null
    until zfs destroy "$dataset" 2>/dev/null; do sleep 0.05; done
}

attach_once() {
    local began
    cd "$SCRATCH/project"
    began=$(now)
    zdap --json attach orders >"$SCRATCH/attached" 2>"$SCRATCH/attach.log" || fail "$(cat "$SCRATCH/attach.log")"
    elapsed "$began"
    zdap psql orders -- --no-psqlrc --quiet --command 'select 1' >/dev/null || fail 'the clone does not answer'
    zdap detach orders >/dev/null 2>&1
}

stages() {
    tr ',' '\n' <"$SCRATCH/attached" | sed -n 's/.*"\([a-z]*\)_ms": *\([0-9.]*\).*/\1 \2/p' | paste -sd, | sed 's/,/, /g'
}

# A node on a dataset of its own, and one restored resource.
start_node() {
    is_root || fail 'the benchmark needs root, for ZFS and Docker'
    deploy/lab.sh up >&2
    set -a
    # shellcheck source=/dev/null
    . <(deploy/lab.sh env)
    set +a
    [[ -n ${ZDAP_TEST_ZPOOL:-} && -n ${ZDAP_TEST_DOCKER:-} ]] || fail 'the benchmark needs ZFS and Docker'
    PATH=${ZDAP_BENCH_PROGRAMS:-$(deploy/build.sh programs --release)}:$PATH
    POOL=$ZDAP_TEST_ZPOOL/bench.$$
    FLOOR=zdap-floor.$$
    scratch_directory bench
    trap clean_up_all EXIT
    IMAGE=${ZDAP_TEST_IMAGE:-postgres:15}
    zfs create "$POOL"
    MOUNT=$(zfs get -H -o value mountpoint "$POOL")
    run_node bench --api-port 0 --zpool "$POOL" --config-dir deploy/resources.example --runtime docker
    zdapd create snap orders >&2
    SNAPSHOT=$(zfs list -H -r -t snapshot -o name "$POOL" | head -n 1)
    cp -r deploy/compose.example "$SCRATCH/project"
    zdap add origin "$(zdapd token user bench)" >&2
}

clean_up_all() {
    clean_up
    docker rm --force --volumes "$FLOOR" >/dev/null 2>&1
    for _ in {1..50}; do # busy for a while after the last process has left
        zfs destroy -r "$POOL" 2>/dev/null
        zfs list "$POOL" >/dev/null 2>&1 || return
        sleep 0.2
    done
    say "$POOL could not be destroyed"
}

now() {
    date +%s%N
}

elapsed() {
    awk -v from="$1" -v to="$(now)" 'BEGIN { printf "%.1f\n", (to - from) / 1e6 }'
}

median() {
    sort -n | awk '{ value[NR] = $1 } END { printf "%s\n", NR % 2 ? value[(NR + 1) / 2] : (value[NR / 2] + value[NR / 2 + 1]) / 2 }'
}

# Reads an address and says `answered` once `select 1` has been answered there; a new try every 5 ms. It needs no library:
# the account is let in by SCRAM, which Python's own hashes can do.
# shellcheck disable=SC2016
PROBER='
import base64, hashlib, hmac, os, socket, struct, sys, time

def message(kind, body):
    return kind + struct.pack("!i", len(body) + 4) + body

def receive(stream):
    head = stream.read(5)
    if len(head) < 5:
        raise OSError("closed")
    kind, length = head[:1], struct.unpack("!i", head[1:])[0]
    body = stream.read(length - 4)
    if kind == b"E":
        raise OSError(body)
    return kind, body

def login(sock, stream, user, password, database):
    parameters = b"user\0" + user + b"\0database\0" + database + b"\0\0"
    sock.sendall(struct.pack("!ii", len(parameters) + 8, 196608) + parameters)
    nonce = base64.b64encode(os.urandom(18))
    bare = b"n=,r=" + nonce
    while True:
        kind, body = receive(stream)
        if kind == b"Z":
            return
        if kind != b"R":
            continue
        code = struct.unpack("!i", body[:4])[0]
        if code == 10:
            first = b"n,," + bare
            sock.sendall(message(b"p", b"SCRAM-SHA-256\0" + struct.pack("!i", len(first)) + first))
        elif code == 11:
            server = body[4:]
            fields = dict(part.split(b"=", 1) for part in server.split(b","))
            salted = hashlib.pbkdf2_hmac("sha256", password, base64.b64decode(fields[b"s"]), int(fields[b"i"]))
            key = hmac.new(salted, b"Client Key", "sha256").digest()
            without = b"c=biws,r=" + fields[b"r"]
            signature = hmac.new(hashlib.sha256(key).digest(), b",".join((bare, server, without)), "sha256").digest()
            proof = base64.b64encode(bytes(a ^ b for a, b in zip(key, signature)))
            sock.sendall(message(b"p", without + b",p=" + proof))

address = sys.stdin.readline().strip()
while True:
    try:
        with socket.create_connection((address, 5432), 1) as sock, sock.makefile("rb") as stream:
            login(sock, stream, b"postgres", b"secret", b"orders")
            sock.sendall(message(b"Q", b"select 1\0"))
            while receive(stream)[0] != b"D":
                pass
        break
    except OSError:
        time.sleep(0.005)
print("answered", flush=True)
'

main "$@"
