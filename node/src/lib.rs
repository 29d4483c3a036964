//! `zdapd`: one node of the cluster.
//!
//! # Map
//! - [`resource`]: resource files
//! - [`storage`], [`runtime`]: the two seams, each with several real implementations and one contract
//! - [`faults`]: what the fakes are told to get wrong
pub mod faults;
pub mod resource;
pub mod runtime;
pub mod storage;
