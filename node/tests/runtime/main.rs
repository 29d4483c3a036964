//! What a caller of [`zdap_node::runtime::Runtime`] may rely on, on every backend.
//!
//! `memory` runs everywhere. `process` needs PostgreSQL (`ZDAP_TEST_POSTGRES_BIN`), `docker` an engine (`ZDAP_TEST_DOCKER`)
//! with the image `ZDAP_TEST_IMAGE`, and what is on ZFS the pool `ZDAP_TEST_ZPOOL`. What is not there is skipped aloud.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod containers;
mod contract;
#[path = "../lab/mod.rs"]
mod lab;
mod labs;
mod machine;
mod on_zfs;
mod processes;
