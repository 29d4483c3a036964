//! A token for a certificate: the only thing that can be asked for without one.

use std::collections::BTreeSet;

use quinn::{RecvStream, SendStream};
use zdap_proto::frame::{self, REPLY_CAP, REQUEST_CAP};
use zdap_proto::identity::{Subject, check_key};
use zdap_proto::message::{EnrolReply, EnrolRequest, Enrolled, Wanted};
use zdap_proto::name::UserName;
use zdap_proto::refusal::{Refusal, RefusalKind};
use zdap_proto::token::secret_hash;

use crate::gossip::MemberState;
use crate::invites::Taken;
use crate::node::Node;

/// Serves one enrolment. How long it may take is the caller's to say.
pub async fn serve(node: &Node, mut send: SendStream, mut receive: RecvStream) {
    let Ok(request) = frame::read(&mut receive, REQUEST_CAP).await else {
        // It said nothing that could be answered.
        return;
    };
    let reply = match enrol(node, &request) {
        Ok(enrolled) => EnrolReply::Enrolled(enrolled),
        Err(refusal) => {
            tracing::warn!(wanted = ?request.wanted, reason = %refusal, "enrolment refused");
            EnrolReply::Refused(refusal)
        }
    };
    if frame::write(&mut send, &reply, REPLY_CAP).await.is_ok() && send.finish().is_ok() {
        // Until it has arrived, or the peer has gone.
        let _ = send.stopped().await;
    }
}

fn enrol(node: &Node, request: &EnrolRequest) -> Result<Enrolled, Refusal> {
    let hash = data_encoding::HEXLOWER.encode(&secret_hash(&request.secret));
    // What is wrong with the request does not use up the token.
    check_key(&request.public_key).map_err(|error| {
        Refusal::new(
            RefusalKind::Invalid,
            format!("the public key cannot be certified: {error}"),
        )
    })?;
    if let Wanted::Node { name } = &request.wanted
        && let Some(seen) = node.cluster.view().members.get(name)
    {
        // One that is down may come back, and has its clones then.
        let also = match seen.state {
            MemberState::Alive | MemberState::Suspect => "",
            MemberState::Down => ": that node is down, and may come back",
        };
        return Err(Refusal::new(
            RefusalKind::Conflict,
            format!("the name of node `{name}` is taken{also}"),
        )
        .with_hint("start the new node with another --node-name"));
    }
    let subject = node
        .invites
        .redeem(&hash, &request.wanted, &taken(node), node.clock.now())?;
    let certificate = node.sign(&request.public_key, &subject)?;
    let ca_key = matches!(subject, Subject::Node(_)).then(|| node.ca.key_der());
    tracing::info!(%subject, "enrolled");
    Ok(Enrolled {
        cluster: node.identity.cluster().clone(),
        certificate,
        ca_key,
        nodes: node.cluster.addresses(),
    })
}

/// Returns the names that are somebody's at any node.
pub(crate) fn taken(node: &Node) -> Taken {
    let mut names = owners(node);
    names.extend(node.cluster.users());
    Taken {
        names,
        revoked: node.cluster.revoked(),
        nodes: nodes(node),
        untold: node.cluster.untold(),
    }
}

/// Returns the names of all nodes that are known, as far as they could be users'.
pub(crate) fn nodes(node: &Node) -> BTreeSet<UserName> {
    let view = node.cluster.view();
    let names = view.members.keys().chain([&node.name]);
    names.filter_map(|name| name.as_str().parse().ok()).collect()
}

/// Returns who owns clones here, and who will: what a node makes by itself is owned by its name.
pub(crate) fn owners(node: &Node) -> BTreeSet<UserName> {
    let clones = node.clones.list().into_iter().map(|clone| clone.owner);
    clones.chain(node.name.as_str().parse()).collect()
}
