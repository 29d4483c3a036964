//! The cluster's CA: it signs what says who is who.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use rand::RngExt;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ED25519, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

use super::{
    Identity, IdentityError, Keypair, Subject, cluster_in, content, fingerprint, node_dns_name, parsed,
    time_of,
};
use crate::keyfile::{self, KeyFile};
use crate::message::Certificate;
use crate::name::ClusterId;

/// The authority of a cluster. Every node holds it, since all nodes are peers.
pub struct ClusterCa {
    cluster: ClusterId,
    certificate: CertificateDer<'static>,
    pub(super) expires_at: DateTime<Utc>,
    pub(super) issuer: Issuer<'static, KeyPair>,
}

impl ClusterCa {
    /// Founds a cluster under a new random name.
    pub fn found(now: DateTime<Utc>) -> Result<Self, IdentityError> {
        let cluster = ClusterId::random();
        let key = Keypair::generate()?;
        let mut params = params(
            &format!("zdap cluster {cluster}"),
            &format!("spiffe://{cluster}"),
            now,
            CA_LIFETIME,
        )?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key.0).map_err(IdentityError::Make)?;
        Self::from_parts(certificate.der().to_vec(), key.0.serialize_der())
    }

    /// Takes over a CA from its certificate (DER) and its private key (PKCS #8 DER), which must belong together.
    pub fn from_parts(certificate_der: Vec<u8>, key_der: Vec<u8>) -> Result<Self, IdentityError> {
        let key = Keypair::from_der(&key_der)?;
        let read = parsed(&certificate_der)?;
        if read.public_key().raw != key.public_key() {
            return Err(IdentityError::OtherKey);
        }
        let cluster = cluster_in(&read)?;
        let expires_at = time_of(read.validity().not_after.timestamp());
        let certificate = CertificateDer::from(certificate_der);
        let issuer = Issuer::from_ca_cert_der(&certificate, key.0).map_err(IdentityError::Make)?;
        Ok(Self {
            cluster,
            certificate,
            expires_at,
            issuer,
        })
    }

    /// Returns the cluster's name.
    pub fn cluster(&self) -> &ClusterId {
        &self.cluster
    }

    /// Returns the certificate, DER.
    pub fn certificate_der(&self) -> &[u8] {
        &self.certificate
    }

    /// Returns the private key, PKCS #8 DER: for a new node only.
    pub fn key_der(&self) -> Vec<u8> {
        self.issuer.key().serialize_der()
    }

    /// Returns the SHA-256 of the certificate: what an invite is trusted by.
    pub fn fingerprint(&self) -> [u8; 32] {
        fingerprint(&self.certificate)
    }

    /// Certifies that whoever holds the private half of `public_key` (DER, SubjectPublicKeyInfo, Ed25519) is `subject`,
    /// from an hour ago until `lifetime` from now, or as long as the CA itself lasts.
    pub fn issue(
        &self,
        public_key: &[u8],
        subject: &Subject,
        lifetime: Duration,
        now: DateTime<Utc>,
    ) -> Result<Certificate, IdentityError> {
        let public_key = public_key_of(public_key)?;
        let left = self.expires_at - now;
        let lifetime = TimeDelta::from_std(lifetime).map_or(left, |lifetime| lifetime.min(left));
        let uri = format!("spiffe://{}{}", self.cluster, subject.path());
        let mut params = params(&subject.to_string(), &uri, now, lifetime)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if let Subject::Node(_) = subject {
            let name = node_dns_name(&self.cluster)
                .try_into()
                .map_err(IdentityError::Make)?;
            params.subject_alt_names.push(SanType::DnsName(name));
            params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        let certificate = params
            .signed_by(&public_key, &self.issuer)
            .map_err(IdentityError::Make)?;
        Ok(Certificate {
            certificate: certificate.der().to_vec(),
            ca: self.certificate.to_vec(),
        })
    }

    /// Makes a key and certifies it: an identity for this very process.
    pub fn identity(
        &self,
        subject: &Subject,
        lifetime: Duration,
        now: DateTime<Utc>,
    ) -> Result<Identity, IdentityError> {
        let keypair = Keypair::generate()?;
        let certificate = self.issue(&keypair.public_key(), subject, lifetime, now)?;
        Identity::new(keypair, &certificate)
    }

    /// Certifies an identity anew, under the key that it has.
    pub fn renew(
        &self,
        identity: &Identity,
        lifetime: Duration,
        now: DateTime<Utc>,
    ) -> Result<Identity, IdentityError> {
        let keypair = Keypair::from_der(identity.key())?;
        let certificate = self.issue(&keypair.public_key(), identity.subject(), lifetime, now)?;
        Identity::new(keypair, &certificate)
    }

    /// Writes `ca.pem` into `directory`, whole or not at all, readable by its owner only.
    pub fn save(&self, directory: &Path) -> Result<(), IdentityError> {
        Ok(keyfile::write(
            &directory.join(CA_FILE),
            &self.key_der(),
            &[self.certificate_der()],
        )?)
    }

    /// Reads what [`Self::save`] wrote.
    pub fn load(directory: &Path) -> Result<Self, IdentityError> {
        let path = directory.join(CA_FILE);
        let KeyFile { key, certificates } = keyfile::read(&path)?;
        Self::from_parts(certificates[0].to_vec(), key).map_err(|source| content(&path, source))
    }

    /// Returns whether there is something to load.
    pub fn exists(directory: &Path) -> bool {
        directory.join(CA_FILE).exists()
    }
}

impl fmt::Debug for ClusterCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterCa")
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

/// Says whether `public_key` (DER, SubjectPublicKeyInfo) is one that [`ClusterCa::issue`] certifies.
pub fn check_key(public_key: &[u8]) -> Result<(), IdentityError> {
    public_key_of(public_key).map(drop)
}

fn public_key_of(der: &[u8]) -> Result<SubjectPublicKeyInfo, IdentityError> {
    match SubjectPublicKeyInfo::from_der(der) {
        Ok(key) if key.algorithm() == &PKCS_ED25519 && key.der_bytes().len() == ED25519_PUBLIC_KEY => Ok(key),
        Ok(_) | Err(_) => Err(IdentityError::Key("public")),
    }
}

fn params(
    name: &str,
    uri: &str,
    now: DateTime<Utc>,
    lifetime: TimeDelta,
) -> Result<CertificateParams, IdentityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = vec![SanType::URI(uri.try_into().map_err(IdentityError::Make)?)];
    params.serial_number = Some(serial_number());
    params.not_before = date(now - CLOCK_SKEW);
    params.not_after = date(now.checked_add_signed(lifetime).unwrap_or(now));
    Ok(params)
}

/// Returns a random number that takes 16 bytes as a DER integer, whichever it is, so that all certificates are equally long.
fn serial_number() -> SerialNumber {
    let mut bytes = rand::rng().random::<[u8; 16]>();
    bytes[0] = bytes[0] & 0x3f | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn date(time: DateTime<Utc>) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(time.timestamp()).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

const CA_FILE: &str = "ca.pem";
const ED25519_PUBLIC_KEY: usize = 32;
/// Machines whose clock is behind by less can use a new certificate at once.
const CLOCK_SKEW: TimeDelta = TimeDelta::hours(1);
/// A test cluster rarely lives longer than the machines it runs on.
const CA_LIFETIME: TimeDelta = TimeDelta::days(3650);
