#!/usr/bin/env bash
# The real parts zdap is tested on: a ZFS pool, a Docker engine with compose, a Postgres image, a file system with reflinks,
# network namespaces.
#
#   deploy/lab.sh up     has them all running, installing what is missing; doing it twice is harmless
#   deploy/lab.sh down   stops what `up` started, exports the pool, keeps files and images for the next time
#   deploy/lab.sh env    prints what the last `up` found
#
# `up` writes <lab dir>/env: ZDAP_TEST_<PART>='value' for a part that is there, ZDAP_TEST_<PART>_MISSING='reason' for one
# that cannot be had here. Nothing that is missing is an error; who needs it decides.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
UID_SUFFIX=$([[ $(id -u) == 0 ]] || echo "-$(id -u)")
readonly HERE UID_SUFFIX
# shellcheck source=deploy/common.sh
. "$HERE/common.sh"
readonly LAB_DIR=${ZDAP_LAB_DIR:-/var/tmp/zdap-lab$UID_SUFFIX}
readonly CACHE_DIR=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/zdap-lab
readonly POOL=zdap-test
readonly IMAGE=postgres:15

main() {
    case ${1:-} in
    up) up ;;
    down) down ;;
    env)
        [[ -e $LAB_DIR/env ]] || { say "the lab is not up: run \`${BASH_SOURCE[0]} up\`" && exit 1; }
        cat "$LAB_DIR/env"
        ;;
    *) usage "${BASH_SOURCE[0]}" ;;
    esac
}

up() {
    mkdir -p "$LAB_DIR" "$CACHE_DIR"
    chmod 755 "$LAB_DIR" # user postgres walks through it to the pool
    exec 9>"$LAB_DIR/lock"
    flock 9
    : >"$LAB_DIR/env.new"
    provide POSTGRES_BIN postgres_programs || true
    provide ZPOOL pool || true
    provide REFLINK_DIR reflink || true
    provide NAMESPACES namespaces || true
    if provide DOCKER docker_engine; then
        provide COMPOSE compose || true
        provide IMAGE postgres_image || true
    else
        record COMPOSE_MISSING 'no Docker engine'
        record IMAGE_MISSING 'no Docker engine'
    fi
    mv "$LAB_DIR/env.new" "$LAB_DIR/env"
    cat "$LAB_DIR/env" >&2
}

down() {
    if [[ -e $LAB_DIR/zfs.img ]] && zpool list -H -o name "$POOL" >/dev/null 2>&1; then
        zpool export "$POOL"
    fi
    if mountpoint -q "$LAB_DIR/reflink"; then
        umount "$LAB_DIR/reflink"
    fi
    stop_daemon zfs-fuse
    stop_daemon dockerd
    rm -f "$LAB_DIR/env"
}

# --- parts: each sets VALUE, or REASON and fails -----------------------------------------------------------------------

# provide NAME FUNCTION: runs the function and records what came of it.
provide() {
    local name=$1 part=$2
    VALUE='' REASON="$part failed, see above"
    if "$part"; then
        record "$name" "$VALUE"
    else
        record "${name}_MISSING" "$REASON"
        say "$name is missing: $REASON"
        return 1
    fi
}

record() {
    printf "ZDAP_TEST_%s='%s'\n" "$1" "${2//\'/}" >>"$LAB_DIR/env.new"
}

postgres_programs() {
    if ! newest_postgres >/dev/null; then
        install_postgres || return 1
    fi
    VALUE=$(newest_postgres) || missing 'no /usr/lib/postgresql/*/bin/postgres after installing postgresql'
}

