//! What this node says of itself: its figures, and its resources, snapshots and users.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;
use zdap_proto::digest::{NodeFlags, NodeReport};
use zdap_proto::name::ResourceName;

use crate::catalog::{Catalog, Facts, PoolSize, ResourceFacts};
use crate::enrol;
use crate::node::Node;
use crate::reserve::Tokens;
use crate::resource::Resource;
use crate::resource::catalogue::Catalogue;

/// Looks at this node twice a second, and at once when something has changed, until dropped.
pub async fn keep_telling(node: Arc<Node>) {
    let mut catalogue = node.catalogue.clone();
    let mut resources = Resources::default();
    loop {
        tell(&node, &mut resources);
        tokio::select! {
            biased;
            () = node.cluster.board.changed.notified() => {}
            () = node.clones.changed() => {}
            () = node.bases.changed() => {}
            Ok(()) = catalogue.changed() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// What is told of the resources of a catalogue. Schedules take a while to think through.
#[derive(Debug, Default)]
pub struct Resources {
    of: Option<Arc<Catalogue>>,
    facts: BTreeMap<ResourceName, ResourceFacts>,
}

/// Tells how this node is now.
pub fn tell(node: &Node, resources: &mut Resources) {
    let catalogue = node.catalogue.borrow().clone();
    if !resources
        .of
        .as_ref()
        .is_some_and(|of| Arc::ptr_eq(of, &catalogue))
    {
        let facts = catalogue.resources.values();
        resources.facts = facts
            .map(|resource| (resource.name.clone(), facts_of(resource)))
            .collect();
        resources.of = Some(catalogue);
    }
    let board = &node.cluster.board;
    let users = node.invites.users().into_iter();
    board.note_users(&users.chain(enrol::owners(node)).collect());
    let facts = Facts {
        address: node.address.clone(),
        resources: resources.facts.clone(),
        snapshots: node.bases.list().into_iter().collect(),
        users: board.users.all(),
        revoked: board.revoked.all(),
        forgotten: board.forgotten.all(),
    };
    let catalog = node.cluster.tell(facts);
    node.cluster.publish(report(node, &catalog));
}

fn facts_of(resource: &Resource) -> ResourceFacts {
    ResourceFacts {
        alias: resource.alias.clone(),
        image: resource.docker.image.clone(),
        period_seconds: resource.cron.as_ref().map(|cron| cron.longest_period().as_secs()),
        clone_memory_bytes: resource.limits.memory_bytes,
        pool: resource.clone_pool.as_ref().map(|pool| PoolSize {
            min: pool.min_clones,
            max: pool.max_clones,
        }),
    }
}

fn report(node: &Node, catalog: &Catalog) -> NodeReport {
    let now = Instant::now().into_std();
    NodeReport {
        catalog_version: catalog.version.number,
        catalog_hash: catalog.hash,
        ..node.reservations.report(now, |tokens| figures(node, tokens))
    }
}

/// Returns how this node is now, but for the clones that are counted as promised, and for its catalog.
pub(crate) fn figures(node: &Node, promised: &Tokens) -> NodeReport {
    let machine = node.figures.read();
    let room = *node.capacity.borrow();
    let clones = node.clones.count(|request_id| !promised.contains(request_id));
    NodeReport {
        pool_free_mib: mebibytes(room.free_bytes),
        pool_total_mib: mebibytes(room.total_bytes),
        memory_free_mib: mebibytes(machine.available_memory_bytes),
        memory_total_mib: mebibytes(machine.total_memory_bytes),
        load_percent: machine.load_percent(),
        clones: u16::try_from(clones).unwrap_or(u16::MAX),
        flags: NodeFlags {
            draining: node.cluster.is_draining() || node.cluster.is_stopping(),
            full: room.free_bytes < room.total_bytes / FULL,
            // No backend says so before it fails to make a clone.
            read_only: false,
            stale: !node.is_measured.load(Ordering::Relaxed),
        },
        protocol: PROTOCOL,
        software: software(),
        ..NodeReport::default()
    }
}

/// Returns this program's version.
fn software() -> [u16; 3] {
    let mut parts = env!("CARGO_PKG_VERSION")
        .split(['.', '-', '+'])
        .map(|part| part.parse().unwrap_or_default());
    std::array::from_fn(|_| parts.next().unwrap_or_default())
}

fn mebibytes(bytes: u64) -> u32 {
    u32::try_from(bytes >> 20).unwrap_or(u32::MAX)
}

/// The number in the ALPNs.
const PROTOCOL: u16 = 1;
/// Less than this part of the disk left counts as full.
const FULL: u64 = 100;
/// How often the figures are looked at that nobody tells the changes of.
const LOOK: Duration = Duration::from_millis(500);
