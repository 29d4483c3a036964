//! The way to a node: by any of its addresses, sure to be a node of this cluster, or else with the reason why not.
//!
//! In TLS 1.3 a client is done before the server has looked at its certificate, so a refusal of it arrives with the first
//! stream operation on the new connection. [`explain`] says in words what such an error means.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{AlertDescription, CertificateError, DigitallySignedStruct, SignatureScheme};
use tokio::task::JoinSet;

use crate::identity::{Identity, IdentityError, cluster_of, fingerprint, node_dns_name, rfc3339};
use crate::name::ClusterId;
use crate::token::Token;
use crate::transport::{Close, PROVIDER, Purpose, opened, private_key, roots};

/// Connects to the node at `address` (`host:port`) and makes sure that it is one of `identity`'s cluster. Resolves the
/// name, tries all its addresses and takes at most [`CONNECT_DEADLINE`].
pub async fn connect(
    endpoint: &Endpoint,
    identity: &Identity,
    address: &str,
    purpose: Purpose,
) -> Result<Connection, ConnectError> {
    identity.check_dates(Utc::now()).map_err(ConnectError::Identity)?;
    let trust = Trust::Cluster(identity.ca().clone(), identity.cluster().clone());
    reach(
        endpoint.clone(),
        trust,
        Some(identity.clone()),
        address.to_owned(),
        purpose,
    )
    .await
}

/// Connects to a node of the cluster that an invite is from, by whichever of the invite's addresses answers first.
pub async fn connect_for_enrol(endpoint: &Endpoint, token: &Token) -> Result<Connection, ConnectError> {
    let trust = Trust::Fingerprint(token.ca_fingerprint);
    let attempts = token.addresses.iter().map(|address| {
        reach(
            endpoint.clone(),
            trust.clone(),
            None,
            address.clone(),
            Purpose::Enrol,
        )
    });
    let attempts: Vec<_> = attempts.collect();
    race(attempts)
        .await
        .map_err(|errors| most_telling(errors, &token.addresses))
}

/// Why a node was not reached, or the connection to it has ended.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Not an address.
    #[error("`{0}` is not an address such as `db1.example.com:43210`")]
    Address(String),
    /// The name has no address.
    #[error("cannot resolve `{address}`")]
    Unresolved {
        /// The address as given.
        address: String,
        /// What the resolver says.
        #[source]
        source: io::Error,
    },
    /// Nobody answers there.
    #[error("no answer from {address} within {} s (UDP)", after.as_secs())]
    NoAnswer {
        /// The address as given.
        address: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// Somebody of another cluster answers.
    #[error("{0} is not a node of this cluster: its certificate is of another CA")]
    OtherCluster(String),
    /// Somebody of this cluster answers who is not a node.
    #[error("{0} is not a node: its certificate is of another kind")]
    NotANode(String),
    /// The node's certificate is not valid by this machine's clock.
    #[error("the certificate of {address} {which} {bound}; this machine's clock says {now}")]
    Dates {
        /// The address as given.
        address: String,
        /// `expired at` or `is not valid before`.
        which: &'static str,
        /// The certificate's date, RFC 3339.
        bound: String,
        /// What the clock says.
        now: String,
    },
    /// This process has no valid certificate to show.
    #[error("cannot prove who we are")]
    Identity(#[source] IdentityError),
    /// The node does not take our certificate.
    #[error("{address} does not accept our certificate: {reason}")]
    Refused {
        /// The address as given.
        address: String,
        /// What the node says.
        reason: String,
    },
    /// The node closed the connection on purpose.
    #[error("{address} closed the connection: {reason}")]
    Closed {
        /// The address as given.
        address: String,
        /// What the node says.
        reason: String,
        /// Whether another try is no use.
        forbidden: bool,
    },
    /// The node is of another version.
    #[error("{0} does not speak this version of the protocol")]
    OtherVersion(String),
    /// The connection is lost.
    #[error("the connection to {address} is lost")]
    Lost {
        /// The address as given.
        address: String,
        /// How.
        #[source]
        source: ConnectionError,
    },
    /// This process cannot open connections.
    #[error("cannot open a connection to {address}: {reason}")]
    Local {
        /// The address as given.
        address: String,
        /// What is wrong.
        reason: String,
    },
    /// There is no address to try.
    #[error("there is no address to connect to")]
    NoAddress,
}

impl ConnectError {
    /// Returns whether another try would end the same way.
    pub fn is_definite(&self) -> bool {
        match self {
            Self::Address(_)
            | Self::OtherCluster(_)
            | Self::NotANode(_)
            | Self::Dates { .. }
            | Self::Identity(_)
            | Self::Refused { .. }
            | Self::OtherVersion(_)
            | Self::NoAddress => true,
            Self::Closed { forbidden, .. } => *forbidden,
            Self::Unresolved { .. } | Self::NoAnswer { .. } | Self::Lost { .. } | Self::Local { .. } => false,
        }
    }

    /// Returns the remedy, where there is one to name.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoAnswer { .. } => {
                Some("check that zdapd runs there and that UDP passes the firewalls between".to_owned())
            }
            Self::Dates { .. } => {
                Some("one of the two clocks is wrong, or the node's certificate is over".to_owned())
            }
            Self::Identity(source) => source.hint(),
            Self::Refused { .. } => Some("enrol again with a new token".to_owned()),
            Self::OtherVersion(_) => Some("use the same version of zdap on both sides".to_owned()),
            Self::Address(_)
            | Self::Unresolved { .. }
            | Self::OtherCluster(_)
            | Self::NotANode(_)
            | Self::Closed { .. }
            | Self::Lost { .. }
            | Self::Local { .. }
            | Self::NoAddress => None,
        }
    }
}

