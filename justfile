# a node, a sample database, a clone and a query through the relay, on this machine
demo *args:
    deploy/demo.sh {{args}}

# every test, on real ZFS, Docker and Postgres; `just test --no-skip` fails where a part is missing
test *args:
    deploy/test.sh {{args}}

# formatting and lints, in seconds
check:
    cargo fmt --all --check && cargo clippy --workspace --all-targets -- -D warnings

# figures: `just bench attach`
bench *args:
    deploy/bench.sh {{args}}
