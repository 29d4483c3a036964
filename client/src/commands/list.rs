//! `zdap list resources|snaps|clones`: what the nodes have, as a tree, as YAML, or as JSON.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use futures_util::future::try_join_all;
use indicatif::BinaryBytes;
use serde::Serialize;
use zdap_proto::message::{CloneState, CloneView, ResourceView, SnapshotView};
use zdap_proto::name::{CloneId, NodeName, ResourceName, UserName};

use super::tree::Tree;
use super::{Found, Whose, ask_each, find_clones, relay, tell_silent};
use crate::cli::{Format, ListArguments};
use crate::cluster::Cluster;
use crate::compose::{self, ComposeService};
use crate::context::Context;
use crate::error::Failure;
use crate::node::NodeError;
use crate::origin::{Reached, Target};
use crate::project::Project;
use crate::words::Words;

/// Lists what can be cloned.
pub(super) async fn resources(context: &Context<'_>, arguments: &ListArguments) -> Result<(), Failure> {
    let words = Words::parse(&arguments.words)?;
    let mut scope = Scope::new(context, arguments, &words)?;
    let reached = context.reach().await?;
    context.output.doing("asking for the resources");
    let asked = ask_all(
        context,
        &reached,
        &words,
        async |cluster| cluster.resources().await,
        |view| &view.node,
    );
    let mut views: Vec<ResourceView> = asked.await?;
    views.sort_by(|a, b| (&a.node, &a.name).cmp(&(&b.node, &b.name)));
    views.dedup_by(|a, b| (&a.node, &a.name) == (&b.node, &b.name));
    views.retain(|view| scope.has(&view.name, None));
    scope.tell_hidden(context);
    if views.is_empty() {
        let hint = "an administrator describes them in files on a node";
        scope
            .tell_empty(context, arguments, &reached, "resources", hint)
            .await;
    }
    show(context, arguments.format, &views, |view| {
        let alias = view.alias.as_ref().map(|alias| format!(" ({alias})"));
        let newest = match view.snapshots.as_slice() {
            [] => "no snapshot yet".to_owned(),
            [only] => format!("{only}"),
            [newest, older @ ..] => format!("{newest} and {} older", older.len()),
        };
        vec![
            view.node.to_string(),
            format!("{}{}  {}", view.name, alias.unwrap_or_default(), view.image),
            newest,
        ]
    })
}

/// Lists the snapshots.
pub(super) async fn snapshots(context: &Context<'_>, arguments: &ListArguments) -> Result<(), Failure> {
    let words = Words::parse(&arguments.words)?;
    let mut scope = Scope::new(context, arguments, &words)?;
    let reached = context.reach().await?;
    context.output.doing("asking for the snapshots");
    let resource: Option<ResourceName> = words.subject.as_deref().map(str::parse).transpose()?;
    let ask = async |cluster: &Cluster| cluster.snapshots(resource.clone()).await;
    let mut views: Vec<SnapshotView> = ask_all(context, &reached, &words, ask, |view| &view.node).await?;
    let key = |view: &SnapshotView| {
        let newest_first = Reverse(view.taken_at);
        (view.node.clone(), view.resource.clone(), newest_first)
    };
    views.sort_by_key(key);
    views.dedup_by_key(|view| key(view));
    views.retain(|view| {
        let is_time = words.time.is_none_or(|time| time == view.taken_at);
        is_time && scope.has(&view.resource, None)
    });
    scope.tell_hidden(context);
    if views.is_empty() {
        let hint = "an administrator makes one on a node: `zdapd create snap RES`";
        scope
            .tell_empty(context, arguments, &reached, "snapshots", hint)
            .await;
    }
    show(context, arguments.format, &views, |view| {
        let clones = match view.clones {
            0 => String::new(),
            1 => ", 1 clone".to_owned(),
            clones => format!(", {clones} clones"),
        };
        vec![
            view.node.to_string(),
            view.resource.to_string(),
            format!("{}  {}{clones}", view.taken_at, BinaryBytes(view.size_bytes)),
        ]
    })
}

