//! Certificates that are about to end: ours, and those of the relays in this project. Renewed after what was asked for is
//! done, and silently: there are weeks to try again. Only in the last of them a failure is told.

use std::future::Future;
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use futures_util::future::join_all;
use zdap_proto::identity::{Identity, Keypair};
use zdap_proto::name::{CloneId, ResourceName};

use crate::attachments::Attachments;
use crate::cluster::Cluster;
use crate::compose::Attached;
use crate::context::Context;
use crate::error::Failure;
use crate::project::Project;

/// Renews what is past two thirds of its life, of the clusters that this command has reached. One that cannot be renewed
/// keeps no other from it.
pub(super) async fn what_is_due(context: &Context<'_>) {
    let project = context.project_if_any().ok().flatten();
    let attached = project.as_ref().and_then(|project| project.attached().ok());
    let clusters = context.reached();
    let renewals = clusters.iter().map(async |cluster| {
        let what = format!("our certificate in cluster {}", cluster.id());
        renewed(context, &what, cluster.identity(), ours(context, cluster)).await;
        if let (Some(project), Some(attached)) = (&project, &attached) {
            let relays = attached
                .iter()
                .map(|attached| relay(context, project, cluster, attached));
            join_all(relays).await;
        }
    });
    join_all(renewals).await;
}

/// Does `renewal` if it is time. That it fails matters once the end is near.
async fn renewed(
    context: &Context<'_>,
    what: &str,
    identity: &Identity,
    renewal: impl Future<Output = Result<(), Failure>>,
) {
    if identity.renew_from() > Utc::now() {
        return;
    }
    let reason = match tokio::time::timeout(DEADLINE, renewal).await {
        Ok(Ok(())) => return,
        Ok(Err(failure)) => failure.message,
        Err(_) => format!("no answer within {} s", DEADLINE.as_secs()),
    };
    let end = identity.expires_at();
    let text = format!("{what} ends at {end} and is not renewed: {reason}");
    match end - Utc::now() < SOON {
        true => context.output.warn(&text),
        false => tracing::debug!("{text}"),
    }
}

async fn ours(context: &Context<'_>, cluster: &Cluster) -> Result<(), Failure> {
    let renewed = cluster.renew().await;
    let renewed = renewed.map_err(|error| Failure::caused("no certificate", &error))?;
    context.home.renew(&renewed)
}

/// A running relay renews its own, but cannot write it down: the directory is mounted read-only.
async fn relay(context: &Context<'_>, project: &Project, cluster: &Cluster, attached: &Attached) {
    let (Ok(resource), Ok(clone)) = (
        attached.resource.parse::<ResourceName>(),
        attached.clone.parse::<CloneId>(),
    ) else {
        return;
    };
    let identity = project.identity(&resource);
    let Some(identity) = identity.filter(|identity| identity.cluster() == cluster.id()) else {
        return;
    };
    let renewal = async {
        let keypair = Keypair::generate()?;
        let certificate = cluster.relay_certificate(&clone, keypair.public_key()).await?;
        let renewed = Identity::new(keypair, &certificate)?;
        Attachments::of(project).await?.renew(&resource, &renewed)
    };
    let what = format!("the certificate of the relay of `{resource}`");
    renewed(context, &what, &identity, renewal).await;
}

/// The command is done, and somebody waits for their prompt.
const DEADLINE: Duration = Duration::from_secs(2);
/// Time to find somebody who can do something about it.
const SOON: TimeDelta = TimeDelta::days(7);
