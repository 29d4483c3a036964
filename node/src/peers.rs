//! Connections to the other nodes: made when they are first needed, kept while they last, and sure to lead to the node
//! that was meant.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quinn::{Connection, ConnectionError, Endpoint};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use zdap_proto::connect::{ConnectError, connect};
use zdap_proto::control::{CallError, call_on_behalf_of};
use zdap_proto::frame::FrameError;
use zdap_proto::identity::{Identity, Subject};
use zdap_proto::message::{Answer, Progress, Request};
use zdap_proto::name::NodeName;
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
    kept: Mutex<HashMap<(NodeName, Purpose), Arc<Slot>>>,
}

/// Where the connection to one node is kept; who holds the lock is dialling.
type Slot = tokio::sync::Mutex<Kept>;

#[derive(Debug, Default)]
struct Kept {
    /// The connection, and the address that it leads to.
    open: Option<(Connection, String)>,
    /// When there was none to be had, and why.
    failed: Option<(Instant, Arc<ConnectError>)>,
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
    #[error("did not answer within {} ms", .0.as_millis())]
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

    /// Returns a connection to `node`, the kept one if there is one, and whether it was made just now.
    pub async fn connection(
        self: &Arc<Self>,
        node: &NodeName,
        purpose: Purpose,
    ) -> Result<(Connection, bool), PeerError> {
        let slot = self.slot(node, purpose);
        if let Ok(kept) = slot.try_lock()
            && let Some(connection) = kept.good(&self.address(node)?)
        {
            return Ok((connection, false));
        }
        // In a task of its own: whoever waits for a connection only briefly leaves it for the next one.
        let (peers, dialled) = (Arc::clone(self), node.clone());
        let dialling = tokio::spawn(async move { peers.dial(&dialled, purpose, &slot).await });
        match dialling.await {
            Ok(result) => result,
            // The node itself is coming to its end.
            Err(_) => Err(Trouble::Lost(ConnectionError::LocallyClosed).of(node)),
        }
    }

    /// Returns the time to a node and back, if there is a connection to it.
    pub fn round_trip(&self, node: &NodeName) -> Option<Duration> {
        let slot = self.slot(node, Purpose::Control);
        let kept = slot.try_lock().ok()?;
        Some(kept.open.as_ref()?.0.rtt())
    }

    async fn ask_again_if_lost(
        self: &Arc<Self>,
        node: &NodeName,
        asker: &Subject,
        request: &Request,
        mut progress: impl FnMut(Progress),
    ) -> Result<Answer, PeerError> {
        loop {
            let (connection, is_fresh) = self.connection(node, Purpose::Control).await?;
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

    async fn dial(
        &self,
        node: &NodeName,
        purpose: Purpose,
        slot: &Slot,
    ) -> Result<(Connection, bool), PeerError> {
        let began = Instant::now();
        let mut kept = slot.lock().await;
        let address = self.address(node)?;
        if let Some(connection) = kept.good(&address) {
            return Ok((connection, false));
        }
        // What whoever dialled meanwhile has found out holds for all who waited.
        if let Some((failed, source)) = &kept.failed
            && *failed >= began
        {
            return Err(Trouble::Unreachable(Arc::clone(source)).of(node));
        }
        let identity = self.identity.borrow().clone();
        let connection = match connect(&self.endpoint, &identity, &address, purpose).await {
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
            return Err(Trouble::Another { address, found }.of(node));
        }
        *kept = Kept {
            open: Some((connection.clone(), address)),
            failed: None,
        };
        Ok((connection, true))
    }

    fn address(&self, node: &NodeName) -> Result<String, PeerError> {
        let view = self.view.borrow();
        match view.members.get(node) {
            None => Err(Trouble::Unknown.of(node)),
            Some(seen) if seen.state == MemberState::Down => Err(Trouble::Down.of(node)),
            Some(seen) => Ok(seen.address.to_string()),
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

    fn slot(&self, node: &NodeName, purpose: Purpose) -> Arc<Slot> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(kept.entry((node.clone(), purpose)).or_default())
    }

    /// Returns the connection that requests to a node go over, and how many packets have come over it.
    fn heard(&self, node: &NodeName) -> Option<(Connection, u64)> {
        let slot = self.slot(node, Purpose::Control);
        let connection = slot.try_lock().ok()?.open.as_ref()?.0.clone();
        let packets = connection.stats().udp_rx.datagrams;
        Some((connection, packets))
    }

    fn forget_if_deaf(&self, node: &NodeName, before: Option<(Connection, u64)>) {
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

impl Kept {
    /// Returns the connection if it still stands, and leads to where the node is now.
    fn good(&self, address: &str) -> Option<Connection> {
        let (connection, leads_to) = self.open.as_ref()?;
        (connection.close_reason().is_none() && leads_to == address).then(|| connection.clone())
    }
}

/// An acknowledgement takes a round trip and at most 25 ms; three lost packets in a row are no accident.
const DEAF: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
