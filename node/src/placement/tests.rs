mod bids;

use std::collections::BTreeSet;

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use zdap_proto::digest::NodeFlags;

use super::*;

const GIB: u32 = 1024;

/// A node of 64 GiB of memory and 2 TiB of pool, a tenth of each used.
fn report() -> NodeReport {
    NodeReport {
        pool_free_mib: 1800 * GIB,
        pool_total_mib: 2000 * GIB,
        memory_free_mib: 58 * GIB,
        memory_total_mib: 64 * GIB,
        clones: 3,
        protocol: 1,
        ..NodeReport::default()
    }
}

fn name(number: usize) -> NodeName {
    format!("node{number}").parse().unwrap()
}

fn time(text: &str) -> SnapshotTime {
    text.parse().unwrap()
}

fn wish() -> Wish {
    Wish {
        snapshot: None,
        node: None,
        period: Some(Duration::from_hours(24)),
        clone: Demand::of_clone(None, 10 << 30),
        now: time("2026-11-22T12:00:00Z").time(),
    }
}

/// What a test knows of a node; [`Known`] borrows from it.
#[derive(Debug, Clone)]
struct Fact {
    node: NodeName,
    state: MemberState,
    report: Option<NodeReport>,
    snapshots: Option<Vec<SnapshotTime>>,
    has_warm: bool,
}

impl Fact {
    fn good(number: usize) -> Self {
        Self {
            node: name(number),
            state: MemberState::Alive,
            report: Some(report()),
            snapshots: Some(vec![time("2026-11-22T03:00:00Z")]),
            has_warm: false,
        }
    }

    fn says(number: usize, change: impl FnOnce(&mut NodeReport)) -> Self {
        let mut fact = Self::good(number);
        change(fact.report.as_mut().unwrap());
        fact
    }

    fn has(number: usize, snapshots: &[&str]) -> Self {
        Self {
            snapshots: Some(snapshots.iter().map(|text| time(text)).collect()),
            ..Self::good(number)
        }
    }

    fn known(&self) -> Known<'_> {
        Known {
            node: &self.node,
            state: self.state,
            report: self.report.as_ref(),
            stock: self.snapshots.as_deref().map_or(Stock::None, Stock::Snapshots),
            debits: Demand::default(),
            has_warm: self.has_warm,
        }
    }
}

fn ranked(facts: &[Fact], wish: &Wish, seed: u64) -> Ranking {
    let mut rng = StdRng::seed_from_u64(seed);
    rank(facts.iter().map(Fact::known), wish, &mut rng)
}

fn eligible(ranking: &Ranking) -> Vec<&str> {
    ranking
        .eligible
        .iter()
        .map(|ranked| ranked.node.as_str())
        .collect()
}

/// The reason why the only node that is known is no place for a clone.
fn reason(fact: Fact) -> String {
    let ranking = ranked(&[fact], &wish(), 0);
    assert_eq!(ranking.eligible, []);
    ranking.ineligible[0].reason.to_string()
}

#[test]
fn each_reason_is_told_in_words() {
    let state = |state| Fact {
        state,
        ..Fact::good(1)
    };
    let flags = |flags| Fact::says(1, |report| report.flags = flags);
    let draining = NodeFlags {
        draining: true,
        ..NodeFlags::default()
    };
    let full = NodeFlags {
        full: true,
        ..NodeFlags::default()
    };
    let read_only = NodeFlags {
        read_only: true,
        ..NodeFlags::default()
    };
    let reasons = [
        (state(MemberState::Down), "is down"),
        (state(MemberState::Suspect), "does not answer the other nodes"),
        (
            Fact {
                report: None,
                ..Fact::good(1)
            },
            "has not said yet how it is",
        ),
        (
            Fact::says(1, |report| report.flags.stale = true),
            "cannot tell how it is",
        ),
        (
            Fact::says(1, |report| report.protocol = 0),
            "speaks version 0 of the protocol, too old; update it",
        ),
        (
            Fact {
                snapshots: None,
                ..Fact::good(1)
            },
            "does not have this resource",
        ),
        (Fact::has(1, &[]), "has no snapshot of it"),
        (flags(draining), "is being drained"),
        (flags(full), "is full"),
        (flags(read_only), "its pool is read-only"),
        (
            Fact::says(1, |report| report.pool_free_mib = 300 * GIB),
            "its pool would be 85 % full; 85 % is the most",
        ),
        (
            Fact::says(1, |report| report.memory_free_mib = 3 * GIB),
            "3.0 GiB of memory free, 3.4 GiB needed",
        ),
    ];
    for (fact, words) in reasons {
        assert_eq!(reason(fact), words);
    }
}

