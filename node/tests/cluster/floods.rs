//! Peers that send nonsense, too much, or nothing: they get a reason or an end, and nobody else notices.

use std::net::UdpSocket;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use quinn::{Connection, RecvStream, SendStream, TransportConfig};
use tokio::time::timeout;
use zdap_proto::connect::{connect, connect_for_enrol};
use zdap_proto::frame::{self, REPLY_CAP, REQUEST_CAP};
use zdap_proto::message::{EnrolRequest, Invited, Reply, Request, TunnelHello, TunnelReply, Wanted};
use zdap_proto::token::Token;
use zdap_proto::transport::{self, Close, Purpose};

use crate::by_hand::{by_hand, deaf, enrol, opened, server_name};
use crate::client::bare;
use crate::world::{Machine, Running};

#[tokio::test]
async fn a_request_that_cannot_be_understood_is_answered_with_the_reason() {
    let node = Machine::new("a").start().await;
    let ada = node.user("ada").await;
    let long = u32::try_from(REQUEST_CAP + 1).unwrap().to_le_bytes();
    let mut trailing = frame::encode(&bare(Request::ListNodes), REQUEST_CAP).unwrap();
    trailing[0] += 1;
    trailing.push(7);
    let cases: [(&[u8], &str); 5] = [
        (&long, "a frame of 16385 bytes is over the limit of 16384"),
        (
            &[3, 0, 0, 0, 0xff, 0xff, 0xff],
            "does not hold the expected message",
        ),
        (&trailing, "does not hold the expected message"),
        (&[9, 0, 0, 0, 1], "the stream broke"),
        (&[], "the stream ended"),
    ];
    for (bytes, reason) in cases {
        let (mut send, mut receive) = ada.connection.open_bi().await.unwrap();
        // A node that refuses a frame by its length need not read on.
        let _ = send.write_all(bytes).await;
        let _ = send.finish();
        let reply = frame::read(&mut receive, REPLY_CAP).await.unwrap();
        let Reply::Refused(refusal) = reply else {
            panic!("{reply:?}")
        };
        assert!(refusal.message.contains(reason), "{bytes:?}: {refusal}");
    }
    ada.ask(&Request::ListNodes).await.unwrap();
}

#[tokio::test]
async fn whoever_stops_in_the_middle_of_a_frame_or_never_reads_is_let_go() {
    let node = Machine::new("a").start().await;
    let ada = node.user("ada").await;
    let control = half_a_frame(&ada.connection).await;
    let tunnel = by_hand(
        &node,
        Some(&ada.identity),
        Purpose::Tunnel,
        TransportConfig::default(),
    );
    let tunnel_connection = opened(&node, tunnel).await;
    let tunnel = half_a_frame(&tunnel_connection).await;
    let enrol = by_hand(&node, None, Purpose::Enrol, TransportConfig::default());
    let enrol_connection = opened(&node, enrol).await;
    let enrol = half_a_frame(&enrol_connection).await;
    let deaf_connection = opened(&node, by_hand(&node, None, Purpose::Enrol, deaf())).await;
    let (mut deaf_send, _deaf_receive) = deaf_connection.open_bi().await.unwrap();
    let request = EnrolRequest {
        secret: vec![0; 32],
        public_key: Vec::new(),
        wanted: Wanted::User { name: None },
    };
    frame::write(&mut deaf_send, &request, REQUEST_CAP).await.unwrap();

    let let_go = async {
        for (_send, mut receive) in [control, tunnel, enrol] {
            // An end or a reset, and no answer.
            assert!(frame::read::<Reply, _>(&mut receive, REPLY_CAP).await.is_err());
        }
        deaf_connection.closed().await;
    };
    timeout(DEADLINE, let_go)
        .await
        .expect("nobody is waited for longer than the deadline");
    ada.ask(&Request::ListNodes).await.unwrap();
}

#[tokio::test]
async fn a_client_that_never_reads_its_answers_hinders_neither_the_others_nor_the_end() {
    let node = Machine::new("a").start().await;
    let ada = node.user("ada").await;
    let clone = ada.create().await;
    let deaf_control = opened(
        &node,
        by_hand(&node, Some(&ada.identity), Purpose::Control, deaf()),
    )
    .await;
    let deaf_tunnel = opened(
        &node,
        by_hand(&node, Some(&ada.identity), Purpose::Tunnel, deaf()),
    )
    .await;
    let mut held = Vec::new();
    for _ in 0..60 {
        let mut control = deaf_control.open_bi().await.unwrap();
        frame::write(&mut control.0, &bare(Request::ListNodes), REQUEST_CAP)
            .await
            .unwrap();
        let mut tunnel = deaf_tunnel.open_bi().await.unwrap();
        let hello = TunnelHello {
            clone: clone.id.clone(),
            on_behalf_of: None,
        };
        frame::write(&mut tunnel.0, &hello, REQUEST_CAP).await.unwrap();
        held.push((control, tunnel));
    }
    let honest = async {
        for _ in 0..20 {
            ada.ask(&Request::ListNodes).await.unwrap();
            node.echo(&ada.identity, &clone.id).await.unwrap();
        }
    };
    timeout(PROMPT, honest)
        .await
        .expect("the others are answered at once");
    timeout(DEADLINE, node.stop())
        .await
        .expect("the node ends all the same");
}

