//! A node over the fakes, from its start to its death, on a disk and an engine that outlive it.

// Each test file uses its own part of this.
#![allow(dead_code)]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use chrono::Utc;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::watch;
use zdap_node::bases::{Bases, RestoreState};
use zdap_node::clock::Clock;
use zdap_node::clones::{Clones, Order};
use zdap_node::cluster::{Cluster, GossipSetup};
use zdap_node::faults::Faults;
use zdap_node::invites::Invites;
use zdap_node::machine::Figures;
use zdap_node::node::Node;
use zdap_node::peers::Peers;
use zdap_node::requests::{Located, Placing};
use zdap_node::reserve::Reservations;
use zdap_node::resource::Resource;
use zdap_node::resource::catalogue::Catalogue;
use zdap_node::runtime::{self, InstanceId, Runtime};
use zdap_node::storage::{self, Storage};
use zdap_proto::identity::{ClusterCa, Subject};
use zdap_proto::message::{CloneRecord, CloneState};
use zdap_proto::name::{RequestId, UserName};
use zdap_proto::transport;

/// The disk and the engine, which outlive every node; a base of `orders`; a clone of Bob's.
pub(crate) struct World {
    pub(crate) storage: storage::memory::Memory,
    pub(crate) runtime: runtime::memory::Memory,
    pub(crate) resource: Arc<Resource>,
    pub(crate) first: Life,
    pub(crate) bobs: CloneRecord,
    _scripts: tempfile::TempDir,
}

impl World {
    pub(crate) async fn new() -> Self {
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

    pub(crate) async fn restart(&self, faults: Faults) -> Life {
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
pub(crate) struct Life {
    pub(crate) node: Arc<Node>,
    pub(crate) resource: Arc<Resource>,
    _stop: watch::Sender<bool>,
    _catalogue: watch::Sender<Arc<Catalogue>>,
    _state: tempfile::TempDir,
}

impl Life {
    pub(crate) async fn begin(
        storage: Arc<dyn Storage>,
        runtime: Arc<dyn Runtime>,
        resource: &Arc<Resource>,
    ) -> Self {
        let (disk, engine) = (Arc::clone(&storage), Arc::clone(&runtime));
        Self::of(storage, runtime, &*disk, &*engine, resource).await
    }

    pub(crate) async fn of(
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
        let (cluster, _) = Cluster::open(
            state.path(),
            ca.cluster().clone(),
            name.clone(),
            "127.0.0.1:1".parse().unwrap(),
            "127.0.0.1:1".to_owned(),
            GossipSetup::default(),
        )
        .unwrap();
        let certified = watch::Sender::new(identity.clone());
        let endpoint = transport::client_endpoint().unwrap();
        let peers = Peers::new(endpoint, certified.subscribe(), cluster.watch());
        let node = Node {
            name,
            peers: Arc::new(peers),
            reservations: Reservations::default(),
            placing: Placing::open(state.path(), StdRng::seed_from_u64(1)).unwrap(),
            located: Located::default(),
            certified,
            is_measured: AtomicBool::new(true),
            figures: Figures::Proc,
            cluster,
            address: "127.0.0.1:1".to_owned(),
            invites: Invites::load(state.path().join("invites.json")).unwrap(),
            relay_program: PathBuf::new(),
            ended: tokio::sync::Notify::new(),
            capacity: watch::Sender::new(disk.capacity().await.unwrap()),
            bases: Arc::new(bases),
            clones: Arc::new(clones),
            identity,
            ca,
            catalogue,
            storage,
            runtime,
            clock: Clock::Machine,
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

    pub(crate) async fn restore(&self) -> Result<(), String> {
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

    pub(crate) async fn create(&self, owner: &str, request_id: &RequestId) -> Result<CloneRecord, String> {
        let order = Order {
            resource: Arc::clone(&self.resource),
            snapshot: self
                .node
                .bases
                .newest(&self.resource.name)
                .expect("the world has a base"),
            owner: owner.parse().unwrap(),
            request_id: request_id.clone(),
            attempt: 0,
            now: Utc::now(),
        };
        self.node
            .clones
            .create(order)
            .await
            .map(|(record, _)| record)
            .map_err(|refusal| refusal.message)
    }

    pub(crate) fn clones_of(&self, owner: &str) -> Vec<CloneRecord> {
        let owner: UserName = owner.parse().unwrap();
        self.node
            .clones
            .list()
            .into_iter()
            .filter(|clone| clone.owner == owner)
            .collect()
    }

    pub(crate) async fn nothing_is_orphaned(&self, context: &str) {
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

    pub(crate) fn bob_is_untouched(&self, world: &World, context: &str) {
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
