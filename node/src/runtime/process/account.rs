//! Who the servers run as: Postgres refuses to be root.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::{getegid, geteuid};

use crate::runtime::RuntimeError;

/// A user of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Account {
    /// Returns ourselves or, if we are root, `postgres` or else `nobody`.
    pub(super) fn choose() -> Result<Self, RuntimeError> {
        let (uid, gid) = (geteuid(), getegid());
        if !uid.is_root() {
            return Ok(Self {
                name: format!("user {}", uid.as_raw()),
                uid: uid.as_raw(),
                gid: gid.as_raw(),
            });
        }
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        ["postgres", "nobody"]
            .into_iter()
            .find_map(|name| look_up(&passwd, name))
            .ok_or_else(|| RuntimeError::Unsupported {
                message:
                    "PostgreSQL does not run as root, and there is neither a user `postgres` nor `nobody`"
                        .to_owned(),
                hint: "create a user `postgres`, or run zdapd as an ordinary user".to_owned(),
            })
    }

    /// Says what the owner of a clone, a superuser of its database, can do by `COPY ... TO PROGRAM`.
    pub(super) fn what_it_lets_through(&self) -> String {
        let reach = match self.uid == geteuid().as_raw() {
            true => "which is zdapd's own: they can read every clone and zdapd's keys",
            false => "which all clones share: they can read every clone and whatever else is that user's",
        };
        format!(
            "the process runtime is no boundary between users: owners of clones can run programs as {}, {reach}; use \
             `--runtime docker` unless they trust each other",
            self.name
        )
    }

    /// Checks that this user can enter `directory` and all above it: as root we can go where it cannot.
    pub(super) fn can_enter(&self, directory: &Path) -> Result<(), RuntimeError> {
        match directory.ancestors().find(|above| !self.may_search(above)) {
            None => Ok(()),
            Some(above) => Err(RuntimeError::Unsupported {
                message: format!(
                    "the database runs as {}, who cannot enter {}",
                    self.name,
                    above.display()
                ),
                hint: format!(
                    "let it pass (`chmod o+x {}`) or keep the data elsewhere",
                    above.display()
                ),
            }),
        }
    }

    fn may_search(&self, directory: &Path) -> bool {
        let Ok(metadata) = std::fs::metadata(directory) else {
            return directory.as_os_str().is_empty();
        };
        let bit = match () {
            () if metadata.uid() == self.uid => 0o100,
            () if metadata.gid() == self.gid => 0o010,
            () => 0o001,
        };
        metadata.mode() & bit != 0
    }
}

/// Finds a user in the text of `/etc/passwd`.
fn look_up(passwd: &str, name: &str) -> Option<Account> {
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2);
    Some(Account {
        name: name.to_owned(),
        uid: fields.next()?.parse().ok()?,
        gid: fields.next()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_owners_of_clones_can_do_is_said_and_more_so_where_the_servers_run_as_zdapd_itself() {
        let mut account = Account {
            name: "user 1000".to_owned(),
            uid: geteuid().as_raw(),
            gid: 0,
        };
        let ours = account.what_it_lets_through();
        assert!(
            ours.contains("as user 1000,") && ours.contains("zdapd's keys"),
            "{ours}"
        );
        account.uid += 1;
        let shared = account.what_it_lets_through();
        assert!(
            shared.contains("every clone") && !shared.contains("keys"),
            "{shared}"
        );
        assert!(shared.contains("--runtime docker"), "{shared}");
    }

    #[test]
    fn a_user_is_found_by_the_whole_name() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\npostgresql:x:7:7::/:\npostgres:x:101:104:,,,:/var/lib:/bin/sh\n";
        let account = look_up(passwd, "postgres").unwrap();
        assert_eq!((account.uid, account.gid), (101, 104));
        assert_eq!(look_up(passwd, "nobody"), None);
    }
}
