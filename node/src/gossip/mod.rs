//! Who is in the cluster and how each node is: SWIM (foca) with the repairs it needs, sans-io but for `driver`, `links` and
//! `streams`, which join it to the network and the clock.
//!
//! In go packets, the time, and what this node has to say; out come [`Action`]s. There is no socket, clock or task here:
//! whoever drives a [`Gossip`] calls [`Gossip::handle_packet`] for what arrives and [`Gossip::handle_wake`] when
//! [`Gossip::next_wake`] has come, however late, and after every call takes actions until there are none.
//!
//! What is done here beyond foca, and why:
//! - foca tells members to rejoin that have refuted a suspicion: its timer is dropped unless the suspicion still stands.
//! - foca does not say when it suspects: the members are mirrored, and a change of any kind is an action.
//! - foca stops all its timers when it knows nobody, so two nodes that lost each other never meet again: addresses that
//!   were ever known are knocked at while there is nobody, and now and then always.
//! - what packets lose is repaired by exchanges of all that two nodes know ([`Knowledge`]), which also tell a node that joins of
//!   everybody at once.
//! - of members that one side of a split has given up and the other has not, neither view is believed: the member is asked
//!   (`doubt.rs`), so that a split heals in a second or two and takes nobody down.
//! - a node that is given up comes back under a higher epoch; whether, when and how high is decided in one place
//!   (`renewal.rs`), so that two machines with one name are told about and do not fight for ever.
//! - a node that is late itself gives others as much longer (`lateness.rs`).
#![deny(clippy::disallowed_methods)]

mod action;
mod digests;
mod doubt;
#[allow(clippy::disallowed_methods, reason = "it acts: the pure part is the rest")]
pub mod driver;
mod exchange;
mod lateness;
#[allow(clippy::disallowed_methods, reason = "it acts: the pure part is the rest")]
pub(crate) mod links;
mod meeting;
mod members;
mod outbox;
mod packet;
mod peer;
mod publish;
mod renewal;
mod settings;
mod settling;
mod shared;
mod speaking;
#[allow(clippy::disallowed_methods, reason = "it acts: the pure part is the rest")]
pub(crate) mod streams;
mod timers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foca::Foca;
use rand::SeedableRng;
use rand::rngs::StdRng;
use zdap_proto::digest::{NodeDigest, NodeReport};
use zdap_proto::name::{ClusterId, NodeName};

pub use self::action::{Action, PacketError};
pub use self::exchange::{Knowledge, KnowledgeError};
pub use self::members::{Member, MemberState};
pub use self::packet::MAX_PACKET_BYTES;
pub use self::peer::{Peer, PeerError};
pub use self::settings::Settings;

use self::digests::Listener;
use self::doubt::Doubt;
use self::lateness::Allowed;
use self::members::Mirror;
use self::outbox::{Notice, Outbox};
use self::packet::{CodecError, Packet, PacketCodec};
use self::publish::Publisher;
use self::renewal::Rival;
use self::settling::RECONCILE_PERIOD;
use self::shared::Shared;
use self::timers::Timers;

/// One node's view of the cluster.
pub struct Gossip {
    cluster: ClusterId,
    settings: Settings,
    me: Peer,
    /// Of the digests. Unlike the epoch it stays when others give this node up: what they know of it stays valid.
    generation: u64,
    sequence: u32,
    /// The highest epoch or generation that was written down.
    persisted: u64,
    foca: Foca<Peer, PacketCodec, StdRng, Listener>,
    rng: StdRng,
    outbox: Outbox,
    shared: Shared,
    timers: Timers,
    mirror: Mirror,
    publisher: Publisher,
    actions: VecDeque<Action>,
    /// Addresses that are not a member's, or once were.
    contacts: BTreeSet<SocketAddr>,
    is_alone: bool,
    has_left: bool,
    sized_for: usize,
    /// The highest epoch that this node's name was seen with.
    highest_epoch: u64,
    rival: Option<Rival>,
    /// Members that are alive here and given up elsewhere.
    doubts: BTreeMap<Arc<NodeName>, Doubt>,
    /// Members that this node itself suspects.
    suspects: BTreeMap<Arc<NodeName>, foca::Member<Peer>>,
    /// Who said that this node is given up, or knows a later life of it.
    told_by: Option<Peer>,
    /// Not before this does it come back under a higher epoch.
    renewable_from: Option<Instant>,
    relayed_at: Option<Instant>,
    /// How late this node was found to be.
    allowed: Option<Allowed>,
    next: Deadlines,
}

