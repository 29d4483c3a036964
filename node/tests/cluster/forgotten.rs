//! Nodes that are gone for good, as somebody says.

use zdap_node::cluster::View;
use zdap_node::gossip::MemberState;
use zdap_proto::message::{Answer, Invited, Request, SilentNode, Wanted};
use zdap_proto::name::CloneId;
use zdap_proto::refusal::RefusalKind;
use zdap_proto::token::Token;

use crate::by_hand::enrol;
use crate::client::Client;
use crate::together::Together;
use crate::world::Machine;

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

fn state(view: &View, name: &str) -> Option<MemberState> {
    view.members.get(&name.parse().unwrap()).map(|seen| seen.state)
}

impl Together {
    /// Kills a node, and waits until it is down everywhere.
    async fn kill(&mut self, name: &str) {
        let at = self.at(name);
        self.nodes.remove(at).kill();
        self.machines.remove(at);
        self.until("it is down", |view| state(view, name) == Some(MemberState::Down))
            .await;
    }

    fn at(&self, name: &str) -> usize {
        let mut machines = self.machines.iter();
        machines.position(|machine| machine.name() == name).unwrap()
    }

    async fn forget(&self, name: &str) {
        let operator = self.nodes[0].operator().await;
        for _ in 0..2 {
            assert_eq!(operator.ask(&forget(name)).await, Ok(Answer::Forgotten));
        }
        self.until("nobody knows it", |view| state(view, name).is_none())
            .await;
    }

    async fn add(&mut self, machine: Machine, token: Option<&Token>) {
        let name = machine.name();
        self.nodes.push(machine.start_apart(0, token).await.unwrap());
        self.machines.push(machine);
        self.until("it is there", |view| {
            state(view, name) == Some(MemberState::Alive)
        })
        .await;
    }
}

#[tokio::test]
async fn a_node_that_is_gone_for_good_is_waited_for_by_nobody_and_its_name_is_free() {
    // The last one was told where all the others are when it joined.
    let mut together = Together::start(&["a", "b", "c", "d"]).await;
    let ada = together.nodes[3].user("ada").await;
    ada.create_at("c").await;
    together.kill("c").await;
    together.forget("c").await;
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
    together.add(Machine::new("c"), Some(&token)).await;
    together.kill("c").await;
    let names: Vec<_> = silent(&ada).await.into_iter().map(|silent| silent.node).collect();
    assert_eq!(names, ["c".parse().unwrap()]);
}

#[tokio::test]
async fn a_node_that_is_forgotten_stays_so_over_a_restart_of_the_others_and_is_a_member_when_it_comes_back() {
    let mut together = Together::start(&["a", "b", "c"]).await;
    let ada = together.nodes[0].user("ada").await;
    let clone = ada.create_at("c").await;
    let c = together.machines.pop().unwrap();
    together.machines.push(Machine::new("c"));
    together.kill("c").await;
    together.forget("c").await;
    for at in [0, 1] {
        let port = together.nodes[at].port();
        together.nodes.remove(at).kill();
        let again = together.machines[at].start_apart(port, None).await.unwrap();
        together.nodes.insert(at, again);
        together
            .until("a and b know each other and not c", |view| {
                let alive = Some(MemberState::Alive);
                view.members.len() == 2 && state(view, "a") == alive && state(view, "b") == alive
            })
            .await;
    }

    together.add(c, None).await;
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

/// As one that was only cut off, and comes back when nobody's gossip remembers it as down.
#[tokio::test]
async fn a_node_that_was_forgotten_in_the_life_it_still_lives_begins_another() {
    let mut together = Together::start(&["a", "b"]).await;
    let epoch = |view: &View| view.members[&"b".parse().unwrap()].epoch;
    let before = epoch(&together.nodes[0].views.borrow());
    together.nodes.remove(0).kill();
    let forgotten = together.machines[0].state().join("forgotten");
    std::fs::write(forgotten, format!("b {before}\n")).unwrap();
    let a = together.machines[0].start_apart(0, None).await.unwrap();
    together.nodes.insert(0, a);
    together
        .until("b lives on", |view| {
            state(view, "b") == Some(MemberState::Alive) && epoch(view) > before
        })
        .await;
    together.kill("b").await;
}

#[tokio::test]
async fn where_it_cannot_be_written_down_that_a_node_is_forgotten_that_is_said_and_made_good() {
    let mut together = Together::start(&["a", "b"]).await;
    together.kill("b").await;
    let file = together.machines[0].state().join("forgotten");
    std::fs::create_dir(&file).unwrap();
    let operator = together.nodes[0].operator().await;
    let refusal = operator.ask(&forget("b")).await.unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Failed, "{refusal}");
    assert!(
        refusal
            .message
            .starts_with("the node could not write down that it is forgotten: "),
        "{refusal}"
    );
    std::fs::remove_dir(&file).unwrap();
    together.forget("b").await;
    assert!(std::fs::read_to_string(file).unwrap().starts_with("b "));
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
