//! The client against small nodes over real QUIC: origins that are dead, nodes that are lost in the middle, and what is
//! learned of a cluster.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod fake;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use zdap::cluster::Cluster;
use zdap_proto::identity::ClusterCa;
use zdap_proto::message::{Answer, Reply, Request, Stages};
use zdap_proto::refusal::{Refusal, RefusalKind};
use zdap_proto::transport::client_endpoint;

use crate::fake::{Process, Says, ada, ca, clone_view, keep, no_nodes, silent, view, zdap};

fn created() -> Reply {
    Reply::Done(Answer::Created {
        clone: clone_view("db2"),
        stages: Stages::default(),
        considered: Vec::new(),
    })
}

fn unavailable() -> Reply {
    Reply::Refused(Refusal::new(RefusalKind::Unavailable, "the node is stopping"))
}

fn is_clone(request: &Request) -> bool {
    matches!(request, Request::CreateClone { .. })
}

/// Makes clones and knows of no nodes.
fn well() -> Says {
    Arc::new(|request| match is_clone(&request) {
        true => Some(created()),
        false => Some(no_nodes()),
    })
}

async fn create(cluster: &Cluster) -> Result<zdap::cluster::Created, zdap::node::NodeError> {
    let (orders, doubt) = ("orders".parse().unwrap(), AtomicBool::new(false));
    let creating = cluster.create_clone(&orders, None, None, &doubt, |_| {});
    tokio::time::timeout(Duration::from_secs(20), creating)
        .await
        .unwrap()
}

async fn reach(ca: &ClusterCa, addresses: &[&str]) -> Cluster {
    let addresses: Vec<String> = addresses.iter().map(|&address| address.to_owned()).collect();
    let reached = Cluster::reach(&client_endpoint().unwrap(), &ada(ca), &addresses).await;
    reached.unwrap()
}

/// Makes sure that the second was asked for the same clone as the first, and knows that it is a second attempt.
fn asked_again(first: &Process, second: &Process) {
    let wanted = |process: &Process| {
        let mut asked = process.asked();
        asked.retain(is_clone);
        let [
            Request::CreateClone {
                request_id, attempt, ..
            },
        ] = asked.as_slice()
        else {
            panic!("{asked:?}");
        };
        (request_id.clone(), *attempt)
    };
    let ((first, first_attempt), (second, second_attempt)) = (wanted(first), wanted(second));
    assert_eq!(first, second);
    assert_eq!((first_attempt, second_attempt), (0, 1));
}

#[tokio::test]
async fn a_dead_first_origin_costs_a_moment() {
    let ca = ca();
    let (_silent, silent) = silent();
    let node = Process::start(&ca, "db2", well());
    let begun = Instant::now();
    let cluster = reach(&ca, &[&silent, &node.address]).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(cluster.node().await.name(), Some("db2".parse().unwrap()));
}

#[tokio::test]
async fn a_clone_whose_node_falls_silent_is_asked_for_again_through_another() {
    let ca = ca();
    let says: Says = Arc::new(|request| (!is_clone(&request)).then(no_nodes));
    let mut first = Process::start(&ca, "db1", says);
    let second = Process::start(&ca, "db2", well());
    let cluster = reach(&ca, &[&first.address, &second.address]).await;
    let runtime = first.runtime.take().unwrap();
    let asked = first.asked.clone();
    let kill = async move {
        while asked.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        runtime.shutdown_background();
    };
    let begun = Instant::now();
    let (created, ()) = tokio::join!(create(&cluster), kill);
    assert_eq!(created.unwrap().clone.id.as_str(), "orders-k3v9x2mq");
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    asked_again(&first, &second);
    assert_eq!(cluster.node().await.name(), Some("db2".parse().unwrap()));
}

