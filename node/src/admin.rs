//! The commands of this machine: asked of the running node, with the node's own identity, on its own behalf: so they are
//! about this node alone.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is the output of the commands"
)]

mod terminal;

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use indicatif::HumanBytes;
use quinn::{Connection, Endpoint};
use zdap_proto::connect::{connect, explain};
use zdap_proto::control::{CallError, call, call_on_behalf_of};
use zdap_proto::identity::{Identity, Subject};
use zdap_proto::message::{
    Answer, CloneView, Invited, NodeState, NodeView, Progress, Request, ResourceView, TokenText,
};
use zdap_proto::name::{CloneId, NodeName, RequestId, ResourceName, SnapshotTime, UserName};
use zdap_proto::refusal::Refusal;
use zdap_proto::transport::{self, Close, Purpose};

use self::terminal::{confirmed, print_table, show_step, spinner};
use crate::state;

/// The running node of this machine.
#[derive(Debug)]
pub struct Running {
    endpoint: Endpoint,
    connection: Connection,
    subject: Subject,
}

/// A refusal by the running node, to be shown with its hint.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub Refusal);

impl Running {
    /// Connects to the node that runs on `state_dir`.
    pub async fn connect(state_dir: &Path) -> anyhow::Result<Self> {
        let port = state::port(state_dir)?;
        let identity = Identity::load(state_dir)?;
        let endpoint = transport::client_endpoint()?;
        let address = format!("{}:{port}", Ipv4Addr::LOCALHOST);
        let connection = connect(&endpoint, &identity, &address, Purpose::Control)
            .await
            .with_context(|| {
                format!(
                    "reach the node of the state directory `{}`; `zdapd serve` starts it",
                    state_dir.display()
                )
            })?;
        Ok(Self {
            endpoint,
            connection,
            subject: identity.subject().clone(),
        })
    }

    /// Says goodbye.
    pub async fn close(self) {
        Close::Done.connection(&self.connection, "done");
        // Bounded, since a node that is gone does not confirm.
        let _ = tokio::time::timeout(GOODBYE, self.endpoint.wait_idle()).await;
    }

    /// Prints a token: one line, good once.
    pub async fn token(&self, invited: Invited, ttl: Duration) -> anyhow::Result<()> {
        let ttl_seconds = u32::try_from(ttl.as_secs()).context("the token's --ttl is too long")?;
        let Answer::Token(TokenText(token)) = self.ask(&Request::IssueToken { invited, ttl_seconds }).await?
        else {
            bail!(ANOTHER_ANSWER);
        };
        println!("{token}");
        Ok(())
    }

    /// Restores resources, several at once, and says how far each has come.
    pub async fn create_snapshots(
        &self,
        resources: &[ResourceName],
        use_existing: bool,
    ) -> anyhow::Result<()> {
        let bars = indicatif::MultiProgress::new();
        let restore = |resource: &ResourceName| {
            let resource = resource.clone();
            let bar = bars.add(spinner(&resource));
            async move {
                let request = Request::CreateSnapshot {
                    resource: resource.clone(),
                    use_existing,
                };
                let answer = self
                    .ask_slowly(&request, |step| show_step(&bar, &resource, &step))
                    .await;
                bar.finish_and_clear();
                let Answer::Snapshot(snapshot) = answer? else {
                    bail!(ANOTHER_ANSWER)
                };
                println!(
                    "{resource} {} {}",
                    snapshot.taken_at,
                    HumanBytes(snapshot.size_bytes)
                );
                Ok(())
            }
        };
        let results = futures_util::future::join_all(resources.iter().map(restore)).await;
        all_done(resources, results)
    }

