//! Who is let in, and who no more: tokens, certificates, revocation.

use std::time::Duration;

use chrono::{TimeDelta, Utc};
use zdap_proto::identity::Subject;
use zdap_proto::message::{Certificate, CloneRecord, Invited};
use zdap_proto::name::UserName;
use zdap_proto::refusal::{Refusal, RefusalKind, chain};
use zdap_proto::token::Token;

use super::asker::Asker;
use crate::enrol;
use crate::node::Node;
use crate::state::CERTIFICATE_LIFE;

/// Makes an invite, and returns its text.
pub(super) fn token(
    node: &Node,
    asker: &Asker,
    invited: Invited,
    ttl_seconds: u32,
) -> Result<String, Refusal> {
    if invited == Invited::Node && !asker.is_node() {
        return Err(Refusal::new(
            RefusalKind::Forbidden,
            "a token for a node hands over the cluster's CA; only nodes make one",
        )
        .with_hint("run `zdapd token node` on a node"));
    }
    if let Invited::User { name: Some(name), .. } = &invited {
        enrol::taken(node).refuse_barred(name)?;
    }
    if ttl_seconds == 0 || Duration::from_secs(ttl_seconds.into()) > LONGEST_INVITE {
        return Err(Refusal::new(
            RefusalKind::Invalid,
            format!("a token cannot be good for {ttl_seconds} seconds"),
        )
        .with_hint("from one second to 30 days: `--ttl 24h`"));
    }
    let token = Token::new(
        vec![node.address.clone()],
        node.ca.fingerprint(),
        invited == Invited::Node,
    );
    let hash = data_encoding::HEXLOWER.encode(&token.secret_hash());
    node.invites
        .add(
            &hash,
            invited,
            TimeDelta::seconds(ttl_seconds.into()),
            node.clock.now(),
        )
        .map_err(|error| not_written("the invite", &error))?;
    Ok(token.to_string())
}

/// Certifies a relay of a clone.
pub(super) fn relay(node: &Node, record: CloneRecord, public_key: &[u8]) -> Result<Certificate, Refusal> {
    let subject = Subject::Relay {
        owner: record.owner,
        clone: record.id,
    };
    node.sign(public_key, &subject)
}

/// Certifies somebody anew whose certificate is still good.
pub(super) fn renew(node: &Node, subject: &Subject, public_key: &[u8]) -> Result<Certificate, Refusal> {
    match subject {
        Subject::User(_) | Subject::Admin(_) | Subject::Relay { .. } => node.sign(public_key, subject),
        Subject::Node(_) => Err(Refusal::new(
            RefusalKind::Invalid,
            format!("{subject} renews its certificate by itself"),
        )),
    }
}

/// Lets no certificate of a user in any more; the other nodes hear of it.
pub(super) fn revoke(node: &Node, user: &UserName) -> Result<(), Refusal> {
    if enrol::nodes(node).contains(user) {
        return Err(Refusal::new(
            RefusalKind::Invalid,
            format!("`{user}` is a node, and only users are revoked"),
        )
        .with_hint("stop the node, and say `zdapd forget NODE` on another"));
    }
    let written = node.cluster.revoke(user);
    written.map_err(|error| not_written("the revocation", &error))?;
    tracing::info!(%user, "revoked");
    Ok(())
}

impl Node {
    /// Signs a public key, for as long as certificates live.
    pub fn sign(&self, public_key: &[u8], subject: &Subject) -> Result<Certificate, Refusal> {
        self.ca
            .issue(public_key, subject, CERTIFICATE_LIFE, Utc::now())
            .map_err(|error| {
                Refusal::new(
                    RefusalKind::Invalid,
                    format!("the public key cannot be certified: {}", chain(&error)),
                )
            })
    }
}

pub(super) fn not_written(what: &str, error: &std::io::Error) -> Refusal {
    Refusal::new(
        RefusalKind::Failed,
        format!("the node could not write down {what}: {error}"),
    )
}

const LONGEST_INVITE: Duration = Duration::from_secs(30 * 24 * 3600);
