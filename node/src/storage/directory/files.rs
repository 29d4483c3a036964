//! Files and directories, with errors that name them.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::storage::StorageError;
use crate::storage::lock::not_writable;

/// Returns the names in a directory, sorted; none if it has gone away.
pub(super) fn entries(directory: &Path) -> Result<Vec<String>, StorageError> {
    let read = || -> io::Result<Vec<String>> {
        fs::read_dir(directory)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    };
    match read() {
        Ok(mut names) => {
            names.sort_unstable();
            Ok(names)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(not_readable(directory, &error)),
    }
}

/// Replaces the file `name` in `directory`, whole and lastingly.
pub(super) fn write_file(directory: &Path, name: &str, text: &str) -> Result<(), StorageError> {
    let path = directory.join(name);
    let new = directory.join(format!("{name}.new"));
    let written = File::create(&new).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|error| failed("write", &new, error))?;
    rename(&new, &path)
}

/// Returns the size written beside the snapshot at `path`.
pub(super) fn read_size(path: &Path) -> Result<u64, StorageError> {
    let text = fs::read_to_string(path).map_err(|error| failed("read", path, error))?;
    text.trim().parse().map_err(|_| {
        StorageError::Unreadable(format!("`{}` holds `{text}`, no number of bytes", path.display()))
    })
}

/// Renames, and sees to it that the new name is still there after a power failure.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), StorageError> {
    let folder = to.parent().unwrap_or(to);
    fs::rename(from, to)
        .and_then(|()| File::open(folder)?.sync_all())
        .map_err(|error| failed("rename something to", to, error))
}

pub(super) fn sync_file_system(path: &Path) -> Result<(), StorageError> {
    File::open(path)
        .and_then(|file| Ok(rustix::fs::syncfs(file)?))
        .map_err(|error| failed("write out", path, error))
}

pub(super) fn ensure_directory(path: &Path) -> Result<(), StorageError> {
    match fs::create_dir(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(failed("make", path, error)),
    }
}

pub(super) fn remove_all(path: &Path) -> Result<(), StorageError> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("remove", path, error)),
    }
}

pub(super) fn remove_file(path: &Path) -> Result<(), StorageError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("remove", path, error)),
    }
}

/// Returns the error of something that could not be done to `path`.
pub(super) fn failed(verb: &str, path: &Path, error: io::Error) -> StorageError {
    let is = |kind: ErrorKind| error.kind() == kind;
    if is(ErrorKind::StorageFull) || is(ErrorKind::QuotaExceeded) {
        StorageError::Full(format!("the file system of `{}`", path.display()))
    } else if is(ErrorKind::ReadOnlyFilesystem) {
        not_writable(path, &error)
    } else {
        StorageError::Io {
            doing: format!("{verb} `{}`", path.display()),
            source: error,
        }
    }
}

pub(super) fn not_readable(path: &Path, error: &io::Error) -> StorageError {
    StorageError::Unusable {
        message: format!("cannot read `{}`: {error}", path.display()),
        hint: "run zdapd as root, or as the user who owns it".to_owned(),
    }
}

/// Returns the error of data that could not be read, which may belong to the user a container's database runs as.
pub(super) fn data_not_read(path: &Path, error: io::Error) -> StorageError {
    if error.kind() != ErrorKind::PermissionDenied {
        return failed("read", path, error);
    }
    let owner = fs::symlink_metadata(path).map_or_else(
        |_| "another user".to_owned(),
        |found| format!("user {}", found.uid()),
    );
    StorageError::Unusable {
        message: format!(
            "cannot read `{}`, which belongs to {owner}; zdapd runs as user {}",
            path.display(),
            rustix::process::geteuid().as_raw()
        ),
        hint: "run zdapd as root, or with `--runtime process`, under which the data stays zdapd's own"
            .to_owned(),
    }
}

/// Returns the bytes on disk of what lies below a directory; what goes away meanwhile is not counted.
pub(super) fn bytes_below(directory: &Path) -> Result<u64, StorageError> {
    let add = |sum: u64, path: &Path| -> Result<u64, StorageError> {
        match fs::symlink_metadata(path) {
            Ok(found) if found.is_dir() => Ok(sum + bytes_below(path)?),
            Ok(found) => Ok(sum + found.blocks() * BLOCK),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(sum),
            Err(error) => Err(failed("look at", path, error)),
        }
    };
    match fs::read_dir(directory) {
        Ok(mut entries) => entries.try_fold(0, |sum, entry| {
            let entry = entry.map_err(|error| data_not_read(directory, error))?;
            add(sum, &entry.path())
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
        Err(error) => Err(data_not_read(directory, error)),
    }
}

/// `st_blocks` counts in these, whatever the file system's own blocks are.
const BLOCK: u64 = 512;
