//! The way to a node: by any of its addresses, sure to be a node of this cluster, or else with the reason why not.
//!
//! In TLS 1.3 a client is done before the server has looked at its certificate, so a refusal of it arrives with the first
//! stream operation on the new connection. [`explain`] says in words what such an error means.

mod error;
mod trust;

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, Endpoint};
use rustls::client::Resumption;
use rustls::pki_types::CertificateDer;
use tokio::task::JoinSet;

use self::error::definite_first;
pub use self::error::{ConnectError, explain, most_telling};
use self::trust::{NodeVerifier, Trust, distrust};
use crate::identity::{Identity, Subject, peer_of};
use crate::name::NodeName;
use crate::token::Token;
use crate::transport::{PROVIDER, Purpose, opened, private_key};

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

/// Connects to whichever of `addresses` answers first, the earlier ones with a head start, and returns also which one that
/// is. Or else why each of them does not.
pub async fn connect_to_any(
    endpoint: &Endpoint,
    identity: &Identity,
    addresses: &[String],
    purpose: Purpose,
) -> Result<(Connection, String), Vec<(String, ConnectError)>> {
    let attempts = addresses.iter().cloned().map(|address| {
        let (endpoint, identity) = (endpoint.clone(), identity.clone());
        async move {
            match connect(&endpoint, &identity, &address, purpose).await {
                Ok(connection) => Ok((connection, address)),
                Err(error) => Err((address, error)),
            }
        }
    });
    race(attempts.collect()).await
}

/// Returns which node is at the other end, by its certificate.
pub fn node_at(connection: &Connection) -> Option<NodeName> {
    let chain = connection.peer_identity()?;
    let chain = chain.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    match peer_of(chain.first()?).ok()?.subject {
        Subject::Node(name) => Some(name),
        Subject::User(_) | Subject::Admin(_) | Subject::Relay { .. } => None,
    }
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
    // It is not tried again, and what is wrong for good is what a person has to see to.
    race(attempts).await.map_err(definite_first)
}

/// Makes sure that a node answers at `address`, of whichever cluster, to somebody who has neither certificate nor token.
pub async fn answers(endpoint: &Endpoint, address: &str) -> Result<(), ConnectError> {
    // A node shows its certificate first. It is of no CA with this fingerprint, and whose it is does not matter.
    let nobodys = Trust::Fingerprint([0; 32]);
    match reach(
        endpoint.clone(),
        nobodys,
        None,
        address.to_owned(),
        Purpose::Enrol,
    )
    .await
    {
        Err(
            error @ (ConnectError::Address(_)
            | ConnectError::Unresolved { .. }
            | ConnectError::NoAnswer { .. }
            | ConnectError::Local { .. }
            | ConnectError::NoAddress),
        ) => Err(error),
        Ok(_)
        | Err(
            ConnectError::OtherCluster(_)
            | ConnectError::NotANode(_)
            | ConnectError::Dates { .. }
            | ConnectError::Identity(_)
            | ConnectError::Refused { .. }
            | ConnectError::Closed { .. }
            | ConnectError::OtherVersion(_)
            | ConnectError::Lost { .. },
        ) => Ok(()),
    }
}

/// Starts the attempts in their order, [`STAGGER`] apart (the later ones [`LATER_STAGGER`]) or as soon as one has failed. The
/// first to succeed wins and the others are dropped; when all have failed, returns why.
pub(crate) async fn race<T, E, F>(attempts: Vec<F>) -> Result<T, Vec<E>>
where
    T: Send + 'static,
    E: Send + 'static,
    F: Future<Output = Result<T, E>> + Send + 'static,
{
    let mut waiting = attempts.into_iter();
    let mut running = JoinSet::new();
    let mut errors = Vec::new();
    let mut started = 0;
    loop {
        if let Some(attempt) = waiting.next() {
            running.spawn(attempt);
            started += 1;
        }
        let stagger = if started <= IN_LINE {
            STAGGER
        } else {
            LATER_STAGGER
        };
        tokio::select! {
            biased; // so that a simulation is the same each time
            ended = running.join_next() => match ended {
                Some(Ok(Ok(winner))) => return Ok(winner),
                Some(Ok(Err(error))) => errors.push(error),
                Some(Err(_)) => {} // an attempt that panicked has said so by itself
                None => return Err(errors),
            },
            () = tokio::time::sleep(stagger), if waiting.len() > 0 => {}
        }
    }
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
        race(attempts.collect()).await.map_err(definite_first)
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
    let verifier = Arc::new(NodeVerifier::new(trust));
    let server_name = verifier.server_name();
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

/// The first packet is sent again after 1 s and after 3: three tries, and somebody is waiting.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// A head start over the next address, as RFC 8305 has it: the first is the best one when it answers.
const STAGGER: Duration = Duration::from_millis(250);
/// Where so many have not answered something is wrong with more than one node, and politeness only costs time: of eight
/// addresses the last is tried within a second.
const IN_LINE: usize = 3;
const LATER_STAGGER: Duration = Duration::from_millis(40);
