//! A cluster in virtual time: the very code that ranks, chooses, offers and reserves, with messages that take time,
//! digests that are old, clones that are counted late, and measures that lag.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use zdap_node::gossip::MemberState;
use zdap_node::placement::{Bid, Choice, Known, Stock, Wish, rank};
use zdap_node::reserve::{Offered, Refused};
use zdap_proto::digest::{NodeDigest, NodeReport};
use zdap_proto::name::{NodeName, RequestId, SnapshotTime};

use crate::machine::{Heard, Machine, clone};

/// The nodes of the issue.
pub(crate) const WEIGHTS: [u32; 10] = [1, 1, 1, 1, 1, 2, 2, 2, 4, 4];

/// Who chooses the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    /// `zdap_node::placement`.
    Ours,
    /// The score of the original zdap over the status of every node, fetched without any delay.
    Original,
}

/// A cluster, what is under way in it, and what became of it.
pub(crate) struct World {
    pub(crate) rng: StdRng,
    policy: Policy,
    epoch: Instant,
    now: Duration,
    nodes: Vec<Machine>,
    requests: Vec<Request>,
    /// For each node the requests it has to find a place for, one after the other.
    turns: Vec<VecDeque<usize>>,
    events: BTreeMap<(Duration, u64), Event>,
    scheduled: u64,
    /// Bids that were refused.
    pub(crate) refusals: u32,
    /// Requests that found no place.
    pub(crate) failures: u32,
}

struct Request {
    entry: usize,
    token: RequestId,
    lifetime: Duration,
    choice: Option<Choice>,
    /// Offers that have not come yet.
    waiting: usize,
}

/// What an answer carries besides: the version of the newest digest of who sent it.
type Version = (u64, u32);

/// The first number is the request, the second the node.
enum Event {
    Ask(usize),
    Offer(usize, usize),
    Offered(usize, usize, Result<Offered, Refused>, Version),
    Reserve(usize, usize, Bid),
    Reserved(usize, usize, Bid, Result<(), Refused>, Version),
    Create(usize, usize),
    Created(usize, usize),
    Publish {
        from: usize,
    },
    Deliver {
        from: usize,
        to: usize,
        digest: NodeDigest,
    },
}

impl World {
    /// A cluster that has run for a while, with about `preload` clones for each weight.
    pub(crate) fn new(policy: Policy, preload: f64, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let machine = |(at, weight): (usize, &u32)| Machine::new(at, *weight, preload, &mut rng);
        let mut nodes: Vec<Machine> = WEIGHTS.iter().enumerate().map(machine).collect();
        let heard: Vec<Heard> = nodes.iter().map(|node| node.said.clone()).collect();
        for node in &mut nodes {
            node.heard.clone_from(&heard);
        }
        let mut world = Self {
            rng,
            policy,
            epoch: Instant::now(),
            now: Duration::ZERO,
            nodes,
            requests: Vec::new(),
            turns: vec![VecDeque::new(); WEIGHTS.len()],
            events: BTreeMap::new(),
            scheduled: 0,
            refusals: 0,
            failures: 0,
        };
        for from in 0..WEIGHTS.len() {
            let phase = world.between(0.0, 1.0);
            world.schedule(phase, Event::Publish { from });
        }
        world
    }

    /// Has a clone asked for at the node `entry`.
    pub(crate) fn ask(&mut self, at: Duration, entry: usize, lifetime: Duration) {
        let request = self.requests.len();
        self.requests.push(Request {
            entry,
            token: format!("{request:032x}").parse().unwrap(),
            lifetime,
            choice: None,
            waiting: 0,
        });
        self.schedule(at - self.now, Event::Ask(request));
    }

    /// Lets time pass.
    pub(crate) fn run_until(&mut self, end: Duration) {
        while let Some(event) = self.events.first_entry().filter(|event| event.key().0 <= end) {
            let ((at, _), event) = event.remove_entry();
            self.now = at;
            self.happen(event);
        }
        self.now = end;
    }

    /// Returns how many clones there are.
    pub(crate) fn clones(&self) -> usize {
        self.nodes.iter().map(|node| node.running(self.now)).sum()
    }

