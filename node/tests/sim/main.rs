//! Whole nodes in one thread, on a paused clock, over a network in memory, with everything that can go wrong drawn from one
//! seed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod network;