    /// Makes a clone and prints its id.
    pub async fn create_clone(
        &self,
        resource: ResourceName,
        snapshot: Option<SnapshotTime>,
        owner: Option<UserName>,
    ) -> anyhow::Result<()> {
        let Answer::Nodes(this) = self.ask(&Request::ListNodes).await? else {
            bail!(ANOTHER_ANSWER);
        };
        if this.iter().any(|node| node.state == NodeState::Draining) {
            bail!("this node is being drained; `zdapd undrain` ends that");
        }
        let request = Request::CreateClone {
            resource,
            snapshot,
            node: None,
            owner,
            request_id: RequestId::random(),
            attempt: 0,
        };
        let Answer::Created { clone, .. } = self.ask(&request).await? else {
            bail!(ANOTHER_ANSWER)
        };
        println!("{}", clone.id);
        Ok(())
    }

    /// Prints the resources of this node.
    pub async fn list_resources(&self, only: Option<&ResourceName>) -> anyhow::Result<()> {
        let Answer::Resources(resources) = self.ask(&Request::ListResources).await? else {
            bail!(ANOTHER_ANSWER);
        };
        if let Some(only) = only {
            known(&resources, only)?;
        }
        let shown = resources
            .into_iter()
            .filter(|resource| only.is_none_or(|name| is_called(resource, name)));
        print_table(
            &["RESOURCE", "ALIAS", "IMAGE", "SNAPSHOTS", "NEWEST"],
            shown.map(|resource| {
                let newest = resource
                    .snapshots
                    .first()
                    .map(ToString::to_string)
                    .unwrap_or_default();
                let alias = resource.alias.unwrap_or_default();
                vec![
                    resource.name.to_string(),
                    alias,
                    resource.image,
                    resource.snapshots.len().to_string(),
                    newest,
                ]
            }),
        );
        Ok(())
    }

    /// Prints the snapshots of this node.
    pub async fn list_snapshots(&self, resource: Option<ResourceName>) -> anyhow::Result<()> {
        let request = Request::ListSnapshots {
            resource: resource.clone(),
        };
        let Answer::Snapshots(snapshots) = self.ask(&request).await? else {
            bail!(ANOTHER_ANSWER);
        };
        if snapshots.is_empty() {
            self.must_know(resource.as_ref()).await?;
        }
        print_table(
            &["RESOURCE", "SNAPSHOT", "SIZE", "CLONES"],
            snapshots.into_iter().map(|snapshot| {
                let size = HumanBytes(snapshot.size_bytes).to_string();
                vec![
                    snapshot.resource.to_string(),
                    snapshot.taken_at.to_string(),
                    size,
                    snapshot.clones.unwrap_or_default().to_string(),
                ]
            }),
        );
        Ok(())
    }

    /// Prints the clones of this node, of all owners.
    pub async fn list_clones(&self, resource: Option<ResourceName>) -> anyhow::Result<()> {
        let clones = self.clones(resource.clone()).await?;
        if clones.is_empty() {
            self.must_know(resource.as_ref()).await?;
        }
        print_table(
            &[
                "CLONE", "RESOURCE", "OWNER", "SNAPSHOT", "CREATED", "STATE", "EXPIRES",
            ],
            clones.into_iter().map(|clone| {
                vec![
                    clone.id.to_string(),
                    clone.resource.to_string(),
                    clone.owner.to_string(),
                    clone.snapshot.to_string(),
                    clone.created_at.format("%FT%TZ").to_string(),
                    format!("{:?}", clone.state).to_lowercase(),
                    clone
                        .expires_at
                        .map(|at| at.format("%FT%TZ").to_string())
                        .unwrap_or_default(),
                ]
            }),
        );
        Ok(())
    }

    /// Fails if there is nothing to show of a resource because this node does not serve it.
    async fn must_know(&self, resource: Option<&ResourceName>) -> anyhow::Result<()> {
        let Some(resource) = resource else { return Ok(()) };
        let Answer::Resources(resources) = self.ask(&Request::ListResources).await? else {
            bail!(ANOTHER_ANSWER);
        };
        known(&resources, resource)
    }

