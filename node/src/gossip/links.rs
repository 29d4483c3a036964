//! Connections to other nodes: one for each address, opened by whichever of the two nodes first has something to say, spoken
//! over by both, and kept.
//!
//! A connection that comes in serves for what goes to the address it comes from. A node that sends from another address
//! than the others know it by has one for each direction, and so have two that dial each other in the same moment.
//!
//! A connection whose node has restarted ends at the first packet that the new process gets and does not understand (it
//! answers with a reset); the next packet opens another. So nothing is asked of a connection before it is used.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, Endpoint, SendDatagramError};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use zdap_proto::connect::{ConnectError, connect};
use zdap_proto::identity::Identity;
use zdap_proto::transport::{self, Close, Purpose};

/// The connections of one node to the others. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Links(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    endpoint: Endpoint,
    identity: watch::Receiver<Identity>,
    links: Mutex<BTreeMap<SocketAddr, Arc<Link>>>,
    /// Where connections live: they outlast the gossip's own thread until the endpoint is closed.
    runtime: Handle,
    opened: mpsc::UnboundedSender<Connection>,
}

/// The connections that a node opens, to be read as those that it accepts.
pub(crate) type Opened = mpsc::UnboundedReceiver<Connection>;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// None could be opened.
    #[error("no connection to {0}")]
    Connect(SocketAddr, #[source] ConnectError),
    /// Nobody has answered in time.
    #[error("no answer from {0} within {ms} ms", ms = DIAL.as_millis())]
    NoAnswer(SocketAddr),
    /// It failed a moment ago.
    #[error("{0} did not answer a moment ago")]
    Resting(SocketAddr),
}

#[derive(Debug, Default)]
struct Link {
    /// Held by the one who dials.
    turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    open: Option<Open>,
    /// Packets that came while it was dialled.
    waiting: VecDeque<Bytes>,
    resting_until: Option<Instant>,
    /// Attempts in a row that have failed.
    failures: u32,
}

#[derive(Debug)]
struct Open {
    connection: Connection,
    since: Instant,
    /// Opened by this node and not by the other.
    is_ours: bool,
    /// Room for packets that are to be sent, while there is none.
    room: usize,
    trust: Trust,
}

/// Whether a connection leads to somebody.
#[derive(Debug, PartialEq, Eq)]
enum Trust {
    Full,
    /// It is to be tried.
    Doubted,
    /// It has been used since, when so many packets had come over it.
    Tried {
        at: Instant,
        heard: u64,
    },
}

impl Links {
    /// What comes over its connections is lost if nobody takes them out of the receiver. Inside the runtime that serves.
    pub(crate) fn new(endpoint: Endpoint, identity: watch::Receiver<Identity>) -> (Self, Opened) {
        let (opened, others) = mpsc::unbounded_channel();
        let shared = Shared {
            endpoint,
            identity,
            links: Mutex::default(),
            runtime: Handle::current(),
            opened,
        };
        (Self(Arc::new(shared)), others)
    }

    /// Uses a connection that another node has opened for what goes to the address it comes from. The last one that comes is
    /// the one, since an earlier one may be to a process that has ended.
    pub(crate) fn adopt(&self, connection: Connection) {
        let link = self.link(transport::remote(&connection));
        let mut state = link.state();
        state.use_from_now_on(Open::new(connection, false));
    }

    /// Sends a packet, or loses it. Dials in a task if there is no connection yet.
    pub(crate) fn send(&self, to: SocketAddr, packet: Bytes) {
        let link = self.link(to);
        let mut state = link.state();
        if let Some(connection) = state.connection() {
            match connection.send_datagram(packet.clone()) {
                Ok(()) => return,
                Err(SendDatagramError::ConnectionLost(_)) => state.open = None,
                Err(error) => return tracing::debug!(%to, %error, "send a packet"),
            }
        }
        if state.is_resting() {
            return;
        }
        let is_dialled = !state.waiting.is_empty();
        if state.waiting.len() == MAX_WAITING {
            state.waiting.pop_front();
        }
        state.waiting.push_back(packet);
        if !is_dialled {
            let links = self.clone();
            tokio::spawn(async move {
                if let Err(error) = links.connection(to).await {
                    tracing::debug!(error = zdap_proto::refusal::chain(&error), "lose packets");
                }
            });
        }
    }

    /// Has the connection to an address opened anew if nothing comes back for what is sent over it next. Not without trying
    /// it: when many nodes are held up, and so given up and back under other epochs, as many handshakes hold them up more.
    pub(crate) fn doubt(&self, to: SocketAddr) {
        let link = self.links().get(&to).map(Arc::clone);
        if let Some(link) = link
            && let Some(open) = &mut link.state().open
            && open.trust == Trust::Full
        {
            open.trust = Trust::Doubted;
        }
    }