/// The first of two nodes dies over a clone; the second says of it what `says` returns, by how often it was asked before.
async fn lost_in_the_middle(
    ca: &ClusterCa,
    says: impl Fn(usize) -> Reply + Send + Sync + 'static,
) -> (Cluster, Process, impl Future<Output = ()>) {
    let silent: Says = Arc::new(|request| (!is_clone(&request)).then(no_nodes));
    let mut first = Process::start(ca, "db1", silent);
    let asked = AtomicUsize::new(0);
    let second: Says = Arc::new(move |request| {
        Some(match is_clone(&request) {
            true => says(asked.fetch_add(1, Ordering::Relaxed)),
            false => no_nodes(),
        })
    });
    let second = Process::start(ca, "db2", second);
    let cluster = reach(ca, &[&first.address, &second.address]).await;
    let kill = async move {
        clones_asked(&first, 1).await;
        first.runtime.take().unwrap().shutdown_background();
    };
    (cluster, second, kill)
}

async fn clones_asked(process: &Process, often: usize) {
    while process.asked().iter().filter(|request| is_clone(request)).count() < often {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_clone_that_the_others_cannot_find_for_now_is_asked_for_until_they_can() {
    let ca = ca();
    let says = |asked| match asked {
        0 | 1 => unavailable(),
        _ => created(),
    };
    let (cluster, second, kill) = lost_in_the_middle(&ca, says).await;
    let (created, ()) = tokio::join!(create(&cluster), kill);
    assert_eq!(created.unwrap().clone.id.as_str(), "orders-k3v9x2mq");
    let asked = second.asked().into_iter().filter_map(|request| {
        let Request::CreateClone {
            request_id, attempt, ..
        } = request
        else {
            return None;
        };
        Some((request_id, attempt))
    });
    let (mut ids, attempts): (Vec<_>, Vec<_>) = asked.unzip();
    ids.dedup();
    assert_eq!(ids.len(), 1, "it is the same request");
    assert_eq!(attempts, [1, 2, 3], "and the attempts are told apart");
}

#[tokio::test]
async fn who_gives_up_while_it_is_not_known_whether_there_is_a_clone_is_left_in_doubt() {
    let ca = ca();
    let (cluster, second, kill) = lost_in_the_middle(&ca, |_| unavailable()).await;
    let (orders, doubt) = ("orders".parse().unwrap(), AtomicBool::new(false));
    let creating = cluster.create_clone(&orders, None, None, &doubt, |_| {});
    let given_up = async {
        kill.await;
        clones_asked(&second, 2).await;
    };
    tokio::select! {
        created = creating => panic!("{created:?}"),
        () = given_up => {}
    }
    assert!(doubt.load(Ordering::Relaxed));

    let full = || Reply::Refused(Refusal::new(RefusalKind::Full, "no room"));
    let (cluster, _second, kill) = lost_in_the_middle(&ca, move |_| full()).await;
    let creating = cluster.create_clone(&orders, None, None, &doubt, |_| {});
    let (created, ()) = tokio::join!(creating, kill);
    assert_eq!(created.unwrap_err().to_string(), "no room");
    assert!(!doubt.load(Ordering::Relaxed), "there is none");
}

#[tokio::test]
async fn a_node_that_is_only_slow_is_waited_for() {
    let ca = ca();
    let slow: Says = Arc::new(|request| match is_clone(&request) {
        true => {
            // Longer than one that is dead is waited for.
            tokio::task::block_in_place(|| std::thread::sleep(Duration::from_secs(5)));
            Some(created())
        }
        false => Some(no_nodes()),
    });
    let first = Process::start(&ca, "db1", slow);
    let second = Process::start(&ca, "db2", well());
    let cluster = reach(&ca, &[&first.address, &second.address]).await;
    create(&cluster).await.unwrap();
    assert_eq!(second.asked(), []);
}

#[tokio::test]
async fn a_node_that_cannot_do_it_now_is_left_for_another_once() {
    let ca = ca();
    let stopping: Says = Arc::new(|_| Some(unavailable()));
    let first = Process::start(&ca, "db1", stopping.clone());
    let second = Process::start(&ca, "db2", well());
    let cluster = reach(&ca, &[&first.address, &second.address]).await;
    create(&cluster).await.unwrap();
    asked_again(&first, &second);

    let second = Process::start(&ca, "db2", stopping);
    let cluster = reach(&ca, &[&first.address, &second.address]).await;
    let error = create(&cluster).await.unwrap_err();
    assert_eq!(error.to_string(), "the node is stopping");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_are_learned_from_one_and_any_of_them_serves_from_then_on() {
    let ca = ca();
    let views = Arc::new(Mutex::new(Vec::new()));
    let says = || -> Says {
        let views = views.clone();
        Arc::new(move |_| Some(Reply::Done(Answer::Nodes(views.lock().unwrap().clone()))))
    };
    let first = Process::start(&ca, "db1", says());
    let second = Process::start(&ca, "db2", says());
    *views.lock().unwrap() = vec![view("db1", &first.address), view("db2", &second.address)];
    let home = tempfile::tempdir().unwrap();
    keep(home.path(), &ada(&ca));

    let added = zdap(home.path(), &["add", "origin", &first.address, "--json"]).await;
    let added: serde_json::Value = serde_json::from_slice(&added.stdout).unwrap();
    assert_eq!(
        added["origins"],
        serde_json::json!([first.address, second.address])
    );
    let settings = || std::fs::read_to_string(home.path().join("settings.json")).unwrap();
    let before = settings();

    let nodes = zdap(home.path(), &["list", "nodes", "--json"]).await;
    let nodes: serde_json::Value = serde_json::from_slice(&nodes.stdout).unwrap();
    assert_eq!(nodes[1]["name"], "db2");
    assert_eq!(settings(), before, "nothing new");

    let (gone, second_address) = (first.address.clone(), second.address.clone());
    drop(first);
    views.lock().unwrap().remove(0);
    let output = zdap(home.path(), &["list", "nodes"]).await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(text.contains("db2") && !text.contains("db1"), "{text}");
    let kept: serde_json::Value = serde_json::from_str(&settings()).unwrap();
    assert_eq!(
        kept["clusters"][0]["last"],
        second_address.as_str(),
        "it is tried first"
    );
    assert_eq!(kept["clusters"][0]["nodes"].as_array().map(Vec::len), Some(1));
    assert_eq!(
        kept["origins"][0]["address"],
        gone.as_str(),
        "the user's own stays"
    );

    drop(second);
    let output = zdap(home.path(), &["list", "nodes"]).await;
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains(&gone) && text.contains(&second_address), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_refuses_hides_no_other() {
    let home = tempfile::tempdir().unwrap();
    let refusing = Arc::new(Mutex::new(Vec::new()));
    let mut nodes = Vec::new();
    for name in ["db1", "db2"] {
        let (ca, told) = (ca(), refusing.clone());
        let says: Says = Arc::new(move |request| match told.lock().unwrap().contains(&name) {
            true => Some(Reply::Refused(Refusal::new(RefusalKind::Failed, "on fire"))),
            false if matches!(request, Request::ListNodes) => Some(Reply::Done(Answer::Nodes(vec![view(
                name,
                &format!("{name}:43210"),
            )]))),
            false => Some(Reply::Done(Answer::Resources(Vec::new()))),
        });
        let node = Process::start(&ca, name, says);
        keep(home.path(), &ada(&ca));
        let added = zdap(home.path(), &["add", "origin", &node.address]).await;
        assert_eq!(added.status.code(), Some(0), "{added:?}");
        nodes.push(node);
    }
    refusing.lock().unwrap().push("db1");
    for (list, shown) in [
        (&["list", "nodes"][..], "db2"),
        (&["list", "resources"], ""),
        (&["list", "resources", "@db2"], ""),
    ] {
        let output = zdap(home.path(), list).await;
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{list:?}: {said}");
        assert!(said.contains(&format!("{}: on fire", nodes[0].address)), "{said}");
        assert!(String::from_utf8(output.stdout).unwrap().contains(shown));
    }
    refusing.lock().unwrap().push("db2");
    for list in [
        &["list", "nodes"][..],
        &["list", "resources"],
        &["list", "clones", "@db2"],
    ] {
        let output = zdap(home.path(), list).await;
        assert_eq!(output.status.code(), Some(1), "{list:?}: {output:?}");
    }
}
