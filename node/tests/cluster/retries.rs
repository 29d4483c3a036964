//! Lost connections, askers who leave, restarts: a request id is one clone, whatever happens on the way.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;
use zdap_node::faults::Faults;
use zdap_proto::connect::connect;
use zdap_proto::control::{ABANDONED, call};
use zdap_proto::frame::{self, REPLY_CAP, REQUEST_CAP};
use zdap_proto::identity::Identity;
use zdap_proto::message::{Answer, CloneState, Reply, Request};
use zdap_proto::name::RequestId;
use zdap_proto::refusal::RefusalKind;
use zdap_proto::transport::{self, Purpose};

use crate::by_hand::{by_hand, deaf, opened};
use crate::client::{bare, created, order, retry};
use crate::world::{Machine, Running, SOON};

#[tokio::test]
async fn the_same_request_many_times_at_once_and_again_later_gives_one_clone() {
    let machine = Machine::new("a");
    let node = slow_start(&machine).await;
    let ada = node.user("ada").await;
    let second = ada.again().await;
    let request = order(&RequestId::random());
    let connections = [&ada.connection, &second].repeat(4);
    let calls = connections
        .into_iter()
        .map(|connection| call(connection, &request, |_| {}));
    let mut ids: Vec<_> = join_all(calls)
        .await
        .into_iter()
        .map(|answer| created(answer.unwrap()).id)
        .collect();
    ids.push(created(ada.ask(&request).await.unwrap()).id);
    ids.dedup();
    assert_eq!(ids.len(), 1, "{ids:?}");
    assert_eq!(machine.clones().await.len(), 1);
}

#[tokio::test]
async fn the_same_request_id_of_another_user_is_another_clone() {
    let machine = Machine::new("a");
    let node = machine.start().await;
    let request = order(&RequestId::random());
    let mut ids = Vec::new();
    for name in ["ada", "bob"] {
        ids.push(created(node.user(name).await.ask(&request).await.unwrap()).id);
    }
    assert_ne!(ids[0], ids[1]);
}

#[tokio::test]
async fn a_request_that_is_given_up_leaves_no_clone() {
    let machine = Machine::new("a");
    let node = slow_start(&machine).await;
    let ada = node.user("ada").await;
    let request = order(&RequestId::random());
    tokio::select! {
        answer = ada.ask(&request) => panic!("{answer:?}"),
        () = machine.until(|clones| !clones.is_empty()) => {}
    }
    machine.until(<[_]>::is_empty).await;
    // The same connection goes on.
    ada.create().await;
    assert_eq!(machine.clones().await.len(), 1);
}

#[tokio::test]
async fn an_answer_that_is_given_up_half_read_leaves_no_clone() {
    let machine = Machine::new("a");
    let node = machine.start().await;
    let ada = node.user("ada").await;
    give_up_half_read(&node, &ada.identity, &RequestId::random()).await;
    machine.until(<[_]>::is_empty).await;
}

#[tokio::test]
async fn an_answer_that_has_come_and_is_given_up_unread_leaves_no_clone() {
    let machine = Machine::new("a");
    let node = machine.start().await;
    let ada = node.user("ada").await;
    let request = order(&RequestId::random());
    let mut asked = Box::pin(ada.ask(&request));
    assert!(futures_util::poll!(&mut asked).is_pending(), "it is on its way");
    machine
        .until(|clones| clones.iter().any(|clone| clone.state == CloneState::Ready))
        .await;
    // By the time that these are answered on the same connection, the answer has come.
    for _ in 0..3 {
        ada.ask(&Request::ListNodes).await.unwrap();
    }
    drop(asked);
    timeout(SOON, machine.until(<[_]>::is_empty)).await.unwrap();

    // And one that was read stays.
    let clone = ada.create().await;
    ada.ask(&Request::ListNodes).await.unwrap();
    node.echo(&ada.identity, &clone.id).await.unwrap();
    node.stop().await;
    assert_eq!(machine.clones().await.len(), 1);
}

#[tokio::test]
async fn giving_up_does_not_take_away_what_an_earlier_request_made() {
    let machine = Machine::new("a");
    let node = machine.start().await;
    let ada = node.user("ada").await;
    let request_id = RequestId::random();
    let clone = created(ada.ask(&order(&request_id)).await.unwrap());
    give_up_half_read(&node, &ada.identity, &request_id).await;
    // It finishes what it has begun.
    node.stop().await;
    assert_eq!(machine.clones().await[0].id, clone.id);
}

