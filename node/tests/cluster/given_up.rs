//! Clones that nobody waits for any more, on another node than the one that was asked.

use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream};
use zdap_node::gossip::MemberState;
use zdap_proto::control::ABANDONED;
use zdap_proto::frame::{self, REQUEST_CAP};
use zdap_proto::message::Request;
use zdap_proto::name::RequestId;
use zdap_proto::transport::Purpose;

use crate::by_hand::{by_hand, deaf, opened};
use crate::client::{Client, bare, created, order_at, retry};
use crate::together::Together;
use crate::world::Running;

/// A request whose answer has begun to come.
struct HalfRead {
    send: SendStream,
    receive: RecvStream,
    _connection: Connection,
}

impl HalfRead {
    async fn ask(node: &Running, user: &Client, request: Request) -> Self {
        let by_hand = by_hand(node, Some(&user.identity), Purpose::Control, deaf());
        let connection = opened(node, by_hand).await;
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        frame::write(&mut send, &bare(request), REQUEST_CAP)
            .await
            .unwrap();
        receive.read_exact(&mut [0]).await.unwrap();
        Self {
            send,
            receive,
            _connection: connection,
        }
    }
}

#[tokio::test]
async fn a_request_that_is_given_up_leaves_no_clone_on_another_node_either() {
    let together = Together::start(&["a", "b"]).await;
    together.machines[1]
        .faults
        .set_latency(Duration::from_millis(100));
    let ada = together.nodes[0].user("ada").await;
    let there = &together.machines[1];
    let request = order_at("b", &RequestId::random());
    tokio::select! {
        answer = ada.ask(&request) => panic!("{answer:?}"),
        () = there.until(|clones| !clones.is_empty()) => {}
    }
    there.until(<[_]>::is_empty).await;
}

#[tokio::test]
async fn an_answer_that_is_given_up_half_read_leaves_no_clone_on_another_node_either() {
    let together = Together::start(&["a", "b"]).await;
    let a = &together.nodes[0];
    let ada = a.user("ada").await;
    let request = order_at("b", &RequestId::random());
    let mut half_read = HalfRead::ask(a, &ada, request).await;
    assert_eq!(together.clones().await, [0, 1]);
    half_read.receive.stop(ABANDONED).unwrap();
    together.machines[1].until(<[_]>::is_empty).await;
}

#[tokio::test]
async fn a_first_try_that_is_given_up_does_not_take_the_clone_that_the_second_was_told_of() {
    let together = Together::start(&["a", "b"]).await;
    for at in ["a", "b"] {
        let [a, b] = &together.nodes[..] else {
            panic!("two")
        };
        let ada = a.user("ada").await;
        let request = order_at(at, &RequestId::random());
        let mut first_try = HalfRead::ask(a, &ada, request.clone()).await;
        let before = together.clones().await;

        let second_try = b.client(ada.identity.clone()).await;
        created(second_try.ask(&retry(request)).await.unwrap());
        first_try.receive.stop(ABANDONED).unwrap();
        // The node lets go of the request when it has done what there is to do about it.
        first_try.send.stopped().await.unwrap();
        assert_eq!(together.clones().await, before);
    }
}

#[tokio::test]
async fn a_clone_that_nobody_waits_for_goes_also_where_its_node_is_lost_at_that_moment() {
    let mut together = Together::start(&["a", "b"]).await;
    let a = &together.nodes[0];
    let ada = a.user("ada").await;
    let request = order_at("b", &RequestId::random());
    let mut half_read = HalfRead::ask(a, &ada, request).await;
    let Some(b) = together.nodes.pop() else {
        panic!("two")
    };
    let (port, alive) = (b.port(), b.node.clone());
    b.kill();
    while alive.strong_count() > 0 {
        tokio::task::yield_now().await;
    }
    half_read.receive.stop(ABANDONED).unwrap();
    together
        .until("b is down", |view| {
            let seen = view.members.get(&"b".parse().unwrap());
            seen.is_some_and(|seen| seen.state == MemberState::Down)
        })
        .await;
    assert_eq!(together.clones().await, [0, 1]);
    let _b = together.machines[1].start_apart(port, None).await.unwrap();
    together.machines[1].until(<[_]>::is_empty).await;
}
