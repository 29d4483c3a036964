//! What this node believes of the cluster, itself included, and what it tells the others.
//!
//! The gossip runs on a thread of its own (`gossip/driver.rs`) and writes what it hears into the [`View`], which anybody can
//! have at any time without waiting. What this node says of itself is seen in its own view at once.

pub mod addresses;
mod board;
mod files;
mod keeping;
mod names;
pub(crate) mod namesake;
pub mod report;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use chrono::{DateTime, Utc};
use quinn::Connection;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};
use zdap_proto::digest::{MAX_GENERATION, NodeDigest, NodeReport};
use zdap_proto::name::{ClusterId, NodeName, UserName};
use zdap_proto::refusal::chain;

pub(crate) use self::board::{Board, News, Pulling};
use self::files::{Files, Met, Remembered};
use self::names::Names;
pub use self::view::{Heard, Seen, View};
use crate::catalog::{Catalog, Facts, Ledger, Life};
use crate::gossip::driver::{Command, Driver, Packet};
use crate::gossip::{Gossip, MemberState, Peer, Settings, streams};

/// How the gossip runs.
#[derive(Debug)]
pub struct GossipSetup {
    /// Its numbers.
    pub settings: Settings,
    /// Chance: whom it asks, and when; and what new clones are called.
    pub rng: StdRng,
    /// By the wall clock, when it starts: what its life is called by, so that a later one is higher.
    pub now: DateTime<Utc>,
    /// On a thread of its own, where no other work holds it up; else on the runtime that serves.
    pub own_thread: bool,
}

impl Default for GossipSetup {
    fn default() -> Self {
        Self {
            settings: Settings::default(),
            rng: StdRng::from_rng(&mut rand::rng()),
            now: Utc::now(),
            own_thread: true,
        }
    }
}

/// This node's place in the cluster. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cluster {
    board: Arc<Board>,
    commands: mpsc::Sender<Command>,
    packets: mpsc::Sender<Packet>,
    report: watch::Sender<Option<NodeReport>>,
}

impl Cluster {
    /// Opens this node's place: reads what earlier lives have written down, and begins a new one. Without its
    /// driver at work, which [`crate::serve`] starts, it knows itself, and whom earlier lives have met as down.
    pub fn open(
        state_dir: &Path,
        cluster: ClusterId,
        name: NodeName,
        address: SocketAddr,
        host_port: String,
        setup: GossipSetup,
    ) -> anyhow::Result<(Self, Driver)> {
        let GossipSetup {
            settings,
            mut rng,
            now: wall_clock,
            ..
        } = setup;
        let files = Files::of(state_dir);
        let epoch = next_epoch(files.generation()?, wall_clock);
        files
            .write_generation(epoch)
            .context("write down that the node starts once more")?;
        let peer = Peer::new(name.clone(), address, epoch)?;
        let now = Instant::now();
        let gossip_rng = StdRng::from_rng(&mut rng);
        let gossip = Gossip::new(cluster, peer, settings, gossip_rng, now.into_std());
        let facts = Facts {
            address: host_port,
            ..Facts::default()
        };
        let ledger = Ledger::new(epoch, facts);
        let seen = Seen {
            catalog: Some(Arc::clone(ledger.catalog())),
            ..Seen::met(address, MemberState::Alive, epoch)
        };
        let forgotten = Names::<Life>::open(&files, "forgotten")?;
        let mut remembered = files.members()?;
        remembered.retain(|other| {
            let is_gone = |met: &Met| {
                forgotten
                    .all()
                    .iter()
                    .any(|life| life.covers(&met.name, met.epoch))
            };
            !other.member.as_ref().is_some_and(is_gone)
        });
        let met = remembered.iter().filter_map(|other| other.member.as_ref());
        let before = |met: &Met| (met.name.clone(), Seen::before(met.address, met.epoch));
        let mut members: BTreeMap<_, _> = met.map(before).collect();
        let unmet = remembered.iter().filter(|other| other.member.is_none());
        let unmet = unmet.map(|other| other.address.clone()).collect();
        members.insert(name.clone(), seen);
        let view = View { me: name, members };
        let board = Arc::new(Board {
            view: watch::Sender::new(Arc::new(view)),
            ledger: Mutex::new(ledger),
            pulling: Mutex::default(),
            users: Names::open(&files, "users")?,
            revoked: Names::open(&files, "revoked")?,
            forgotten,
            unwritten: Notify::new(),
            is_draining: AtomicBool::new(files.is_draining()?),
            is_stopping: AtomicBool::new(false),
            remembered,
            unmet: Mutex::new(unmet),
            opened: now,
            changed: Notify::new(),
            files,
        });
        let (commands, received_commands) = mpsc::channel(COMMANDS);
        let (packets, received_packets) = mpsc::channel(PACKETS);
        let report = watch::Sender::new(None);
        let driver = Driver {
            gossip,
            rng,
            board: Arc::clone(&board),
            packets: received_packets,
            commands: received_commands,
            asks: commands.downgrade(),
            report: report.subscribe(),
        };
        let cluster = Self {
            board,
            commands,
            packets,
            report,
        };
        Ok((cluster, driver))
    }

