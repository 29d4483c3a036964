//! `zdap attach` in a compose project, against small nodes over real QUIC: what is asked for, what is written, what is said.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test looks at the requests that it is about"
)]

mod fake;

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use tempfile::TempDir;
use zdap_proto::identity::{ClusterCa, Identity, Subject};
use zdap_proto::message::{
    Answer, Bottleneck, Considered, NodeView, Offered, Outcome, Reply, Request, SilentNode, Stages,
};
use zdap_proto::refusal::{Refusal, RefusalKind};

use crate::fake::{DAY, Process, Said, Says, ca, clone_view, keep, kept, no_nodes, refusing, view, zdap_in};

/// It has begun an hour before it was made, so that more than two thirds of its life are over.
const ALMOST_OVER: Duration = Duration::from_secs(60);

/// A user with a project, and a cluster of three nodes, of which db2 has the clone.
struct World {
    ca: Arc<ClusterCa>,
    directory: TempDir,
    nodes: Vec<Process>,
    /// How long a relay's certificate is good that is made now.
    life: Arc<Mutex<Duration>>,
}

impl World {
    fn new(extra: impl Fn(&Request) -> Option<Reply> + Send + Sync + Clone + 'static) -> Self {
        let (ca, views) = (Arc::new(ca()), Arc::new(Mutex::new(Vec::new())));
        let life = Arc::new(Mutex::new(DAY));
        let nodes: Vec<Process> = ["db1", "db2", "db3"]
            .iter()
            .map(|name| {
                let says = says(&ca, &views, &life, extra.clone());
                Process::start(&ca, name, says)
            })
            .collect();
        let addresses = nodes.iter().map(|node| node.address.as_str());
        *views.lock().unwrap() = addresses
            .zip(["db1", "db2", "db3"])
            .map(|(address, name)| view(name, address))
            .collect();
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("project")).unwrap();
        let compose = "services:\n  orders: {image: postgres:15, ports: [\"5432\"]}\n";
        fs::write(directory.path().join("project/compose.yml"), compose).unwrap();
        Self {
            ca,
            directory,
            nodes,
            life,
        }
    }

    async fn enrolled(self) -> Self {
        keep(&self.home(), &self.ada(DAY));
        let address = self.nodes[0].address.clone();
        assert_eq!(self.zdap(&["add", "origin", &address]).await.code, Some(0));
        self
    }

    fn ada(&self, life: Duration) -> Identity {
        let subject = Subject::User("ada@laptop".parse().unwrap());
        self.ca.identity(&subject, life, Utc::now()).unwrap()
    }

    fn home(&self) -> PathBuf {
        self.directory.path().join("home")
    }

    fn project(&self) -> PathBuf {
        self.directory.path().join("project")
    }

    fn relay(&self) -> Identity {
        Identity::load(&self.project().join(".zdap.d/orders")).unwrap()
    }

    async fn zdap(&self, arguments: &[&str]) -> Said {
        zdap_in(&self.project(), &self.home(), arguments).await.into()
    }

    /// What the nodes were asked, by all of them.
    fn asked(&self) -> Vec<Request> {
        self.nodes.iter().flat_map(Process::asked).collect()
    }
}

fn says(
    ca: &Arc<ClusterCa>,
    views: &Arc<Mutex<Vec<NodeView>>>,
    life: &Arc<Mutex<Duration>>,
    extra: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static,
) -> Says {
    let (ca, views, life) = (ca.clone(), views.clone(), life.clone());
    let certify = move |public_key: &[u8], subject: Subject| {
        let life = *life.lock().unwrap();
        let certificate = ca.issue(public_key, &subject, life, Utc::now()).unwrap();
        Some(Reply::Done(Answer::Certificate(certificate)))
    };
    Arc::new(move |request| {
        if let Some(reply) = extra(&request) {
            return Some(reply);
        }
        if let Request::IssueRelay { clone, public_key } = request {
            let owner = "ada@laptop".parse().unwrap();
            return certify(&public_key, Subject::Relay { owner, clone });
        }
        if let Request::Renew { public_key } = request {
            return certify(&public_key, Subject::User("ada@laptop".parse().unwrap()));
        }
        match request {
            Request::ListResources => Some(Reply::Done(Answer::Resources(Vec::new()))),
            Request::ListNodes => Some(Reply::Done(Answer::Nodes(views.lock().unwrap().clone()))),
            Request::CreateClone { .. } => Some(Reply::Done(Answer::Created {
                clone: clone_view("db2"),
                stages: Stages::default(),
                considered: considered(),
            })),
            Request::ListClones { .. } => Some(Reply::Done(Answer::Clones {
                clones: Vec::new(),
                silent: vec![SilentNode {
                    node: "db3".parse().unwrap(),
                    reason: "it is down".to_owned(),
                }],
            })),
            _ => Some(no_nodes()),
        }
    })
}