#[tokio::test]
async fn more_requests_than_are_allowed_at_once_wait_for_their_turn() {
    let node = Machine::new("a").start().await;
    let ada = node.user("ada").await;
    let mut held = Vec::new();
    for _ in 0..64 {
        held.push(half_a_frame(&ada.connection).await);
    }
    let mut waiting = std::pin::pin!(ada.ask(&Request::ListNodes));
    let early = timeout(Duration::from_millis(200), &mut waiting).await;
    assert!(early.is_err(), "{early:?}");
    drop(held);
    timeout(PROMPT, waiting)
        .await
        .expect("its turn has come")
        .unwrap();
}

#[tokio::test]
async fn a_thousand_newcomers_who_say_nothing_keep_out_neither_a_client_nor_a_newcomer_who_does() {
    let node = Machine::new("a").start().await;
    let ada = node.user("ada").await;
    let token = Token::new(vec![node.address.clone()], node.ca.fingerprint(), false);
    let endpoint = transport::client_endpoint().unwrap();
    let silent: Vec<_> = stream::iter(0..1000)
        .map(|_| connect_for_enrol(&endpoint, &token))
        .buffered(32)
        .map(Result::unwrap)
        .collect()
        .await;
    let reason = silent[0].closed().await.to_string();
    assert!(reason.contains("too many enrol at once"), "{reason}");
    timeout(PROMPT, honest_visit(&node))
        .await
        .expect("there is room for one more");
    let invited = Invited::User {
        name: Some("eve".parse().unwrap()),
        admin: false,
    };
    enrol(&node.token(invited).await, Wanted::User { name: None })
        .await
        .expect("there is room for a newcomer");
    ada.ask(&Request::ListNodes).await.unwrap();
    let gone = async {
        for connection in silent {
            connection.closed().await;
        }
    };
    timeout(DEADLINE, gone)
        .await
        .expect("whoever says nothing is let go");
}

#[tokio::test]
async fn a_peer_with_too_many_connections_gets_no_more_until_one_has_gone() {
    let node = Machine::new("a").start().await;
    let ada = node.user("ada").await;
    let clone = ada.create().await;
    let relay = ada.relay(&clone.id).await;
    let endpoint = transport::client_endpoint().unwrap();
    let again = || connect(&endpoint, &relay, &node.address, Purpose::Tunnel);
    let mut held = Vec::new();
    for _ in 0..64 {
        held.push(again().await.unwrap());
    }
    let reason = again().await.unwrap().closed().await.to_string();
    assert!(reason.contains("has 64 connections open already"), "{reason}");
    node.echo(&ada.identity, &clone.id)
        .await
        .expect("its owner is somebody else");
    Close::Done.connection(&held.remove(0), "one less");
    let freed = async {
        // The node may not have heard yet.
        loop {
            let connection = again().await.unwrap();
            let (mut send, mut receive) = connection.open_bi().await.unwrap();
            let hello = TunnelHello {
                clone: clone.id.clone(),
                on_behalf_of: None,
            };
            // One that is closed again takes no hello, or gives no answer to it.
            if frame::write(&mut send, &hello, REQUEST_CAP).await.is_ok()
                && frame::read::<TunnelReply, _>(&mut receive, REPLY_CAP)
                    .await
                    .is_ok()
            {
                break;
            }
        }
    };
    timeout(PROMPT, freed).await.expect("its place is free again");
}

#[tokio::test]
async fn thousands_of_handshakes_that_are_never_finished_do_not_keep_an_honest_client_out() {
    let node = Machine::new("a").start().await;
    let first_packets = first_packets(&node, 2000).await;
    let flood = UdpSocket::bind("127.0.0.1:0").unwrap();
    for packet in &first_packets {
        flood.send_to(packet, &node.address).unwrap();
    }
    timeout(PROMPT, honest_visit(&node))
        .await
        .expect("an honest client gets in");
}

/// Connects anew, asks, makes a clone and uses it.
async fn honest_visit(node: &Running) {
    let bob = node.user("bob").await;
    let clone = bob.create().await;
    node.echo(&bob.identity, &clone.id).await.unwrap();
}

/// Collects what clients send first, each with a connection id of its own, by letting them call somebody who does not
/// answer.
async fn first_packets(node: &Running, count: usize) -> Vec<Vec<u8>> {
    let mute = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let endpoint = transport::client_endpoint().unwrap();
    let mut packets = Vec::new();
    let mut buffer = [0; 2048];
    for _ in 0..count {
        let config = by_hand(node, None, Purpose::Enrol, TransportConfig::default());
        let calling = endpoint
            .connect_with(config, mute.local_addr().unwrap(), &server_name(node))
            .unwrap();
        let calling = tokio::spawn(calling.into_future());
        let (length, _) = mute.recv_from(&mut buffer).await.unwrap();
        packets.push(buffer[..length].to_vec());
        calling.abort();
    }
    packets
}

async fn half_a_frame(connection: &Connection) -> (SendStream, RecvStream) {
    let (mut send, receive) = connection.open_bi().await.unwrap();
    send.write_all(&[200, 0, 0, 0, 1, 2, 3]).await.unwrap();
    (send, receive)
}

/// The node's own deadlines are ten seconds; this machine may be busy.
const DEADLINE: Duration = Duration::from_secs(25);
const PROMPT: Duration = Duration::from_secs(8);