    /// Returns what is believed now.
    pub fn view(&self) -> Arc<View> {
        self.board.view()
    }

    /// Returns what is believed, as it changes.
    pub fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.board.view.subscribe()
    }

    /// Returns where a node was when this one ended last, `host:port`, that it has not met again since: nothing is known
    /// of what that one has.
    pub fn missed(&self) -> Option<String> {
        let view = self.view();
        let is_missed = |other: &&Remembered| {
            let met = other.member.as_ref();
            let seen = met.and_then(|met| view.members.get(&met.name));
            seen.is_some_and(|seen| !seen.is_met)
        };
        let missed = self.board.remembered.iter().find(is_missed);
        let missed = missed.map(|other| other.address.clone());
        missed.or_else(|| self.board.unmet().first().cloned())
    }

    /// Whether this node has just started and not met all others again yet.
    pub fn is_meeting(&self) -> bool {
        let patience = match self.board.remembered.iter().all(|other| other.member.is_some()) {
            true => MEETING,
            // Of those that are never met nothing will be known, not even that they are missing.
            false => FIRST_MEETING,
        };
        self.board.opened.elapsed() < patience && self.missed().is_some()
    }

    /// Returns where the nodes are that are not down, `host:port`, this one first.
    pub fn addresses(&self) -> Vec<String> {
        let view = self.view();
        let others = view
            .members
            .iter()
            .filter(|(name, seen)| **name != view.me && seen.state != MemberState::Down);
        let me = view.members.get(&view.me);
        me.into_iter()
            .chain(others.map(|(_, seen)| seen))
            .map(Seen::host_port)
            .collect()
    }

    /// Whether this node is being emptied.
    pub fn is_draining(&self) -> bool {
        self.board.is_draining.load(Ordering::Relaxed)
    }

    /// Has this node emptied, or not any more; it stays so over a restart.
    pub fn drain(&self, draining: bool) -> io::Result<()> {
        self.board.files.write_draining(draining)?;
        self.board.is_draining.store(draining, Ordering::Relaxed);
        self.look_again();
        Ok(())
    }

    /// Whether this node is about to end.
    pub(crate) fn is_stopping(&self) -> bool {
        self.board.is_stopping.load(Ordering::Relaxed)
    }

    /// Has the others place nothing here any more, since this node is about to end. It is not known after a restart.
    pub(crate) fn begin_to_stop(&self) {
        self.board.is_stopping.store(true, Ordering::Relaxed);
        self.look_again();
    }

    /// Makes a user's certificates good for nothing, at all nodes before long.
    pub fn revoke(&self, user: &UserName) -> io::Result<()> {
        self.board.revoke(user)
    }

    /// Returns the users whose certificates are good for nothing any more.
    pub fn revoked(&self) -> BTreeSet<UserName> {
        self.board.revoked.all()
    }

    /// Whether a user's certificates are good for nothing.
    pub fn is_revoked(&self, user: &UserName) -> bool {
        self.board.revoked.contains(user)
    }

    /// Has all nodes forget one that is down, and what it had; if it comes back, it is a member again.
    pub(crate) fn forget(&self, name: &NodeName) -> io::Result<()> {
        if let Some(seen) = self.view().members.get(name) {
            let life = Life {
                node: name.clone(),
                epoch: seen.epoch,
            };
            self.board.forget(&BTreeSet::from([life]));
        }
        let written = self.board.forgotten.write();
        if written.is_err() {
            self.board.unwritten.notify_one();
        }
        written
    }

    /// Whether a node of this name was ever forgotten.
    pub(crate) fn has_forgotten(&self, name: &NodeName) -> bool {
        self.board.forgotten_epoch(name).is_some()
    }

    /// Returns who is enrolled at any node, promised a name, or owns a clone there, or ever was or did, as far as is known.
    pub fn users(&self) -> BTreeSet<UserName> {
        self.board.users.all()
    }

    /// Returns another node that may have users this one does not know of: it is down, or has not told yet what it has.
    pub fn untold(&self) -> Option<String> {
        let view = self.view();
        let untold = view.members.iter().find(|(name, seen)| {
            **name != view.me && (seen.state == MemberState::Down || seen.catalog.is_none())
        });
        match untold {
            Some((name, _)) => Some(format!("node `{name}`")),
            None if self.is_meeting() => self.missed().map(|address| format!("the node at {address}")),
            None => None,
        }
    }

    /// Has what this node says of itself looked at again, now.
    pub fn look_again(&self) {
        self.board.changed.notify_one();
    }

    /// Says how this node is.
    fn publish(&self, report: NodeReport) {
        let now = Instant::now();
        self.board.view.send_if_modified(|view| {
            let view = Arc::make_mut(view);
            let me = view.me.clone();
            let Some(seen) = view.members.get_mut(&me) else {
                return false;
            };
            let is_news = seen
                .digest
                .as_ref()
                .is_none_or(|heard| heard.digest.report != report);
            let sequence = seen.digest.as_ref().map_or(0, |heard| heard.digest.sequence);
            let digest = NodeDigest {
                node: me,
                generation: seen.epoch,
                sequence: sequence.saturating_add(u32::from(is_news)),
                report: report.clone(),
            };
            seen.digest = Some(Heard { digest, at: now });
            is_news
        });
        // Also when it is the same: that it was looked at is news.
        self.report.send_replace(Some(report));
    }

    /// Says what this node has; returns the catalog of it.
    fn tell(&self, facts: Facts) -> Arc<Catalog> {
        let mut ledger = self.board.ledger();
        if ledger.set(facts) {
            let catalog = Arc::clone(ledger.catalog());
            let me = self.view().me.clone();
            self.board.change(&me, |seen| seen.catalog = Some(catalog));
        }
        Arc::clone(ledger.catalog())
    }

    /// Takes packets and questions of another node until the connection ends, or its certificate does.
    pub(crate) async fn attend(
        &self,
        connection: &Connection,
        from: NodeName,
        valid_until: Option<DateTime<Utc>>,
    ) {
        loop {
            tokio::select! {
                biased;
                stream = crate::server::next_stream(connection, valid_until) => {
                    let Some((send, receive)) = stream else { return };
                    let (board, commands) = (Arc::clone(&self.board), self.commands.clone());
                    let from = from.clone();
                    tokio::spawn(async move {
                        if let Err(error) = streams::answer(&board, &commands, &from, send, receive).await {
                            tracing::debug!(%from, error = chain(&error), "answer another node");
                        }
                    });
                }
                packet = connection.read_datagram() => {
                    let Ok(bytes) = packet else { return };
                    if !crate::server::is_still_valid(connection, valid_until) {
                        return;
                    }
                    // More than can be handled is lost, as packets are.
                    let _ = self.packets.try_send(Packet { from: from.clone(), bytes });
                }
            }
        }
    }

    /// Tells the others that this node goes. The gossip has ended when this returns.
    pub(crate) async fn leave(&self) {
        let (gone, left) = oneshot::channel();
        let leave = async { self.commands.send(Command::Leave(gone)).await.is_ok() && left.await.is_ok() };
        if timeout(LEAVING, leave).await != Ok(true) {
            tracing::warn!("left the cluster without a word");
        }
    }
}

