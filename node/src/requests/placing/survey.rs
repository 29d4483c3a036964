//! What is known here of every node as a place for one clone.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;
use zdap_proto::digest::{NodeDigest, NodeReport};
use zdap_proto::name::{NodeName, ResourceName, SnapshotId, SnapshotTime};
use zdap_proto::refusal::{Refusal, RefusalKind};

use super::super::name_in;
use super::{Wanted, locked};
use crate::catalog::Facts;
use crate::cluster::report::figures;
use crate::cluster::{Seen, View};
use crate::gossip::MemberState;
use crate::node::Node;
use crate::placement::{self, Considered, Demand, Known, Outcome, Ranking, Reason, Stock, Wish};
use crate::resource::Resource;

/// The nodes, and what is asked of them.
pub(super) struct Survey {
    /// Its name, also where its alias was given.
    pub(super) resource: ResourceName,
    /// What one clone is thought to take.
    pub(super) demand: Demand,
    wish: Wish,
    places: Vec<Place>,
}

struct Place {
    node: NodeName,
    state: MemberState,
    report: Option<NodeReport>,
    stock: Held,
    debits: Demand,
}

enum Held {
    Unknown,
    Nothing,
    Snapshots(Vec<SnapshotTime>),
}

impl Survey {
    /// Looks at all nodes that are known; the resource is called by its [`real_name`].
    pub(super) fn of(node: &Node, wanted: &Wanted, pinned: Option<NodeName>) -> Self {
        let view = node.cluster.view();
        let own = Own::of(node, &wanted.resource);
        let told = || others(&view, node).flatten();
        let resource = wanted.resource.clone();
        let of_resource = || told().filter_map(|facts| facts.resources.get(&resource));
        let own_facts = view
            .members
            .get(&node.name)
            .and_then(|seen| seen.catalog.as_ref()?.facts.resources.get(&resource));
        let memory = match &own {
            Some(own) => own.resource.limits.memory_bytes,
            None => of_resource().find_map(|facts| facts.clone_memory_bytes),
        };
        let is_wanted = |id: &SnapshotId| {
            id.base.resource == resource && wanted.snapshot.is_none_or(|time| time == id.taken_at)
        };
        let own_snapshots = own.iter().flat_map(|own| &own.snapshots);
        let newest = told()
            .flat_map(|facts| &facts.snapshots)
            .chain(own_snapshots.map(|(id, bytes)| (id, bytes)))
            .filter(|(id, _)| is_wanted(id))
            .max_by_key(|(id, _)| id.taken_at);
        let demand = Demand::of_clone(memory, newest.map_or(0, |(_, bytes)| *bytes));
        let wish = Wish {
            snapshot: wanted.snapshot,
            node: pinned,
            period: own_facts
                .into_iter()
                .chain(of_resource())
                .find_map(|facts| facts.period_seconds)
                .map(Duration::from_secs),
            clone: demand,
            now: node.clock.now(),
        };
        let places = view.members.iter().map(|(name, seen)| match *name == node.name {
            true => Place::here(node, own.as_ref()),
            false => Place::elsewhere(node, name, seen, &resource),
        });
        Self {
            places: places.collect(),
            resource,
            demand,
            wish,
        }
    }

    /// Ranks them.
    pub(super) fn rank(&self, rng: &mut impl Rng) -> Ranking {
        let known = self.places.iter().map(|place| Known {
            node: &place.node,
            state: place.state,
            report: place.report.as_ref(),
            stock: match &place.stock {
                Held::Unknown => Stock::Unknown,
                Held::Nothing => Stock::None,
                Held::Snapshots(snapshots) => Stock::Snapshots(snapshots),
            },
            debits: place.debits,
            has_warm: false,
        });
        placement::rank(known, &self.wish, rng)
    }

