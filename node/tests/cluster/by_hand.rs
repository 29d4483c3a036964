//! What can be done without our programs: connections that are put together by hand, and bare enrolments.

use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, TransportConfig, VarInt};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use zdap_proto::connect::{connect_for_enrol, explain};
use zdap_proto::frame::{self, REPLY_CAP, REQUEST_CAP};
use zdap_proto::identity::{Identity, Keypair};
use zdap_proto::message::{Answer, EnrolReply, EnrolRequest, Enrolled, Request, Wanted};
use zdap_proto::token::Token;
use zdap_proto::transport::{self, Purpose};

use crate::client::bare;
use crate::world::Running;

pub(crate) async fn enrol(token: &Token, wanted: Wanted) -> Result<(Keypair, Enrolled), String> {
    let keypair = Keypair::generate().unwrap();
    let enrolled = enrol_key(token, keypair.public_key(), wanted).await?;
    Ok((keypair, enrolled))
}

pub(crate) async fn enrol_key(
    token: &Token,
    public_key: Vec<u8>,
    wanted: Wanted,
) -> Result<Enrolled, String> {
    let endpoint = transport::client_endpoint().unwrap();
    let connection = connect_for_enrol(&endpoint, token)
        .await
        .map_err(|error| error.to_string())?;
    let request = EnrolRequest {
        secret: token.secret.to_vec(),
        public_key,
        wanted,
    };
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    frame::write(&mut send, &request, REQUEST_CAP).await.unwrap();
    match frame::read(&mut receive, REPLY_CAP).await.unwrap() {
        EnrolReply::Enrolled(enrolled) => Ok(enrolled),
        EnrolReply::Refused(refusal) => Err(refusal.message),
    }
}

/// What somebody may put together who does not use our programs: a connection that trusts the node, shows `identity` or
/// nothing, and looks at no clock.
pub(crate) fn by_hand(
    node: &Running,
    identity: Option<&Identity>,
    purpose: Purpose,
    transport: TransportConfig,
) -> ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from(node.ca.certificate_der().to_vec()))
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut tls = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let directory = tempfile::tempdir().unwrap();
            identity.save(directory.path()).unwrap();
            let file = directory.path().join("identity.pem");
            let chain = CertificateDer::pem_file_iter(&file).unwrap().map(Result::unwrap);
            let key = PrivateKeyDer::from_pem_file(&file).unwrap();
            builder.with_client_auth_cert(chain.collect(), key).unwrap()
        }
    };
    tls.alpn_protocols = vec![purpose.alpn().to_vec()];
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    config.transport_config(Arc::new(transport));
    config
}

pub(crate) async fn opened(node: &Running, config: ClientConfig) -> Connection {
    let endpoint = transport::client_endpoint().unwrap();
    let connecting = endpoint.connect_with(config, node.address.parse().unwrap(), &server_name(node));
    connecting.unwrap().await.unwrap()
}

/// Takes a byte of each answer, and says every second that it is still there.
pub(crate) fn deaf() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .stream_receive_window(VarInt::from_u32(1))
        .keep_alive_interval(Some(Duration::from_secs(1)));
    transport
}

/// The name that every node of a cluster has.
pub(crate) fn server_name(node: &Running) -> String {
    format!("node.{}.zdap", node.ca.cluster())
}

/// Returns the reason with which the node ends a connection that is made by hand.
pub(crate) async fn turned_away(node: &Running, identity: Option<&Identity>, purpose: Purpose) -> String {
    let endpoint = transport::client_endpoint().unwrap();
    let config = by_hand(node, identity, purpose, TransportConfig::default());
    let connecting = endpoint
        .connect_with(config, node.address.parse().unwrap(), &server_name(node))
        .unwrap();
    let end = match connecting.await {
        Ok(connection) => {
            // Whatever is asked meanwhile goes unanswered.
            let (mut send, mut receive) = connection.open_bi().await.unwrap();
            let _ = frame::write(&mut send, &bare(Request::ListNodes), REQUEST_CAP).await;
            let answer = frame::read::<Answer, _>(&mut receive, REPLY_CAP).await;
            assert!(answer.is_err(), "{answer:?}");
            connection.closed().await
        }
        Err(error) => error,
    };
    explain(&node.address, end).to_string()
}
