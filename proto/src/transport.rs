//! QUIC endpoints with mutual TLS.
//!
//! TLS 1.3 only, one crypto provider (aws-lc-rs), no 0-RTT. A server asks every client for a certificate of the
//! cluster's CA; only a newcomer ([`Purpose::Enrol`]) may come without, and [`handshake`] turns others away with the reason. There is no
//! session resumption: it would save a millisecond of computing and skip the check of the certificate's dates.

mod numbers;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use aws_lc_rs::{digest, hmac};
use chrono::{DateTime, Utc};
use quinn::crypto::rustls::{HandshakeData, QuicServerConfig};
use quinn::{
    AsyncUdpSocket, Connecting, Connection, ConnectionError, ConnectionId, ConnectionIdGenerator, Endpoint,
    EndpointConfig, ServerConfig, VarInt,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use socket2::{Domain, Protocol, SockRef, Type};

pub(crate) use self::numbers::opened;
use crate::identity::{Identity, IdentityError, Peer, Subject, expires_at_of, peer_of};
use crate::name::ClusterId;
use crate::{ALPN_CONTROL, ALPN_ENROL, ALPN_GOSSIP, ALPN_TUNNEL};

/// What a connection is for: its ALPN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Requests of users, admins and nodes.
    Control,
    /// Database connections.
    Tunnel,
    /// A token for a certificate.
    Enrol,
    /// What nodes tell each other of the cluster: in datagrams, and on small streams.
    Gossip,
}

impl Purpose {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::Control, Self::Tunnel, Self::Enrol, Self::Gossip];

    /// Returns its name in the TLS handshake.
    pub fn alpn(self) -> &'static [u8] {
        match self {
            Self::Control => ALPN_CONTROL,
            Self::Tunnel => ALPN_TUNNEL,
            Self::Enrol => ALPN_ENROL,
            Self::Gossip => ALPN_GOSSIP,
        }
    }
}

/// Why an endpoint could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The socket cannot be had.
    #[error("cannot open a UDP socket")]
    Socket(#[source] io::Error),
    /// The identity does not serve for TLS.
    #[error("the identity cannot be used for TLS")]
    Tls(#[source] rustls::Error),
    /// The CA's certificate does not serve for checking peers.
    #[error("the CA's certificate cannot be used to check others")]
    Ca(#[source] rustls::client::VerifierBuilderError),
}

/// Where an endpoint's packets come and go.
#[derive(Debug)]
pub enum Socket {
    /// The network.
    Udp(std::net::UdpSocket),
    /// A simulation's, in memory.
    Simulated {
        /// What it is made of.
        socket: Arc<dyn AsyncUdpSocket>,
        /// What all chance of the endpoint comes from, so that the same simulation is the same again.
        seed: [u8; 32],
    },
}

impl Socket {
    /// Returns where it is bound.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Udp(socket) => socket.local_addr(),
            Self::Simulated { socket, .. } => socket.local_addr(),
        }
    }
}

impl From<std::net::UdpSocket> for Socket {
    fn from(socket: std::net::UdpSocket) -> Self {
        Self::Udp(socket)
    }
}

/// Opens a UDP socket with large buffers. One for the IPv6 wildcard takes IPv4 too.
pub fn bind(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        socket.set_only_v6(false)?;
    }
    // The system cuts these to its own limit, and works with less.
    let _ = SockRef::from(&socket).set_recv_buffer_size(SOCKET_BUFFER);
    let _ = SockRef::from(&socket).set_send_buffer_size(SOCKET_BUFFER);
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Opens a UDP socket on every address of this machine: IPv6 and IPv4, or IPv4 where there is no IPv6. Being bound to no
/// address, it outlives any of them.
pub fn bind_any(port: u16) -> io::Result<std::net::UdpSocket> {
    let both = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    match bind(both) {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))
        }
        bound => bound,
    }
}

/// Makes an endpoint that accepts connections as `identity`, a node's, and can open them too. Inside a Tokio runtime.
pub fn server_endpoint(socket: impl Into<Socket>, identity: &Identity) -> Result<Endpoint, TransportError> {
    endpoint(
        socket.into(),
        endpoint_config(identity.key()),
        Some(server_config(identity)?),
    )
}

/// Lets an endpoint of [`server_endpoint`] accept further connections with a renewed certificate. It must be for the same
/// key, by which peers know the endpoint's resets.
pub fn serve_as(endpoint: &Endpoint, identity: &Identity) -> Result<(), TransportError> {
    endpoint.set_server_config(Some(server_config(identity)?));
    Ok(())
}

/// Makes an endpoint that only opens connections, from any port of every address. Inside a Tokio runtime.
pub fn client_endpoint() -> Result<Endpoint, TransportError> {
    let socket = bind_any(0).map_err(TransportError::Socket)?;
    client_endpoint_on(socket)
}

/// Makes an endpoint that only opens connections, through `socket`. Inside a Tokio runtime.
pub fn client_endpoint_on(socket: impl Into<Socket>) -> Result<Endpoint, TransportError> {
    endpoint(socket.into(), EndpointConfig::default(), None)
}

