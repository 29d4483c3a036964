//! Gives the [`Gossip`] its packets and the time, and does what it wants done.
//!
//! One task owns it and never waits for a disk, a database or a peer, save that its generation is on the disk before it
//! is used. It runs on a thread of its own: a node that is held up must not look like one that has died.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};
use zdap_proto::digest::NodeReport;
use zdap_proto::name::NodeName;

use super::links::Links;
use super::{Action, Gossip, Knowledge, Member, MemberState, PacketError, streams};
use crate::cluster::{Board, News, Pulling};

/// A packet as it came.
#[derive(Debug)]
pub(crate) struct Packet {
    /// The name in the sender's certificate.
    pub(crate) from: NodeName,
    /// Its bytes.
    pub(crate) bytes: Bytes,
}

/// What others want of the gossip.
#[derive(Debug)]
pub(crate) enum Command {
    /// To hear all that is known; nothing if that is what the fingerprint says.
    Know {
        unless: Option<u64>,
        reply: oneshot::Sender<Option<Knowledge>>,
    },
    /// To be taken over: what another node knows.
    Learn { from: NodeName, knowledge: Knowledge },
    /// To leave, and to hear when that is done.
    Leave(oneshot::Sender<()>),
}

/// The gossip with all that it stands on, but for the network.
#[derive(Debug)]
pub struct Driver {
    pub(crate) gossip: Gossip,
    pub(crate) rng: StdRng,
    pub(crate) board: Arc<Board>,
    pub(crate) packets: mpsc::Receiver<Packet>,
    pub(crate) commands: mpsc::Receiver<Command>,
    /// For questions that are asked of others; does not keep the gossip going.
    pub(crate) asks: mpsc::WeakSender<Command>,
    pub(crate) report: watch::Receiver<Option<NodeReport>>,
}

