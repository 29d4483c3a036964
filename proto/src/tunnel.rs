//! The client half of the tunnel: a local listener whose connections reach one clone.
//!
//! The first node of the list is the clone's own; any other passes connections on to it. A task of its own, the keeper,
//! holds one connection to whichever answers first, the earlier ones with a head start. When that is lost, or does not
//! react, it makes a new one: at once the first time, then with pauses. As long as it goes through another node it keeps
//! trying the direct way, and what is opened from then on goes there; what is open stays where it is. It also sees when
//! this machine's address changes and moves the connection along.

mod keeper;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use self::keeper::{Keeper, Link, Suspicion, Up};
use crate::connect::{ConnectError, explain};
use crate::frame::{self, FrameError, REPLY_CAP, REQUEST_CAP};
use crate::identity::Identity;
use crate::message::{TunnelHello, TunnelReply};
use crate::name::CloneId;
use crate::postgres::{self, Greeting};
use crate::refusal::{Refusal, chain};
use crate::splice::splice;

/// The way to one clone's database. Copies share the connection, which ends with the last of them.
#[derive(Debug, Clone)]
pub struct Tunnel(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    clone: CloneId,
    servers: Vec<String>,
    link: watch::Receiver<Link>,
    suspects: mpsc::Sender<Suspicion>,
    identity: watch::Sender<Identity>,
    /// The keeper; ends when this is dropped.
    _keeper: JoinSet<()>,
}

