//! The keeper: holds one connection, by the best way there is, for all that goes through a tunnel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, ConnectionError, Endpoint};
use rand::RngExt;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::TunnelError;
use crate::connect::{ConnectError, connect, connect_to_any, explain, most_telling};
use crate::identity::Identity;
use crate::refusal::chain;
use crate::transport::{self, Purpose};

/// The connection that there is for now.
#[derive(Debug, Clone)]
pub(super) enum Link {
    /// None, and why the last one ended or was not made.
    Down(Option<Arc<ConnectError>>),
    Up(Arc<Up>),
}

#[derive(Debug)]
pub(super) struct Up {
    pub(super) connection: Connection,
    pub(super) address: String,
    /// To the first of the servers, not through another.
    pub(super) is_direct: bool,
}

/// What somebody has noticed about the connection with this id.
#[derive(Debug, Clone, Copy)]
pub(super) enum Suspicion {
    /// Nothing comes back.
    Deaf(usize),
    /// The node is well and cannot reach the clone's.
    LeadsNowhere(usize),
}

pub(super) struct Keeper {
    pub(super) endpoint: Endpoint,
    pub(super) identity: watch::Receiver<Identity>,
    pub(super) servers: Vec<String>,
    pub(super) publish: watch::Sender<Link>,
    pub(super) suspected: mpsc::Receiver<Suspicion>,
}

/// Why a connection is held no longer.
enum Turn {
    Lost(ConnectError),
    /// The node cannot reach the clone's.
    LeadsNowhere,
    /// The first of the servers answers again.
    Direct(Up),
    /// There is a new certificate to show.
    Renewed,
}

/// How often it has gone wrong, one time after the other.
#[derive(Default)]
struct Trouble {
    failures: u32,
    said: String,
}

impl Keeper {
    pub(super) async fn run(mut self) {
        let mut trouble = Trouble::default();
        let mut reached = self.reach_any(None).await;
        loop {
            let (turn, address) = match reached {
                Ok(up) => {
                    let up = Arc::new(up);
                    self.publish.send_replace(Link::Up(up.clone()));
                    let turn = self.hold(&up, &mut trouble).await;
                    (turn, Some(up.address.clone()))
                }
                Err(error) => (Turn::Lost(error), None),
            };
            reached = match turn {
                Turn::Direct(up) => Ok(up),
                Turn::Renewed => self.reach_any(None).await,
                Turn::LeadsNowhere => {
                    tracing::debug!(node = address, "it does not reach the clone's node");
                    trouble.pause().await;
                    self.reach_any(address.as_deref()).await
                }
                Turn::Lost(error) => {
                    self.publish.send_replace(Link::Down(Some(trouble.say(error))));
                    trouble.pause().await;
                    self.reach_any(None).await
                }
            };
        }
    }

    /// Reaches the first of the servers, or, as it does not answer at once, another; `last` only when all others fail.
    async fn reach_any(&mut self, last: Option<&str>) -> Result<Up, ConnectError> {
        let identity = self.identity.borrow_and_update().clone();
        let mut servers = self.servers.clone();
        servers.sort_by_key(|server| Some(server.as_str()) == last); // stable: the others keep their order
        match connect_to_any(&self.endpoint, &identity, &servers, Purpose::Tunnel).await {
            Ok((connection, address)) => Ok(Up {
                connection,
                is_direct: self.servers.first() == Some(&address),
                address,
            }),
            Err(errors) => {
                let errors = errors.into_iter().map(|(_, error)| error).collect();
                Err(most_telling(errors))
            }
        }
    }

    /// Waits until there is a reason to let a connection go.
    async fn hold(&mut self, up: &Up, trouble: &mut Trouble) -> Turn {
        // A node that does not take our certificate says so after the connection stands.
        match timeout(STEADY, self.watch(up)).await {
            Ok(turn) => turn,
            Err(_) => {
                tracing::info!(node = %up.address, direct = up.is_direct, "connected");
                *trouble = Trouble::default();
                self.watch(up).await
            }
        }
    }

    /// Does the same, and moves the connection to this machine's new address when that changes.
    async fn watch(&mut self, up: &Up) -> Turn {
        let remote = transport::remote(&up.connection);
        let mut address = address_towards(remote);
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let moved = Notify::new();
        let (endpoint, identity) = (self.endpoint.clone(), self.identity.borrow().clone());
        let direct = async {
            match self.servers.first() {
                Some(first) if !up.is_direct => direct(&endpoint, &identity, first, &moved).await,
                Some(_) | None => std::future::pending().await,
            }
        };
        tokio::pin!(direct);
        let id = up.connection.stable_id();
        loop {
            tokio::select! {
                error = up.connection.closed() => return Turn::Lost(explain(&up.address, error)),
                up = &mut direct => return Turn::Direct(up),
                Ok(()) = self.identity.changed() => return Turn::Renewed,
                suspicion = self.suspected.recv() => match suspicion {
                    Some(Suspicion::Deaf(suspect)) if suspect == id => {
                        return Turn::Lost(explain(&up.address, ConnectionError::TimedOut));
                    }
                    Some(Suspicion::LeadsNowhere(suspect)) if suspect == id && !up.is_direct => {
                        return Turn::LeadsNowhere;
                    }
                    Some(Suspicion::Deaf(_) | Suspicion::LeadsNowhere(_)) | None => {} // of one that is gone
                },
                _ = look.tick() => {
                    let now = address_towards(remote);
                    if now.is_some() && now != address {
                        tracing::info!(?address, ?now, "this machine's address has changed");
                        address = now;
                        match transport::bind_any(0).and_then(|socket| self.endpoint.rebind(socket)) {
                            Ok(()) => moved.notify_one(),
                            Err(error) => tracing::warn!(%error, "cannot move to the new address"),
                        }
                    }
                }
            }
        }
    }
}

impl Trouble {
    /// Says what went wrong, unless that was the last that was said.
    fn say(&mut self, error: ConnectError) -> Arc<ConnectError> {
        let error = Arc::new(error);
        let line = chain(&TunnelError::Unreachable(error.clone()));
        if line != self.said {
            tracing::warn!(error = %line, "not connected");
            self.said = line;
        }
        error
    }

    /// The first time there is none.
    async fn pause(&mut self) {
        if self.failures > 0 {
            sleep(pause(self.failures)).await;
        }
        self.failures += 1;
    }
}

/// Tries the direct way until it works: from [`DIRECT_FIRST`] on ever more rarely, and soon again on another network.
async fn direct(endpoint: &Endpoint, identity: &Identity, address: &str, moved: &Notify) -> Up {
    let mut pause = DIRECT_FIRST;
    loop {
        tokio::select! {
            () = sleep(pause) => pause = (pause * 2).min(DIRECT_RARELY),
            () = moved.notified() => pause = DIRECT_FIRST,
        }
        match connect(endpoint, identity, address, Purpose::Tunnel).await {
            Ok(connection) => {
                return Up {
                    connection,
                    address: address.to_owned(),
                    is_direct: true,
                };
            }
            Err(error) => tracing::debug!(error = chain(&error), "no direct way yet"),
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

/// A connection that lasts so long has been accepted.
const STEADY: Duration = Duration::from_secs(1);
/// How often this machine's address is looked at: the gap that a change of network leaves.
const LOOK: Duration = Duration::from_secs(1);
/// The time in which a node restarts.
const DIRECT_FIRST: Duration = Duration::from_secs(1);
/// Three packets each: nothing even where a firewall never lets them through.
const DIRECT_RARELY: Duration = Duration::from_secs(30);
