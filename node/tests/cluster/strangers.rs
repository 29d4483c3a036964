//! Who gets no connection, and no certificate.

use std::time::Duration;

use chrono::{TimeDelta, Utc};
use zdap_node::faults::Faults;
use zdap_node::invites::Invites;
use zdap_proto::connect::{ConnectError, connect};
use zdap_proto::identity::{ClusterCa, Identity, Subject};
use zdap_proto::message::{Invited, Request, Wanted};
use zdap_proto::token::Token;
use zdap_proto::transport::{self, Purpose};

use crate::by_hand::{enrol, enrol_key, turned_away};
use crate::world::{HOUR, Machine, Running};

const PURPOSES: [Purpose; 2] = [Purpose::Control, Purpose::Tunnel];

#[tokio::test]
async fn without_a_certificate_there_are_neither_requests_nor_tunnels() {
    let node = Machine::new("a").start().await;
    for purpose in PURPOSES {
        let reason = turned_away(&node, None, purpose).await;
        assert!(
            reason.ends_with("a certificate of this cluster is needed: enrol first"),
            "{reason}"
        );
    }
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_refused() {
    let node = Machine::new("a").start().await;
    let other = ClusterCa::found(Utc::now()).unwrap();
    let stranger = other.identity(&ada(), HOUR, Utc::now()).unwrap();
    for purpose in PURPOSES {
        let reason = turned_away(&node, Some(&stranger), purpose).await;
        assert!(
            reason.ends_with("does not accept our certificate: it is of another cluster"),
            "{reason}"
        );
        let error = connecting(&node, &stranger, purpose).await;
        assert!(matches!(error, ConnectError::OtherCluster(_)), "{error}");
    }
}

#[tokio::test]
async fn a_certificate_that_is_over_or_not_yet_valid_is_refused_with_a_word_about_the_clock() {
    let node = Machine::new("a").start().await;
    let day = TimeDelta::days(1);
    let over = node.ca.identity(&ada(), HOUR, Utc::now() - day).unwrap();
    let early = node.ca.identity(&ada(), HOUR, Utc::now() + day).unwrap();
    for purpose in PURPOSES {
        for identity in [&over, &early] {
            let reason = turned_away(&node, Some(identity), purpose).await;
            assert!(reason.contains("by the node's clock"), "{reason}");
        }
        for (identity, words) in [(&over, "expired at"), (&early, "is not valid before")] {
            let error = connecting(&node, identity, purpose).await;
            let ConnectError::Identity(reason) = &error else {
                panic!("{error}")
            };
            let text = reason.to_string();
            assert!(
                text.contains(words) && text.contains("this machine's clock says"),
                "{text}"
            );
            assert!(error.hint().is_some_and(|hint| hint.contains("clock")));
        }
    }
}

#[tokio::test]
async fn a_token_is_good_once() {
    let node = Machine::new("a").start().await;
    let token = node.token(anybody()).await;
    let (keypair, enrolled) = enrol(&token, user("ada")).await.unwrap();
    assert!(enrolled.ca_key.is_none(), "only nodes get the CA");
    assert_eq!(enrolled.nodes, [node.address.as_str()]);
    let identity = Identity::new(keypair, &enrolled.certificate).unwrap();
    let clones = node.client(identity).await.create().await;
    assert_eq!(clones.owner.as_str(), "ada");
    let reason = enrol(&token, user("bob")).await.unwrap_err();
    assert!(
        reason.starts_with("this token was used already, at 20"),
        "{reason}"
    );
}

#[tokio::test]
async fn of_many_who_use_a_token_at_once_one_gets_in() {
    let node = Machine::new("a").start().await;
    let token = node.token(anybody()).await;
    let names: Vec<_> = (0..8).map(|number| format!("user{number}")).collect();
    let all = names.iter().map(|name| enrol(&token, user(name)));
    let results = futures_util::future::join_all(all).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
}

#[tokio::test]
async fn a_token_after_its_time_is_refused() {
    let machine = Machine::new("a");
    let first = machine.start().await;
    let token = Token::new(vec![first.address.clone()], first.ca.fingerprint(), false);
    let port = first.port();
    first.stop().await;
    let hash = data_encoding::HEXLOWER.encode(&token.secret_hash());
    let long_ago = Utc::now() - TimeDelta::hours(2);
    Invites::load(machine.invites())
        .unwrap()
        .add(&hash, anybody(), TimeDelta::hours(1), long_ago)
        .unwrap();
    let _node = machine.start_with(Faults::none(), port, None).await.unwrap();
    let reason = enrol(&token, user("ada")).await.unwrap_err();
    assert!(reason.starts_with("this token expired at 20"), "{reason}");
}

#[tokio::test]
async fn a_secret_that_was_guessed_and_a_token_of_another_cluster_are_refused() {
    let node = Machine::new("a").start().await;
    let address = || vec![node.address.clone()];
    let guessed = Token::new(address(), node.ca.fingerprint(), false);
    let reason = enrol(&guessed, user("ada")).await.unwrap_err();
    assert_eq!(reason, "this token was not made by this node");
    let other = Token::new(address(), [7; 32], false);
    let reason = enrol(&other, user("ada")).await.unwrap_err();
    assert!(
        reason.ends_with("is not a node of this cluster: its certificate is of another CA"),
        "{reason}"
    );
}

#[tokio::test]
async fn a_nodes_token_makes_no_user_and_a_users_token_no_node() {
    let node = Machine::new("a").start().await;
    let wants_node = Wanted::Node {
        name: "b".parse().unwrap(),
    };
    let for_node = node.token(Invited::Node).await;
    let reason = enrol(&for_node, user("ada")).await.unwrap_err();
    assert_eq!(reason, "this token is for a node, not for a user");
    let for_user = node.token(anybody()).await;
    let reason = enrol(&for_user, wants_node.clone()).await.unwrap_err();
    assert_eq!(reason, "this token is for a user, not for a node");
    enrol(&for_user, user("ada"))
        .await
        .expect("the mistake did not use it up");
    enrol(&for_node, wants_node)
        .await
        .expect("the mistake did not use it up");
}

#[tokio::test]
async fn a_key_that_cannot_be_certified_and_a_node_name_that_is_taken_do_not_use_up_the_token() {
    let node = Machine::new("a").start().await;
    let named = |name: &str| Wanted::Node {
        name: name.parse().unwrap(),
    };
    let token = node.token(Invited::Node).await;
    let reason = enrol_key(&token, vec![7; 44], named("b")).await.unwrap_err();
    assert_eq!(
        reason,
        "the public key cannot be certified: the public key is not an Ed25519 key"
    );
    let reason = enrol(&token, named("a")).await.unwrap_err();
    assert_eq!(reason, "the name of node `a` is taken");
    enrol(&token, named("b")).await.expect("it is still good");
}

#[tokio::test]
async fn a_node_joins_by_a_token_and_then_takes_the_same_certificates() {
    let (first, second) = (Machine::new("a"), Machine::new("b"));
    let a = first.start().await;
    let token = a.token(Invited::Node).await;
    let b = second.start_apart(0, Some(&token)).await.unwrap();
    assert_eq!(a.ca.fingerprint(), b.ca.fingerprint());
    b.operator().await.restore().await;

    let ada = a.user("ada").await;
    let there = b.client(ada.identity.clone()).await;
    let clone = there.create_at("b").await;
    assert_eq!(clone.node.as_str(), "b");
    let relay = there.relay(&clone.id).await;
    b.echo(&relay, &clone.id).await.unwrap();
    b.until("whose names a knows is known", |view| {
        let seen = view.members.get(&"a".parse().unwrap());
        seen.is_some_and(|seen| seen.catalog.is_some())
    })
    .await;
    let enrolled_at_b = enrol(&b.token(anybody()).await, user("bob")).await.unwrap();
    let bob = Identity::new(enrolled_at_b.0, &enrolled_at_b.1.certificate).unwrap();
    a.client(bob).await.ask(&Request::ListNodes).await.unwrap();
}

#[tokio::test]
async fn a_node_does_not_join_by_a_users_token_nor_by_one_that_was_used() {
    let a = Machine::new("a").start().await;
    let for_user = a.token(anybody()).await;
    let b = Machine::new("b");
    let error = b
        .start_with(Faults::none(), 0, Some(&for_user))
        .await
        .err()
        .unwrap();
    assert!(
        error.to_string().starts_with("the token is for a user"),
        "{error:#}"
    );

    let for_node = a.token(Invited::Node).await;
    let other = Machine::new("other");
    other
        .start_with(Faults::none(), 0, Some(&for_node))
        .await
        .unwrap();
    let error = b
        .start_with(Faults::none(), 0, Some(&for_node))
        .await
        .err()
        .unwrap();
    assert!(error.to_string().contains("used already"), "{error:#}");

    let same_name = Machine::new("a");
    let token = a.token(Invited::Node).await;
    let error = same_name
        .start_with(Faults::none(), 0, Some(&token))
        .await
        .err()
        .unwrap();
    assert!(
        error.to_string().contains("the name of node `a` is taken"),
        "{error:#}"
    );
}

#[tokio::test]
async fn a_certificate_that_ends_while_connected_is_good_for_no_further_request() {
    let node = Machine::new("a").start().await;
    let short = node
        .ca
        .identity(&ada(), Duration::from_secs(2), Utc::now())
        .unwrap();
    let client = node.client(short).await;
    client.ask(&Request::ListNodes).await.unwrap();
    let left = (client.identity.expires_at() - Utc::now())
        .to_std()
        .unwrap_or_default();
    tokio::time::sleep(left).await;
    let error = zdap_proto::control::call(&client.connection, &Request::ListNodes, |_| {}).await;
    assert!(error.is_err());
    let reason = client.connection.closed().await.to_string();
    assert!(reason.contains("the certificate expired at"), "{reason}");
}

fn ada() -> Subject {
    Subject::User("ada".parse().unwrap())
}

fn user(name: &str) -> Wanted {
    Wanted::User {
        name: Some(name.parse().unwrap()),
    }
}

fn anybody() -> Invited {
    Invited::User {
        name: None,
        admin: false,
    }
}

async fn connecting(node: &Running, identity: &Identity, purpose: Purpose) -> ConnectError {
    let endpoint = transport::client_endpoint().unwrap();
    match connect(&endpoint, identity, &node.address, purpose).await {
        Err(error) => error,
        Ok(_) => panic!("connected"),
    }
}
