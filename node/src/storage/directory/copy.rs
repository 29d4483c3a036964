//! Copies a directory of stopped database files, sharing their blocks where the file system can.

use std::fs::{self, File, FileTimes, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

use super::files::{data_not_read, ensure_directory, failed};
use crate::storage::StorageError;

/// Copies, and remembers whether the file system shares blocks.
#[derive(Debug, Default)]
pub(super) struct Copier {
    cannot_share: AtomicBool,
}

impl Copier {
    /// Makes `target` (made if absent) a copy of the directory `source`: contents, modes, times, symbolic links, and
    /// the owners where this user may set them. A file with several names becomes several files; sockets, pipes and
    /// devices belong to a process that runs, and are left out. Ends early with an error once `abandoned` is set.
    pub(super) fn copy(
        &self,
        source: &Path,
        target: &Path,
        abandoned: &AtomicBool,
    ) -> Result<(), StorageError> {
        ensure_directory(target)?;
        let entries = fs::read_dir(source).map_err(|error| data_not_read(source, error))?;
        for entry in entries {
            let entry = entry.map_err(|error| failed("read", source, error))?;
            if abandoned.load(Ordering::Relaxed) {
                let error = io::Error::new(ErrorKind::Interrupted, "nobody waits for it any more");
                return Err(failed("copy", source, error));
            }
            let (from, to) = (entry.path(), target.join(entry.file_name()));
            let kind = entry
                .file_type()
                .map_err(|error| failed("look at", &from, error))?;
            if kind.is_dir() {
                self.copy(&from, &to, abandoned)?;
            } else if kind.is_file() {
                let file = File::open(&from).map_err(|error| data_not_read(&from, error))?;
                self.copy_file(file, &to)
                    .map_err(|error| failed("copy a file to", &to, error))?;
            } else if kind.is_symlink() {
                copy_link(&from, &to).map_err(|error| failed("copy a link to", &to, error))?;
            }
        }
        // Last: making the entries changes the time, and the mode may forbid to make them.
        File::open(target)
            .and_then(|directory| copy_metadata(&fs::metadata(source)?, target, &directory))
            .map_err(|error| failed("set the owner, mode and time of", target, error))
    }

    fn copy_file(&self, mut source: File, to: &Path) -> io::Result<()> {
        let mut target = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(to)?;
        if !self.share_blocks(&source, &target, to)? {
            io::copy(&mut source, &mut target)?;
        }
        copy_metadata(&source.metadata()?, to, &target)
    }

    /// Makes `target` share the blocks of `source`; returns false where that cannot be.
    fn share_blocks(&self, source: &File, target: &File, path: &Path) -> io::Result<bool> {
        if self.cannot_share.load(Ordering::Relaxed) {
            return Ok(false);
        }
        match rustix::fs::ioctl_ficlone(target, source) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS | Errno::XDEV) => {
                self.cannot_share.store(true, Ordering::Relaxed);
                WARNED.call_once(|| {
                    tracing::warn!(
                        file_system = file_system(path),
                        path = %path.display(),
                        "this file system cannot share blocks between files: every snapshot and clone is a full copy \
                         and takes as long and as much space as the data; use ZFS, btrfs or XFS for large databases"
                    );
                });
                Ok(false)
            }
            // This one file only, for a reason of its own, such as its being a swap file.
            Err(Errno::INVAL | Errno::PERM | Errno::TXTBSY) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

fn copy_link(from: &Path, to: &Path) -> io::Result<()> {
    symlink(fs::read_link(from)?, to)?;
    let owner = fs::symlink_metadata(from)?;
    may_be_refused(lchown(to, Some(owner.uid()), Some(owner.gid())))
}

/// The owner first: a change of owner takes bits off the mode.
fn copy_metadata(source: &fs::Metadata, path: &Path, target: &File) -> io::Result<()> {
    may_be_refused(chown(path, Some(source.uid()), Some(source.gid())))?;
    target.set_permissions(Permissions::from_mode(source.mode()))?;
    target.set_times(FileTimes::new().set_modified(source.modified()?))
}

/// Only root gives files away; for any other user the files are its own before and after.
fn may_be_refused(changed: io::Result<()>) -> io::Result<()> {
    match changed {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
        other => other,
    }
}

/// Returns the name of the file system `path` lies on, for people.
fn file_system(path: &Path) -> String {
    match rustix::fs::statfs(path).map(|found| found.f_type) {
        Ok(0xEF53) => "ext4".to_owned(),
        Ok(0x5846_5342) => "xfs without reflink".to_owned(),
        Ok(0x0102_1994) => "tmpfs".to_owned(),
        Ok(0x794c_7630) => "overlayfs".to_owned(),
        Ok(0x2fc1_2fc1) => "zfs".to_owned(),
        Ok(0x6969) => "nfs".to_owned(),
        Ok(magic) => format!("{magic:#x}"),
        Err(error) => error.to_string(),
    }
}

/// Once in the life of the process, however many trees it has.
static WARNED: Once = Once::new();