/// Says what the end of a connection to the node at `address` means.
pub fn explain(address: &str, error: ConnectionError) -> ConnectError {
    let address = address.to_owned();
    match &error {
        ConnectionError::ApplicationClosed(close) => ConnectError::Closed {
            address,
            reason: String::from_utf8_lossy(&close.reason).into_owned(),
            forbidden: close.error_code.into_inner() == Close::Forbidden as u64,
        },
        ConnectionError::ConnectionClosed(close) => match alert(u64::from(close.error_code)) {
            Some(AlertDescription::NoApplicationProtocol) => ConnectError::OtherVersion(address),
            Some(alert) => ConnectError::Refused {
                address,
                reason: refusal(alert),
            },
            None => ConnectError::Lost {
                address,
                source: error,
            },
        },
        ConnectionError::TransportError(local) => match alert(u64::from(local.code)) {
            Some(AlertDescription::NoApplicationProtocol) => ConnectError::OtherVersion(address),
            Some(_) | None => ConnectError::Lost {
                address,
                source: error,
            },
        },
        ConnectionError::VersionMismatch => ConnectError::OtherVersion(address),
        ConnectionError::Reset
        | ConnectionError::TimedOut
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => ConnectError::Lost {
            address,
            source: error,
        },
    }
}

/// Starts the attempts in their order, [`STAGGER`] apart or as soon as one has failed. The first to succeed wins and the others are
/// dropped; when all have failed, returns why.
pub(crate) async fn race<T, E, F>(attempts: Vec<F>) -> Result<T, Vec<E>>
where
    T: Send + 'static,
    E: Send + 'static,
    F: Future<Output = Result<T, E>> + Send + 'static,
{
    let mut waiting = attempts.into_iter();
    let mut running = JoinSet::new();
    let mut errors = Vec::new();
    loop {
        if let Some(attempt) = waiting.next() {
            running.spawn(attempt);
        }
        tokio::select! {
            biased; // so that a simulation is the same each time
            ended = running.join_next() => match ended {
                Some(Ok(Ok(winner))) => return Ok(winner),
                Some(Ok(Err(error))) => errors.push(error),
                Some(Err(_)) => {} // an attempt that panicked has said so by itself
                None => return Err(errors),
            },
            () = tokio::time::sleep(STAGGER), if waiting.len() > 0 => {}
        }
    }
}

