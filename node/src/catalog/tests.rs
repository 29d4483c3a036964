use proptest::prelude::*;
use zdap_proto::name::{BaseId, SnapshotTime};

use super::*;

fn snapshot(second: i64) -> SnapshotId {
    let time = chrono::DateTime::from_timestamp(1_700_000_000 + second, 0).unwrap();
    SnapshotId::of_restore(BaseId {
        resource: "orders".parse().unwrap(),
        created_at: SnapshotTime::new(time),
    })
}

fn with_snapshots(seconds: std::ops::Range<i64>) -> Facts {
    Facts {
        address: "db1:43210".to_owned(),
        snapshots: seconds.map(|second| (snapshot(second), 1)).collect(),
        ..Facts::default()
    }
}

/// Few names and values, so that facts often agree in part.
fn facts() -> impl Strategy<Value = Facts> {
    let name = || prop::sample::select(vec!["a", "b", "c"]);
    let resource =
        (any::<bool>(), prop::option::of(0..2_u64)).prop_map(|(is_named, period_seconds)| ResourceFacts {
            alias: is_named.then(|| "z".to_owned()),
            image: "postgres:16".to_owned(),
            period_seconds,
            clone_memory_bytes: None,
            pool: None,
        });
    let users = || prop::collection::btree_set(name().prop_map(|name| name.parse().unwrap()), 0..3);
    let lives = (name(), 0..2_u64).prop_map(|(name, epoch)| Life {
        node: name.parse().unwrap(),
        epoch,
    });
    (
        prop::sample::select(vec!["db1:1", "db1:2"]),
        prop::collection::btree_map(name().prop_map(|name| name.parse().unwrap()), resource, 0..3),
        prop::collection::btree_map((0..4_i64).prop_map(snapshot), 0..2_u64, 0..4),
        users(),
        users(),
        prop::collection::btree_set(lives, 0..3),
    )
        .prop_map(
            |(address, resources, snapshots, users, revoked, forgotten)| Facts {
                address: address.to_owned(),
                resources,
                snapshots,
                users,
                revoked,
                forgotten,
            },
        )
}

proptest! {
    #[test]
    fn whoever_follows_now_and_then_holds_what_the_node_holds(
        steps in prop::collection::vec((facts(), any::<bool>()), 1..20),
    ) {
        let mut ledger = Ledger::new(7, Facts::default());
        let mut held: Option<Catalog> = None;
        for (facts, pulls) in steps {
            let before = ledger.catalog().version;
            let has_changed = ledger.set(facts.clone());
            prop_assert_eq!(has_changed, ledger.catalog().version > before);
            prop_assert_eq!(&ledger.catalog().facts, &facts);
            if pulls {
                let update = ledger.since(held.as_ref().map(|held| held.version));
                prop_assert_eq!(held.is_some(), matches!(update, Update::Delta { .. }));
                let bytes = postcard::to_stdvec(&update).unwrap();
                let update = postcard::from_bytes(&bytes).unwrap();
                let next = Catalog::following(held.as_ref(), update, ledger.catalog().hash).unwrap();
                prop_assert_eq!(&next, &**ledger.catalog());
                held = Some(next);
            }
        }
    }

    #[test]
    fn a_version_never_goes_back(first in facts(), second in facts()) {
        prop_assume!(first != second);
        let mut ledger = Ledger::new(7, first);
        let old = ledger.catalog().whole();
        ledger.set(second);
        let held = ledger.catalog();
        let result = Catalog::following(Some(held), old, held.hash);
        let is_old = matches!(result, Err(CatalogError::Old { .. }));
        prop_assert!(is_old, "{:?}", result);
    }

    #[test]
    fn what_was_changed_on_the_way_is_refused(first in facts(), second in facts()) {
        let mut ledger = Ledger::new(7, first);
        let held = Arc::clone(ledger.catalog());
        ledger.set(second);
        let Update::Delta { since, version, hash, mut changed, removed } = ledger.since(Some(held.version)) else {
            return Err(TestCaseError::fail("a delta was expected"));
        };
        changed.snapshots.insert(snapshot(99), 3);
        let update = Update::Delta { since, version, hash, changed, removed };
        let result = Catalog::following(Some(&held), update, ledger.catalog().hash);
        prop_assert_eq!(result, Err(CatalogError::Hash));
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(update) = postcard::from_bytes(&bytes) {
            let _ = Catalog::following(None, update, [0; 8]);
        }
    }
}

#[test]
fn a_delta_that_does_not_follow_what_is_held_is_refused() {
    let mut ledger = Ledger::new(7, with_snapshots(0..1));
    let first = Arc::clone(ledger.catalog());
    ledger.set(with_snapshots(0..2));
    let second = ledger.catalog().version;
    ledger.set(with_snapshots(0..3));
    let update = ledger.since(Some(second));
    let gap = |held| CatalogError::Gap { since: second, held };
    let wanted = ledger.catalog().hash;
    assert_eq!(
        Catalog::following(Some(&first), update.clone(), wanted),
        Err(gap(Some(first.version)))
    );
    assert_eq!(Catalog::following(None, update, wanted), Err(gap(None)));
}

#[test]
fn whoever_holds_another_generation_is_told_all() {
    let ledger = Ledger::new(8, with_snapshots(0..1));
    for held in [
        None,
        Some(Version {
            generation: 7,
            number: 1,
        }),
    ] {
        assert_eq!(ledger.since(held), ledger.catalog().whole());
    }
}

#[test]
fn whoever_missed_more_removals_than_are_remembered_is_told_all() {
    let mut ledger = Ledger::new(7, with_snapshots(0..1500));
    let first = ledger.catalog().version;
    ledger.set(with_snapshots(400..1500));
    let second = Arc::clone(ledger.catalog());
    assert!(matches!(ledger.since(Some(first)), Update::Delta { .. }));
    ledger.set(with_snapshots(1100..1500));
    assert!(matches!(ledger.since(Some(first)), Update::Full { .. }));
    let update = ledger.since(Some(second.version));
    let next = Catalog::following(Some(&second), update, ledger.catalog().hash).unwrap();
    assert_eq!(next, **ledger.catalog());
}

#[test]
fn a_node_that_was_put_back_to_an_earlier_state_is_believed_when_its_digest_says_so() {
    let held = Catalog::new(
        Version {
            generation: 9,
            number: 4,
        },
        with_snapshots(0..2),
    );
    let restored = Ledger::new(8, with_snapshots(0..1));
    let wanted = restored.catalog().hash;
    let next = Catalog::following(Some(&held), restored.since(Some(held.version)), wanted).unwrap();
    assert_eq!(next, **restored.catalog());
}

#[test]
fn more_than_any_node_has_is_refused() {
    let facts = Facts {
        address: "x".repeat(2000),
        ..Facts::default()
    };
    let update = Ledger::new(7, facts).since(None);
    let error = Catalog::following(None, update, [0; 8]).unwrap_err();
    assert_eq!(error.to_string(), "it has 2000 bytes of address, more than 1024");
}
