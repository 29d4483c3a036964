//! Several clones given back at once, against a small node over real QUIC.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test looks at the requests that it is about"
)]

mod fake;

use std::fs;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use chrono::Utc;
use tempfile::TempDir;
use zdap_proto::identity::Subject;
use zdap_proto::message::{Answer, CloneView, Reply, Request, ResourceView, Stages};
use zdap_proto::name::{CloneId, ResourceName};
use zdap_proto::refusal::{Refusal, RefusalKind};

use crate::fake::{DAY, Process, Said, ca, clone_view, enrol, no_nodes, view, zdap_in};

/// As many as are given back at a time.
const AT_ONCE: usize = 8;

/// A user with a project, and a cluster with these clones, of which db1 is the only node that is left.
struct World {
    home: TempDir,
    project: TempDir,
    node: Process,
}

impl World {
    /// `destroy` answers when a clone is given back.
    fn new(
        clones: Vec<CloneView>,
        destroy: impl Fn(&CloneId) -> Option<Reply> + Send + Sync + 'static,
    ) -> Self {
        let ca = Arc::new(ca());
        let (issuer, address) = (ca.clone(), Arc::new(Mutex::new(String::new())));
        let here = address.clone();
        let mut on_db1 = clones.clone();
        on_db1.retain(|clone| clone.node.as_str() == "db1");
        let node = Process::start(
            &ca,
            "db1",
            Arc::new(move |request| {
                Some(Reply::Done(match request {
                    Request::DestroyClone { clone } => return destroy(&clone),
                    Request::ListClones { .. } => Answer::Clones {
                        clones: on_db1.clone(),
                        silent: Vec::new(),
                    },
                    Request::ListResources => Answer::Resources(vec![
                        resource("orders", "shop", "db1"),
                        resource("orders", "sales", "db2"),
                        resource("stock", "sales", "db3"),
                    ]),
                    Request::ListNodes => Answer::Nodes(vec![view("db1", &here.lock().unwrap())]),
                    Request::CreateClone { resource, .. } => Answer::Created {
                        clone: clones
                            .iter()
                            .find(|clone| clone.resource == resource)
                            .unwrap()
                            .clone(),
                        stages: Stages::default(),
                        considered: Vec::new(),
                    },
                    Request::IssueRelay { clone, public_key } => {
                        let owner = "ada@laptop".parse().unwrap();
                        let subject = Subject::Relay { owner, clone };
                        Answer::Certificate(issuer.issue(&public_key, &subject, DAY, Utc::now()).unwrap())
                    }
                    _ => return Some(no_nodes()),
                }))
            }),
        );
        address.lock().unwrap().clone_from(&node.address);
        let (home, project) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        enrol(home.path(), &ca, &[&node.address]);
        Self { home, project, node }
    }

    async fn zdap(&self, arguments: &[&str]) -> Said {
        zdap_in(self.project.path(), self.home.path(), arguments)
            .await
            .into()
    }

    fn asked_to_destroy(&self) -> usize {
        let is_destroy = |request: &Request| matches!(request, Request::DestroyClone { .. });
        self.node.asked().into_iter().filter(is_destroy).count()
    }
}

fn resource(name: &str, alias: &str, node: &str) -> ResourceView {
    ResourceView {
        name: name.parse().unwrap(),
        alias: Some(alias.to_owned()),
        image: "postgres:15".to_owned(),
        node: node.parse().unwrap(),
        snapshots: Vec::new(),
    }
}

/// Clones of `orders`, the newest first.
fn clones_of_orders(count: usize) -> Vec<CloneView> {
    let clone = |index: usize| CloneView {
        id: format!("orders-k3v9x2m{}", char::from(b"bcdfghjkmnpq"[index]))
            .parse()
            .unwrap(),
        created_at: clone_view("db1").created_at - chrono::TimeDelta::minutes(i64::try_from(index).unwrap()),
        ..clone_view("db1")
    };
    (0..count).map(clone).collect()
}

