//! (datasets, instances, now) -> what to finish, start again or remove. Pure; `clones.rs` and `bases.rs` carry it out.

#![deny(clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use zdap_proto::message::{CloneRecord, CloneState};
use zdap_proto::name::{BaseId, CloneId};

use crate::runtime::{InstanceId, Observed};
use crate::storage::Inventory;

/// One thing to put right.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Repair {
    /// Remove an instance that has no dataset.
    RemoveInstance(InstanceId),
    /// Remove a clone: its instance, then its dataset.
    DestroyClone(CloneId),
    /// Remove a restore that was not finished: its instance, then its dataset.
    DestroyBase(BaseId),
    /// Start the instance of a clone that should answer.
    StartClone(CloneId),
}

/// Says what differs from what should be.
///
/// - What this process is working on (`in_flight`) is left alone.
/// - A clone that is `creating` was interrupted: nobody was told of it, so it goes; its request, made again, makes another.
/// - A clone that is `destroying` goes, and so does one that has expired.
/// - A `ready` clone whose instance does not run is started.
/// - A base without a snapshot is a restore that was interrupted, and goes.
/// - An instance goes when its dataset is not there, and a base's in any case: only a restore under way needs one.
/// - What carries no record of ours is not in the inventory's lists, so it cannot be touched.
pub fn plan(
    inventory: &Inventory,
    instances: &[Observed],
    in_flight: &BTreeSet<InstanceId>,
    now: DateTime<Utc>,
) -> Vec<Repair> {
    let running: BTreeMap<&InstanceId, bool> = instances
        .iter()
        .map(|instance| (&instance.id, instance.running.is_some()))
        .collect();
    let mut repairs = Vec::new();

    let mut with_dataset = BTreeSet::new();
    for clone in &inventory.clones {
        let id = InstanceId::Clone(clone.record.id.clone());
        if !in_flight.contains(&id) {
            let runs = running.get(&id).copied().unwrap_or(false);
            repairs.extend(repair_clone(&clone.record, runs, now));
        }
        with_dataset.insert(id);
    }
    for base in &inventory.bases {
        let id = InstanceId::Base(base.id.clone());
        if base.snapshots.is_empty() && !in_flight.contains(&id) {
            repairs.push(Repair::DestroyBase(base.id.clone()));
            with_dataset.insert(id);
        }
    }
    let orphans = instances
        .iter()
        .filter(|instance| !in_flight.contains(&instance.id) && !with_dataset.contains(&instance.id));
    repairs.extend(orphans.map(|instance| Repair::RemoveInstance(instance.id.clone())));
    repairs
}