    /// Returns the snapshot that a clone at this node would be of.
    pub(super) fn snapshot_at(&self, node: &NodeName) -> Option<SnapshotTime> {
        let place = self.places.iter().find(|place| place.node == *node)?;
        match &place.stock {
            Held::Unknown | Held::Nothing => None,
            Held::Snapshots(snapshots) => self.wish.snapshot.or_else(|| snapshots.iter().max().copied()),
        }
    }

    /// Returns whether no more than one node comes into question.
    pub(super) fn has_no_choice(&self) -> bool {
        self.wish.node.is_some() || self.places.len() == 1
    }

    /// Says why the clone is nowhere: every node with its reason. Those that have `failed` may do so again.
    pub(super) fn refusal(&self, considered: &[Considered], failed: &[NodeName]) -> Refusal {
        let mut lines = Vec::new();
        let mut kind = RefusalKind::NotFound;
        let (mut has_no_snapshot, mut lacks_room) = (true, false);
        let is_of_interest = |node: &NodeName| self.wish.node.as_ref().is_none_or(|pinned| pinned == node);
        let mut considered: Vec<_> = considered
            .iter()
            .filter(|considered| is_of_interest(&considered.node))
            .collect();
        considered.sort_by(|a, b| a.node.cmp(&b.node));
        for Considered { node, outcome, .. } in considered {
            let Outcome::Out(reason) = outcome else { continue };
            lines.push(format!("\n  {node}: {reason}"));
            has_no_snapshot &= matches!(reason, Reason::NoSnapshot | Reason::NoResource);
            lacks_room |= kind_of(reason) == RefusalKind::Full
                && !matches!(reason, Reason::Draining | Reason::ReadOnly);
            let own = match failed.contains(node) {
                true => RefusalKind::Failed,
                false => kind_of(reason),
            };
            kind = match (kind, own) {
                (RefusalKind::Full, _) | (_, RefusalKind::Full) => RefusalKind::Full,
                (RefusalKind::Failed, _) | (_, RefusalKind::Failed) => RefusalKind::Failed,
                (RefusalKind::Unavailable, _) | (_, RefusalKind::Unavailable) => RefusalKind::Unavailable,
                (kind, _) => kind,
            };
        }
        let resource = &self.resource;
        let refusal = Refusal::new(kind, format!("no node can host `{resource}`{}", lines.concat()));
        let hint = match kind {
            RefusalKind::Full if lacks_room => {
                "free space by destroying clones that nobody uses; `zdap list clones` shows yours".to_owned()
            }
            RefusalKind::NotFound if has_no_snapshot => {
                format!("`zdapd create snap {resource}` on a node makes a snapshot")
            }
            RefusalKind::NotFound => {
                format!("`zdap list snaps {resource}` shows what there is, `zdap list nodes` the nodes")
            }
            RefusalKind::Full
            | RefusalKind::Unavailable
            | RefusalKind::Invalid
            | RefusalKind::Forbidden
            | RefusalKind::Conflict
            | RefusalKind::Timeout
            | RefusalKind::Failed => "`zdap list nodes` shows how the nodes are".to_owned(),
        };
        refusal.with_hint(hint)
    }
}

/// Returns the name of the resource that is called so, here or on another node, or has that alias. Refused if none serves
/// it and all have said what they serve; what those serve that are not met yet is not known.
pub(super) fn real_name(node: &Node, name: &ResourceName) -> Result<ResourceName, Refusal> {
    if let Some(own) = node.catalogue.borrow().find(name) {
        return Ok(own.name.clone());
    }
    let view = node.cluster.view();
    let told = || others(&view, node).flatten();
    match told().find_map(|facts| name_in(facts, name)) {
        Some(name) => Ok(name.clone()),
        None if node.cluster.is_meeting() || others(&view, node).any(|facts| facts.is_none()) => {
            Ok(name.clone())
        }
        None => Err(no_resource(node, told(), name)),
    }
}

/// Returns what each of the other nodes serves, if it has said so.
fn others<'a>(view: &'a View, node: &'a Node) -> impl Iterator<Item = Option<&'a Facts>> {
    let others = view.members.iter().filter(|(name, _)| **name != node.name);
    others.map(|(_, seen)| seen.catalog.as_ref().map(|catalog| &catalog.facts))
}

