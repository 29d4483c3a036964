//! Who is who: the cluster's CA, the certificates it signs, and what a peer's certificate says of it.
//!
//! A certificate carries exactly one URI, its SPIFFE id, in the trust domain of the cluster:
//!
//! | URI                                    | who                                                      |
//! |----------------------------------------|----------------------------------------------------------|
//! | `spiffe://<cluster>`                   | the CA itself                                            |
//! | `spiffe://<cluster>/node/<name>`       | a server; also has the DNS name `node.<cluster>.zdap`, which is what clients verify |
//! | `spiffe://<cluster>/user/<name>`       | who owns clones                                          |
//! | `spiffe://<cluster>/admin/<name>`      | a user who may do what nodes may                         |
//! | `spiffe://<cluster>/relay/<owner>/<clone>` | the way to one clone, and to nothing else            |
//!
//! The names of [`crate::name`] hold only characters that stand for themselves in the path of a URI (RFC 3986: `@` and
//! `+` do), so that nothing is escaped and a `%` in an id is refused. Private keys stay where they are made: the CA signs
//! public keys. All keys are Ed25519.

mod ca;

use std::fmt;
use std::path::Path;

use aws_lc_rs::digest;
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use chrono::{DateTime, SecondsFormat, Utc};
use rcgen::{KeyPair, PKCS_ED25519, PublicKeyData};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

pub use self::ca::{ClusterCa, check_key};
pub use crate::keyfile::KeyFileError;
use crate::keyfile::{self, KeyFile};
use crate::message::Certificate;
use crate::name::{CloneId, ClusterId, NameError, NodeName, UserName};

/// Whom a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Subject {
    /// A server of the cluster.
    Node(NodeName),
    /// Who owns clones.
    User(UserName),
    /// A user who may do what nodes may.
    Admin(UserName),
    /// The way to one clone.
    Relay {
        /// The clone's owner.
        owner: UserName,
        /// The clone.
        clone: CloneId,
    },
}

impl Subject {
    /// Returns the user behind it; a node has none.
    pub fn owner(&self) -> Option<&UserName> {
        match self {
            Self::User(name) | Self::Admin(name) | Self::Relay { owner: name, .. } => Some(name),
            Self::Node(_) => None,
        }
    }

    /// Returns whether it may act on what others own: nodes and admins may.
    pub fn is_admin(&self) -> bool {
        match self {
            Self::Node(_) | Self::Admin(_) => true,
            Self::User(_) | Self::Relay { .. } => false,
        }
    }

    fn path(&self) -> String {
        match self {
            Self::Node(name) => format!("/node/{name}"),
            Self::User(name) => format!("/user/{name}"),
            Self::Admin(name) => format!("/admin/{name}"),
            Self::Relay { owner, clone } => format!("/relay/{owner}/{clone}"),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(f, "node `{name}`"),
            Self::User(name) => write!(f, "user `{name}`"),
            Self::Admin(name) => write!(f, "admin `{name}`"),
            Self::Relay { owner, clone } => write!(f, "relay of `{clone}` for `{owner}`"),
        }
    }
}

/// What a certificate says of its holder.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Peer {
    /// The cluster that vouches.
    pub cluster: ClusterId,
    /// Who it is.
    pub subject: Subject,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}{}", self.cluster, self.subject.path())
    }
}

/// Reads who a certificate is for. Says nothing about whether to trust it: that is the TLS handshake's part.
pub fn peer_of(certificate_der: &[u8]) -> Result<Peer, IdentityError> {
    peer_in(&parsed(certificate_der)?)
}

/// Reads until when a certificate is valid.
pub(crate) fn expires_at_of(certificate_der: &[u8]) -> Result<DateTime<Utc>, IdentityError> {
    Ok(time_of(parsed(certificate_der)?.validity().not_after.timestamp()))
}