#[test]
fn a_node_whose_snapshot_is_older_by_more_than_a_period_is_out() {
    let facts = [
        Fact::has(1, &["2026-11-22T03:00:00Z", "2026-11-20T03:00:00Z"]),
        Fact::has(2, &["2026-11-21T03:00:00Z"]),
        Fact::has(3, &["2026-11-21T02:59:59Z"]),
    ];
    let ranking = ranked(&facts, &wish(), 0);
    assert_eq!(ranking.eligible.len(), 2);
    assert_eq!(
        ranking.ineligible[0].reason.to_string(),
        "its newest snapshot is of 2026-11-21T02:59:59Z, too old beside that of 2026-11-22T03:00:00Z on another node"
    );
}

#[test]
fn a_node_that_is_gone_keeps_nobody_from_older_snapshots() {
    let mut facts = [
        Fact::has(1, &["2026-11-22T03:00:00Z"]),
        Fact::has(2, &["2026-11-01T03:00:00Z"]),
    ];
    assert_eq!(eligible(&ranked(&facts, &wish(), 0)), ["node1"]);
    facts[0].state = MemberState::Down;
    assert_eq!(eligible(&ranked(&facts, &wish(), 0)), ["node2"]);
}

#[test]
fn a_node_whose_clock_is_fast_keeps_nobody_from_what_the_others_have() {
    let facts = [
        Fact::has(1, &["2026-11-22T03:00:00Z"]),
        Fact::has(2, &["2026-11-20T03:00:00Z"]),
        Fact::has(3, &["2027-01-01T03:00:00Z"]),
    ];
    let ranking = ranked(&facts, &wish(), 0);
    let mut eligible = eligible(&ranking);
    eligible.sort_unstable();
    assert_eq!(eligible, ["node1", "node3"]);
}

#[test]
fn who_names_a_time_gets_precisely_that_snapshot_however_old() {
    let facts = [
        Fact::has(1, &["2026-11-22T03:00:00Z"]),
        Fact::has(2, &["2026-11-22T03:00:00Z", "2026-10-01T03:00:00Z"]),
    ];
    let wish = Wish {
        snapshot: Some(time("2026-10-01T03:00:00Z")),
        ..wish()
    };
    let ranking = ranked(&facts, &wish, 0);
    assert_eq!(eligible(&ranking), ["node2"]);
    assert_eq!(
        ranking.ineligible[0].reason.to_string(),
        "does not have the snapshot of 2026-10-01T03:00:00Z"
    );
}

#[test]
fn a_pin_leaves_one_node_and_tells_why_it_cannot() {
    let draining = NodeFlags {
        draining: true,
        ..NodeFlags::default()
    };
    let facts = [Fact::good(1), Fact::says(2, |report| report.flags = draining)];
    let pinned = |number| Wish {
        node: Some(name(number)),
        ..wish()
    };
    let reasons = |number| -> Vec<Reason> {
        let ranking = ranked(&facts, &pinned(number), 0);
        ranking
            .ineligible
            .into_iter()
            .map(|rejected| rejected.reason)
            .collect()
    };
    assert_eq!(eligible(&ranked(&facts, &pinned(1), 0)), ["node1"]);
    assert_eq!(reasons(1), [Reason::NotPinned]);
    assert_eq!(reasons(2), [Reason::NotPinned, Reason::Draining]);
    assert_eq!(
        reasons(3),
        [Reason::NotPinned, Reason::NotPinned, Reason::NoSuchNode]
    );
}

#[test]
fn the_share_is_that_of_the_bottleneck() {
    let clone = Demand::of_clone(None, 10 << 30);
    let of = |change: fn(&mut NodeReport)| {
        let mut report = report();
        change(&mut report);
        let predicted = predict(&report, Demand::default(), clone, 1);
        format!("{} {}", predicted.share, predicted.bottleneck)
    };
    // 200 GiB of 2000 and the clone's one; 6 GiB of 64 and 256 MiB; 4 clones of the 256 that memory allows.
    assert_eq!(of(|_| ()), "10 % pool");
    assert_eq!(of(|report| report.memory_free_mib = 16 * GIB), "75 % memory");
    assert_eq!(of(|report| report.load_percent = 130), "130 % load");
    assert_eq!(of(|report| report.clones = 127), "50 % clones");
}