fn on_fire() -> Reply {
    Reply::Refused(Refusal::new(RefusalKind::Failed, "the disk is on fire"))
}

#[tokio::test]
async fn a_clone_is_also_given_back_by_its_resources_second_name() {
    let world = World::new(clones_of_orders(1), |_| Some(Reply::Done(Answer::Destroyed)));
    let said = world.zdap(&["destroy", "shop"]).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(world.asked_to_destroy(), 1);
    let said = world.zdap(&["destroy", "shops"]).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("you have no clone `shops`"), "{said:?}");
}

#[tokio::test]
async fn a_second_name_of_several_resources_gives_no_clone_back() {
    let world = World::new(clones_of_orders(1), |_| Some(Reply::Done(Answer::Destroyed)));
    for arguments in [&["destroy", "sales"][..], &["list", "clones", "sales"]] {
        let said = world.zdap(arguments).await;
        assert_eq!((said.code, said.stdout.as_str()), (Some(1), ""), "{said:?}");
        assert_eq!(
            said.stderr,
            "error: `sales` is another name of several resources: `orders`, `stock`\n\n\
             hint: use the name of the one that is meant\n"
        );
    }
    assert_eq!(world.asked_to_destroy(), 0);
}

/// Holds requests until so many are there at once.
struct Gate {
    wanted: usize,
    /// How many are there, and how many have been at most.
    there: Mutex<(usize, usize)>,
    changed: Condvar,
}

impl Gate {
    fn of(wanted: usize) -> Arc<Self> {
        Arc::new(Self {
            wanted,
            there: Mutex::new((0, 0)),
            changed: Condvar::new(),
        })
    }

    /// Returns once so many have been there at once; those that come later pass. Refuses where they do not come.
    fn pass(&self) -> Option<Reply> {
        tokio::task::block_in_place(|| {
            let mut there = self.there.lock().unwrap();
            there.0 += 1;
            there.1 = there.1.max(there.0);
            self.changed.notify_all();
            let is_waiting = |there: &mut (usize, usize)| there.1 < self.wanted;
            let wait = self
                .changed
                .wait_timeout_while(there, Duration::from_secs(5), is_waiting);
            let (mut there, waited) = wait.unwrap();
            there.0 -= 1;
            match waited.timed_out() {
                true => Some(Reply::Refused(Refusal::new(RefusalKind::Failed, "I am alone"))),
                false => Some(Reply::Done(Answer::Destroyed)),
            }
        })
    }

    fn most(&self) -> usize {
        self.there.lock().unwrap().1
    }
}

#[tokio::test]
async fn all_clones_are_destroyed_several_at_a_time_and_told_in_their_order() {
    let (gate, clones) = (Gate::of(AT_ONCE), clones_of_orders(12));
    let held = gate.clone();
    let world = World::new(clones.clone(), move |_| held.pass());
    let said = world.zdap(&["destroy", "orders", "--all"]).await;
    let expected: String = clones
        .iter()
        .map(|clone| format!("{} destroyed\n", clone.id))
        .collect();
    assert_eq!((said.code, said.stdout), (Some(0), expected), "{}", said.stderr);
    assert_eq!((gate.most(), world.asked_to_destroy()), (AT_ONCE, 12));
}

#[tokio::test]
async fn clones_that_cannot_be_destroyed_are_named_and_keep_no_other() {
    let clones = clones_of_orders(4);
    let failing = [clones[1].id.clone(), clones[2].id.clone()];
    let world = World::new(clones, move |clone| match failing.contains(clone) {
        true => Some(on_fire()),
        false => Some(Reply::Done(Answer::Destroyed)),
    });
    let said = world.zdap(&["destroy", "orders", "--all"]).await;
    assert_eq!(said.code, Some(1));
    assert!(
        said.stderr.starts_with(
            "error: not every clone was destroyed\n  orders-k3v9x2mb destroyed\n  orders-k3v9x2mf destroyed\n  \
             orders-k3v9x2mc: the disk is on fire\n  orders-k3v9x2md: the disk is on fire\n"
        ),
        "{said:?}"
    );
}

