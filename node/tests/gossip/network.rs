//! What happens in a cluster, in order: packets and streams that arrive, wakes, and what nodes do about them.

use std::cmp::Reverse;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rand::RngExt;
use zdap_node::gossip::{Action, Knowledge, MAX_PACKET_BYTES, PacketError};
use zdap_proto::name::NodeName;

use super::cluster::{Cluster, PACKET_OVERHEAD, Seen, WIRE_OVERHEAD, What};

/// Something that is to happen to a node.
pub(crate) struct Event {
    pub(crate) at: Instant,
    pub(crate) number: u64,
    pub(crate) what: Happening,
}

/// What.
pub(crate) enum Happening {
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
    pub(crate) fn happen(&mut self, event: Event) {
        let node = match &event.what {
            Happening::Packet { to, .. } | Happening::Compare { to, .. } | Happening::Learn { to, .. } => *to,
            Happening::Wake { node } => *node,
        };
        if let Some(until) = self.nodes[node].stalled_until {
            if self.now < until {
                self.wait(event, until);
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
                self.receive(from, to);
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

    /// Puts off what was to happen to a node that is halted. Packets are handled in the order they came, and then the time.
    fn wait(&mut self, mut event: Event, until: Instant) {
        if let Happening::Wake { node } = event.what {
            if self.nodes[node].wake != Some(event.at) {
                return;
            }
            self.nodes[node].wake = Some(until);
            event.number = u64::MAX;
        }
        self.queue.push(Reverse(Event { at: until, ..event }));
    }

    /// Does what a node wants done.
    pub(crate) fn act(&mut self, index: usize) {
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
                Action::Connected | Action::Alone | Action::Forgotten(_) | Action::Knocked(_) => continue,
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

    /// Notes that a packet is to be acknowledged: alone, unless another comes or goes soon.
    fn receive(&mut self, from: usize, to: usize) {
        let now = self.now;
        let node = &mut self.nodes[to];
        match node.unacknowledged.insert(from, now) {
            // One for both.
            Some(since) if now - since < ACKNOWLEDGE_WITHIN => {
                node.unacknowledged.remove(&from);
            }
            Some(_) | None => node.acknowledgement_bytes += PACKET_OVERHEAD + ACKNOWLEDGEMENT,
        }
    }

    /// Has a packet that is sent carry the acknowledgement of one that has just come.
    fn acknowledge_within(&mut self, from: usize, to: usize) {
        let now = self.now;
        let node = &mut self.nodes[from];
        if let Some(since) = node.unacknowledged.remove(&to)
            && now - since < ACKNOWLEDGE_WITHIN
        {
            node.acknowledgement_bytes -= PACKET_OVERHEAD;
        }
    }

    fn send(&mut self, from: usize, to: SocketAddr, packet: Vec<u8>) {
        let is_lost = self.network.loss > 0.0 && self.rng.random_bool(self.network.loss);
        if let Some(to) = self.index_at(to)
            && !is_lost
            && let Some(at) = self.arrival(from, to)
        {
            self.acknowledge_within(from, to);
            let bytes = packet.into();
            self.push(at, Happening::Packet { from, to, bytes });
        }
    }

    /// Sends knowledge over a stream: what is lost of it comes later.
    fn stream(&mut self, from: usize, to: usize, knowledge: Rc<Knowledge>, answers: bool) {
        let bytes = knowledge.encode().len() as u64;
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

    pub(crate) fn push(&mut self, at: Instant, what: Happening) {
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

/// QUIC's default.
const ACKNOWLEDGE_WITHIN: Duration = Duration::from_millis(25);

/// Bytes of the frame: its type, the newest packet, the delay, no gaps, how many.
const ACKNOWLEDGEMENT: u64 = 7;
