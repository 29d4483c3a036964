//! A whole node over real QUIC and real mutual TLS, on disks and engines of memory: who gets what, and who does not.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod by_hand;
mod client;
mod floods;
mod forgotten;
mod gateway;
mod given_up;
mod members;
mod placing;
mod refusals;
mod retries;
mod rights;
mod silent;
mod spread;
mod strangers;
mod together;
mod world;
