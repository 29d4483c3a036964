#!/usr/bin/env bash
# Builds zdapd, zdap and zdap-proxyd for this machine, in one go and statically linked: the relay runs in an empty image, and
# nothing is compiled twice to have it so. (A static program looks host names up with the C library it was built with: for
# another machine build there, or with plain `cargo build --release`.)
#
#   deploy/build.sh programs [--release]      builds, prints the directory the programs are in
#   deploy/build.sh relay-image [--release]   builds, makes the image zdap/zdap-proxyd:<version>, prints its name
#   eval "$(deploy/build.sh env)"             the environment for cargo to build into the same place
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. deploy/common.sh

main() {
    case ${1:-} in
    programs) programs "${@:2}" ;;
    relay-image) relay_image "${@:2}" ;;
    env) environment ;;
    *) usage "${BASH_SOURCE[0]}" ;;
    esac
}

# A target is named even though it is this machine's own: without one, cargo links its compile-time helpers statically too.
environment() {
    printf "export CARGO_BUILD_TARGET='%s'\n" "$(rustc -vV | sed -n 's/^host: //p')"
    printf "export RUSTFLAGS='%s'\n" '-C target-feature=+crt-static'
}

programs() {
    need_compilers
    eval "$(environment)"
    cargo build --locked "$@" -p zdap-node -p zdap -p zdap-relay >&2
    local profile=debug
    [[ " $* " != *' --release '* ]] || profile=release
    printf '%s/%s/%s\n' "${CARGO_TARGET_DIR:-$PWD/target}" "$CARGO_BUILD_TARGET" "$profile"
}

relay_image() {
    local built context image
    built=$(programs "$@")
    image=zdap/zdap-proxyd:$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
    context=$(mktemp -d)
    cp "$built/zdap-proxyd" "$context/"
    docker build --file deploy/Dockerfile.relay --tag "$image" "$context" >&2
    rm -r "$context"
    printf '%s\n' "$image"
}

main "$@"