/// Why there is no connection to the clone's database.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The node says no.
    #[error("{0}")]
    Refused(Refusal),
    /// No node was reached.
    #[error("cannot reach a node")]
    Unreachable(#[source] Arc<ConnectError>),
    /// A node was reached and did not say yes or no in time.
    #[error("no connection to clone `{clone}` through {servers} within {} s", after.as_secs())]
    Slow {
        /// Which clone.
        clone: CloneId,
        /// The nodes.
        servers: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// A node says what is not understood.
    #[error("the node's answer is not understood")]
    Protocol(#[source] FrameError),
    /// The database is there and takes no connections.
    #[error("the database does not take connections: {0}")]
    NotReady(String),
    /// The database was reached and failed.
    #[error("the connection to the database failed")]
    Database(#[source] std::io::Error),
    /// The tunnel has ended.
    #[error("the tunnel is closed")]
    Closed,
}

impl TunnelError {
    /// Returns the remedy, where there is one to name.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Refused(refusal) => refusal.hint.clone(),
            Self::Unreachable(error) => error.hint(),
            Self::Slow { .. } | Self::Protocol(_) | Self::NotReady(_) | Self::Database(_) | Self::Closed => {
                None
            }
        }
    }
}

impl Tunnel {
    /// Begins to connect to one of `servers` (`host:port`, the clone's own node first) as `identity`. Inside a Tokio runtime.
    pub fn new(endpoint: Endpoint, identity: Identity, servers: Vec<String>, clone: CloneId) -> Self {
        let (publish, link) = watch::channel(Link::Down(None));
        let (suspects, suspected) = mpsc::channel(16); // more at once say nothing new
        let (renewed, identity) = watch::channel(identity);
        let mut keeper = JoinSet::new();
        keeper.spawn(
            Keeper {
                endpoint,
                identity,
                servers: servers.clone(),
                publish,
                suspected,
            }
            .run(),
        );
        Self(Arc::new(Shared {
            clone,
            servers,
            link,
            suspects,
            identity: renewed,
            _keeper: keeper,
        }))
    }

    /// Opens a connection to the clone's database, within [`OPEN_DEADLINE`]. A node that is gone for a moment is waited for.
    pub async fn open(&self) -> Result<(SendStream, RecvStream), TunnelError> {
        let mut refused = None;
        match timeout(OPEN_DEADLINE, self.try_until_opened(&mut refused)).await {
            Ok(result) => result,
            Err(_) => Err(match (&*self.0.link.borrow(), refused) {
                (Link::Down(Some(error)), _) => TunnelError::Unreachable(error.clone()),
                (Link::Down(None) | Link::Up(_), Some(refusal)) => TunnelError::Refused(refusal),
                (Link::Down(None) | Link::Up(_), None) => TunnelError::Slow {
                    clone: self.0.clone.clone(),
                    servers: self.0.servers.join(", "),
                    after: OPEN_DEADLINE,
                },
            }),
        }
    }

    /// Shows another certificate from now on; what is open stays open.
    pub fn renew(&self, identity: Identity) {
        self.0.identity.send_replace(identity);
    }

    /// Takes connections and joins each with one to the database, until `shutdown`, which ends them all.
    ///
    /// A Postgres client that cannot be served is told why in its own protocol.
    pub async fn serve(&self, listener: TcpListener, shutdown: impl Future<Output = ()>) {
        let mut shutdown = pin!(shutdown);
        let mut sessions = JoinSet::new();
        loop {
            tokio::select! {
                () = &mut shutdown => return sessions.shutdown().await,
                accepted = listener.accept() => match accepted {
                    Ok((client, _)) => {
                        sessions.spawn(self.clone().session(client));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot take a connection");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = sessions.join_next() => {}
            }
        }
    }

    /// Asks the database whether it takes connections, through the tunnel.
    ///
    /// A Postgres server that is starting or stopping is not ready. One that says nothing within [`SILENCE`] waits for
    /// its client to speak first in another protocol; being connected to is as much as can be asked of it.
    pub async fn probe(&self) -> Result<(), TunnelError> {
        let (mut send, mut recv) = self.open().await?;
        let greeting = timeout(SILENCE, postgres::greet(&mut send, &mut recv)).await;
        // An end rather than a reset, and with nothing left unread: a server would log either.
        let _ = send.finish();
        let _ = timeout(SILENCE, tokio::io::copy(&mut recv, &mut tokio::io::sink())).await;
        match greeting {
            Ok(Ok(Greeting::Ready)) | Err(_) => Ok(()),
            Ok(Ok(Greeting::NotReady(reason))) => Err(TunnelError::NotReady(reason)),
            Ok(Err(error)) => Err(TunnelError::Database(error)),
        }
    }

    async fn session(self, mut client: TcpStream) {
        let _ = client.set_nodelay(true); // only slower without
        match self.open().await {
            Ok((send, recv)) => match splice(client, send, recv).await {
                Ok(spliced) => tracing::debug!(?spliced, "a connection has ended"),
                Err(error) => {
                    tracing::debug!(side = ?error.side, error = %error.source, "a connection has failed")
                }
            },
            Err(error) => {
                let reason = chain(&error);
                tracing::debug!(error = %reason, "a client gets no connection");
                let (message, hint) = (format!("zdap: {reason}"), error.hint());
                let refused = postgres::refuse(&mut client, &message, hint.as_deref());
                let _ = timeout(LAST_WORDS, refused).await; // told or gone, that is the end of it
            }
        }
    }

    /// Tries again for as long as that may help; `refused` is what a node has last said.
    async fn try_until_opened(
        &self,
        refused: &mut Option<Refusal>,
    ) -> Result<(SendStream, RecvStream), TunnelError> {
        let mut link = self.0.link.clone();
        loop {
            let current = link.borrow_and_update().clone();
            match current {
                Link::Down(Some(error)) if error.is_definite() => {
                    return Err(TunnelError::Unreachable(error));
                }
                Link::Down(_) => {}
                Link::Up(up) => match self.open_over(&up).await {
                    Err(TunnelError::Refused(refusal)) if refusal.kind.is_retryable() => {
                        *refused = Some(refusal);
                        // One that passes connections on may be cut off where the next one is not.
                        if !up.is_direct && self.0.servers.len() > 2 {
                            self.suspect(Suspicion::LeadsNowhere(up.connection.stable_id()));
                        }
                        sleep(BUSY_PAUSE).await;
                        continue;
                    }
                    // The keeper is on its way to another connection.
                    Err(TunnelError::Unreachable(error)) if !error.is_definite() => {
                        self.suspect(Suspicion::Deaf(up.connection.stable_id()));
                    }
                    result => return result,
                },
            }
            link.changed().await.map_err(|_| TunnelError::Closed)?;
        }
    }

    fn suspect(&self, suspicion: Suspicion) {
        let _ = self.0.suspects.try_send(suspicion); // where so many are waiting, this one is among them
    }

    async fn open_over(&self, up: &Up) -> Result<(SendStream, RecvStream), TunnelError> {
        let lost = |error| TunnelError::Unreachable(Arc::new(explain(&up.address, error)));
        let (mut send, mut recv) = up.connection.open_bi().await.map_err(lost)?;
        let exchange = async {
            let hello = TunnelHello {
                clone: self.0.clone.clone(),
                on_behalf_of: None,
            };
            frame::write(&mut send, &hello, REQUEST_CAP).await?;
            frame::read(&mut recv, REPLY_CAP).await
        };
        let reply = tokio::select! {
            reply = exchange => reply,
            () = deaf(&up.connection) => return Err(lost(ConnectionError::TimedOut)),
        };
        match reply {
            Ok(TunnelReply::Open) => Ok((send, recv)),
            Ok(TunnelReply::Refused(refusal)) => Err(TunnelError::Refused(refusal)),
            Err(error) => Err(match up.connection.close_reason() {
                Some(reason) => lost(reason),
                None => TunnelError::Protocol(error),
            }),
        }
    }
}

/// Returns when not a single packet has come for [`DEAF`] and two round trips, although some were due: whatever is sent is
/// acknowledged, and sent again if it is not. A node that takes its time to answer has nothing to send.
async fn deaf(connection: &Connection) {
    loop {
        let before = connection.stats();
        sleep(DEAF).await;
        let has_sent = connection.stats().udp_tx.datagrams > before.udp_tx.datagrams;
        // For what was sent last.
        sleep(2 * connection.rtt()).await;
        if has_sent && connection.stats().udp_rx.datagrams == before.udp_rx.datagrams {
            return;
        }
    }
}

/// What a person waits for a connection before they look for the fault themselves; also bridges a restart of the node.
pub const OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// A Postgres server answers within milliseconds, on a slow path within a round trip.
pub const SILENCE: Duration = Duration::from_secs(1);
/// An acknowledgement takes a round trip and at most 25 ms; three lost packets in a row are no accident. A false alarm costs
/// a handshake, and the way through another node is to be found within a second.
const DEAF: Duration = Duration::from_millis(500);
/// Between two tries at a node that says it is busy or starting.
const BUSY_PAUSE: Duration = Duration::from_millis(200);
/// Out of file descriptors, most likely: time for some connection to end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a client may take to hear why it gets no connection.
const LAST_WORDS: Duration = Duration::from_secs(2);
