//! Every storage and runtime call of restore, create, the undoing of a failed create, and destroy fails, or is the last
//! before the node dies. After a restart nothing is orphaned, nothing of another owner is touched, and the same request,
//! made again, gives one clone.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use tokio::sync::watch;
use zdap_node::bases::{Bases, RestoreState};
use zdap_node::clones::{Clones, Order};
use zdap_node::faults::{Faults, Moment};
use zdap_node::invites::Invites;
use zdap_node::node::Node;
use zdap_node::resource::Resource;
use zdap_node::resource::catalogue::Catalogue;
use zdap_node::runtime::{self, InstanceId, Runtime};
use zdap_node::storage::{self, Storage};
use zdap_proto::identity::{ClusterCa, Subject};
use zdap_proto::message::{CloneRecord, CloneState};
use zdap_proto::name::{RequestId, UserName};

#[tokio::test]
async fn a_restore_that_fails_or_dies_at_any_call_leaves_nothing_and_the_next_one_succeeds() {
    everywhere(Scenario::Restore).await;
}

#[tokio::test]
async fn a_create_that_fails_or_dies_at_any_call_leaves_nothing_and_its_retry_gives_one_clone() {
    everywhere(Scenario::Create).await;
}

#[tokio::test]
async fn the_undoing_of_a_failed_create_may_fail_or_die_at_any_call_too() {
    everywhere(Scenario::FailedCreate).await;
}

#[tokio::test]
async fn a_destroy_that_fails_or_dies_at_any_call_is_finished_or_has_not_begun() {
    everywhere(Scenario::Destroy).await;
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Scenario {
    Restore,
    Create,
    FailedCreate,
    Destroy,
}

/// What goes wrong, and where.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Fail(usize, Moment),
    Die(usize, Moment),
}

async fn everywhere(scenario: Scenario) {
    let untroubled = Faults::none();
    run(scenario, &untroubled, None).await;
    let calls = untroubled.calls();
    assert!(calls.len() >= 3, "{scenario:?} makes the calls {calls:?}");
    for number in 0..calls.len() {
        for moment in [Moment::Before, Moment::After] {
            for fault in [Fault::Fail(number, moment), Fault::Die(number, moment)] {
                let faults = Faults::none();
                match fault {
                    Fault::Fail(number, moment) => faults.fail_call(number, moment),
                    Fault::Die(number, moment) => faults.stop_at_call(number, moment),
                }
                run(scenario, &faults, Some(fault)).await;
            }
        }
    }
}

/// Plays the scenario with `faults`, restarts the node, and looks.
async fn run(scenario: Scenario, faults: &Faults, fault: Option<Fault>) {
    let world = World::new().await;
    let context = format!("{scenario:?} with {fault:?}");
    let request = RequestId::random();

    let mine = match scenario {
        Scenario::Destroy => Some(world.first.create("ada", &request).await.expect("no fault yet")),
        Scenario::Restore | Scenario::Create | Scenario::FailedCreate => None,
    };
    let mut troubled = world.restart(faults.clone()).await;
    if scenario == Scenario::FailedCreate {
        world.runtime.exits_at_start("broken");
        Arc::make_mut(&mut troubled.resource).docker.image = "broken".to_owned();
    }
    let reply = until_dead(faults, async {
        match (scenario, &mine) {
            (Scenario::Restore, _) => troubled.restore().await.map(|()| None),
            (Scenario::Create | Scenario::FailedCreate, _) => {
                troubled.create("ada", &request).await.map(Some)
            }
            (Scenario::Destroy, Some(clone)) => {
                troubled.node.clones.destroy(&clone.id).await;
                Ok(None)
            }
            (Scenario::Destroy, None) => unreachable!("made above"),
        }
    })
    .await;
    drop(troubled);

    let next = world.restart(Faults::none()).await;
    next.node.keep_in_order(Utc::now()).await;
    next.nothing_is_orphaned(&context).await;
    next.bob_is_untouched(&world, &context);
    match (scenario, reply) {
        (Scenario::Create, Some(Ok(Some(record)))) => {
            let found = next.node.clones.find(&record.id);
            assert_eq!(found, Some(record), "a reply implies a record on disk; {context}");
        }
        (Scenario::Destroy, Some(Ok(None))) if fault.is_none() => {
            assert_eq!(next.clones_of("ada").len(), 0, "{context}");
        }
        (_, _) => {}
    }

    match scenario {
        Scenario::Restore => {
            let before = next.node.bases.list().len();
            next.restore()
                .await
                .unwrap_or_else(|error| panic!("the next restore succeeds: {error}; {context}"));
            assert_eq!(next.node.bases.list().len(), before + 1, "{context}");
        }
        Scenario::Create | Scenario::FailedCreate => {
            let retried = next
                .create("ada", &request)
                .await
                .unwrap_or_else(|error| panic!("{error}; {context}"));
            let again = next
                .create("ada", &request)
                .await
                .unwrap_or_else(|error| panic!("{error}; {context}"));
            assert_eq!(retried.id, again.id, "{context}");
            assert_eq!(
                next.clones_of("ada").len(),
                1,
                "a retry makes no second clone; {context}"
            );
        }
        Scenario::Destroy => {
            for clone in next.clones_of("ada") {
                next.node.clones.destroy(&clone.id).await;
            }
            assert_eq!(next.clones_of("ada").len(), 0, "{context}");
        }
    }
    next.nothing_is_orphaned(&context).await;
    next.bob_is_untouched(&world, &context);
}

