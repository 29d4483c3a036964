//! Nodes that are gone: they are named, and nobody waits for them for long.

use std::time::Duration;

use tokio::time::timeout;
use zdap_node::cluster::View;
use zdap_node::gossip::MemberState;
use zdap_proto::message::{Answer, Invited, Request, Wanted};
use zdap_proto::name::{CloneId, RequestId};
use zdap_proto::refusal::RefusalKind;

use crate::by_hand::enrol;
use crate::client::{created, order, order_at, retry};
use crate::together::Together;

#[tokio::test]
async fn a_node_that_is_gone_is_named_and_the_rest_is_shown() {
    let mut together = Together::start(&["a", "b", "c"]).await;
    let ada = together.nodes[0].user("ada").await;
    let here = ada.create_at("a").await.id;
    let lost = ada.create_at("c").await.id;
    together
        .until("c's clone is known", |view| {
            let seen = view.members.get(&"c".parse().unwrap());
            let heard = seen.and_then(|seen| seen.digest.as_ref());
            heard.is_some_and(|heard| heard.digest.report.clones == 1)
        })
        .await;
    together.nodes.pop().unwrap().kill();

    // At once, when nobody knows yet; and when all do.
    for is_known in [false, true] {
        if is_known {
            together
                .until("c is down", |view| {
                    let seen = view.members.get(&"c".parse().unwrap());
                    seen.is_some_and(|seen| seen.state == MemberState::Down)
                })
                .await;
        }
        let request = Request::ListClones {
            resource: None,
            all_owners: false,
        };
        let answer = timeout(PATIENCE, ada.ask(&request)).await.unwrap().unwrap();
        let Answer::Clones { clones, silent } = answer else {
            panic!("{answer:?}")
        };
        assert_eq!(clones.iter().map(|clone| &clone.id).collect::<Vec<_>>(), [&here]);
        let names: Vec<_> = silent.iter().map(|silent| silent.node.as_str()).collect();
        assert_eq!(names, ["c"], "{silent:?}");

        // Of a clone that may be there it is not said that it is gone.
        let nowhere = CloneId::random(&"orders".parse().unwrap());
        let destroy = Request::DestroyClone { clone: nowhere };
        let refusal = timeout(PATIENCE, ada.ask(&destroy)).await.unwrap().unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::Unavailable);
        assert!(refusal.message.contains("\n  c: "), "{refusal}");
    }
    let destroy = Request::DestroyClone { clone: lost.clone() };
    let refusal = ada.ask(&destroy).await.unwrap_err();
    assert_eq!(
        (refusal.kind, refusal.message.as_str()),
        (RefusalKind::Unavailable, "node `c` is down")
    );
    let refusal = together.nodes[0].echo(&ada.identity, &lost).await.unwrap_err();
    assert_eq!(
        (refusal.kind, refusal.message.as_str()),
        (RefusalKind::Unavailable, "node `c` is down")
    );
    ada.create().await;
}

#[tokio::test]
async fn what_a_node_had_that_is_gone_is_still_its_own_when_the_others_have_restarted() {
    let mut together = Together::start(&["a", "b", "c"]).await;
    let anybody = || Invited::User {
        name: None,
        admin: false,
    };
    let wanted = |name: &str| Wanted::User {
        name: Some(name.parse().unwrap()),
    };
    let (_, enrolled) = {
        let token = together.nodes[2].token(anybody()).await;
        enrol(&token, wanted("ada")).await.unwrap()
    };
    assert_eq!(enrolled.nodes.len(), 3);
    let lost = together.nodes[2].user("ada").await.create_at("c").await.id;
    let state = together.machines[1].state().to_owned();
    let has = |file: &str, word: &str| {
        let text = std::fs::read_to_string(state.join(file)).unwrap_or_default();
        text.split_whitespace().any(|written| written == word)
    };
    while !(has("users", "ada") && has("members", "a") && has("members", "c")) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    for node in together.nodes.drain(..) {
        node.kill();
    }

    let b = together.machines[1].start_apart(0, None).await.unwrap();
    let ada = b.user("ada").await;
    let everything = Request::ListClones {
        resource: None,
        all_owners: false,
    };
    let Answer::Clones { silent, .. } = ada.ask(&everything).await.unwrap() else {
        panic!("clones")
    };
    let names: Vec<_> = silent.iter().map(|silent| silent.node.as_str()).collect();
    assert_eq!(names, ["a", "c"]);
    let refusal = ada.ask(&Request::DestroyClone { clone: lost }).await.unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Unavailable);
    assert!(refusal.message.contains("\n  c: "), "{refusal}");

    let reason = enrol(&b.token(anybody()).await, wanted("ada")).await.unwrap_err();
    assert_eq!(reason, "the name `ada` is somebody's already");
    let reason = enrol(&b.token(anybody()).await, wanted("bob")).await.unwrap_err();
    assert!(
        reason.starts_with("the name `bob` may be somebody's already: node `a` is down"),
        "{reason}"
    );
}

