//! The contract: one sentence, one clause, three backends.

use std::time::Duration;

use zdap_node::runtime::{InstanceId, RuntimeError};
use zdap_proto::name::BaseId;

use crate::labs::{DockerLab, GRACE, Lab, MemoryLab, ProcessLab, clone_id, spec};
use crate::machine::{began, control_data, psql, query};

/// One clause of the contract is a function here and a test in each backend's module.
macro_rules! contract {
    ($($clause:ident),* $(,)?) => {
        contract!(@on memory, MemoryLab, $($clause),*);
        contract!(@on process, ProcessLab, $($clause),*);
        contract!(@on docker, DockerLab, $($clause),*);
    };
    (@on $backend:ident, $lab:ident, $($clause:ident),*) => {
        mod $backend {
            use super::*;
            $(
                #[tokio::test]
                async fn $clause() {
                    if let Some(lab) = $lab::open(concat!(stringify!($backend), "::", stringify!($clause))).await {
                        super::$clause(&lab).await;
                        lab.close().await;
                    }
                }
            )*
        }
    };
}

contract! {
    a_start_on_empty_data_initialises_it_and_the_database_answers,
    starting_twice_is_harmless,
    after_a_clean_stop_the_next_start_needs_no_recovery,
    stopping_and_removing_what_is_absent_succeeds,
    removing_keeps_the_data,
    a_killed_instance_is_seen_not_to_run_and_can_be_started_again,
    the_next_life_of_a_node_finds_what_the_last_one_started,
    an_instance_that_ends_at_start_gives_its_last_output,
    a_database_that_never_answers_is_given_up_with_its_output,
    an_image_that_is_not_there_is_refused_without_fetching,
    data_that_is_not_there_is_named_and_not_made,
    user_password_and_database_are_as_the_variables_say,
    instances_of_a_base_and_of_a_clone_are_told_apart,
    a_start_that_is_given_up_midway_can_be_removed,
}

async fn a_start_on_empty_data_initialises_it_and_the_database_answers<L: Lab>(lab: &L) {
    let spec = spec(lab);
    let started = lab.runtime().start(&spec).await.unwrap();
    let observed = lab.runtime().instances().await.unwrap();
    let ours = observed.iter().find(|instance| instance.id == spec.id).unwrap();
    assert_eq!(ours.running.as_ref(), Some(&started.address));
    if L::REAL {
        assert_eq!(query(&started.address, &spec, "postgres", "select 6 * 7"), "42");
    }
    lab.runtime().remove(&spec.id).await.unwrap();
}

async fn starting_twice_is_harmless<L: Lab>(lab: &L) {
    let spec = spec(lab);
    let first = lab.runtime().start(&spec).await.unwrap();
    let began_at = L::REAL.then(|| began(&first.address, &spec));
    let second = lab.runtime().start(&spec).await.unwrap();
    assert_eq!(first.address, second.address);
    if let Some(began_at) = began_at {
        assert_eq!(
            began(&second.address, &spec),
            began_at,
            "the server was restarted"
        );
    }
    assert_eq!(lab.runtime().instances().await.unwrap().len(), 1);
    lab.runtime().remove(&spec.id).await.unwrap();
}

async fn after_a_clean_stop_the_next_start_needs_no_recovery<L: Lab>(lab: &L) {
    let spec = spec(lab);
    let started = lab.runtime().start(&spec).await.unwrap();
    if L::REAL {
        query(
            &started.address,
            &spec,
            "postgres",
            "create table t as select generate_series(1, 1000)",
        );
    }
    lab.runtime().stop(&spec.id, GRACE).await.unwrap();
    let observed = lab.runtime().instances().await.unwrap();
    assert_eq!(observed.len(), 1);
    assert_eq!(observed[0].running, None);
    lab.runtime().stop(&spec.id, GRACE).await.unwrap();
    if L::REAL {
        let control = control_data(&spec.data);
        assert!(control.contains("shut down"), "{control}");
        assert!(!control.contains("in production"), "{control}");
    }
    let started = lab.runtime().start(&spec).await.unwrap();
    if L::REAL {
        assert_eq!(
            query(&started.address, &spec, "postgres", "select count(*) from t"),
            "1000"
        );
        let log = lab.log(&spec.id);
        assert!(log.contains("database system was shut down at"), "{log}");
        assert!(!log.contains("not properly shut down"), "{log}");
        assert!(
            !log.contains("SASL") && !log.contains("reset by peer"),
            "asking was noticed: {log}"
        );
    }
    lab.runtime().remove(&spec.id).await.unwrap();
}

