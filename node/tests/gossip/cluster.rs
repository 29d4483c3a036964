//! Many nodes' gossip in one thread, on a clock that is only numbers: one seed, one course of events.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use zdap_node::gossip::{Gossip, Member, MemberState, Peer, Settings};
use zdap_proto::digest::{NodeDigest, NodeReport};
use zdap_proto::name::{ClusterId, NodeName};

use super::network::{Event, Happening};

/// What a packet costs beside its frames: IPv4 and UDP 28, QUIC's short header 10, the seal 16.
pub(crate) const PACKET_OVERHEAD: u64 = 54;

/// What a datagram costs beside its payload: the frame is 3. QUIC's own acknowledgements are counted apart.
pub(crate) const WIRE_OVERHEAD: u64 = PACKET_OVERHEAD + 3;

/// A cluster, its network and its time.
pub(crate) struct Cluster {
    /// The network.
    pub(crate) network: Network,
    /// What nodes are started with.
    pub(crate) settings: Settings,
    pub(crate) nodes: Vec<Node>,
    pub(crate) queue: BinaryHeap<Reverse<Event>>,
    pub(crate) events: u64,
    pub(crate) start: Instant,
    pub(crate) now: Instant,
    pub(crate) rng: StdRng,
    /// Folds in every packet that was delivered: two equal runs have equal traces.
    pub(crate) trace: u64,
    pub(crate) seen: Vec<Seen>,
}

/// What the network does to packets.
pub(crate) struct Network {
    /// One way.
    pub(crate) latency: Range<Duration>,
    /// Of one, so many are lost.
    pub(crate) loss: f64,
    /// The side of a split that a node is on.
    pub(crate) side: fn(usize) -> usize,
}

/// Something that a node noticed.
pub(crate) struct Seen {
    /// When.
    pub(crate) at: Instant,
    /// Which node.
    pub(crate) node: usize,
    /// What.
    pub(crate) what: What,
}

/// What a node noticed.
pub(crate) enum What {
    /// A member is new or has changed.
    Member(usize, Member),
    /// A digest is new.
    Digest(usize, NodeDigest),
    /// It came back under a higher epoch.
    Renewed,
    /// Another goes by its name; whether that one wins.
    Conflict(bool),
}

/// A node, its address and what outlives it.
pub(crate) struct Node {
    pub(crate) name: NodeName,
    pub(crate) address: SocketAddr,
    pub(crate) gossip: Option<Gossip>,
    /// The highest that was written down.
    pub(crate) persisted: u64,
    pub(crate) wake: Option<Instant>,
    pub(crate) stalled_until: Option<Instant>,
    pub(crate) packet_bytes: u64,
    pub(crate) stream_bytes: u64,
    pub(crate) acknowledgement_bytes: u64,
    /// Whose last packet is not acknowledged yet, and since when.
    pub(crate) unacknowledged: BTreeMap<usize, Instant>,
}

impl Cluster {
    /// Makes a cluster of nodes that are not started.
    pub(crate) fn new(nodes: usize, seed: u64) -> Self {
        let start = Instant::now();
        let node = |index: usize| {
            let [.., a, b, c] = u32::try_from(index + 1).unwrap().to_be_bytes();
            Node {
                name: format!("node-{index:03}").parse().unwrap(),
                address: (Ipv4Addr::new(10, a, b, c), 43210).into(),
                gossip: None,
                persisted: 0,
                wake: None,
                stalled_until: None,
                packet_bytes: 0,
                stream_bytes: 0,
                acknowledgement_bytes: 0,
                unacknowledged: BTreeMap::new(),
            }
        };
        Self {
            network: Network {
                latency: Duration::from_micros(200)..Duration::from_micros(400),
                loss: 0.0,
                side: |_| 0,
            },
            settings: Settings::default(),
            nodes: (0..nodes).map(node).collect(),
            queue: BinaryHeap::new(),
            events: 0,
            start,
            now: start,
            rng: StdRng::seed_from_u64(seed),
            trace: 0,
            seen: Vec::new(),
        }
    }

    /// Makes a cluster of nodes that all know each other and have settled.
    pub(crate) fn knit(nodes: usize, seed: u64, settings: Settings) -> Self {
        let mut cluster = Self::new(nodes, seed);
        cluster.settings = settings;
        for node in 0..nodes {
            cluster.start(node, &[]);
        }
        for node in 1..nodes {
            let knowledge = cluster.gossip(node).knowledge();
            let now = cluster.now;
            cluster.with(0, |gossip| gossip.learn(knowledge, now)).unwrap();
        }
        let all = Rc::new(cluster.gossip(0).knowledge());
        for node in 1..nodes {
            // Not all at once, as real ones would not probe in step.
            let after = cluster.rng.random_range(Duration::ZERO..Duration::from_secs(1));
            let knowledge = Rc::clone(&all);
            let what = Happening::Learn {
                from: 0,
                to: node,
                knowledge,
                answers: false,
            };
            cluster.push(cluster.now + after, what);
        }
        cluster.run_for(Duration::from_secs(12));
        cluster
    }

    /// Starts a node, again or for the first time, that may have written down the addresses of others.
    pub(crate) fn start(&mut self, index: usize, contacts: &[usize]) {
        let node = &mut self.nodes[index];
        let since_start = u64::try_from((self.now - self.start).as_millis()).unwrap();
        // As if it had begun in November 2026.
        let generation = (node.persisted + 1).max(1_795_353_600_000 + since_start);
        self.start_as(index, generation, self.nodes[index].address, contacts);
    }

