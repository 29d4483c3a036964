use proptest::prelude::*;
use zdap_proto::digest::NodeFlags;

use super::*;
use crate::placement::Bottleneck;

/// Room for 16 clones in the memory, of which one part in 20 is not for them.
fn figures(clones: u16) -> NodeReport {
    NodeReport {
        pool_free_mib: 1 << 20,
        pool_total_mib: 1 << 20,
        memory_free_mib: 4096 - u32::from(clones) * 256,
        memory_total_mib: 4096,
        clones,
        ..NodeReport::default()
    }
}

fn token(number: u8) -> RequestId {
    format!("{number:032x}").parse().unwrap()
}

fn node(number: u8) -> NodeName {
    format!("n{number}").parse().unwrap()
}

fn clone() -> Demand {
    Demand::of_clone(None, 0)
}

#[expect(clippy::disallowed_methods, reason = "an instant can be had in no other way")]
fn start() -> Instant {
    Instant::now()
}

fn promised(reservations: &Reservations, now: Instant) -> u16 {
    reservations.report(now, |_| figures(0)).reservations
}

#[test]
fn a_reservation_goes_after_half_a_minute_unless_it_is_taken() {
    let (reservations, start) = (Reservations::default(), start());
    for number in [1, 2] {
        reservations
            .reserve(&token(number), clone(), None, start, |_| figures(0))
            .unwrap();
    }
    let place = reservations.take(&token(1), start).unwrap();
    let later = start + TTL;
    assert_eq!(promised(&reservations, later - Duration::from_millis(1)), 2);
    assert_eq!(promised(&reservations, later), 1);
    assert!(reservations.take(&token(2), later).is_none());
    drop(place);
    assert_eq!(promised(&reservations, later), 0);
}

#[test]
fn the_same_token_has_one_place_until_the_last_of_its_takers_is_done() {
    let (reservations, start) = (Reservations::default(), start());
    for _ in 0..3 {
        reservations
            .reserve(&token(1), clone(), None, start, |_| figures(0))
            .unwrap();
    }
    let places = [(); 2].map(|()| reservations.take(&token(1), start).unwrap());
    // What is full or outpaced for others still has its place.
    let full = |_: &Tokens| figures(16);
    assert!(
        reservations
            .reserve(&token(1), clone(), Some(Share(0)), start, full)
            .is_ok()
    );
    let [first, last] = places;
    drop(first);
    assert_eq!(promised(&reservations, start), 1, "it is being used");
    drop(last);
    assert_eq!(promised(&reservations, start), 0);
}

#[test]
fn a_reservation_is_refused_when_the_node_has_got_busier_than_two_more_clones() {
    let (reservations, start) = (Reservations::default(), start());
    let reserve =
        |number, at_most| reservations.reserve(&token(number), clone(), at_most, start, |_| figures(0));
    let offered = reservations
        .offer(&node(1), clone(), start, |_| figures(0))
        .unwrap();
    assert_eq!(offered.predicted.bottleneck, Bottleneck::Memory);
    for number in 0..=2 {
        reserve(number, Some(offered.limit)).unwrap();
    }
    let refused = reserve(3, Some(offered.limit)).unwrap_err();
    assert!(matches!(refused.reason, Reason::Outpaced { at_most, .. } if at_most == offered.limit));
    assert_eq!(refused.offered.taken, 3);
    assert!(reserve(3, Some(refused.offered.limit)).is_ok());
}

#[test]
fn offers_to_others_in_the_last_moment_count_by_half_and_promise_nothing() {
    let (reservations, start) = (Reservations::default(), start());
    let offer = |by, now| {
        let offered = reservations.offer(&node(by), clone(), now, |_| figures(0));
        offered.unwrap().predicted.crowding.0 / (1_000_000 / 16)
    };
    assert_eq!([1, 2, 3, 4, 5].map(|by| offer(by, start)), [1, 2, 2, 3, 3]);
    assert_eq!(offer(6, start + MOMENT), 1);
    assert_eq!(promised(&reservations, start), 0);
}

