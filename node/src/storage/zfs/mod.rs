//! Datasets of a ZFS pool, by the `zfs` and `zpool` programs in the dialect that zfs-fuse 0.7 and OpenZFS 2.x share.

mod open;
mod parse;
mod run;

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use backon::{ExponentialBuilder, Retryable};
use tokio::sync::{Mutex, RwLock};
use zdap_proto::message::CloneRecord;
use zdap_proto::name::{BaseId, SnapshotId};

use super::record::{CLONES, Record};
use super::{Capacity, DatasetId, Inventory, Storage, StorageError, ZfsProperties};
use parse::{Dataset, Listing};
use run::{Failure, Kind, zfs};

/// The tree `<pool>/zdap` of one node.
#[derive(Debug)]
pub struct Zfs {
    pool: String,
    tree: String,
    mountpoint: PathBuf,
    /// Held while the folder of a resource is made or removed: folders come and go with their bases.
    folders: Mutex<()>,
    /// Held for reading while a dataset is made or removed: for a moment it is there and not mounted, and mounting it
    /// then would be in the way.
    changes: RwLock<()>,
    _lock: File,
}

impl Zfs {
    /// Runs a command that makes `dataset`, and returns where it is mounted.
    async fn make(
        &self,
        arguments: &[String],
        record: &Record,
        source: &DatasetId,
    ) -> Result<PathBuf, StorageError> {
        let path = self.mountpoint.join(record.place());
        let _changes = self.changes.read().await;
        match zfs(arguments).await {
            Ok(_) if is_mounted(&path, &self.mountpoint).await => Ok(path),
            Ok(_) => Err(StorageError::Unusable {
                message: format!(
                    "`{}` was made, but is not mounted on `{}`",
                    self.at(record),
                    path.display()
                ),
                hint: "run zdapd as root, and with `canmount` left at `on`".to_owned(),
            }),
            Err(failure) => match failure.kind {
                Kind::Exists => self.confirm(record, failure).await.map(|()| path),
                // The directory to mount on needs room too.
                Kind::Unmounted if self.is_full().await => {
                    Err(StorageError::Full(format!("`{}`", self.pool)))
                }
                Kind::Unmounted
                | Kind::Missing
                | Kind::Busy
                | Kind::HasClones
                | Kind::Full
                | Kind::Denied
                | Kind::Unavailable
                | Kind::Other => Err(failure.about(source, &self.pool)),
            },
        }
    }

    /// Finds the dataset that was in the way to be the one that was to be made, and mounts it if that was left undone.
    async fn confirm(&self, record: &Record, failure: Failure) -> Result<(), StorageError> {
        let name = self.at(record);
        let found = list_one(&name).await.map_err(|failure| self.failed(failure))?;
        match parse::own_record(&self.tree, &name, &found) {
            Ok(there) if there == *record => mount_if_needed(&name, &found)
                .await
                .map_err(|failure| self.failed(failure)),
            Ok(_) => Err(self.failed(failure.explained("with another record"))),
            Err(reason) => Err(self.failed(failure.explained(&reason))),
        }
    }

    /// Refuses to destroy what is not ours, or holds what is not ours. Returns whether there is anything at all.
    async fn check_ours(&self, name: &str) -> Result<bool, StorageError> {
        let listing = match self.list(name).await {
            Ok(listing) => listing,
            Err(failure) if failure.kind == Kind::Missing => return Ok(false),
            Err(failure) => return Err(self.failed(failure)),
        };
        let strangers = parse::inventory(&self.tree, &listing).foreign;
        match strangers.is_empty() {
            true => Ok(true),
            false => Err(foreign(&format!(
                "`{name}` is or holds what zdap did not make: {}",
                strangers.join(", ")
            ))),
        }
    }

    /// Destroys `name`. While the kernel or another program has not quite let go, the programs say "busy": normal for
    /// some hundredths of a second after the last process has left.
    async fn destroy_named(
        &self,
        dataset: &DatasetId,
        name: &str,
        recursive: bool,
    ) -> Result<(), StorageError> {
        let arguments: &[&str] = match recursive {
            true => &["destroy", "-r", name],
            false => &["destroy", name],
        };
        let attempt = || async {
            match zfs(arguments).await {
                Ok(_) => Ok(()),
                Err(failure) if failure.kind == Kind::Missing => Ok(()),
                Err(failure) => Err(failure.about(dataset, &self.pool)),
            }
        };
        attempt
            .retry(
                ExponentialBuilder::new()
                    .with_min_delay(FIRST_RETRY)
                    .with_factor(1.5)
                    .with_max_delay(SLOWEST_RETRY)
                    .without_max_times()
                    .with_total_delay(Some(RETRY_FOR)),
            )
            .when(|error| matches!(error, StorageError::Busy(_)))
            .await
    }

