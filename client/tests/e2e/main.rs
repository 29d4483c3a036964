//! The programs as people run them: `zdapd`, `zdap` and `zdap-proxyd`, each test with a node, a user and a project of its own.
//!
//! `ZDAP_TEST_PROGRAMS` names the directory they are in (`deploy/build.sh programs` prints it).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "a test that fails says what it saw")]

mod attaching;
mod bad_input;
mod compose_project;
mod crashes;
mod demo;
mod everyday;
mod hosts;
#[path = "../../../node/tests/lab/mod.rs"]
mod lab;
mod node;
mod place;
mod program;
mod resource_file;
mod several_nodes;
mod trust;
mod user;
