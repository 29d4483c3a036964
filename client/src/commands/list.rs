//! `zdap list resources|snaps|clones`: what the nodes have, as a tree, as YAML, or as JSON.

mod scope;

use std::cmp::Reverse;
use std::collections::BTreeSet;

use indicatif::BinaryBytes;
use serde::Serialize;
use zdap_proto::message::{CloneState, CloneView, ResourceView, SnapshotView};
use zdap_proto::name::{CloneId, NodeName, ResourceName, UserName};

use self::scope::Scope;
use super::known::{Known, silent_nodes};
use super::tree::Tree;
use super::{Found, Whose, ask_each, find_clones, no_clone, relay, tell_silent};
use crate::cli::{Format, ListArguments};
use crate::cluster::Cluster;
use crate::compose::{self, ComposeService};
use crate::context::Context;
use crate::error::Failure;
use crate::node::NodeError;
use crate::origin::{Reached, Silent, Target};
use crate::project::Project;
use crate::words::Words;

/// Lists what can be cloned.
pub(super) async fn resources(context: &Context<'_>, arguments: &ListArguments) -> Result<(), Failure> {
    let words = Words::parse(&arguments.words)?;
    let mut scope = Scope::new(context, arguments, &words)?;
    let reached = context.reach().await?;
    context.output.doing("asking for the resources");
    if let Some(subject) = &words.subject {
        scope.resource = Some(Known::ask(&reached, words.pin.as_ref()).await?.called(subject)?);
    }
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
        scope.tell_empty(context, arguments, |resource| match resource {
            Some(resource) if arguments.attached => format!("`{resource}` is not attached in this project"),
            Some(resource) => format!("no node that was asked has `{resource}`"),
            None => "no resources; an administrator describes them in files on a node".to_owned(),
        });
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
    if let Some(subject) = &words.subject {
        scope.resource = Some(Known::ask(&reached, words.pin.as_ref()).await?.called(subject)?);
    }
    let resource = scope.resource.clone();
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
        scope.tell_empty(context, arguments, |resource| {
            none_of("snapshots", resource, hint)
        });
    }
    show(context, arguments.format, &views, |view| {
        let clones = match view.clones {
            None | Some(0) => String::new(),
            Some(1) => ", 1 clone".to_owned(),
            Some(clones) => format!(", {clones} clones"),
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
    let mut words = Words::parse(&arguments.words)?;
    let mut scope = Scope::new(context, arguments, &words)?;
    let reached = context.reach().await?;
    context.output.doing("asking for the clones");
    let mut without_resource = None;
    if let Some(subject) = &words.subject {
        let known = Known::ask(&reached, words.pin.as_ref()).await?;
        match known.find(subject)? {
            Some(resource) => {
                words.subject = Some(resource.to_string());
                scope.resource = Some(resource);
            }
            // A clone, or a resource that is gone while clones of it are not.
            None => without_resource = Some(known),
        }
    }
    let whose = match arguments.all {
        true => Whose::Everybodys,
        false => Whose::OursOrNamed,
    };
    let (mut found, silent) = find_clones(&reached, &words, whose).await?;
    if let Some(known) = without_resource.filter(|_| found.is_empty()) {
        let subject = words.subject()?;
        return Err(match subject.parse::<CloneId>() {
            Ok(_) => no_clone(&words, None, &silent),
            Err(_) => known.unknown(subject),
        });
    }
    if found.is_empty() && words.pin.is_some() && !silent.is_empty() {
        return Err(no_clone(&words, scope.resource.as_ref(), &silent));
    }
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
        scope.tell_empty(context, arguments, |resource| none_of("clones", resource, hint));
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

fn none_of(what: &str, resource: Option<&ResourceName>, hint: &str) -> String {
    match resource {
        Some(resource) => format!("no {what} of `{resource}`; {hint}"),
        None => format!("no {what}; {hint}"),
    }
}

/// Asks every cluster, and leaves out what is on other nodes than the pinned one. Nodes that do not answer the others are
/// named.
async fn ask_all<T: Clone>(
    context: &Context<'_>,
    reached: &Reached,
    words: &Words,
    ask: impl AsyncFn(&Cluster) -> Result<Vec<T>, NodeError>,
    node: fn(&T) -> &NodeName,
) -> Result<Vec<T>, Failure> {
    let targets = reached.targets(words.pin.as_ref()).await?;
    let ask = async |target: &Target| {
        let (mut views, nodes) = tokio::try_join!(ask(&target.cluster), target.cluster.nodes())?;
        views.retain(|view| target.counts(node(view)));
        Ok((views, silent_nodes(target, nodes, LAST_SAID)))
    };
    let answers = ask_each(context.output, &targets, ask).await?;
    let (views, silent): (Vec<Vec<T>>, Vec<Vec<Silent>>) = answers.into_iter().unzip();
    tell_silent(context.output, &silent.concat());
    Ok(views.concat())
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

/// What a node that was alive until just now has is listed.
const LAST_SAID: &str = ": what is shown of it is what it last said";