#[test]
fn a_node_that_asks_again_has_made_its_last_choice() {
    let (reservations, start) = (Reservations::default(), start());
    let offer = |by| {
        let offered = reservations.offer(&node(by), clone(), start, |_| figures(0));
        offered.unwrap().predicted.crowding
    };
    let alone = offer(1);
    assert_eq!([offer(1), offer(1)], [alone; 2]);
    let with_another = offer(2);
    assert!(with_another > alone);
    let of_one = [offer(2), offer(2), offer(1)];
    assert_eq!(
        of_one, [with_another; 3],
        "the other counts once, however often it asks"
    );
}

#[test]
fn a_node_without_room_refuses_whatever_is_bid_and_says_why() {
    let (reservations, start) = (Reservations::default(), start());
    let reserve = |report: NodeReport| {
        let refused = reservations.reserve(&token(1), clone(), None, start, |_| report);
        refused.unwrap_err().to_string()
    };
    let draining = NodeFlags {
        draining: true,
        ..NodeFlags::default()
    };
    assert_eq!(
        reserve(NodeReport {
            flags: draining,
            ..figures(0)
        }),
        "is being drained"
    );
    assert_eq!(reserve(figures(15)), "256 MiB of memory free, 460 MiB needed");
    assert_eq!(promised(&reservations, start), 0);
}

#[test]
fn no_two_get_the_last_place() {
    let (reservations, start) = (Reservations::default(), start());
    let won = std::thread::scope(|scope| {
        let threads = [1, 2, 3, 4].map(|number| {
            let reservations = reservations.clone();
            let reserve = move || {
                reservations
                    .reserve(&token(number), clone(), None, start, |_| figures(14))
                    .is_ok()
            };
            scope.spawn(reserve)
        });
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .filter(|won| *won)
            .count()
    });
    assert_eq!(won, 1);
}

/// What can be done with the places of a node.
#[derive(Debug, Clone)]
enum Step {
    Reserve(u8),
    Take(u8),
    /// The clone is made: it is in the figures, and its place is dropped.
    Finish(u8),
    Fail(u8),
    Wait(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (0..5_u8, 0..12_u8).prop_map(|(kind, number)| match kind {
        0 => Step::Reserve(number),
        1 => Step::Take(number),
        2 => Step::Finish(number),
        3 => Step::Fail(number),
        _ => Step::Wait(number),
    });
    prop::collection::vec(step, 0..200)
}

proptest! {
    /// Against a plain model: until when each is reserved, who has taken a place, and how many clones there are.
    #[test]
    fn places_are_never_lost_nor_doubled(steps in steps()) {
        let reservations = Reservations::default();
        let mut now = start();
        let mut reserved: BTreeMap<u8, Instant> = BTreeMap::new();
        let mut taken: BTreeMap<u8, Place> = BTreeMap::new();
        let mut clones = 0;
        for step in steps {
            reserved.retain(|number, until| taken.contains_key(number) || *until > now);
            match step {
                Step::Reserve(number) => {
                    let fits = reserved.contains_key(&number) || reserved.len() + usize::from(clones) < 15;
                    let promised = reservations.reserve(&token(number), clone(), None, now, |_| figures(clones));
                    prop_assert_eq!(promised.is_ok(), fits);
                    if fits {
                        reserved.insert(number, now + TTL);
                    }
                }
                Step::Take(number) => {
                    let place = reservations.take(&token(number), now);
                    prop_assert_eq!(place.is_some(), reserved.contains_key(&number));
                    if let Some(place) = place {
                        // A second place of the same is dropped while the first is held.
                        taken.entry(number).or_insert(place);
                    }
                }
                Step::Finish(number) | Step::Fail(number) => {
                    if let Some(place) = taken.remove(&number) {
                        drop(place);
                        reserved.remove(&number);
                        clones += u16::from(matches!(step, Step::Finish(_)));
                    }
                }
                Step::Wait(seconds) => now += Duration::from_secs(seconds.into()),
            }
            reserved.retain(|number, until| taken.contains_key(number) || *until > now);
            prop_assert_eq!(usize::from(promised(&reservations, now)), reserved.len());
        }
        taken.clear();
        prop_assert_eq!(promised(&reservations, now + TTL), 0);
    }
}