fn considered() -> Vec<Considered> {
    let offered = Some(Offered {
        load: 0.25,
        bottleneck: Bottleneck::Memory,
        clones: 0.01,
    });
    vec![
        Considered {
            node: "db2".parse().unwrap(),
            expected: offered,
            offered,
            outcome: Outcome::Chosen,
        },
        Considered {
            node: "db3".parse().unwrap(),
            expected: None,
            offered: None,
            outcome: Outcome::Refused("it is draining".to_owned()),
        },
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relay_is_given_the_clones_own_node_first_then_the_one_we_reach_and_then_the_others() {
    let world = World::new(|_| None).enrolled().await;
    let said = world.zdap(&["attach", "orders", "@db2"]).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(said.stdout, "orders attached: orders-k3v9x2mq on db2\n");
    assert!(
        said.stderr.ends_with("`docker compose up -d` starts it\n"),
        "{said:?}"
    );
    let text = fs::read_to_string(world.project().join("compose.override.yml")).unwrap();
    let port = |index: usize| world.nodes[index].address.rsplit_once(':').unwrap().1.to_owned();
    let servers = [port(1), port(0), port(2)].map(|port| format!("host.docker.internal:{port}"));
    assert!(text.contains(&servers.join(",")), "{text}");
    let pins = world.asked().into_iter().filter_map(|request| match request {
        Request::CreateClone { node, attempt, .. } => Some((node, attempt)),
        _ => None,
    });
    assert_eq!(
        pins.collect::<Vec<_>>(),
        [(Some("db2".parse().unwrap()), 0)],
        "all ask once"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_pinned_by_its_address_too_and_one_that_does_not_exist_is_named_with_the_others() {
    let world = World::new(|_| None).enrolled().await;
    let address = format!("@{}", world.nodes[2].address);
    assert_eq!(world.zdap(&["clone", "orders", &address]).await.code, Some(0));
    let pinned = world.asked().into_iter().find_map(|request| match request {
        Request::CreateClone { node, .. } => node,
        _ => None,
    });
    assert_eq!(pinned, Some("db3".parse().unwrap()));
    let said = world.zdap(&["clone", "orders", "@db9"]).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(
        said.stderr.contains("no node @db9") && said.stderr.contains("db1 at 127.0.0.1:"),
        "{said:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn why_a_node_was_chosen_is_said_when_asked() {
    let world = World::new(|_| None).enrolled().await;
    let said = world.zdap(&["clone", "orders", "--explain"]).await;
    for words in ["25.0 %", "memory", "chosen", "refused: it is draining"] {
        assert!(said.stderr.contains(words), "{words}: {said:?}");
    }
    let said = world.zdap(&["attach", "orders", "--explain", "--quiet"]).await;
    assert!(said.stderr.contains("refused: it is draining"), "{said:?}");
    let said = world.zdap(&["clone", "orders", "--explain", "--json"]).await;
    let document: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(document["considered"][0]["node"], "db2");
    let said = world.zdap(&["clone", "orders", "--json"]).await;
    assert!(!said.stdout.contains("considered"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_several_lines_is_shown_as_it_is() {
    const REFUSED: &str = "no node can host `orders`\n  db1: is draining\n  db2: 4 GiB free, 10 GiB needed";
    let refuse = |request: &Request| {
        let refusal = Refusal::new(RefusalKind::Full, REFUSED).with_hint("destroy a clone");
        matches!(request, Request::CreateClone { .. }).then_some(Reply::Refused(refusal))
    };
    let world = World::new(refuse).enrolled().await;
    let said = world.zdap(&["attach", "orders"]).await;
    assert_eq!(said.code, Some(1));
    let expected = format!("error: {REFUSED}\n\nhint: destroy a clone\n");
    assert!(said.stderr.ends_with(&expected), "{said:?}");
    assert!(!world.project().join("compose.override.yml").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_are_silent_are_named_and_the_rest_is_shown() {
    let world = World::new(|_| None).enrolled().await;
    let said = world.zdap(&["list", "clones"]).await;
    assert_eq!(said.code, Some(0));
    assert!(
        said.stderr
            .starts_with("warning: db3 does not answer: it is down\nno clones; "),
        "{said:?}"
    );
    let said = world.zdap(&["destroy", "orders"]).await;
    assert_eq!(said.code, Some(1));
    assert!(
        said.stderr
            .contains("no clone of `orders` on the nodes that answered\n  db3 does not answer: it is down"),
        "{said:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_that_is_attached_stays_whatever_comes_of_looking_for_the_one_it_replaces() {
    let (refuses, refuse) = refusing(|request| matches!(request, Request::ListClones { .. }));
    let other = refuses.clone();
    let world = World::new(move |request| {
        let mut clone = clone_view("db2");
        clone.id = "orders-k3v9x2mz".parse().unwrap();
        let is_second = other.load(Ordering::Relaxed) && matches!(request, Request::CreateClone { .. });
        let created = Reply::Done(Answer::Created {
            clone,
            stages: Stages::default(),
            considered: Vec::new(),
        });
        is_second.then_some(created).or_else(|| refuse(request))
    })
    .enrolled()
    .await;
    assert_eq!(world.zdap(&["attach", "orders"]).await.code, Some(0));
    refuses.store(true, Ordering::Relaxed);
    let said = world.zdap(&["attach", "orders", "--force"]).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    let told = "clone orders-k3v9x2mq, which it replaces, may be still there";
    assert!(said.stderr.contains(told), "{said:?}");
    let text = fs::read_to_string(world.project().join("compose.override.yml")).unwrap();
    assert!(text.contains("orders-k3v9x2mz"), "{text}");
    let is_destroy = |request: &Request| matches!(request, Request::DestroyClone { .. });
    assert!(!world.asked().iter().any(is_destroy));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_given_back_by_force_whatever_its_cluster_says() {
    let (refuses, refuse) = refusing(|request| matches!(request, Request::ListClones { .. }));
    let world = World::new(refuse).enrolled().await;
    assert_eq!(world.zdap(&["attach", "orders"]).await.code, Some(0));
    refuses.store(true, Ordering::Relaxed);
    let said = world.zdap(&["detach", "orders"]).await;
    assert_eq!(said.code, Some(1), "an origin was reached: {said:?}");
    assert!(said.stderr.contains("the disk is on fire"), "{said:?}");
    assert!(world.project().join("compose.override.yml").exists());
    let said = world.zdap(&["detach", "orders", "--force"]).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(
        said.stderr.contains("clone orders-k3v9x2mq stays on db2"),
        "{said:?}"
    );
    assert!(!world.project().join("compose.override.yml").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_that_cannot_be_destroyed_does_not_hold_a_service_that_is_given_back_by_force() {
    let (refuses, refuse) = refusing(|request| matches!(request, Request::DestroyClone { .. }));
    refuses.store(true, Ordering::Relaxed);
    let world = World::new(move |request| match request {
        Request::ListClones { .. } => Some(Reply::Done(Answer::Clones {
            clones: vec![clone_view("db2")],
            silent: Vec::new(),
        })),
        _ => refuse(request),
    })
    .enrolled()
    .await;
    assert_eq!(world.zdap(&["attach", "orders"]).await.code, Some(0));
    let said = world.zdap(&["detach", "orders"]).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    let said = world.zdap(&["detach", "orders", "--force", "--json"]).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.stdout.contains(r#""destroyed":false"#), "{said:?}");
    assert!(
        said.stderr
            .contains("stays on db2: the disk is on fire; later: `zdap destroy orders-k3v9x2mq`"),
        "{said:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_cannot_be_renewed_is_told_when_its_end_is_near_and_keeps_no_other_from_it() {
    let (refuses, refuse) = refusing(|request| matches!(request, Request::Renew { .. }));
    let world = World::new(refuse).enrolled().await;
    *world.life.lock().unwrap() = ALMOST_OVER;
    assert_eq!(world.zdap(&["attach", "orders"]).await.code, Some(0));
    *world.life.lock().unwrap() = DAY;
    keep(&world.home(), &world.ada(ALMOST_OVER));
    refuses.store(true, Ordering::Relaxed);
    let said = world.zdap(&["list", "nodes"]).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    let is_told = said.stderr.starts_with("warning: our certificate in cluster ");
    assert!(is_told && said.stderr.contains("is not renewed: "), "{said:?}");
    let soon = Utc::now() + TimeDelta::hours(1);
    assert!(world.relay().expires_at() > soon);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_whose_end_is_near_are_renewed_beside_any_command() {
    let world = World::new(|_| None).enrolled().await;
    *world.life.lock().unwrap() = ALMOST_OVER;
    assert_eq!(world.zdap(&["attach", "orders"]).await.code, Some(0));
    *world.life.lock().unwrap() = DAY;
    keep(&world.home(), &world.ada(ALMOST_OVER));
    let soon = Utc::now() + TimeDelta::hours(1);
    assert!(world.relay().expires_at() < soon);

    assert_eq!(world.zdap(&["list", "nodes"]).await.code, Some(0));
    assert!(kept(&world.home(), &world.ca).expires_at() > soon);
    let relay = world.relay();
    assert!(relay.expires_at() > soon);
    let expected = Subject::Relay {
        owner: "ada@laptop".parse().unwrap(),
        clone: "orders-k3v9x2mq".parse().unwrap(),
    };
    assert_eq!(*relay.subject(), expected);

    let renewals = || {
        let asked = world.asked().into_iter();
        let is_renewal =
            |request: &Request| matches!(request, Request::Renew { .. } | Request::IssueRelay { .. });
        asked.filter(is_renewal).count()
    };
    let before = renewals();
    assert_eq!(world.zdap(&["list", "nodes"]).await.code, Some(0));
    assert_eq!(renewals(), before, "they are good for long now");
}