    /// Returns the most clones for each weight on any node, with the mean as 1.
    pub(crate) fn imbalance(&self) -> f64 {
        let weight: u32 = WEIGHTS.iter().sum();
        let mean = self.clones() as f64 / f64::from(weight);
        let per_weight = |node: &Machine| node.running(self.now) as f64 / f64::from(node.weight);
        self.nodes.iter().map(per_weight).fold(0.0, f64::max) / mean
    }

    /// Returns how many places are promised and not yet clones; and how many clones nodes believe to be on others beyond
    /// what these have told.
    pub(crate) fn outstanding(&self) -> (u32, u32) {
        let now = self.epoch + self.now;
        let promised = |node: &Machine| {
            let report = node.reservations.report(now, |_| NodeReport::default());
            u32::from(report.reservations)
        };
        let pending = |node: &Machine| -> u32 {
            let pending = |heard: &Heard| node.debits.pending(&heard.digest, now).clones;
            node.heard.iter().map(pending).sum()
        };
        (
            self.nodes.iter().map(promised).sum(),
            self.nodes.iter().map(pending).sum(),
        )
    }

    fn happen(&mut self, event: Event) {
        let instant = self.epoch + self.now;
        match event {
            Event::Ask(request) if self.policy == Policy::Original => {
                let score = |at: &usize| self.nodes[*at].original_score(self.now);
                let all = 0..self.nodes.len();
                let best = all
                    .max_by(|one, other| score(one).total_cmp(&score(other)))
                    .unwrap();
                let building = self.between(0.3, 0.7);
                self.schedule(building, Event::Created(request, best));
            }
            Event::Ask(request) => {
                let turns = &mut self.turns[self.requests[request].entry];
                turns.push_back(request);
                if turns.len() == 1 {
                    self.begin(request);
                }
            }
            Event::Offer(request, at) => {
                let node = &self.nodes[at];
                let by = &self.nodes[self.requests[request].entry].name;
                let offered = node
                    .reservations
                    .offer(by, clone(), instant, |_| node.figures(self.now));
                let version = node.said.digest.version();
                self.send(request, at, Event::Offered(request, at, offered, version));
            }
            Event::Offered(request, at, offered, version) => {
                let said = offered
                    .as_ref()
                    .map_or_else(|refused| refused.offered, |offered| *offered);
                self.learn(request, at, said, version);
                let asked = &mut self.requests[request];
                let choice = asked.choice.as_mut().unwrap();
                match offered {
                    Ok(offered) => choice.offered(&self.nodes[at].name, offered),
                    Err(refused) => choice.declined(&self.nodes[at].name, refused.reason),
                }
                asked.waiting -= 1;
                if asked.waiting == 0 {
                    self.bid(request);
                }
            }
            Event::Reserve(request, at, bid) => {
                let node = &self.nodes[at];
                let token = &self.requests[request].token;
                let reserved = node
                    .reservations
                    .reserve(token, clone(), bid.at_most, instant, |_| node.figures(self.now));
                let version = node.said.digest.version();
                self.send(request, at, Event::Reserved(request, at, bid, reserved, version));
            }
            Event::Reserved(request, at, bid, Ok(()), version) => {
                let entry = self.requests[request].entry;
                self.requests[request].choice.as_mut().unwrap().accepted(&bid);
                if at != entry {
                    self.nodes[entry]
                        .debits
                        .note(&bid.node, clone(), version, instant);
                }
                self.end_turn(entry);
                self.send(request, at, Event::Create(request, at));
            }
            Event::Reserved(request, at, bid, Err(refused), version) => {
                self.refusals += 1;
                self.learn(request, at, refused.offered, version);
                let choice = self.requests[request].choice.as_mut().unwrap();
                choice.refused(&bid, refused);
                self.bid(request);
            }
            Event::Create(request, at) => {
                let token = &self.requests[request].token;
                let place = self.nodes[at].reservations.take(token, instant).unwrap();
                self.nodes[at].places.insert(request, place);
                let building = self.between(0.3, 0.7);
                self.schedule(building, Event::Created(request, at));
            }
            Event::Created(request, at) => {
                let until = self.now.saturating_add(self.requests[request].lifetime);
                self.nodes[at].start(self.now, until);
                self.nodes[at].places.remove(&request);
            }
            Event::Publish { from } => {
                self.nodes[from].settle(self.now);
                if let Some(digest) = self.nodes[from].publish(self.now, instant) {
                    for to in (0..self.nodes.len()).filter(|to| *to != from) {
                        let digest = digest.clone();
                        let way = self.between(0.005, 0.125);
                        self.schedule(way, Event::Deliver { from, to, digest });
                    }
                }
                self.schedule(Duration::from_secs(1), Event::Publish { from });
            }
            Event::Deliver { from, to, digest } => {
                let node = &mut self.nodes[to];
                node.debits.heard(&digest, instant);
                node.heard[from] = Heard { digest, at: self.now };
            }
        }
    }