/// Awaits `work` until it is done, or the node has died in it.
async fn until_dead<T>(faults: &Faults, work: impl Future<Output = T>) -> Option<T> {
    let mut work = std::pin::pin!(work);
    loop {
        match tokio::time::timeout(Duration::from_millis(1), &mut work).await {
            Ok(done) => return Some(done),
            Err(_) if faults.has_stopped() => return None,
            Err(_) => {}
        }
    }
}

/// The disk and the engine, which outlive every node; a base of `orders`; a clone of Bob's.
struct World {
    storage: storage::memory::Memory,
    runtime: runtime::memory::Memory,
    resource: Arc<Resource>,
    first: Life,
    bobs: CloneRecord,
    _scripts: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let scripts = tempfile::tempdir().unwrap();
        let resource = Arc::new(resource(scripts.path()));
        let (storage, runtime) = (storage::memory::Memory::new(), runtime::memory::Memory::new());
        let first = Life::begin(Arc::new(storage.clone()), Arc::new(runtime.clone()), &resource).await;
        first.restore().await.expect("no fault yet");
        let bobs = first
            .create("bob", &RequestId::random())
            .await
            .expect("no fault yet");
        Self {
            storage,
            runtime,
            resource,
            first,
            bobs,
            _scripts: scripts,
        }
    }

    async fn restart(&self, faults: Faults) -> Life {
        let storage = self.storage.reopened(faults.clone());
        let runtime = self.runtime.reopened(faults.clone());
        // What a node reads at its start is not part of the scenario: it is read from the untroubled disk.
        Life::of(
            Arc::new(storage),
            Arc::new(runtime),
            &self.storage,
            &self.runtime,
            &self.resource,
        )
        .await
    }
}

/// A node from its start to its death.
struct Life {
    node: Arc<Node>,
    resource: Arc<Resource>,
    _stop: watch::Sender<bool>,
    _catalogue: watch::Sender<Arc<Catalogue>>,
    _state: tempfile::TempDir,
}

impl Life {
    async fn begin(storage: Arc<dyn Storage>, runtime: Arc<dyn Runtime>, resource: &Arc<Resource>) -> Self {
        let (disk, engine) = (Arc::clone(&storage), Arc::clone(&runtime));
        Self::of(storage, runtime, &*disk, &*engine, resource).await
    }

