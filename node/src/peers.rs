//! Connections to the other nodes: made when they are first needed, or before, kept while they last, and sure to lead to the
//! node that was meant.

mod ready;

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use chrono::{DateTime, Utc};
use quinn::{Connection, ConnectionError, Endpoint};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use zdap_proto::connect::{ConnectError, connect};
use zdap_proto::control::{CallError, call_on_behalf_of};
use zdap_proto::frame::FrameError;
use zdap_proto::identity::{Identity, Subject};
use zdap_proto::message::{Answer, Progress, Request};
use zdap_proto::name::{NodeName, UserName};
use zdap_proto::refusal::Refusal;
use zdap_proto::transport::{self, Close, Purpose};

use crate::cluster::View;
use crate::gossip::MemberState;

/// The ways to the other nodes. Each of their requests is safe to ask twice, so that one whose connection turns out to be
/// dead is asked again over a new one.
#[derive(Debug)]
pub struct Peers {
    endpoint: Endpoint,
    /// Renewed now and then.
    identity: watch::Receiver<Identity>,
    view: watch::Receiver<Arc<View>>,
    kept: Mutex<HashMap<Way, Arc<Slot>>>,
}

/// What has a connection of its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Way {
    to: NodeName,
    purpose: Purpose,
    of: Option<UserName>,
}

/// Where the connection to one node is kept; who holds the lock is dialling.
type Slot = tokio::sync::Mutex<Kept>;

#[derive(Debug, Default)]
struct Kept {
    open: Option<Open>,
    /// When there was none to be had, and why.
    failed: Option<(Instant, Arc<ConnectError>)>,
}

#[derive(Debug)]
struct Open {
    /// Closed when nobody has it any more.
    connection: Weak<Connection>,
    /// Unless it is kept for the next one.
    _held: Option<Arc<Connection>>,
    /// What it leads to.
    to: Whereabouts,
    /// When the certificate ends that it was opened with; the other node takes nothing more over it then.
    certified_until: DateTime<Utc>,
}

/// Where a node is, and in which life: a process that has ended answers nothing, and its connections may look alive for long.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Whereabouts {
    address: String,
    epoch: u64,
}

/// Why another node has not done what it was asked. Displayed with the node's name; what is wrong with it is [`Trouble`].
#[derive(Debug)]
pub struct PeerError {
    /// Which node.
    pub node: NodeName,
    /// What is wrong.
    pub trouble: Trouble,
}

/// What is wrong with a node. Displayed after its name.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// Nobody has heard of it.
    #[error("is not known")]
    Unknown,
    /// It has left or is given up.
    #[error("is down")]
    Down,
    /// No connection to it could be made.
    #[error("cannot be reached")]
    Unreachable(#[source] Arc<ConnectError>),
    /// Somebody else is where it should be.
    #[error("is not at {address}, where {found} is")]
    Another {
        /// Where it should be.
        address: String,
        /// Who is there.
        found: String,
    },
    /// It took too long.
    #[error("did not answer within {} s", .0.as_secs_f64())]
    Slow(Duration),
    /// The connection ended before the answer came; whether it was carried out is not known.
    #[error("was lost before it answered")]
    Lost(#[source] ConnectionError),
    /// It says what is not understood: another version.
    #[error("gave an answer that could not be understood")]
    Misunderstood(#[source] FrameError),
    /// It says something else than was asked for.
    #[error("gave another answer than was asked for")]
    OddAnswer,
    /// It says no.
    #[error("refused: {0}")]
    Refused(Refusal),
}

impl fmt::Display for PeerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node `{}` {}", self.node, self.trouble)
    }
}

impl Error for PeerError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.trouble.source()
    }
}

impl Peers {
    /// Keeps connections that are opened by `endpoint` as `identity`, to where `view` says that the nodes are.
    pub fn new(
        endpoint: Endpoint,
        identity: watch::Receiver<Identity>,
        view: watch::Receiver<Arc<View>>,
    ) -> Self {
        Self {
            endpoint,
            identity,
            view,
            kept: Mutex::default(),
        }
    }

