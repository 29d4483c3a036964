//! What a node keeps about each instance: one directory with a note and a log, written before anything is started and
//! removed after everything has ended.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;
use serde::{Deserialize, Serialize};

use super::account::Account;
use crate::runtime::{InstanceId, RuntimeError, last_lines};

/// What is known about one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// What it is for.
    pub(super) id: InstanceId,
    /// The data directory itself.
    pub(super) data: PathBuf,
    /// The server's socket, alone in a directory of its own.
    pub(super) socket: PathBuf,
}

/// The directory of one instance.
#[derive(Debug, Clone)]
pub(super) struct Home(PathBuf);

impl Home {
    /// Returns where the instance of that name is, or would be.
    pub(super) fn of(state_dir: &Path, name: &str) -> Self {
        Self(state_dir.join("instances").join(name))
    }

    /// Returns the homes of every instance.
    pub(super) fn all(state_dir: &Path) -> Result<Vec<Self>, RuntimeError> {
        let directory = state_dir.join("instances");
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|error| failed("list", &directory, &error))?,
        };
        entries
            .map(|entry| {
                Ok(Self(
                    entry.map_err(|error| failed("list", &directory, &error))?.path(),
                ))
            })
            .collect()
    }

    /// Returns the note, if the instance exists.
    pub(super) fn note(&self) -> Result<Option<Note>, RuntimeError> {
        let path = self.0.join(NOTE);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            text => text.map_err(|error| failed("read", &path, &error))?,
        };
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| failed("read", &path, &error.into()))
    }

    /// Writes the note, whole or not at all.
    pub(super) fn write(&self, note: &Note) -> Result<(), RuntimeError> {
        let (path, fresh) = (self.0.join(NOTE), self.0.join("instance.json.new"));
        let write = || {
            DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
            let mut file = File::create(&fresh)?;
            file.write_all(&serde_json::to_vec(note)?)?;
            file.sync_all()?;
            fs::rename(&fresh, &path)
        };
        write().map_err(|error| failed("write", &path, &error))
    }

    /// Opens the log to append to. Output of earlier starts is dropped once it is large.
    pub(super) fn open_log(&self) -> Result<Log, RuntimeError> {
        let path = self.0.join("log");
        let open = || {
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .mode(0o600)
                .open(&path)?;
            if file.metadata()?.len() > LARGE_LOG {
                file.set_len(0)?;
            }
            let begin = file.metadata()?.len();
            Ok(Log {
                file,
                path: path.clone(),
                begin,
            })
        };
        open().map_err(|error| failed("open", &path, &error))
    }

    /// Removes it with the directory of its socket; that it is gone already is fine.
    pub(super) fn remove(&self, note: Option<&Note>) -> Result<(), RuntimeError> {
        let sockets = note.and_then(|note| note.socket.parent());
        for path in sockets.into_iter().chain([self.0.as_path()]) {
            match fs::remove_dir_all(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(failed("remove", path, &error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }
}

/// What an instance prints, from one start on.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) file: File,
    path: PathBuf,
    begin: u64,
}

impl Log {
    /// Returns the last lines printed since the start.
    pub(super) fn tail(&self) -> String {
        let read = || {
            let mut file = File::open(&self.path)?;
            let end = file.seek(SeekFrom::End(0))?;
            file.seek(SeekFrom::Start(self.begin.max(end.saturating_sub(TAIL))))?;
            let mut text = Vec::new();
            file.take(TAIL).read_to_end(&mut text)?;
            Ok(last_lines(&String::from_utf8_lossy(&text)))
        };
        read().unwrap_or_else(|error: io::Error| format!("({}: {error})", self.path.display()))
    }
}

/// Makes the directory for an instance's socket and returns the socket's path in it.
///
/// Below the state directory if `account` can get there and the path is short enough for a socket; else below `/run`,
/// `$XDG_RUNTIME_DIR` or `/tmp`.
pub(super) fn make_socket_directory(
    state_dir: &Path,
    name: &str,
    port: u16,
    account: &Account,
) -> Result<PathBuf, RuntimeError> {
    let mut hasher = DefaultHasher::new();
    (state_dir, name).hash(&mut hasher);
    let (unique, file) = (format!("{:016x}", hasher.finish()), format!(".s.PGSQL.{port}"));
    let mut reasons = Vec::new();
    for parent in socket_parents(state_dir, account) {
        let directory = parent.join(&unique);
        let socket = directory.join(&file);
        if socket.as_os_str().len() > LONGEST_SOCKET {
            reasons.push(format!("{} is too long for a socket", socket.display()));
            continue;
        }
        match own_directory(&parent, 0o711, None)
            .and_then(|()| account.can_enter(&parent))
            .and_then(|()| own_directory(&directory, 0o700, Some(account)))
        {
            Ok(()) => return Ok(socket),
            Err(error) => reasons.push(error.to_string()),
        }
    }
    Err(RuntimeError::Failed {
        doing: format!("make a directory for the socket of {name}"),
        reason: reasons.join("; "),
    })
}

fn socket_parents(state_dir: &Path, account: &Account) -> Vec<PathBuf> {
    let mut parents = vec![state_dir.join("run")];
    match geteuid().is_root() {
        true => parents.push(PathBuf::from("/run/zdapd")),
        false => parents
            .extend(std::env::var_os("XDG_RUNTIME_DIR").map(|directory| Path::new(&directory).join("zdapd"))),
    }
    parents.push(PathBuf::from(format!("/tmp/zdapd-{}", account.uid)));
    parents
}

/// Makes a directory, for `account` if given. One that is there already must be ours or the account's: `/tmp` is open to
/// others.
fn own_directory(path: &Path, mode: u32, account: Option<&Account>) -> Result<(), RuntimeError> {
    let make = || {
        match DirBuilder::new().mode(mode).create(path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let metadata = fs::symlink_metadata(path)?;
        let owners = [Some(geteuid().as_raw()), account.map(|account| account.uid)];
        if !metadata.is_dir() || !owners.contains(&Some(metadata.uid())) {
            return Err(io::Error::other("it is not our directory"));
        }
        fs::set_permissions(path, Permissions::from_mode(mode))?;
        match account {
            Some(account) if metadata.uid() != account.uid => {
                chown(path, Some(account.uid), Some(account.gid))
            }
            Some(_) | None => Ok(()),
        }
    };
    make().map_err(|error| failed("make", path, &error))
}

/// Says what could not be done to which path.
pub(super) fn failed(verb: &str, path: &Path, error: &io::Error) -> RuntimeError {
    RuntimeError::Failed {
        doing: format!("{verb} {}", path.display()),
        reason: error.to_string(),
    }
}

const NOTE: &str = "instance.json";
/// `sun_path` holds 108 bytes, the last of them NUL.
const LONGEST_SOCKET: usize = 107;
/// Days of a talkative database; enough to look back.
const LARGE_LOG: u64 = 16 * 1024 * 1024;
/// Far more than the lines that are shown fill: many more may be left out.
const TAIL: u64 = 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn account() -> Account {
        Account::choose().unwrap()
    }

    #[test]
    fn a_long_state_directory_still_gives_a_socket_that_can_be_bound() {
        let directory = tempfile::tempdir().unwrap();
        let state_dir = directory.path().join("x".repeat(120));
        fs::create_dir(&state_dir).unwrap();
        let socket = make_socket_directory(&state_dir, "zdap-orders-k3v9x2mq", 5432, &account()).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        fs::remove_dir_all(socket.parent().unwrap()).unwrap();
    }

    #[test]
    fn a_directory_of_somebody_else_is_not_used_for_a_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run");
        std::os::unix::fs::symlink("/", &path).unwrap();
        let error = own_directory(&path, 0o700, None).unwrap_err().to_string();
        assert!(error.contains("it is not our directory"), "{error}");
    }

    #[test]
    fn the_log_of_a_start_does_not_show_an_earlier_one() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home(directory.path().to_owned());
        home.open_log().unwrap().file.write_all(b"earlier\n").unwrap();
        let mut log = home.open_log().unwrap();
        log.file.write_all(b"now\n").unwrap();
        assert_eq!(log.tail(), "now");
    }
}