    /// Prints the nodes of the cluster.
    pub async fn list_nodes(&self) -> anyhow::Result<()> {
        let answer = call(&self.connection, &Request::ListNodes, |_| {}).await;
        let Answer::Nodes(nodes) = answer.map_err(failed)? else {
            bail!(ANOTHER_ANSWER);
        };
        print_table(
            &[
                "NODE",
                "ADDRESS",
                "STATE",
                "RESOURCES",
                "CLONES",
                "FREE",
                "TOTAL",
                "LOAD",
            ],
            nodes.into_iter().map(node_row),
        );
        Ok(())
    }

    /// Has no more clones placed on this node, or does so again.
    pub async fn drain(&self, is_draining: bool) -> anyhow::Result<()> {
        let Answer::Drained = self.ask(&Request::Drain { is_draining }).await? else {
            bail!(ANOTHER_ANSWER);
        };
        println!(
            "{}",
            match is_draining {
                true => "no more clones are placed on this node; those that are there stay",
                false => "clones are placed on this node again",
            }
        );
        Ok(())
    }

    /// Lets no certificate of a user in any more, at any node.
    pub async fn revoke(&self, user: UserName) -> anyhow::Result<()> {
        let Answer::Revoked { is_known } = self.ask(&Request::Revoke { user: user.clone() }).await? else {
            bail!(ANOTHER_ANSWER);
        };
        if !is_known {
            eprintln!(
                "warning: no node has ever heard of a user `{user}`; the name is good for nobody from now on"
            );
        }
        println!("`{user}` is let in no more; database connections that are open stay open, and clones stay");
        Ok(())
    }

    /// Has all nodes forget one that is down for good.
    pub async fn forget(&self, name: NodeName) -> anyhow::Result<()> {
        let Answer::Forgotten = self.ask(&Request::Forget { node: name.clone() }).await? else {
            bail!(ANOTHER_ANSWER);
        };
        println!("`{name}` is forgotten, with what it had; should it come back, it is a member again");
        Ok(())
    }

    /// Destroys one clone, whoever owns it.
    pub async fn destroy_clone(&self, clone: CloneId) -> anyhow::Result<()> {
        let clones = self.clones(None).await?;
        if !clones.iter().any(|known| known.id == clone) {
            bail!("there is no clone `{clone}` on this node; `zdapd list clones` shows them");
        }
        self.ask(&Request::DestroyClone { clone: clone.clone() }).await?;
        println!("{clone}");
        Ok(())
    }

    /// Destroys every clone of every owner, and with `bases` every snapshot too; asks first, unless `yes`.
    pub async fn destroy_all(&self, bases: bool, yes: bool) -> anyhow::Result<()> {
        let what = match bases {
            true => "every clone and every snapshot of this node",
            false => "every clone of this node",
        };
        if !yes && !confirmed(what)? {
            bail!("nothing was destroyed");
        }
        let Answer::DestroyedAll { clones, bases: also } = self.ask(&Request::DestroyAll { bases }).await?
        else {
            bail!(ANOTHER_ANSWER);
        };
        println!("{}", destroyed(clones, bases.then_some(also)));
        Ok(())
    }

    async fn ask(&self, request: &Request) -> anyhow::Result<Answer> {
        self.ask_slowly(request, |_| {}).await
    }

    async fn ask_slowly(&self, request: &Request, progress: impl FnMut(Progress)) -> anyhow::Result<Answer> {
        call_on_behalf_of(&self.connection, &self.subject, request, progress)
            .await
            .map_err(failed)
    }

    async fn clones(&self, resource: Option<ResourceName>) -> anyhow::Result<Vec<CloneView>> {
        let all_owners = true;
        let request = Request::ListClones { resource, all_owners };
        let Answer::Clones { clones, .. } = self.ask(&request).await? else {
            bail!(ANOTHER_ANSWER);
        };
        Ok(clones)
    }
}

fn failed(error: CallError) -> anyhow::Error {
    match error {
        CallError::Refused(refusal) => Refused(refusal).into(),
        CallError::Lost(reason) => anyhow!(explain("this machine's node", reason)),
        CallError::Misunderstood(_) => anyhow!(error),
    }
}

