//! What must hold when all has been quiet for a while, one function for each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use zdap_node::cluster::{Seen, View};
use zdap_node::gossip::MemberState;
use zdap_node::runtime::{InstanceId, Runtime};
use zdap_node::storage::Storage;
use zdap_proto::message::{CloneRecord, CloneState};
use zdap_proto::name::{CloneId, NodeName, RequestId};

use crate::people::{Ledger, People, Told};
use crate::plan::PEOPLE;
use crate::world::World;

/// An invariant that does not hold.
#[derive(Debug, Clone)]
pub(crate) struct Broken {
    pub(crate) invariant: &'static str,
    pub(crate) how: String,
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.invariant, self.how)
    }
}

/// What lies on the disks, by machine.
type Disks = Vec<Vec<CloneRecord>>;

/// Looks at everything, and returns what does not hold.
pub(crate) async fn look(world: &Arc<World>, people: &People) -> Vec<Broken> {
    let mut broken = Vec::new();
    broken.extend(eventually(AGREEING, || views_agree(world)).await.err());
    let mut disks = Disks::new();
    for machine in &world.machines {
        disks.push(machine.records().await);
    }
    let orphans = no_orphan_dataset_or_instance(world).await;
    let unlisted = every_node_lists_every_clone(world, people, &disks).await;
    let unreached = every_clone_is_reached_through_every_node(world, people, &disks).await;
    let found = {
        let ledger = people.ledger();
        [
            (
                "no_clone_has_two_owners",
                no_clone_has_two_owners(&disks, &ledger),
            ),
            (
                "a_reply_implies_a_record_on_disk",
                a_reply_implies_a_record_on_disk(world, &disks, &ledger),
            ),
            ("no_orphan_dataset_or_instance", orphans),
            (
                "a_retry_makes_no_second_clone",
                a_retry_makes_no_second_clone(world, &disks, &ledger),
            ),
            ("expired_means_gone", expired_means_gone(world, &disks)),
            ("destroyed_means_gone", destroyed_means_gone(&disks, &ledger)),
            ("the_reservations_are_gone", the_reservations_are_gone(world)),
            ("every_clone_is_reached_through_every_node", unreached),
            ("every_node_lists_every_clone", unlisted),
        ]
    };
    let last = [
        (
            "every_node_makes_a_clone",
            every_node_makes_a_clone(world, people).await,
        ),
        ("nobody_was_told_anything_wrong", people.ledger().wrong.clone()),
    ];
    for (invariant, hows) in found.into_iter().chain(last) {
        broken.extend(hows.into_iter().map(|how| Broken { invariant, how }));
    }
    broken
}

/// Waits until `holds` does; returns what was wrong last if it does not in time.
pub(crate) async fn eventually(within: Duration, holds: impl Fn() -> Vec<Broken>) -> Result<(), Broken> {
    let deadline = Instant::now() + within;
    loop {
        match holds().into_iter().next() {
            None => return Ok(()),
            Some(broken) if Instant::now() >= deadline => return Err(broken),
            Some(_) => sleep(AGAIN).await,
        }
    }
}

/// A clone lies on one disk, and everybody says the same of whose it is.
fn no_clone_has_two_owners(disks: &Disks, ledger: &Ledger) -> Vec<String> {
    let mut owners: BTreeMap<&CloneId, BTreeSet<String>> = BTreeMap::new();
    for (machine, records) in disks.iter().enumerate() {
        for record in records {
            owners
                .entry(&record.id)
                .or_default()
                .insert(format!("{} on node-{machine}", record.owner));
        }
    }
    for told in &ledger.told {
        if let Some(owners) = owners.get_mut(&told.clone.id) {
            owners.insert(format!("{} on {}", told.owner, told.clone.node));
        }
    }
    let several = owners.into_iter().filter(|(_, owners)| owners.len() > 1);
    several
        .map(|(clone, owners)| format!("{clone} is of {owners:?}"))
        .collect()
}

/// Who was told of a clone has it, unless they gave it back, it has expired, or the disk was lost.
fn a_reply_implies_a_record_on_disk(world: &World, disks: &Disks, ledger: &Ledger) -> Vec<String> {
    let must_be_there = |told: &&Told| {
        let machine = &world.machines[told.machine];
        !ledger.given_back.contains(&told.clone.id)
            && told.losses == machine.losses()
            && told.clone.expires_at.is_none()
    };
    let is_missing = |told: &&Told| {
        !disks[told.machine].iter().any(|record| {
            record.id == told.clone.id
                && record.owner == told.owner
                && record.request_id == told.request_id
                && record.state == CloneState::Ready
        })
    };
    let missing = ledger.told.iter().filter(must_be_there).filter(is_missing);
    missing
        .map(|told| {
            format!(
                "{} of {} is not on {}",
                told.clone.id, told.owner, told.clone.node
            )
        })
        .collect()
}

