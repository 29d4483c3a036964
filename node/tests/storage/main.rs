//! The contract of `Storage`, kept by all three: memory, directories (plain and reflinked) and ZFS.

#![allow(
    clippy::unwrap_used,
    reason = "a test that meets what it does not expect fails"
)]

mod contract;
mod directory;
#[path = "../lab/mod.rs"]
mod lab;
mod memory;
mod place;
mod zfs;
