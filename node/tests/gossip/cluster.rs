//! Many nodes' gossip in one thread, on a clock that is only numbers: one seed, one course of events.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use zdap_node::gossip::{
    Action, Gossip, Knowledge, MAX_PACKET_BYTES, Member, MemberState, PacketError, Peer, Settings,
};
use zdap_proto::digest::{NodeDigest, NodeReport};
use zdap_proto::name::{ClusterId, NodeName};

/// What a datagram costs beside its payload: IPv4 and UDP 28, QUIC's short header 11, the frame 3, the seal 16. QUIC's own
/// acknowledgements are not counted.
pub const WIRE_OVERHEAD: u64 = 58;

/// A cluster, its network and its time.
pub struct Cluster {
    /// The network.
    pub network: Network,
    /// What nodes are started with.
    pub settings: Settings,
    nodes: Vec<Node>,
    queue: BinaryHeap<Reverse<Event>>,
    events: u64,
    start: Instant,
    now: Instant,
    rng: StdRng,
    /// Folds in every packet that was delivered: two equal runs have equal traces.
    pub trace: u64,
    seen: Vec<Seen>,
}

/// What the network does to packets.
pub struct Network {
    /// One way.
    pub latency: Range<Duration>,
    /// Of one, so many are lost.
    pub loss: f64,
    /// The side of a split that a node is on.
    pub side: fn(usize) -> usize,
}

/// Something that a node noticed.
pub struct Seen {
    /// When.
    pub at: Instant,
    /// Which node.
    pub node: usize,
    /// What.
    pub what: What,
}

/// What a node noticed.
pub enum What {
    /// A member is new or has changed.
    Member(usize, Member),
    /// A digest is new.
    Digest(usize, NodeDigest),
    /// It came back under a higher epoch.
    Renewed,
    /// Another goes by its name; whether that one wins.
    Conflict(bool),
}

struct Node {
    name: NodeName,
    address: SocketAddr,
    gossip: Option<Gossip>,
    /// The highest that was written down.
    persisted: u64,
    wake: Option<Instant>,
    stalled_until: Option<Instant>,
    packet_bytes: u64,
    stream_bytes: u64,
}

struct Event {
    at: Instant,
    number: u64,
    what: Happening,
}

enum Happening {
    Packet {
        from: usize,
        to: usize,
        bytes: Rc<[u8]>,
    },
    Wake {
        node: usize,
    },
    Compare {
        from: usize,
        to: usize,
        fingerprint: u64,
    },
    Learn {
        from: usize,
        to: usize,
        knowledge: Rc<Knowledge>,
        answers: bool,
    },
}

