//! What this node says of itself: its figures, and its resources, snapshots and users.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;
use zdap_proto::digest::{NodeFlags, NodeReport};
use zdap_proto::name::{ResourceName, UserName};

use super::{Board, Cluster};
use crate::catalog::{Catalog, Facts, PoolSize, ResourceFacts};
use crate::enrol;
use crate::node::Node;
use crate::reserve::Tokens;
use crate::resource::Resource;
use crate::resource::catalogue::Catalogue;

/// Looks at this node twice a second, and at once when something has changed, until dropped.
pub async fn keep_telling(node: Arc<Node>) {
    let mut catalogue = node.catalogue.clone();
    let mut told = Told::new(&node.cluster);
    loop {
        tell(&node, &mut told);
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

/// What is not thought through anew each time.
#[derive(Debug)]
pub struct Told {
    /// The resources of a catalogue: schedules take a while.
    of: Option<Arc<Catalogue>>,
    resources: BTreeMap<ResourceName, ResourceFacts>,
    users: BTreeSet<UserName>,
    /// Those that no other node told of at the last look, and when that was.
    orphaned: BTreeSet<UserName>,
    looked_at: Instant,
}

impl Told {
    /// Begins with all users that earlier lives knew: it may be this node that told of those of a lost one.
    pub fn new(cluster: &Cluster) -> Self {
        Self {
            of: None,
            resources: BTreeMap::new(),
            users: cluster.users(),
            orphaned: BTreeSet::new(),
            looked_at: Instant::now(),
        }
    }

    /// Returns the users to tell of: those of this node at once, and those of a node that was lost once nobody else has told
    /// of them at two looks. If all told of everybody, each new user would change every catalog, and have it fetched by
    /// every node.
    fn users(&mut self, here: BTreeSet<UserName>, board: &Board) -> BTreeSet<UserName> {
        self.users.extend(here);
        if self.looked_at.elapsed() >= LOST {
            let orphaned = board.orphaned_users();
            self.users.extend(orphaned.intersection(&self.orphaned).cloned());
            (self.orphaned, self.looked_at) = (orphaned, Instant::now());
        }
        self.users.clone()
    }
}

/// Tells how this node is now.
pub fn tell(node: &Node, told: &mut Told) {
    let catalogue = node.catalogue.borrow().clone();
    if !told.of.as_ref().is_some_and(|of| Arc::ptr_eq(of, &catalogue)) {
        let facts = catalogue.resources.values();
        told.resources = facts
            .map(|resource| (resource.name.clone(), facts_of(resource)))
            .collect();
        told.of = Some(catalogue);
    }
    let board = &node.cluster.board;
    let users = node.invites.users().into_iter();
    let users = users.chain(enrol::owners(node)).collect();
    board.note_users(&users);
    let facts = Facts {
        address: node.address.clone(),
        resources: told.resources.clone(),
        snapshots: node.bases.list().into_iter().collect(),
        users: told.users(users, board),
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
/// How often it is looked for users that no other node tells of. One that restarts is back by the second look.
const LOST: Duration = Duration::from_secs(30);
/// How often the figures are looked at that nobody tells the changes of.
const LOOK: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Version;
    use crate::cluster::{GossipSetup, News};
    use crate::gossip::{Member, MemberState};

    #[tokio::test(start_paused = true)]
    async fn users_of_this_node_are_told_of_at_once_and_those_of_a_node_that_is_lost_after_two_looks() {
        let directory = tempfile::tempdir().unwrap();
        let (cluster, _driver) = Cluster::open(
            directory.path(),
            "abc".parse().unwrap(),
            "a".parse().unwrap(),
            "10.0.0.1:1".parse().unwrap(),
            "a:1".to_owned(),
            GossipSetup::default(),
        )
        .unwrap();
        let names = |names: &[&str]| -> BTreeSet<UserName> {
            names.iter().map(|name| name.parse().unwrap()).collect()
        };
        let (board, mut told) = (&cluster.board, Told::new(&cluster));
        let other = |state| {
            let member = Member {
                name: "b".parse().unwrap(),
                address: "10.0.0.2:1".parse().unwrap(),
                state,
                epoch: 1,
                age: Duration::ZERO,
            };
            board.hear(vec![News::Member(member)], Vec::new);
        };
        other(MemberState::Alive);
        let version = Version {
            generation: 1,
            number: 1,
        };
        let facts = Facts {
            users: names(&["b", "bob"]),
            ..Facts::default()
        };
        board.keep(&"b".parse().unwrap(), Catalog::new(version, facts));
        let look = |told: &mut Told, new: &[&str]| {
            let users = told.users(names(new), board);
            users
                .iter()
                .map(|user| user.as_str().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(look(&mut told, &["ada"]), ["ada"]);
        tokio::time::advance(2 * LOST).await;
        assert_eq!(look(&mut told, &[]), ["ada"], "`b` tells of `bob`");

        other(MemberState::Down);
        tokio::time::advance(LOST).await;
        assert_eq!(look(&mut told, &[]), ["ada"], "it may be back at once");
        tokio::time::advance(LOST).await;
        assert_eq!(look(&mut told, &[]), ["ada", "b", "bob"]);
        other(MemberState::Alive);
        tokio::time::advance(2 * LOST).await;
        assert_eq!(look(&mut told, &[]), ["ada", "b", "bob"], "what was told stays");
        let mut again = Told::new(&cluster);
        assert_eq!(look(&mut again, &[]), ["b", "bob"], "also in the next life");
    }
}