#[tokio::test]
async fn a_node_that_stops_finishes_what_it_does_before_it_leaves() {
    let mut together = Together::start(&["a", "b"]).await;
    let ada = together.nodes[1].user("ada").await;
    together.machines[1].faults.set_latency(Duration::from_secs(1));
    let (request, state) = (order_at("b", &RequestId::random()), |view: &View| {
        let seen = &view.members[&"b".parse().unwrap()];
        let digest = seen.digest.as_ref().unwrap();
        (seen.state, digest.digest.report.flags.draining)
    });
    let (a, b) = {
        let b = together.nodes.pop().unwrap();
        (together.nodes.pop().unwrap(), b)
    };
    let stop = async {
        together.machines[1].until(|clones| !clones.is_empty()).await;
        b.stop().await;
    };
    let seen = a.until("b takes no more and is there", |view| {
        state(view) == (MemberState::Alive, true)
    });
    let (clone, (), ()) = tokio::join!(ada.ask(&request), stop, seen);
    created(clone.unwrap());
    a.until("b is down", |view| state(view).0 == MemberState::Down)
        .await;
}

#[tokio::test]
async fn attaches_go_on_when_a_node_dies_in_the_middle_and_what_it_made_is_taken_back() {
    let mut together = Together::start(&["a", "b", "c"]).await;
    let ada = together.nodes[0].user("ada").await;
    together.machines[2].faults.set_latency(Duration::from_secs(20));
    // Whichever goes to `c` hangs there.
    let ids: Vec<_> = (0..6).map(|_| RequestId::random()).collect();
    let killed = async {
        together.machines[2].until(|clones| !clones.is_empty()).await;
    };
    let asks = ids.iter().map(|id| {
        let ada = &ada;
        async move { created(ada.ask(&order(id)).await.unwrap()) }
    });
    let all = futures_util::future::join_all(asks);
    tokio::pin!(all);
    tokio::select! {
        clones = &mut all => panic!("{clones:?}"),
        () = killed => {}
        () = tokio::time::sleep(Duration::from_secs(1)) => {}
    }
    let c = together.nodes.pop().unwrap();
    let port = c.port();
    c.kill();
    let clones = timeout(PATIENCE, all).await.unwrap();
    assert!(
        clones.iter().all(|clone| clone.node.as_str() != "c"),
        "{clones:?}"
    );

    together.machines[2].faults.set_latency(Duration::ZERO);
    let c = together.machines[2].start_apart(port, None).await.unwrap();
    c.until("all are back", |view| {
        let alive = view.members.values();
        alive.filter(|seen| seen.state == MemberState::Alive).count() == 3
    })
    .await;
    together.machines[2].until(<[_]>::is_empty).await;
    for (id, clone) in ids.iter().zip(clones) {
        let again = created(ada.ask(&retry(order(id))).await.unwrap());
        assert_eq!(again.id, clone.id);
    }
}

/// Until a node that was killed is down, and the deadline of a question.
const PATIENCE: Duration = Duration::from_secs(20);
