//! A fresh certificate before the old one ends, from any node.

use quinn::Connection;

use crate::control::{self, CallError};
use crate::identity::{Identity, IdentityError, Keypair};
use crate::message::{Answer, Request};

/// Why there is no fresh certificate.
#[derive(Debug, thiserror::Error)]
pub enum RenewalError {
    /// The node did not give one.
    #[error("the node gives no fresh certificate")]
    Call(#[source] CallError),
    /// The node gave something else.
    #[error("the node answers something else than it was asked")]
    OtherAnswer,
    /// The certificate is for somebody else.
    #[error("the node's certificate is for {0}")]
    OtherSubject(String),
    /// The certificate does not serve.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Asks over a control connection that `identity` has opened for the same identity anew, under a new key.
pub async fn renew(connection: &Connection, identity: &Identity) -> Result<Identity, RenewalError> {
    let keypair = Keypair::generate()?;
    let request = Request::Renew {
        public_key: keypair.public_key(),
    };
    let answer = control::call(connection, &request, |_| {}).await;
    let Answer::Certificate(certificate) = answer.map_err(RenewalError::Call)? else {
        return Err(RenewalError::OtherAnswer);
    };
    let fresh = Identity::new(keypair, &certificate)?;
    if fresh.peer() != identity.peer() || fresh.ca_fingerprint() != identity.ca_fingerprint() {
        return Err(RenewalError::OtherSubject(fresh.peer().to_string()));
    }
    Ok(fresh)
}