    /// Returns the connection to an address, a new one if there is none.
    pub(crate) async fn connection(&self, to: SocketAddr) -> Result<Connection, LinkError> {
        let link = self.link(to);
        let _turn = link.turn.lock().await;
        {
            let mut state = link.state();
            if let Some(connection) = state.connection() {
                state.flush(&connection);
                return Ok(connection);
            }
            if state.is_resting() {
                state.waiting.clear();
                return Err(LinkError::Resting(to));
            }
        }
        let identity = self.0.identity.borrow().clone();
        let address = to.to_string();
        let endpoint = self.0.endpoint.clone();
        let dial = async move { connect(&endpoint, &identity, &address, Purpose::Gossip).await };
        let dialled = AbortOnDropHandle::new(self.0.runtime.spawn(dial));
        let result = match timeout(DIAL, dialled).await {
            Ok(Ok(Ok(connection))) => Ok(connection),
            Ok(Ok(Err(error))) => Err(LinkError::Connect(to, error)),
            // That it is not done means that the node itself is coming to its end.
            Ok(Err(_)) | Err(_) => Err(LinkError::NoAnswer(to)),
        };
        let mut state = link.state();
        match result {
            Ok(connection) => {
                // Nobody takes them any more from a node that ends.
                let _ = self.0.opened.send(connection.clone());
                state.use_from_now_on(Open::new(connection.clone(), true));
                Ok(connection)
            }
            Err(error) => {
                // The other one may have been quicker.
                if let Some(connection) = state.connection() {
                    return Ok(connection);
                }
                state.waiting.clear();
                state.rest();
                Err(error)
            }
        }
    }

    /// Waits until what was sent has left this machine, for a while.
    pub(crate) async fn flushed(&self) {
        let flushed = async {
            // QUIC says how much waits, and not when it is gone.
            while self.is_busy() {
                sleep(Duration::from_millis(1)).await;
            }
        };
        if timeout(FLUSH, flushed).await.is_err() {
            tracing::debug!("not all packets could be sent");
        }
    }

    fn is_busy(&self) -> bool {
        let links = self.links();
        links.values().any(|link| {
            let state = link.state();
            let is_sending = state.open.as_ref().is_some_and(|open| {
                open.connection.close_reason().is_none()
                    && open.connection.datagram_send_buffer_space() < open.room
            });
            is_sending || !state.waiting.is_empty()
        })
    }

    fn link(&self, to: SocketAddr) -> Arc<Link> {
        let mut links = self.links();
        if let Some(link) = links.get(&to) {
            return Arc::clone(link);
        }
        // Addresses that nobody answers at come and go.
        links.retain(|_, link| Arc::strong_count(link) > 1 || link.state().is_of_use());
        Arc::clone(links.entry(to).or_default())
    }

    fn links(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Arc<Link>>> {
        self.0.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link {
    /// Held for no longer than it takes to copy a packet.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn new(connection: Connection, is_ours: bool) -> Self {
        Self {
            since: Instant::now(),
            room: connection.datagram_send_buffer_space(),
            is_ours,
            trust: Trust::Full,
            connection,
        }
    }

    /// Notes that the connection is about to be used; returns whether it is deaf. What is sent is acknowledged.
    fn is_deaf(&mut self) -> bool {
        let heard = || self.connection.stats().udp_rx.datagrams;
        match self.trust {
            Trust::Full => {}
            Trust::Doubted => {
                self.trust = Trust::Tried {
                    at: Instant::now(),
                    heard: heard(),
                }
            }
            Trust::Tried { heard: before, .. } if heard() > before => self.trust = Trust::Full,
            Trust::Tried { at, .. } => return at.elapsed() > DEAF,
        }
        false
    }
}

impl State {
    /// Returns the connection, to be used, if it has not ended. One that ended as soon as it was opened was turned away.
    fn connection(&mut self) -> Option<Connection> {
        let open = self.open.as_mut()?;
        if open.connection.close_reason().is_none() {
            if !open.is_deaf() {
                return Some(open.connection.clone());
            }
            Close::Done.connection(&open.connection, "no answer");
        } else if open.is_ours && open.since.elapsed() < REST {
            self.rest();
        }
        self.open = None;
        None
    }

    fn flush(&mut self, connection: &Connection) {
        for packet in self.waiting.drain(..) {
            // What cannot be sent is lost, as packets are.
            let _ = connection.send_datagram(packet);
        }
    }

    fn use_from_now_on(&mut self, open: Open) {
        self.flush(&open.connection);
        self.open = Some(open);
        self.resting_until = None;
        self.failures = 0;
    }

    fn rest(&mut self) {
        let rest = REST * 2_u32.pow(self.failures.min(DOUBLINGS));
        self.resting_until = Some(Instant::now() + rest);
        self.failures = self.failures.saturating_add(1);
    }

    fn is_resting(&self) -> bool {
        self.resting_until.is_some_and(|until| Instant::now() < until)
    }

    fn is_of_use(&self) -> bool {
        self.open
            .as_ref()
            .is_some_and(|open| open.connection.close_reason().is_none())
            || !self.waiting.is_empty()
            || self
                .resting_until
                .is_some_and(|until| until.elapsed() < REMEMBERED)
    }
}

/// The first packet of a handshake is sent again after 0.3 s and 0.9 s. Whoever comes back is then reached by a new attempt
/// and not by the tail of an old one.
const DIAL: Duration = Duration::from_millis(1500);
/// An acknowledgement takes a round trip and at most 25 ms, and seconds from a node that is held up. One that has lost its
/// key connects by itself before.
const DEAF: Duration = Duration::from_secs(3);
/// Whoever has not answered is left alone so long, and longer each time, unless it connects by itself: where many are held
/// up, handshakes that are given up and begun again hold them up more.
const REST: Duration = Duration::from_millis(250);
/// Up to 2 s.
const DOUBLINGS: u32 = 3;
/// How long it is known after a rest that somebody did not answer.
const REMEMBERED: Duration = Duration::from_secs(10);
/// What the membership has to say to one node in the time of a handshake.
const MAX_WAITING: usize = 8;
/// For the last packets of a node that leaves; those that it has no connection for take a handshake.
const FLUSH: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests;