    /// Removes the directory a destroyed dataset was mounted on, where the programs have left it.
    async fn remove_mountpoint(&self, record_place: &str) {
        let path = self.mountpoint.join(record_place);
        match tokio::fs::remove_dir(&path).await {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the directory of a destroyed dataset is left");
            }
        }
    }

    async fn is_full(&self) -> bool {
        matches!(self.capacity().await, Ok(capacity) if capacity.free_bytes < SMALLEST_ROOM)
    }

    /// Lists a dataset and everything below it. A dataset that another command destroys meanwhile makes `zfs get`
    /// fail now and then: it is asked again.
    async fn list(&self, name: &str) -> Result<Listing, Failure> {
        let list = || list(name, true);
        let attempts = ExponentialBuilder::new()
            .with_min_delay(FIRST_RETRY)
            .with_max_times(4);
        list.retry(attempts)
            .when(|failure| failure.kind == Kind::Missing && failure.is_about_other_than(name))
            .await
    }

    /// Runs a command that is about the pool as a whole.
    async fn run(&self, arguments: &[&str]) -> Result<String, StorageError> {
        zfs(arguments).await.map_err(|failure| self.failed(failure))
    }

    fn at(&self, record: &Record) -> String {
        format!("{}/{}", self.tree, record.place())
    }

    fn name(&self, dataset: &DatasetId) -> String {
        match dataset {
            DatasetId::Base(base) => format!("{}/{base}", self.tree),
            DatasetId::Snapshot(snapshot) => format!("{}/{snapshot}", self.tree),
            DatasetId::Clone(clone) => format!("{}/{CLONES}/{clone}", self.tree),
        }
    }

    fn failed(&self, failure: Failure) -> StorageError {
        failure.in_pool(&self.pool)
    }
}

#[async_trait]
impl Storage for Zfs {
    async fn inventory(&self) -> Result<Inventory, StorageError> {
        let mut listing = self
            .list(&self.tree)
            .await
            .map_err(|failure| self.failed(failure))?;
        if listing.iter().any(|(name, dataset)| self.lacks_mount(name, dataset))
            // While something comes or goes it is what is not mounted; the next inventory mounts the rest.
            && let Ok(_alone) = self.changes.try_write()
        {
            listing = self.mount_all().await?;
        }
        Ok(parse::inventory(&self.tree, &listing))
    }

    async fn create_base(&self, base: &BaseId, properties: &ZfsProperties) -> Result<PathBuf, StorageError> {
        let record = Record::Base(base.clone());
        let mut arguments = vec!["create".to_owned()];
        push_properties(&mut arguments, &record, properties)?;
        arguments.push(self.at(&record));
        let _folders = self.folders.lock().await;
        self.ensure_folder(base.resource.as_str()).await?;
        self.make(&arguments, &record, &DatasetId::Base(base.clone()))
            .await
    }

    async fn snapshot(&self, snapshot: &SnapshotId) -> Result<(), StorageError> {
        let name = self.name(&DatasetId::Snapshot(snapshot.clone()));
        match zfs(&["snapshot", &name]).await {
            Ok(_) => Ok(()),
            Err(failure) if failure.kind == Kind::Exists => Ok(()),
            Err(failure) => Err(failure.about(&DatasetId::Base(snapshot.base.clone()), &self.pool)),
        }
    }

    async fn create_clone(
        &self,
        record: &CloneRecord,
        properties: &ZfsProperties,
        disk_limit_bytes: Option<u64>,
    ) -> Result<PathBuf, StorageError> {
        let source = DatasetId::Snapshot(record.snapshot.clone());
        let record = Record::Clone(record.clone());
        let mut arguments = vec!["clone".to_owned()];
        push_properties(&mut arguments, &record, properties)?;
        if let Some(limit) = disk_limit_bytes {
            arguments.extend(["-o".to_owned(), format!("refquota={limit}")]);
        }
        arguments.extend([self.name(&source), self.at(&record)]);
        match (self.make(&arguments, &record, &source).await, disk_limit_bytes) {
            (Err(StorageError::Full(_)), Some(limit)) if !self.is_full().await => Err(StorageError::Full(
                format!("a clone of at most {limit} bytes (`limits.disk`): the snapshot alone holds more"),
            )),
            (result, _) => result,
        }
    }

