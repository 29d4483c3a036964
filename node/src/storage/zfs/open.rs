//! Opens a tree: whose it is, whether it can be used, and what an earlier start has left undone.

use std::path::PathBuf;

use tokio::sync::{Mutex, RwLock};

use super::parse::{self, Dataset, Listing};
use super::run::{Kind, zfs, zpool};
use super::{Zfs, foreign, list, list_one, mount_if_needed};
use crate::storage::StorageError;
use crate::storage::lock::lock;
use crate::storage::record::{CLONES, Record};

impl Zfs {
    /// Takes `<pool>/zdap`, and makes it if it is absent; `pool` may as well be a dataset, `tank/databases`.
    ///
    /// The property `zdap:node` on it says whose it is: `owner` (`<cluster>/<node>`) writes itself there once all else
    /// has been done, so that a first start that failed can be had again, by another owner too. A tree of
    /// another's, a tree that we did not make, and a tree that another process works on are refused. What is ours and
    /// not mounted (after a restart of the machine, or a kill between making and mounting) is mounted.
    pub async fn open(pool: &str, owner: &str) -> Result<Self, StorageError> {
        check_name(pool)?;
        check_health(pool).await?;
        let tree = format!("{pool}/zdap");
        let root = match list_one(&tree).await {
            Ok(root) => root,
            Err(failure) if failure.kind == Kind::Missing => {
                found(pool, &tree).await?;
                list_one(&tree).await.map_err(|failure| failure.in_pool(pool))?
            }
            Err(failure) => return Err(failure.in_pool(pool)),
        };
        check_owner(pool, &tree, &root, owner).await?;
        let mountpoint = usable_mountpoint(&tree, &root)?;
        mount_if_needed(&tree, &root)
            .await
            .map_err(|failure| failure.in_pool(pool))?;
        let zfs = Self {
            _lock: lock(&mountpoint)?,
            pool: pool.to_owned(),
            tree,
            mountpoint,
            folders: Mutex::new(()),
            changes: RwLock::new(()),
        };
        zfs.ensure_folder(CLONES).await?;
        zfs.mount_all().await?;
        if root.node.is_none() {
            let property = format!("zdap:node={owner}");
            zfs.run(&["set", &property, &zfs.tree]).await?;
        }
        Ok(zfs)
    }

    /// Makes the dataset `<tree>/<name>` that holds other datasets.
    pub(super) async fn ensure_folder(&self, name: &str) -> Result<(), StorageError> {
        let record = Record::Folder {
            folder: name.to_owned(),
        };
        let dataset = self.at(&record);
        match list_one(&dataset).await {
            Ok(folder) => {
                parse::own_record(&self.tree, &dataset, &folder)
                    .map_err(|reason| foreign(&format!("`{dataset}` is in the way: {reason}")))?;
                if usable_mountpoint(&dataset, &folder)? != self.mountpoint.join(name) {
                    return Err(StorageError::Unusable {
                        message: format!(
                            "`{dataset}` is mounted elsewhere than below `{}`",
                            self.mountpoint.display()
                        ),
                        hint: format!("`zfs inherit mountpoint {dataset}`"),
                    });
                }
                mount_if_needed(&dataset, &folder)
                    .await
                    .map_err(|failure| self.failed(failure))
            }
            Err(failure) if failure.kind == Kind::Missing => {
                let property = format!("zdap:record={}", record.text()?);
                self.run(&["create", "-o", &property, &dataset]).await.map(drop)
            }
            Err(failure) => Err(self.failed(failure)),
        }
    }

    /// Mounts what is ours and not mounted, as far as that can be done, and returns what there is then.
    pub(super) async fn mount_all(&self) -> Result<Listing, StorageError> {
        let mut listing = self
            .list(&self.tree)
            .await
            .map_err(|failure| self.failed(failure))?;
        for (name, dataset) in &mut listing {
            if !self.lacks_mount(name, dataset) {
                continue;
            }
            match mount_if_needed(name, dataset).await {
                Ok(()) => dataset.mounted = true,
                Err(failure) => {
                    tracing::warn!(error = %self.failed(failure), "cannot mount `{name}`: it is of no use until then");
                }
            }
        }
        Ok(listing)
    }

    /// Returns whether a dataset is ours, should be mounted, and is not.
    pub(super) fn lacks_mount(&self, name: &str, dataset: &Dataset) -> bool {
        dataset.kind == "filesystem"
            && !dataset.mounted
            && parse::own_record(&self.tree, name, dataset).is_ok()
    }
}