/// Why an identity could not be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Not a certificate.
    #[error("the certificate cannot be read")]
    Unreadable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A certificate with no SPIFFE id, or several.
    #[error("the certificate holds {0} URIs; exactly one says whose it is")]
    Uris(usize),
    /// A SPIFFE id of no shape that is known.
    #[error("the certificate is for `{0}`, which is no one here")]
    Stranger(String),
    /// A SPIFFE id with a name that cannot be.
    #[error("the certificate is for `{uri}`")]
    Name {
        /// The id.
        uri: String,
        /// What is wrong with it.
        #[source]
        source: NameError,
    },
    /// Not an Ed25519 key.
    #[error("the {0} key is not an Ed25519 key")]
    Key(&'static str),
    /// A certificate and a key that do not belong together.
    #[error("the private key is not the one of the certificate")]
    OtherKey,
    /// A certificate that this CA has not signed.
    #[error("the certificate is not signed by the CA it comes with")]
    OtherCa,
    /// The certificate is over.
    #[error("the certificate of {subject} expired at {at}; this machine's clock says {now}")]
    Expired {
        /// Whose.
        subject: Box<Subject>,
        /// When it was over, RFC 3339.
        at: String,
        /// What the clock says.
        now: String,
    },
    /// The certificate has not begun.
    #[error("the certificate of {subject} is not valid before {from}; this machine's clock says {now}")]
    NotYetValid {
        /// Whose.
        subject: Box<Subject>,
        /// When it begins, RFC 3339.
        from: String,
        /// What the clock says.
        now: String,
    },
    /// The certificate could not be made.
    #[error("cannot make the certificate")]
    Make(#[source] rcgen::Error),
    /// The file that holds it is at fault.
    #[error(transparent)]
    File(#[from] KeyFileError),
    /// What the file holds is at fault.
    #[error("`{}` cannot be used", path.display())]
    Content {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong in it.
        #[source]
        source: Box<Self>,
    },
}

impl IdentityError {
    /// Returns the remedy, where there is one to name.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Expired { .. } => Some("if the clock is right, enrol again with a new token".to_owned()),
            Self::NotYetValid { .. } => {
                Some("set this machine's clock, e.g. `timedatectl set-ntp true`".to_owned())
            }
            Self::File(KeyFileError::Exposed { path, .. }) => Some(format!("`chmod 600 {}`", path.display())),
            Self::Content { source, .. } => source.hint(),
            Self::Unreadable(_)
            | Self::Uris(_)
            | Self::Stranger(_)
            | Self::Name { .. }
            | Self::Key(_)
            | Self::OtherKey
            | Self::OtherCa
            | Self::Make(_)
            | Self::File(_) => None,
        }
    }
}

/// A private key whose certificate is still to come.
pub struct Keypair(KeyPair);

impl Keypair {
    /// Makes a new one.
    pub fn generate() -> Result<Self, IdentityError> {
        KeyPair::generate_for(&PKCS_ED25519)
            .map(Self)
            .map_err(IdentityError::Make)
    }

    /// Returns the public half (DER, SubjectPublicKeyInfo): what a request for a certificate carries.
    pub fn public_key(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }

    fn from_der(key: &[u8]) -> Result<Self, IdentityError> {
        KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(key), &PKCS_ED25519)
            .map(Self)
            .map_err(|_| IdentityError::Key("private"))
    }
}

impl fmt::Debug for Keypair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keypair").finish_non_exhaustive()
    }
}

/// What a process proves itself with: a private key, its certificate and the CA's.
#[derive(Clone)]
pub struct Identity {
    key: Vec<u8>,
    certificate: CertificateDer<'static>,
    ca: CertificateDer<'static>,
    peer: Peer,
    not_before: DateTime<Utc>,
    expires_at: DateTime<Utc>,
}

impl Identity {
    /// Joins a key and the certificate that was issued for it, after a check that key, certificate and CA belong together.
    pub fn new(keypair: Keypair, certificate: &Certificate) -> Result<Self, IdentityError> {
        let read = parsed(&certificate.certificate)?;
        if read.public_key().raw != keypair.public_key() {
            return Err(IdentityError::OtherKey);
        }
        let ca = parsed(&certificate.ca)?;
        let peer = peer_in(&read)?;
        UnparsedPublicKey::new(&ED25519, &ca.public_key().subject_public_key.data)
            .verify(read.tbs_certificate.as_ref(), &read.signature_value.data)
            .map_err(|_| IdentityError::OtherCa)?;
        if cluster_in(&ca)? != peer.cluster {
            return Err(IdentityError::OtherCa);
        }
        Ok(Self {
            key: keypair.0.serialize_der(),
            not_before: time_of(read.validity().not_before.timestamp()),
            expires_at: time_of(read.validity().not_after.timestamp()),
            peer,
            certificate: CertificateDer::from(certificate.certificate.clone()),
            ca: CertificateDer::from(certificate.ca.clone()),
        })
    }

    /// Returns who this is, as peers see it.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Returns who this is.
    pub fn subject(&self) -> &Subject {
        &self.peer.subject
    }

    /// Returns the cluster it belongs to.
    pub fn cluster(&self) -> &ClusterId {
        &self.peer.cluster
    }

    /// Returns until when the certificate is valid.
    pub fn expires_at(&self) -> DateTime<Utc> {
        self.expires_at
    }

    /// Returns from when on the certificate is to be renewed: two thirds of its life.
    pub fn renew_from(&self) -> DateTime<Utc> {
        self.expires_at - (self.expires_at - self.not_before) / 3
    }

    /// Checks that the certificate is valid by this machine's clock; the error names both times.
    pub fn check_dates(&self, now: DateTime<Utc>) -> Result<(), IdentityError> {
        let subject = || Box::new(self.peer.subject.clone());
        if now > self.expires_at {
            return Err(IdentityError::Expired {
                subject: subject(),
                at: rfc3339(self.expires_at),
                now: rfc3339(now),
            });
        }
        if now < self.not_before {
            return Err(IdentityError::NotYetValid {
                subject: subject(),
                from: rfc3339(self.not_before),
                now: rfc3339(now),
            });
        }
        Ok(())
    }

    /// Returns the SHA-256 of the CA's certificate.
    pub fn ca_fingerprint(&self) -> [u8; 32] {
        fingerprint(&self.ca)
    }

