//! A token for a certificate: the only thing that can be asked for without one.

use chrono::Utc;
use quinn::{RecvStream, SendStream};
use zdap_proto::frame::{self, REPLY_CAP, REQUEST_CAP};
use zdap_proto::identity::Subject;
use zdap_proto::message::{EnrolReply, EnrolRequest, Enrolled};
use zdap_proto::refusal::{Refusal, RefusalKind};
use zdap_proto::token::secret_hash;

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
    // Signed for nobody first: a key that cannot be signed does not use up the token.
    if let Subject::Node(name) = node.identity.subject() {
        node.sign(&request.public_key, &Subject::Node(name.clone()))
            .map(drop)?;
    }
    let subject = node.invites.redeem(&hash, &request.wanted, Utc::now())?;
    if subject == *node.identity.subject() {
        return Err(
            Refusal::new(RefusalKind::Conflict, format!("the name of {subject} is taken"))
                .with_hint("start the new node with another --node-name, and make a new token"),
        );
    }
    let certificate = node.sign(&request.public_key, &subject)?;
    let ca_key = matches!(subject, Subject::Node(_)).then(|| node.ca.key_der());
    tracing::info!(%subject, "enrolled");
    let nodes = vec![node.address.clone()];
    Ok(Enrolled {
        cluster: node.identity.cluster().clone(),
        certificate,
        ca_key,
        nodes,
    })
}