/// Refuses what cannot be the name of a pool or dataset.
fn check_name(pool: &str) -> Result<(), StorageError> {
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || "-_.:/".contains(letter);
    let reason = if pool.len() > LONGEST_POOL {
        format!(
            "is longer than {LONGEST_POOL} bytes, which leaves no room for the names of datasets below it"
        )
    } else if !pool.starts_with(|first: char| first.is_ascii_alphabetic()) {
        "does not begin with a letter".to_owned()
    } else if let Some(letter) = pool.chars().find(|letter| !allowed(*letter)) {
        format!("holds {letter:?}")
    } else if pool.split('/').any(str::is_empty) {
        "has an empty part".to_owned()
    } else {
        return Ok(());
    };
    Err(StorageError::Unusable {
        message: format!("`{pool}` is not the name of a pool or dataset: it {reason}"),
        hint: "`zpool list` shows the pools of this machine, `zfs list` the datasets".to_owned(),
    })
}

async fn check_health(pool: &str) -> Result<(), StorageError> {
    let name = pool.split('/').next().unwrap_or(pool);
    let health = zpool(&["list", "-H", "-o", "health", name])
        .await
        .map_err(|failure| failure.in_pool(name))?;
    match parse::is_healthy(&health) {
        true => Ok(()),
        false => Err(StorageError::Unusable {
            message: format!("the pool `{name}` is {}", health.trim()),
            hint: format!("`zpool status -x {name}` tells what is wrong with it"),
        }),
    }
}

/// Makes an empty tree, nobody's yet.
async fn found(pool: &str, tree: &str) -> Result<(), StorageError> {
    let parent = list_one(pool).await.map_err(|failure| failure.in_pool(pool))?;
    usable_mountpoint(pool, &parent)?;
    // Snapshots that others take at regular times would keep clones from being destroyed.
    let arguments = ["create", "-o", "com.sun:auto-snapshot=false", tree];
    match zfs(&arguments).await {
        Ok(_) => Ok(()),
        Err(failure) if failure.kind == Kind::Exists => Ok(()),
        Err(failure) => Err(failure.in_pool(pool)),
    }
}

/// Refuses a tree that is another's, or that holds things before it is anybody's.
async fn check_owner(pool: &str, tree: &str, root: &Dataset, owner: &str) -> Result<(), StorageError> {
    match &root.node {
        Some(node) if node == owner => Ok(()),
        Some(node) => Err(StorageError::NotOurs {
            message: format!("`{tree}` belongs to the node `{node}`; this node is `{owner}`"),
            hint: format!(
                "name another pool or dataset, or, if that node is gone for good, hand its data over with \
                 `zfs set zdap:node={owner} {tree}`"
            ),
        }),
        None => {
            let listing = list(tree, true).await.map_err(|failure| failure.in_pool(pool))?;
            let is_ours = |name: &str, dataset: &Dataset| {
                // All that a first start makes before it is through.
                name == tree
                    || matches!(parse::own_record(tree, name, dataset), Ok(Record::Folder { folder }) if folder == CLONES)
            };
            match listing.iter().find(|(name, dataset)| !is_ours(name, dataset)) {
                None => Ok(()),
                Some((stranger, _)) => Err(StorageError::NotOurs {
                    message: format!(
                        "`{tree}` is not ours: it has no property `zdap:node`, and holds `{stranger}`"
                    ),
                    hint: format!(
                        "name another pool or dataset, or, if it is zdap's, give it to this node with \
                         `zfs set zdap:node={owner} {tree}`"
                    ),
                }),
            }
        }
    }
}

/// Returns where `name` is mounted, or will be; a dataset with mountpoint `none` or `legacy` is of no use.
fn usable_mountpoint(name: &str, dataset: &Dataset) -> Result<PathBuf, StorageError> {
    match dataset.mountpoint.as_deref() {
        Some(path) if path.starts_with('/') => Ok(PathBuf::from(path)),
        other => Err(StorageError::Unusable {
            message: format!("`{name}` has the mountpoint `{}`", other.unwrap_or("-")),
            hint: format!("`zfs set mountpoint=/some/directory {name}`"),
        }),
    }
}

/// ZFS takes names of up to 255 bytes; `/zdap/`, a resource, a time, `@` and a time take 125 of them.
const LONGEST_POOL: usize = 128;
