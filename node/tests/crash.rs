//! Every storage and runtime call of restore, create, the undoing of a failed create, and destroy fails, or is the last
//! before the node dies. After a restart nothing is orphaned, nothing of another owner is touched, and the same request,
//! made again, gives one clone.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod life;

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use life::World;
use zdap_node::faults::{Faults, Moment};
use zdap_proto::name::RequestId;

#[tokio::test]
async fn a_restore_that_fails_or_dies_at_any_call_leaves_nothing_and_the_next_one_succeeds() {
    everywhere(Scenario::Restore).await;
}

#[tokio::test]
async fn a_create_that_fails_or_dies_at_any_call_leaves_nothing_and_its_retry_gives_one_clone() {
    everywhere(Scenario::Create).await;
}

#[tokio::test]
async fn the_undoing_of_a_failed_create_may_fail_or_die_at_any_call_too() {
    everywhere(Scenario::FailedCreate).await;
}

#[tokio::test]
async fn a_destroy_that_fails_or_dies_at_any_call_is_finished_or_has_not_begun() {
    everywhere(Scenario::Destroy).await;
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Scenario {
    Restore,
    Create,
    FailedCreate,
    Destroy,
}

/// What goes wrong, and where.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Fail(usize, Moment),
    Die(usize, Moment),
}

async fn everywhere(scenario: Scenario) {
    let untroubled = Faults::none();
    run(scenario, &untroubled, None).await;
    let calls = untroubled.calls();
    assert!(calls.len() >= 3, "{scenario:?} makes the calls {calls:?}");
    for number in 0..calls.len() {
        for moment in [Moment::Before, Moment::After] {
            for fault in [Fault::Fail(number, moment), Fault::Die(number, moment)] {
                let faults = Faults::none();
                match fault {
                    Fault::Fail(number, moment) => faults.fail_call(number, moment),
                    Fault::Die(number, moment) => faults.stop_at_call(number, moment),
                }
                run(scenario, &faults, Some(fault)).await;
            }
        }
    }
}

/// Plays the scenario with `faults`, restarts the node, and looks.
async fn run(scenario: Scenario, faults: &Faults, fault: Option<Fault>) {
    let world = World::new().await;
    let context = format!("{scenario:?} with {fault:?}");
    let request = RequestId::random();

    let mine = match scenario {
        Scenario::Destroy => Some(world.first.create("ada", &request).await.expect("no fault yet")),
        Scenario::Restore | Scenario::Create | Scenario::FailedCreate => None,
    };
    let mut troubled = world.restart(faults.clone()).await;
    if scenario == Scenario::FailedCreate {
        world.runtime.exits_at_start("broken");
        Arc::make_mut(&mut troubled.resource).docker.image = "broken".to_owned();
    }
    let reply = until_dead(faults, async {
        match (scenario, &mine) {
            (Scenario::Restore, _) => troubled.restore().await.map(|()| None),
            (Scenario::Create | Scenario::FailedCreate, _) => {
                troubled.create("ada", &request).await.map(Some)
            }
            (Scenario::Destroy, Some(clone)) => {
                troubled.node.clones.destroy(&clone.id).await;
                Ok(None)
            }
            (Scenario::Destroy, None) => unreachable!("made above"),
        }
    })
    .await;
    drop(troubled);

    let next = world.restart(Faults::none()).await;
    next.node.keep_in_order(Utc::now()).await;
    next.nothing_is_orphaned(&context).await;
    next.bob_is_untouched(&world, &context);
    match (scenario, reply) {
        (Scenario::Create, Some(Ok(Some(record)))) => {
            let found = next.node.clones.find(&record.id);
            assert_eq!(found, Some(record), "a reply implies a record on disk; {context}");
        }
        (Scenario::Destroy, Some(Ok(None))) if fault.is_none() => {
            assert_eq!(next.clones_of("ada").len(), 0, "{context}");
        }
        (_, _) => {}
    }

    match scenario {
        Scenario::Restore => {
            let before = next.node.bases.list().len();
            next.restore()
                .await
                .unwrap_or_else(|error| panic!("the next restore succeeds: {error}; {context}"));
            assert_eq!(next.node.bases.list().len(), before + 1, "{context}");
        }
        Scenario::Create | Scenario::FailedCreate => {
            let retried = next
                .create("ada", &request)
                .await
                .unwrap_or_else(|error| panic!("{error}; {context}"));
            let again = next
                .create("ada", &request)
                .await
                .unwrap_or_else(|error| panic!("{error}; {context}"));
            assert_eq!(retried.id, again.id, "{context}");
            assert_eq!(
                next.clones_of("ada").len(),
                1,
                "a retry makes no second clone; {context}"
            );
        }
        Scenario::Destroy => {
            for clone in next.clones_of("ada") {
                next.node.clones.destroy(&clone.id).await;
            }
            assert_eq!(next.clones_of("ada").len(), 0, "{context}");
        }
    }
    next.nothing_is_orphaned(&context).await;
    next.bob_is_untouched(&world, &context);
}

/// Awaits `work` until it is done, or the node has died in it.
async fn until_dead<T>(faults: &Faults, work: impl Future<Output = T>) -> Option<T> {
    let mut work = std::pin::pin!(work);
    loop {
        match tokio::time::timeout(Duration::from_millis(1), &mut work).await {
            Ok(done) => return Some(done),
            Err(_) if faults.has_stopped() => return None,
            Err(_) => {}
        }
    }
}