#[tokio::test]
async fn how_many_are_destroyed_is_said_while_it_goes_on() {
    let clones = clones_of_orders(5);
    let quick = [clones[0].id.clone(), clones[3].id.clone()];
    let world = World::new(clones, move |clone| {
        quick.contains(clone).then_some(Reply::Done(Answer::Destroyed))
    });
    let said = world.zdap(&["destroy", "orders", "--all", "--timeout=3"]).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("; it was: destroyed 2 of 5"), "{said:?}");
}

/// Three services, each with a clone in its place; that of `stock` is on `node`.
async fn three_attached(
    node: &str,
    destroy: impl Fn(&CloneId) -> Option<Reply> + Send + Sync + 'static,
) -> World {
    let clones = [("orders", "db1"), ("stock", node), ("users", "db1")].map(|(name, node)| CloneView {
        id: format!("{name}-k3v9x2mq").parse().unwrap(),
        resource: name.parse::<ResourceName>().unwrap(),
        ..clone_view(node)
    });
    let world = World::new(clones.to_vec(), destroy);
    let services = ["orders", "stock", "users"]
        .map(|name| format!("  {name}: {{image: postgres:15, ports: [\"5432\"]}}\n"));
    fs::write(
        world.project.path().join("compose.yml"),
        format!("services:\n{}", services.concat()),
    )
    .unwrap();
    for name in ["orders", "stock", "users"] {
        let said = world.zdap(&["attach", name]).await;
        assert_eq!(said.code, Some(0), "{said:?}");
    }
    world
}

#[tokio::test]
async fn several_services_give_their_clones_back_at_once() {
    let gate = Gate::of(3);
    let held = gate.clone();
    let world = three_attached("db1", move |_| held.pass()).await;
    let said = world.zdap(&["detach", "--all"]).await;
    assert_eq!(
        (said.code, said.stdout.as_str()),
        (Some(0), "users detached\nstock detached\norders detached\n"),
        "{said:?}"
    );
    assert_eq!(gate.most(), 3);
}

#[tokio::test]
async fn a_service_whose_clone_cannot_go_back_keeps_all_attached_and_is_named() {
    let world = three_attached("db1", |clone| match clone.as_str().starts_with("stock") {
        true => Some(on_fire()),
        false => Some(Reply::Done(Answer::Destroyed)),
    })
    .await;
    let said = world.zdap(&["detach", "--all"]).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(
        said.stderr.contains(
            "all stay attached\n  users-k3v9x2mq destroyed\n  orders-k3v9x2mq destroyed\n  \
             stock-k3v9x2mq: the disk is on fire\n"
        ),
        "{said:?}"
    );
    assert_eq!(world.asked_to_destroy(), 3);
    let text = fs::read_to_string(world.project.path().join("compose.override.yml")).unwrap();
    assert!(text.contains("orders-k3v9x2mq"), "{text}");
}

#[tokio::test]
async fn a_clone_whose_node_is_gone_for_good_holds_no_service() {
    let world = three_attached("db3", |_| Some(Reply::Done(Answer::Destroyed))).await;
    let said = world.zdap(&["detach", "--all"]).await;
    assert_eq!(
        (said.code, said.stdout.as_str()),
        (Some(0), "users detached\nstock detached\norders detached\n"),
        "{said:?}"
    );
    let told = "clone stock-k3v9x2mq is gone with db3, which is no node of its cluster any more\n";
    assert!(said.stderr.contains(told), "{said:?}");
    assert_eq!(world.asked_to_destroy(), 2);
    assert!(!world.project.path().join("compose.override.yml").exists());
}