impl Cluster {
    /// Makes a cluster of nodes that are not started.
    pub fn new(nodes: usize, seed: u64) -> Self {
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
    pub fn knit(nodes: usize, seed: u64, settings: Settings) -> Self {
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
    pub fn start(&mut self, index: usize, contacts: &[usize]) {
        let node = &mut self.nodes[index];
        let since_start = u64::try_from((self.now - self.start).as_millis()).unwrap();
        // As if it had begun in November 2026.
        let generation = (node.persisted + 1).max(1_795_353_600_000 + since_start);
        self.start_as(index, generation, self.nodes[index].address, contacts);
    }

    /// Starts a node with this generation and at this address.
    pub fn start_as(&mut self, index: usize, generation: u64, address: SocketAddr, contacts: &[usize]) {
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
    pub fn rename(&mut self, index: usize, name: NodeName) {
        self.nodes[index].name = name;
    }

    /// Ends a node without a word.
    pub fn crash(&mut self, index: usize) {
        self.nodes[index].gossip = None;
    }

    /// Halts a node; packets wait for it.
    pub fn stall(&mut self, index: usize, time: Duration) {
        self.nodes[index].stalled_until = Some(self.now + time);
    }

    /// Gives a node something to say.
    pub fn publish(&mut self, index: usize, report: NodeReport) {
        let now = self.now;
        self.with(index, |gossip| gossip.publish(report, now));
    }

    /// Calls a node that is up, and does what it wants done.
    pub fn with<T>(&mut self, index: usize, call: impl FnOnce(&mut Gossip) -> T) -> T {
        let result = call(self.nodes[index].gossip.as_mut().unwrap());
        self.act(index);
        result
    }

    /// Returns a node that is up.
    pub fn gossip(&self, index: usize) -> &Gossip {
        self.nodes[index].gossip.as_ref().unwrap()
    }

    /// Returns the name of a node.
    pub fn name(&self, index: usize) -> &NodeName {
        &self.nodes[index].name
    }

    /// Returns where a node is reached.
    pub fn address(&self, index: usize) -> SocketAddr {
        self.nodes[index].address
    }

    /// Returns the highest generation a node wrote down.
    pub fn persisted(&self, index: usize) -> u64 {
        self.nodes[index].persisted
    }

    /// Returns how many nodes there are, started or not.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Returns the time.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Returns the bytes all nodes have sent, on the wire: in packets, and on streams.
    pub fn bytes(&self) -> (u64, u64) {
        let nodes = self.nodes.iter();
        nodes.fold((0, 0), |(packets, streams), node| {
            (packets + node.packet_bytes, streams + node.stream_bytes)
        })
    }

    /// Whether every node that is up knows every other as alive, and no further one.
    pub fn agrees(&self) -> bool {
        let up: Vec<_> = self.up().collect();
        up.iter().all(|node| self.alive_at(*node) == up.len() - 1)
    }

    /// Returns how many members a node knows as alive.
    pub fn alive_at(&self, index: usize) -> usize {
        let members = self.gossip(index).members(self.now).into_iter();
        members
            .filter(|member| member.state == MemberState::Alive)
            .count()
    }

    /// Returns the nodes that are up.
    pub fn up(&self) -> impl Iterator<Item = usize> {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].gossip.is_some())
    }

    /// Runs for a time and returns what was seen.
    pub fn run_for(&mut self, time: Duration) -> Vec<Seen> {
        self.run_until(time, |_| false).1
    }

    /// Runs until `is_over` says so of something seen, at most for a time; returns how long it took and what was seen.
    pub fn run_until(
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
    pub fn run_until_agreed(&mut self, limit: Duration) -> Option<Duration> {
        let began = self.now;
        while self.now - began < limit {
            if self.agrees() {
                return Some(self.now - began);
            }
            self.run_for(Duration::from_millis(10));
        }
        None
    }

    fn happen(&mut self, event: Event) {
        let node = match &event.what {
            Happening::Packet { to, .. } | Happening::Compare { to, .. } | Happening::Learn { to, .. } => *to,
            Happening::Wake { node } => *node,
        };
        if let Some(until) = self.nodes[node].stalled_until {
            if self.now < until {
                // Numbered as it was: what waits is handled in the order it came.
                self.queue.push(Reverse(Event { at: until, ..event }));
                return;
            }
            self.nodes[node].stalled_until = None;
        }
        if self.nodes[node].gossip.is_none() {
            return;
        }
        let now = self.now;
        match event.what {
            Happening::Packet { from, to, bytes } => {
                let passed = u64::try_from((now - self.start).as_nanos()).unwrap();
                for part in [passed, from as u64, to as u64, bytes.len() as u64] {
                    self.trace = (self.trace ^ part).wrapping_mul(0x0100_0000_01b3);
                }
                let from = self.nodes[from].name.clone();
                match self.with(to, |gossip| gossip.handle_packet(&from, &bytes, now)) {
                    // The address was another node's.
                    Ok(()) | Err(PacketError::Astray { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            Happening::Wake { node } if self.nodes[node].wake == Some(event.at) => {
                self.nodes[node].wake = None;
                self.with(node, |gossip| gossip.handle_wake(now));
            }
            // Another was set.
            Happening::Wake { .. } => {}
            Happening::Compare {
                from,
                to,
                fingerprint,
            } => {
                let gossip = self.gossip(to);
                let differ = gossip.fingerprint() != fingerprint;
                let knowledge = differ.then(|| Rc::new(gossip.knowledge()));
                self.nodes[to].stream_bytes += WIRE_OVERHEAD + 12;
                if let Some(knowledge) = knowledge {
                    self.stream(to, from, knowledge, true);
                }
            }
            Happening::Learn {
                from,
                to,
                knowledge,
                answers,
            } => {
                let known = answers.then(|| Rc::new(self.gossip(to).knowledge()));
                let knowledge = Knowledge::clone(&knowledge);
                self.with(to, |gossip| gossip.learn(knowledge, now)).unwrap();
                if let Some(known) = known {
                    self.stream(to, from, known, false);
                }
            }
        }
    }

    /// Does what a node wants done.
    fn act(&mut self, index: usize) {
        let Some(mut gossip) = self.nodes[index].gossip.take() else {
            return;
        };
        while let Some(action) = gossip.poll_action() {
            let what = match action {
                Action::Send { to, packet } => {
                    assert!(packet.len() <= MAX_PACKET_BYTES, "{} bytes", packet.len());
                    self.nodes[index].packet_bytes += packet.len() as u64 + WIRE_OVERHEAD;
                    self.send(index, to, packet);
                    continue;
                }
                Action::PersistGeneration(generation) => {
                    assert!(generation > self.nodes[index].persisted, "a generation went back");
                    self.nodes[index].persisted = generation;
                    continue;
                }
                Action::Exchange { at, .. } => {
                    self.nodes[index].stream_bytes += WIRE_OVERHEAD + 12;
                    let fingerprint = gossip.fingerprint();
                    if let Some(to) = self.index_at(at)
                        && let Some(at) = self.arrival(index, to)
                    {
                        let from = index;
                        self.push(
                            at,
                            Happening::Compare {
                                from,
                                to,
                                fingerprint,
                            },
                        );
                    }
                    continue;
                }
                Action::Connected | Action::Alone | Action::Forgotten(_) => continue,
                Action::Member(member) => What::Member(self.index_of(&member.name), member),
                Action::Digest(digest) => What::Digest(self.index_of(&digest.node), digest),
                Action::Renewed => What::Renewed,
                Action::Conflict { is_winning, .. } => What::Conflict(is_winning),
            };
            self.seen.push(Seen {
                at: self.now,
                node: index,
                what,
            });
        }
        let wake = gossip.next_wake();
        let node = &mut self.nodes[index];
        node.gossip = Some(gossip);
        if let Some(at) = wake
            && node.wake.is_none_or(|set| at < set)
        {
            let at = at.max(self.now);
            node.wake = Some(at);
            self.push(at, Happening::Wake { node: index });
        }
    }

    fn send(&mut self, from: usize, to: SocketAddr, packet: Vec<u8>) {
        let is_lost = self.network.loss > 0.0 && self.rng.random_bool(self.network.loss);
        if let Some(to) = self.index_at(to)
            && !is_lost
            && let Some(at) = self.arrival(from, to)
        {
            let bytes = packet.into();
            self.push(at, Happening::Packet { from, to, bytes });
        }
    }

    /// Sends knowledge over a stream: what is lost of it comes later.
    fn stream(&mut self, from: usize, to: usize, knowledge: Rc<Knowledge>, answers: bool) {
        let bytes = postcard_size(&knowledge);
        self.nodes[from].stream_bytes += bytes + WIRE_OVERHEAD * bytes.div_ceil(1100);
        let is_late = self.network.loss > 0.0 && self.rng.random_bool(self.network.loss);
        if let Some(at) = self.arrival(from, to) {
            let late = Duration::from_millis(if is_late { 200 } else { 0 });
            self.push(
                at + late,
                Happening::Learn {
                    from,
                    to,
                    knowledge,
                    answers,
                },
            );
        }
    }

    /// Returns when something sent now arrives, unless a split is between.
    fn arrival(&mut self, from: usize, to: usize) -> Option<Instant> {
        let latency = self.rng.random_range(self.network.latency.clone());
        let side = self.network.side;
        (side(from) == side(to)).then_some(self.now + latency)
    }

    fn push(&mut self, at: Instant, what: Happening) {
        self.events += 1;
        self.queue.push(Reverse(Event {
            at,
            number: self.events,
            what,
        }));
    }

    fn index_of(&self, name: &NodeName) -> usize {
        let (_, number) = name.as_str().split_once('-').unwrap();
        number.parse().unwrap()
    }

    fn index_at(&self, address: SocketAddr) -> Option<usize> {
        let SocketAddr::V4(address) = address else {
            return None;
        };
        let [_, a, b, c] = address.ip().octets();
        let index = u32::from_be_bytes([0, a, b, c]).checked_sub(1)?;
        usize::try_from(index)
            .ok()
            .filter(|index| *index < self.nodes.len())
    }
}

/// The cluster all are of.
pub fn cluster_id() -> ClusterId {
    "k3v9x2mq0bcd".parse().unwrap()
}

fn postcard_size(knowledge: &Knowledge) -> u64 {
    knowledge.encode().len() as u64
}

impl Ord for Event {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Event {}
