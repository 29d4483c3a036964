//! The client half of the tunnel: a local listener whose connections reach one clone.
//!
//! A task of its own, the keeper, holds one connection to whichever node of the list answers first, the earlier ones with
//! a head start. When that is lost, or does not react, it makes a new one: at once the first time, then with pauses. It
//! also sees when this machine's address changes and moves the connection along.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use rand::RngExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::connect::{ConnectError, connect, explain, most_telling, race};
use crate::frame::{self, FrameError, REPLY_CAP, REQUEST_CAP};
use crate::identity::Identity;
use crate::message::{TunnelHello, TunnelReply};
use crate::name::CloneId;
use crate::postgres::{self, Greeting};
use crate::refusal::{Refusal, chain};
use crate::splice::splice;
use crate::transport::{self, Purpose};

/// The way to one clone's database. Copies share the connection, which ends with the last of them.
#[derive(Debug, Clone)]
pub struct Tunnel(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    clone: CloneId,
    servers: Vec<String>,
    link: watch::Receiver<Link>,
    suspects: mpsc::Sender<usize>,
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
    /// Begins to connect to one of `servers` (`host:port`, the best first) as `identity`. Inside a Tokio runtime.
    pub fn new(endpoint: Endpoint, identity: Identity, servers: Vec<String>, clone: CloneId) -> Self {
        let (publish, link) = watch::channel(Link::Down(None));
        let (suspects, suspected) = mpsc::channel(16); // more at once say nothing new
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
            _keeper: keeper,
        }))
    }

    /// Opens a connection to the clone's database, within [`OPEN_DEADLINE`]. A node that is gone for a moment is waited for.
    pub async fn open(&self) -> Result<(SendStream, RecvStream), TunnelError> {
        match timeout(OPEN_DEADLINE, self.try_until_opened()).await {
            Ok(result) => result,
            Err(_) => Err(match &*self.0.link.borrow() {
                Link::Down(Some(error)) => TunnelError::Unreachable(error.clone()),
                Link::Down(None) | Link::Up(_) => TunnelError::Slow {
                    clone: self.0.clone.clone(),
                    servers: self.0.servers.join(", "),
                    after: OPEN_DEADLINE,
                },
            }),
        }
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

    async fn try_until_opened(&self) -> Result<(SendStream, RecvStream), TunnelError> {
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
                        sleep(BUSY_PAUSE).await;
                        continue;
                    }
                    // The keeper is on its way to another connection.
                    Err(TunnelError::Unreachable(error)) if !error.is_definite() => {
                        let _ = self.0.suspects.try_send(up.connection.stable_id());
                    }
                    result => return result,
                },
            }
            link.changed().await.map_err(|_| TunnelError::Closed)?;
        }
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

/// Returns when not a single packet has come for [`DEAF`], although some were due: whatever is sent is acknowledged.
async fn deaf(connection: &Connection) {
    let mut heard = connection.stats().udp_rx.datagrams;
    loop {
        sleep(DEAF).await;
        let now = connection.stats().udp_rx.datagrams;
        if now == heard {
            return;
        }
        heard = now;
    }
}

#[derive(Debug, Clone)]
enum Link {
    /// No connection, and why the last one ended or was not made.
    Down(Option<Arc<ConnectError>>),
    Up(Arc<Up>),
}

#[derive(Debug)]
struct Up {
    connection: Connection,
    address: String,
}

struct Keeper {
    endpoint: Endpoint,
    identity: Identity,
    servers: Vec<String>,
    publish: watch::Sender<Link>,
    suspected: mpsc::Receiver<usize>,
}

impl Keeper {
    async fn run(mut self) {
        let mut failures = 0;
        let mut said = String::new();
        loop {
            let error = match self.reach_any().await {
                Err(error) => error,
                Ok(up) => {
                    let up = Arc::new(up);
                    self.publish.send_replace(Link::Up(up.clone()));
                    // A node that does not take our certificate says so after the connection stands.
                    let first = timeout(STEADY, self.until_lost(&up)).await;
                    match first {
                        Ok(error) => error,
                        Err(_) => {
                            tracing::info!(node = %up.address, "connected");
                            (failures, said) = (0, String::new());
                            self.until_lost(&up).await
                        }
                    }
                }
            };
            let reason = TunnelError::Unreachable(Arc::new(error));
            let line = chain(&reason);
            if line != said {
                tracing::warn!(error = %line, "not connected");
                said = line;
            }
            if let TunnelError::Unreachable(error) = reason {
                self.publish.send_replace(Link::Down(Some(error)));
            }
            if failures > 0 {
                sleep(pause(failures)).await;
            }
            failures += 1;
        }
    }

    async fn reach_any(&self) -> Result<Up, ConnectError> {
        let attempts = self.servers.iter().cloned().map(|address| {
            let (endpoint, identity) = (self.endpoint.clone(), self.identity.clone());
            async move {
                let connection = connect(&endpoint, &identity, &address, Purpose::Tunnel).await?;
                Ok(Up { connection, address })
            }
        });
        race(attempts.collect())
            .await
            .map_err(|errors| most_telling(errors, &self.servers))
    }

    /// Waits for the end of a connection, and moves it to this machine's new address when that changes.
    async fn until_lost(&mut self, up: &Up) -> ConnectError {
        let remote = transport::remote(&up.connection);
        let mut address = address_towards(remote);
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                error = up.connection.closed() => return explain(&up.address, error),
                suspect = self.suspected.recv() => {
                    if suspect == Some(up.connection.stable_id()) {
                        return explain(&up.address, ConnectionError::TimedOut);
                    }
                }
                _ = look.tick() => {
                    let now = address_towards(remote);
                    if now.is_some() && now != address {
                        tracing::info!(?address, ?now, "this machine's address has changed");
                        address = now;
                        match transport::bind_any(0).and_then(|socket| self.endpoint.rebind(socket)) {
                            Ok(()) => {}
                            Err(error) => tracing::warn!(%error, "cannot move to the new address"),
                        }
                    }
                }
            }
        }
    }
}

/// Returns the address that packets to `remote` leave from; none while there is no way to it. Sends nothing.
fn address_towards(remote: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = match remote {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(remote).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Doubles from 50 ms to a second, between half and all of it, so that many relays do not come back in one moment.
fn pause(failures: u32) -> Duration {
    let longest = Duration::from_millis(50 << failures.min(5)).min(Duration::from_secs(1));
    longest.mul_f64(rand::rng().random_range(0.5..1.0))
}

/// What a person waits for a connection before they look for the fault themselves; also bridges a restart of the node.
pub const OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// A Postgres server answers within milliseconds, on a slow path within a round trip.
pub const SILENCE: Duration = Duration::from_secs(1);
/// An acknowledgement takes a round trip and at most 25 ms; three lost packets in a row are no accident.
const DEAF: Duration = Duration::from_secs(1);
/// A connection that lasts so long has been accepted.
const STEADY: Duration = Duration::from_secs(1);
/// How often this machine's address is looked at: the gap that a change of network leaves.
const LOOK: Duration = Duration::from_secs(1);
/// Between two tries at a node that says it is busy or starting.
const BUSY_PAUSE: Duration = Duration::from_millis(200);
/// Out of file descriptors, most likely: time for some connection to end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a client may take to hear why it gets no connection.
const LAST_WORDS: Duration = Duration::from_secs(2);
