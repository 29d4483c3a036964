//! Whether somebody who answers is a node of the cluster that is meant.

use std::sync::{Mutex, PoisonError};

use chrono::DateTime;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};

use super::ConnectError;
use crate::identity::{cluster_of, fingerprint, node_dns_name, rfc3339};
use crate::name::ClusterId;
use crate::transport::{PROVIDER, roots};

/// What makes a node's certificate good.
#[derive(Debug, Clone)]
pub(super) enum Trust {
    /// It is signed by this CA.
    Cluster(CertificateDer<'static>, ClusterId),
    /// It is signed by a CA with this fingerprint, which comes with it.
    Fingerprint([u8; 32]),
}

/// The ordinary check of a certificate, for the name that all nodes of a cluster have, whatever their address.
#[derive(Debug)]
pub(super) struct NodeVerifier {
    trust: Trust,
    /// What was wrong, since QUIC passes on no more than an alert.
    failure: Mutex<Option<CertificateError>>,
}

impl NodeVerifier {
    pub(super) fn new(trust: Trust) -> Self {
        Self {
            trust,
            failure: Mutex::new(None),
        }
    }

    /// Returns the name that it checks for.
    pub(super) fn server_name(&self) -> String {
        match &self.trust {
            Trust::Cluster(_, cluster) => node_dns_name(cluster),
            Trust::Fingerprint(_) => "enrol.zdap".to_owned(), // its cluster is not known yet
        }
    }

    /// Returns what was wrong, once.
    pub(super) fn failure(&self) -> Option<CertificateError> {
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

/// Says what is wrong with the certificate of who answers at `address`.
#[expect(clippy::wildcard_enum_match_arm, reason = "the enum is rustls's and open")]
pub(super) fn distrust(address: String, failure: CertificateError) -> ConnectError {
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

fn unix_time(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    rfc3339(DateTime::from_timestamp(seconds, 0).unwrap_or_default())
}
