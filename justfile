# three nodes and a sample database on this machine: attaches, queries, loses a node and goes on
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

# figures of the gossip on a virtual clock, a few minutes; `just gossip-bench 10 100` for clusters of these sizes only
gossip-bench *args:
    cargo run --quiet -p zdap-node --example gossip_bench --config 'profile.dev.package.zdap-node.opt-level=3' -- {{args}}

# many whole nodes in one process, what each costs: `just crowd 300 10` is 300 nodes for ten minutes, `just crowd 300 10 8` with all stopped for 8 s
crowd nodes="300" minutes="10" *stopped:
    cargo run --release --quiet -p zdap-node --example crowd -- {{nodes}} {{minutes}} {{stopped}}

# whole nodes in a simulation: `just sim SEED` tells one seed in full (the nodes' log with RUST_LOG=info); `just sim 0 10000` tries many
sim seed count="1":
    ZDAP_SIM_START={{seed}} ZDAP_SIM_COUNT={{count}} cargo test --quiet -p zdap-node --test sim -- --ignored --nocapture
