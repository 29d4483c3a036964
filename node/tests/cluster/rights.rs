//! Who may speak for whom, and whose certificates are good no more.

use zdap_proto::control::{CallError, call_on_behalf_of};
use zdap_proto::identity::{Identity, Keypair, Subject};
use zdap_proto::message::{Answer, Invited, Request, Sought, Wanted};
use zdap_proto::name::RequestId;
use zdap_proto::refusal::{Refusal, RefusalKind};

use crate::by_hand::enrol;
use crate::client::{Client, order};
use crate::together::Together;
use crate::world::Machine;

#[tokio::test]
async fn users_and_admins_may_not_ask_what_nodes_ask_each_other() {
    let node = Machine::new("a").start().await;
    let (ada, root) = (node.user("ada").await, node.admin("root").await);
    let time = "2026-11-22T04:45:00Z".parse().unwrap();
    let between_nodes = [
        Request::Find(Sought::Clone("orders-k3v9x2mq".parse().unwrap())),
        Request::Offer {
            resource: "orders".parse().unwrap(),
            snapshot: time,
        },
        Request::Reserve {
            resource: "orders".parse().unwrap(),
            snapshot: time,
            request_id: RequestId::random(),
            at_most: 1.0,
        },
    ];
    for client in [&ada, &root] {
        for request in &between_nodes {
            let refusal = client.ask(request).await.unwrap_err();
            assert_eq!(refusal.kind, RefusalKind::Forbidden);
            assert!(refusal.message.ends_with("only nodes may"), "{refusal}");
        }
        let bob = Subject::User("bob".parse().unwrap());
        let refusal = on_behalf_of(client, &bob, &Request::ListResources)
            .await
            .unwrap_err();
        assert_eq!(
            refusal.message,
            format!(
                "{} may not ask on behalf of somebody else",
                client.identity.subject()
            )
        );
    }
}

#[tokio::test]
async fn what_a_node_asks_on_behalf_of_somebody_has_their_rights_and_is_answered_by_one_node() {
    let together = Together::start(&["a", "b"]).await;
    let node = together.nodes[0].operator().await;
    let ada = Subject::User("ada".parse().unwrap());
    for _ in 0..3 {
        let answer = on_behalf_of(&node, &ada, &order(&RequestId::random())).await;
        let Answer::Created {
            clone, considered, ..
        } = answer.unwrap()
        else {
            panic!("a clone")
        };
        assert_eq!((clone.owner.as_str(), clone.node.as_str()), ("ada", "a"));
        assert_eq!(considered, []);
    }
    assert_eq!(together.clones().await, [3, 0]);
    let everybodys = Request::ListClones {
        resource: None,
        all_owners: true,
    };
    let refusal = on_behalf_of(&node, &ada, &everybodys).await.unwrap_err();
    assert_eq!(refusal.message, "user `ada` may not list everybody's clones");
    let Answer::Nodes(nodes) = on_behalf_of(&node, &ada, &Request::ListNodes).await.unwrap() else {
        panic!("nodes")
    };
    assert_eq!(nodes.len(), 1);
}

#[tokio::test]
async fn who_is_revoked_at_one_node_gets_nothing_at_any_and_neither_do_their_relays() {
    let together = Together::start(&["a", "b"]).await;
    let [a, b] = together.nodes.as_slice() else {
        panic!("two")
    };
    let (ada, bob) = (a.user("ada").await, a.user("bob").await);
    let clone = ada.create_at("a").await.id;
    let relay = ada.relay(&clone).await;
    let name: zdap_proto::name::UserName = "ada".parse().unwrap();
    let revoke = Request::Revoke { user: name.clone() };
    let refusal = bob.ask(&revoke).await.unwrap_err();
    assert_eq!(refusal.message, "user `bob` may not revoke a user");

    b.admin("root").await.ask(&revoke).await.unwrap();
    a.until("ada is revoked", |view| {
        let seen = view.members.get(&"b".parse().unwrap());
        let catalog = seen.and_then(|seen| seen.catalog.as_ref());
        catalog.is_some_and(|catalog| catalog.facts.revoked.contains(&name))
    })
    .await;
    let words = "the certificates of `ada` are revoked";
    // The connections are older than the revocation.
    let refusal = ada.ask(&Request::ListResources).await.unwrap_err();
    assert_eq!(
        (refusal.kind, refusal.message.as_str()),
        (RefusalKind::Forbidden, words)
    );
    for node in [a, b] {
        for identity in [&ada.identity, &relay] {
            let refusal = node.echo(identity, &clone).await.unwrap_err();
            assert_eq!(refusal.message, words);
        }
    }
    bob.create().await;
    let again = Request::IssueToken {
        invited: Invited::User {
            name: Some(name),
            admin: false,
        },
        ttl_seconds: 60,
    };
    let refusal = a.admin("root").await.ask(&again).await.unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Conflict);
}

#[tokio::test]
async fn whoever_has_a_certificate_gets_a_fresh_one_for_the_same_rights() {
    let node = Machine::new("a").start().await;
    let ada = node.user("ada").await;
    let clone = ada.create().await.id;
    let relay = node.client(ada.relay(&clone).await).await;
    for client in [&ada, &node.admin("root").await, &relay] {
        let keypair = Keypair::generate().unwrap();
        let request = Request::Renew {
            public_key: keypair.public_key(),
        };
        let answer = client.ask(&request).await.unwrap();
        let Answer::Certificate(certificate) = answer else {
            panic!("{answer:?}")
        };
        let fresh = Identity::new(keypair, &certificate).unwrap();
        assert_eq!(fresh.subject(), client.identity.subject());
        assert!(fresh.expires_at() >= client.identity.expires_at());
    }
    let request = Request::Renew {
        public_key: Keypair::generate().unwrap().public_key(),
    };
    let refusal = node.operator().await.ask(&request).await.unwrap_err();
    assert_eq!(refusal.message, "node `a` renews its certificate by itself");
}

#[tokio::test]
async fn a_token_without_a_name_gives_no_name_that_is_somebodys_at_another_node() {
    let together = Together::start(&["a", "b"]).await;
    let [a, b] = together.nodes.as_slice() else {
        panic!("two")
    };
    let anybody = || Invited::User {
        name: None,
        admin: false,
    };
    let wanted = || Wanted::User {
        name: Some("ada".parse().unwrap()),
    };
    enrol(&a.token(anybody()).await, wanted()).await.unwrap();
    b.until("ada is known", |view| {
        let seen = view.members.get(&"a".parse().unwrap());
        let catalog = seen.and_then(|seen| seen.catalog.as_ref());
        catalog.is_some_and(|catalog| catalog.facts.users.contains(&"ada".parse().unwrap()))
    })
    .await;
    let reason = enrol(&b.token(anybody()).await, wanted()).await.unwrap_err();
    assert_eq!(reason, "the name `ada` is somebody's already");
}

async fn on_behalf_of(client: &Client, subject: &Subject, request: &Request) -> Result<Answer, Refusal> {
    call_on_behalf_of(&client.connection, subject, request, |_| {})
        .await
        .map_err(|error| match error {
            CallError::Refused(refusal) => refusal,
            other @ (CallError::Lost(_) | CallError::Misunderstood(_)) => panic!("{other:?}"),
        })
}
