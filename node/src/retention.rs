//! Which snapshots and bases may go. Pure.
#![deny(clippy::disallowed_methods)]

use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, Utc};
use zdap_proto::name::SnapshotId;

use crate::resource::Retention;
use crate::storage::DatasetId;

/// A snapshot, and how many clones hang from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotUse {
    /// The snapshot.
    pub id: SnapshotId,
    /// Of all owners, pooled ones included, whatever their state.
    pub clones: u32,
}

/// Returns what may be removed, oldest first. `snapshots` are all those of one resource.
///
/// A snapshot is kept if any of these holds:
/// - it is the newest, whatever the numbers say;
/// - it is among the newest `keep_snapshots`;
/// - it is younger than `keep_days` days;
/// - a clone hangs from it.
///
/// The newest is the last of the newest base, whenever older bases were snapshotted again. A base none of whose
/// snapshots is kept goes whole. A base without a snapshot is an unfinished restore and not retention's business.
pub fn plan(snapshots: &[SnapshotUse], retention: &Retention, now: DateTime<Utc>) -> Vec<DatasetId> {
    let mut newest_first: Vec<_> = snapshots.iter().collect();
    newest_first
        .sort_by_key(|snapshot| std::cmp::Reverse((snapshot.id.base.created_at, snapshot.id.taken_at)));
    let rank_kept = usize::try_from(retention.keep_snapshots.max(1)).unwrap_or(usize::MAX);
    let kept_since = retention
        .keep_days
        .and_then(|days| now.checked_sub_signed(TimeDelta::days(days.into())));
    let is_kept = |rank: usize, snapshot: &SnapshotUse| {
        rank < rank_kept
            || snapshot.clones > 0
            || kept_since.is_some_and(|since| snapshot.id.taken_at.time() > since)
            || retention.keep_days.is_some() && kept_since.is_none()
    };
    let (kept, removed): (Vec<_>, Vec<_>) = newest_first
        .into_iter()
        .enumerate()
        .partition(|(rank, snapshot)| is_kept(*rank, snapshot));
    let bases_kept: BTreeSet<_> = kept.iter().map(|(_, snapshot)| &snapshot.id.base).collect();

    let mut plan = Vec::new();
    for (_, snapshot) in removed.into_iter().rev() {
        let dataset = match bases_kept.contains(&snapshot.id.base) {
            true => DatasetId::Snapshot(snapshot.id.clone()),
            false => DatasetId::Base(snapshot.id.base.clone()),
        };
        if !plan.contains(&dataset) {
            plan.push(dataset);
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zdap_proto::name::{BaseId, SnapshotTime};

    use super::*;

    const NOW: i64 = 1_800_000_000;
    const DAY: i64 = 24 * 60 * 60;

    fn time(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    /// A snapshot of the base that was begun `base` days ago, taken `taken` days ago.
    fn snapshot(base: i64, taken: i64, clones: u32) -> SnapshotUse {
        let at = |days: i64| SnapshotTime::new(time(NOW - days * DAY));
        let base = BaseId {
            resource: "orders".parse().unwrap(),
            created_at: at(base),
        };
        SnapshotUse {
            id: SnapshotId {
                base,
                taken_at: at(taken),
            },
            clones,
        }
    }

    fn keep(keep_snapshots: u32, keep_days: Option<u32>) -> Retention {
        Retention {
            keep_snapshots,
            keep_days,
        }
    }

    fn base(snapshot: &SnapshotUse) -> DatasetId {
        DatasetId::Base(snapshot.id.base.clone())
    }

    #[test]
    fn the_newest_so_many_are_kept_and_older_bases_go_oldest_first() {
        let snapshots: Vec<_> = (0..5).map(|days| snapshot(days, days, 0)).collect();
        let plan = plan(&snapshots, &keep(3, None), time(NOW));
        assert_eq!(plan, [base(&snapshots[4]), base(&snapshots[3])]);
    }

    #[test]
    fn young_ones_are_kept_in_addition() {
        let snapshots: Vec<_> = (0..5).map(|days| snapshot(days, days, 0)).collect();
        let plan = plan(&snapshots, &keep(1, Some(3)), time(NOW));
        assert_eq!(plan, [base(&snapshots[4]), base(&snapshots[3])]);
    }

    #[test]
    fn one_with_clones_stays_and_its_base_with_it() {
        let snapshots = [
            snapshot(0, 0, 0),
            snapshot(9, 9, 1),
            snapshot(9, 8, 0),
            snapshot(7, 7, 0),
        ];
        assert_eq!(
            plan(&snapshots, &keep(1, None), time(NOW)),
            [DatasetId::Snapshot(snapshots[2].id.clone()), base(&snapshots[3]),]
        );
    }

    #[test]
    fn the_only_snapshot_stays_although_nothing_is_to_be_kept() {
        assert_eq!(plan(&[snapshot(900, 900, 0)], &keep(0, Some(0)), time(NOW)), []);
    }

    proptest! {
        #[test]
        fn what_is_kept_is_exactly_what_the_policy_keeps(
            days in prop::collection::btree_set((0_i64..20, 0_i64..3), 1..12),
            clones in prop::collection::vec(prop_oneof![3 => Just(0_u32), 1 => 1..3_u32], 12),
            keep_snapshots in 0_u32..6,
            keep_days in prop::option::of(prop_oneof![0_u32..25, Just(u32::MAX)]),
        ) {
            let snapshots: Vec<_> = days
                .into_iter()
                .zip(clones)
                .map(|((taken, older), clones)| snapshot(taken + older, taken, clones))
                .collect();
            let retention = keep(keep_snapshots, keep_days);
            let plan = plan(&snapshots, &retention, time(NOW));
            let is_removed = |snapshot: &SnapshotUse| {
                plan.contains(&base(snapshot)) || plan.contains(&DatasetId::Snapshot(snapshot.id.clone()))
            };
            for snapshot in &snapshots {
                let newer = snapshots.iter().filter(|other| {
                    (other.id.base.created_at, other.id.taken_at)
                        > (snapshot.id.base.created_at, snapshot.id.taken_at)
                });
                let rank = u32::try_from(newer.count()).unwrap();
                let age = (time(NOW) - snapshot.id.taken_at.time()).num_days();
                let is_young = keep_days.is_some_and(|days| age < i64::from(days));
                let wanted = rank == 0 || rank < keep_snapshots || is_young || snapshot.clones > 0;
                prop_assert_eq!(is_removed(snapshot), !wanted, "{:?}", snapshot);
            }
            let left: Vec<_> = snapshots.into_iter().filter(|snapshot| !is_removed(snapshot)).collect();
            prop_assert_eq!(super::plan(&left, &retention, time(NOW)), []);
        }
    }
}