    /// Writes `identity.pem` into `directory`, whole or not at all, readable by its owner only.
    pub fn save(&self, directory: &Path) -> Result<(), IdentityError> {
        Ok(keyfile::write(
            &directory.join(IDENTITY_FILE),
            &self.key,
            &[&self.certificate, &self.ca],
        )?)
    }

    /// Reads what [`Self::save`] wrote. An expired certificate loads: [`Self::check_dates`] says so.
    pub fn load(directory: &Path) -> Result<Self, IdentityError> {
        let path = directory.join(IDENTITY_FILE);
        let KeyFile { key, certificates } = keyfile::read(&path)?;
        let [certificate, ca] = &certificates[..] else {
            return Err(IdentityError::File(KeyFileError::Incomplete {
                path,
                missing: "two certificates, its own and the CA's",
            }));
        };
        let certificate = Certificate {
            certificate: certificate.to_vec(),
            ca: ca.to_vec(),
        };
        Keypair::from_der(&key)
            .and_then(|keypair| Self::new(keypair, &certificate))
            .map_err(|source| content(&path, source))
    }

    /// Returns whether there is something to load.
    pub fn exists(directory: &Path) -> bool {
        directory.join(IDENTITY_FILE).exists()
    }

    /// Returns the private key, PKCS #8.
    pub(crate) fn key(&self) -> &[u8] {
        &self.key
    }

    /// Returns what is shown to peers: the certificate, and the CA's, by which a newcomer with an invite knows it.
    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.clone(), self.ca.clone()]
    }

    pub(crate) fn ca(&self) -> &CertificateDer<'static> {
        &self.ca
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("peer", &self.peer)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// Returns the name that every node's certificate carries and clients verify, so that addresses may change.
pub(crate) fn node_dns_name(cluster: &ClusterId) -> String {
    format!("node.{cluster}.zdap")
}

/// Returns the cluster that a CA's certificate is for.
pub(crate) fn cluster_of(ca_der: &[u8]) -> Result<ClusterId, IdentityError> {
    cluster_in(&parsed(ca_der)?)
}

/// Returns the SHA-256 of a certificate.
pub(crate) fn fingerprint(certificate_der: &[u8]) -> [u8; 32] {
    sha256(certificate_der)
}

/// Returns the SHA-256 of `bytes`.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut sum = [0; 32];
    sum.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    sum
}

/// Writes a time as people compare it with their clock.
pub(crate) fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn time_of(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(seconds, 0).unwrap_or_default()
}

fn parsed(der: &[u8]) -> Result<X509Certificate<'_>, IdentityError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(IdentityError::Unreadable("bytes after its end".into())),
        Err(error) => Err(IdentityError::Unreadable(error.to_string().into())),
    }
}

fn uri_in<'a>(certificate: &'a X509Certificate<'_>) -> Result<&'a str, IdentityError> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| IdentityError::Unreadable(error.to_string().into()))?
        .map_or(&[][..], |extension| &extension.value.general_names[..]);
    let uris: Vec<&str> = names
        .iter()
        .filter_map(|name| {
            if let GeneralName::URI(uri) = name {
                Some(*uri)
            } else {
                None
            }
        })
        .collect();
    match uris[..] {
        [uri] => Ok(uri),
        _ => Err(IdentityError::Uris(uris.len())),
    }
}

fn cluster_in(ca: &X509Certificate<'_>) -> Result<ClusterId, IdentityError> {
    let uri = uri_in(ca)?;
    let Some(cluster) = uri.strip_prefix(SCHEME) else {
        return Err(IdentityError::Stranger(shown(uri)));
    };
    cluster.parse().map_err(|source| named(uri, source))
}

fn peer_in(certificate: &X509Certificate<'_>) -> Result<Peer, IdentityError> {
    let uri = uri_in(certificate)?;
    let stranger = || IdentityError::Stranger(shown(uri));
    let wrong = |source| named(uri, source);
    let rest = uri.strip_prefix(SCHEME).ok_or_else(stranger)?;
    let (cluster, path) = rest.split_once('/').ok_or_else(stranger)?;
    let parts: Vec<&str> = path.split('/').collect();
    let subject = match parts[..] {
        ["node", name] => Subject::Node(name.parse().map_err(wrong)?),
        ["user", name] => Subject::User(name.parse().map_err(wrong)?),
        ["admin", name] => Subject::Admin(name.parse().map_err(wrong)?),
        ["relay", owner, clone] => Subject::Relay {
            owner: owner.parse().map_err(wrong)?,
            clone: clone.parse().map_err(wrong)?,
        },
        _ => return Err(stranger()),
    };
    Ok(Peer {
        cluster: cluster.parse().map_err(wrong)?,
        subject,
    })
}

fn named(uri: &str, source: NameError) -> IdentityError {
    IdentityError::Name {
        uri: shown(uri),
        source,
    }
}

fn shown(uri: &str) -> String {
    uri.chars().take(200).collect()
}

fn content(path: &Path, source: IdentityError) -> IdentityError {
    IdentityError::Content {
        path: path.to_owned(),
        source: Box::new(source),
    }
}

const SCHEME: &str = "spiffe://";
const IDENTITY_FILE: &str = "identity.pem";

#[cfg(test)]
mod tests;