async fn stopping_and_removing_what_is_absent_succeeds<L: Lab>(lab: &L) {
    let id = clone_id();
    lab.runtime().stop(&id, GRACE).await.unwrap();
    lab.runtime().remove(&id).await.unwrap();
    let spec = spec(lab);
    lab.runtime().start(&spec).await.unwrap();
    lab.runtime().remove(&spec.id).await.unwrap();
    lab.runtime().remove(&spec.id).await.unwrap();
    assert_eq!(lab.runtime().instances().await.unwrap(), []);
}

async fn removing_keeps_the_data<L: Lab>(lab: &L) {
    let mut spec = spec(lab);
    let started = lab.runtime().start(&spec).await.unwrap();
    if L::REAL {
        query(&started.address, &spec, "postgres", "create table kept (n int)");
    }
    lab.runtime().stop(&spec.id, GRACE).await.unwrap();
    lab.runtime().remove(&spec.id).await.unwrap();
    spec.id = clone_id();
    let started = lab.runtime().start(&spec).await.unwrap();
    if L::REAL {
        assert_eq!(
            query(&started.address, &spec, "postgres", "select count(*) from kept"),
            "0"
        );
    }
    lab.runtime().remove(&spec.id).await.unwrap();
}

async fn a_killed_instance_is_seen_not_to_run_and_can_be_started_again<L: Lab>(lab: &L) {
    let spec = spec(lab);
    lab.runtime().start(&spec).await.unwrap();
    lab.kill(&spec.id).await;
    let observed = lab.runtime().instances().await.unwrap();
    assert_eq!(observed.len(), 1);
    assert_eq!(observed[0].running, None);
    if L::REAL {
        let error = lab.runtime().stop(&spec.id, GRACE).await.unwrap_err();
        assert!(
            matches!(&error, RuntimeError::Failed { reason, .. } if reason.contains("ended")),
            "{error}"
        );
    }
    lab.runtime().start(&spec).await.unwrap();
    lab.runtime().remove(&spec.id).await.unwrap();
}

async fn the_next_life_of_a_node_finds_what_the_last_one_started<L: Lab>(lab: &L) {
    let spec = spec(lab);
    let started = lab.runtime().start(&spec).await.unwrap();
    let next = lab.next_life().await;
    let observed = next.instances().await.unwrap();
    assert_eq!(observed.len(), 1);
    assert_eq!(observed[0].id, spec.id);
    assert_eq!(observed[0].running.as_ref(), Some(&started.address));
    assert_eq!(next.start(&spec).await.unwrap().address, started.address);
    next.stop(&spec.id, GRACE).await.unwrap();
    next.remove(&spec.id).await.unwrap();
    assert_eq!(lab.runtime().instances().await.unwrap(), []);
}

async fn an_instance_that_ends_at_start_gives_its_last_output<L: Lab>(lab: &L) {
    let mut spec = spec(lab);
    lab.make_it_exit(&mut spec);
    let error = lab.runtime().start(&spec).await.unwrap_err();
    let RuntimeError::Exited {
        instance,
        status,
        output,
    } = error
    else {
        panic!("{error:?}")
    };
    assert_eq!(instance, lab.runtime().instance_name(&spec.id));
    assert_eq!(status, 1);
    assert!(output.contains("FATAL"), "{output}");
    lab.runtime().remove(&spec.id).await.unwrap();
    assert_eq!(lab.runtime().instances().await.unwrap(), []);
}

