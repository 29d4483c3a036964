//! Which processes work on a data directory, told from `/proc`, so that a new life of the node finds what an earlier one
//! started, and a process number that was used again is not mistaken for it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;

/// A process of ours, held by a descriptor: signals reach it or nothing.
#[derive(Debug)]
pub(super) struct Process {
    fd: AsyncFd<OwnedFd>,
    /// Whether it is the server itself, rather than what prepares its data or one of its children.
    pub(super) is_server: bool,
    /// Where it works.
    pub(super) data: PathBuf,
}

impl Process {
    #[expect(
        deprecated,
        reason = "its successor is `unsafe` for what an `OwnedFd` guarantees: to stay the same descriptor"
    )]
    fn new(fd: OwnedFd, role: Role, data: PathBuf) -> io::Result<Self> {
        Ok(Self {
            fd: AsyncFd::new(fd)?,
            is_server: role == Role::Server,
            data,
        })
    }

    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(self.fd.get_ref(), signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns once it has ended.
    pub(super) async fn ended(&self) -> io::Result<()> {
        self.fd.readable().await.map(|_| ())
    }
}

/// Returns every process of user `uid` that works on a data directory of which `ours` says it is ours.
pub(super) fn processes(uid: u32, ours: impl Fn(&Path) -> bool) -> io::Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.parse().ok());
        let Some(pid) = number.and_then(Pid::from_raw) else {
            continue;
        };
        let Some((role, data)) = describe(pid, uid).filter(|(_, data)| ours(data)) else {
            continue;
        };
        // What ended in between is passed over, and what took over its number is not what was described.
        let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) else {
            continue;
        };
        if describe(pid, uid).as_ref() == Some(&(role, data.clone())) {
            found.push(Process::new(fd, role, data)?);
        }
    }
    Ok(found)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// `postgres -D DATA ...`
    Server,
    /// `initdb -D DATA ...` or `postgres --single -D DATA ...`
    Preparation,
    /// `postgres: checkpointer`, working in the data directory.
    Child,
}

fn describe(pid: Pid, uid: u32) -> Option<(Role, PathBuf)> {
    let directory = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
    let command = std::fs::read(directory.join("cmdline")).ok()?;
    let described = match command.starts_with(b"postgres: ") {
        true => (Role::Child, std::fs::read_link(directory.join("cwd")).ok()?),
        false => read_command(&command)?,
    };
    let owner = std::fs::metadata(directory).ok()?.uid();
    (owner == uid).then_some(described)
}

/// Reads a command line as `/proc` shows it: arguments with a NUL after each.
fn read_command(command: &[u8]) -> Option<(Role, PathBuf)> {
    let arguments: Vec<&OsStr> = command.split(|byte| *byte == 0).map(OsStr::from_bytes).collect();
    let program = Path::new(arguments.first()?).file_name()?;
    let option = arguments.iter().rposition(|argument| *argument == "-D")?;
    let data = PathBuf::from(arguments.get(option + 1)?);
    let role = match arguments.get(1) {
        Some(first) if program == "postgres" && *first == "--single" => Role::Preparation,
        Some(_) if program == "postgres" => Role::Server,
        Some(_) if program == "initdb" => Role::Preparation,
        Some(_) | None => return None,
    };
    Some((role, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_tells_a_server_from_what_prepares_its_data() {
        let data = || PathBuf::from("/pool/orders");
        for (command, expected) in [
            (
                "/usr/lib/postgresql/15/bin/postgres\0-D\0/pool/orders\0-c\0port=1\0",
                Some((Role::Server, data())),
            ),
            (
                "/bin/postgres\0--single\0-D\0/pool/orders\0postgres\0",
                Some((Role::Preparation, data())),
            ),
            (
                "/bin/initdb\0-D\0/pool/orders\0",
                Some((Role::Preparation, data())),
            ),
            ("/bin/vim\0-D\0/pool/orders\0", None),
            ("/bin/postgres\0-D\0", None),
            ("postgres\0", None),
            ("", None),
        ] {
            let read = read_command(command.as_bytes());
            let read = read.filter(|(_, data)| !data.as_os_str().is_empty());
            assert_eq!(read, expected, "{command:?}");
        }
    }
}