/// When what foca does not do is due.
#[derive(Debug, Default)]
struct Deadlines {
    knock: Option<Instant>,
    exchange: Option<Instant>,
    relay: Option<Instant>,
    publish: Option<Instant>,
    renew: Option<Instant>,
    doubt: Option<Instant>,
    reconcile: Option<Instant>,
}

impl Gossip {
    /// Makes a node that knows nobody. The epoch of `me` must be above all that this name was ever seen with, as far as
    /// is known: `max(persisted + 1, milliseconds since 1970)`.
    pub fn new(cluster: ClusterId, me: Peer, settings: Settings, mut rng: StdRng, now: Instant) -> Self {
        let shared = Shared::new(me.clone(), now);
        let foca = new_foca(&cluster, &me, &settings, &shared, StdRng::from_rng(&mut rng));
        Self {
            cluster,
            generation: me.epoch,
            sequence: 0,
            persisted: me.epoch,
            highest_epoch: me.epoch,
            foca,
            rng,
            outbox: Outbox::of(&me),
            me,
            shared,
            timers: Timers::default(),
            mirror: Mirror::default(),
            publisher: Publisher::default(),
            actions: VecDeque::new(),
            contacts: BTreeSet::new(),
            is_alone: true,
            has_left: false,
            sized_for: 1,
            rival: None,
            doubts: BTreeMap::new(),
            suspects: BTreeMap::new(),
            told_by: None,
            renewable_from: None,
            relayed_at: None,
            allowed: None,
            next: Deadlines {
                reconcile: Some(now + RECONCILE_PERIOD),
                ..Deadlines::default()
            },
            settings,
        }
    }

    /// Gets to know whoever is at these addresses: those in an invite, those written down.
    pub fn join(&mut self, addresses: impl IntoIterator<Item = SocketAddr>, now: Instant) {
        self.begin(now);
        let mine = self.me.address;
        self.contacts
            .extend(addresses.into_iter().filter(|address| *address != mine));
        self.knock(now);
        self.settle(now);
    }

    /// Takes a packet. `from` is the name in the sender's certificate.
    pub fn handle_packet(&mut self, from: &NodeName, bytes: &[u8], now: Instant) -> Result<(), PacketError> {
        let malformed = |reason: String| PacketError::Malformed {
            from: from.clone(),
            reason,
        };
        let packet = Packet::decode(bytes).ok_or_else(|| malformed(format!("{} bytes", bytes.len())))?;
        let sender = packet
            .sender(from)
            .ok_or_else(|| malformed("no sender in it".to_owned()))?;
        if sender.name() != from {
            return Err(PacketError::Forged {
                from: from.clone(),
                claimed: sender.name().clone(),
            });
        }
        if self.has_left {
            return Ok(());
        }
        self.begin(now);
        let was_down = self.mirror.state(from) == Some(MemberState::Down);
        let result = match packet {
            Packet::Greeting(greeting) if greeting.cluster != self.cluster => {
                return Err(PacketError::OtherCluster {
                    from: from.clone(),
                    cluster: greeting.cluster,
                });
            }
            Packet::Greeting(greeting) => {
                self.answer(greeting, now);
                Ok(())
            }
            Packet::Swim(bytes) => {
                self.shared.lock().sender = Some(from.clone());
                let result = self.foca.handle_data(bytes, &mut self.outbox);
                if self.outbox.notices.contains(&Notice::GivenUp) {
                    self.told_by = Some(sender);
                }
                match result {
                    // The second is told about as a conflict.
                    Ok(()) | Err(foca::Error::DataFromOurselves) => Ok(()),
                    Err(foca::Error::Decode(error)) => match error.downcast_ref() {
                        Some(CodecError::Astray) => Err(PacketError::Astray { from: from.clone() }),
                        Some(CodecError::OldNews) => Ok(()),
                        Some(CodecError::Bytes(_) | CodecError::Full | CodecError::Nobody) | None => {
                            Err(malformed(error.to_string()))
                        }
                    },
                    Err(error) => Err(malformed(error.to_string())),
                }
            }
        };
        self.settle(now);
        if was_down && self.mirror.state(from) == Some(MemberState::Alive) {
            // What it missed, and what this side of a split missed.
            self.exchange_with(from);
        }
        result
    }

