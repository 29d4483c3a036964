//! What is there: resources, snapshots, clones and nodes, of this node or of all.
//!
//! What nodes tell of themselves without being asked is answered from memory; clones alone are asked for.

use std::sync::Arc;

use futures_util::future::join_all;
use zdap_proto::digest::NodeReport;
use zdap_proto::message::{
    Answer, CloneRecord, CloneView, NodeState, NodeView, Request, ResourceView, SilentNode, SnapshotView,
};
use zdap_proto::name::{NodeName, ResourceName, SnapshotId, SnapshotTime};

use super::asker::{Asker, Scope};
use super::finding::{ANSWERED, others, silence};
use super::{count, name_in, real_name};
use crate::catalog::{Catalog, Facts};
use crate::cluster::Seen;
use crate::gossip::MemberState;
use crate::node::Node;
use crate::peers::Trouble;
use crate::resource::Resource;

/// Returns the resources of this node, and of the others that are not down.
pub(super) fn resources(node: &Node, scope: Scope) -> Vec<ResourceView> {
    let all = node.bases.list();
    let view = |resource: &Arc<Resource>| ResourceView {
        name: resource.name.clone(),
        alias: resource.alias.clone(),
        image: resource.docker.image.clone(),
        node: node.name.clone(),
        snapshots: newest_first(all.iter().map(|(snapshot, _)| snapshot), &resource.name),
    };
    let mut views: Vec<_> = node.catalogue.borrow().resources.values().map(view).collect();
    for (name, catalog) in catalogs(node, scope) {
        let Facts {
            resources, snapshots, ..
        } = &catalog.facts;
        views.extend(resources.iter().map(|(resource, facts)| ResourceView {
            name: resource.clone(),
            alias: facts.alias.clone(),
            image: facts.image.clone(),
            node: name.clone(),
            snapshots: newest_first(snapshots.keys(), resource),
        }));
    }
    views
}

/// Returns the snapshots of this node, and of the others that are not down.
pub(super) fn snapshots(node: &Node, scope: Scope, resource: Option<&ResourceName>) -> Vec<SnapshotView> {
    let clones = node.clones.list();
    let here = resource.map(|name| real_name(node, name.clone()));
    let is_wanted = |snapshot: &SnapshotId, name: Option<&ResourceName>| {
        name.is_none_or(|name| &snapshot.base.resource == name)
    };
    let mut views: Vec<_> = node
        .bases
        .list()
        .into_iter()
        .filter(|(snapshot, _)| is_wanted(snapshot, here.as_ref()))
        .map(|(snapshot, bytes)| snapshot_view(&node.name, Some(&clones), &snapshot, bytes))
        .collect();
    for (name, catalog) in catalogs(node, scope) {
        let there = resource.map(|resource| name_in(&catalog.facts, resource).unwrap_or(resource));
        let wanted = catalog
            .facts
            .snapshots
            .iter()
            .filter(|(snapshot, _)| is_wanted(snapshot, there));
        views.extend(wanted.map(|(snapshot, bytes)| snapshot_view(&name, None, snapshot, *bytes)));
    }
    views
}

/// Returns the clones of this node, and of the others as they say within the deadline; names those that do not.
pub(super) async fn clones(
    node: &Node,
    scope: Scope,
    asker: &Asker,
    resource: Option<ResourceName>,
    all_owners: bool,
) -> (Vec<CloneView>, Vec<SilentNode>) {
    let mut clones = clones_here(node, asker, resource.clone(), all_owners);
    if scope == Scope::Here {
        return (clones, Vec::new());
    }
    let (others, mut silent) = others(node);
    let request = Request::ListClones { resource, all_owners };
    let asked = others.iter().map(|other| async {
        match node.peers.ask(other, &asker.subject, &request, ANSWERED).await {
            Ok(Answer::Clones { clones, .. }) => Ok(clones),
            Ok(_) => Err(Trouble::OddAnswer.of(other)),
            Err(error) => Err(error),
        }
    });
    for result in join_all(asked).await {
        match result {
            Ok(theirs) => clones.extend(theirs),
            Err(error) => silent.push(silence(&error)),
        }
    }
    for clone in clones.iter().filter(|clone| clone.node != node.name) {
        node.located.note(&clone.id, &clone.node);
    }
    silent.sort_by(|a, b| a.node.cmp(&b.node));
    (clones, silent)
}

/// Returns every node, or this one alone, as far as it is known here.
pub(super) fn nodes(node: &Node, scope: Scope) -> Vec<NodeView> {
    let view = node.cluster.view();
    let mut nodes: Vec<_> = match scope {
        Scope::Here => Vec::new(),
        Scope::Cluster => view
            .members
            .iter()
            .filter(|(name, _)| **name != node.name)
            .map(|(name, seen)| other_node(name, seen))
            .collect(),
    };
    nodes.push(this_node(node, view.members.get(&node.name)));
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    nodes
}

