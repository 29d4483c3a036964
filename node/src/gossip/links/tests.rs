use chrono::Utc;
use zdap_proto::identity::{ClusterCa, Subject};
use zdap_proto::transport;

use super::*;

/// A node that passes on the packets it gets.
struct Listener {
    address: SocketAddr,
    packets: mpsc::Receiver<Bytes>,
}

/// A port is free a moment after the node that had it has ended.
async fn bind(port: u16) -> std::net::UdpSocket {
    loop {
        match transport::bind(SocketAddr::from(([127, 0, 0, 1], port))) {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => tokio::task::yield_now().await,
            bound => return bound.unwrap(),
        }
    }
}

fn identity(ca: &ClusterCa, name: &str) -> Identity {
    let node = Subject::Node(name.parse().unwrap());
    ca.identity(&node, Duration::from_secs(3600), Utc::now()).unwrap()
}

fn listen(ca: &ClusterCa, identity: &Identity, socket: std::net::UdpSocket) -> Listener {
    let endpoint = transport::server_endpoint(socket, identity).unwrap();
    let (sender, packets) = mpsc::channel(64);
    let cluster = ca.cluster().clone();
    let address = endpoint.local_addr().unwrap();
    tokio::spawn(async move {
        while let Some(connecting) = transport::accept(&endpoint).await {
            let accepted = transport::handshake(connecting, &cluster).await.unwrap();
            let sender = sender.clone();
            tokio::spawn(async move {
                while let Ok(packet) = accepted.connection.read_datagram().await {
                    let _ = sender.send(packet).await;
                }
            });
        }
    });
    Listener { address, packets }
}

fn links(ca: &ClusterCa) -> Links {
    let identity = watch::Sender::new(identity(ca, "me")).subscribe();
    Links::new(transport::client_endpoint().unwrap(), identity).0
}

impl Listener {
    async fn next(&mut self) -> Bytes {
        let next = timeout(Duration::from_secs(10), self.packets.recv());
        next.await
            .expect("a packet is on its way")
            .expect("the listener runs")
    }
}

#[tokio::test]
async fn packets_for_several_new_addresses_arrive_and_so_do_those_after() {
    let ca = ClusterCa::found(Utc::now()).unwrap();
    let mut nodes = Vec::new();
    for name in ["a", "b", "c"] {
        nodes.push(listen(&ca, &identity(&ca, name), bind(0).await));
    }
    let links = links(&ca);
    for round in 0..2_u8 {
        for node in &nodes {
            links.send(node.address, vec![round; 1162].into());
        }
        for node in &mut nodes {
            assert_eq!(node.next().await, vec![round; 1162]);
        }
    }
}

#[tokio::test]
async fn packets_that_wait_for_a_connection_are_few_and_the_newest() {
    let ca = ClusterCa::found(Utc::now()).unwrap();
    let mut node = listen(&ca, &identity(&ca, "a"), bind(0).await);
    let links = links(&ca);
    for number in 0..=u8::try_from(MAX_WAITING).unwrap() {
        links.send(node.address, vec![number].into());
    }
    assert_eq!(node.next().await, vec![1]);
}

/// Sends to a node that is killed and comes back, with whatever key its disk has then.
async fn reaches_after_a_restart(
    again: fn(&ClusterCa, &Identity) -> Identity,
    is_doubted: bool,
    within: Duration,
) {
    let ca = ClusterCa::found(Utc::now()).unwrap();
    let me = identity(&ca, "a");
    let machine = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut first = {
        let _on_it = machine.enter();
        listen(&ca, &me, bind(0).await)
    };
    let links = links(&ca);
    links.send(first.address, vec![1].into());
    first.next().await;
    let address = first.address;
    drop(first);
    // As a crash does it: nothing is said to anybody.
    machine.shutdown_background();
    let mut again = listen(&ca, &again(&ca, &me), bind(address.port()).await);
    let came = async {
        loop {
            // Its last words may still have come after the first time.
            if is_doubted {
                links.doubt(address);
            }
            links.send(address, vec![2].into());
            if let Ok(Some(packet)) = timeout(Duration::from_millis(20), again.packets.recv()).await {
                return packet;
            }
        }
    };
    let came = timeout(within, came).await;
    assert_eq!(came.expect("it is reached"), vec![2]);
}

#[tokio::test]
async fn a_node_that_has_restarted_is_reached_within_a_few_packets() {
    reaches_after_a_restart(|_, before| before.clone(), false, Duration::from_secs(2)).await;
}

#[tokio::test]
async fn a_node_that_has_lost_its_key_is_reached_when_its_connection_is_doubted() {
    reaches_after_a_restart(|ca, _| identity(ca, "a"), true, 2 * DEAF).await;
}