    async fn of(
        storage: Arc<dyn Storage>,
        runtime: Arc<dyn Runtime>,
        disk: &dyn Storage,
        engine: &dyn Runtime,
        resource: &Arc<Resource>,
    ) -> Self {
        let state = tempfile::tempdir().unwrap();
        let (stop, stopping) = watch::channel(false);
        let ca = ClusterCa::found(Utc::now()).unwrap();
        let name: zdap_proto::name::NodeName = "a".parse().unwrap();
        let identity = ca
            .identity(
                &Subject::Node(name.clone()),
                Duration::from_secs(3600),
                Utc::now(),
            )
            .unwrap();
        let resources = BTreeMap::from([(resource.name.clone(), Arc::clone(resource))]);
        let (sender, catalogue) = watch::channel(Arc::new(Catalogue {
            resources,
            errors: Vec::new(),
        }));
        let inventory = disk.inventory().await.unwrap();
        let instances = engine.instances().await.unwrap();
        let bases = Bases::adopt(Arc::clone(&storage), Arc::clone(&runtime), &inventory, stopping);
        let clones = Clones::adopt(Arc::clone(&storage), Arc::clone(&runtime), &inventory, &instances);
        let node = Node {
            name,
            address: "127.0.0.1:1".to_owned(),
            invites: Invites::load(state.path().join("invites.json")).unwrap(),
            relay_program: PathBuf::new(),
            capacity: watch::Sender::new(disk.capacity().await.unwrap()),
            bases: Arc::new(bases),
            clones: Arc::new(clones),
            identity,
            ca,
            catalogue,
            storage,
            runtime,
        };
        let resource = Arc::clone(resource);
        Self {
            node: Arc::new(node),
            resource,
            _stop: stop,
            _catalogue: sender,
            _state: state,
        }
    }

    async fn restore(&self) -> Result<(), String> {
        let mut state = self.node.bases.restore(&self.resource, Utc::now());
        loop {
            if let RestoreState::Ended(result) = state.borrow_and_update().clone() {
                return result.map(drop).map_err(|refusal| refusal.message);
            }
            state
                .changed()
                .await
                .map_err(|_| "the restore ended without a word".to_owned())?;
        }
    }

    async fn create(&self, owner: &str, request_id: &RequestId) -> Result<CloneRecord, String> {
        let order = Order {
            resource: Arc::clone(&self.resource),
            snapshot: self
                .node
                .bases
                .newest(&self.resource.name)
                .expect("the world has a base"),
            owner: owner.parse().unwrap(),
            request_id: request_id.clone(),
            now: Utc::now(),
        };
        self.node
            .clones
            .create(order)
            .await
            .map(|(record, _)| record)
            .map_err(|refusal| refusal.message)
    }

    fn clones_of(&self, owner: &str) -> Vec<CloneRecord> {
        let owner: UserName = owner.parse().unwrap();
        self.node
            .clones
            .list()
            .into_iter()
            .filter(|clone| clone.owner == owner)
            .collect()
    }

    async fn nothing_is_orphaned(&self, context: &str) {
        let inventory = self.node.storage.inventory().await.unwrap();
        let instances = self.node.runtime.instances().await.unwrap();
        for base in &inventory.bases {
            assert!(
                !base.snapshots.is_empty(),
                "a base without a snapshot: {}; {context}",
                base.id
            );
        }
        for clone in &inventory.clones {
            let record = &clone.record;
            assert_eq!(record.state, CloneState::Ready, "{record:?}; {context}");
            let instance = instances
                .iter()
                .find(|instance| instance.id == InstanceId::Clone(record.id.clone()));
            assert!(
                instance.is_some_and(|instance| instance.running.is_some()),
                "{record:?} does not run; {context}"
            );
            assert_eq!(
                self.node.clones.find(&record.id).as_ref(),
                Some(record),
                "{context}"
            );
        }
        assert_eq!(
            instances.len(),
            inventory.clones.len(),
            "an instance without a dataset: {instances:?}; {context}"
        );
        assert_eq!(self.node.clones.list().len(), inventory.clones.len(), "{context}");
    }

    fn bob_is_untouched(&self, world: &World, context: &str) {
        assert_eq!(
            self.clones_of("bob"),
            std::slice::from_ref(&world.bobs),
            "{context}"
        );
        assert!(self.node.clones.address(&world.bobs.id).is_some(), "{context}");
    }
}

fn resource(directory: &Path) -> Resource {
    let creation = directory.join("creation.sh");
    std::fs::write(&creation, "#!/bin/sh\nexit 0\n").unwrap();
    std::fs::set_permissions(&creation, std::fs::Permissions::from_mode(0o755)).unwrap();
    let file = directory.join("orders.resource.yml");
    std::fs::write(
        &file,
        "name: orders\ncreation: ./creation.sh\ndocker:\n  image: postgres:15\n",
    )
    .unwrap();
    let catalogue = Catalogue::read(directory, &Catalogue::default());
    assert!(catalogue.errors.is_empty(), "{:?}", catalogue.errors);
    let resource = catalogue.resources.into_values().next();
    Arc::unwrap_or_clone(resource.expect("one file, one resource"))
}