    /// Starts a node with this generation and at this address.
    pub(crate) fn start_as(
        &mut self,
        index: usize,
        generation: u64,
        address: SocketAddr,
        contacts: &[usize],
    ) {
        let cluster = cluster_id();
        let contacts: Vec<_> = contacts.iter().map(|node| self.nodes[*node].address).collect();
        let rng = StdRng::from_rng(&mut self.rng);
        let node = &mut self.nodes[index];
        node.address = address;
        node.persisted = generation;
        node.wake = None;
        let me = Peer::new(node.name.clone(), address, generation).unwrap();
        node.gossip = Some(Gossip::new(cluster, me, self.settings.clone(), rng, self.now));
        let now = self.now;
        self.with(index, |gossip| gossip.join(contacts, now));
    }

    /// Gives a node that is not up another one's name.
    pub(crate) fn rename(&mut self, index: usize, name: NodeName) {
        self.nodes[index].name = name;
    }

    /// Ends a node without a word.
    pub(crate) fn crash(&mut self, index: usize) {
        self.nodes[index].gossip = None;
    }

    /// Halts a node; packets wait for it.
    pub(crate) fn stall(&mut self, index: usize, time: Duration) {
        self.nodes[index].stalled_until = Some(self.now + time);
    }

    /// Gives a node something to say.
    pub(crate) fn publish(&mut self, index: usize, report: NodeReport) {
        let now = self.now;
        self.with(index, |gossip| gossip.publish(report, now));
    }

    /// Calls a node that is up, and does what it wants done.
    pub(crate) fn with<T>(&mut self, index: usize, call: impl FnOnce(&mut Gossip) -> T) -> T {
        let result = call(self.nodes[index].gossip.as_mut().unwrap());
        self.act(index);
        result
    }

    /// Returns a node that is up.
    pub(crate) fn gossip(&self, index: usize) -> &Gossip {
        self.nodes[index].gossip.as_ref().unwrap()
    }

    /// Returns the name of a node.
    pub(crate) fn name(&self, index: usize) -> &NodeName {
        &self.nodes[index].name
    }

    /// Returns where a node is reached.
    pub(crate) fn address(&self, index: usize) -> SocketAddr {
        self.nodes[index].address
    }

    /// Returns the highest generation a node wrote down.
    pub(crate) fn persisted(&self, index: usize) -> u64 {
        self.nodes[index].persisted
    }

    /// Returns how many nodes there are, started or not.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Returns the time.
    pub(crate) fn now(&self) -> Instant {
        self.now
    }

    /// Returns the bytes all nodes have sent, on the wire: in packets, and on streams.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        let nodes = self.nodes.iter();
        nodes.fold((0, 0), |(packets, streams), node| {
            (packets + node.packet_bytes, streams + node.stream_bytes)
        })
    }

    /// Returns the bytes of QUIC's acknowledgements of packets that all nodes have sent.
    pub(crate) fn acknowledgement_bytes(&self) -> u64 {
        self.nodes.iter().map(|node| node.acknowledgement_bytes).sum()
    }

    /// Whether every node that is up knows every other as alive, and no further one.
    pub(crate) fn agrees(&self) -> bool {
        let up: Vec<_> = self.up().collect();
        up.iter().all(|node| self.alive_at(*node) == up.len() - 1)
    }

    /// Returns how many members a node knows as alive.
    pub(crate) fn alive_at(&self, index: usize) -> usize {
        let members = self.gossip(index).members(self.now).into_iter();
        members
            .filter(|member| member.state == MemberState::Alive)
            .count()
    }

    /// Whether a node is up.
    pub(crate) fn is_up(&self, index: usize) -> bool {
        self.nodes[index].gossip.is_some()
    }

    /// Returns the nodes that are up.
    pub(crate) fn up(&self) -> impl Iterator<Item = usize> {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].gossip.is_some())
    }

    /// Runs for a time and returns what was seen.
    pub(crate) fn run_for(&mut self, time: Duration) -> Vec<Seen> {
        self.run_until(time, |_| false).1
    }

    /// Runs until `is_over` says so of something seen, at most for a time; returns how long it took and what was seen.
    pub(crate) fn run_until(
        &mut self,
        limit: Duration,
        mut is_over: impl FnMut(&Seen) -> bool,
    ) -> (Option<Duration>, Vec<Seen>) {
        let began = self.now;
        let end = began + limit;
        let mut all = std::mem::take(&mut self.seen);
        while let Some(Reverse(next)) = self.queue.peek() {
            if next.at > end {
                break;
            }
            let Some(Reverse(event)) = self.queue.pop() else {
                break;
            };
            self.now = event.at;
            self.happen(event);
            let mut over = None;
            for seen in self.seen.drain(..) {
                if over.is_none() && is_over(&seen) {
                    over = Some(seen.at - began);
                }
                all.push(seen);
            }
            if over.is_some() {
                return (over, all);
            }
        }
        self.now = end;
        (None, all)
    }

    /// Runs until the nodes agree, looking every 10 ms; returns how long it took.
    pub(crate) fn run_until_agreed(&mut self, limit: Duration) -> Option<Duration> {
        let began = self.now;
        while self.now - began < limit {
            if self.agrees() {
                return Some(self.now - began);
            }
            self.run_for(Duration::from_millis(10));
        }
        None
    }
}

/// The cluster all are of.
pub(crate) fn cluster_id() -> ClusterId {
    "k3v9x2mq0bcd".parse().unwrap()
}