#[tokio::test]
async fn a_connection_that_is_doubted_and_answers_is_kept() {
    let ca = ClusterCa::found(Utc::now()).unwrap();
    let mut node = listen(&ca, &identity(&ca, "a"), bind(0).await);
    let links = links(&ca);
    let first = links.connection(node.address).await.unwrap();
    links.doubt(node.address);
    let link = links.link(node.address);
    while !matches!(link.state().open.as_ref().unwrap().trust, Trust::Full) {
        links.send(node.address, vec![1].into());
        node.next().await;
    }
    let same = links.connection(node.address).await.unwrap();
    assert_eq!(same.stable_id(), first.stable_id());
}

#[tokio::test]
async fn an_address_that_nobody_answers_at_is_left_alone_for_a_while() {
    let ca = ClusterCa::found(Utc::now()).unwrap();
    let nobody = bind(0).await;
    let address = nobody.local_addr().unwrap();
    let links = links(&ca);
    let first = links.connection(address).await;
    assert!(matches!(first, Err(LinkError::NoAnswer(_))), "{first:?}");
    let second = links.connection(address).await;
    assert!(matches!(second, Err(LinkError::Resting(_))), "{second:?}");
    links.send(address, vec![1].into());
    links.flushed().await;
    assert!(!links.is_busy(), "the packet is lost");
}

#[tokio::test]
async fn a_connection_that_comes_in_serves_both_ways_and_the_last_one_is_the_one() {
    let ca = ClusterCa::found(Utc::now()).unwrap();
    let serve = |name| {
        let socket = transport::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        transport::server_endpoint(socket, &identity(&ca, name)).unwrap()
    };
    let (a, b) = (serve("a"), serve("b"));
    let identity_of = |name| watch::Sender::new(identity(&ca, name)).subscribe();
    let (links_a, mut opened) = Links::new(a.clone(), identity_of("a"));
    let (links_b, _) = Links::new(b.clone(), identity_of("b"));
    let come = async || {
        let connecting = transport::accept(&b).await.unwrap();
        let accepted = transport::handshake(connecting, ca.cluster()).await.unwrap();
        links_b.adopt(accepted.connection.clone());
        accepted.connection
    };
    let (here, there) = (a.local_addr().unwrap(), b.local_addr().unwrap());
    let (first, _) = tokio::join!(links_a.connection(there), come());
    let at_a = opened.recv().await.unwrap();
    assert_eq!(at_a.stable_id(), first.unwrap().stable_id());
    links_b.send(here, vec![7; 1162].into());
    assert_eq!(at_a.read_datagram().await.unwrap(), vec![7; 1162]);
    assert_eq!(b.open_connections(), 1);

    let (me, to) = (identity(&ca, "a"), there.to_string());
    let (_, second) = tokio::join!(connect(&a, &me, &to, Purpose::Gossip), come());
    let used = links_b.connection(here).await.unwrap();
    assert_eq!(used.stable_id(), second.stable_id());
}

#[tokio::test]
async fn an_address_that_nobody_answers_at_is_reached_as_soon_as_its_node_connects() {
    let ca = ClusterCa::found(Utc::now()).unwrap();
    let socket = bind(0).await;
    let address = socket.local_addr().unwrap();
    let links = links(&ca);
    assert!(links.connection(address).await.is_err());
    assert!(links.link(address).state().is_resting());

    let server = transport::server_endpoint(bind(0).await, &identity(&ca, "me")).unwrap();
    let node = transport::server_endpoint(socket, &identity(&ca, "a")).unwrap();
    let to = server.local_addr().unwrap().to_string();
    let a = identity(&ca, "a");
    let come = async {
        let connecting = transport::accept(&server).await.unwrap();
        transport::handshake(connecting, ca.cluster()).await.unwrap()
    };
    let (dialled, came) = tokio::join!(connect(&node, &a, &to, Purpose::Gossip), come);
    links.adopt(came.connection);
    links.send(address, vec![1].into());
    assert_eq!(dialled.unwrap().read_datagram().await.unwrap(), vec![1]);
}

#[tokio::test(start_paused = true)]
async fn whoever_never_answers_is_left_alone_for_longer_each_time_up_to_2_s() {
    let mut state = State::default();
    let rests = [250, 500, 1000, 2000, 2000].map(Duration::from_millis);
    for rest in rests {
        state.rest();
        assert_eq!(state.resting_until, Some(Instant::now() + rest));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_outlives_the_runtime_that_wanted_it() {
    let ca = ClusterCa::found(Utc::now()).unwrap();
    let mut node = listen(&ca, &identity(&ca, "a"), bind(0).await);
    let links = links(&ca);
    let (elsewhere, to) = (links.clone(), node.address);
    let dialled = std::thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().unwrap();
        runtime.block_on(elsewhere.connection(to)).unwrap()
    });
    let connection = dialled.join().unwrap();
    connection.send_datagram(vec![1].into()).unwrap();
    assert_eq!(node.next().await, vec![1]);
}