impl Place {
    /// What this node knows of itself is newer than what it last said.
    fn here(node: &Node, own: Option<&Own>) -> Self {
        let now = Instant::now().into_std();
        let report = node.reservations.report(now, |tokens| figures(node, tokens));
        let held = |own: &Own| {
            let times = own.snapshots.iter().map(|(snapshot, _)| snapshot.taken_at);
            Held::Snapshots(times.collect())
        };
        Self {
            node: node.name.clone(),
            state: MemberState::Alive,
            report: Some(report),
            stock: own.map_or(Held::Nothing, held),
            debits: Demand::default(),
        }
    }

    fn elsewhere(node: &Node, name: &NodeName, seen: &Seen, resource: &ResourceName) -> Self {
        let digest = seen.digest.as_ref().map(|heard| &heard.digest);
        let stock = match &seen.catalog {
            None => Held::Unknown,
            Some(catalog) if !catalog.facts.resources.contains_key(resource) => Held::Nothing,
            Some(catalog) => {
                let of = |id: &&SnapshotId| &id.base.resource == resource;
                let times = catalog.facts.snapshots.keys().filter(of).map(|id| id.taken_at);
                Held::Snapshots(times.collect())
            }
        };
        let now = Instant::now().into_std();
        let mut debits = locked(&node.placing.debits);
        let pending = |digest: &NodeDigest| {
            debits.heard(digest, now);
            debits.pending(digest, now)
        };
        Self {
            node: name.clone(),
            state: seen.state,
            report: digest.map(|digest| digest.report.clone()),
            stock,
            debits: digest.map(pending).unwrap_or_default(),
        }
    }
}

/// The resource as this node itself serves it.
struct Own {
    resource: Arc<Resource>,
    /// Its snapshots, each with the bytes it refers to.
    snapshots: Vec<(SnapshotId, u64)>,
}

impl Own {
    fn of(node: &Node, name: &ResourceName) -> Option<Self> {
        let resource = node.catalogue.borrow().find(name).cloned()?;
        let mut snapshots = node.bases.list();
        snapshots.retain(|(snapshot, _)| snapshot.base.resource == resource.name);
        Some(Self { resource, snapshots })
    }
}

fn kind_of(reason: &Reason) -> RefusalKind {
    match reason {
        Reason::Draining
        | Reason::ReadOnly
        | Reason::Full
        | Reason::Pool { .. }
        | Reason::Memory { .. }
        | Reason::Outpaced { .. } => RefusalKind::Full,
        Reason::Down
        | Reason::Suspect
        | Reason::Unheard
        | Reason::Stale
        | Reason::Incompatible { .. }
        | Reason::Uncharted
        | Reason::NoAnswer
        | Reason::Said(_) => RefusalKind::Unavailable,
        Reason::NotPinned
        | Reason::NoSuchNode
        | Reason::NoResource
        | Reason::NoSnapshot
        | Reason::NoSuchSnapshot { .. }
        | Reason::TooOld { .. } => RefusalKind::NotFound,
    }
}

fn no_resource<'a>(node: &Node, told: impl Iterator<Item = &'a Facts>, name: &ResourceName) -> Refusal {
    let mut names: BTreeSet<String> = told
        .flat_map(|facts| facts.resources.keys().map(ToString::to_string))
        .collect();
    let catalogue = node.catalogue.borrow();
    names.extend(catalogue.resources.keys().map(ToString::to_string));
    let known = match names.is_empty() {
        true => "no node has any".to_owned(),
        false => format!("the nodes have {}", Vec::from_iter(names).join(", ")),
    };
    Refusal::new(
        RefusalKind::NotFound,
        format!("there is no resource `{name}`; {known}"),
    )
    .with_hint("`zdap list resources --all` shows those of every node")
}
