//! Clones that are made, found and given back through any node.

use std::time::Duration;

use futures_util::future::join_all;
use zdap_node::cluster::View;
use zdap_proto::message::{Answer, Considered, NodeState, Outcome, Request, Stages};
use zdap_proto::name::RequestId;
use zdap_proto::refusal::RefusalKind;

use crate::client::{created, order, order_at, retry};
use crate::together::Together;
use crate::world::Machine;

#[tokio::test]
async fn clones_that_are_asked_of_one_node_spread_over_all_and_every_node_answers_for_all() {
    let together = Together::start(&["a", "b", "c"]).await;
    let [a, b, c] = together.nodes.as_slice() else {
        panic!("three")
    };
    let ada = a.user("ada").await;
    let mut ids = Vec::new();
    for _ in 0..6 {
        let answer = ada.ask(&order(&RequestId::random())).await.unwrap();
        let Answer::Created {
            clone,
            stages,
            considered,
        } = answer
        else {
            panic!("{answer:?}")
        };
        check(&stages, &considered, clone.node.as_str());
        ids.push(clone.id);
    }
    assert_eq!(together.clones().await, [2, 2, 2]);

    ids.sort();
    for node in [a, b, c] {
        let ada = node.user("ada").await;
        let request = Request::ListClones {
            resource: Some("orders".parse().unwrap()),
            all_owners: false,
        };
        let answer = ada.ask(&request).await.unwrap();
        let Answer::Clones { clones, silent } = answer else {
            panic!("{answer:?}")
        };
        let mut listed: Vec<_> = clones.into_iter().map(|clone| clone.id).collect();
        listed.sort();
        assert_eq!(listed, ids);
        assert_eq!(silent, []);

        let Answer::Resources(resources) = ada.ask(&Request::ListResources).await.unwrap() else {
            panic!("resources")
        };
        let mut nodes: Vec<_> = resources
            .iter()
            .map(|view| (view.node.as_str(), view.snapshots.len()))
            .collect();
        nodes.sort();
        assert_eq!(nodes, [("a", 1), ("b", 1), ("c", 1)]);
        let snapshots = Request::ListSnapshots { resource: None };
        let Answer::Snapshots(snapshots) = ada.ask(&snapshots).await.unwrap() else {
            panic!("snapshots")
        };
        assert_eq!(snapshots.len(), 3);
        let Answer::Nodes(nodes) = ada.ask(&Request::ListNodes).await.unwrap() else {
            panic!("nodes")
        };
        let states: Vec<_> = nodes
            .iter()
            .map(|view| (view.name.as_str(), view.state, view.resources.len()))
            .collect();
        assert_eq!(states, ["a", "b", "c"].map(|name| (name, NodeState::Alive, 1)));
    }

    let everywhere = c.user("ada").await;
    for clone in ids {
        everywhere.ask(&Request::DestroyClone { clone }).await.unwrap();
    }
    assert_eq!(together.clones().await, [0, 0, 0]);
}

/// One is chosen, all have said what they offer, and it took next to no time.
fn check(stages: &Stages, considered: &[Considered], chosen: &str) {
    let [first, others @ ..] = considered else {
        panic!("none was considered")
    };
    assert_eq!((first.node.as_str(), &first.outcome), (chosen, &Outcome::Chosen));
    assert_eq!(others.len(), 2, "{considered:?}");
    for other in considered {
        assert!(
            other.expected.is_some() && other.offered.is_some(),
            "{considered:?}"
        );
    }
    assert!(others.iter().all(|other| other.outcome == Outcome::Passed));
    let Stages {
        place_ms,
        reserve_ms,
        total_ms,
        ..
    } = stages;
    assert!(place_ms + reserve_ms <= *total_ms, "{stages:?}");
}