/// Waits for somebody to knock; none any more once the endpoint is closed. The handshake is still to come, so that a
/// slow one does not keep others out: give the result to [`handshake`] in a task of its own.
///
/// Above [`VALIDATED_FROM`] open connections, newcomers first have to show that their address is theirs; above
/// [`MAX_CONNECTIONS`] they are refused.
pub async fn accept(endpoint: &Endpoint) -> Option<Connecting> {
    loop {
        let incoming = endpoint.accept().await?;
        let open = endpoint.open_connections();
        if open >= MAX_CONNECTIONS {
            incoming.refuse();
        } else if open >= VALIDATED_FROM && !incoming.remote_address_validated() {
            let _ = incoming.retry(); // fails only for an address that is validated
        } else {
            match incoming.accept() {
                Ok(connecting) => return Some(connecting),
                Err(error) => tracing::debug!(%error, "a connection ended before it began"),
            }
        }
    }
}

/// A connection whose opener is known.
#[derive(Debug)]
pub struct Accepted {
    /// The connection.
    pub connection: Connection,
    /// What it is for.
    pub purpose: Purpose,
    /// Who opened it: somebody, unless it is to enrol.
    pub peer: Option<Peer>,
    /// When the opener's certificate ends; a connection may last longer.
    pub valid_until: Option<DateTime<Utc>>,
}

/// Why somebody who knocked was not let in.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The handshake failed: no certificate of this cluster, no common protocol, or the peer left.
    #[error("the handshake failed")]
    Handshake(#[source] ConnectionError),
    /// The handshake took too long.
    #[error("the handshake took longer than {} s", HANDSHAKE_DEADLINE.as_secs())]
    Slow,
    /// No certificate, and not here to enrol.
    #[error("the peer has no certificate")]
    Anonymous,
    /// A certificate of this CA that says nothing that is understood.
    #[error("the peer's certificate says nothing that is understood")]
    Stranger(#[source] IdentityError),
    /// A certificate that is not a node's, where nodes talk among themselves.
    #[error("{0} is not a node")]
    NotANode(Subject),
    /// A certificate of another cluster.
    #[error("the peer belongs to cluster `{0}`")]
    OtherCluster(ClusterId),
}

/// Finishes a handshake, at most [`HANDSHAKE_DEADLINE`] long, and turns away whoever may not be here, with the reason.
pub async fn handshake(connecting: Connecting, cluster: &ClusterId) -> Result<Accepted, AcceptError> {
    let connection = match tokio::time::timeout(HANDSHAKE_DEADLINE, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return Err(AcceptError::Handshake(error)),
        Err(_) => return Err(AcceptError::Slow),
    };
    let Some(purpose) = purpose(&connection) else {
        // TLS has agreed on one of ours, or there would be no connection.
        return Err(AcceptError::Handshake(ConnectionError::LocallyClosed));
    };
    let turned_away = |reason: &str, error| {
        Close::Forbidden.connection(&connection, reason);
        Err(error)
    };
    let (peer, valid_until) = match (certificate(&connection), purpose) {
        (None, Purpose::Enrol) => (None, None),
        (None, Purpose::Control | Purpose::Tunnel | Purpose::Gossip) => {
            return turned_away(
                "a certificate of this cluster is needed: enrol first",
                AcceptError::Anonymous,
            );
        }
        (Some(certificate), _) => match (peer_of(&certificate), expires_at_of(&certificate)) {
            (Ok(peer), _) if peer.cluster != *cluster => {
                return turned_away(
                    &format!(
                        "this is cluster `{cluster}`, the certificate is of `{}`",
                        peer.cluster
                    ),
                    AcceptError::OtherCluster(peer.cluster),
                );
            }
            (Ok(peer), Ok(_)) if purpose == Purpose::Gossip && !matches!(peer.subject, Subject::Node(_)) => {
                return turned_away(
                    "the cluster's gossip is for nodes only",
                    AcceptError::NotANode(peer.subject),
                );
            }
            (Ok(peer), Ok(end)) => (Some(peer), Some(end)),
            (Err(error), _) | (_, Err(error)) => {
                return turned_away(
                    "the certificate is not understood here",
                    AcceptError::Stranger(error),
                );
            }
        },
    };
    connection.set_max_concurrent_bi_streams(numbers::streams(purpose));
    connection.set_receive_window(numbers::window(purpose));
    Ok(Accepted {
        connection,
        purpose,
        peer,
        valid_until,
    })
}

/// Returns what a connection is for.
fn purpose(connection: &Connection) -> Option<Purpose> {
    let data = connection.handshake_data()?.downcast::<HandshakeData>().ok()?;
    let protocol = data.protocol?;
    Purpose::ALL
        .into_iter()
        .find(|purpose| purpose.alpn() == protocol)
}

/// Returns who is at the other end, by its certificate; nobody if it has shown none that is understood.
pub fn peer(connection: &Connection) -> Option<Peer> {
    peer_of(&certificate(connection)?).ok()
}

/// Returns when the certificate of who is at the other end is over.
pub fn valid_until(connection: &Connection) -> Option<DateTime<Utc>> {
    expires_at_of(&certificate(connection)?).ok()
}

/// Returns the other end's address, an IPv4 one as such also on a socket for both.
pub fn remote(connection: &Connection) -> SocketAddr {
    let address = connection.remote_address();
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Why a connection is closed on purpose: the code in the packet, beside the reason in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// No more to say.
    Done = 0,
    /// The peer may not be here; another try is no use.
    Forbidden = 1,
    /// Too much to do.
    Busy = 2,
    /// This process ends.
    Stopping = 3,
}

impl Close {
    /// Closes a connection, with the reason for the person at the other end.
    pub fn connection(self, connection: &Connection, reason: &str) {
        connection.close(VarInt::from_u32(self as u32), reason.as_bytes());
    }

    /// Closes an endpoint with all its connections.
    pub fn endpoint(self, endpoint: &Endpoint, reason: &str) {
        endpoint.close(VarInt::from_u32(self as u32), reason.as_bytes());
    }
}

/// The one source of cryptography.
pub(crate) static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));