/// Lists our clones.
pub(super) async fn clones(context: &Context<'_>, arguments: &ListArguments) -> Result<(), Failure> {
    let words = Words::parse(&arguments.words)?;
    let mut scope = Scope::new(context, arguments, &words)?;
    let reached = context.reach().await?;
    context.output.doing("asking for the clones");
    let whose = match arguments.all {
        true => Whose::Everybodys,
        false => Whose::OursOrNamed,
    };
    let (mut found, silent) = find_clones(&reached, &words, whose).await?;
    tell_silent(context.output, &silent);
    found.retain(|found| scope.has(&found.clone.resource, Some(&found.clone)));
    found.sort_by(|a, b| {
        let key = |found: &Found| {
            let newest_first = Reverse((found.clone.snapshot, found.clone.created_at));
            (
                found.clone.node.clone(),
                found.clone.resource.clone(),
                newest_first,
            )
        };
        key(a).cmp(&key(b))
    });
    scope.tell_hidden(context);
    if found.is_empty() {
        let hint = "`zdap attach RES` or `zdap clone RES` makes one";
        scope
            .tell_empty(context, arguments, &reached, "clones", hint)
            .await;
    }
    if arguments.format == Format::Yaml && !context.output.is_json() {
        return context.output.data(&as_services(&scope, &found).await?, &());
    }
    let ours: BTreeSet<&UserName> = reached
        .clusters
        .iter()
        .filter_map(|cluster| cluster.identity().subject().owner())
        .collect();
    let views: Vec<&CloneView> = found.iter().map(|found| &found.clone).collect();
    show(context, arguments.format, &views, |view| {
        let attached = match scope.attached.contains(view.id.as_str()) {
            true => ", attached here",
            false => "",
        };
        let state = match view.state {
            CloneState::Ready => "",
            CloneState::Creating => ", still being made",
            CloneState::Destroying => ", on its way out",
        };
        let owner = match ours.contains(&view.owner) {
            true => String::new(),
            false => format!(", {}'s", view.owner),
        };
        vec![
            view.node.to_string(),
            view.resource.to_string(),
            view.snapshot.to_string(),
            format!(
                "{}  made {}{owner}{state}{attached}",
                view.id,
                view.created_at.format("%Y-%m-%dT%H:%M:%SZ")
            ),
        ]
    })
}

/// Which resources are shown: the named one, else those of the compose file, if there is one.
struct Scope {
    project: Option<Project>,
    services: Option<BTreeSet<String>>,
    attached: BTreeSet<String>,
    attached_resources: BTreeSet<String>,
    only_attached: bool,
    subject: Option<String>,
    hidden: BTreeSet<String>,
}

impl Scope {
    fn new(context: &Context<'_>, arguments: &ListArguments, words: &Words) -> Result<Self, Failure> {
        // Without --attached, the project only narrows the list: what is wrong in it is said and no more.
        let optional = |failure: Failure| match arguments.attached {
            true => Err(failure),
            false => {
                context.output.warn(&failure.message);
                Ok(())
            }
        };
        let project = match arguments.attached {
            true => Some(context.project()?),
            false => context
                .project_if_any()
                .or_else(|failure| optional(failure).map(|()| None))?,
        };
        let attached = project.as_ref().map_or(Ok(Vec::new()), Project::attached);
        let attached = attached.or_else(|error| optional(error.into()).map(|()| Vec::new()))?;
        let services = match &project {
            Some(project) if !arguments.all && words.subject.is_none() => Some(project.services()?),
            Some(_) | None => None,
        };
        Ok(Self {
            project,
            services: services.map(BTreeSet::from_iter),
            attached: attached.iter().map(|attached| attached.clone.clone()).collect(),
            attached_resources: attached
                .iter()
                .map(|attached| attached.resource.clone())
                .collect(),
            only_attached: arguments.attached,
            subject: words.subject.clone(),
            hidden: BTreeSet::new(),
        })
    }

    fn has(&mut self, resource: &ResourceName, clone: Option<&CloneView>) -> bool {
        let is_subject = match (&self.subject, clone) {
            (Some(subject), Some(clone)) => subject == clone.id.as_str() || subject == resource.as_str(),
            (Some(subject), None) => subject == resource.as_str(),
            (None, _) => true,
        };
        let is_attached = match clone {
            Some(clone) => self.attached.contains(clone.id.as_str()),
            None => self.attached_resources.contains(resource.as_str()),
        };
        if !is_subject || (self.only_attached && !is_attached) {
            return false;
        }
        let is_service = |services: &BTreeSet<String>| services.contains(resource.as_str());
        let shown = is_attached || self.services.as_ref().is_none_or(is_service);
        if !shown {
            self.hidden.insert(resource.to_string());
        }
        shown
    }