#[tokio::test]
async fn what_concerns_one_clone_is_answered_through_any_node() {
    let together = Together::start(&["a", "b"]).await;
    let [a, b] = together.nodes.as_slice() else {
        panic!("two")
    };
    let ada = a.user("ada").await;
    let clone = ada.create_at("b").await;
    assert_eq!(clone.node.as_str(), "b");
    assert_eq!(together.clones().await, [0, 1]);
    let account = Request::Account {
        clone: clone.id.clone(),
    };
    let Answer::Account(account) = ada.ask(&account).await.unwrap() else {
        panic!("account")
    };
    assert_eq!(account.password.as_deref(), Some("secret"));
    let relay = ada.relay(&clone.id).await;
    b.echo(&relay, &clone.id).await.unwrap();

    let clone_of_others = together.nodes[0].user("bob").await;
    for request in [
        Request::Account {
            clone: clone.id.clone(),
        },
        Request::DestroyClone {
            clone: clone.id.clone(),
        },
    ] {
        let refusal = clone_of_others.ask(&request).await.unwrap_err();
        assert_eq!(
            (refusal.kind, refusal.message),
            (
                RefusalKind::Forbidden,
                format!("user `bob` has no clone `{}`", clone.id)
            )
        );
    }
    assert_eq!(together.clones().await, [0, 1]);
    // Whoever may do anything may do so through any node too.
    let root = a.admin("root").await;
    root.ask(&Request::DestroyClone { clone: clone.id })
        .await
        .unwrap();
    assert_eq!(together.clones().await, [0, 0]);
}

#[tokio::test]
async fn a_retry_through_another_node_makes_no_second_clone() {
    let together = Together::start(&["a", "b", "c"]).await;
    let request = order(&RequestId::random());
    let first = created(together.nodes[0].user("ada").await.ask(&request).await.unwrap());
    for node in &together.nodes {
        let ada = node.user("ada").await;
        let again = created(ada.ask(&retry(request.clone())).await.unwrap());
        assert_eq!(again.id, first.id);
    }
    assert_eq!(together.clones().await.iter().sum::<usize>(), 1);
}

#[tokio::test]
async fn a_retry_while_the_first_node_is_still_at_it_waits_for_the_same_clone() {
    let together = Together::start(&["a", "b", "c"]).await;
    for machine in &together.machines {
        machine.faults.set_latency(Duration::from_millis(100));
    }
    let request = order(&RequestId::random());
    let a = together.nodes[0].user("ada").await;
    let b = together.nodes[1].user("ada").await;
    let later = async {
        // The first node has taken the request when it has answered what was asked after it.
        a.ask(&Request::ListNodes).await.unwrap();
        b.ask(&retry(request.clone())).await
    };
    let (first, second) = tokio::join!(a.ask(&request), later);
    assert_eq!(created(first.unwrap()).id, created(second.unwrap()).id);
    assert_eq!(together.clones().await.iter().sum::<usize>(), 1);
}

#[tokio::test]
async fn a_clone_is_made_where_it_is_wanted_or_nowhere() {
    let together = Together::start(&["a", "b"]).await;
    let ada = together.nodes[0].user("ada").await;
    for _ in 0..3 {
        assert_eq!(ada.create_at("b").await.node.as_str(), "b");
    }
    let refusal = ada.ask(&order_at("x", &RequestId::random())).await.unwrap_err();
    assert_eq!(
        (refusal.kind, refusal.message.as_str()),
        (
            RefusalKind::NotFound,
            "no node can host `orders`\n  x: there is no node of this name"
        )
    );
    let mut unknown = order(&RequestId::random());
    if let Request::CreateClone { resource, .. } = &mut unknown {
        *resource = "stock".parse().unwrap();
    }
    let refusal = ada.ask(&unknown).await.unwrap_err();
    assert_eq!(
        (refusal.kind, refusal.message.as_str()),
        (
            RefusalKind::NotFound,
            "there is no resource `stock`; the nodes have orders"
        )
    );
    assert_eq!(together.clones().await, [0, 3]);
}

