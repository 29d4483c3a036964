//! The tree of directories itself: what lies where, and how it comes and goes.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use zdap_proto::message::CloneRecord;
use zdap_proto::name::{BaseId, SnapshotId};

use super::copy::Copier;
use super::files::{
    self, ensure_directory, entries, failed, not_readable, read_size, remove_all, remove_file, rename,
    sync_file_system, write_file,
};
use crate::storage::lock::{LOCK_FILE, lock, not_writable};
use crate::storage::record::{CLONES, Record, snapshot_of};
use crate::storage::{BaseDataset, Capacity, CloneDataset, DatasetId, Inventory, StorageError};

/// The directory. Everything here waits for the disk.
#[derive(Debug)]
pub(super) struct Tree {
    root: PathBuf,
    copier: Copier,
    /// Names in `.new` are told apart by it.
    made: AtomicU64,
    /// Held while names appear and disappear, never while data is copied: nothing is made from what is just going.
    names: Mutex<()>,
    _lock: File,
}

impl Tree {
    pub(super) fn open(root: PathBuf, owner: &str) -> Result<Self, StorageError> {
        fs::create_dir_all(&root).map_err(|error| not_writable(&root, &error))?;
        let is_claimed = check_owner(&root, owner)?;
        let tree = Self {
            _lock: lock(&root)?,
            root,
            copier: Copier::default(),
            made: AtomicU64::new(0),
            names: Mutex::new(()),
        };
        if !is_claimed {
            write_file(&tree.root, NODE_FILE, owner)?;
        }
        for name in [NEW, TRASH] {
            let path = tree.root.join(name);
            fs::create_dir_all(&path).map_err(|error| not_writable(&path, &error))?;
            for leftover in entries(&path)? {
                if let Err(error) = remove_all(&path.join(leftover)) {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "what an earlier life left takes room until it is removed"
                    );
                }
            }
        }
        ensure_directory(&tree.root.join(CLONES))?;
        Ok(tree)
    }

    pub(super) fn inventory(&self) -> Result<Inventory, StorageError> {
        let mut inventory = Inventory::default();
        for folder in entries(&self.root)? {
            if [NODE_FILE, LOCK_FILE, NEW, TRASH, LOST_AND_FOUND].contains(&folder.as_str()) {
                continue;
            }
            let path = self.root.join(&folder);
            if !path.is_dir() {
                inventory
                    .foreign
                    .push(format!("{}: not a directory of zdap's", path.display()));
                continue;
            }
            for name in entries(&path)? {
                let path = path.join(name);
                match self.own_record(&path) {
                    Ok(Record::Clone(record)) => inventory.clones.push(CloneDataset {
                        record,
                        path: path.join(DATA),
                        mounted: true,
                    }),
                    Ok(Record::Base(id)) => inventory.bases.push(base(id, &path, &mut inventory.foreign)?),
                    Ok(Record::Folder { .. }) => {}
                    // It went away while we looked.
                    Err(_) if !path.exists() => {}
                    Err(reason) => inventory.foreign.push(format!("{}: {reason}", path.display())),
                }
            }
        }
        Ok(inventory)
    }

    /// Makes a base or clone, its data filled by `fill`, and returns where the data is.
    pub(super) fn make(
        &self,
        record: &Record,
        fill: impl FnOnce(&Path) -> Result<(), StorageError>,
    ) -> Result<PathBuf, StorageError> {
        let target = self.root.join(record.place());
        if target.exists() {
            return self.confirm(record, &target);
        }
        let new = self.new_directory()?;
        let filled = write_file(new.path(), RECORD, &record.text()?)
            .and_then(|()| ensure_directory(&new.path().join(DATA)))
            .and_then(|()| fill(&new.path().join(DATA)));
        filled?;
        let folder = target.parent().unwrap_or(&self.root);
        let _names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Record::Clone(record) = record {
            let snapshot = DatasetId::Snapshot(record.snapshot.clone());
            if !self.path(&snapshot).exists() {
                return Err(StorageError::Missing(snapshot));
            }
        }
        ensure_directory(folder)?;
        if target.exists() {
            return self.confirm(record, &target);
        }
        rename(new.path(), &target)?;
        Ok(target.join(DATA))
    }

    /// Finds what was in the way to be what was to be made.
    fn confirm(&self, record: &Record, target: &Path) -> Result<PathBuf, StorageError> {
        match self.own_record(target) {
            Ok(there) if there == *record => Ok(target.join(DATA)),
            Ok(_) => Err(foreign(target, "it already exists, with another record")),
            Err(reason) => Err(foreign(target, &reason)),
        }
    }

    pub(super) fn snapshot(&self, snapshot: &SnapshotId, abandoned: &AtomicBool) -> Result<(), StorageError> {
        let missing = || StorageError::Missing(DatasetId::Base(snapshot.base.clone()));
        let base = self.path(&DatasetId::Base(snapshot.base.clone()));
        let target = self.path(&DatasetId::Snapshot(snapshot.clone()));
        if self.own_record(&base).is_err() {
            return Err(missing());
        }
        if target.exists() {
            return Ok(());
        }
        let new = self.new_directory()?;
        self.copier.copy(&base.join(DATA), new.path(), abandoned)?;
        let bytes = files::bytes_below(new.path())?;
        sync_file_system(new.path())?;
        let _names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        match (base.exists(), target.exists()) {
            (false, _) => Err(missing()),
            (true, true) => Ok(()),
            (true, false) => {
                write_file(&base, &size_file(snapshot), &bytes.to_string())?;
                rename(new.path(), &target)
            }
        }
    }

    pub(super) fn update_record(&self, record: &CloneRecord) -> Result<(), StorageError> {
        let clone = DatasetId::Clone(record.id.clone());
        let path = self.path(&clone);
        let record = Record::Clone(record.clone()).text()?;
        // No name changes meanwhile, and of two records the later stays, whole.
        let _names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        match self.own_record(&path) {
            Ok(_) => write_file(&path, RECORD, &record),
            Err(_) => Err(StorageError::Missing(clone)),
        }
    }

    pub(super) fn destroy(&self, dataset: &DatasetId) -> Result<(), StorageError> {
        let path = self.path(dataset);
        let trash = self.root.join(TRASH).join(dataset.to_string().replace('/', "_"));
        {
            let _names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            if path.exists() {
                self.check_ours(dataset, &path)?;
                remove_all(&trash)?;
                rename(&path, &trash)?;
            }
            if let DatasetId::Snapshot(snapshot) = dataset {
                remove_file(
                    &self
                        .path(&DatasetId::Base(snapshot.base.clone()))
                        .join(size_file(snapshot)),
                )?;
            }
            if let DatasetId::Base(base) = dataset
                && base.resource.as_str() != CLONES
            {
                // Refused for as long as another base lies in it.
                let _ = fs::remove_dir(self.root.join(base.resource.as_str()));
            }
        }
        // Also what an earlier attempt has left.
        remove_all(&trash)
    }

    /// Refuses to destroy what clones hang from, what is not ours, and what holds what is not ours.
    fn check_ours(&self, dataset: &DatasetId, path: &Path) -> Result<(), StorageError> {
        let hangs_from_it = |clone: &CloneDataset| match dataset {
            DatasetId::Base(base) => clone.record.snapshot.base == *base,
            DatasetId::Snapshot(snapshot) => clone.record.snapshot == *snapshot,
            DatasetId::Clone(_) => false,
        };
        match dataset {
            DatasetId::Base(_) | DatasetId::Snapshot(_) => {
                if self.inventory_of_clones()?.iter().any(hangs_from_it) {
                    return Err(StorageError::HasClones(dataset.clone()));
                }
            }
            DatasetId::Clone(_) => {}
        }
        match dataset {
            DatasetId::Snapshot(_) => Ok(()),
            DatasetId::Clone(_) => self
                .own_record(path)
                .map(drop)
                .map_err(|reason| foreign(path, &reason)),
            DatasetId::Base(id) => {
                self.own_record(path).map_err(|reason| foreign(path, &reason))?;
                let mut strangers = Vec::new();
                base(id.clone(), path, &mut strangers)?;
                match strangers.first() {
                    None => Ok(()),
                    Some(stranger) => Err(foreign(path, &format!("it holds {stranger}"))),
                }
            }
        }
    }

    pub(super) fn create_clone(
        &self,
        record: CloneRecord,
        abandoned: &AtomicBool,
    ) -> Result<PathBuf, StorageError> {
        let snapshot = DatasetId::Snapshot(record.snapshot.clone());
        let source = self.path(&snapshot);
        self.make(&Record::Clone(record), |data| match source.is_dir() {
            true => self.copier.copy(&source, data, abandoned),
            false => Err(StorageError::Missing(snapshot)),
        })
    }

    pub(super) fn referenced_bytes(&self, dataset: &DatasetId) -> Result<u64, StorageError> {
        let path = self.path(dataset);
        let data = match dataset {
            DatasetId::Snapshot(_) => path,
            DatasetId::Base(_) | DatasetId::Clone(_) => path.join(DATA),
        };
        match data.is_dir() {
            true => files::bytes_below(&data),
            false => Err(StorageError::Missing(dataset.clone())),
        }
    }

    /// Returns the room on the disk, or what is left of `size` bytes where that is less.
    pub(super) fn capacity(&self, size: Option<u64>) -> Result<Capacity, StorageError> {
        let disk = self.disk()?;
        let Some(size) = size else { return Ok(disk) };
        let left = size.saturating_sub(files::bytes_below(&self.root)?);
        Ok(Capacity {
            free_bytes: left.min(disk.free_bytes),
            total_bytes: size.min(disk.total_bytes),
        })
    }

    fn disk(&self) -> Result<Capacity, StorageError> {
        let found = rustix::fs::statvfs(&self.root)
            .map_err(|error| failed("ask for the free space of", &self.root, error.into()))?;
        let free_bytes = found.f_bavail.saturating_mul(found.f_frsize);
        let used_blocks = found.f_blocks.saturating_sub(found.f_bfree);
        let used = used_blocks.saturating_mul(found.f_frsize);
        Ok(Capacity {
            free_bytes,
            total_bytes: free_bytes.saturating_add(used),
        })
    }

    fn inventory_of_clones(&self) -> Result<Vec<CloneDataset>, StorageError> {
        let folder = self.root.join(CLONES);
        Ok(entries(&folder)?
            .iter()
            .filter_map(|name| match self.own_record(&folder.join(name)) {
                Ok(Record::Clone(record)) => Some(CloneDataset {
                    record,
                    path: folder.join(name).join(DATA),
                    mounted: true,
                }),
                Ok(Record::Base(_) | Record::Folder { .. }) | Err(_) => None,
            })
            .collect())
    }

    /// Returns the record of a directory of ours, or says why it is not ours.
    fn own_record(&self, path: &Path) -> Result<Record, String> {
        let text = fs::read_to_string(path.join(RECORD))
            .map_err(|error| format!("without a record of zdap's ({RECORD}: {error})"))?;
        let record = Record::parse(&text).ok_or_else(|| format!("its {RECORD} is not understood"))?;
        match self.root.join(record.place()) == path {
            true => Ok(record),
            false => Err(format!("its {RECORD} is that of {}", record.place())),
        }
    }

    fn new_directory(&self) -> Result<NewDirectory, StorageError> {
        loop {
            let number = self.made.fetch_add(1, Ordering::Relaxed);
            let path = self.root.join(NEW).join(number.to_string());
            match fs::create_dir(&path) {
                Ok(()) => return Ok(NewDirectory(path)),
                // What an earlier life left and this one could not remove.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed("make", &path, error)),
            }
        }
    }

    fn path(&self, dataset: &DatasetId) -> PathBuf {
        match dataset {
            DatasetId::Base(base) => self.root.join(base.to_string()),
            DatasetId::Snapshot(snapshot) => self
                .root
                .join(snapshot.base.to_string())
                .join(format!("@{}", snapshot.label())),
            DatasetId::Clone(clone) => self.root.join(CLONES).join(clone.as_str()),
        }
    }
}