/// Every clone is ready and runs, and nothing else does.
async fn no_orphan_dataset_or_instance(world: &World) -> Vec<String> {
    let mut orphans = Vec::new();
    for machine in &world.machines {
        let inventory = machine.storage().inventory().await.unwrap();
        let instances = machine.runtime().instances().await.unwrap();
        let running: BTreeSet<_> = instances
            .iter()
            .filter(|instance| instance.running.is_some())
            .map(|instance| instance.id.clone())
            .collect();
        let name = &machine.name;
        for base in inventory.bases.iter().filter(|base| base.snapshots.is_empty()) {
            orphans.push(format!("{} on {name} has no snapshot", base.id));
        }
        let mut wanted = BTreeSet::new();
        for clone in &inventory.clones {
            let record = &clone.record;
            if record.state != CloneState::Ready {
                orphans.push(format!("{} on {name} is {:?}", record.id, record.state));
            }
            let id = InstanceId::Clone(record.id.clone());
            if !running.contains(&id) {
                orphans.push(format!("{} on {name} does not run", record.id));
            }
            wanted.insert(id);
        }
        for instance in instances.iter().filter(|instance| !wanted.contains(&instance.id)) {
            orphans.push(format!("{} on {name} runs for nothing", instance.id));
        }
    }
    orphans
}

/// Of one request of one person there is one clone at most, anywhere.
fn a_retry_makes_no_second_clone(world: &World, disks: &Disks, ledger: &Ledger) -> Vec<String> {
    let mut made: BTreeMap<_, Vec<&CloneId>> = BTreeMap::new();
    for record in disks.iter().flatten() {
        let request = (&record.owner, &record.request_id);
        made.entry(request).or_default().push(&record.id);
    }
    // That a clone may be on a lost node is known to who was asked for it, and forgotten with all else it had written down.
    let is_remembered = |(machine, lapses): &(usize, usize)| world.machines[*machine].lapses() == *lapses;
    let is_due = |request: &RequestId| {
        let asked = ledger.asked.get(request);
        asked.is_none_or(|asked| asked.iter().all(is_remembered))
    };
    let several = made
        .into_iter()
        .filter(|((_, request), clones)| clones.len() > 1 && is_due(request));
    several
        .map(|((owner, request), clones)| format!("{owner}'s request {request} has made {clones:?}"))
        .collect()
}

/// What has expired by its machine's clock for longer than a pass takes to come round is gone.
fn expired_means_gone(world: &World, disks: &Disks) -> Vec<String> {
    let mut left = Vec::new();
    for (machine, records) in world.machines.iter().zip(disks) {
        let now = machine.clock.now();
        for record in records {
            if let Some(end) = record.expires_at
                && end + PASS < now
            {
                left.push(format!(
                    "{} on {} expired at {end}, now it is {now}",
                    record.id, machine.name
                ));
            }
        }
    }
    left
}

/// What somebody was told is destroyed is nowhere.
fn destroyed_means_gone(disks: &Disks, ledger: &Ledger) -> Vec<String> {
    let left = disks
        .iter()
        .flatten()
        .filter(|record| ledger.destroyed.contains(&record.id));
    left.map(|record| format!("{} is {:?}", record.id, record.state))
        .collect()
}

/// Nodes promise no room that nobody asks for any more.
fn the_reservations_are_gone(world: &World) -> Vec<String> {
    let mut left = Vec::new();
    for machine in &world.machines {
        let Some(node) = machine.node() else { continue };
        let view = node.cluster.view();
        let digest = view
            .members
            .get(&machine.name)
            .and_then(|seen| seen.digest.as_ref());
        let count = digest.map_or(0, |heard| heard.digest.report.reservations);
        if count > 0 {
            left.push(format!("{} promises {count} places", machine.name));
        }
    }
    left
}

/// Whoever has a clone reaches its database, whichever node they go to.
async fn every_clone_is_reached_through_every_node(
    world: &World,
    people: &People,
    disks: &Disks,
) -> Vec<String> {
    let mut unreached = Vec::new();
    for record in disks.iter().flatten() {
        let Some(person) = (0..PEOPLE).find(|index| people.name(*index) == &record.owner) else {
            continue;
        };
        for node in 0..world.machines.len() {
            if let Err(reason) = people.reach(person, node, &record.id).await {
                unreached.push(format!("{} through node-{node}: {reason}", record.id));
            }
        }
    }
    unreached
}