    /// Says that there is nothing, so that it is not taken for a failure; and of what, in case it is mistyped.
    async fn tell_empty(
        &self,
        context: &Context<'_>,
        arguments: &ListArguments,
        reached: &Reached,
        what: &str,
        hint: &str,
    ) {
        let is_talk = !context.output.is_json() && arguments.format != Format::Json;
        if !self.hidden.is_empty() || !is_talk {
            return;
        }
        context.output.say(&match &self.subject {
            Some(subject) if subject.parse::<CloneId>().is_err() && !is_resource(reached, subject).await => {
                format!(
                    "there is no resource `{subject}`; `zdap list resources --all` shows those that there are"
                )
            }
            Some(subject) => format!("no {what} of `{subject}`; {hint}"),
            None => format!("no {what}; {hint}"),
        });
    }

    fn tell_hidden(&self, context: &Context<'_>) {
        if !self.hidden.is_empty() {
            let names: Vec<&str> = self.hidden.iter().map(String::as_str).collect();
            context.output.say(&format!(
                "not services of this project: {}; `--all` shows them too",
                names.join(", ")
            ));
        }
    }
}

/// Asks every cluster, and leaves out what is on other nodes than the pinned one.
async fn ask_all<T: Clone>(
    context: &Context<'_>,
    reached: &Reached,
    words: &Words,
    ask: impl AsyncFn(&Cluster) -> Result<Vec<T>, NodeError>,
    node: fn(&T) -> &NodeName,
) -> Result<Vec<T>, Failure> {
    let targets = reached.targets(words.pin.as_ref()).await?;
    let ask = async |target: &Target| {
        let mut views = ask(&target.cluster).await?;
        views.retain(|view| target.counts(node(view)));
        Ok(views)
    };
    Ok(ask_each(context.output, &targets, ask).await?.concat())
}

/// Returns whether there is such a resource, as far as can be said.
async fn is_resource(reached: &Reached, name: &str) -> bool {
    let asked = reached
        .clusters
        .iter()
        .map(async |cluster| cluster.resources().await);
    let is_it = |view: &ResourceView| view.name.as_str() == name || view.alias.as_deref() == Some(name);
    match try_join_all(asked).await {
        Ok(views) => views.iter().flatten().any(is_it),
        Err(_) => true,
    }
}

fn show<T: Serialize>(
    context: &Context<'_>,
    format: Format,
    views: &[T],
    row: impl Fn(&T) -> Vec<String>,
) -> Result<(), Failure> {
    match (context.output.is_json(), format) {
        (true, _) | (false, Format::Json) => context.output.document(&views),
        (false, Format::Yaml) => {
            let text = serde_yaml::to_string(views)
                .map_err(|error| Failure::caused("cannot write as YAML", &error))?;
            context.output.data(&text, &())
        }
        (false, Format::Tree) => {
            let text = Tree::of_rows(views.iter().map(row)).to_string();
            context.output.data(&text, &())
        }
    }
}

/// The clones as compose services, a YAML document each.
async fn as_services(scope: &Scope, found: &[Found]) -> Result<String, Failure> {
    let compose_text = match &scope.project {
        Some(project) => compose::read(&project.compose)?,
        None => String::new(),
    };
    let environment = scope.project.as_ref().map(Project::environment);
    let variable = |name: &str| environment.as_ref().and_then(|environment| environment(name));
    let mut documents = Vec::new();
    for Found { cluster, clone } in found {
        let name = clone.resource.as_str();
        let service = compose::service(&compose_text, name, &variable);
        let service = service.unwrap_or_else(|_| ComposeService::new(name));
        let relay = relay::of(
            relay::draft(&service, &clone.resource),
            &service,
            clone,
            &cluster.servers(&clone.node).await,
        );
        documents.push(format!(
            "# {} needs an identity in {}: `zdap attach --new=false {name} {} @{}` issues it\n{}",
            clone.id,
            relay.identity_dir,
            clone.snapshot,
            clone.node,
            relay.as_services()?
        ));
    }
    Ok(documents.join("---\n"))
}
