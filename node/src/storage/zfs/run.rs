//! Runs the ZFS programs: argument vectors, never a shell, and what they say on failure becomes a kind in one place.

use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use crate::storage::{DatasetId, StorageError};

/// Runs `zfs` and returns what it printed.
pub(super) async fn zfs<S: AsRef<str>>(arguments: &[S]) -> Result<String, Failure> {
    run("zfs", arguments, PATIENCE).await
}

/// Runs `zpool` and returns what it printed.
pub(super) async fn zpool<S: AsRef<str>>(arguments: &[S]) -> Result<String, Failure> {
    run("zpool", arguments, PATIENCE).await
}

/// A program that failed.
#[derive(Debug)]
pub(super) struct Failure {
    /// What to make of it.
    pub(super) kind: Kind,
    command: String,
    stderr: String,
}

/// What the programs' words mean to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// There is no such dataset, snapshot or pool.
    Missing,
    /// Something uses it.
    Busy,
    /// Clones hang from it.
    HasClones,
    /// The pool, a quota or the clone's own limit has no room for it.
    Full,
    /// There already is a dataset of that name.
    Exists,
    /// The dataset was made, and could not be mounted.
    Unmounted,
    /// This user may not.
    Denied,
    /// The programs, the kernel module or the daemon behind them are not there.
    Unavailable,
    /// Anything else.
    Other,
}

impl Failure {
    /// Returns the error of a command that was about one dataset in `pool`.
    pub(super) fn about(self, dataset: &DatasetId, pool: &str) -> StorageError {
        match self.kind {
            Kind::Missing => StorageError::Missing(dataset.clone()),
            Kind::Busy => StorageError::Busy(dataset.clone()),
            Kind::HasClones => StorageError::HasClones(dataset.clone()),
            Kind::Full | Kind::Exists | Kind::Unmounted | Kind::Denied | Kind::Unavailable | Kind::Other => {
                self.in_pool(pool)
            }
        }
    }

    /// Returns the error of a command that was about `pool`.
    pub(super) fn in_pool(self, pool: &str) -> StorageError {
        let hint = match self.kind {
            Kind::Full => return StorageError::Full(format!("`{pool}`")),
            Kind::Missing => format!(
                "`zpool list` and `zfs list` show what is on this machine; `zpool create` makes a pool, and \
                 `zfs create` a dataset in one, such as `{pool}`"
            ),
            Kind::Denied => format!(
                "run zdapd as root; on OpenZFS `zfs allow` can give a user rights on `{pool}`, but Linux lets only \
                 root mount"
            ),
            Kind::Unavailable => {
                "install ZFS (zfsutils-linux, or zfs-fuse), and start its daemon or load its \
                                  kernel module"
                    .to_owned()
            }
            Kind::Busy | Kind::HasClones | Kind::Exists | Kind::Unmounted | Kind::Other => {
                return StorageError::Command {
                    command: self.command,
                    stderr: self.stderr,
                };
            }
        };
        StorageError::Unusable {
            message: format!(
                "cannot use `{pool}`: `{}` says: {}",
                self.command,
                self.stderr.replace('\n', "; ")
            ),
            hint,
        }
    }

    /// Returns the failure of a `zfs` command whose output could not be understood.
    pub(super) fn unreadable(arguments: &[&str], error: &StorageError) -> Self {
        Self {
            kind: Kind::Other,
            command: shown("zfs", arguments),
            stderr: error.to_string(),
        }
    }

    /// Returns whether another dataset than `name` is meant: one below it that went away meanwhile.
    pub(super) fn is_about_other_than(&self, name: &str) -> bool {
        !self.stderr.contains(&format!("'{name}'"))
    }

    /// Says more about why it failed.
    pub(super) fn explained(mut self, more: &str) -> Self {
        self.stderr = format!("{} ({more})", self.stderr);
        self
    }
}

/// Returns what `stderr`, in the words of zfs-fuse 0.7 or OpenZFS 2.x, means. Each of the texts is in a test below.
fn kind_of(stderr: &str) -> Kind {
    let says = |texts: &[&str]| texts.iter().any(|text| stderr.contains(text));
    if says(&[
        "ermission denied",
        "nsufficient privileges",
        "only be mounted by root",
    ]) {
        Kind::Denied
    } else if says(&[
        "failed to initialize ZFS library",
        "ZFS modules are not loaded",
        "ZFS module cannot be",
    ]) {
        Kind::Unavailable
    } else if says(&["is busy", "evice busy", "resource busy"]) {
        Kind::Busy
    } else if says(&["has dependent clones"]) {
        Kind::HasClones
    } else if says(&["out of space", "quota exceeded", "No space left"]) {
        Kind::Full
    } else if says(&["already exists"]) {
        Kind::Exists
    } else if says(&["but not mounted", "cannot mount", "failed to create mountpoint"]) {
        Kind::Unmounted
    } else if says(&["does not exist", "no such pool", "could not find any snapshots"]) {
        Kind::Missing
    } else {
        Kind::Other
    }
}