/// Removed when it goes out of scope, unless it has been renamed by then.
struct NewDirectory(PathBuf);

impl NewDirectory {
    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for NewDirectory {
    fn drop(&mut self) {
        if let Err(error) = remove_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "a half made directory is left until the next start");
        }
    }
}

/// Returns whether the tree is `owner`'s already; refuses one that is another's, or that holds what is nobody's.
fn check_owner(root: &Path, owner: &str) -> Result<bool, StorageError> {
    let node_file = root.join(NODE_FILE);
    match fs::read_to_string(&node_file) {
        Ok(node) if node.trim() == owner => Ok(true),
        Ok(node) => Err(StorageError::NotOurs {
            message: format!(
                "`{}` belongs to the node `{}`; this node is `{owner}`",
                root.display(),
                node.trim()
            ),
            hint: format!(
                "name another directory, or, if that node is gone for good, hand its data over by writing `{owner}` \
                 into `{}`",
                node_file.display()
            ),
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            // A first start that was cut short leaves a lock file, and perhaps the beginning of the other.
            let is_ours =
                |name: &String| name == LOST_AND_FOUND || name == LOCK_FILE || name.starts_with(NODE_FILE);
            match entries(root)?.iter().find(|name| !is_ours(name)) {
                None => Ok(false),
                Some(stranger) => Err(StorageError::NotOurs {
                    message: format!(
                        "`{}` is not ours: it has no file `{NODE_FILE}`, and holds `{stranger}`",
                        root.display()
                    ),
                    hint: "name an empty directory, or one that does not exist yet".to_owned(),
                }),
            }
        }
        Err(error) => Err(not_readable(&node_file, &error)),
    }
}

/// Reads a base with its snapshots; what else lies in it goes to `foreign`.
fn base(id: BaseId, path: &Path, foreign: &mut Vec<String>) -> Result<BaseDataset, StorageError> {
    let mut snapshots = Vec::new();
    for name in entries(path)? {
        if let Some(snapshot) = name.strip_prefix('@').and_then(|label| snapshot_of(&id, label)) {
            match read_size(&path.join(size_file(&snapshot))) {
                Ok(bytes) => snapshots.push((snapshot, bytes)),
                // It went away while we looked.
                Err(_) if !path.join(&name).exists() => {}
                Err(_) => {
                    let bytes = files::bytes_below(&path.join(&name))?;
                    write_file(path, &size_file(&snapshot), &bytes.to_string())?;
                    snapshots.push((snapshot, bytes));
                }
            }
        } else if ![RECORD, DATA].contains(&name.as_str()) && !is_size_file(&id, &name) {
            foreign.push(format!("{}: zdap did not make it", path.join(name).display()));
        }
    }
    snapshots.sort_unstable();
    Ok(BaseDataset {
        id,
        path: path.join(DATA),
        snapshots,
    })
}

/// Returns the name of the file with the snapshot's size. It is written before the snapshot appears and removed after it
/// has gone; it may stay behind alone.
fn size_file(snapshot: &SnapshotId) -> String {
    format!("{}{SIZE}", snapshot.label())
}

/// Returns whether `name` is that of a size, or of the beginning of one.
fn is_size_file(base: &BaseId, name: &str) -> bool {
    name.strip_suffix(".new")
        .unwrap_or(name)
        .strip_suffix(SIZE)
        .is_some_and(|label| snapshot_of(base, label).is_some())
}

fn foreign(path: &Path, reason: &str) -> StorageError {
    StorageError::Unusable {
        message: format!("`{}` is in the way: {reason}", path.display()),
        hint: "move it elsewhere, if it is not needed there".to_owned(),
    }
}

const NODE_FILE: &str = ".zdap-node";
const NEW: &str = ".new";
const TRASH: &str = ".trash";
const RECORD: &str = "record.json";
const DATA: &str = "data";
/// Follows a snapshot's label.
const SIZE: &str = ".bytes";
/// In the root of every fresh ext file system.
const LOST_AND_FOUND: &str = "lost+found";