/// Starts the gossip: on a thread of its own, or here. The receiver hears of its end, whatever ends it.
pub(crate) fn start(
    driver: Driver,
    links: Links,
    contacts: Vec<SocketAddr>,
    own_thread: bool,
) -> io::Result<oneshot::Receiver<Infallible>> {
    let (alive, ended) = oneshot::channel();
    let drive = async move {
        // Dropped at the end of this, also by a panic.
        let _alive = alive;
        drive(driver, links, contacts).await;
    };
    if !own_thread {
        tokio::spawn(drive);
        return Ok(ended);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name("gossip".to_owned())
        .spawn(move || runtime.block_on(drive))?;
    Ok(ended)
}

/// Runs the gossip until the node has left or is gone.
async fn drive(driver: Driver, links: Links, contacts: Vec<SocketAddr>) {
    let Driver {
        gossip,
        rng,
        board,
        mut packets,
        mut commands,
        asks,
        mut report,
    } = driver;
    let mut driving = Driving {
        gossip,
        rng,
        board,
        links,
        asks,
        unwritten: None,
    };
    driving.gossip.join(contacts, now());
    loop {
        if let Some(epoch) = driving.board.forgotten_epoch(driving.gossip.me().name()) {
            driving.gossip.outlive(epoch, now());
        }
        while driving.act().is_err() {
            // Until it is written, it is as if this node were not there.
            match timeout(WRITTEN_AGAIN, only_leave(&mut commands)).await {
                Ok(None) => return,
                Ok(Some(gone)) => {
                    let _ = gone.send(());
                    return;
                }
                Err(_) => {}
            }
        }
        let wake = driving.gossip.next_wake();
        let is_due = wake.is_some_and(|at| at <= now());
        // In this order: what was said before the time has come counts.
        tokio::select! {
            biased;
            command = commands.recv() => match command {
                Some(Command::Leave(gone)) => {
                    driving.leave().await;
                    // Whoever asked may be gone.
                    let _ = gone.send(());
                    return;
                }
                Some(command) => driving.obey(command),
                None => return,
            },
            Ok(()) = report.changed() => {
                let report = report.borrow_and_update().clone();
                if let Some(report) = report {
                    driving.gossip.publish(report, now());
                }
            }
            Some(packet) = packets.recv() => {
                driving.take(&packet);
                for _ in 1..BATCH {
                    let Ok(packet) = packets.try_recv() else { break };
                    driving.take(&packet);
                }
            }
            () = until(wake) => {}
        }
        if is_due || wake.is_some_and(|at| at <= now()) {
            driving.gossip.handle_wake(now());
        }
    }
}

/// Waits until the node is to leave, or is gone, and does nothing else that is asked.
async fn only_leave(commands: &mut mpsc::Receiver<Command>) -> Option<oneshot::Sender<()>> {
    loop {
        if let Command::Leave(gone) = commands.recv().await? {
            return Some(gone);
        }
    }
}

struct Driving {
    gossip: Gossip,
    rng: StdRng,
    board: Arc<Board>,
    links: Links,
    asks: mpsc::WeakSender<Command>,
    /// A generation that could not be written down yet.
    unwritten: Option<u64>,
}

impl Driving {
    fn take(&mut self, packet: &Packet) {
        match self.gossip.handle_packet(&packet.from, &packet.bytes, now()) {
            Ok(()) => {}
            Err(error @ PacketError::Astray { .. }) => tracing::debug!(%error, "a packet was not taken"),
            Err(error) => tracing::warn!(%error, "a packet was not taken"),
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Know { unless, reply } => {
                let is_same = unless == Some(self.gossip.fingerprint());
                // Whoever asked may be gone.
                let _ = reply.send((!is_same).then(|| self.gossip.knowledge()));
            }
            Command::Learn { from, knowledge } => {
                if let Err(error) = self.gossip.learn(knowledge, now()) {
                    tracing::warn!(%from, %error, "what another node knows was not taken over");
                }
            }
            Command::Leave(_) => {}
        }
    }

    async fn leave(&mut self) {
        self.gossip.leave(now());
        if self.act().is_ok() {
            self.links.flushed().await;
        }
    }

    /// Does what the gossip wants done, until there is nothing more, or a generation cannot be written down: then that is
    /// first the next time.
    fn act(&mut self) -> Result<(), Unwritten> {
        if let Some(generation) = self.unwritten {
            self.persist(generation)?;
        }
        let mut news = Vec::new();
        let mut spoken = BTreeSet::new();
        let mut done = Ok(());
        while done.is_ok()
            && let Some(action) = self.gossip.poll_action()
        {
            match action {
                Action::Send { to, packet } => self.links.send(to, packet.into()),
                Action::Knocked(at) => self.links.doubt(at),
                Action::PersistGeneration(generation) => done = self.persist(generation),
                Action::Member(member) => {
                    tracing::info!(node = %member.name, address = %member.address, state = ?member.state, "member");
                    self.follow(&member);
                    spoken.insert(member.name.clone());
                    news.push(News::Member(member));
                }
                Action::Forgotten(name) => news.push(News::Forgotten(name)),
                Action::Digest(digest) => {
                    spoken.insert(digest.node.clone());
                    news.push(News::Digest(digest));
                }
                Action::Exchange { with, at } => self.exchange(with, at),
                Action::Connected => tracing::info!("other nodes are here"),
                Action::Alone => tracing::warn!("no other node is reached any more"),
                Action::Renewed => {
                    let epoch = self.gossip.me().epoch();
                    tracing::warn!(epoch, "the others thought this node was down; it is back");
                    news.push(News::Renewed(epoch));
                }
                Action::Conflict { other, is_winning } => tracing::error!(
                    name = %other.name(),
                    other = %other.address(),
                    is_winning,
                    "another machine goes by this node's name: stop one of the two, and give it a name and a state directory of its own"
                ),
            }
        }
        if !news.is_empty() {
            let gossip = &self.gossip;
            self.board.hear(news, || gossip.digests(now()));
            for pulling in self.board.begin_to_pull(Some(spoken)) {
                self.pull(pulling);
            }
        }
        done
    }

    /// Doubts the connection to a node that is in another life than it was: what is sent over it may go nowhere.
    fn follow(&self, member: &Member) {
        let view = self.board.view();
        let before = view.members.get(&member.name);
        if before.is_some_and(|before| before.epoch != member.epoch) {
            self.links.doubt(member.address);
        }
    }

    fn persist(&mut self, generation: u64) -> Result<(), Unwritten> {
        match self.board.files.write_generation(generation) {
            Ok(()) => {
                self.unwritten = None;
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, generation, "write down this node's generation; it is silent until that is done");
                self.unwritten = Some(generation);
                Err(Unwritten)
            }
        }
    }

    fn exchange(&mut self, with: NodeName, at: SocketAddr) {
        if let Some(commands) = self.asks.upgrade() {
            let fingerprint = self.gossip.fingerprint();
            let links = self.links.clone();
            tokio::spawn(streams::compare(links, at, with, fingerprint, commands));
        }
        // What could not be pulled when it was news is tried again as often as this.
        for pulling in self.board.begin_to_pull(None) {
            self.pull(pulling);
        }
    }

    fn pull(&mut self, pulling: Pulling) {
        let view = self.board.view();
        let origin = view.members.get(&pulling.of);
        let origin = origin.filter(|seen| seen.state != MemberState::Down);
        let others = view.members.iter().filter(|(name, seen)| {
            **name != view.me && **name != pulling.of && seen.state == MemberState::Alive
        });
        let others = others
            .map(|(_, seen)| seen.address)
            .sample(&mut self.rng, OTHER_SOURCES);
        let sources = origin.map(|seen| seen.address).into_iter().chain(others);
        // All nodes hear of it at once, and should not all ask at once.
        let spread =
            (SPREAD_PER_NODE * u32::try_from(view.members.len()).unwrap_or(u32::MAX)).min(MOST_SPREAD);
        let after = spread.mul_f64(self.rng.random());
        tokio::spawn(streams::pull(
            self.links.clone(),
            pulling,
            sources.collect(),
            after,
        ));
    }
}

