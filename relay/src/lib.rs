//! The relay, `zdap-proxyd`: stands in a compose project where the database stood, and takes its connections through
//! QUIC to one clone.
//!
//! All of the work is [`zdap_proto::tunnel`]'s. What is here is the process around it: the environment ([`config`]), the
//! port, the renewal of the certificate, and the answer to `zdap-proxyd health`.
//!
//! The health check runs as a process of its own every second, so it only asks the running relay, over a Unix socket in
//! the abstract namespace: it needs no file, no certificate and no QUIC handshake. The relay asks the database.

pub mod config;
mod renewal;

use std::future::Future;
use std::io::{self, Read};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net as unix;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;
use zdap_proto::identity::{Identity, IdentityError};
use zdap_proto::refusal::chain;
use zdap_proto::transport::{self, Close, TransportError};
use zdap_proto::tunnel::Tunnel;

use crate::config::Config;
use crate::renewal::stay_certified;

/// Why a relay does not run.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// `ZDAP_IDENTITY` holds nothing that serves.
    #[error(
        "ZDAP_IDENTITY cannot be used; set it to the directory that `zdap attach` wrote, such as .zdap.d/orders"
    )]
    Identity(#[source] IdentityError),
    /// `LISTEN_PORT` cannot be listened on.
    #[error("cannot listen on LISTEN_PORT={port}")]
    Listen {
        /// The port.
        port: u16,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no network to connect from.
    #[error("cannot open connections")]
    Transport(#[source] TransportError),
}

/// What a relay listens on.
#[derive(Debug)]
pub struct Listeners {
    /// For databases' clients.
    pub clients: TcpListener,
    /// For [`ask_health`].
    health: UnixListener,
}

/// Listens on a TCP port of every address, IPv6 and IPv4, or IPv4 where there is no IPv6. Inside a Tokio runtime.
pub fn listen(port: u16) -> Result<Listeners, RelayError> {
    let failed = |source| RelayError::Listen { port, source };
    let both = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let clients = match bind(both) {
        Err(error)
            if error.kind() != io::ErrorKind::AddrInUse
                && error.kind() != io::ErrorKind::PermissionDenied =>
        {
            bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))
        }
        bound => bound,
    };
    let clients = clients.map_err(failed)?;
    let port = clients.local_addr().map_err(failed)?.port();
    let health = listen_for_health(port).map_err(failed)?;
    Ok(Listeners { clients, health })
}

/// Serves the clone until `shutdown`. A node that cannot be reached yet is waited for. A certificate that is of no use is
/// no reason to end: clients and the health check are told, which is where people look.
pub async fn run(
    config: Config,
    listeners: Listeners,
    shutdown: impl Future<Output = ()>,
) -> Result<(), RelayError> {
    let identity = Identity::load(&config.identity).map_err(RelayError::Identity)?;
    let endpoint = transport::client_endpoint().map_err(RelayError::Transport)?;
    tracing::info!(clone = %config.clone, servers = config.servers.join(","), port = config.listen_port, "serving");
    let tunnel = Tunnel::new(
        endpoint.clone(),
        identity.clone(),
        config.servers.clone(),
        config.clone,
    );
    let mut beside = JoinSet::new();
    beside.spawn(serve_health(listeners.health, tunnel.clone()));
    let (renewed, dialer) = (tunnel.clone(), endpoint.clone());
    beside.spawn(async move {
        stay_certified(renewed, dialer, config.servers, &config.identity, identity).await;
    });
    tunnel.serve(listeners.clients, shutdown).await;
    Close::Stopping.endpoint(&endpoint, "the relay stops");
    // Time for the farewell to leave, so that the node need not wait for what is not coming.
    let _ = tokio::time::timeout(FAREWELL, endpoint.wait_idle()).await;
    Ok(())
}

/// Asks the relay on this machine that listens on `port` whether the database answers; the error says why not.
pub fn ask_health(port: u16) -> Result<(), String> {
    let no_relay = |error: io::Error| format!("no relay answers on port {port}: {error}");
    let address = health_address(port).map_err(no_relay)?;
    let mut stream = unix::UnixStream::connect_addr(&address).map_err(no_relay)?;
    stream.set_read_timeout(Some(HEALTH_DEADLINE)).map_err(no_relay)?;
    let mut answer = String::new();
    match stream.read_to_string(&mut answer) {
        Ok(_) if answer == HEALTHY => Ok(()),
        Ok(_) if answer.is_empty() => Err("the relay stops".to_owned()),
        Ok(_) => Err(answer),
        Err(_) => Err(format!(
            "the database does not answer within {} s",
            HEALTH_DEADLINE.as_secs()
        )),
    }
}

async fn serve_health(listener: UnixListener, tunnel: Tunnel) {
    let mut answers = JoinSet::new();
    loop {
        tokio::select! {
            asked = listener.accept() => {
                let Ok((mut stream, _)) = asked else {
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                };
                let tunnel = tunnel.clone();
                answers.spawn(async move {
                    let answer = match tunnel.probe().await {
                        Ok(()) => HEALTHY.to_owned(),
                        Err(error) => chain(&error),
                    };
                    let _ = stream.write_all(answer.as_bytes()).await; // who asked may have left
                });
            }
            Some(_) = answers.join_next() => {}
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?; // a restart finds its port still waiting for the last packets
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn listen_for_health(port: u16) -> io::Result<UnixListener> {
    let listener = unix::UnixListener::bind_addr(&health_address(port)?)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// A name in the abstract namespace belongs to the container's network, as the port does.
fn health_address(port: u16) -> io::Result<unix::SocketAddr> {
    unix::SocketAddr::from_abstract_name(format!("zdap-proxyd/health/{port}"))
}

const HEALTHY: &str = "ok";
/// A database that takes longer is not one to depend on; compose waits longer than that.
const HEALTH_DEADLINE: Duration = Duration::from_secs(5);
/// A round trip on any network that a database is used over.
const FAREWELL: Duration = Duration::from_millis(500);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// A pool that opens all its connections at once.
const BACKLOG: i32 = 1024;
