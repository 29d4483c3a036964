//! What only processes have to keep.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use zdap_node::runtime::RuntimeError;

use crate::lab::variable;
use crate::labs::{DockerLab, GRACE, Lab, ProcessLab, clone_id, spec};
use crate::machine::{is_root, query, run, shared_directory};

/// The process runtime again, this time by a user without privileges: the whole suite in a child.
#[test]
fn an_ordinary_user_can_run_the_process_runtime() {
    let test = "an_ordinary_user_can_run_the_process_runtime";
    if variable(test, "ZDAP_TEST_POSTGRES_BIN").is_none() {
        return;
    }
    if !is_root() {
        return; // Then the suite itself just showed it.
    }
    let directory = shared_directory();
    let suite = directory.path().join("suite");
    std::fs::copy(std::env::current_exe().unwrap(), &suite).unwrap();
    let home = directory.path().join("home");
    std::fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(NOBODY), Some(NOBODY)).unwrap();
    let output = Command::new(&suite)
        .uid(NOBODY)
        .args(["contract::process::", "--test-threads=2"])
        .env("TMPDIR", &home)
        .env("HOME", &home)
        .env_remove("XDG_RUNTIME_DIR")
        .current_dir(&home)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("14 passed"), "{said}");
}

/// The same data, restored in a container and cloned as a process: its owner changes.
#[tokio::test]
async fn a_process_takes_over_data_that_a_container_made() {
    let test = "a_process_takes_over_data_that_a_container_made";
    if !is_root() {
        return; // Only root can change the owner.
    }
    let (Some(containers), Some(processes)) = (DockerLab::open(test).await, ProcessLab::open(test).await)
    else {
        return;
    };
    let mut spec = spec(&processes);
    containers.runtime().start(&spec).await.unwrap();
    containers.runtime().stop(&spec.id, GRACE).await.unwrap();
    containers.runtime().remove(&spec.id).await.unwrap();
    run("chown", &["-R", "12345:12345", spec.data.to_str().unwrap()]);
    spec.id = clone_id();
    let started = processes.runtime().start(&spec).await.unwrap();
    assert_eq!(query(&started.address, &spec, "postgres", "select 1"), "1");
    processes.runtime().remove(&spec.id).await.unwrap();
    containers.close().await;
    processes.close().await;
}

#[tokio::test]
async fn a_server_that_does_not_stop_in_time_is_killed_and_said_to_need_recovery() {
    let test = "a_server_that_does_not_stop_in_time_is_killed_and_said_to_need_recovery";
    let Some(lab) = ProcessLab::open(test).await else {
        return;
    };
    let (spec, grace) = (spec(&lab), Duration::from_secs(1));
    lab.runtime().start(&spec).await.unwrap();
    let server = server_pid(&spec.data);
    run("kill", &["-STOP", &server]);
    let error = lab.runtime().stop(&spec.id, grace).await.unwrap_err();
    assert!(matches!(error, RuntimeError::NotClean { .. }), "{error}");
    assert_eq!(lab.runtime().instances().await.unwrap()[0].running, None);
    lab.runtime().remove(&spec.id).await.unwrap();
    lab.close().await;
}

/// Returns the number of the server itself, which the first line of its lock file holds.
fn server_pid(data: &Path) -> String {
    let text = std::fs::read_to_string(data.join("postmaster.pid")).unwrap();
    text.lines().next().unwrap().to_owned()
}

/// `nobody`, on every Linux.
const NOBODY: u32 = 65534;