/// Writes down where the nodes of a cluster are that this node has just joined.
pub fn remember(state_dir: &Path, addresses: &[String]) -> io::Result<()> {
    let members = addresses.iter().map(|address| Remembered {
        address: address.clone(),
        member: None,
    });
    Files::of(state_dir).write_members(&members.collect())
}

/// Returns where other nodes were when this one last knew.
pub(crate) fn remembered(state_dir: &Path) -> anyhow::Result<Vec<String>> {
    let members = Files::of(state_dir).members()?;
    Ok(members.into_iter().map(|member| member.address).collect())
}

/// Above all that this node's name was ever seen with, also when the clock was put back.
fn next_epoch(persisted: u64, now: DateTime<Utc>) -> u64 {
    let milliseconds = u64::try_from(now.timestamp_millis()).unwrap_or_default();
    persisted.saturating_add(1).max(milliseconds).min(MAX_GENERATION)
}

/// Questions of other nodes that wait for the gossip.
const COMMANDS: usize = 64;
/// Packets that wait for the gossip: half a second's worth of a large cluster's.
const PACKETS: usize = 1024;
/// A node that is there is met long before.
const MEETING: Duration = Duration::from_secs(5);
/// The same for one that has just joined.
const FIRST_MEETING: Duration = Duration::from_secs(30);
/// How long others may take to be told.
const LEAVING: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gossip::Member;

    fn opened(state_dir: &Path) -> (Cluster, Driver) {
        Cluster::open(
            state_dir,
            ClusterId::random(),
            "a".parse().unwrap(),
            "10.0.0.1:1".parse().unwrap(),
            "a:1".to_owned(),
            GossipSetup::default(),
        )
        .unwrap()
    }

    #[tokio::test]
    async fn a_node_that_the_gossip_forgets_stays_known_as_down_also_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let (cluster, _driver) = opened(directory.path());
        let c: NodeName = "c".parse().unwrap();
        let met = Member {
            name: c.clone(),
            address: "10.0.0.3:1".parse().unwrap(),
            state: MemberState::Alive,
            epoch: 7,
            age: Duration::ZERO,
        };
        let news = vec![News::Member(met), News::Forgotten(c.clone())];
        cluster.board.hear(news, Vec::new);
        assert_eq!(cluster.view().members[&c].state, MemberState::Down);
        assert_eq!(cluster.missed(), None);

        let mut keeping = tokio::spawn(cluster.keep_members());
        while Files::of(directory.path()).members().unwrap().is_empty() {
            let waited = timeout(Duration::from_millis(1), &mut keeping).await;
            assert!(waited.is_err(), "keeping has ended");
        }
        keeping.abort();
        let (again, _driver) = opened(directory.path());
        let seen = &again.view().members[&c];
        assert_eq!(
            (seen.state, seen.host_port().as_str()),
            (MemberState::Down, "10.0.0.3:1")
        );
        assert_eq!(
            again.missed().as_deref(),
            Some("10.0.0.3:1"),
            "not met in this life"
        );
        assert_eq!(again.untold().as_deref(), Some("node `c`"));
    }

    #[test]
    fn an_epoch_goes_up_also_when_the_clock_was_put_back() {
        let now: DateTime<Utc> = "2026-11-22T12:00:00Z".parse().unwrap();
        let first = next_epoch(0, now);
        assert_eq!(i64::try_from(first).unwrap(), now.timestamp_millis());
        assert_eq!(next_epoch(first, now - chrono::TimeDelta::days(1)), first + 1);
        assert!(next_epoch(first, now + chrono::TimeDelta::days(1)) > first + 1);
    }
}
