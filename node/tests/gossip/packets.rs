//! What nobody should send.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use zdap_node::gossip::{
    Action, Gossip, Knowledge, KnowledgeError, MAX_PACKET_BYTES, MemberState, PacketError, Peer, PeerError,
    Settings,
};
use zdap_proto::digest::MAX_GENERATION;
use zdap_proto::name::{ClusterId, NodeName};

use super::cluster::cluster_id;
use super::measure::report;

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

pub(crate) fn node(cluster: ClusterId, text: &str, port: u16, now: Instant) -> Gossip {
    life(cluster, text, port, 7, now)
}

fn life(cluster: ClusterId, text: &str, port: u16, epoch: u64, now: Instant) -> Gossip {
    let peer = Peer::new(name(text), SocketAddr::from(([10, 0, 0, 1], port)), epoch).unwrap();
    Gossip::new(cluster, peer, Settings::default(), StdRng::seed_from_u64(1), now)
}

/// Two nodes that know each other, and all packets that they sent meanwhile with their senders.
fn pair(now: Instant) -> ([Gossip; 2], Vec<(NodeName, Vec<u8>)>) {
    let mut nodes = [node(cluster_id(), "a", 1, now), node(cluster_id(), "b", 2, now)];
    let mut sent = Vec::new();
    nodes[0].join([nodes[1].me().address()], now);
    nodes[0].publish(report(1), now);
    for step in 0..40 {
        let now = now + Duration::from_millis(100) * step;
        for index in [0, 1] {
            nodes[index].handle_wake(now);
            while let Some(action) = nodes[index].poll_action() {
                if let Action::Send { packet, .. } = action {
                    let from = nodes[index].me().name().clone();
                    nodes[1 - index].handle_packet(&from, &packet, now).unwrap();
                    sent.push((from, packet));
                }
            }
        }
    }
    assert!(nodes.iter().all(|node| node.members(now).len() == 1));
    (nodes, sent)
}

#[test]
fn a_packet_in_another_name_is_refused() {
    let now = Instant::now();
    let ([_, mut b], sent) = pair(now);
    let (_, packet) = sent.iter().find(|(from, _)| from.as_str() == "a").unwrap();
    let refused = b.handle_packet(&name("mallory"), packet, now);
    let forged = PacketError::Forged {
        from: name("mallory"),
        claimed: name("a"),
    };
    assert_eq!(refused, Err(forged));
}

#[test]
fn a_node_of_another_cluster_is_refused_by_name() {
    let now = Instant::now();
    let other: ClusterId = "another".parse().unwrap();
    let mut here = node(cluster_id(), "a", 1, now);
    let mut there = node(other.clone(), "b", 2, now);
    there.join([here.me().address()], now);
    let Some(Action::Send { packet, .. }) = there.poll_action() else {
        panic!("it knocks");
    };
    let refused = here.handle_packet(&name("b"), &packet, now);
    assert_eq!(
        refused,
        Err(PacketError::OtherCluster {
            from: name("b"),
            cluster: other.clone()
        })
    );
    assert_eq!(here.poll_action(), None, "and not answered");
    assert_eq!(
        here.learn(there.knowledge(), now),
        Err(KnowledgeError::OtherCluster {
            ours: cluster_id(),
            theirs: other
        })
    );
    assert_eq!(here.members(now), []);
}

#[test]
fn a_packet_of_another_cluster_between_nodes_of_the_same_names_is_not_taken() {
    let now = Instant::now();
    let (_, sent) = pair(now);
    let mut other = node("another".parse().unwrap(), "b", 2, now);
    let swim = sent
        .iter()
        .filter(|(from, packet)| from.as_str() == "a" && packet[0] == 0);
    for (from, packet) in swim {
        let refused = other.handle_packet(from, packet, now);
        assert!(matches!(refused, Err(PacketError::Astray { .. })), "{refused:?}");
    }
    assert_eq!(other.members(now), []);
}

#[test]
fn an_address_or_epoch_that_cannot_be_is_refused() {
    let at = |address: &str, epoch| Peer::new(name("a"), address.parse().unwrap(), epoch);
    assert!(matches!(at("0.0.0.0:43210", 1), Err(PeerError::Address { .. })));
    assert!(matches!(at("10.0.0.1:0", 1), Err(PeerError::Address { .. })));
    assert!(matches!(
        at("10.0.0.1:43210", MAX_GENERATION + 1),
        Err(PeerError::Epoch { .. })
    ));
}

#[test]
fn knowledge_reads_back_as_it_was_written() {
    let ([a, _], _) = pair(Instant::now());
    let knowledge = a.knowledge();
    let bytes = knowledge.encode();
    assert_eq!(knowledge.members(), 2);
    assert_eq!(Knowledge::decode(&bytes), Ok(knowledge));
    assert_eq!(
        Knowledge::decode(&[bytes, vec![0]].concat()),
        Err(KnowledgeError::Trailing(1))
    );
}