#[tokio::test]
async fn a_node_that_is_drained_gets_no_clones_until_it_is_not() {
    let together = Together::start(&["a", "b"]).await;
    let drain = async |name: usize, is_draining| {
        let root = together.nodes[name].admin("root").await;
        root.ask(&Request::Drain { is_draining }).await.unwrap();
    };
    drain(1, true).await;
    let drained = |name: &'static str, wanted: bool| {
        move |view: &View| {
            let seen = view.members.get(&name.parse().unwrap());
            let heard = seen.and_then(|seen| seen.digest.as_ref());
            heard.is_some_and(|heard| heard.digest.report.flags.draining == wanted)
        }
    };
    together.until("b is drained", drained("b", true)).await;
    let ada = together.nodes[0].user("ada").await;
    for _ in 0..3 {
        ada.create().await;
    }
    assert_eq!(together.clones().await, [3, 0]);
    let refusal = ada.ask(&order_at("b", &RequestId::random())).await.unwrap_err();
    assert_eq!(
        (refusal.kind, refusal.message.as_str()),
        (
            RefusalKind::Full,
            "no node can host `orders`\n  b: is being drained"
        )
    );
    let Answer::Nodes(nodes) = ada.ask(&Request::ListNodes).await.unwrap() else {
        panic!("nodes")
    };
    assert_eq!(
        nodes.iter().map(|view| view.state).collect::<Vec<_>>(),
        [NodeState::Alive, NodeState::Draining]
    );

    drain(0, true).await;
    together.until("a is drained", drained("a", true)).await;
    let refusal = ada.ask(&order(&RequestId::random())).await.unwrap_err();
    assert_eq!(
        (refusal.kind, refusal.message.as_str()),
        (
            RefusalKind::Full,
            "no node can host `orders`\n  a: is being drained\n  b: is being drained"
        )
    );

    drain(1, false).await;
    together.until("b is back", drained("b", false)).await;
    assert_eq!(ada.create().await.node.as_str(), "b");
}

#[tokio::test]
async fn nobody_has_more_clones_than_are_allowed_on_all_nodes_together() {
    let machines = ["a", "b"].map(|name| Machine::new(name).with_setting("limits: {clones_per_user: 2}"));
    let together = Together::start_on(machines.into()).await;
    for node in &together.nodes {
        node.user("ada").await.create().await;
    }
    for node in &together.nodes {
        let ada = node.user("ada").await;
        let refusal = ada.ask(&order(&RequestId::random())).await.unwrap_err();
        assert_eq!(
            (refusal.kind, refusal.message.as_str()),
            (
                RefusalKind::Conflict,
                "`ada` has 2 clones of `orders` already, as many as are allowed"
            )
        );
    }
    together.nodes[0].user("bob").await.create().await;
}

#[tokio::test]
async fn of_many_requests_at_once_as_many_are_met_as_are_allowed_and_the_others_are_not_tried_elsewhere() {
    let limited = Machine::new("a").with_setting("limits: {clones_per_user: 2}");
    let together = Together::start_on(vec![limited, Machine::new("b")]).await;
    let ada = together.nodes[0].user("ada").await;
    let asks = (0..6).map(|_| async { ada.ask(&order(&RequestId::random())).await });
    let answers = join_all(asks).await;
    let refused: Vec<_> = answers.into_iter().filter_map(Result::err).collect();
    assert_eq!(refused.len(), 4, "{refused:?}");
    assert!(
        refused
            .iter()
            .all(|refusal| refusal.kind == RefusalKind::Conflict)
    );
    assert_eq!(together.clones().await.iter().sum::<usize>(), 2);

    // Of `b`, which serves it without a limit.
    let bob = together.nodes[1].user("bob").await;
    while together.machines[0].clones().await.len() < 4 {
        if let Err(refusal) = bob.ask(&order_at("a", &RequestId::random())).await {
            assert_eq!(refusal.kind, RefusalKind::Conflict, "{refusal}");
            break;
        }
    }
    let of_bob = together.machines[0].clones().await;
    let of_bob = of_bob.iter().filter(|clone| clone.owner.as_str() == "bob");
    assert_eq!(of_bob.count(), 2);
}

