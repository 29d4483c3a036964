//! Keeps the relay's certificate from ending while the relay runs.

use std::path::Path;
use std::time::Duration;

use chrono::Utc;
use quinn::Endpoint;
use zdap_proto::connect::connect_to_any;
use zdap_proto::identity::{Identity, IdentityError};
use zdap_proto::refusal::chain;
use zdap_proto::renewal::renew;
use zdap_proto::transport::{Close, Purpose};
use zdap_proto::tunnel::Tunnel;

/// Renews the certificate at two thirds of its life, in the tunnel and in `directory`, until dropped. Where the directory
/// cannot be written, as in a compose project, the certificate is good until the relay ends, and `zdap` renews the one on
/// disk when it runs in the project.
pub(crate) async fn stay_certified(
    tunnel: Tunnel,
    endpoint: Endpoint,
    servers: Vec<String>,
    directory: &Path,
    mut identity: Identity,
) {
    let (mut said_unkept, mut said_failed) = (false, false);
    loop {
        let left = identity.renew_from() - Utc::now();
        // In short naps: a machine that was suspended has not counted the time.
        tokio::time::sleep(left.to_std().unwrap_or_default().min(LOOK)).await;
        if identity.renew_from() > Utc::now() {
            continue;
        }
        match fresh(&endpoint, &servers, directory, &identity).await {
            Ok((fresh, kept)) => {
                tracing::info!(until = %fresh.expires_at(), "the certificate is renewed");
                if let Err(error) = kept {
                    let on_disk = identity.expires_at();
                    let reason = chain(&error);
                    warn_once(
                        &mut said_unkept,
                        &format!(
                            "the renewed certificate lasts until the relay ends; the one that its next start finds \
                             ends at {on_disk} unless `zdap` renews it: {reason}"
                        ),
                    );
                }
                said_failed = false;
                tunnel.renew(fresh.clone());
                identity = fresh;
            }
            Err(reason) => {
                let end = identity.expires_at();
                warn_once(
                    &mut said_failed,
                    &format!("the certificate ends at {end} and is not renewed: {reason}"),
                );
            }
        }
        if identity.renew_from() <= Utc::now() {
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Returns a fresh one, and whether the next start will find it.
async fn fresh(
    endpoint: &Endpoint,
    servers: &[String],
    directory: &Path,
    identity: &Identity,
) -> Result<(Identity, Result<(), IdentityError>), String> {
    if let Some(there) = there(directory, identity) {
        return Ok((there, Ok(())));
    }
    let asked = ask(endpoint, servers, identity).await?;
    let kept = asked.save(directory);
    Ok((asked, kept))
}

/// Returns the one on disk if somebody has renewed it there.
fn there(directory: &Path, identity: &Identity) -> Option<Identity> {
    let there = Identity::load(directory).ok()?;
    (there.peer() == identity.peer() && there.expires_at() > identity.expires_at()).then_some(there)
}

async fn ask(endpoint: &Endpoint, servers: &[String], identity: &Identity) -> Result<Identity, String> {
    let reached = connect_to_any(endpoint, identity, servers, Purpose::Control).await;
    let (connection, _) = reached.map_err(|errors| {
        let errors: Vec<String> = errors.iter().map(|(_, error)| chain(error)).collect();
        errors.join("; ")
    })?;
    let renewed = renew(&connection, identity).await;
    Close::Done.connection(&connection, "done");
    renewed.map_err(|error| chain(&error))
}

/// Of one kind: the text has times in it that are others every time.
fn warn_once(said: &mut bool, text: &str) {
    if !std::mem::replace(said, true) {
        tracing::warn!("{text}");
    }
}

/// Weeks are left when it begins to matter.
const LOOK: Duration = Duration::from_secs(60);