/// Returns the CA as the only root.
pub(crate) fn roots(ca: &CertificateDer<'static>) -> Result<Arc<RootCertStore>, rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone())?;
    Ok(Arc::new(roots))
}

/// Returns the private key as TLS takes it.
pub(crate) fn private_key(identity: &Identity) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(identity.key().to_vec()).into()
}

fn server_config(identity: &Identity) -> Result<ServerConfig, TransportError> {
    let roots = roots(identity.ca()).map_err(TransportError::Tls)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, PROVIDER.clone())
        .allow_unauthenticated()
        .build()
        .map_err(TransportError::Ca)?;
    let mut tls = rustls::ServerConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TransportError::Tls)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain(), private_key(identity))
        .map_err(TransportError::Tls)?;
    tls.alpn_protocols = Purpose::ALL.map(|purpose| purpose.alpn().to_vec()).to_vec();
    tls.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    tls.send_tls13_tickets = 0;
    let crypto = QuicServerConfig::try_from(tls)
        .map_err(|_| TransportError::Tls(rustls::Error::General("no cipher suite for QUIC".to_owned())))?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config
        .transport_config(Arc::new(numbers::accepted()))
        .max_incoming(MAX_INCOMING)
        .incoming_buffer_size(INCOMING_BUFFER)
        .incoming_buffer_size_total(INCOMING_BUFFERS);
    Ok(config)
}

/// Makes resets that outlive the process: a restarted node can tell a peer at once that their connection is gone, which
/// would else find out only after the idle timeout. For that the key of the resets comes from the node's own, and the ids of
/// connections hold nothing that a new process would not take.
fn endpoint_config(key: &[u8]) -> EndpointConfig {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(b"zdap stateless reset");
    context.update(key);
    let reset_key = hmac::Key::new(hmac::HMAC_SHA256, context.finish().as_ref());
    let mut config = EndpointConfig::new(Arc::new(reset_key));
    config.cid_generator(|| Box::new(RandomIds(StdRng::from_rng(&mut rand::rng()))));
    config
}

fn endpoint(
    socket: Socket,
    mut config: EndpointConfig,
    server: Option<ServerConfig>,
) -> Result<Endpoint, TransportError> {
    let runtime = Arc::new(quinn::TokioRuntime);
    match socket {
        Socket::Udp(socket) => Endpoint::new(config, server, socket, runtime),
        Socket::Simulated { socket, seed } => {
            config
                .rng_seed(Some(seed))
                .cid_generator(move || Box::new(RandomIds(StdRng::from_seed(seed))));
            Endpoint::new_with_abstract_socket(config, server, socket, runtime)
        }
    }
    .map_err(TransportError::Socket)
}

fn certificate(connection: &Connection) -> Option<CertificateDer<'static>> {
    let chain = connection
        .peer_identity()?
        .downcast::<Vec<CertificateDer<'static>>>()
        .ok()?;
    chain.into_iter().next()
}

struct RandomIds(StdRng);

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&self.0.random::<[u8; CONNECTION_ID]>())
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// How long a peer may take to say who it is.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// From so many open connections on, newcomers show first that their address is theirs.
pub const VALIDATED_FROM: usize = 1024;
/// Thousands of relays and their users; at most some 100 KiB each while idle.
pub const MAX_CONNECTIONS: usize = 8192;

/// Knocks that wait to be looked at; each is one packet.
const MAX_INCOMING: usize = 1024;
const INCOMING_BUFFER: u64 = 64 * 1024;
const INCOMING_BUFFERS: u64 = 8 * 1024 * 1024;
/// The default of 208 KiB loses packets at full speed even on loopback.
const SOCKET_BUFFER: usize = 4 * 1024 * 1024;
const CONNECTION_ID: usize = 8;
