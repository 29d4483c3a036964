//! What this node believes of the cluster, itself included, and what it tells the others.
//!
//! The gossip runs on a thread of its own (`gossip/driver.rs`) and writes what it hears into the [`View`], which anybody can
//! have at any time without waiting. What this node says of itself is seen in its own view at once.

pub mod addresses;
mod files;
pub(crate) mod namesake;
pub mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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

use self::files::Files;
use crate::catalog::{Catalog, Facts, Hash, Ledger};
use crate::gossip::driver::{Command, Driver, Packet};
use crate::gossip::{Gossip, Member, MemberState, Peer, Settings, streams};

/// What a node believes of the cluster.
#[derive(Debug, Clone)]
pub struct View {
    /// Who believes it.
    pub me: NodeName,
    /// All nodes that are known, this one included.
    pub members: BTreeMap<NodeName, Seen>,
}

/// A node as it is seen.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Where its packets go.
    pub address: SocketAddr,
    /// How it is.
    pub state: MemberState,
    /// Its life; it grows when the node starts, and when it was given up and came back.
    pub epoch: u64,
    /// The newest digest that was heard.
    pub digest: Option<Heard>,
    /// What it last told of itself, as far as it has come.
    pub catalog: Option<Arc<Catalog>>,
}

/// A digest, and when it came by this machine's clock.
#[derive(Debug, Clone)]
pub struct Heard {
    /// It.
    pub digest: NodeDigest,
    /// When it came; of this node itself, when it was last looked at.
    pub at: Instant,
}

impl Seen {
    /// Returns where clients and nodes connect, `host:port`, as the node itself says.
    pub fn host_port(&self) -> String {
        match &self.catalog {
            Some(catalog) => catalog.facts.address.clone(),
            None => self.address.to_string(),
        }
    }

    /// Whether its digest tells of a catalog that is not held.
    fn is_stale(&self) -> bool {
        let wanted = self.digest.as_ref().map(|heard| &heard.digest.report);
        let held = self.catalog.as_ref().map(|catalog| catalog.hash);
        wanted.is_some_and(|report| report.catalog_version > 0 && Some(report.catalog_hash) != held)
    }
}

/// How the gossip runs.
#[derive(Debug)]
pub struct GossipSetup {
    /// Its numbers.
    pub settings: Settings,
    /// Chance: whom it asks, and when; and what new clones are called.
    pub rng: StdRng,
    /// On a thread of its own, where no other work holds it up; else on the runtime that serves.
    pub own_thread: bool,
}