async fn a_database_that_never_answers_is_given_up_with_its_output<L: Lab>(lab: &L) {
    let mut spec = spec(lab);
    lab.make_it_hang(&mut spec).await;
    spec.ready_timeout = Duration::from_secs(5);
    let error = lab.runtime().start(&spec).await.unwrap_err();
    let RuntimeError::NotReady { waited, output, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!(waited, spec.ready_timeout);
    assert!(output.contains("LOG"), "{output}");
    lab.runtime().remove(&spec.id).await.unwrap();
    assert_eq!(lab.runtime().instances().await.unwrap(), []);
}

async fn an_image_that_is_not_there_is_refused_without_fetching<L: Lab>(lab: &L) {
    let mut spec = spec(lab);
    assert!(lab.runtime().has_image(&spec.image).await.unwrap());
    spec.image = lab.missing_image().to_owned();
    assert!(!lab.runtime().has_image(&spec.image).await.unwrap());
    let error = lab.runtime().start(&spec).await.unwrap_err();
    match &error {
        RuntimeError::ImageMissing(image) => assert_eq!(*image, spec.image),
        RuntimeError::Unsupported { message, .. } => assert!(message.contains(&spec.image), "{message}"),
        RuntimeError::Exited { .. }
        | RuntimeError::NotReady { .. }
        | RuntimeError::NotClean { .. }
        | RuntimeError::Failed { .. } => panic!("{error:?}"),
    }
    assert_eq!(lab.runtime().instances().await.unwrap(), []);
}

async fn data_that_is_not_there_is_named_and_not_made<L: Lab>(lab: &L) {
    if !L::REAL {
        return; // Memory has no data.
    }
    let mut spec = spec(lab);
    spec.data.push("not-mounted");
    let error = lab.runtime().start(&spec).await.unwrap_err().to_string();
    assert!(error.contains(spec.data.to_str().unwrap()), "{error}");
    assert!(!spec.data.exists());
    lab.runtime().remove(&spec.id).await.unwrap();
}

async fn user_password_and_database_are_as_the_variables_say<L: Lab>(lab: &L) {
    let mut spec = spec(lab);
    spec.env = [
        "POSTGRES_USER=ada",
        "POSTGRES_PASSWORD=it's \"secret\"",
        "POSTGRES_DB=Order \"book\"",
        "POSTGRES_INITDB_ARGS=--data-checksums",
    ]
    .map(str::to_owned)
    .to_vec();
    let started = lab.runtime().start(&spec).await.unwrap();
    if L::REAL {
        let database = "Order \"book\"";
        assert_eq!(
            query(&started.address, &spec, database, "select current_user"),
            "ada"
        );
        assert_eq!(
            query(&started.address, &spec, database, "show data_checksums"),
            "on"
        );
        let mut wrong = spec.clone();
        wrong.env[1] = "POSTGRES_PASSWORD=guess".to_owned();
        let output = psql(&started.address, &wrong, database, "select 1");
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            complaint.contains("password authentication failed"),
            "{complaint}"
        );
    }
    lab.runtime().remove(&spec.id).await.unwrap();
}

async fn instances_of_a_base_and_of_a_clone_are_told_apart<L: Lab>(lab: &L) {
    let (mut base, clone) = (spec(lab), spec(lab));
    base.id = InstanceId::Base(BaseId {
        resource: "orders".parse().unwrap(),
        created_at: "2026-11-22T13:39:25Z".parse().unwrap(),
    });
    let (of_base, of_clone) = tokio::join!(lab.runtime().start(&base), lab.runtime().start(&clone));
    assert_ne!(of_base.unwrap().address, of_clone.unwrap().address);
    lab.runtime().stop(&base.id, GRACE).await.unwrap();
    for instance in lab.runtime().instances().await.unwrap() {
        assert_eq!(
            instance.running.is_some(),
            instance.id == clone.id,
            "{instance:?}"
        );
    }
    lab.runtime().remove(&base.id).await.unwrap();
    let left = lab.runtime().instances().await.unwrap();
    assert_eq!(left.iter().map(|left| &left.id).collect::<Vec<_>>(), [&clone.id]);
    lab.runtime().remove(&clone.id).await.unwrap();
}

async fn a_start_that_is_given_up_midway_can_be_removed<L: Lab>(lab: &L) {
    // Before anything runs, while the data is initialised, while the server starts.
    for milliseconds in [1, 20, 100, 300, 600] {
        let spec = spec(lab);
        let given_up = tokio::time::timeout(Duration::from_millis(milliseconds), lab.runtime().start(&spec));
        let finished = given_up.await.is_ok();
        lab.runtime().remove(&spec.id).await.unwrap();
        assert_eq!(
            lab.runtime().instances().await.unwrap(),
            [],
            "{milliseconds} ms, finished: {finished}"
        );
        assert_eq!(lab.left_running(&spec), Vec::<String>::new(), "{milliseconds} ms");
    }
}
