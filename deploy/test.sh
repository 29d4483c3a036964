#!/usr/bin/env bash
# Runs every check and every test, on real ZFS, Docker and Postgres, installing what is missing.
#
#   deploy/test.sh             a test whose part cannot be had on this machine is skipped, by name and with the reason
#   deploy/test.sh --no-skip   such a test fails instead
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

LOG_DIR=$(mktemp -d)
readonly LOG_DIR
trap 'rm -rf "$LOG_DIR"' EXIT
failed_checks=()

main() {
    case ${1:-} in
    '') ;;
    --no-skip) export ZDAP_TEST_NO_SKIP=1 ;;
    *)
        sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
        exit 2
        ;;
    esac
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
    check 'licences and bans' cargo_deny
    check lints cargo clippy --locked --workspace --all-targets -- -D warnings
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

# What deny.toml says of cryptography and of duplicates, asked of cargo alone.
dependencies() {
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
}

cargo_deny() {
    if command -v cargo-deny >/dev/null; then
        cargo deny --offline check bans licenses sources
    else
        echo 'cargo-deny is not installed: licences are not checked here'
    fi
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

# count WORD: adds up "N WORD" in the summary lines of nextest and of cargo test.
count() {
    sed -E 's/\x1b\[[0-9;]*m//g' "$LOG_DIR/output" | grep -E '^ *Summary \[|^test result: ' |
        grep -oE "[0-9]+ ($1)" | awk '{sum += $1} END {print sum + 0}'
}

main "$@"
