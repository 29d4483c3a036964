//! Nodes that are gone for good, as somebody says.

use zdap_node::gossip::MemberState;
use zdap_proto::message::{Answer, Invited, Request, SilentNode, Wanted};
use zdap_proto::name::CloneId;
use zdap_proto::refusal::RefusalKind;

use crate::together::Together;
use crate::world::{Client, Machine, enrol};

fn forget(node: &str) -> Request {
    Request::Forget {
        node: node.parse().unwrap(),
    }
}

async fn silent(client: &Client) -> Vec<SilentNode> {
    let request = Request::ListClones {
        resource: None,
        all_owners: false,
    };
    let Answer::Clones { silent, .. } = client.ask(&request).await.unwrap() else {
        panic!("clones")
    };
    silent
}

/// Kills the last node, and waits until it is down everywhere.
async fn kill_last(together: &mut Together) {
    let name = together.machines.last().unwrap().name();
    together.nodes.pop().unwrap().kill();
    let is_down = |state: Option<MemberState>| state == Some(MemberState::Down);
    together
        .until("the last is down", |view| {
            let seen = view.members.get(&name.parse().unwrap());
            is_down(seen.map(|seen| seen.state))
        })
        .await;
}

#[tokio::test]
async fn a_node_that_is_gone_for_good_is_waited_for_by_nobody_and_its_name_is_free() {
    let mut together = Together::start(&["a", "b", "c"]).await;
    let ada = together.nodes[1].user("ada").await;
    ada.create_at("c").await;
    kill_last(&mut together).await;

    let operator = together.nodes[0].operator().await;
    assert_eq!(operator.ask(&forget("c")).await, Ok(Answer::Forgotten));
    together
        .until("nobody knows c", |view| {
            !view.members.contains_key(&"c".parse().unwrap())
        })
        .await;
    assert_eq!(silent(&ada).await, []);
    let nowhere = CloneId::random(&"orders".parse().unwrap());
    let destroyed = ada.ask(&Request::DestroyClone { clone: nowhere }).await;
    assert_eq!(
        destroyed,
        Ok(Answer::Destroyed),
        "no node is left that might have it"
    );
    let anybody = Invited::User {
        name: None,
        admin: false,
    };
    let wanted = Wanted::User {
        name: Some("bob".parse().unwrap()),
    };
    let token = together.nodes[1].token(anybody).await;
    enrol(&token, wanted).await.unwrap();

    // It is forgotten up to that life only.
    let token = together.nodes[0].token(Invited::Node).await;
    let another = Machine::new("c");
    let node = another.start_apart(0, Some(&token)).await.unwrap();
    (together.machines[2], _) = (another, together.nodes.push(node));
    let is_alive = |view: &zdap_node::cluster::View| {
        let seen = view.members.get(&"c".parse().unwrap());
        seen.is_some_and(|seen| seen.state == MemberState::Alive)
    };
    together.until("the new c is there", is_alive).await;
    kill_last(&mut together).await;
    let names: Vec<_> = silent(&ada).await.into_iter().map(|silent| silent.node).collect();
    assert_eq!(names, ["c".parse().unwrap()]);
}

#[tokio::test]
async fn a_node_that_is_forgotten_stays_so_over_a_restart_of_the_others_and_is_a_member_when_it_comes_back() {
    let mut together = Together::start(&["a", "b", "c"]).await;
    let ada = together.nodes[0].user("ada").await;
    let clone = ada.create_at("c").await;
    kill_last(&mut together).await;
    let operator = together.nodes[0].operator().await;
    operator.ask(&forget("c")).await.unwrap();
    let members = together.machines[0].state().join("members");
    let is_written = || std::fs::read_to_string(&members).unwrap().contains(" c ");
    while is_written() {
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    together.nodes.remove(0).kill();
    let a = together.machines[0].start_apart(0, None).await.unwrap();
    together.nodes.insert(0, a);
    together
        .until("a and b know each other and not c", |view| {
            let names: Vec<&str> = view.members.keys().map(|name| name.as_str()).collect();
            let is_alive = |seen: &zdap_node::cluster::Seen| seen.state == MemberState::Alive;
            names == ["a", "b"] && view.members.values().all(is_alive)
        })
        .await;

    let c = together.machines[2].start_apart(0, None).await.unwrap();
    together.nodes.push(c);
    together
        .until("c is there again", |view| {
            let seen = view.members.get(&"c".parse().unwrap());
            seen.is_some_and(|seen| seen.state == MemberState::Alive)
        })
        .await;
    let ada = together.nodes[0].user("ada").await;
    let request = Request::ListClones {
        resource: None,
        all_owners: false,
    };
    let Answer::Clones { clones, silent } = ada.ask(&request).await.unwrap() else {
        panic!("clones")
    };
    assert_eq!(silent, []);
    assert_eq!(
        clones.iter().map(|clone| &clone.id).collect::<Vec<_>>(),
        [&clone.id]
    );
}

#[tokio::test]
async fn only_an_admin_has_a_node_forgotten_and_only_one_that_is_down() {
    let together = Together::start(&["a", "b"]).await;
    let ada = together.nodes[0].user("ada").await;
    let refusal = ada.ask(&forget("b")).await.unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Forbidden, "{refusal}");
    let operator = together.nodes[0].operator().await;
    for (name, kind, message) in [
        ("b", RefusalKind::Conflict, "node `b` is not down"),
        ("a", RefusalKind::Conflict, "node `a` is this very node"),
        ("d", RefusalKind::NotFound, "there is no node `d`; there are a, b"),
    ] {
        let refusal = operator.ask(&forget(name)).await.unwrap_err();
        assert_eq!((refusal.kind, refusal.message.as_str()), (kind, message));
    }
}
