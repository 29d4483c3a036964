//! The figures of small clusters, with room for chance: a fixed seed, but another one after every change to the code.

use std::time::Duration;

use zdap_proto::digest::MAX_DIGEST_BYTES;

use super::measure;

#[test]
fn an_update_reaches_ten_nodes_within_125_ms() {
    let spread = measure::spread(10, 30, 11);
    assert_eq!(spread.to_all.missed, 0);
    assert!(spread.to_all.p95() <= 0.125, "{:?}", spread.to_all);
    assert!(spread.bytes <= 1800.0, "{} bytes", spread.bytes);
    assert!(spread.digest_bytes <= MAX_DIGEST_BYTES, "{spread:?}");
}

#[test]
fn a_crash_is_suspected_in_two_seconds_and_known_in_five() {
    let crashes = measure::crashes(10, 20, 12);
    assert_eq!(crashes.all_know.missed, 0);
    assert!(crashes.first_suspect.p95() <= 2.0, "{:?}", crashes.first_suspect);
    assert!(crashes.all_know.p95() <= 5.0, "{:?}", crashes.all_know);
}

#[test]
fn a_node_that_joins_knows_forty_at_once() {
    let joins = measure::joins(40, 2, 13);
    assert!(joins.knows_all.p95() <= 0.1, "{:?}", joins.knows_all);
    assert!(joins.known_by_all.p95() <= 1.5, "{:?}", joins.known_by_all);
}

#[test]
fn with_a_twentieth_of_all_packets_lost_nobody_well_is_given_up() {
    assert_eq!(measure::false_downs(10, 0.05, Duration::from_mins(5), 14), 0);
}

#[test]
fn a_split_heals_within_seconds() {
    let two = measure::heal(2, Duration::from_mins(1), 0..5);
    assert!(two.p95() <= 3.0, "{two:?}");
    let ten = measure::heal(10, Duration::from_mins(1), 0..5);
    assert!(ten.p95() <= 2.5, "{ten:?}");
}

#[test]
fn a_cluster_in_which_nothing_happens_sends_little() {
    let idle = measure::idle(10, Duration::from_secs(20), 15);
    assert!(idle.packets + idle.streams <= 500.0, "{idle:?}");
    // QUIC's share on top, of packets and streams that say nothing new.
    assert!(idle.acknowledgements <= 200.0, "{idle:?}");
}