/// Returns the error that says most about why none of `addresses` was reached.
pub(crate) fn most_telling(mut errors: Vec<ConnectError>, addresses: &[String]) -> ConnectError {
    if errors.is_empty() {
        return ConnectError::NoAddress;
    }
    if let Some(definite) = errors.iter().position(ConnectError::is_definite) {
        return errors.swap_remove(definite);
    }
    let silent = |error: &ConnectError| matches!(error, ConnectError::NoAnswer { .. });
    if errors.iter().all(silent) {
        return ConnectError::NoAnswer {
            address: addresses.join(", "),
            after: CONNECT_DEADLINE,
        };
    }
    errors.swap_remove(0)
}

async fn reach(
    endpoint: Endpoint,
    trust: Trust,
    identity: Option<Identity>,
    address: String,
    purpose: Purpose,
) -> Result<Connection, ConnectError> {
    let attempt = async {
        let sockets = resolve(&address).await?;
        let attempts = sockets.into_iter().map(|socket| {
            let (endpoint, trust) = (endpoint.clone(), trust.clone());
            dial(
                endpoint,
                trust,
                identity.clone(),
                address.clone(),
                socket,
                purpose,
            )
        });
        let addresses = [address.clone()];
        race(attempts.collect())
            .await
            .map_err(|errors| most_telling(errors, &addresses))
    };
    match tokio::time::timeout(CONNECT_DEADLINE, attempt).await {
        Ok(result) => result,
        Err(_) => Err(ConnectError::NoAnswer {
            address,
            after: CONNECT_DEADLINE,
        }),
    }
}

async fn resolve(address: &str) -> Result<Vec<SocketAddr>, ConnectError> {
    if let Ok(socket) = address.parse() {
        return Ok(vec![socket]);
    }
    match address.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && !host.contains(':') && port.parse::<u16>().is_ok() => {}
        Some(_) | None => return Err(ConnectError::Address(address.to_owned())),
    }
    let unresolved = |source| ConnectError::Unresolved {
        address: address.to_owned(),
        source,
    };
    let sockets: Vec<SocketAddr> = tokio::net::lookup_host(address)
        .await
        .map_err(unresolved)?
        .collect();
    match sockets.is_empty() {
        true => Err(unresolved(io::ErrorKind::NotFound.into())),
        false => Ok(sockets),
    }
}

async fn dial(
    endpoint: Endpoint,
    trust: Trust,
    identity: Option<Identity>,
    address: String,
    socket: SocketAddr,
    purpose: Purpose,
) -> Result<Connection, ConnectError> {
    let local = |error: &dyn fmt::Display| ConnectError::Local {
        address: address.clone(),
        reason: error.to_string(),
    };
    let server_name = match &trust {
        Trust::Cluster(_, cluster) => node_dns_name(cluster),
        Trust::Fingerprint(_) => "enrol.zdap".to_owned(), // its cluster is not known yet
    };
    let verifier = Arc::new(NodeVerifier {
        trust,
        failure: Mutex::new(None),
    });
    let config =
        client_config(verifier.clone(), identity.as_ref(), purpose).map_err(|error| local(&error))?;
    let connecting = endpoint
        .connect_with(config, socket, &server_name)
        .map_err(|error| local(&error))?;
    connecting.await.map_err(|error| match verifier.failure() {
        Some(failure) => distrust(address.clone(), failure),
        None => explain(&address, error),
    })
}