#[test]
fn below_a_half_the_count_of_clones_decides_and_above_it_the_bottleneck() {
    let fact = |number, clones, pool_free_mib| {
        Fact::says(number, |report| {
            report.clones = clones;
            report.pool_free_mib = pool_free_mib * GIB;
        })
    };
    let best = |facts: [Fact; 2]| eligible(&ranked(&facts, &wish(), 0))[0].to_owned();
    assert_eq!(best([fact(1, 11, 1900), fact(2, 10, 1100)]), "node2");
    assert_eq!(best([fact(1, 11, 1900), fact(2, 10, 500)]), "node1");
}

#[test]
fn a_warm_clone_comes_before_all_others() {
    let warm = Fact {
        has_warm: true,
        ..Fact::good(3)
    };
    for seed in 0..20 {
        let facts = [Fact::good(2), warm.clone()];
        assert_eq!(eligible(&ranked(&facts, &wish(), seed)), ["node3", "node2"]);
    }
}

#[test]
fn equals_are_taken_in_random_order() {
    let facts: Vec<Fact> = (0..10).map(Fact::good).collect();
    let firsts: BTreeSet<String> = (0..200)
        .map(|seed| eligible(&ranked(&facts, &wish(), seed))[0].to_owned())
        .collect();
    assert_eq!(firsts.len(), 10);
}

prop_compose! {
    fn any_fact()(
        number in 0..1000_usize,
        state in prop::sample::select(vec![MemberState::Alive, MemberState::Alive, MemberState::Suspect, MemberState::Down]),
        heard in prop::bool::weighted(0.9),
        free in any::<[u32; 2]>(),
        total in any::<[u32; 2]>(),
        counts in any::<[u16; 3]>(),
        flags in prop::collection::vec(prop::bool::weighted(0.1), 4),
        protocol in 0..3_u16,
        days in prop::option::of(prop::collection::vec(1..28_u32, 0..4)),
        has_warm in any::<bool>(),
    ) -> Fact {
        let report = NodeReport {
            pool_free_mib: free[0],
            pool_total_mib: total[0],
            memory_free_mib: free[1],
            memory_total_mib: total[1],
            load_percent: counts[0],
            clones: counts[1],
            reservations: counts[2],
            flags: NodeFlags { draining: flags[0], full: flags[1], read_only: flags[2], stale: flags[3] },
            protocol,
            ..NodeReport::default()
        };
        Fact {
            node: name(number),
            state,
            report: heard.then_some(report),
            snapshots: days.map(|days| days.iter().map(|day| time(&format!("2026-11-{day:02}T03:00:00Z"))).collect()),
            has_warm,
        }
    }
}

proptest! {
    #[test]
    fn every_node_is_either_fit_or_told_why_not(facts in prop::collection::vec(any_fact(), 0..20), seed: u64) {
        let ranking = ranked(&facts, &wish(), seed);
        prop_assert_eq!(ranking.eligible.len() + ranking.ineligible.len(), facts.len());
        for ranked in &ranking.eligible {
            let fits = |fact: &&Fact| {
                let Some(report) = &fact.report else { return false };
                fact.node == ranked.node
                    && fact.state == MemberState::Alive
                    && report.flags == NodeFlags::default()
                    && report.protocol > 0
                    && fact.snapshots.as_ref().is_some_and(|snapshots| !snapshots.is_empty())
            };
            prop_assert!(facts.iter().any(|fact| fits(&fact)), "{:?}", ranked);
        }
    }

    #[test]
    fn a_node_is_the_busier_the_more_is_promised(fact in any_fact(), clones in 0..500_u32) {
        let report = fact.report.unwrap_or_default();
        let clone = wish().clone;
        let less = predict(&report, clone.times(clones), clone, 1);
        let more = predict(&report, clone.times(clones + 1), clone, 1);
        prop_assert!(less.share <= more.share && less.cost() <= more.cost());
        let [less, more] = [clones, clones + 1].map(|clones| predict(&self::report(), clone.times(clones), clone, 1));
        prop_assert!(less.cost() < more.cost());
    }
}
