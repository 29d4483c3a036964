//! What only containers have to keep.

use std::process::Command;
use std::time::Duration;

use zdap_node::runtime::{Address, RuntimeError};

use crate::labs::{DockerLab, GRACE, Lab, spec};
use crate::machine::{docker, run};

#[tokio::test]
async fn a_database_other_than_postgres_is_ready_when_its_healthcheck_passes() {
    let test = "a_database_other_than_postgres_is_ready_when_its_healthcheck_passes";
    let Some(lab) = DockerLab::open(test).await else {
        return;
    };
    let mut spec = spec(&lab);
    let image = format!("zdap-test-{}:1", lab.node.rsplit('-').next().unwrap());
    docker(&["tag", &spec.image, &image]);
    spec.image = image.clone();
    spec.healthcheck = Some("test -e /var/lib/postgresql/data/healthy".to_owned());
    let mut starting = lab.runtime().start(&spec);
    // It accepts connections by then, but is not what the healthcheck wants.
    let data = spec.data.clone();
    let listens = async {
        while !std::fs::read_to_string(data.join("postmaster.pid")).is_ok_and(|text| text.contains("ready")) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        started = &mut starting => panic!("{started:?}"),
        () = listens => {}
    }
    std::fs::write(spec.data.join("healthy"), "").unwrap();
    starting.await.unwrap();
    lab.runtime().remove(&spec.id).await.unwrap();
    docker(&["rmi", "--no-prune", &image]);
    lab.close().await;
}

#[tokio::test]
async fn containers_cannot_reach_each_other_and_publish_no_port() {
    let test = "containers_cannot_reach_each_other_and_publish_no_port";
    let Some(lab) = DockerLab::open(test).await else {
        return;
    };
    let (one, other) = (spec(&lab), spec(&lab));
    lab.runtime().start(&one).await.unwrap();
    let Address::Tcp(address) = lab.runtime().start(&other).await.unwrap().address else {
        panic!("a container has a TCP address")
    };
    let name = lab.runtime().instance_name(&one.id);
    let reach = |host: &str| {
        let host = format!("--host={host}");
        let arguments = ["exec", &name, "pg_isready", "--timeout=2", &host];
        Command::new("docker").args(arguments).status().unwrap().success()
    };
    assert!(reach("127.0.0.1"));
    assert!(!reach(&address.ip().to_string()));
    assert_eq!(docker(&["port", &name]), "");
    lab.runtime().remove(&one.id).await.unwrap();
    lab.runtime().remove(&other.id).await.unwrap();
    lab.close().await;
}

#[tokio::test]
async fn a_container_of_somebody_else_is_left_alone() {
    let test = "a_container_of_somebody_else_is_left_alone";
    let Some(lab) = DockerLab::open(test).await else {
        return;
    };
    let stranger = DockerLab::open(test).await.unwrap();
    let mut spec = spec(&lab);
    lab.runtime().start(&spec).await.unwrap();
    assert_eq!(stranger.runtime().instances().await.unwrap(), []);
    for error in [
        stranger.runtime().start(&spec).await.unwrap_err(),
        stranger.runtime().stop(&spec.id, GRACE).await.unwrap_err(),
        stranger.runtime().remove(&spec.id).await.unwrap_err(),
    ] {
        assert!(error.to_string().contains("is not this node's"), "{error}");
    }
    spec.ready_timeout = Duration::from_secs(10);
    lab.runtime().start(&spec).await.unwrap();
    lab.runtime().remove(&spec.id).await.unwrap();
    lab.close().await;
}

#[tokio::test]
async fn a_server_that_does_not_stop_in_time_is_killed_and_said_to_need_recovery() {
    let test = "a_server_that_does_not_stop_in_time_is_killed_and_said_to_need_recovery";
    let Some(lab) = DockerLab::open(test).await else {
        return;
    };
    let (spec, grace) = (spec(&lab), Duration::from_secs(1));
    lab.runtime().start(&spec).await.unwrap();
    let server = docker(&[
        "inspect",
        "-f",
        "{{.State.Pid}}",
        &lab.runtime().instance_name(&spec.id),
    ]);
    run("kill", &["-STOP", &server]);
    let error = lab.runtime().stop(&spec.id, grace).await.unwrap_err();
    assert!(matches!(error, RuntimeError::NotClean { .. }), "{error}");
    assert_eq!(lab.runtime().instances().await.unwrap()[0].running, None);
    lab.runtime().remove(&spec.id).await.unwrap();
    lab.close().await;
}