/// Each node shows people all clones that they have, wherever these are.
async fn every_node_lists_every_clone(world: &World, people: &People, disks: &Disks) -> Vec<String> {
    let mut wrong = Vec::new();
    for person in 0..PEOPLE {
        let name = people.name(person);
        let theirs = disks.iter().flatten().filter(|record| &record.owner == name);
        let there: BTreeSet<_> = theirs.map(|record| record.id.clone()).collect();
        for node in 0..world.machines.len() {
            match people.list(person, node).await {
                Ok((_, silent)) if silent > 0 => {
                    wrong.push(format!("node-{node} says that {silent} nodes are silent"));
                }
                Ok((clones, _)) => {
                    let ids: Vec<_> = clones.into_iter().map(|clone| clone.id).collect();
                    let shown: BTreeSet<_> = ids.iter().cloned().collect();
                    if shown != there || ids.len() != shown.len() {
                        wrong.push(format!("node-{node} shows {name} {ids:?}, there are {there:?}"));
                    }
                }
                Err(reason) => wrong.push(format!("node-{node} shows {name} nothing: {reason}")),
            }
        }
    }
    wrong
}

/// Whoever asks any node for a clone has it.
async fn every_node_makes_a_clone(world: &World, people: &People) -> Vec<String> {
    let mut unmade = Vec::new();
    for node in 0..world.machines.len() {
        if let Err(reason) = people.attach_once(0, node, world.chance()).await {
            unmade.push(format!("node-{node}: {reason}"));
        }
    }
    unmade
}

/// All nodes see the same of each other.
pub(crate) fn views_agree(world: &World) -> Vec<Broken> {
    let mut wrong = Vec::new();
    let mut own = BTreeMap::new();
    for machine in &world.machines {
        match machine.node() {
            Some(node) => {
                own.insert(machine.name.clone(), node.cluster.view());
            }
            None => wrong.push(format!("{} does not serve", machine.name)),
        }
    }
    for (viewer, view) in &own {
        for of in own.keys().filter(|of| *of != viewer) {
            wrong.extend(differs(viewer, view, of, &own[of]));
        }
        let strangers = view.members.keys().filter(|name| !own.contains_key(*name));
        wrong.extend(strangers.map(|name| format!("{viewer} knows {name}, which is not there")));
    }
    let broken = wrong.into_iter().map(|how| Broken {
        invariant: "views_agree",
        how,
    });
    broken.collect()
}

/// Says how what a node believes of another differs from what that one says of itself.
fn differs(viewer: &NodeName, view: &View, of: &NodeName, own: &View) -> Option<String> {
    let Some(seen) = view.members.get(of) else {
        return Some(format!("{viewer} does not know {of}"));
    };
    if seen.state != MemberState::Alive {
        return Some(format!("{viewer} thinks that {of} is {:?}", seen.state));
    }
    let told = &own.members[of];
    if seen.epoch != told.epoch {
        return Some(format!(
            "{viewer} knows {of} by epoch {}, it is {}",
            seen.epoch, told.epoch
        ));
    }
    let report = |seen: &Seen| seen.digest.as_ref().map(|heard| heard.digest.report.clone());
    if report(seen) != report(told) {
        return Some(format!(
            "{viewer} has heard of {of} {:?}, it says {:?}",
            report(seen),
            report(told)
        ));
    }
    let hash = |seen: &Seen| seen.catalog.as_ref().map(|catalog| catalog.hash);
    (hash(seen) != hash(told)).then(|| format!("{viewer} has another catalog of {of} than {of} itself"))
}

/// Returns as soon as a node thinks that another is down.
pub(crate) async fn watch_for_false_downs(world: Arc<World>) -> Broken {
    loop {
        for machine in &world.machines {
            let Some(node) = machine.node() else { continue };
            let view = node.cluster.view();
            let mut down = view
                .members
                .iter()
                .filter(|(_, seen)| seen.state == MemberState::Down);
            if let Some((name, _)) = down.next() {
                let how = format!("{} thinks that {name} is down", machine.name);
                world.say(&how);
                return Broken {
                    invariant: "no_healthy_node_is_down",
                    how,
                };
            }
        }
        sleep(AGAIN).await;
    }
}

/// Views agree after this, when all is quiet.
const AGREEING: Duration = Duration::from_secs(15);
const AGAIN: Duration = Duration::from_millis(100);
/// The longest pause between two passes.
const PASS: chrono::TimeDelta = chrono::TimeDelta::seconds(66);