async fn run<S: AsRef<str>>(program: &str, arguments: &[S], patience: Duration) -> Result<String, Failure> {
    let command = shown(program, arguments);
    let failure = |kind, stderr: String| Failure {
        kind,
        command: command.clone(),
        stderr,
    };
    let output = Command::new(program)
        .args(arguments.iter().map(AsRef::as_ref))
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        // Killed in the middle of a call it can leave zfs-fuse with a lock that nobody gives back.
        .kill_on_drop(false)
        .output();
    match timeout(patience, output).await {
        Err(_) => Err(failure(Kind::Other, format!("no answer within {patience:?}"))),
        Ok(Err(error)) => Err(failure(Kind::Unavailable, error.to_string())),
        Ok(Ok(Output {
            status,
            stdout,
            stderr,
        })) => {
            let stderr = String::from_utf8_lossy(&stderr);
            match status.success() {
                true => Ok(String::from_utf8_lossy(&stdout).into_owned()),
                false if stderr.trim().is_empty() => Err(failure(Kind::Other, status.to_string())),
                false => Err(failure(kind_of(&stderr), stderr.trim().to_owned())),
            }
        }
    }
}

/// Returns the command line as one would type it.
fn shown<S: AsRef<str>>(program: &str, arguments: &[S]) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./@:=,".contains(letter);
    arguments
        .iter()
        .map(AsRef::as_ref)
        .fold(program.to_owned(), |line, argument| {
            match argument.chars().all(plain) {
                true => format!("{line} {argument}"),
                false => format!("{line} '{argument}'"),
            }
        })
}

/// Far longer than any command takes on a pool that works: tens of milliseconds, seconds for the destroy of a large
/// dataset by zfs-fuse, which frees its blocks before it answers.
const PATIENCE: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_both_dialects_are_understood() {
        // zfs-fuse 0.7 unless said otherwise; OpenZFS from lib/libzfs and cmd/zfs of 2.1.
        for (stderr, kind) in [
            (
                "cannot open 'p/zdap/clones/x': dataset does not exist",
                Kind::Missing,
            ),
            ("cannot create 'p/no/x': parent does not exist", Kind::Missing),
            ("cannot open 'nopool': no such pool", Kind::Missing),
            // OpenZFS, `zfs destroy p/x@nope`
            (
                "could not find any snapshots to destroy; check snapshot names.",
                Kind::Missing,
            ),
            ("cannot destroy 'p/x': dataset is busy", Kind::Busy),
            (
                "umount: /p/x: target is busy.\ncannot unmount '/p/x': umount failed: umount child process failed",
                Kind::Busy,
            ),
            // OpenZFS
            ("cannot unmount '/p/x': pool or dataset is busy", Kind::Busy),
            (
                "cannot destroy 'p/o/t': filesystem has dependent clones\nuse '-R' to destroy the following \
                 datasets:\np/zdap/clones/x",
                Kind::HasClones,
            ),
            (
                "cannot destroy 'p/o/t@base': snapshot has dependent clones",
                Kind::HasClones,
            ),
            ("cannot create 'p/c2': out of space", Kind::Full),
            // OpenZFS, over a quota
            ("cannot create 'p/c2': disk quota exceeded", Kind::Full),
            (
                "cannot create 'p/zdap/clones': dataset already exists",
                Kind::Exists,
            ),
            (
                "cannot create snapshot 'p/o/t@base': dataset already exists",
                Kind::Exists,
            ),
            (
                "cannot mount '/p/full/x': failed to create mountpoint\nfilesystem successfully created, but not mounted",
                Kind::Unmounted,
            ),
            // OpenZFS, as an ordinary user
            ("cannot create 'p/x': permission denied", Kind::Denied),
            ("cannot mount 'p/x': Insufficient privileges", Kind::Denied),
            (
                "filesystem successfully created, but it may only be mounted by root",
                Kind::Denied,
            ),
            // zfs-fuse, as an ordinary user
            (
                "connect: Permission denied\ninternal error: failed to initialize ZFS library",
                Kind::Denied,
            ),
            // zfs-fuse, no daemon
            (
                "connect: No such file or directory\ninternal error: failed to initialize ZFS library",
                Kind::Unavailable,
            ),
            // OpenZFS, no module
            (
                "The ZFS modules are not loaded.\nTry running '/sbin/modprobe zfs' as root to load them.",
                Kind::Unavailable,
            ),
            (
                "cannot create 'p/x': 'recordsize' must be power of 2 from 512 to 128k",
                Kind::Other,
            ),
        ] {
            assert_eq!(kind_of(stderr), kind, "{stderr}");
        }
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_given_up_by_name() {
        let failure = run("sleep", &["1000"], Duration::from_millis(20))
            .await
            .unwrap_err();
        assert_eq!(
            failure.in_pool("tank").to_string(),
            "`sleep 1000` failed: no answer within 20ms"
        );
    }

    #[tokio::test]
    async fn a_program_that_is_not_installed_is_named_with_the_remedy() {
        let error = run("zdap-no-such-program", &["list"], PATIENCE)
            .await
            .unwrap_err()
            .in_pool("tank");
        let StorageError::Unusable { message, hint } = error else {
            panic!("{error:?}");
        };
        assert!(message.contains("`zdap-no-such-program list`"), "{message}");
        assert!(hint.contains("install ZFS"), "{hint}");
    }

    #[test]
    fn a_command_is_shown_as_one_would_type_it() {
        assert_eq!(
            shown("zfs", &["set", r#"zdap:record={"a":1}"#, "p/x@base"]),
            r#"zfs set 'zdap:record={"a":1}' p/x@base"#
        );
    }
}