    /// Asks `node` what `asker` asks, of that node alone, and waits for the answer for at most `deadline`. A connection
    /// over which nothing came in all that time is not used again.
    pub async fn ask(
        self: &Arc<Self>,
        node: &NodeName,
        asker: &Subject,
        request: &Request,
        deadline: Duration,
    ) -> Result<Answer, PeerError> {
        let before = self.heard(node);
        match timeout(deadline, self.ask_again_if_lost(node, asker, request, |_| {})).await {
            Ok(result) => result,
            Err(_) => {
                if deadline >= DEAF {
                    self.forget_if_deaf(node, before);
                }
                Err(Trouble::Slow(deadline).of(node))
            }
        }
    }

    /// Asks as [`Self::ask`] does, and waits for the answer for as long as the node is not down.
    pub async fn ask_patiently(
        self: &Arc<Self>,
        node: &NodeName,
        asker: &Subject,
        request: &Request,
        progress: impl FnMut(Progress),
    ) -> Result<Answer, PeerError> {
        tokio::select! {
            biased; // so that a simulation is the same each time
            result = self.ask_again_if_lost(node, asker, request, progress) => result,
            () = self.until_down(node) => Err(Trouble::Down.of(node)),
        }
    }

    /// Returns the connection for `way`, the one that is there if it can be used, and whether it was made just now.
    pub async fn connection(self: &Arc<Self>, way: &Way) -> Result<(Arc<Connection>, bool), PeerError> {
        let slot = self.slot(way);
        if let Ok(kept) = slot.try_lock()
            && let Some(connection) = self.good(&kept, &self.whereabouts(&way.to)?)
        {
            return Ok((connection, false));
        }
        // In a task of its own: whoever waits for a connection only briefly leaves it for the next one.
        let (peers, dialled) = (Arc::clone(self), way.clone());
        let dialling = tokio::spawn(async move { peers.dial(&dialled, &slot).await });
        match dialling.await {
            Ok(result) => result,
            // The node itself is coming to its end.
            Err(_) => Err(Trouble::Lost(ConnectionError::LocallyClosed).of(&way.to)),
        }
    }

    /// Returns the time to a node and back, if there is a connection to it.
    pub fn round_trip(&self, node: &NodeName) -> Option<Duration> {
        Some(self.control(node)?.rtt())
    }

    async fn ask_again_if_lost(
        self: &Arc<Self>,
        node: &NodeName,
        asker: &Subject,
        request: &Request,
        mut progress: impl FnMut(Progress),
    ) -> Result<Answer, PeerError> {
        let way = Way::control(node);
        loop {
            let (connection, is_fresh) = self.connection(&way).await?;
            let trouble = match call_on_behalf_of(&connection, asker, request, &mut progress).await {
                Ok(answer) => return Ok(answer),
                Err(CallError::Lost(_)) if !is_fresh => continue,
                Err(CallError::Lost(source)) => Trouble::Lost(source),
                Err(CallError::Misunderstood(source)) => Trouble::Misunderstood(source),
                Err(CallError::Refused(refusal)) => Trouble::Refused(refusal),
            };
            return Err(trouble.of(node));
        }
    }

    async fn dial(&self, way: &Way, slot: &Slot) -> Result<(Arc<Connection>, bool), PeerError> {
        let node = &way.to;
        let began = Instant::now();
        let mut kept = slot.lock().await;
        let to = self.whereabouts(node)?;
        if let Some(connection) = self.good(&kept, &to) {
            return Ok((connection, false));
        }
        // What whoever dialled meanwhile has found out holds for all who waited.
        if let Some((failed, source)) = &kept.failed
            && *failed >= began
        {
            return Err(Trouble::Unreachable(Arc::clone(source)).of(node));
        }
        let identity = self.identity.borrow().clone();
        let connection = match connect(&self.endpoint, &identity, &to.address, way.purpose).await {
            Ok(connection) => connection,
            Err(error) => {
                let source = Arc::new(error);
                kept.failed = Some((Instant::now(), Arc::clone(&source)));
                return Err(Trouble::Unreachable(source).of(node));
            }
        };
        let found = transport::peer(&connection).map(|peer| peer.subject);
        if !matches!(&found, Some(Subject::Node(name)) if name == node) {
            Close::Done.connection(&connection, "another node was meant");
            let found = found.map_or_else(|| "somebody else".to_owned(), |subject| subject.to_string());
            let address = to.address;
            return Err(Trouble::Another { address, found }.of(node));
        }
        let connection = Arc::new(connection);
        *kept = Kept {
            open: Some(Open {
                connection: Arc::downgrade(&connection),
                _held: way.of.is_none().then(|| Arc::clone(&connection)),
                to,
                certified_until: identity.expires_at(),
            }),
            failed: None,
        };
        Ok((connection, true))
    }