/// Lives far ahead, as when disks were put back: nobody may climb there one epoch at a time.
#[test]
fn nodes_that_are_known_in_a_later_life_go_above_it_at_once() {
    for (is_known_later, is_replayed) in [
        ([true, false], false),
        ([true, true], false),
        // One hears that it is given up, and the other cannot hear from it.
        ([true, true], true),
    ] {
        let start = Instant::now();
        let (mut nodes, sent) = pair(start);
        let mut now = start + Duration::from_secs(4);
        for index in [0, 1] {
            if is_known_later[index] {
                let me = nodes[index].me();
                let later = life(
                    cluster_id(),
                    me.name().as_str(),
                    me.address().port(),
                    1_000_000,
                    now,
                );
                nodes[1 - index].learn(later.knowledge(), now).unwrap();
            }
        }
        if is_replayed {
            let (from, packet) = sent.iter().rfind(|(from, _)| from.as_str() == "b").unwrap();
            nodes[0].handle_packet(from, packet, now).unwrap();
        }
        for _ in 0..60 {
            now += Duration::from_millis(50);
            converse(&mut nodes, now);
        }
        for (node, other) in [(&nodes[0], &nodes[1]), (&nodes[1], &nodes[0])] {
            let case = format!("known later: {is_known_later:?}, replayed: {is_replayed}");
            assert_eq!(known(node, other, now), actual(other), "{case}");
        }
    }
}

/// Others at higher addresses, who are not there, stand in for both.
#[test]
fn nodes_that_take_each_other_for_other_machines_stay_quiet_and_meet_again() {
    let start = Instant::now();
    let (mut nodes, _) = pair(start);
    let mut now = start + Duration::from_secs(4);
    for index in [0, 1] {
        let me = nodes[index].me();
        let other = life(
            cluster_id(),
            me.name().as_str(),
            me.address().port() + 10,
            me.epoch(),
            now,
        );
        nodes[1 - index].learn(other.knowledge(), now).unwrap();
    }
    for index in [0, 1] {
        let address = nodes[1 - index].me().address();
        nodes[index].join([address], now);
    }
    for _ in 0..1200 {
        now += Duration::from_millis(50);
        converse(&mut nodes, now);
    }
    for (node, other) in [(&nodes[0], &nodes[1]), (&nodes[1], &nodes[0])] {
        assert_eq!(known(node, other, now), actual(other));
    }
}

proptest! {
    /// Damaged packets of every kind, some replayed, some late: the receiver takes them or says why not, sends nothing too
    /// long, and soon after both nodes know each other, whatever the damage made one believe.
    #[test]
    fn no_packet_breaks_a_node(
        damages in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>(), 0_usize..4), 1..40),
        noise in prop::collection::vec(any::<u8>(), 0..MAX_PACKET_BYTES + 10),
    ) {
        let start = Instant::now();
        let (mut nodes, sent) = pair(start);
        let mut now = start + Duration::from_secs(4);
        for (which, place, byte, kind) in damages {
            let (from, mut packet) = sent[which.index(sent.len())].clone();
            match kind {
                0 => {}
                1 => {
                    let place = place.index(packet.len());
                    packet[place] = byte;
                }
                2 => packet.truncate(place.index(packet.len())),
                _ => packet.extend_from_slice(&noise),
            }
            now += Duration::from_millis(u64::from(byte));
            for node in &mut nodes {
                let _ = node.handle_packet(&from, &packet, now);
            }
            converse(&mut nodes, now);
        }
        let _ = nodes[1].handle_packet(&name("a"), &noise, now);
        for _ in 0..1200 {
            now += Duration::from_millis(50);
            converse(&mut nodes, now);
        }
        for (node, other) in [(&nodes[0], &nodes[1]), (&nodes[1], &nodes[0])] {
            prop_assert_eq!(known(node, other, now), actual(other));
        }
    }

    #[test]
    fn no_bytes_break_the_reading_of_knowledge(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Knowledge::decode(&bytes);
    }
}

/// Returns where, in which life and how a node knows another.
fn known(node: &Gossip, other: &Gossip, now: Instant) -> (SocketAddr, u64, MemberState) {
    let members = node.members(now).into_iter();
    let mut members = members.filter(|member| member.name == *other.me().name());
    let member = members.next().unwrap();
    (member.address, member.epoch, member.state)
}

/// Returns what it is to be known as.
fn actual(node: &Gossip) -> (SocketAddr, u64, MemberState) {
    (node.me().address(), node.me().epoch(), MemberState::Alive)
}

/// Has two nodes do what is due and hands over their packets.
fn converse(nodes: &mut [Gossip; 2], now: Instant) {
    let mut packets = 0;
    for index in [0, 1, 0, 1] {
        nodes[index].handle_wake(now);
        while let Some(action) = nodes[index].poll_action() {
            let Action::Send { to, packet } = action else {
                continue;
            };
            assert!(packet.len() <= MAX_PACKET_BYTES);
            packets += 1;
            assert!(packets <= STORM, "{packets} packets in one go");
            let from = nodes[index].me().name().clone();
            let other = &mut nodes[1 - index];
            if to == other.me().address() {
                let _ = other.handle_packet(&from, &packet, now);
            }
        }
    }
}

#[test]
fn a_node_may_be_driven_on_a_thread_of_its_own() {
    fn is_send<T: Send>(_: &T) {}
    is_send(&node(cluster_id(), "a", 1, Instant::now()));
}

/// More than two nodes ever have to say to each other at once.
const STORM: usize = 100;