/// Makes the view of a snapshot; `clones` are those of its node, if that is this one.
pub(super) fn snapshot_view(
    node: &NodeName,
    clones: Option<&[CloneRecord]>,
    snapshot: &SnapshotId,
    size_bytes: u64,
) -> SnapshotView {
    SnapshotView {
        resource: snapshot.base.resource.clone(),
        taken_at: snapshot.taken_at,
        node: node.clone(),
        clones: clones.map(|clones| count(clones.iter().filter(|clone| &clone.snapshot == snapshot).count())),
        size_bytes,
    }
}

fn clones_here(
    node: &Node,
    asker: &Asker,
    resource: Option<ResourceName>,
    all_owners: bool,
) -> Vec<CloneView> {
    let resource = resource.map(|name| real_name(node, name));
    let mut clones = node.clones.list();
    clones.retain(|clone| {
        (all_owners || clone.owner == asker.name)
            && resource.as_ref().is_none_or(|name| clone.resource() == name)
    });
    clones.iter().map(|clone| clone.view(&node.name)).collect()
}

/// Returns what the other nodes told of themselves, but for those that are down.
fn catalogs(node: &Node, scope: Scope) -> Vec<(NodeName, Arc<Catalog>)> {
    if scope == Scope::Here {
        return Vec::new();
    }
    let view = node.cluster.view();
    let others = view
        .members
        .iter()
        .filter(|(name, seen)| **name != node.name && seen.state != MemberState::Down);
    others
        .filter_map(|(name, seen)| Some((name.clone(), Arc::clone(seen.catalog.as_ref()?))))
        .collect()
}

fn newest_first<'a>(
    snapshots: impl Iterator<Item = &'a SnapshotId>,
    resource: &ResourceName,
) -> Vec<SnapshotTime> {
    let of = snapshots.filter(|snapshot| &snapshot.base.resource == resource);
    let mut times: Vec<SnapshotTime> = of.map(|snapshot| snapshot.taken_at).collect();
    times.sort_unstable_by(|a, b| b.cmp(a));
    times
}

fn other_node(name: &NodeName, seen: &Seen) -> NodeView {
    let digest = seen.digest.as_ref().map(|heard| &heard.digest);
    let report = digest.map(|digest| digest.report.clone()).unwrap_or_default();
    let facts = seen.catalog.as_ref().map(|catalog| &catalog.facts);
    NodeView {
        name: name.clone(),
        address: seen.host_port(),
        state: match seen.state {
            MemberState::Alive if report.flags.draining => NodeState::Draining,
            MemberState::Alive => NodeState::Alive,
            MemberState::Suspect => NodeState::Suspect,
            MemberState::Down => NodeState::Down,
        },
        generation: digest.map_or(0, |digest| digest.generation),
        clones: report.clones.into(),
        snapshots: count(facts.map_or(0, |facts| facts.snapshots.len())),
        free_bytes: mebibytes(report.pool_free_mib),
        total_bytes: mebibytes(report.pool_total_mib),
        available_memory_bytes: mebibytes(report.memory_free_mib),
        total_memory_bytes: mebibytes(report.memory_total_mib),
        load: f64::from(report.load_percent) / 100.0,
        resources: facts.map_or_else(Vec::new, |facts| facts.resources.keys().cloned().collect()),
        version: digest.map_or_else(String::new, |_| version(&report)),
    }
}

/// What this node knows of itself is newer than what it last said.
fn this_node(node: &Node, seen: Option<&Seen>) -> NodeView {
    let capacity = *node.capacity.borrow();
    let machine = node.figures.read();
    NodeView {
        name: node.name.clone(),
        address: node.address.clone(),
        state: match node.cluster.is_draining() {
            true => NodeState::Draining,
            false => NodeState::Alive,
        },
        generation: seen
            .and_then(|seen| seen.digest.as_ref())
            .map_or(0, |heard| heard.digest.generation),
        clones: count(node.clones.list().len()),
        snapshots: count(node.bases.list().len()),
        free_bytes: capacity.free_bytes,
        total_bytes: capacity.total_bytes,
        available_memory_bytes: machine.available_memory_bytes,
        total_memory_bytes: machine.total_memory_bytes,
        load: f64::from(machine.load_percent()) / 100.0,
        resources: node.catalogue.borrow().resources.keys().cloned().collect(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

fn mebibytes(count: u32) -> u64 {
    u64::from(count) << 20
}

fn version(report: &NodeReport) -> String {
    let [major, minor, patch] = report.software;
    format!("{major}.{minor}.{patch}")
}