fn repair_clone(record: &CloneRecord, runs: bool, now: DateTime<Utc>) -> Option<Repair> {
    let expired = record.expires_at.is_some_and(|expires_at| expires_at <= now);
    match record.state {
        CloneState::Creating | CloneState::Destroying => Some(Repair::DestroyClone(record.id.clone())),
        CloneState::Ready if expired => Some(Repair::DestroyClone(record.id.clone())),
        CloneState::Ready if !runs => Some(Repair::StartClone(record.id.clone())),
        CloneState::Ready => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;
    use zdap_proto::name::{RequestId, SnapshotId};

    use super::*;
    use crate::runtime::Address;
    use crate::storage::{BaseDataset, CloneDataset};

    fn now() -> DateTime<Utc> {
        "2026-11-22T12:00:00Z".parse().unwrap()
    }

    fn base() -> BaseId {
        BaseId {
            resource: "orders".parse().unwrap(),
            created_at: "2026-11-22T01:00:00Z".parse().unwrap(),
        }
    }

    fn clone_id(index: usize) -> CloneId {
        format!("orders-{}", "bcdfghjk".replace('b', &"bcdfghjkmn"[index..=index]))
            .parse()
            .unwrap()
    }

    fn record(index: usize, state: CloneState) -> CloneRecord {
        CloneRecord {
            id: clone_id(index),
            request_id: RequestId::random(),
            attempt: 0,
            owner: "ada".parse().unwrap(),
            snapshot: SnapshotId::of_restore(base()),
            created_at: now(),
            state,
            pooled: false,
            expires_at: None,
        }
    }

    fn instance(id: InstanceId, runs: bool) -> Observed {
        Observed {
            id,
            running: runs.then(|| Address::Unix(PathBuf::from("/run/.s.PGSQL.5432"))),
        }
    }

    fn inventory(records: Vec<CloneRecord>) -> Inventory {
        let snapshots = vec![(SnapshotId::of_restore(base()), 1)];
        Inventory {
            bases: vec![BaseDataset {
                id: base(),
                path: PathBuf::from("/base"),
                snapshots,
            }],
            clones: records
                .into_iter()
                .map(|record| CloneDataset {
                    record,
                    path: PathBuf::from("/clone"),
                    mounted: true,
                })
                .collect(),
            foreign: Vec::new(),
        }
    }

    fn plan_for(record: CloneRecord, runs: Option<bool>) -> Vec<Repair> {
        let id = InstanceId::Clone(record.id.clone());
        let instances: Vec<_> = runs.map(|runs| instance(id, runs)).into_iter().collect();
        plan(&inventory(vec![record]), &instances, &BTreeSet::new(), now())
    }

    #[test]
    fn a_clone_that_was_being_made_when_the_node_died_is_removed() {
        for runs in [None, Some(false), Some(true)] {
            let plan = plan_for(record(0, CloneState::Creating), runs);
            assert_eq!(plan, [Repair::DestroyClone(clone_id(0))]);
        }
    }

    #[test]
    fn a_clone_on_its_way_out_is_removed_whether_or_not_its_instance_is_left() {
        for runs in [None, Some(true)] {
            assert_eq!(
                plan_for(record(0, CloneState::Destroying), runs),
                [Repair::DestroyClone(clone_id(0))]
            );
        }
    }

    #[test]
    fn a_ready_clone_without_a_running_instance_is_started_again() {
        for runs in [None, Some(false)] {
            assert_eq!(
                plan_for(record(0, CloneState::Ready), runs),
                [Repair::StartClone(clone_id(0))]
            );
        }
        assert_eq!(plan_for(record(0, CloneState::Ready), Some(true)), []);
    }

    #[test]
    fn an_expired_clone_is_removed_at_its_time_and_not_before() {
        let mut clone = record(0, CloneState::Ready);
        clone.expires_at = Some(now());
        assert_eq!(
            plan_for(clone.clone(), Some(true)),
            [Repair::DestroyClone(clone_id(0))]
        );
        clone.expires_at = Some(now() + chrono::TimeDelta::seconds(1));
        assert_eq!(plan_for(clone, Some(true)), []);
    }

    #[test]
    fn a_base_without_a_snapshot_is_removed_unless_its_restore_is_under_way() {
        let mut unfinished = inventory(Vec::new());
        unfinished.bases[0].snapshots.clear();
        let id = InstanceId::Base(base());
        let instances = [instance(id.clone(), true)];
        assert_eq!(
            plan(&unfinished, &instances, &BTreeSet::new(), now()),
            [Repair::DestroyBase(base())]
        );
        assert_eq!(plan(&unfinished, &instances, &BTreeSet::from([id]), now()), []);
    }

    #[test]
    fn an_instance_left_by_a_finished_restore_is_removed_and_the_base_kept() {
        let id = InstanceId::Base(base());
        let repairs = plan(
            &inventory(Vec::new()),
            &[instance(id.clone(), false)],
            &BTreeSet::new(),
            now(),
        );
        assert_eq!(repairs, [Repair::RemoveInstance(id)]);
    }

    #[test]
    fn an_instance_without_a_dataset_is_removed() {
        let id = InstanceId::Clone(clone_id(1));
        let repairs = plan(
            &inventory(Vec::new()),
            &[instance(id.clone(), true)],
            &BTreeSet::new(),
            now(),
        );
        assert_eq!(repairs, [Repair::RemoveInstance(id)]);
    }

    #[derive(Debug, Clone)]
    struct Case {
        state: Option<CloneState>,
        instance: Option<bool>,
        in_flight: bool,
    }

    fn case() -> impl Strategy<Value = Case> {
        let state = proptest::option::of(prop_oneof![
            Just(CloneState::Creating),
            Just(CloneState::Ready),
            Just(CloneState::Destroying)
        ]);
        (state, proptest::option::of(any::<bool>()), any::<bool>()).prop_map(
            |(state, instance, in_flight)| Case {
                state,
                instance,
                in_flight,
            },
        )
    }

    proptest! {
        #[test]
        fn carried_out_a_plan_leaves_nothing_to_repair_and_what_is_in_flight_untouched(
            cases in proptest::collection::vec(case(), 0..10)
        ) {
            let mut records = Vec::new();
            let mut instances = Vec::new();
            let mut in_flight = BTreeSet::new();
            for (index, case) in cases.iter().enumerate() {
                let id = InstanceId::Clone(clone_id(index));
                records.extend(case.state.map(|state| record(index, state)));
                instances.extend(case.instance.map(|runs| instance(id.clone(), runs)));
                if case.in_flight {
                    in_flight.insert(id);
                }
            }
            for repair in plan(&inventory(records.clone()), &instances, &in_flight, now()) {
                let touched = match &repair {
                    Repair::RemoveInstance(id) => id.clone(),
                    Repair::DestroyClone(id) | Repair::StartClone(id) => InstanceId::Clone(id.clone()),
                    Repair::DestroyBase(id) => InstanceId::Base(id.clone()),
                };
                prop_assert!(!in_flight.contains(&touched));
                match repair {
                    Repair::RemoveInstance(id) => instances.retain(|instance| instance.id != id),
                    Repair::DestroyClone(id) => {
                        instances.retain(|instance| instance.id != InstanceId::Clone(id.clone()));
                        records.retain(|record| record.id != id);
                    }
                    Repair::StartClone(id) => {
                        let id = InstanceId::Clone(id);
                        instances.retain(|instance| instance.id != id);
                        instances.push(instance(id, true));
                    }
                    Repair::DestroyBase(_) => {}
                }
            }
            prop_assert_eq!(plan(&inventory(records), &instances, &in_flight, now()), []);
        }
    }
}
