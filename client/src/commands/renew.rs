//! Certificates that are about to end: ours, and those of the relays in this project. Renewed after what was asked for is
//! done, and silently: there are weeks to try again.

use std::time::Duration;

use chrono::Utc;
use zdap_proto::identity::{Identity, Keypair};
use zdap_proto::name::{CloneId, ResourceName};

use crate::attachments::Attachments;
use crate::cluster::Cluster;
use crate::context::Context;
use crate::error::Failure;
use crate::project::Project;

/// Renews what is past two thirds of its life, of the clusters that this command has reached.
pub(super) async fn what_is_due(context: &Context<'_>) {
    for cluster in context.reached() {
        let work = async {
            if is_due(cluster.identity()) {
                let renewed = ours(context, &cluster).await;
                log("our certificate", renewed);
            }
            if let Ok(Some(project)) = context.project_if_any() {
                let renewed = relays(&project, &cluster).await;
                log("the relays' certificates", renewed);
            }
        };
        if tokio::time::timeout(DEADLINE, work).await.is_err() {
            tracing::debug!("certificates are not renewed: no answer in time");
        }
    }
}

async fn ours(context: &Context<'_>, cluster: &Cluster) -> Result<(), Failure> {
    let renewed = cluster.renew().await;
    let renewed = renewed.map_err(|error| Failure::caused("no certificate", &error))?;
    context.home.keep(&renewed)
}

/// A running relay renews its own, but cannot write it down: the directory is mounted read-only.
async fn relays(project: &Project, cluster: &Cluster) -> Result<(), Failure> {
    for attached in project.attached()? {
        let (Ok(resource), Ok(clone)) = (
            attached.resource.parse::<ResourceName>(),
            attached.clone.parse::<CloneId>(),
        ) else {
            continue;
        };
        let due = project.identity(&resource).filter(is_due);
        if due.is_none_or(|identity| identity.cluster() != cluster.id()) {
            continue;
        }
        let keypair = Keypair::generate()?;
        let certificate = cluster.relay_certificate(&clone, keypair.public_key()).await?;
        let renewed = Identity::new(keypair, &certificate)?;
        Attachments::of(project).await?.renew(&resource, &renewed)?;
    }
    Ok(())
}

fn is_due(identity: &Identity) -> bool {
    identity.renew_from() <= Utc::now()
}

fn log(what: &str, renewed: Result<(), Failure>) {
    if let Err(failure) = renewed {
        tracing::debug!("{what}: not renewed: {}", failure.message);
    }
}

/// The command is done, and somebody waits for their prompt.
const DEADLINE: Duration = Duration::from_secs(2);
