//! Connections to nodes that are there, have moved, are somebody else, or are not there.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use futures_util::future::join_all;
use quinn::Endpoint;
use tokio::sync::watch;
use tokio::time::timeout;
use zdap_proto::identity::{ClusterCa, Identity, Subject};
use zdap_proto::message::Request;
use zdap_proto::name::NodeName;
use zdap_proto::transport;

use super::{Peers, Trouble, Way};
use crate::cluster::{Seen, View};
use crate::gossip::MemberState;

struct World {
    ca: ClusterCa,
    view: watch::Sender<Arc<View>>,
    certified: watch::Sender<Identity>,
    peers: Arc<Peers>,
}

fn name(name: &str) -> NodeName {
    name.parse().unwrap()
}

impl World {
    fn new() -> Self {
        let ca = ClusterCa::found(Utc::now()).unwrap();
        let me = ca.identity(&Subject::Node(name("a")), HOUR, Utc::now()).unwrap();
        let view = watch::Sender::new(Arc::new(View {
            me: name("a"),
            members: BTreeMap::new(),
        }));
        let endpoint = transport::client_endpoint().unwrap();
        let certified = watch::Sender::new(me);
        let peers = Peers::new(endpoint, certified.subscribe(), view.subscribe());
        Self {
            ca,
            view,
            certified,
            peers: Arc::new(peers),
        }
    }

    /// Says where `b` is, and how.
    fn tell(&self, address: SocketAddr, state: MemberState) {
        self.tell_of_life(1, address, state);
    }

    fn tell_of_life(&self, epoch: u64, address: SocketAddr, state: MemberState) {
        self.view.send_modify(|view| {
            let members = &mut Arc::make_mut(view).members;
            members.insert(name("b"), Seen::met(address, state, epoch));
        });
    }

    /// Serves as `node`, and holds what connects; answers nothing.
    fn serve(&self, node: &str) -> (Endpoint, SocketAddr) {
        let identity = self.ca.identity(&Subject::Node(name(node)), HOUR, Utc::now());
        let socket = transport::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let endpoint = transport::server_endpoint(socket, &identity.unwrap()).unwrap();
        let address = endpoint.local_addr().unwrap();
        let (serving, cluster) = (endpoint.clone(), self.ca.cluster().clone());
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Some(connecting) = transport::accept(&serving).await {
                held.push(transport::handshake(connecting, &cluster).await);
            }
        });
        (endpoint, address)
    }

    /// Waits until there is a connection to where `b` is now.
    async fn until_ready(&self) {
        let way = Way::control(&name("b"));
        let is_ready = || {
            let slot = self.peers.slot(&way);
            let there = self.peers.whereabouts(&way.to);
            let kept = slot.try_lock();
            kept.is_ok_and(|kept| there.is_ok_and(|there| self.peers.good(&kept, &there).is_some()))
        };
        let ready = async {
            while !is_ready() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(READY, ready).await.expect("there is no connection");
    }

    async fn connect(&self) -> Result<(usize, bool), Trouble> {
        let connection = self.peers.connection(&Way::control(&name("b"))).await;
        match connection {
            Ok((connection, is_fresh)) => Ok((connection.stable_id(), is_fresh)),
            Err(error) => Err(error.trouble),
        }
    }
}

#[tokio::test]
async fn of_many_who_need_a_connection_at_once_one_dials_and_it_is_kept() {
    let world = World::new();
    let (_endpoint, address) = world.serve("b");
    world.tell(address, MemberState::Alive);
    let all = join_all((0..16).map(|_| world.connect())).await;
    let all: Vec<_> = all.into_iter().map(Result::unwrap).collect();
    assert_eq!(all.iter().filter(|(_, is_fresh)| *is_fresh).count(), 1);
    let (id, is_fresh) = world.connect().await.unwrap();
    assert!(all.iter().all(|(other, _)| *other == id));
    assert!(!is_fresh);
}

#[tokio::test]
async fn a_node_that_comes_and_comes_back_is_connected_to_before_anybody_asks() {
    let world = World::new();
    let (_endpoint, address) = world.serve("b");
    tokio::spawn(Arc::clone(&world.peers).stay_ready());
    for epoch in 1..=2 {
        world.tell_of_life(epoch, address, MemberState::Alive);
        world.until_ready().await;
        assert!(!world.connect().await.unwrap().1, "it was there");
        world.tell_of_life(epoch, address, MemberState::Down);
    }
}

#[tokio::test]
async fn a_connection_that_was_lost_is_made_again_before_anybody_asks() {
    let world = World::new();
    let (_endpoint, address) = world.serve("b");
    world.tell(address, MemberState::Alive);
    tokio::spawn(Arc::clone(&world.peers).stay_ready());
    world.until_ready().await;
    let (connection, _) = world.peers.connection(&Way::control(&name("b"))).await.unwrap();
    connection.close(0_u32.into(), b"");
    // Any news makes it look again.
    world.tell(address, MemberState::Alive);
    world.until_ready().await;
}

#[tokio::test]
async fn of_many_nodes_none_is_connected_to_before_somebody_asks() {
    let world = World::new();
    let (endpoint, address) = world.serve("b");
    world.view.send_modify(|view| {
        let members = &mut Arc::make_mut(view).members;
        for number in 0..9 {
            members.insert(
                name(&format!("c{number}")),
                Seen::met(address, MemberState::Alive, 1),
            );
        }
    });
    let staying = tokio::spawn(Arc::clone(&world.peers).stay_ready());
    world.tell(address, MemberState::Alive);
    assert!(
        timeout(Duration::from_millis(1500), world.until_ready())
            .await
            .is_err()
    );
    assert_eq!(endpoint.open_connections(), 0);
    staying.abort();
}