newest_postgres() {
    local server
    server=$(find /usr/lib/postgresql/*/bin/postgres 2>/dev/null | sort -V | tail -n 1)
    [[ -n $server ]] && dirname "$server"
}

pool() {
    is_root || { missing 'making ZFS datasets needs root: run this as root'; return; }
    if ! zfs_answers; then
        zfs_programs || return 1
        zfs_answers || start_zfs_fuse || return 1
    fi
    zpool list -H -o name "$POOL" >/dev/null 2>&1 || zpool import -d "$LAB_DIR" "$POOL" >/dev/null 2>&1 || create_pool ||
        { missing "zpool create $POOL failed"; return; }
    zfs mount -a >/dev/null 2>&1 || true
    local mountpoint
    mountpoint=$(zfs get -H -o value mountpoint "$POOL")
    mountpoint -q "$mountpoint" || { missing "pool $POOL is not mounted on $mountpoint"; return; }
    chmod 755 "$mountpoint"
    VALUE=$POOL
}

zfs_answers() {
    command -v zpool >/dev/null && zpool list >/dev/null 2>&1
}

# The kernel's ZFS where the machine has it, else the one in user space; the two packages exclude each other.
zfs_programs() {
    if [[ -e /dev/zfs ]] || modprobe zfs 2>/dev/null; then
        command -v zpool >/dev/null || install_packages zfsutils-linux
    else
        command -v zfs-fuse >/dev/null || install_packages zfs-fuse
    fi
}

start_zfs_fuse() {
    command -v zfs-fuse >/dev/null || { missing 'zpool does not answer and there is no zfs-fuse to start'; return; }
    [[ -e /dev/fuse ]] || modprobe fuse 2>/dev/null || { missing 'no ZFS module and no /dev/fuse'; return; }
    local dead # mounts of a zfs-fuse that was killed are in the way of the next one's
    for dead in $(findmnt -rn -t fuse.zfs -o TARGET | grep "^$LAB_DIR/" | sort -r); do
        umount -l "$dead"
    done
    mkdir -p /run/lock # without it zfs-fuse ends, and tells only syslog
    start_daemon zfs-fuse zfs-fuse --no-daemon --no-kstat-mount
    await 20 zfs_answers || missing "zfs-fuse does not answer, see $LAB_DIR/zfs-fuse.log"
}

create_pool() {
    truncate -s 4G "$LAB_DIR/zfs.img"
    zpool create -f -m "$LAB_DIR/pool" "$POOL" "$LAB_DIR/zfs.img"
}

reflink() {
    local dir=$LAB_DIR/reflink image=$LAB_DIR/reflink.img
    VALUE=$dir
    mountpoint -q "$dir" && return
    is_root || { missing 'mounting a file system with reflinks needs root'; return; }
    mkdir -p "$dir"
    if [[ ! -e $image ]]; then
        command -v mkfs.btrfs >/dev/null || install_packages btrfs-progs || return 1
        truncate -s 1G "$image.new"
        mkfs.btrfs --quiet "$image.new" >/dev/null || { missing 'mkfs.btrfs failed'; return; }
        mv "$image.new" "$image"
    fi
    mount -o loop "$image" "$dir" || { missing 'cannot mount a btrfs image through a loop device'; return; }
    chmod 1777 "$dir"
}

# Several machines on this one, for clusters.
namespaces() {
    VALUE=1
    is_root || { missing 'making network namespaces needs root'; return; }
    if ! command -v ip >/dev/null || ! command -v nft >/dev/null || ! command -v nsenter >/dev/null; then
        install_packages iproute2 nftables util-linux || return 1
    fi
    local name=zdap-lab-probe
    ip netns delete "$name" 2>/dev/null || true
    ip netns add "$name" && nsenter --net="/run/netns/$name" -- nft add table inet probe ||
        { missing 'this machine makes no network namespaces, or has no nftables in them'; return; }
    ip netns delete "$name"
}

docker_engine() {
    VALUE=1
    docker_answers && return
    is_root || { missing 'no Docker engine answers this user, and starting one needs root'; return; }
    if ! command -v dockerd >/dev/null || ! command -v docker >/dev/null; then
        install_packages docker.io iptables || return 1
    fi
    command -v iptables >/dev/null || install_packages iptables || return 1
    if [[ -d /run/systemd/system ]]; then
        systemctl start docker >&2 || true
    elif ! docker_answers; then
        start_daemon dockerd dockerd
    fi
    await 40 docker_answers || missing "dockerd does not answer, see $LAB_DIR/dockerd.log"
}

docker_answers() {
    command -v docker >/dev/null && timeout 10 docker info >/dev/null 2>&1
}

compose() {
    VALUE=1
    compose_answers && return
    is_root || { missing 'installing the docker compose plugin needs root'; return; }
    if [[ $(apt_candidate docker-compose-v2) == 2.* ]]; then
        install_packages docker-compose-v2 || return 1
    elif [[ $(apt_candidate docker-compose) == 2.* ]]; then
        install_packages docker-compose || return 1
    else
        compose_from_trixie || { missing 'no docker compose v2 in this machine'\''s packages, nor in those of Debian trixie'; return; }
    fi
    compose_answers || missing 'docker compose does not answer after its installation'
}

compose_answers() {
    docker compose version >/dev/null 2>&1
}

# Debian 12 has no compose v2; its next release has it as one static program. An apt of its own directories reads that
# release from where this machine gets its packages, signatures checked as ever, and nothing of it is installed.
compose_from_trixie() {
    local apt=$CACHE_DIR/apt-trixie plugin=usr/libexec/docker/cli-plugins/docker-compose
    if [[ ! -x $CACHE_DIR/$plugin ]]; then
        say 'taking docker compose from the packages of Debian trixie'
        mkdir -p "$apt"/{sources,lists/partial,cache/archives/partial}
        apt_sources trixie >"$apt/sources/trixie.sources"
        local -a options=(-o "Dir::Etc::sourcelist=/dev/null" -o "Dir::Etc::sourceparts=$apt/sources"
            -o "Dir::State::lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o "Acquire::Languages=none" -o "APT::Sandbox::User=root")
        apt-get -q "${options[@]}" update >&2 || return 1
        (cd "$apt" && apt-get -q "${options[@]}" download docker-compose >&2) || return 1
        dpkg -x "$apt"/docker-compose_*.deb "$CACHE_DIR" || return 1
        rm -rf "$apt"
    fi
    install -D -m 755 "$CACHE_DIR/$plugin" /usr/local/lib/docker/cli-plugins/docker-compose
}

postgres_image() {
    VALUE=$IMAGE
    docker image inspect "$IMAGE" >/dev/null 2>&1 && return
    if timeout 8 docker manifest inspect "$IMAGE" >/dev/null 2>&1 && docker pull "$IMAGE" >&2; then
        return
    fi
    is_root || { missing "no registry answers, and building $IMAGE from packages needs root"; return; }
    local rootfs=$CACHE_DIR/postgres-15.tar
    if [[ ! -e $rootfs ]]; then
        command -v mmdebstrap >/dev/null || install_packages mmdebstrap || return 1
        say "no registry answers: building $IMAGE from Debian's packages"
        debian_with_postgres "$rootfs" || { missing "mmdebstrap could not build $IMAGE, see $LAB_DIR/mmdebstrap.log"; return; }
    fi
    docker import "$rootfs" zdap-lab/postgres-base:15 >/dev/null || { missing "docker import of $rootfs failed"; return; }
    docker build --tag "$IMAGE" "$HERE/postgres-image" >"$LAB_DIR/image.log" 2>&1 ||
        missing "docker build of $IMAGE failed, see $LAB_DIR/image.log"
}

# Without manuals, translations and the JIT compiler: those are most of its size.
debian_with_postgres() {
    local sources
    sources=$(mktemp --suffix=.sources)
    apt_sources bookworm >"$sources"
    # shellcheck disable=SC2016 # $1 is for the hook's shell
    mmdebstrap --format=tar --variant=minbase --include=postgresql-15 \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/lib/*/libLLVM*' --dpkgopt='path-exclude=/usr/lib/postgresql/*/lib/*llvmjit*' \
        --dpkgopt='path-exclude=/usr/lib/postgresql/*/lib/bitcode/*' \
        --essential-hook='mkdir -p "$1/etc/postgresql-common" && echo create_main_cluster = false >"$1/etc/postgresql-common/createcluster.conf"' \
        bookworm "$1.new" "$sources" >"$LAB_DIR/mmdebstrap.log" 2>&1 && mv "$1.new" "$1"
    local status=$?
    rm -f "$sources"
    return $status
}

# --- machinery ---------------------------------------------------------------------------------------------------------

# start_daemon NAME COMMAND...: outlives this shell; its pid and log are in the lab directory.
start_daemon() {
    local name=$1
    shift
    say "starting $name"
    setsid nohup "$@" </dev/null >"$LAB_DIR/$name.log" 2>&1 9>&- &
    echo $! >"$LAB_DIR/$name.pid"
}

# Only the process that `start_daemon` made: a pid may be another program's after a reboot.
stop_daemon() {
    local name=$1 pid
    [[ -e $LAB_DIR/$name.pid ]] || return 0
    pid=$(<"$LAB_DIR/$name.pid")
    if [[ $(cat "/proc/$pid/comm" 2>/dev/null) == "$name" ]]; then
        kill "$pid"
        await 30 process_is_gone "$pid" || say "$name (pid $pid) is still running"
    fi
    rm -f "$LAB_DIR/$name.pid"
}

process_is_gone() {
    [[ ! -e /proc/$1 ]] || grep -q '^State:.Z' "/proc/$1/status" 2>/dev/null
}

# await SECONDS COMMAND...: until it succeeds.
await() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}

apt_candidate() {
    apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: //p'
}

# apt_sources SUITE: this machine's own Debian sources with another release's name in them.
apt_sources() {
    local own
    # shellcheck source=/dev/null
    own=$(. /etc/os-release && echo "$VERSION_CODENAME")
    local file
    for file in /etc/apt/sources.list.d/*.sources; do
        if [[ -e $file ]] && grep -q "^Suites:.*\b$own\b" "$file"; then
            grep -v '^#' "$file" | sed "s/\b$own\b/$1/g"
            echo
        fi
    done
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
        if [[ -e $file ]]; then
            sed -nE "s/^deb (\[[^]]*\] )?([^ ]+) $own([^ ]*) (.*)$/Types: deb\nURIs: \2\nSuites: $1\3\nComponents: \4\nSigned-By: \/usr\/share\/keyrings\/debian-archive-keyring.gpg\n/p" "$file"
        fi
    done
}

main "$@"