#[tokio::test]
async fn a_node_whose_engine_is_broken_costs_nobody_a_clone() {
    let together = Together::start(&["a", "b"]).await;
    together.machines[1].runtime.exits_at_start("postgres:15");
    let ada = together.nodes[0].user("ada").await;
    for _ in 0..4 {
        assert_eq!(ada.create().await.node.as_str(), "a");
    }
    let refusal = ada.ask(&order_at("b", &RequestId::random())).await.unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Failed, "{refusal}");
    together.machines[0].runtime.exits_at_start("postgres:15");
    let refusal = ada.ask(&order(&RequestId::random())).await.unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Failed);
    for name in ["a", "b"] {
        assert!(refusal.message.contains(&format!("\n  {name}: ")), "{refusal}");
    }
    assert_eq!(together.clones().await, [4, 0]);
}

#[tokio::test]
async fn an_alias_is_that_of_the_node_that_is_asked_also_where_another_makes_the_clone() {
    let machines = vec![Machine::new("a").with_setting("alias: shop"), Machine::new("b")];
    let together = Together::start_on(machines).await;
    let ada = together.nodes[0].user("ada").await;
    let mut request = order_at("b", &RequestId::random());
    if let Request::CreateClone { resource, .. } = &mut request {
        *resource = "shop".parse().unwrap();
    }
    let first = created(ada.ask(&request).await.unwrap());
    assert_eq!(first.node.as_str(), "b");
    let again = created(ada.ask(&retry(request)).await.unwrap());
    assert_eq!(again.id, first.id);
}

#[tokio::test]
async fn a_hundred_requests_at_once_over_two_nodes_all_get_a_clone() {
    let together = Together::start(&["a", "b"]).await;
    let ada = together.nodes[0].user("ada").await;
    let bob = together.nodes[1].user("bob").await;
    let asks = (0..50).flat_map(|_| [ada.create(), bob.create()]);
    join_all(asks).await;
    let clones = together.clones().await;
    assert_eq!(clones.iter().sum::<usize>(), 100);
    assert!(clones.iter().all(|count| (45..=55).contains(count)), "{clones:?}");
}

#[tokio::test]
async fn a_retry_at_the_node_that_makes_the_clone_gives_the_one_that_the_first_try_leads_to() {
    a_retry_while_the_clone_is_in_the_making(2).await;
}

#[tokio::test]
async fn a_retry_at_another_node_gives_the_clone_that_the_first_try_leads_to() {
    a_retry_while_the_clone_is_in_the_making(1).await;
}

/// The database does not answer where the clone is made first, so that the first try goes on to another node; that takes
/// longer than nodes wait for each other's answers.
async fn a_retry_while_the_clone_is_in_the_making(at: usize) {
    let machines = ["a", "b", "c"].map(|name| Machine::new(name).with_setting("timeouts: {ready: 4s}"));
    let together = Together::start_on(machines.into()).await;
    let (ada, again) = (
        together.nodes[0].user("ada").await,
        together.nodes[at].user("ada").await,
    );
    // So that c is the best of the two that may.
    let drain = Request::Drain { is_draining: true };
    together.nodes[0].operator().await.ask(&drain).await.unwrap();
    ada.create_at("b").await;
    together
        .until("a is drained and b has a clone", |view| {
            let report = |name: &str| {
                let heard = view.members[&name.parse().unwrap()].digest.as_ref();
                heard.map(|heard| heard.digest.report.clone()).unwrap_or_default()
            };
            report("a").flags.draining && report("b").clones == 1
        })
        .await;

    let c = &together.machines[2];
    c.is_ready_when_started(false);
    let request = order(&RequestId::random());
    let once_more = retry(request.clone());
    let retried = async {
        c.until(|clones| clones.len() == 1).await;
        again.ask(&once_more).await
    };
    let recovers = async {
        c.until(|clones| clones.len() == 1).await;
        c.until(|clones| clones.is_empty()).await;
        c.is_ready_when_started(true);
    };
    let (first, retried, ()) = tokio::join!(ada.ask(&request), retried, recovers);
    let first = created(first.unwrap());
    assert_eq!(first.node.as_str(), "b");
    assert_eq!(created(retried.unwrap()).id, first.id);
    assert_eq!(together.clones().await, [0, 2, 0]);
}