/// A generation could not be written down: nothing is to be sent that may tell of it.
struct Unwritten;

async fn until(wake: Option<std::time::Instant>) {
    match wake {
        Some(at) => tokio::time::sleep_until(Instant::from_std(at)).await,
        None => std::future::pending().await,
    }
}

/// By the runtime's clock, which a simulation sets.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// How often a generation is tried to be written down that could not be.
const WRITTEN_AGAIN: Duration = Duration::from_secs(1);
/// Packets that are handled before anything is done about them.
const BATCH: usize = 64;
/// Nodes that are asked for a catalog when its own does not answer.
const OTHER_SOURCES: usize = 2;
/// Each node of a large cluster asks within a time that lets the origin answer a hundred a second.
const SPREAD_PER_NODE: Duration = Duration::from_millis(10);
const MOST_SPREAD: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use std::path::Path;

    use chrono::Utc;
    use zdap_proto::digest::NodeDigest;
    use zdap_proto::identity::{ClusterCa, Subject};
    use zdap_proto::transport;

    use super::*;
    use crate::cluster::{Cluster, GossipSetup};

    fn driving(state_dir: &Path) -> Driving {
        let ca = ClusterCa::found(Utc::now()).unwrap();
        let name: NodeName = "a".parse().unwrap();
        let subject = Subject::Node(name.clone());
        let identity = ca.identity(&subject, Duration::from_hours(1), Utc::now());
        let (_, driver) = Cluster::open(
            state_dir,
            ca.cluster().clone(),
            name,
            "127.0.0.1:1".parse().unwrap(),
            "127.0.0.1:1".to_owned(),
            GossipSetup::default(),
        )
        .unwrap();
        let certified = watch::Sender::new(identity.unwrap());
        Driving {
            gossip: driver.gossip,
            rng: driver.rng,
            board: driver.board,
            links: Links::new(transport::client_endpoint().unwrap(), certified.subscribe()).0,
            asks: driver.asks,
            unwritten: None,
        }
    }

    #[tokio::test]
    async fn nothing_is_done_after_a_generation_that_cannot_be_written_down_until_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let mut driving = driving(directory.path());
        let later = driving.gossip.me().epoch() + 9;
        let other = tempfile::tempdir().unwrap();
        let mut knowledge = self::driving(other.path()).gossip.knowledge();
        knowledge.cluster = driving.gossip.knowledge().cluster;
        knowledge.members.clear();
        knowledge.digests = vec![NodeDigest {
            node: driving.gossip.me().name().clone(),
            generation: later,
            sequence: 1,
            report: NodeReport::default(),
        }];
        let file = directory.path().join("generation");
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        driving.gossip.learn(knowledge, now()).unwrap();
        assert!(driving.act().is_err());
        assert!(driving.act().is_err(), "it is not forgotten");

        std::fs::remove_dir(&file).unwrap();
        assert!(driving.act().is_ok());
        let written = std::fs::read_to_string(&file).unwrap();
        assert_eq!(written.trim(), (later + 1).to_string());
    }
}
