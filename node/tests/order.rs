//! What a node does by itself: it notices what ends, starts again what should run, and forgets what is gone.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod life;

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use life::World;
use zdap_node::faults::Faults;
use zdap_node::runtime::{InstanceId, Runtime};
use zdap_node::storage::{DatasetId, Storage};
use zdap_proto::name::RequestId;

/// Waits until `condition` holds.
async fn until(condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "it never came to be");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn an_address_is_forgotten_as_soon_as_its_instance_ends_and_the_clone_is_started_again() {
    let world = World::new().await;
    let node = Arc::clone(&world.first.node);
    let watching = tokio::spawn(Arc::clone(&node).watch_ends());
    let address = || node.clones.address(&world.bobs.id);
    assert!(address().is_some());
    // Until the watch listens, an end goes unheard.
    while address().is_some() {
        world.runtime.kill(&InstanceId::Clone(world.bobs.id.clone()));
        tokio::task::yield_now().await;
    }
    let keeping = tokio::spawn(Arc::clone(&node).stay_in_order(Vec::new()));
    until(|| address().is_some()).await;
    watching.abort();
    keeping.abort();
}

#[tokio::test]
async fn an_address_that_changed_behind_our_back_is_taken_over() {
    let world = World::new().await;
    let node = &world.first.node;
    let instance = InstanceId::Clone(world.bobs.id.clone());
    node.clones.lose_address(&world.bobs.id);
    assert!(node.clones.address(&world.bobs.id).is_none());
    node.keep_in_order(Utc::now()).await;
    let seen = world.runtime.instances().await.unwrap();
    let seen = seen.into_iter().find(|seen| seen.id == instance).unwrap();
    assert_eq!(node.clones.address(&world.bobs.id), seen.running);
}

#[tokio::test]
async fn a_clone_that_recovers_for_longer_than_a_start_may_take_gets_its_address_later() {
    let world = World::new().await;
    let mut life = world.restart(Faults::none()).await;
    world.runtime.kill(&InstanceId::Clone(world.bobs.id.clone()));
    world.runtime.never_ready("slow");
    let slow = Arc::make_mut(&mut life.resource);
    slow.docker.image = "slow".to_owned();
    slow.timeouts.ready = Duration::from_millis(1);
    life.node.clones.lose_address(&world.bobs.id);
    life.node
        .clones
        .start_again(&world.bobs.id, &life.resource)
        .await
        .unwrap_err();
    assert!(life.node.clones.address(&world.bobs.id).is_none());
    life.node.keep_in_order(Utc::now()).await;
    assert!(life.node.clones.address(&world.bobs.id).is_some());
}

#[tokio::test]
async fn a_retry_finds_its_clone_beside_the_remains_of_an_earlier_try() {
    let world = World::new().await;
    let request = RequestId::random();
    for _ in 0..8 {
        // The first try is taken back, and its dataset stays busy.
        let remains = world.first.create("ada", &request).await.unwrap();
        world.storage.busy_for(1);
        world.first.node.clones.destroy(&remains.id).await;
        let made = world.first.create("ada", &request).await.unwrap();
        assert_ne!(made.id, remains.id);
        assert_eq!(world.first.create("ada", &request).await.unwrap().id, made.id);
        world.first.node.clones.destroy(&made.id).await;
    }
}

#[tokio::test]
async fn a_snapshot_that_an_administrator_removed_is_forgotten() {
    let world = World::new().await;
    let life = world.restart(Faults::none()).await;
    life.restore().await.unwrap();
    let newest = life.node.bases.newest(&world.resource.name).unwrap();
    world
        .storage
        .destroy(&DatasetId::Base(newest.base.clone()))
        .await
        .unwrap();
    life.node.keep_in_order(Utc::now()).await;
    let left = life.node.bases.newest(&world.resource.name).unwrap();
    assert!(left.taken_at < newest.taken_at);
}

#[tokio::test]
async fn an_old_base_that_is_snapshotted_again_does_not_become_the_newest() {
    let world = World::new().await;
    let life = world.restart(Faults::none()).await;
    let old = life.node.bases.newest(&world.resource.name).unwrap();
    life.restore().await.unwrap();
    let newest = life.node.bases.newest(&world.resource.name).unwrap();
    assert!(newest.base.created_at > old.base.created_at);
    // As if `--use-existing` had been asked for while the restore was under way.
    let again = zdap_proto::name::SnapshotId {
        base: old.base.clone(),
        taken_at: zdap_proto::name::SnapshotTime::new(Utc::now() + chrono::TimeDelta::hours(1)),
    };
    world.storage.snapshot(&again).await.unwrap();
    let next = world.restart(Faults::none()).await;
    assert_eq!(next.node.bases.newest(&world.resource.name), Some(newest));
}

#[tokio::test]
async fn clones_on_their_way_out_do_not_count_towards_a_users_limit() {
    let world = World::new().await;
    let mut life = world.restart(Faults::none()).await;
    Arc::make_mut(&mut life.resource).limits.clones_per_user = Some(1);
    let first = life.create("ada", &RequestId::random()).await.unwrap();
    let refused = life.create("ada", &RequestId::random()).await.unwrap_err();
    assert!(refused.contains("as many as are allowed"), "{refused}");
    world.storage.busy_for(1);
    life.node.clones.destroy(&first.id).await;
    life.create("ada", &RequestId::random()).await.unwrap();
}