    fn begin(&mut self, request: usize) {
        let choice = self.choose(request);
        let asked: Vec<usize> = choice.to_ask().map(|name| self.place(name)).collect();
        self.requests[request].choice = Some(choice);
        self.requests[request].waiting = asked.len();
        for at in &asked {
            self.send(request, *at, Event::Offer(request, *at));
        }
        if asked.is_empty() {
            self.bid(request);
        }
    }

    /// Goes on with the next request at a node, once the one before has a place or can have none.
    fn end_turn(&mut self, entry: usize) {
        self.turns[entry].pop_front();
        if let Some(next) = self.turns[entry].front() {
            self.begin(*next);
        }
    }

    fn choose(&mut self, request: usize) -> Choice {
        let entry = self.requests[request].entry;
        let instant = self.epoch + self.now;
        let me = &self.nodes[entry];
        let own = me.report(self.now, instant);
        let snapshots: [SnapshotTime; 1] = ["2026-11-22T03:00:00Z".parse().unwrap()];
        let known = me.heard.iter().enumerate().map(|(at, heard)| Known {
            node: &heard.digest.node,
            state: MemberState::Alive,
            report: Some(match at == entry {
                true => &own,
                false => &heard.digest.report,
            }),
            stock: Stock::Snapshots(&snapshots),
            debits: me.debits.pending(&heard.digest, instant),
            has_warm: false,
        });
        let wish = Wish {
            snapshot: None,
            node: None,
            period: None,
            clone: clone(),
            now: snapshots[0].time(),
        };
        let ranking = rank(known, &wish, &mut self.rng);
        Choice::new(ranking, &mut self.rng)
    }

    fn bid(&mut self, request: usize) {
        match self.requests[request].choice.as_mut().unwrap().next_bid() {
            Some(bid) => {
                let at = self.place(&bid.node);
                self.send(request, at, Event::Reserve(request, at, bid));
            }
            None => {
                self.failures += 1;
                self.end_turn(self.requests[request].entry);
            }
        }
    }

    fn learn(&mut self, request: usize, at: usize, said: Offered, version: Version) {
        let entry = self.requests[request].entry;
        if at != entry {
            let name = self.nodes[at].name.clone();
            let now = self.epoch + self.now;
            self.nodes[entry].debits.learn(&name, said, clone(), version, now);
        }
    }

    fn place(&self, name: &NodeName) -> usize {
        self.nodes.iter().position(|node| node.name == *name).unwrap()
    }

    /// Returns a random time between two, in seconds.
    pub(crate) fn between(&mut self, from: f64, to: f64) -> Duration {
        Duration::from_secs_f64(self.rng.random_range(from..to))
    }

    /// Sends something between the entry of a request and a node: half of a round trip of 1 ms, more or less.
    fn send(&mut self, request: usize, at: usize, event: Event) {
        let way = match self.requests[request].entry == at {
            true => Duration::ZERO,
            false => self.between(0.0004, 0.0006),
        };
        self.schedule(way, event);
    }

    fn schedule(&mut self, after: Duration, event: Event) {
        self.scheduled += 1;
        self.events.insert((self.now + after, self.scheduled), event);
    }
}
