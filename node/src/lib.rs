//! `zdapd`: one node of the cluster.
//!
//! # Map
//! - [`cli`], [`config`]: what was typed, and what it means
//! - [`resource`]: resource files
//! - [`storage`], [`runtime`]: the two seams, each with several real implementations and one contract
//! - [`schedule`], [`retention`]: when to restore, and what may go; pure
//! - [`quantity`]: sizes and durations as people write them
pub mod cli;
pub mod config;
pub mod quantity;
pub mod resource;
pub mod retention;
pub mod runtime;
pub mod schedule;
pub mod storage;