    /// Returns when [`Gossip::handle_wake`] is to be called.
    pub fn next_wake(&self) -> Option<Instant> {
        if self.has_left {
            return None;
        }
        let next = &self.next;
        [
            self.timers.next(),
            next.knock,
            next.exchange,
            next.relay,
            next.publish,
            next.renew,
            next.doubt,
            next.reconcile,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Does what is due. Early is harmless, and so is late: packets that came in meanwhile are best handled first.
    pub fn handle_wake(&mut self, now: Instant) {
        if self.has_left {
            return;
        }
        self.begin(now);
        self.allow_for_lateness(now);
        while let Some(timer) = self.timers.pop(now) {
            if self.is_stale(&timer) {
                continue;
            }
            if let Err(error) = self.foca.handle_timer(timer, &mut self.outbox) {
                tracing::debug!(%error, "the machine was late, or the membership has changed under a timer");
            }
            self.collect(now);
        }
        if take_due(&mut self.next.renew, now) {
            self.renew(now);
        }
        if take_due(&mut self.next.knock, now) {
            self.knock(now);
        }
        if take_due(&mut self.next.exchange, now) {
            self.exchange(1, now);
        }
        if take_due(&mut self.next.relay, now) {
            self.relay(now);
        }
        if take_due(&mut self.next.doubt, now) {
            self.follow_doubts(now);
        }
        if take_due(&mut self.next.reconcile, now) {
            self.reconcile(now);
        }
        self.settle(now);
    }

    /// Notes how this node is: to be called every few seconds, whatever the figures. Others are told when a change is worth
    /// it and it is this node's turn, and that the digest is stale if nothing is noted for [`Settings::stale_after`].
    pub fn publish(&mut self, report: NodeReport, now: Instant) {
        if self.has_left {
            return;
        }
        self.begin(now);
        self.publisher.set(report, now);
        self.settle(now);
    }

    /// Tells the others that this node goes. Nothing is due after it.
    pub fn leave(&mut self, now: Instant) {
        self.begin(now);
        self.has_left = true;
        let told = self
            .foca
            .leave_cluster(&mut self.outbox)
            // To four others, and four more for packets that are lost.
            .and_then(|()| self.foca.gossip(&mut self.outbox));
        if let Err(error) = told {
            tracing::debug!(%error, "leave without a word");
        }
        self.settle(now);
    }

    /// Returns what is to be done next.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Returns this node, as it is called now.
    pub fn me(&self) -> &Peer {
        &self.me
    }

    /// Returns all others that are known, by name.
    pub fn members(&self, now: Instant) -> Vec<Member> {
        self.mirror.iter(now).collect()
    }

    /// Returns the newest digest of every node that has said something, by name, each with its age. However old, it is how
    /// a member that is alive still is, small changes aside. Whose node is no member is still to be heard of, or gone.
    pub fn digests(&self, now: Instant) -> Vec<(NodeDigest, Duration)> {
        let overheard = self.shared.lock();
        let digests = overheard.digests.iter(now);
        digests.map(|(digest, age)| (digest.clone(), age)).collect()
    }
}

impl fmt::Debug for Gossip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gossip")
            .field("me", &self.me)
            .field("members", &self.foca.num_members())
            .finish_non_exhaustive()
    }
}

fn new_foca(
    cluster: &ClusterId,
    me: &Peer,
    settings: &Settings,
    shared: &Shared,
    rng: StdRng,
) -> Foca<Peer, PacketCodec, StdRng, Listener> {
    let codec = PacketCodec {
        cluster: cluster.clone(),
        shared: shared.clone(),
    };
    Foca::with_custom_broadcast(me.clone(), settings.swim(1), rng, codec, Listener(shared.clone()))
}

/// Whether a deadline has come; it is gone then.
fn take_due(deadline: &mut Option<Instant>, now: Instant) -> bool {
    let is_due = deadline.is_some_and(|at| at <= now);
    if is_due {
        *deadline = None;
    }
    is_due
}
