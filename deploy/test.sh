#!/usr/bin/env bash
# Runs every check and every test, on real ZFS, Docker and Postgres, installing what is missing.
#
#   deploy/test.sh             a test whose part cannot be had on this machine is skipped, by name and with the reason
#   deploy/test.sh --no-skip   such a test fails instead
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. deploy/common.sh

LOG_DIR=$(mktemp -d)
readonly LOG_DIR
trap 'rm -rf "$LOG_DIR"' EXIT
failed_checks=()

main() {
    case ${1:-} in
    '') ;;
    --no-skip) export ZDAP_TEST_NO_SKIP=1 ;;
    *) usage "${BASH_SOURCE[0]}" ;;
    esac
    need_compilers
    deploy/lab.sh up
    set -a
    # shellcheck source=/dev/null
    . <(deploy/lab.sh env)
    set +a
    eval "$(deploy/build.sh env)"
    export ZDAP_TEST_SKIP_LOG=$LOG_DIR/skips
    : >"$ZDAP_TEST_SKIP_LOG"

    check formatting cargo fmt --all --check
    check dependencies dependencies
    check licences licences
    check lints cargo clippy --locked --workspace --all-targets -- -D warnings
    forget_relay_images
    check programs build_programs
    ZDAP_TEST_PROGRAMS=$(<"$LOG_DIR/programs")
    export ZDAP_TEST_PROGRAMS ZDAP_TEST_RELAY=$ZDAP_TEST_PROGRAMS/zdap-proxyd
    check tests tests
    check 'documentation tests' cargo test --locked --workspace --doc
    summary
}

# check NAME COMMAND...: runs it, remembers a failure, goes on: one run tells all that is wrong.
check() {
    local name=$1 started=$SECONDS
    shift
    printf '\n== %s\n' "$name"
    if "$@" 2>&1 | tee -a "$LOG_DIR/output"; then
        printf '== %s: passed (%d s)\n' "$name" $((SECONDS - started))
    else
        printf '== %s: FAILED (%d s)\n' "$name" $((SECONDS - started))
        failed_checks+=("$name")
    fi
}

# What deny.toml says, by cargo-deny where it is installed, else asked of cargo alone.

dependencies() {
    if command -v cargo-deny >/dev/null; then
        cargo deny --offline check bans sources
        return
    fi
    local tree crate versions
    tree=$(cargo tree --locked --workspace --edges normal,build --prefix none --format '{p}' | awk '{print $1, $2}' | sort -u) || return 1
    for crate in ring openssl-sys native-tls; do
        if grep -q "^$crate " <<<"$tree"; then
            printf "a second cryptography is in the tree: %s (see 'cargo tree -i')\n" "$crate"
            return 1
        fi
    done
    for crate in rustls quinn tokio; do
        versions=$(grep -c "^$crate " <<<"$tree" || true)
        if [[ $versions != 1 ]]; then
            printf "%s versions of %s in the tree, wanted 1 (see 'cargo tree -d')\n" "$versions" "$crate"
            return 1
        fi
    done
    if grep '^source = ' Cargo.lock | grep -v 'registry+https://github.com/rust-lang/crates.io-index'; then
        echo 'a dependency is from elsewhere than crates.io'
        return 1
    fi
    if grep -nE '(^[a-z0-9_-]+|version) = "\*"' Cargo.toml ./*/Cargo.toml; then
        echo 'a dependency names no version'
        return 1
    fi
}

licences() {
    if command -v cargo-deny >/dev/null; then
        cargo deny --offline check licenses
        return
    fi
    local crates crate licence status=0
    ALLOWED_LICENCES=$(sed -n '/^\[licenses\]/,/^\]/s/^ *"\(.*\)",$/\1/p' deny.toml)
    crates=$(cargo tree --locked --workspace --prefix none --format '{p}|{l}' | sed '/^$/d; s/ (\*)$//' | sort -u) || return 1
    while IFS='|' read -r crate licence; do
        if ! licence_is_allowed "$licence"; then
            printf 'the licence of %s is not one that deny.toml allows: %s\n' "$crate" "${licence:-none}"
            status=1
        fi
    done <<<"$crates"
    return "$status"
}

# licence_is_allowed EXPRESSION: as arithmetic, a licence that is allowed being 1 and another 0. Crates from before SPDX
# expressions write `/` for OR.
licence_is_allowed() {
    local -a words
    local word arithmetic=
    read -ra words < <(sed 's# WITH #:#g; s#/# OR #g; s#[()]# & #g' <<<"$1")
    for word in "${words[@]}"; do
        case $word in
        '(' | ')') arithmetic+=$word ;;
        AND) arithmetic+='&&' ;;
        OR) arithmetic+='||' ;;
        *) arithmetic+=$(grep -cxF "${word/:/ WITH }" <<<"$ALLOWED_LICENCES" || true) ;;
        esac
    done
    ((${arithmetic:-0}))
}

# An image of this version that was made from older sources would be used in place of the program that is tested.
forget_relay_images() {
    docker images --format '{{.Repository}}:{{.Tag}}' zdap/zdap-proxyd 2>/dev/null | xargs -r docker rmi --force >/dev/null 2>&1 || true
}

build_programs() {
    deploy/build.sh programs >"$LOG_DIR/programs"
}

tests() {
    if command -v cargo-nextest >/dev/null; then
        cargo nextest run --locked --workspace
    else
        cargo test --locked --workspace --lib --bins --tests --no-fail-fast
    fi
}

summary() {
    local passed failed skipped
    passed=$(count passed)
    failed=$(count 'failed|timed out')
    ((failed > 0)) || failed=${#failed_checks[@]} # a check that fails without a test, such as the build, is a failure too
    skipped=$(sort -u "$ZDAP_TEST_SKIP_LOG" | grep -c . || true)
    if [[ -z ${ZDAP_TEST_NO_SKIP:-} ]]; then
        passed=$((passed - skipped)) # to the test runner a skipped test has passed
    fi
    printf '\n'
    sort -u "$ZDAP_TEST_SKIP_LOG"
    if ((${#failed_checks[@]} > 0)); then
        printf 'failed check: %s\n' "${failed_checks[@]}"
    fi
    printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
    ((${#failed_checks[@]} == 0))
}

# count WORD: adds up "N WORD" in the summary lines of nextest and of cargo test; there are none where nothing was built.
count() {
    sed -E 's/\x1b\[[0-9;]*m//g' "$LOG_DIR/output" | { grep -E '^ *Summary \[|^test result: ' || true; } |
        { grep -oE "[0-9]+ ($1)" || true; } | awk '{sum += $1} END {print sum + 0}'
}

main "$@"