impl Default for GossipSetup {
    fn default() -> Self {
        Self {
            settings: Settings::default(),
            rng: StdRng::from_rng(&mut rand::rng()),
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
    /// driver at work, which [`crate::serve`] starts, it knows itself and nobody else.
    pub fn open(
        state_dir: &Path,
        cluster: ClusterId,
        name: NodeName,
        address: SocketAddr,
        host_port: String,
        began: DateTime<Utc>,
        setup: GossipSetup,
    ) -> anyhow::Result<(Self, Driver)> {
        let GossipSetup {
            settings, mut rng, ..
        } = setup;
        let files = Files::of(state_dir);
        let epoch = next_epoch(files.generation()?, began);
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
            address,
            state: MemberState::Alive,
            epoch,
            digest: None,
            catalog: Some(Arc::clone(ledger.catalog())),
        };
        let view = View {
            me: name.clone(),
            members: BTreeMap::from([(name, seen)]),
        };
        let board = Arc::new(Board {
            view: watch::Sender::new(Arc::new(view)),
            ledger: Mutex::new(ledger),
            pulling: Mutex::default(),
            revoked: Mutex::new(files.revoked()?),
            is_draining: AtomicBool::new(files.is_draining()?),
            reservations: AtomicU16::new(0),
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

    /// Notes how many places are promised and not yet taken.
    pub fn set_reservations(&self, count: usize) {
        let count = u16::try_from(count).unwrap_or(u16::MAX);
        if self.board.reservations.swap(count, Ordering::Relaxed) != count {
            self.look_again();
        }
    }

    /// Makes a user's certificates good for nothing, at all nodes before long.
    pub fn revoke(&self, user: &UserName) -> io::Result<()> {
        self.board.revoke(&BTreeSet::from([user.clone()]))
    }

    /// Whether a user's certificates are good for nothing.
    pub fn is_revoked(&self, user: &UserName) -> bool {
        self.board.revoked().contains(user)
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
                biased; // so that a simulation is the same each time
                packet = connection.read_datagram() => {
                    let Ok(bytes) = packet else { return };
                    if !crate::server::is_still_valid(connection, valid_until) {
                        return;
                    }
                    // More than can be handled is lost, as packets are.
                    let _ = self.packets.try_send(Packet { from: from.clone(), bytes });
                }
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
            }
        }
    }

    /// Tells the others that this node goes. The gossip has ended when this returns.
    pub(crate) async fn leave(&self) {
        let (gone, left) = oneshot::channel();
        if self.commands.send(Command::Leave(gone)).await.is_ok() && timeout(LEAVING, left).await.is_err() {
            tracing::warn!("left the cluster without a word");
        }
    }

    /// Keeps the addresses of the other nodes in the state directory, for the next start, until dropped.
    pub(crate) async fn keep_addresses(self) {
        let mut views = self.watch();
        let mut written = BTreeSet::new();
        loop {
            let view = views.borrow_and_update().clone();
            let others = view.members.iter().filter(|(name, _)| **name != view.me);
            let addresses: BTreeSet<String> = others.map(|(_, seen)| seen.host_port()).collect();
            // Nobody is known yet: those who were are what is left to go by.
            if !addresses.is_empty() && addresses != written {
                match self.board.files.write_members(&addresses) {
                    Ok(()) => written = addresses,
                    Err(error) => tracing::error!(%error, "write down where the other nodes are"),
                }
                tokio::time::sleep(WRITTEN).await;
            }
            if views.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Writes down where the nodes of a cluster are that this node has just joined.
pub fn remember(state_dir: &Path, addresses: &[String]) -> io::Result<()> {
    Files::of(state_dir).write_members(&addresses.iter().cloned().collect())
}

/// Returns where other nodes were when this one last knew.
pub(crate) fn remembered(state_dir: &Path) -> io::Result<Vec<String>> {
    Files::of(state_dir).members()
}

/// Above all that this node's name was ever seen with, also when the clock was put back.
fn next_epoch(persisted: u64, now: DateTime<Utc>) -> u64 {
    let milliseconds = u64::try_from(now.timestamp_millis()).unwrap_or_default();
    persisted.saturating_add(1).max(milliseconds).min(MAX_GENERATION)
}

/// What the gossip, those who ask, and this node itself write and read.
#[derive(Debug)]
pub(crate) struct Board {
    view: watch::Sender<Arc<View>>,
    ledger: Mutex<Ledger>,
    /// Whose catalogs are being pulled.
    pulling: Mutex<BTreeSet<NodeName>>,
    revoked: Mutex<BTreeSet<UserName>>,
    is_draining: AtomicBool,
    reservations: AtomicU16,
    /// Something that this node says of itself may have changed.
    changed: Notify,
    pub(crate) files: Files,
}

/// Something that the gossip has heard.
#[derive(Debug)]
pub(crate) enum News {
    /// A member is new or has changed.
    Member(Member),
    /// A member is known no more.
    Forgotten(NodeName),
    /// A node said something new of itself.
    Digest(NodeDigest),
    /// This node has come back under another epoch.
    Renewed(u64),
}

impl Board {
    pub(crate) fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// Writes down what was heard. `digests` gives those that came before their nodes were known.
    pub(crate) fn hear(&self, news: Vec<News>, digests: impl FnOnce() -> Vec<(NodeDigest, Duration)>) {
        let now = Instant::now();
        self.view.send_modify(|view| {
            let view = Arc::make_mut(view);
            let mut has_newcomers = false;
            for news in news {
                match news {
                    News::Member(member) => has_newcomers |= view.note(member),
                    News::Forgotten(name) => drop(view.members.remove(&name)),
                    News::Digest(digest) => view.overhear(digest, now),
                    News::Renewed(epoch) => {
                        if let Some(me) = view.members.get_mut(&view.me) {
                            me.epoch = epoch;
                        }
                    }
                }
            }
            if has_newcomers {
                for (digest, age) in digests() {
                    let is_new = |seen: &Seen| seen.digest.is_none();
                    if view.members.get(&digest.node).is_some_and(is_new) {
                        view.overhear(digest, now.checked_sub(age).unwrap_or(now));
                    }
                }
            }
        });
    }

    /// Changes what is believed of one node, if it is known.
    fn change(&self, name: &NodeName, change: impl FnOnce(&mut Seen)) {
        self.view.send_if_modified(|view| {
            let seen = Arc::make_mut(view).members.get_mut(name);
            seen.map(change).is_some()
        });
    }

    /// Keeps what a node told.
    pub(crate) fn keep(&self, of: &NodeName, catalog: Catalog) {
        if let Err(error) = self.revoke(&catalog.facts.revoked) {
            tracing::error!(%error, "write down who is revoked");
        }
        self.change(of, |seen| seen.catalog = Some(Arc::new(catalog)));
    }

    /// Returns whose catalogs are to be pulled, and marks them as being so: of `names`, or of all.
    pub(crate) fn begin_to_pull(self: &Arc<Self>, names: Option<BTreeSet<NodeName>>) -> Vec<Pulling> {
        let view = self.view();
        let is_named = |name: &NodeName| names.as_ref().is_none_or(|names| names.contains(name));
        let mut pulling = self.pulling.lock().unwrap_or_else(PoisonError::into_inner);
        let stale = view
            .members
            .iter()
            .filter(|(name, seen)| **name != view.me && is_named(name) && seen.is_stale())
            .map(|(name, _)| name.clone());
        let begun = stale.filter(|name| pulling.insert(name.clone()));
        begun
            .map(|of| Pulling {
                of,
                board: Arc::clone(self),
            })
            .collect()
    }

    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn revoke(&self, users: &BTreeSet<UserName>) -> io::Result<()> {
        let mut revoked = self.revoked();
        if users.is_subset(&revoked) {
            return Ok(());
        }
        // Also when it cannot be written down: until the next start is better than not at all.
        revoked.extend(users.iter().cloned());
        self.changed.notify_one();
        self.files.write_revoked(&revoked)
    }

    fn revoked(&self) -> MutexGuard<'_, BTreeSet<UserName>> {
        self.revoked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A catalog that is being pulled; not any more when dropped.
#[derive(Debug)]
pub(crate) struct Pulling {
    pub(crate) of: NodeName,
    board: Arc<Board>,
}

impl Pulling {
    /// Returns what the node's newest digest says its catalog is, and the one that is held; nothing if they are the same.
    pub(crate) fn wanted(&self) -> Option<(Hash, Option<Arc<Catalog>>)> {
        let view = self.board.view();
        let seen = view.members.get(&self.of).filter(|seen| seen.is_stale())?;
        let digest = &seen.digest.as_ref()?.digest;
        Some((digest.report.catalog_hash, seen.catalog.clone()))
    }

    pub(crate) fn keep(&self, catalog: Catalog) {
        self.board.keep(&self.of, catalog);
    }
}

impl Drop for Pulling {
    fn drop(&mut self) {
        let mut pulling = self.board.pulling.lock().unwrap_or_else(PoisonError::into_inner);
        pulling.remove(&self.of);
    }
}

impl View {
    /// Returns whether the member is new.
    fn note(&mut self, member: Member) -> bool {
        let Member {
            name,
            address,
            state,
            epoch,
            ..
        } = member;
        match self.members.get_mut(&name) {
            Some(seen) => {
                (seen.address, seen.state, seen.epoch) = (address, state, epoch);
                false
            }
            None => {
                let seen = Seen {
                    address,
                    state,
                    epoch,
                    digest: None,
                    catalog: None,
                };
                self.members.insert(name, seen);
                true
            }
        }
    }

    /// What a node says before it is a member is found when it is one.
    fn overhear(&mut self, digest: NodeDigest, at: Instant) {
        if let Some(seen) = self.members.get_mut(&digest.node) {
            seen.digest = Some(Heard { digest, at });
        }
    }
}

/// Questions of other nodes that wait for the gossip.
const COMMANDS: usize = 64;
/// Packets that wait for the gossip: half a second's worth of a large cluster's.
const PACKETS: usize = 1024;
/// How long others may take to be told.
const LEAVING: Duration = Duration::from_secs(1);
/// Addresses are written down at most this often.
const WRITTEN: Duration = Duration::from_secs(3);