    async fn update_record(&self, record: &CloneRecord) -> Result<(), StorageError> {
        let clone = DatasetId::Clone(record.id.clone());
        let property = format!("zdap:record={}", Record::Clone(record.clone()).text()?);
        zfs(&["set", &property, &self.name(&clone)])
            .await
            .map(drop)
            .map_err(|failure| failure.about(&clone, &self.pool))
    }

    async fn destroy(&self, dataset: &DatasetId) -> Result<(), StorageError> {
        let name = self.name(dataset);
        let _changes = self.changes.read().await;
        match dataset {
            DatasetId::Snapshot(_) => self.destroy_named(dataset, &name, false).await,
            DatasetId::Clone(clone) => {
                if self.check_ours(&name).await? {
                    self.destroy_named(dataset, &name, false).await?;
                    self.remove_mountpoint(&format!("{CLONES}/{clone}")).await;
                }
                Ok(())
            }
            DatasetId::Base(base) => {
                if self.check_ours(&name).await? {
                    self.destroy_named(dataset, &name, true).await?;
                    self.remove_mountpoint(&base.to_string()).await;
                }
                let folder = base.resource.as_str();
                if folder != CLONES {
                    let _folders = self.folders.lock().await;
                    // Refused for as long as another base lies in it.
                    let name = format!("{}/{folder}", self.tree);
                    if self.destroy_named(dataset, &name, false).await.is_ok() {
                        self.remove_mountpoint(folder).await;
                    }
                }
                Ok(())
            }
        }
    }

    async fn referenced_bytes(&self, dataset: &DatasetId) -> Result<u64, StorageError> {
        let name = self.name(dataset);
        let text = zfs(&["get", "-Hp", "-o", "value", "referenced", &name])
            .await
            .map_err(|failure| failure.about(dataset, &self.pool))?;
        parse::referenced(&text)
    }

    async fn capacity(&self) -> Result<Capacity, StorageError> {
        let arguments = ["get", "-Hp", "-o", "property,value", "used,available", &self.pool];
        parse::capacity(&self.run(&arguments).await?)
    }
}

async fn mount_if_needed(name: &str, dataset: &Dataset) -> Result<(), Failure> {
    match dataset.mounted {
        true => Ok(()),
        false => zfs(&["mount", name]).await.map(drop),
    }
}

/// Tells a mounted dataset from the empty directory it would be mounted on: it is a file system of its own.
async fn is_mounted(path: &Path, tree: &Path) -> bool {
    match (tokio::fs::metadata(path).await, tokio::fs::metadata(tree).await) {
        (Ok(own), Ok(tree)) => own.dev() != tree.dev(),
        _ => false,
    }
}

async fn list_one(name: &str) -> Result<Dataset, Failure> {
    let mut listing = list(name, false).await?;
    Ok(listing.remove(name).unwrap_or_default())
}

async fn list(name: &str, recursive: bool) -> Result<Listing, Failure> {
    let flags = if recursive { "-rHp" } else { "-Hp" };
    let arguments = [
        "get",
        flags,
        "-o",
        "name,property,value,source",
        parse::PROPERTIES,
        name,
    ];
    parse::listing(&zfs(&arguments).await?).map_err(|error| Failure::unreadable(&arguments, &error))
}

/// Adds the record and then what the resource file asks for.
fn push_properties(
    arguments: &mut Vec<String>,
    record: &Record,
    properties: &ZfsProperties,
) -> Result<(), StorageError> {
    arguments.extend(["-o".to_owned(), format!("zdap:record={}", record.text()?)]);
    for (name, value) in properties.iter() {
        arguments.extend(["-o".to_owned(), format!("{name}={value}")]);
    }
    Ok(())
}

fn foreign(message: &str) -> StorageError {
    StorageError::Unusable {
        message: message.to_owned(),
        hint: "`zfs destroy` or `zfs rename` it, if it is not needed there".to_owned(),
    }
}

/// "busy" after the last process has left lasts 20-100 ms on zfs-fuse.
const FIRST_RETRY: Duration = Duration::from_millis(20);
const SLOWEST_RETRY: Duration = Duration::from_millis(250);
/// Whatever is busy longer than this is in use; the caller has a better idea when to come back.
const RETRY_FOR: Duration = Duration::from_secs(2);
/// Less than this is no room at all: ZFS itself keeps some back for its own bookkeeping.
const SMALLEST_ROOM: u64 = 1 << 20;