    fn whereabouts(&self, node: &NodeName) -> Result<Whereabouts, PeerError> {
        let view = self.view.borrow();
        match view.members.get(node) {
            None => Err(Trouble::Unknown.of(node)),
            Some(seen) if seen.state == MemberState::Down => Err(Trouble::Down.of(node)),
            Some(seen) => Ok(Whereabouts {
                address: seen.address.to_string(),
                epoch: seen.epoch,
            }),
        }
    }

    /// Waits until a node is down, or nobody would say so any more.
    async fn until_down(&self, node: &NodeName) {
        let is_down = |view: &Arc<View>| match view.members.get(node) {
            Some(seen) => seen.state == MemberState::Down,
            None => true,
        };
        if self.view.clone().wait_for(is_down).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    fn slot(&self, way: &Way) -> Arc<Slot> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = kept.get(way) {
            return Arc::clone(slot);
        }
        // What is kept for nobody in particular stays; there is only one of each for a node.
        kept.retain(|way, slot| way.of.is_none() || Arc::strong_count(slot) > 1 || is_open(slot));
        Arc::clone(kept.entry(way.clone()).or_default())
    }

    /// Returns the connection if it still stands, leads to where and what the node is now, and was opened with the certificate that
    /// this node has now. One that does not goes on for as long as its streams do.
    fn good(&self, kept: &Kept, to: &Whereabouts) -> Option<Arc<Connection>> {
        let open = kept.open.as_ref()?;
        let is_current = open.to == *to && open.certified_until == self.identity.borrow().expires_at();
        open.standing().filter(|_| is_current)
    }

    /// Returns the connection that requests to a node go over, if there is one.
    fn control(&self, node: &NodeName) -> Option<Arc<Connection>> {
        let slot = self.slot(&Way::control(node));
        let kept = slot.try_lock().ok()?;
        kept.open.as_ref()?.connection.upgrade()
    }

    /// Returns the connection that requests to a node go over, and how many packets have come over it.
    fn heard(&self, node: &NodeName) -> Option<(Arc<Connection>, u64)> {
        let connection = self.control(node)?;
        let packets = connection.stats().udp_rx.datagrams;
        Some((connection, packets))
    }

    fn forget_if_deaf(&self, node: &NodeName, before: Option<(Arc<Connection>, u64)>) {
        if let Some((connection, packets)) = before
            && connection.stats().udp_rx.datagrams == packets
        {
            tracing::debug!(%node, "nothing comes over the connection; giving it up");
            Close::Done.connection(&connection, "no answer");
        }
    }
}

impl Trouble {
    /// Says whose it is.
    pub fn of(self, node: &NodeName) -> PeerError {
        PeerError {
            node: node.clone(),
            trouble: self,
        }
    }
}

impl Way {
    /// For requests, of this node and of all who ask it.
    pub fn control(to: &NodeName) -> Self {
        Self {
            to: to.clone(),
            purpose: Purpose::Control,
            of: None,
        }
    }

    /// For the tunnel streams of a user and of their relays, since streams that nobody reads hold up the others of the same
    /// connection; or for those of a node.
    pub fn tunnel(to: &NodeName, of: Option<&UserName>) -> Self {
        Self {
            to: to.clone(),
            purpose: Purpose::Tunnel,
            of: of.cloned(),
        }
    }
}

impl Open {
    fn standing(&self) -> Option<Arc<Connection>> {
        let connection = self.connection.upgrade()?;
        connection.close_reason().is_none().then_some(connection)
    }
}

fn is_open(slot: &Slot) -> bool {
    slot.try_lock()
        .is_ok_and(|kept| kept.open.as_ref().and_then(Open::standing).is_some())
}

/// An acknowledgement takes a round trip and at most 25 ms; three lost packets in a row are no accident.
const DEAF: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