#[tokio::test]
async fn a_client_that_vanishes_without_a_word_finds_its_clone_when_it_asks_again() {
    let machine = Machine::new("a");
    let node = slow_start(&machine).await;
    let ada = node.user("ada").await;
    let request = order(&RequestId::random());

    // A machine of its own, whose power fails: nothing is said any more, not even goodbye.
    let elsewhere = tokio::runtime::Runtime::new().unwrap();
    let (identity, address, asked) = (ada.identity.clone(), node.address.clone(), request.clone());
    elsewhere.spawn(async move {
        let endpoint = transport::client_endpoint().unwrap();
        let connection = connect(&endpoint, &identity, &address, Purpose::Control)
            .await
            .unwrap();
        call(&connection, &asked, |_| {}).await
    });
    machine.until(|clones| !clones.is_empty()).await;
    elsewhere.shutdown_background();
    let begun = machine.clones().await.remove(0);
    assert_eq!(begun.state, CloneState::Creating);

    let clone = created(ada.ask(&request).await.unwrap());
    assert_eq!(clone.id, begun.id);
    assert_eq!(machine.clones().await.len(), 1);
    node.echo(&ada.identity, &clone.id).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_is_closed_in_the_middle_keeps_the_clone_for_the_retry() {
    let machine = Machine::new("a");
    let node = slow_start(&machine).await;
    let (first, second) = (node.user("ada").await, node.user("ada").await);
    let request = order(&RequestId::random());
    let asked = tokio::spawn({
        let (connection, request) = (first.connection.clone(), request.clone());
        async move { call(&connection, &request, |_| {}).await }
    });
    machine.until(|clones| !clones.is_empty()).await;
    first.connection.close(0u32.into(), b"");
    assert!(asked.await.unwrap().is_err());
    let clone = created(second.ask(&request).await.unwrap());
    assert_eq!(machine.clones().await[0].id, clone.id);
    assert_eq!(machine.clones().await.len(), 1);
}

#[tokio::test]
async fn after_a_restart_certificates_relays_and_clones_are_as_good_as_before() {
    let machine = Machine::new("a");
    let first = machine.start().await;
    let ada = first.user("ada").await;
    let request = order(&RequestId::random());
    let clone = created(ada.ask(&request).await.unwrap());
    let relay = ada.relay(&clone.id).await;
    let port = first.port();
    first.stop().await;
    assert!(
        ada.connection
            .closed()
            .await
            .to_string()
            .contains("the node is stopping"),
        "whoever is connected is told"
    );

    let second = machine.start_with(Faults::none(), port, None).await.unwrap();
    second.echo(&relay, &clone.id).await.unwrap();
    let ada = second.client(ada.identity).await;
    assert_eq!(created(ada.ask(&request).await.unwrap()).id, clone.id);
    ada.ask(&Request::DestroyClone { clone: clone.id }).await.unwrap();
    assert_eq!(machine.clones().await, []);
}

#[tokio::test]
async fn a_node_that_stops_finishes_what_it_does_and_takes_nothing_new() {
    let machine = Machine::new("a");
    let node = slow_start(&machine).await;
    let ada = node.user("ada").await;
    let frame = frame::encode(&bare(Request::ListResources), REQUEST_CAP).unwrap();
    let (first, rest) = frame.split_at(1);
    let mut half = ada.connection.open_bi().await.unwrap();
    half.0.write_all(first).await.unwrap();
    let mut begun = std::pin::pin!(async { created(ada.ask(&order(&RequestId::random())).await.unwrap()) });
    tokio::select! {
        clone = &mut begun => panic!("{clone:?}"),
        () = machine.until(|clones| !clones.is_empty()) => {}
    }
    let served = node.begin_to_stop();
    let refused = async {
        // The node may not have heard yet.
        loop {
            match ada.ask(&Request::ListResources).await {
                Ok(_) => tokio::task::yield_now().await,
                Err(refusal) => return refusal,
            }
        }
    };
    let refused = async {
        let refusal = refused.await;
        half.0.write_all(rest).await.unwrap();
        let reply: Reply = frame::read(&mut half.1, REPLY_CAP).await.unwrap();
        assert_eq!(reply, Reply::Refused(refusal.clone()), "the rest came too late");
        refusal
    };
    let (clone, refusal) = tokio::join!(begun, refused);
    assert_eq!(
        (refusal.kind, refusal.message.as_str()),
        (RefusalKind::Unavailable, "the node is stopping")
    );
    served.await.unwrap().unwrap();
    let left = machine.clones().await;
    assert_eq!((&left[0].id, left[0].state), (&clone.id, CloneState::Ready));
}

/// Takes the first byte of an answer and no more of it.
async fn give_up_half_read(node: &Running, identity: &Identity, request_id: &RequestId) {
    let connection = opened(node, by_hand(node, Some(identity), Purpose::Control, deaf())).await;
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    frame::write(&mut send, &bare(order(request_id)), REQUEST_CAP)
        .await
        .unwrap();
    receive.read_exact(&mut [0]).await.unwrap();
    receive.stop(ABANDONED).unwrap();
    // What is asked after it is answered after it.
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    frame::write(&mut send, &bare(Request::ListNodes), REQUEST_CAP)
        .await
        .unwrap();
    receive.read_exact(&mut [0]).await.unwrap();
}

/// Starts a node whose disk takes its time, so that something can happen meanwhile.
async fn slow_start(machine: &Machine) -> Running {
    machine.start().await.stop().await;
    let slow = Faults::none();
    slow.set_latency(Duration::from_millis(150));
    machine.start_with(slow, 0, None).await.unwrap()
}

#[tokio::test]
async fn a_clone_that_was_asked_for_once_more_is_not_taken_back() {
    let machine = Machine::new("a");
    let node = machine.start().await;
    node.operator().await.restore().await;
    let ada = node.user("ada").await;
    let order = order(&RequestId::random());
    let clone = created(ada.ask(&order).await.unwrap()).id;
    let again = created(ada.ask(&retry(order)).await.unwrap()).id;
    assert_eq!(again, clone);

    let take_back = |attempt| Request::TakeBack {
        clone: clone.clone(),
        attempt,
    };
    let refusal = ada.ask(&take_back(1)).await.unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Forbidden, "{refusal}");
    let operator = node.operator().await;
    let stays = operator.ask(&take_back(0)).await;
    assert_eq!(stays, Ok(Answer::TakenBack { is_gone: false }));
    assert_eq!(machine.clones().await.len(), 1);
    for _ in 0..2 {
        let goes = operator.ask(&take_back(1)).await;
        assert_eq!(goes, Ok(Answer::TakenBack { is_gone: true }));
    }
    assert_eq!(machine.clones().await.len(), 0);
    node.stop().await;
}
