//! The gossip of many nodes on a virtual clock: what they know of each other, when, and after what.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(
    unreachable_pub,
    clippy::cast_precision_loss,
    reason = "shared with the measurements"
)]

mod cluster;
mod figures;
mod identity;
mod measure;
mod network;
mod packets;
mod views;
