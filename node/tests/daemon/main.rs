//! The real `zdapd` on real ZFS, Docker and Postgres: killed, filled up, misused, started again.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod crashes;
mod failures;
#[path = "../lab/mod.rs"]
mod lab;
mod lives;
mod refusals;
mod site;
mod tunnel;
