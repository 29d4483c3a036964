//! One zdapd to a tree: an advisory lock that the kernel lets go of however the process ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;

use super::StorageError;

/// The file in a tree that is locked.
pub(super) const LOCK_FILE: &str = ".zdap-lock";

/// Takes the lock of the tree that lies at `directory`; it is held for as long as the file is open.
pub(super) fn lock(directory: &Path) -> Result<File, StorageError> {
    let path = directory.join(LOCK_FILE);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|error| not_writable(&path, &error))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder); // only to name it
            return Err(StorageError::Unusable {
                message: format!(
                    "another zdapd (process {}) works on `{}`",
                    holder.trim(),
                    directory.display()
                ),
                hint: "stop it first, or give this one a pool or directory of its own".to_owned(),
            });
        }
        Err(TryLockError::Error(error)) => return Err(not_writable(&path, &error)),
    }
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(|error| not_writable(&path, &error))?;
    Ok(file)
}

/// Returns what to say when nothing can be written at `path`.
pub(super) fn not_writable(path: &Path, error: &io::Error) -> StorageError {
    let is = |kind: ErrorKind| error.kind() == kind;
    let hint = if is(ErrorKind::ReadOnlyFilesystem) {
        "the file system is mounted read-only: mount it read-write"
    } else if is(ErrorKind::PermissionDenied) {
        "run zdapd as root, or as the user who owns it"
    } else if is(ErrorKind::StorageFull) || is(ErrorKind::QuotaExceeded) {
        "free some space first"
    } else {
        "zdapd needs to write there"
    };
    StorageError::Unusable {
        message: format!("cannot write `{}`: {error}", path.display()),
        hint: hint.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_is_refused_naming_the_holder_until_the_first_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let first = lock(directory.path()).unwrap();
        let error = lock(directory.path()).unwrap_err().to_string();
        assert!(
            error.contains(&format!("process {}", std::process::id())),
            "{error}"
        );
        assert!(error.contains(&directory.path().display().to_string()), "{error}");
        drop(first);
        lock(directory.path()).unwrap();
    }

    #[test]
    fn what_cannot_be_written_is_named_with_its_own_remedy() {
        for (kind, remedy) in [
            (ErrorKind::ReadOnlyFilesystem, "mount it read-write"),
            (ErrorKind::PermissionDenied, "run zdapd as root"),
            (ErrorKind::StorageFull, "free some space"),
        ] {
            let StorageError::Unusable { message, hint } =
                not_writable(Path::new("/srv/zdap"), &io::Error::from(kind))
            else {
                panic!("not unusable");
            };
            assert!(message.starts_with("cannot write `/srv/zdap`: "), "{message}");
            assert!(hint.contains(remedy), "{hint}");
        }
    }
}