fn node_row(node: NodeView) -> Vec<String> {
    let resources: Vec<_> = node.resources.iter().map(ToString::to_string).collect();
    vec![
        node.name.to_string(),
        node.address,
        format!("{:?}", node.state).to_lowercase(),
        resources.join(", "),
        node.clones.to_string(),
        HumanBytes(node.free_bytes).to_string(),
        HumanBytes(node.total_bytes).to_string(),
        format!("{:.0} %", node.load * 100.0),
    ]
}

fn destroyed(clones: u32, bases: Option<u32>) -> String {
    let counted = |count: u32, what| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let clones = counted(clones, "clone");
    match bases {
        Some(bases) => format!("destroyed {clones} and {}", counted(bases, "base")),
        None => format!("destroyed {clones}"),
    }
}

/// Tells each failure by its resource, where there were several to restore, and fails if there is one.
fn all_done(resources: &[ResourceName], results: Vec<anyhow::Result<()>>) -> anyhow::Result<()> {
    if let [_] = resources {
        return results.into_iter().collect();
    }
    let failed: Vec<_> = resources
        .iter()
        .zip(results)
        .filter_map(|(resource, result)| Some((resource, result.err()?)))
        .collect();
    for (resource, error) in &failed {
        eprintln!("{}", failure(resource, error));
    }
    match failed.len() {
        0 => Ok(()),
        count => bail!("{count} of {} resources were not restored", resources.len()),
    }
}

fn failure(resource: &ResourceName, error: &anyhow::Error) -> String {
    match error.downcast_ref() {
        Some(Refused(Refusal { hint: Some(hint), .. })) => format!("error: {resource}: {error:#}; {hint}"),
        _ => format!("error: {resource}: {error:#}"),
    }
}

fn is_called(resource: &ResourceView, name: &ResourceName) -> bool {
    resource.name == *name || resource.alias.as_deref() == Some(name.as_str())
}

fn known(resources: &[ResourceView], name: &ResourceName) -> anyhow::Result<()> {
    if resources.iter().any(|resource| is_called(resource, name)) {
        return Ok(());
    }
    let names: Vec<&str> = resources.iter().map(|resource| resource.name.as_str()).collect();
    match names.is_empty() {
        true => bail!("this node serves no resource `{name}`, and no other"),
        false => bail!(
            "this node serves no resource `{name}`; it serves {}",
            names.join(", ")
        ),
    }
}

/// It speaks another version of the protocol.
const ANOTHER_ANSWER: &str = "the node gave another answer than was asked for";
const GOODBYE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use zdap_proto::refusal::RefusalKind;

    use super::*;

    #[test]
    fn of_several_restores_that_fail_each_is_told_by_its_resource() {
        let refusal = Refusal::new(RefusalKind::Full, "no room").with_hint("destroy clones");
        let resources: Vec<ResourceName> = ["orders", "users", "stock"]
            .map(|name| name.parse().unwrap())
            .into();
        let refused = anyhow!(Refused(refusal));
        assert_eq!(
            failure(&resources[0], &refused),
            "error: orders: no room; destroy clones"
        );
        assert_eq!(failure(&resources[1], &anyhow!("gone")), "error: users: gone");
        let error = all_done(&resources, vec![Err(refused), Err(anyhow!("gone")), Ok(())]).unwrap_err();
        assert_eq!(error.to_string(), "2 of 3 resources were not restored");
    }

    #[test]
    fn what_was_destroyed_is_said_in_a_sentence() {
        assert_eq!(destroyed(2, Some(1)), "destroyed 2 clones and 1 base");
        assert_eq!(destroyed(1, None), "destroyed 1 clone");
    }

    #[test]
    fn the_failure_of_an_only_restore_keeps_its_hint() {
        let refusal = Refusal::new(RefusalKind::Full, "no room").with_hint("destroy clones");
        let only = ["orders".parse().unwrap()];
        let error = all_done(&only, vec![Err(Refused(refusal).into())]).unwrap_err();
        assert!(error.is::<Refused>(), "{error}");
    }
}
