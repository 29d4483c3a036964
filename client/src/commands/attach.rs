//! `zdap attach`: a clone in the place of a compose service.

use std::sync::OnceLock;
use std::time::Duration;

use futures_util::future::join_all;
use serde::Serialize;
use zdap_proto::identity::{Identity, Keypair};
use zdap_proto::message::{CloneView, Considered, Stages};
use zdap_proto::name::{CloneId, ClusterId, NameError, ResourceName};

use super::{explain, make_clone, newest_clone, place, relay, relay_image};
use crate::attachments::Attachments;
use crate::cli::Attach;
use crate::cluster::{Clones, Cluster, Created};
use crate::compose::{self, ComposeError, ComposeService, RelayService};
use crate::context::Context;
use crate::error::Failure;
use crate::node::NodeError;
use crate::origin::Target;
use crate::project::Project;
use crate::words::Words;

/// What was attached; part of the contract.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    clone: &'a CloneView,
    r#override: String,
    stages: &'a Stages,
    #[serde(skip_serializing_if = "Option::is_none")]
    considered: Option<&'a [Considered]>,
}

/// Attaches, or leaves everything as it was.
pub(super) async fn run(context: &Context<'_>, arguments: &Attach) -> Result<(), Failure> {
    let words = Words::parse(&arguments.words)?;
    let resource = resource_of(words.subject()?, arguments.new)?;
    let project = context.project()?;
    let mut before = Before::look(context, &project, &resource, arguments)?;
    let replaced = before.replaced.take();
    let made = Made::default();
    let attaching = attach(context, arguments, &words, &resource, &project, before, &made);
    let created = match context.until_stopped(attaching).await {
        Ok(created) => created,
        Err(failure) => {
            made.undo(context).await;
            return Err(failure);
        }
    };
    let clone = &created.clone;
    let line = format!("{resource} attached: {} on {}", clone.id, clone.node);
    let document = Document {
        clone,
        r#override: project.r#override.display().to_string(),
        stages: &created.stages,
        considered: arguments.explain.then_some(&created.considered),
    };
    if arguments.explain {
        context.output.say_asked(&explain::table_of(&created.considered));
    }
    context.output.data(&line, &document)?;
    context
        .output
        .say(&format!("`{}` starts it", project.command_to_start()));
    if let Some(replaced) = replaced.filter(|replaced| replaced.clone != clone.id.as_str()) {
        tell_replaced(context, &replaced).await;
    }
    Ok(())
}

async fn attach(
    context: &Context<'_>,
    arguments: &Attach,
    words: &Words,
    resource: &ResourceName,
    project: &Project,
    before: Before,
    made: &Made,
) -> Result<Created, Failure> {
    let output = context.output;
    let reached = context.reach().await?;
    let (target, existing) = match arguments.new {
        true => (place(context, &reached, resource, words).await?, None),
        false => {
            let found = newest_clone(context, &reached, words).await?;
            let target = Target {
                cluster: found.cluster,
                node: None,
            };
            (target, Some(found.clone))
        }
    };

    // Beside the clone, over the same connection.
    let cluster = &target.cluster;
    let image = async { Ok(relay_image::ensure(context, &cluster.node().await).await) };
    let clone = async {
        let created = match existing {
            Some(clone) => Created {
                clone,
                stages: Stages::default(),
                considered: Vec::new(),
            },
            None => {
                let created = make_clone(context, &target, resource, words.time).await?;
                made.note_clone(cluster, &created.clone.id);
                created
            }
        };
        let keypair = Keypair::generate()?;
        let public_key = keypair.public_key();
        let (certificate, servers) = tokio::join!(
            cluster.relay_certificate(&created.clone.id, public_key),
            cluster.servers(&created.clone.node)
        );
        let identity = Identity::new(keypair, &certificate?)?;
        Ok::<_, Failure>((created, identity, servers))
    };
    let (image, (created, identity, servers)) = tokio::try_join!(image, clone)?;

    let relay = relay::of(before.relay, &before.service, &created.clone, &servers);
    let relay = RelayService {
        user: image.user.or(relay.user),
        start_interval: image.start_interval,
        ..relay
    };
    output.doing("waiting for another zdap in this project");
    let attachments = Attachments::of(project).await?;
    attachments.attach(resource, &identity, |text| {
        compose::attach(text, &relay, arguments.force)
    })?;
    Ok(created)
}

/// Says what becomes of the clone whose place was taken, unless it is gone already. All is done by then: who stops this has
/// stopped nothing else.
async fn tell_replaced(context: &Context<'_>, replaced: &Replaced) {
    context.output.doing("looking for the clone that was replaced");
    let looking = async { Ok(is_there(context, replaced).await) };
    let looked = context.until_stopped(looking).await;
    context.output.rest();
    let is_there = match looked {
        Ok(Some(false)) => return,
        Ok(Some(true)) => "is",
        Ok(None) | Err(_) => "may be",
    };
    let clone = &replaced.clone;
    context.output.say(&format!(
        "clone {clone}, which it replaces, {is_there} still there; `zdap destroy {clone}` gives it back"
    ));
}