#[tokio::test]
async fn a_connection_that_is_closed_or_leads_where_the_node_was_is_replaced() {
    let world = World::new();
    let (_first, address) = world.serve("b");
    world.tell(address, MemberState::Alive);
    let (connection, _) = world.peers.connection(&Way::control(&name("b"))).await.unwrap();
    connection.close(0_u32.into(), b"");
    assert!(world.connect().await.unwrap().1, "made anew");
    let (_second, address) = world.serve("b");
    world.tell(address, MemberState::Alive);
    assert!(world.connect().await.unwrap().1, "made anew");
}

#[tokio::test]
async fn a_connection_to_an_earlier_life_of_the_node_is_replaced() {
    let world = World::new();
    let (_endpoint, address) = world.serve("b");
    world.tell_of_life(1, address, MemberState::Alive);
    let (first, _) = world.connect().await.unwrap();
    assert_eq!(world.connect().await.unwrap(), (first, false));
    world.tell_of_life(2, address, MemberState::Alive);
    let (second, is_fresh) = world.connect().await.unwrap();
    assert!(is_fresh);
    assert_ne!(second, first);
    assert_eq!(world.connect().await.unwrap(), (second, false));
}

#[tokio::test]
async fn with_a_new_certificate_the_node_connects_anew_and_what_runs_over_the_old_connection_goes_on() {
    let world = World::new();
    let (_endpoint, address) = world.serve("b");
    world.tell(address, MemberState::Alive);
    let way = Way::control(&name("b"));
    let (old, _) = world.peers.connection(&way).await.unwrap();
    let renewed = world.ca.identity(&Subject::Node(name("a")), 2 * HOUR, Utc::now());
    world.certified.send_replace(renewed.unwrap());
    let (new, is_fresh) = world.peers.connection(&way).await.unwrap();
    assert!(is_fresh);
    assert_ne!(old.stable_id(), new.stable_id());
    assert_eq!(old.close_reason(), None);
    assert!(!world.connect().await.unwrap().1);
}

#[tokio::test]
async fn the_tunnels_of_each_user_have_a_connection_that_goes_with_the_last_of_them() {
    let world = World::new();
    let (_endpoint, address) = world.serve("b");
    world.tell(address, MemberState::Alive);
    let tunnel = async |user: &str| {
        let way = Way::tunnel(&name("b"), Some(&user.parse().unwrap()));
        world.peers.connection(&way).await.unwrap()
    };
    let (first, _) = tunnel("ada").await;
    let (second, is_fresh) = tunnel("ada").await;
    assert_eq!((first.stable_id(), is_fresh), (second.stable_id(), false));
    let (of_bob, is_fresh) = tunnel("bob").await;
    assert!(is_fresh);
    drop((first, second));
    assert!(tunnel("ada").await.1, "the connection was closed");
    assert_eq!(of_bob.close_reason(), None);
    tunnel("carl").await;
    assert_eq!(world.peers.kept.lock().unwrap().len(), 2, "of bob and of carl");
}

#[tokio::test]
async fn whoever_else_is_at_the_nodes_address_is_told_from_it() {
    let world = World::new();
    let (_endpoint, address) = world.serve("c");
    world.tell(address, MemberState::Alive);
    let error = world
        .peers
        .connection(&Way::control(&name("b")))
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("node `b` is not at {address}, where node `c` is")
    );
}

#[tokio::test]
async fn a_node_that_is_unknown_or_down_is_not_dialled() {
    let world = World::new();
    assert!(matches!(world.connect().await, Err(Trouble::Unknown)));
    world.tell("127.0.0.1:1".parse().unwrap(), MemberState::Down);
    assert!(matches!(world.connect().await, Err(Trouble::Down)));
}

#[tokio::test]
async fn all_who_wait_for_a_connection_hear_at_once_that_there_is_none() {
    let world = World::new();
    let mute = UdpSocket::bind("127.0.0.1:0").unwrap();
    world.tell(mute.local_addr().unwrap(), MemberState::Alive);
    let all = timeout(ONE_DIAL, join_all((0..8).map(|_| world.connect())));
    for result in all.await.expect("not one after the other") {
        assert!(matches!(result, Err(Trouble::Unreachable(_))), "{result:?}");
    }
}

#[tokio::test]
async fn a_node_that_does_not_answer_is_waited_for_until_the_deadline_or_until_it_is_down() {
    let world = World::new();
    let (_endpoint, address) = world.serve("b");
    world.tell(address, MemberState::Alive);
    let me = Subject::Node(name("a"));
    let (b, request) = (name("b"), Request::ListNodes);
    let deadline = Duration::from_millis(50);
    let error = world.peers.ask(&b, &me, &request, deadline).await.unwrap_err();
    assert!(matches!(error.trouble, Trouble::Slow(_)), "{error}");
    let mut patient = std::pin::pin!(world.peers.ask_patiently(&b, &me, &request, |_| {}));
    let early = timeout(deadline, &mut patient).await;
    assert!(early.is_err(), "{early:?}");
    world.tell(address, MemberState::Down);
    let error = patient.await.unwrap_err();
    assert!(matches!(error.trouble, Trouble::Down), "{error}");
}

/// Long enough for any machine.
const READY: Duration = Duration::from_secs(30);
const HOUR: Duration = Duration::from_secs(3600);
/// Longer than one attempt takes, shorter than two.
const ONE_DIAL: Duration = Duration::from_secs(9);
