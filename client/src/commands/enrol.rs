//! Enrolment: a token for a certificate, under a key that is made here and never sent.

use chrono::Utc;
use zdap_proto::connect::{connect_for_enrol, explain};
use zdap_proto::frame::{self, FrameError, REPLY_CAP, REQUEST_CAP};
use zdap_proto::identity::{Identity, Keypair};
use zdap_proto::message::{EnrolReply, EnrolRequest, Enrolled, Wanted};
use zdap_proto::refusal::chain;
use zdap_proto::token::Token;
use zdap_proto::transport::remote;

use super::user::default_name;
use crate::context::Context;
use crate::error::{Failure, Kind};

/// A token knows the addresses, the cluster, and that it is we who may join. Keeps the identity.
pub(super) async fn enrol(context: &Context<'_>, token: &Token) -> Result<Identity, Failure> {
    if token.for_node {
        return Err(Failure::new("this token lets in a node, not a user").hinted(
            "ask for one by `zdapd token user NAME`; this one is for `zdapd serve --join TOKEN` on a new node",
        ));
    }
    let output = context.output;
    let set = context.home.settings()?.user;
    let wanted = set.clone().or_else(default_name);
    output.doing(format!("enrolling at {}", token.addresses.join(", ")));
    let keypair = Keypair::generate()?;
    let connection = connect_for_enrol(&context.endpoint()?, token).await?;
    context.note_reached();
    let place = remote(&connection).to_string();
    let request = EnrolRequest {
        secret: token.secret.to_vec(),
        public_key: keypair.public_key(),
        wanted: Wanted::User { name: wanted.clone() },
    };
    let failed = |error: FrameError| match connection.close_reason() {
        Some(reason) => Failure::from(explain(&place, reason)),
        None => Failure::caused(&format!("cannot enrol at {place}"), &error),
    };
    let (mut send, mut receive) = connection
        .open_bi()
        .await
        .map_err(|reason| Failure::from(explain(&place, reason)))?;
    frame::write(&mut send, &request, REQUEST_CAP)
        .await
        .map_err(failed)?;
    // A stream that is finished already cannot be finished again; that is all that can go wrong.
    let _ = send.finish();
    let enrolled = match frame::read(&mut receive, REPLY_CAP).await.map_err(failed)? {
        EnrolReply::Enrolled(enrolled) => enrolled,
        EnrolReply::Refused(refusal) => return Err(refusal.into()),
    };
    let identity = trusted(keypair, &enrolled, token)?;
    context.home.keep(&identity)?;
    if set.is_none() && identity.subject().owner() == wanted.as_ref() {
        output.say(
            "no name was set, so it was made up; `zdap set user NAME` before the next enrolment changes it",
        );
    }
    Ok(identity)
}

/// What the node gives has to be for our key, in the cluster that the token is from.
fn trusted(keypair: Keypair, enrolled: &Enrolled, token: &Token) -> Result<Identity, Failure> {
    let identity = Identity::new(keypair, &enrolled.certificate)?;
    let is_same =
        identity.ca_fingerprint() == token.ca_fingerprint && *identity.cluster() == enrolled.cluster;
    if !is_same {
        return Err(
            Failure::new("the node gave a certificate of another cluster than the token's")
                .of_kind(Kind::Refused(zdap_proto::refusal::RefusalKind::Forbidden)),
        );
    }
    if let Err(error) = identity.check_dates(Utc::now()) {
        let hint = error.hint();
        return Err(Failure::new(chain(&error)).maybe_hinted(hint));
    }
    Ok(identity)
}