/// Returns whether the clone is there, if its cluster can say.
async fn is_there(context: &Context<'_>, replaced: &Replaced) -> Option<bool> {
    let reached = context.reached();
    let asked = reached
        .iter()
        .filter(|cluster| replaced.cluster.as_ref().is_none_or(|id| id == cluster.id()))
        .map(async |cluster| cluster.clones(false).await);
    let answers = join_all(asked).await;
    let clones = answers.iter().flatten().flat_map(|answer| &answer.clones);
    if clones
        .into_iter()
        .any(|clone| clone.id.as_str() == replaced.clone)
    {
        return Some(true);
    }
    let all_say =
        |answer: &Result<Clones, NodeError>| answer.as_ref().is_ok_and(|answer| answer.silent.is_empty());
    // Of which cluster it is has to be known for the silence of the others to mean nothing.
    (replaced.cluster.is_some() && !answers.is_empty() && answers.iter().all(all_say)).then_some(false)
}

/// Returns the resource that is to be attached: the subject itself, or, of a clone that is there already, what it is a
/// clone of.
fn resource_of(subject: &str, new: bool) -> Result<ResourceName, NameError> {
    let of_clone = subject
        .parse::<CloneId>()
        .ok()
        .and_then(|_| subject.rsplit_once('-'));
    match of_clone {
        Some((resource, _)) if !new => resource.parse(),
        Some(_) | None => subject.parse(),
    }
}

/// What the project says before anything is made.
struct Before {
    service: ComposeService,
    /// The relay, as far as it is known without a clone.
    relay: RelayService,
    /// What `--force` puts aside.
    replaced: Option<Replaced>,
}

/// The clone that was attached before.
struct Replaced {
    clone: String,
    /// None: its relay's identity is lost.
    cluster: Option<ClusterId>,
}

impl Before {
    /// Makes sure that the clone will have a place in the project.
    fn look(
        context: &Context<'_>,
        project: &Project,
        resource: &ResourceName,
        arguments: &Attach,
    ) -> Result<Self, Failure> {
        let in_file = |path: &std::path::Path, source| ComposeError::InFile {
            path: path.to_owned(),
            source: Box::new(source),
        };
        let text = compose::read(&project.compose)?;
        let service = match compose::service(&text, resource.as_str(), &project.environment()) {
            Ok(service) => service,
            Err(ComposeError::NoService { .. }) if arguments.force => ComposeService::new(resource.as_str()),
            Err(error) => return Err(in_file(&project.compose, error).into()),
        };
        for warning in &service.warnings {
            context
                .output
                .warn(&format!("{}: {warning}", project.compose.display()));
        }
        let relay = RelayService {
            published_port: arguments.port,
            ..relay::draft(&service, resource)
        };
        let text = project.override_text()?;
        compose::attach(&text, &relay, arguments.force)
            .map_err(|error| in_file(&project.r#override, error))?;
        let mut attached = project.attached()?.into_iter();
        let replaced = attached.find(|attached| attached.service == resource.as_str());
        Ok(Self {
            service,
            relay,
            replaced: replaced.map(|attached| Replaced {
                clone: attached.clone,
                cluster: project
                    .identity(resource)
                    .map(|identity| identity.cluster().clone()),
            }),
        })
    }
}

/// The clone that has been made, to be given back when the rest fails.
#[derive(Debug, Default)]
struct Made(OnceLock<(Cluster, CloneId)>);

impl Made {
    fn note_clone(&self, cluster: &Cluster, clone: &CloneId) {
        // There is one a command.
        let _ = self.0.set((cluster.clone(), clone.clone()));
    }

    /// Gives back the clone. Where that fails it is said.
    async fn undo(self, context: &Context<'_>) {
        let Some((cluster, clone)) = self.0.into_inner() else {
            return;
        };
        context.output.doing(format!("giving back {clone}"));
        let destroyed = tokio::time::timeout(UNDO_DEADLINE, cluster.destroy(&clone)).await;
        let reason = match destroyed {
            Ok(Ok(())) => return,
            Ok(Err(error)) => zdap_proto::refusal::chain(&error),
            Err(_) => format!("no answer within {} s", UNDO_DEADLINE.as_secs()),
        };
        context.output.warn(&format!(
            "clone {clone} could not be given back ({reason}); later: `zdap destroy {clone}`"
        ));
    }
}

/// Somebody who has pressed Ctrl-C does not wait for long.
const UNDO_DEADLINE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::tests::clone_view;

    #[test]
    fn a_clone_that_is_there_is_attached_by_its_id_in_the_place_of_its_resource() {
        let of = |subject, new| resource_of(subject, new).unwrap().to_string();
        assert_eq!(of("orders-k3v9x2mq", false), "orders");
        assert_eq!(of("orders-k3v9x2mq", true), "orders-k3v9x2mq");
        assert_eq!(of("orders", false), "orders");
    }

    #[test]
    fn the_json_of_attach_is_the_clone_the_override_and_the_stages() {
        let clone = clone_view("orders-k3v9x2mq", "2026-11-22T13:39:25Z", "2026-11-22T04:00:00Z");
        let stages = Stages {
            storage_ms: 12.5,
            total_ms: 12.5,
            ..Stages::default()
        };
        let document = Document {
            clone: &clone,
            r#override: "./docker-compose.override.yml".to_owned(),
            stages: &stages,
            considered: None,
        };
        assert_eq!(
            serde_json::to_string(&document).unwrap(),
            r#"{"id":"orders-k3v9x2mq","resource":"orders","node":"db1","owner":"ada@laptop","snapshot":"2026-11-22T04:00:00Z","created_at":"2026-11-22T13:39:25Z","state":"ready","pooled":false,"expires_at":null,"override":"./docker-compose.override.yml","stages":{"place_ms":0.0,"reserve_ms":0.0,"storage_ms":12.5,"start_ms":0.0,"ready_ms":0.0,"total_ms":12.5}}"#
        );
    }
}
