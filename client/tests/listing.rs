//! `zdap list` against a small node over real QUIC: what there is and what is not, and which nodes cannot say.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test looks at the requests that it is about"
)]

mod fake;

use std::net::UdpSocket;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use zdap_proto::message::{Answer, NodeState, NodeView, Reply, Request, ResourceView, SnapshotView};
use zdap_proto::name::ResourceName;

use crate::fake::{Process, Said, Says, ca, clone_view, enrol, silent, view, zdap};

/// A user of db1, which answers, and of others, which do not.
struct World {
    home: TempDir,
    db1: Process,
    others: Vec<(UdpSocket, String)>,
}

impl World {
    /// Of the others db1 says how they are, and that they serve `stock`. All of them are origins.
    fn new(others: &[(&str, NodeState)]) -> Self {
        let (ca, home) = (ca(), tempfile::tempdir().unwrap());
        let views = Arc::new(Mutex::new(Vec::new()));
        let db1 = Process::start(&ca, "db1", says(&views));
        let sockets: Vec<_> = others.iter().map(|_| silent()).collect();
        let mut known = vec![view("db1", &db1.address)];
        for ((name, state), (_, address)) in others.iter().zip(&sockets) {
            known.push(NodeView {
                state: *state,
                resources: vec!["stock".parse().unwrap()],
                ..view(name, address)
            });
        }
        let addresses: Vec<&str> = known.iter().map(|node| node.address.as_str()).collect();
        enrol(home.path(), &ca, &addresses);
        *views.lock().unwrap() = known;
        Self {
            home,
            db1,
            others: sockets,
        }
    }

    async fn zdap(&self, arguments: &[&str]) -> Said {
        zdap(self.home.path(), arguments).await.into()
    }
}

/// `orders`, also called `shop`, has a snapshot and a clone; `users` has nothing.
fn says(views: &Arc<Mutex<Vec<NodeView>>>) -> Says {
    let views = views.clone();
    let snapshot = SnapshotView {
        resource: "orders".parse().unwrap(),
        taken_at: "2026-11-22T04:00:00Z".parse().unwrap(),
        node: "db1".parse().unwrap(),
        clones: Some(1),
        size_bytes: 1 << 20,
    };
    let resource = |name: &str, alias: Option<&str>| ResourceView {
        name: name.parse().unwrap(),
        alias: alias.map(str::to_owned),
        image: "postgres:15".to_owned(),
        node: "db1".parse().unwrap(),
        snapshots: Vec::new(),
    };
    let orders = ResourceView {
        snapshots: vec![snapshot.taken_at],
        ..resource("orders", Some("shop"))
    };
    let resources = vec![orders, resource("users", None)];
    Arc::new(move |request| {
        let of_orders = |name: &Option<ResourceName>| {
            let is_called = |name: &ResourceName| ["orders", "shop"].contains(&name.as_str());
            name.as_ref().is_none_or(is_called)
        };
        Some(Reply::Done(match request {
            Request::ListResources => Answer::Resources(resources.clone()),
            Request::ListSnapshots { resource } if of_orders(&resource) => {
                Answer::Snapshots(vec![snapshot.clone()])
            }
            Request::ListSnapshots { .. } => Answer::Snapshots(Vec::new()),
            Request::ListClones { .. } => Answer::Clones {
                clones: vec![clone_view("db1")],
                silent: Vec::new(),
            },
            _ => Answer::Nodes(views.lock().unwrap().clone()),
        }))
    })
}

#[tokio::test]
async fn a_resource_that_no_node_has_is_an_error_which_names_the_nearest() {
    let world = World::new(&[]);
    for what in ["resources", "snaps", "clones"] {
        let said = world.zdap(&["list", what, "order"]).await;
        assert_eq!((said.code, said.stdout.as_str()), (Some(1), ""), "{said:?}");
        assert_eq!(
            said.stderr,
            "error: there is no resource `order`\n\n\
             hint: did you mean `orders`? `zdap list resources --all` shows all\n"
        );
        let said = world.zdap(&["list", what, "order", "--json"]).await;
        assert_eq!(said.code, Some(1));
        assert_eq!(said.json()["error"]["kind"], "not_found");
        let said = world.zdap(&["list", what, "xyz", "@db1", "--format=json"]).await;
        assert_eq!(
            (said.code, said.stderr.as_str()),
            (
                Some(1),
                "error: there is no resource `xyz` on @db1\n\nhint: `zdap list resources --all` shows all\n"
            )
        );
        assert_eq!(world.zdap(&["list", what, "no name"]).await.code, Some(2));
    }
}

#[tokio::test]
async fn a_resource_that_has_nothing_to_list_is_no_error() {
    let world = World::new(&[]);
    for (what, name) in [("snaps", "snapshots"), ("clones", "clones")] {
        let said = world.zdap(&["list", what, "users"]).await;
        assert_eq!((said.code, said.stdout.as_str()), (Some(0), ""), "{said:?}");
        assert!(
            said.stderr.starts_with(&format!("no {name} of `users`; ")),
            "{said:?}"
        );
        let said = world.zdap(&["list", what, "users", "--json"]).await;
        assert_eq!((said.code, said.stdout.as_str()), (Some(0), "[]\n"), "{said:?}");
    }
}

