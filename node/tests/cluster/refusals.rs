//! What whoever is connected may not ask.

use zdap_proto::identity::Keypair;
use zdap_proto::message::{Answer, Invited, Request};
use zdap_proto::name::{CloneId, RequestId};
use zdap_proto::refusal::{Refusal, RefusalKind};

use crate::client::order;
use crate::world::Machine;

#[tokio::test]
async fn a_user_can_do_nothing_with_the_clone_of_another() {
    let machine = Machine::new("a");
    let node = machine.start().await;
    let (ada, bob) = (node.user("ada").await, node.user("bob").await);
    let clone = ada.create().await;
    let before = machine.clones().await;
    let expected = format!("user `bob` has no clone `{}`", clone.id);
    let mut refusals = vec![node.echo(&bob.identity, &clone.id).await.unwrap_err()];
    for request in concerning(&clone.id) {
        refusals.push(bob.ask(&request).await.unwrap_err());
    }
    for refusal in refusals {
        assert_eq!(
            (refusal.kind, refusal.message.as_str()),
            (RefusalKind::Forbidden, expected.as_str())
        );
    }
    assert_eq!(machine.clones().await, before);
    node.echo(&ada.identity, &clone.id).await.unwrap();
}

/// `DestroyClone` alone says that what is gone is gone, so that it can be tried again; the last part of an id is random.
#[tokio::test]
async fn a_user_does_not_learn_whether_the_clone_of_another_exists() {
    let node = Machine::new("a").start().await;
    let (ada, bob) = (node.user("ada").await, node.user("bob").await);
    let there = ada.create().await.id;
    let nowhere = CloneId::random(&"orders".parse().unwrap());
    let in_same_words = |a: Refusal, b: Refusal| {
        let b = Refusal {
            message: b.message.replace(nowhere.as_str(), there.as_str()),
            ..b
        };
        assert_eq!(a, b);
    };
    let tunnel = node.echo(&bob.identity, &there).await.unwrap_err();
    in_same_words(tunnel, node.echo(&bob.identity, &nowhere).await.unwrap_err());
    for (request, other) in concerning(&there).into_iter().zip(concerning(&nowhere)).skip(1) {
        let refusal = bob.ask(&request).await.unwrap_err();
        in_same_words(refusal, bob.ask(&other).await.unwrap_err());
    }
    assert_eq!(listed(bob.ask(&list(false)).await), 0);
}

#[tokio::test]
async fn a_user_may_not_do_what_concerns_everybody() {
    let machine = Machine::new("a");
    let node = machine.start().await;
    let (ada, bob) = (node.user("ada").await, node.user("bob").await);
    ada.create().await;
    let before = machine.clones().await;
    for (request, what) in for_admins() {
        let refusal = bob.ask(&request).await.unwrap_err();
        assert_eq!(
            (refusal.kind, refusal.message),
            (RefusalKind::Forbidden, format!("user `bob` may not {what}"))
        );
        assert!(refusal.hint.is_some_and(|hint| hint.contains("admin")));
    }
    let refusal = bob.ask(&token(Invited::Node)).await.unwrap_err();
    assert_eq!(refusal.message, "user `bob` may not make tokens");
    assert_eq!(machine.clones().await, before);
    assert_eq!(machine.snapshots().await, 1);
}

#[tokio::test]
async fn an_admin_may_do_everything_but_hand_over_the_ca() {
    let machine = Machine::new("a");
    let node = machine.start().await;
    let (ada, admin) = (node.user("ada").await, node.admin("root").await);
    let clone = ada.create().await;
    let refusal = admin.ask(&token(Invited::Node)).await.unwrap_err();
    assert_eq!(
        (refusal.kind, refusal.message.as_str()),
        (
            RefusalKind::Forbidden,
            "a token for a node hands over the cluster's CA; only nodes make one"
        )
    );
    assert_eq!(listed(admin.ask(&list(true)).await), 1);
    node.echo(&admin.identity, &clone.id).await.unwrap();
    for request in concerning(&clone.id).into_iter().rev() {
        admin.ask(&request).await.unwrap();
    }
    assert_eq!(machine.clones().await, []);
    for (request, what) in for_admins() {
        if let Err(refusal) = admin.ask(&request).await {
            panic!("{what}: {refusal}");
        }
    }
}

