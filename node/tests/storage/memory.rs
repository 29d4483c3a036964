//! What memory alone can show.

use zdap_node::faults::{Faults, Moment};
use zdap_node::storage::memory::Memory;
use zdap_node::storage::{Capacity, DatasetId, Storage, StorageError};
use zdap_proto::name::SnapshotId;

use crate::place::{base, cloned, none};

#[tokio::test]
async fn memory_fails_the_call_it_was_told_to_before_or_after_its_effect() {
    let disk = Memory::new();
    let snapshot = SnapshotId::of_restore(base("orders"));
    for (moment, bases) in [(Moment::Before, 0), (Moment::After, 1)] {
        let faults = Faults::none();
        faults.fail_call(1, moment);
        let storage = disk.reopened(faults.clone());
        storage.inventory().await.unwrap();
        let error = storage.create_base(&snapshot.base, &none()).await.unwrap_err();
        assert!(error.to_string().contains("told to fail"), "{error}");
        assert_eq!(storage.inventory().await.unwrap().bases.len(), bases);
        assert_eq!(faults.calls(), ["inventory", "create_base", "inventory"]);
    }
}

#[tokio::test]
async fn memory_is_busy_and_full_on_request() {
    let storage = Memory::new();
    let record = cloned(&storage, &SnapshotId::of_restore(base("orders"))).await;
    let clone = DatasetId::Clone(record.id.clone());
    storage.busy_for(2);
    for _ in 0..2 {
        let error = storage.destroy(&clone).await.unwrap_err();
        assert!(matches!(error, StorageError::Busy(_)), "{error:?}");
    }
    storage.destroy(&clone).await.unwrap();
    storage.set_capacity(Capacity {
        free_bytes: 0,
        total_bytes: 1,
    });
    let error = storage.create_clone(&record, &none(), None).await.unwrap_err();
    assert!(matches!(error, StorageError::Full(_)), "{error:?}");
}