#[tokio::test]
async fn an_alias_is_as_good_as_the_name() {
    let world = World::new(&[]);
    for what in ["resources", "snaps", "clones"] {
        let by_name = world.zdap(&["list", what, "orders", "--json"]).await;
        assert_eq!(by_name.json().as_array().map(Vec::len), Some(1), "{by_name:?}");
        let by_alias = world.zdap(&["list", what, "shop", "--json"]).await;
        assert_eq!(by_alias.stdout, by_name.stdout, "{by_alias:?}");
    }
}

#[tokio::test]
async fn a_clone_is_listed_by_its_id_and_one_that_is_not_there_is_an_error() {
    let world = World::new(&[]);
    let said = world.zdap(&["list", "clones", "orders-k3v9x2mq", "--json"]).await;
    assert_eq!(said.json()[0]["id"], "orders-k3v9x2mq");
    let said = world.zdap(&["list", "clones", "orders-k3v9x2mz"]).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(
        said.stderr
            .starts_with("error: you have no clone `orders-k3v9x2mz`\n"),
        "{said:?}"
    );
}

#[tokio::test]
async fn nodes_that_cannot_say_what_they_have_are_named_and_the_rest_is_shown() {
    let world = World::new(&[("db2", NodeState::Down), ("db3", NodeState::Suspect)]);
    let warnings = "warning: db2 does not answer: it is down\n\
                    warning: db3 does not answer just now: what is shown of it is what it last said\n";
    for what in ["resources", "snaps"] {
        let said = world.zdap(&["list", what]).await;
        assert_eq!((said.code, said.stderr.as_str()), (Some(0), warnings), "{said:?}");
        let is_shown = said.stdout.starts_with("db1\n") && said.stdout.contains("─ orders");
        assert!(is_shown, "{said:?}");
        let said = world.zdap(&["list", what, "--json"]).await;
        assert_eq!((said.code, said.stderr.as_str()), (Some(0), warnings), "{said:?}");
        assert_eq!(said.json()[0]["node"], "db1");
        let said = world.zdap(&["list", what, "@db1"]).await;
        assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""), "{said:?}");
    }
}

#[tokio::test]
async fn what_only_a_node_that_is_down_has_is_not_said_to_be_unknown() {
    let world = World::new(&[("db2", NodeState::Down)]);
    for what in ["resources", "snaps", "clones"] {
        let said = world.zdap(&["list", what, "stock"]).await;
        assert_eq!(said.code, Some(0), "{said:?}");
    }
    let said = world.zdap(&["list", "snaps", "xyz"]).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(
        said.stderr.contains(
            "error: there is no resource `xyz` on the nodes that answered\n  db2 does not answer: it is down\n"
        ),
        "{said:?}"
    );
}

#[tokio::test]
async fn why_a_resource_may_be_unknown_is_said_of_the_nodes_that_are_asked() {
    let world = World::new(&[("db2", NodeState::Down), ("db3", NodeState::Suspect)]);
    let unknown = |place: &str| {
        format!("error: there is no resource `xyz` {place}\n\nhint: `zdap list resources --all` shows all\n")
    };
    let down = "\n  db2 does not answer: it is down";
    let suspect = "\n  db3 does not answer just now";
    for what in ["resources", "snaps", "clones"] {
        for (pin, place) in [
            (None, format!("on the nodes that answered{down}{suspect}")),
            (Some("@db1"), "on @db1".to_owned()),
            (Some("@db2"), format!("on the nodes that answered{down}")),
            (Some("@db3"), format!("on the nodes that answered{suspect}")),
        ] {
            let arguments: Vec<&str> = ["list", what, "xyz"].into_iter().chain(pin).collect();
            let said = world.zdap(&arguments).await;
            assert_eq!(
                (said.code, said.stderr),
                (Some(1), unknown(&place)),
                "{arguments:?}"
            );
        }
    }
}

#[tokio::test]
async fn an_origin_that_another_node_says_is_down_is_not_waited_for() {
    let world = World::new(&[("db2", NodeState::Down)]);
    let begun = Instant::now();
    let said = world.zdap(&["list", "origins", "--json"]).await;
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    let (db1, db2) = (&said.json()[0], &said.json()[1]);
    assert_eq!(
        (&db1["connected"], &db2["connected"]),
        (&true.into(), &false.into())
    );
    assert_eq!(db2["node"]["state"], "down");
    let address = &world.others[0].1;
    assert_eq!(
        db2["error"],
        format!("no answer from {address}, and another node says that it is down")
    );
    let said = world.zdap(&["list", "origins"]).await;
    assert!(
        said.stdout.contains(&format!("{address}  db2   down")),
        "{said:?}"
    );
    assert!(
        said.stdout
            .contains(&format!("{}  db1   alive", world.db1.address)),
        "{said:?}"
    );
}

#[tokio::test]
async fn an_origin_that_the_others_hold_for_alive_gets_its_full_time() {
    let world = World::new(&[("db2", NodeState::Alive)]);
    let said = world.zdap(&["list", "origins", "--json"]).await;
    let address = &world.others[0].1;
    assert_eq!(
        said.json()[1]["error"],
        format!("no answer from {address} within 5 s (UDP)")
    );
}