#[tokio::test]
async fn a_relays_certificate_opens_its_one_clone_and_asks_for_nothing() {
    let machine = Machine::new("a");
    let node = machine.start().await;
    let ada = node.user("ada").await;
    let (own, other) = (ada.create().await.id, ada.create().await.id);
    let identity = ada.relay(&own).await;
    node.echo(&identity, &own).await.unwrap();
    let refusal = node.echo(&identity, &other).await.unwrap_err();
    assert_eq!(
        (refusal.kind, refusal.message),
        (
            RefusalKind::Forbidden,
            format!("relay of `{own}` for `ada` has no clone `{other}`")
        )
    );

    let relay = node.client(identity.clone()).await;
    let mut requests = vec![
        Request::ListNodes,
        Request::ListResources,
        Request::ListSnapshots { resource: None },
        list(false),
        order(&RequestId::random()),
        Request::FetchRelay {
            architecture: std::env::consts::ARCH.to_owned(),
        },
    ];
    requests.extend(concerning(&own));
    requests.extend(for_admins().map(|(request, _)| request));
    for request in requests {
        let refusal = relay.ask(&request).await.unwrap_err();
        assert_eq!(
            (refusal.kind, refusal.message),
            (
                RefusalKind::Forbidden,
                format!("the relay of `{own}` may only reach its clone's database")
            )
        );
    }

    ada.ask(&Request::DestroyClone { clone: own.clone() })
        .await
        .unwrap();
    let refusal = node.echo(&identity, &own).await.unwrap_err();
    assert_eq!(
        (refusal.kind, refusal.message),
        (
            RefusalKind::NotFound,
            format!("there is no clone `{own}` any more")
        )
    );
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let node = Machine::new("a").start().await;
    let ada = node.user("ada").await;
    let unknown = Request::CreateClone {
        resource: "users".parse().unwrap(),
        snapshot: None,
        node: None,
        owner: None,
        request_id: RequestId::random(),
        attempt: 0,
    };
    let refusal = ada.ask(&unknown).await.unwrap_err();
    assert_eq!(
        refusal.message,
        "there is no resource `users`; this node has orders"
    );
    let too_old = Request::CreateClone {
        resource: "orders".parse().unwrap(),
        snapshot: Some("1999-01-01T00:00:00Z".parse().unwrap()),
        node: None,
        owner: None,
        request_id: RequestId::random(),
        attempt: 0,
    };
    let refusal = ada.ask(&too_old).await.unwrap_err();
    assert_eq!(
        refusal.message,
        "`orders` has no snapshot of 1999-01-01T00:00:00Z"
    );
    let request = Request::FetchRelay {
        architecture: "pdp11".to_owned(),
    };
    let refusal = ada.ask(&request).await.unwrap_err();
    assert!(refusal.message.ends_with("not for `pdp11`"), "{refusal}");
    let request = Request::IssueToken {
        invited: Invited::Node,
        ttl_seconds: 0,
    };
    let refusal = node.operator().await.ask(&request).await.unwrap_err();
    assert_eq!(refusal.message, "a token cannot be good for 0 seconds");
}

/// Destroy, certify, account.
fn concerning(clone: &CloneId) -> [Request; 3] {
    [
        Request::DestroyClone { clone: clone.clone() },
        Request::IssueRelay {
            clone: clone.clone(),
            public_key: Keypair::generate().unwrap().public_key(),
        },
        Request::Account { clone: clone.clone() },
    ]
}

/// What takes an admin, and in which words it is refused.
fn for_admins() -> [(Request, &'static str); 5] {
    let resource = "orders".parse().unwrap();
    let for_another = Request::CreateClone {
        resource: "orders".parse().unwrap(),
        snapshot: None,
        node: None,
        owner: Some("ada".parse().unwrap()),
        request_id: RequestId::random(),
        attempt: 0,
    };
    let restore = Request::CreateSnapshot {
        resource,
        use_existing: false,
    };
    let user = Invited::User {
        name: None,
        admin: false,
    };
    [
        (list(true), "list everybody's clones"),
        (for_another, "make clones for others"),
        (restore, "restore a resource"),
        (Request::DestroyAll { bases: true }, "destroy everybody's clones"),
        (token(user), "make tokens"),
    ]
}

fn list(all_owners: bool) -> Request {
    Request::ListClones {
        resource: None,
        all_owners,
    }
}

fn token(invited: Invited) -> Request {
    Request::IssueToken {
        invited,
        ttl_seconds: 60,
    }
}

fn listed(answer: Result<Answer, Refusal>) -> usize {
    let Ok(Answer::Clones { clones, .. }) = answer else {
        panic!("{answer:?}")
    };
    clones.len()
}
