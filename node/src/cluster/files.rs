//! What a node remembers of the cluster, in its state directory.
//!
//! ```text
//! <state-dir>/generation   the highest number this node has called its life or its digests by
//! <state-dir>/members      other nodes, one a line: `host:port`, and of those that were met their name, where their packets go,
//!                          and their epoch
//! <state-dir>/users        who is a user, one a line
//! <state-dir>/revoked      whose certificates are good no more, one a line
//! <state-dir>/forgotten    nodes that nobody waits for any more, each with the last of its lives that counts, one a line
//! <state-dir>/draining     is there while the node is being emptied
//! ```

use std::collections::BTreeSet;
use std::fmt::{self, Display};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, anyhow, bail};
use zdap_proto::name::NodeName;

use crate::state::{read_if_any, replace};

/// The files.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    directory: PathBuf,
}

impl Files {
    pub(super) fn of(state_dir: &Path) -> Self {
        Self {
            directory: state_dir.to_owned(),
        }
    }

    /// Returns the generation that was written last; 0 if none was.
    pub(super) fn generation(&self) -> anyhow::Result<u64> {
        let generation: Vec<u64> = self.lines("generation")?;
        Ok(generation.into_iter().max().unwrap_or_default())
    }

    pub(crate) fn write_generation(&self, generation: u64) -> io::Result<()> {
        self.write("generation", [generation])
    }

    pub(super) fn members(&self) -> anyhow::Result<Vec<Remembered>> {
        self.lines("members")
    }

    pub(super) fn write_members(&self, members: &BTreeSet<Remembered>) -> io::Result<()> {
        self.write("members", members)
    }

    pub(super) fn names<T>(&self, file: &str) -> anyhow::Result<BTreeSet<T>>
    where
        T: Ord + FromStr,
        T::Err: Display,
    {
        Ok(self.lines(file)?.into_iter().collect())
    }

    pub(super) fn write_names<T: Display>(&self, file: &str, names: &BTreeSet<T>) -> io::Result<()> {
        self.write(file, names)
    }

    pub(super) fn is_draining(&self) -> io::Result<bool> {
        self.path("draining").try_exists()
    }

    pub(super) fn write_draining(&self, draining: bool) -> io::Result<()> {
        if draining {
            return replace(&self.path("draining"), b"");
        }
        match std::fs::remove_file(self.path("draining")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn lines<T>(&self, file: &str) -> anyhow::Result<Vec<T>>
    where
        T: FromStr,
        T::Err: Display,
    {
        let path = self.path(file);
        let text = read_if_any(&path).with_context(|| format!("read `{}`", path.display()))?;
        let parse = |(index, line): (usize, &str)| {
            line.parse()
                .map_err(|error| anyhow!("`{}`, line {}: `{line}`: {error}", path.display(), index + 1))
        };
        text.lines().enumerate().map(parse).collect()
    }

    fn write(&self, file: &str, lines: impl IntoIterator<Item = impl Display>) -> io::Result<()> {
        let text: String = lines.into_iter().map(|line| format!("{line}\n")).collect();
        replace(&self.path(file), text.as_bytes())
    }

    fn path(&self, file: &str) -> PathBuf {
        self.directory.join(file)
    }
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Remembered {
    /// Where clients and nodes connect, `host:port`.
    pub(super) address: String,
    /// Who it is, once it was met.
    pub(super) member: Option<Met>,
}

/// A node that was met.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Met {
    pub(super) name: NodeName,
    /// Where its packets went.
    pub(super) address: SocketAddr,
    pub(super) epoch: u64,
}

impl Remembered {
    pub(super) fn is(&self, name: &NodeName) -> bool {
        self.member.as_ref().is_some_and(|met| met.name == *name)
    }
}

impl Display for Remembered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address)?;
        match &self.member {
            Some(Met { name, address, epoch }) => write!(f, " {name} {address} {epoch}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Remembered {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> anyhow::Result<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (address, member) = match words.as_slice() {
            [address] => (address, None),
            [address, name, packets, epoch] => {
                let met = Met {
                    name: name.parse()?,
                    address: packets.parse()?,
                    epoch: epoch.parse()?,
                };
                (address, Some(met))
            }
            _ => bail!("neither `HOST:PORT` nor `HOST:PORT NAME ADDRESS EPOCH`"),
        };
        Ok(Self {
            address: (*address).to_owned(),
            member,
        })
    }
}

#[cfg(test)]
mod tests {
    use zdap_proto::name::UserName;

    use super::*;

    #[test]
    fn what_was_written_is_read_and_what_was_not_is_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::of(directory.path());
        assert_eq!(files.generation().unwrap(), 0);
        assert!(files.members().unwrap().is_empty());
        assert!(files.names::<UserName>("revoked").unwrap().is_empty());
        assert!(!files.is_draining().unwrap());
        files.write_draining(false).unwrap();

        let members = BTreeSet::from(
            ["db1:43210 db1 10.0.0.1:43210 7", "[::1]:1"].map(|line| line.parse::<Remembered>().unwrap()),
        );
        let users: BTreeSet<UserName> = BTreeSet::from(["ada".parse().unwrap()]);
        files.write_generation(7).unwrap();
        files.write_members(&members).unwrap();
        files.write_names("revoked", &users).unwrap();
        files.write_draining(true).unwrap();
        assert_eq!(files.generation().unwrap(), 7);
        assert_eq!(files.members().unwrap(), Vec::from_iter(members));
        assert_eq!(files.names("revoked").unwrap(), users);
        assert!(files.is_draining().unwrap());
        files.write_draining(false).unwrap();
        assert!(!files.is_draining().unwrap());
    }

    #[test]
    fn a_damaged_file_is_named_with_the_line() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("generation"), "many\n").unwrap();
        std::fs::write(directory.path().join("members"), "db1:1\ndb2:1 db2\n").unwrap();
        let files = Files::of(directory.path());
        let error = files.generation().unwrap_err().to_string();
        assert!(
            error.contains("generation`, line 1: `many`: invalid digit"),
            "{error}"
        );
        let error = files.members().unwrap_err().to_string();
        assert!(
            error.contains("members`, line 2: `db2:1 db2`: neither `HOST:PORT` nor"),
            "{error}"
        );
    }
}
