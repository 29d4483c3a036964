//! Completion in the shell: what could be meant, by asking the project and the nodes. Silent when it cannot tell.

use std::ffi::OsStr;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use clap_complete::CompletionCandidate;
use futures_util::future::join_all;
use zdap_proto::message::CloneView;
use zdap_proto::transport::client_endpoint;

use crate::cluster::Cluster;
use crate::node::NodeError;
use crate::origin::Origins;
use crate::project::Project;
use crate::settings::Home;

/// Completes the words of `attach` and `clone`: resources, `@node`s, times of snapshots.
pub fn words(current: &OsStr) -> Vec<CompletionCandidate> {
    complete(current, |text| match kind(text) {
        Kind::Node => nodes(),
        Kind::Time => times(),
        Kind::Name => resource_names(),
    })
}

/// Completes the words of `list`: resources, `@node`s.
pub fn resources(current: &OsStr) -> Vec<CompletionCandidate> {
    complete(current, |text| match kind(text) {
        Kind::Node => nodes(),
        Kind::Time | Kind::Name => resource_names(),
    })
}

/// Completes the words of commands on clones: ids and resources of our own, `@node`s, times.
pub fn clones(current: &OsStr) -> Vec<CompletionCandidate> {
    complete(current, |text| {
        let wanted = kind(text);
        if wanted == Kind::Node {
            return nodes();
        }
        let clones = ask(async |cluster| Ok(cluster.clones(false).await?.clones));
        let values = |clone: CloneView| match wanted {
            Kind::Time => vec![clone.snapshot.to_string()],
            Kind::Name | Kind::Node => vec![clone.resource.to_string(), clone.id.to_string()],
        };
        clones.into_iter().flatten().flat_map(values).collect()
    })
}

/// Completes the addresses of origins.
pub fn origins(current: &OsStr) -> Vec<CompletionCandidate> {
    complete(current, |_| {
        let settings = home().and_then(|home| home.settings().ok()).unwrap_or_default();
        let origins = settings.origins.into_iter();
        origins.map(|origin| origin.address).collect()
    })
}

/// Completes the names of attached services.
pub fn attached(current: &OsStr) -> Vec<CompletionCandidate> {
    complete(current, |_| {
        let attached = project().and_then(|project| project.attached().ok());
        attached
            .unwrap_or_default()
            .into_iter()
            .map(|attached| attached.service)
            .collect()
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Node,
    Time,
    Name,
}

/// Times begin with the year; a resource whose name does, too, is completed once it differs.
fn kind(text: &str) -> Kind {
    match text.bytes().next() {
        Some(b'@') => Kind::Node,
        Some(byte) if byte.is_ascii_digit() => Kind::Time,
        Some(_) | None => Kind::Name,
    }
}

fn complete(current: &OsStr, candidates: impl FnOnce(&str) -> Vec<String>) -> Vec<CompletionCandidate> {
    let Some(current) = current.to_str() else {
        return Vec::new();
    };
    let mut candidates = candidates(current);
    candidates.retain(|candidate| candidate.starts_with(current));
    candidates.sort();
    candidates.dedup();
    candidates.into_iter().map(CompletionCandidate::new).collect()
}

fn resource_names() -> Vec<String> {
    let resources = ask(async |cluster| cluster.resources().await);
    resources
        .into_iter()
        .flatten()
        .map(|view| view.name.to_string())
        .collect()
}

fn nodes() -> Vec<String> {
    let nodes = ask(async |cluster| Ok(cluster.nodes().await?.to_vec()));
    let nodes = nodes.into_iter().flatten();
    nodes.map(|node| format!("@{}", node.name)).collect()
}

fn times() -> Vec<String> {
    let snapshots = ask(async |cluster| cluster.snapshots(None).await);
    snapshots
        .into_iter()
        .flatten()
        .map(|view| view.taken_at.to_string())
        .collect()
}

/// Asks the clusters and takes what comes in time.
fn ask<T>(question: impl AsyncFn(&Cluster) -> Result<T, NodeError>) -> Vec<T> {
    let asked = async {
        let origins = Origins::new(client_endpoint().ok()?, &home()?, Arc::default()).ok()?;
        let reached = origins.reach().await.ok()?;
        let answers = join_all(reached.clusters.iter().map(|cluster| question(cluster))).await;
        Some(answers.into_iter().flatten().collect())
    };
    in_time(asked).flatten().unwrap_or_default()
}

fn in_time<T>(work: impl Future<Output = T>) -> Option<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .ok()?;
    runtime.block_on(async { tokio::time::timeout(DEADLINE, work).await.ok() })
}

fn home() -> Option<Home> {
    Home::find(|name| std::env::var_os(name)).ok()
}

fn project() -> Option<Project> {
    Project::find(&std::env::current_dir().ok()?, |name| std::env::var(name).ok()).ok()
}

/// Somebody has pressed Tab.
const DEADLINE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_begins_as_typed_is_offered_and_once() {
        let all = || {
            ["users", "orders", "orders", "ordered"]
                .map(str::to_owned)
                .to_vec()
        };
        let offered = complete(OsStr::new("ord"), |_| all());
        let offered: Vec<_> = offered.iter().map(|candidate| candidate.get_value()).collect();
        assert_eq!(offered, ["ordered", "orders"]);
    }

    #[test]
    fn what_a_word_is_shows_by_its_first_letter() {
        assert_eq!(kind("@d"), Kind::Node);
        assert_eq!(kind("2026"), Kind::Time);
        assert_eq!(kind(""), Kind::Name);
    }
}
