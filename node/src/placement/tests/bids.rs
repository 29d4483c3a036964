//! From a ranking to a promise: offers, bids, debits.

use std::collections::BTreeSet;
use std::time::Instant;

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use zdap_proto::digest::NodeDigest;

use super::super::*;
use super::{Fact, name, ranked, report, wish};
use crate::reserve::{Offered, Refused};

/// A choice among nodes that hold 0, 8, 16... clones.
fn choice(nodes: usize, seed: u64) -> Choice {
    let fact = |number: usize| {
        Fact::says(number, |report| {
            report.clones = u16::try_from(8 * number).unwrap()
        })
    };
    let facts: Vec<Fact> = (0..nodes).map(fact).collect();
    Choice::new(ranked(&facts, &wish(), seed), &mut StdRng::seed_from_u64(seed))
}

fn offer(cost: u32) -> Offered {
    Offered {
        predicted: Prediction {
            share: Share(0),
            bottleneck: Bottleneck::Clones,
            crowding: Share(cost),
        },
        limit: Share(cost + 20),
        taken: 0,
    }
}

#[test]
fn three_of_the_best_fourth_are_asked_and_everyone_of_five() {
    for (nodes, asked, best) in [
        (1, 0, 1),
        (2, 2, 2),
        (5, 5, 5),
        (6, 3, 5),
        (20, 3, 5),
        (41, 3, 11),
    ] {
        let mut seen = BTreeSet::new();
        for seed in 0..200 {
            let choice = choice(nodes, seed);
            let names: BTreeSet<NodeName> = choice.to_ask().cloned().collect();
            assert_eq!(names.len(), asked);
            seen.extend(names);
        }
        let expected = if asked == 0 { 0 } else { best };
        assert_eq!(seen, (0..expected).map(name).collect());
    }
}

#[test]
fn the_cheapest_offer_is_taken_and_after_three_refusals_any_place() {
    let mut choice = choice(6, 1);
    let asked: Vec<NodeName> = choice.to_ask().cloned().collect();
    choice.declined(&asked[0], Reason::NoAnswer);
    choice.offered(&asked[1], offer(200));
    choice.offered(&asked[2], offer(100));
    let outpaced = |cost| Refused {
        reason: Reason::Outpaced {
            at_most: Share(0),
            cost: Share(cost),
        },
        offered: offer(cost),
    };
    let mut bids = Vec::new();
    for cost in [150, 300, 250] {
        let bid = choice.next_bid().unwrap();
        choice.refused(&bid, outpaced(cost));
        bids.push((bid.node, bid.at_most.map(|share| share.0)));
    }
    let expected =
        [(2, 200), (2, 200), (1, 300)].map(|(place, at_most)| (asked[place].clone(), Some(at_most)));
    assert_eq!(bids, expected);
    let bid = choice.next_bid().unwrap();
    assert_eq!((&bid.node, bid.at_most), (&asked[1], None));
    choice.accepted(&bid);
    let considered = choice.considered();
    let outcome = |node: &NodeName| {
        let found = considered.iter().find(|considered| considered.node == *node);
        found.unwrap().outcome.clone()
    };
    assert_eq!(considered.len(), 6);
    assert_eq!(outcome(&asked[0]), Outcome::Out(Reason::NoAnswer));
    assert_eq!(outcome(&asked[1]), Outcome::Chosen);
    assert_eq!(outcome(&asked[2]), Outcome::Spare);
}

#[test]
fn where_no_other_has_offered_a_bid_is_good_for_what_the_node_itself_allows() {
    let mut choice = choice(6, 1);
    let only = choice.to_ask().next().unwrap().clone();
    choice.offered(&only, offer(100));
    let bid = choice.next_bid().unwrap();
    assert_eq!((bid.node, bid.at_most), (only, Some(Share(120))));
}

#[test]
fn debits_end_with_a_newer_digest_or_after_half_a_minute() {
    #[expect(clippy::disallowed_methods, reason = "an instant can be had in no other way")]
    let start = Instant::now();
    let clone = wish().clone;
    let digest = |sequence| NodeDigest {
        node: name(1),
        generation: 9,
        sequence,
        report: report(),
    };
    let pending = |debits: &Debits, sequence, seconds| {
        let now = start + Duration::from_secs(seconds);
        debits.pending(&digest(sequence), now).clones
    };
    let mut debits = Debits::default();
    debits.note(&name(1), clone, (9, 5), start);
    debits.note(&name(1), clone, (9, 6), start);
    assert_eq!([4, 5, 6, 7].map(|heard| pending(&debits, heard, 1)), [2, 2, 1, 0]);
    assert_eq!(pending(&debits, 5, 30), 0);

    // Its digest tells of 3; it had 7 when it made an offer, the two from here among them.
    let offered = Offered { taken: 7, ..offer(0) };
    debits.learn(&name(1), offered, clone, (9, 6), start + Duration::from_secs(1));
    assert_eq!(pending(&debits, 6, 2), 4);
    debits.note(&name(1), clone, (9, 6), start + Duration::from_secs(2));
    assert_eq!(pending(&debits, 6, 2), 5);
    debits.heard(&digest(7), start + Duration::from_secs(2));
    assert_eq!(pending(&debits, 6, 2), 0, "forgotten");
}

proptest! {
    #[test]
    fn bids_come_to_an_end_whatever_is_answered(nodes in 0..20_usize, seed: u64, answers in prop::collection::vec(0..3_u8, 64)) {
        let mut choice = choice(nodes, seed);
        let asked: Vec<NodeName> = choice.to_ask().cloned().collect();
        for (node, answer) in asked.iter().zip(&answers) {
            match answer {
                0 => choice.offered(node, offer(u32::from(*answer))),
                1 => choice.declined(node, Reason::NoAnswer),
                _ => {}
            }
        }
        let mut tried = BTreeSet::new();
        let mut bids = 0;
        while let Some(bid) = choice.next_bid() {
            bids += 1;
            prop_assert!(bids <= nodes + 3);
            tried.insert(bid.node.clone());
            let reason = match answers[bids + 20] {
                0 => Reason::Full,
                _ => Reason::Outpaced { at_most: Share(0), cost: Share(1) },
            };
            choice.refused(&bid, Refused { reason, offered: offer(1) });
        }
        let silent = asked.iter().zip(&answers).filter(|(_, answer)| **answer == 1).count();
        prop_assert_eq!(tried.len(), nodes - silent, "everyone who may have room is tried");
    }
}
