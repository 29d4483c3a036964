//! The client against small nodes over real QUIC: origins that are dead, nodes that are lost in the middle, and what is
//! learned of a cluster.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::net::SocketAddr;
use std::path::Path;
use std::process::Output;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chrono::Utc;
use quinn::{RecvStream, SendStream};
use zdap::cluster::Cluster;
use zdap_proto::frame::{self, REPLY_CAP, REQUEST_CAP};
use zdap_proto::identity::{ClusterCa, Identity, Subject};
use zdap_proto::message::{Answer, Call, CloneState, CloneView, NodeState, NodeView, Reply, Request, Stages};
use zdap_proto::refusal::{Refusal, RefusalKind};
use zdap_proto::transport::{accept, bind, client_endpoint, handshake, server_endpoint};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// What a node says to a request; none: nothing at all.
type Says = Arc<dyn Fn(Request) -> Option<Reply> + Send + Sync>;

/// A node's process; dropping it kills it: no farewell is sent.
struct Process {
    runtime: Option<tokio::runtime::Runtime>,
    address: String,
    asked: Arc<Mutex<Vec<Request>>>,
}

impl Process {
    fn start(ca: &ClusterCa, name: &str, says: Says) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let subject = Subject::Node(name.parse().unwrap());
        let (identity, cluster) = (
            ca.identity(&subject, DAY, Utc::now()).unwrap(),
            ca.cluster().clone(),
        );
        let socket = bind(any_port()).unwrap();
        let address = socket.local_addr().unwrap().to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = asked.clone();
        runtime.spawn(async move {
            let endpoint = server_endpoint(socket, &identity).unwrap();
            while let Some(connecting) = accept(&endpoint).await {
                let (cluster, noted, says) = (cluster.clone(), noted.clone(), says.clone());
                tokio::spawn(async move {
                    let Ok(accepted) = handshake(connecting, &cluster).await else {
                        return;
                    };
                    while let Ok((send, recv)) = accepted.connection.accept_bi().await {
                        tokio::spawn(answer(noted.clone(), says.clone(), send, recv));
                    }
                });
            }
        });
        Self {
            runtime: Some(runtime),
            address,
            asked,
        }
    }

    fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn answer(noted: Arc<Mutex<Vec<Request>>>, says: Says, mut send: SendStream, mut recv: RecvStream) {
    let Ok(Call { request, .. }) = frame::read(&mut recv, REQUEST_CAP).await else {
        return;
    };
    noted.lock().unwrap().push(request.clone());
    match says(request) {
        Some(reply) => frame::write(&mut send, &reply, REPLY_CAP).await.unwrap(),
        None => std::future::pending().await,
    }
}

fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn ca() -> ClusterCa {
    ClusterCa::found(Utc::now()).unwrap()
}

fn ada(ca: &ClusterCa) -> Arc<Identity> {
    let subject = Subject::User("ada@laptop".parse().unwrap());
    Arc::new(ca.identity(&subject, DAY, Utc::now()).unwrap())
}

fn view(name: &str, address: &str) -> NodeView {
    NodeView {
        name: name.parse().unwrap(),
        address: address.to_owned(),
        state: NodeState::Alive,
        generation: 1,
        clones: 0,
        snapshots: 0,
        free_bytes: 1 << 30,
        total_bytes: 2 << 30,
        available_memory_bytes: 1 << 30,
        total_memory_bytes: 2 << 30,
        load: 0.25,
        resources: vec!["orders".parse().unwrap()],
        version: "0.1.0".to_owned(),
    }
}

fn created() -> Reply {
    Reply::Done(Answer::Created {
        clone: CloneView {
            id: "orders-k3v9x2mq".parse().unwrap(),
            resource: "orders".parse().unwrap(),
            node: "db2".parse().unwrap(),
            owner: "ada@laptop".parse().unwrap(),
            snapshot: "2026-11-22T04:00:00Z".parse().unwrap(),
            created_at: "2026-11-22T13:39:25Z".parse().unwrap(),
            state: CloneState::Ready,
            pooled: false,
            expires_at: None,
        },
        stages: Stages::default(),
        considered: Vec::new(),
    })
}

fn unavailable() -> Reply {
    Reply::Refused(Refusal::new(RefusalKind::Unavailable, "the node is stopping"))
}

fn no_nodes() -> Reply {
    Reply::Done(Answer::Nodes(Vec::new()))
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
    let orders = "orders".parse().unwrap();
    let creating = cluster.create_clone(&orders, None, None, |_| {});
    tokio::time::timeout(Duration::from_secs(20), creating)
        .await
        .unwrap()
}

async fn reach(ca: &ClusterCa, addresses: &[&str]) -> Cluster {
    let addresses: Vec<String> = addresses.iter().map(|&address| address.to_owned()).collect();
    let reached = Cluster::reach(&client_endpoint().unwrap(), &ada(ca), &addresses).await;
    reached.unwrap()
}

/// Makes sure that the second was asked for the same clone as the first, and knows that it is a retry.
fn asked_again(first: &Process, second: &Process) {
    let wanted = |process: &Process| {
        let mut asked = process.asked();
        asked.retain(is_clone);
        let [
            Request::CreateClone {
                request_id, is_retry, ..
            },
        ] = asked.as_slice()
        else {
            panic!("{asked:?}");
        };
        (request_id.clone(), *is_retry)
    };
    let ((first, is_first_retry), (second, is_second_retry)) = (wanted(first), wanted(second));
    assert_eq!(first, second);
    assert_eq!((is_first_retry, is_second_retry), (false, true));
}

#[tokio::test]
async fn a_dead_first_origin_costs_a_moment() {
    let ca = ca();
    let silent = std::net::UdpSocket::bind(any_port()).unwrap();
    let silent = silent.local_addr().unwrap().to_string();
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
    let clusters = home.path().join("clusters").join(ca.cluster().as_str());
    ada(&ca).save(&clusters).unwrap();

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

async fn zdap(home: &Path, arguments: &[&str]) -> Output {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_zdap"));
    command.args(arguments).env_clear().env("ZDAP_HOME", home);
    tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap()
}