fn client_config(
    verifier: Arc<NodeVerifier>,
    identity: Option<&Identity>,
    purpose: Purpose,
) -> Result<ClientConfig, rustls::Error> {
    let builder = rustls::ClientConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut tls = match identity {
        Some(identity) => builder.with_client_auth_cert(identity.chain(), private_key(identity))?,
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![purpose.alpn().to_vec()];
    tls.resumption = Resumption::disabled();
    let crypto = QuicClientConfig::try_from(tls)
        .map_err(|_| rustls::Error::General("no cipher suite for QUIC".to_owned()))?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(opened(purpose)));
    Ok(config)
}

/// What makes a node's certificate good.
#[derive(Debug, Clone)]
enum Trust {
    /// It is signed by this CA.
    Cluster(CertificateDer<'static>, ClusterId),
    /// It is signed by a CA with this fingerprint, which comes with it.
    Fingerprint([u8; 32]),
}

/// The ordinary check of a certificate, for the name that all nodes of a cluster have, whatever their address.
#[derive(Debug)]
struct NodeVerifier {
    trust: Trust,
    /// What was wrong, since QUIC passes on no more than an alert.
    failure: Mutex<Option<CertificateError>>,
}

impl NodeVerifier {
    fn failure(&self) -> Option<CertificateError> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let unknown = || rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let (ca, cluster) = match &self.trust {
            Trust::Cluster(ca, cluster) => (ca.clone(), cluster.clone()),
            Trust::Fingerprint(expected) => {
                let ca = intermediates.iter().find(|ca| fingerprint(ca) == *expected);
                let ca = ca.ok_or_else(unknown)?.clone().into_owned();
                let cluster = cluster_of(&ca).map_err(|_| unknown())?;
                (ca, cluster)
            }
        };
        let name = ServerName::try_from(node_dns_name(&cluster)).map_err(|_| unknown())?;
        WebPkiServerVerifier::builder_with_provider(roots(&ca)?, PROVIDER.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(end_entity, &[], &name, &[], now)
    }
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.verify(end_entity, intermediates, now);
        if let Err(rustls::Error::InvalidCertificate(failure)) = &verified {
            *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure.clone());
        }
        verified
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &PROVIDER.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &PROVIDER.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER.signature_verification_algorithms.supported_schemes()
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the enum is rustls's and open")]
fn distrust(address: String, failure: CertificateError) -> ConnectError {
    let dates = |address, which, bound, now| ConnectError::Dates {
        address,
        which,
        bound: unix_time(bound),
        now: unix_time(now),
    };
    match failure {
        CertificateError::ExpiredContext { time, not_after } => dates(address, "expired at", not_after, time),
        CertificateError::NotValidYetContext { time, not_before } => {
            dates(address, "is not valid before", not_before, time)
        }
        CertificateError::NotValidForName
        | CertificateError::NotValidForNameContext { .. }
        | CertificateError::InvalidPurpose
        | CertificateError::InvalidPurposeContext { .. } => ConnectError::NotANode(address),
        _ => ConnectError::OtherCluster(address),
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the enum is rustls's and open")]
fn refusal(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateExpired => {
            "by the node's clock it is expired or not valid yet; one of the two clocks may be wrong"
                .to_owned()
        }
        AlertDescription::UnknownCA | AlertDescription::DecryptError => "it is of another cluster".to_owned(),
        AlertDescription::CertificateRevoked => "it is revoked".to_owned(),
        other => format!("TLS alert {other:?}"),
    }
}

/// Returns the TLS alert in a QUIC error code (RFC 9001, section 4.8).
fn alert(code: u64) -> Option<AlertDescription> {
    let alert = code.checked_sub(0x100)?;
    u8::try_from(alert).ok().map(AlertDescription::from)
}

fn unix_time(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    rfc3339(DateTime::from_timestamp(seconds, 0).unwrap_or_default())
}

/// The first packet is sent again after 1 s and after 3: three tries, and somebody is waiting.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// A head start over the next address, as RFC 8305 has it: the first is the best one when it answers.
const STAGGER: Duration = Duration::from_millis(250);
