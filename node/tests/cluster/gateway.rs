//! Databases that are reached through a node that does not have them.

use zdap_proto::frame::{self, REPLY_CAP, REQUEST_CAP};
use zdap_proto::identity::Subject;
use zdap_proto::message::{Request, TunnelHello, TunnelReply};
use zdap_proto::name::CloneId;
use zdap_proto::refusal::RefusalKind;
use zdap_proto::transport::Purpose;

use crate::by_hand::{by_hand, opened};
use crate::together::Together;
use crate::world::rest;

#[tokio::test]
async fn a_database_is_reached_through_any_node_by_its_owner_and_its_relay() {
    let together = Together::start(&["a", "b"]).await;
    let [a, b] = together.nodes.as_slice() else {
        panic!("two")
    };
    let ada = a.user("ada").await;
    let clone = ada.create_at("b").await.id;
    let relay = ada.relay(&clone).await;
    for identity in [&ada.identity, &relay] {
        b.echo(identity, &clone).await.unwrap();
        a.echo(identity, &clone).await.unwrap();
    }
    let root = a.certify(&Subject::Admin("root".parse().unwrap()));
    a.echo(&root, &clone).await.unwrap();
}

#[tokio::test]
async fn megabytes_go_both_ways_at_once_and_each_direction_ends_for_itself() {
    let together = Together::start(&["a", "b"]).await;
    let a = &together.nodes[0];
    let ada = a.user("ada").await;
    let clone = ada.create_at("b").await.id;
    let (_connection, mut send, mut receive) = a.tunnel(&ada.identity, &clone).await.unwrap();
    let sent: Vec<u8> = (0..24_u32 << 20).map(|number| (number % 251) as u8).collect();
    let writing = async {
        send.write_all(&sent).await.unwrap();
        send.finish().unwrap();
    };
    let (back, ()) = tokio::join!(rest(&mut receive), writing);
    let back = back.unwrap();
    assert_eq!(back.len(), sent.len());
    assert!(back == sent, "the same bytes");
}

#[tokio::test]
async fn a_client_that_breaks_off_is_not_taken_for_one_that_has_ended() {
    let together = Together::start(&["a", "b"]).await;
    let a = &together.nodes[0];
    let ada = a.user("ada").await;
    let clone = ada.create_at("b").await.id;
    let (_connection, mut send, mut receive) = a.tunnel(&ada.identity, &clone).await.unwrap();
    send.write_all(b"insert").await.unwrap();
    let mut back = [0; 6];
    receive.read_exact(&mut back).await.unwrap();
    send.reset(7_u32.into()).unwrap();
    // An end would be passed on as an end, by the echo too.
    let end = receive.read_exact(&mut back).await;
    assert!(
        matches!(
            &end,
            Err(quinn::ReadExactError::ReadError(quinn::ReadError::Reset(_)))
        ),
        "{end:?}"
    );
}

#[tokio::test]
async fn whoever_may_not_reach_a_clone_may_not_through_another_node_either() {
    let together = Together::start(&["a", "b"]).await;
    let [a, b] = together.nodes.as_slice() else {
        panic!("two")
    };
    let ada = a.user("ada").await;
    let (clone, other) = (ada.create_at("b").await.id, ada.create_at("b").await.id);
    let relay = ada.relay(&other).await;
    let bob = a.certify(&Subject::User("bob".parse().unwrap()));
    for identity in [&bob, &relay] {
        let direct = b.echo(identity, &clone).await.unwrap_err();
        assert_eq!(direct.kind, RefusalKind::Forbidden);
        assert_eq!(a.echo(identity, &clone).await.unwrap_err(), direct);
    }
    let nowhere = CloneId::random(&"orders".parse().unwrap());
    let refusal = a.echo(&bob, &nowhere).await.unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Forbidden);

    ada.ask(&Request::DestroyClone { clone: other.clone() })
        .await
        .unwrap();
    let gone = a.echo(&relay, &other).await.unwrap_err();
    assert_eq!(
        (gone.kind, gone.message),
        (
            RefusalKind::NotFound,
            format!("there is no clone `{other}` any more")
        )
    );
}

#[tokio::test]
async fn nodes_alone_may_say_on_whose_behalf_they_come() {
    let together = Together::start(&["a", "b"]).await;
    let b = &together.nodes[1];
    let ada = b.user("ada").await;
    let clone = ada.create_at("b").await.id;
    let bob = b.certify(&Subject::User("bob".parse().unwrap()));
    let connection = opened(
        b,
        by_hand(b, Some(&bob), Purpose::Tunnel, quinn::TransportConfig::default()),
    )
    .await;
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    let hello = TunnelHello {
        clone,
        on_behalf_of: Some(ada.identity.subject().clone()),
    };
    frame::write(&mut send, &hello, REQUEST_CAP).await.unwrap();
    let reply = frame::read(&mut receive, REPLY_CAP).await.unwrap();
    let TunnelReply::Refused(refusal) = reply else {
        panic!("{reply:?}")
    };
    assert_eq!(
        (refusal.kind, refusal.message.as_str()),
        (
            RefusalKind::Forbidden,
            "user `bob` may not ask on behalf of somebody else"
        )
    );
}
