//! Outstanding invites and the users let in: one small file in the state directory, replaced whole.
//!
//! Only the hash of a token's secret is kept. An invite is marked used, on disk, before anything is signed for it, so
//! that it is good once whatever crashes.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use zdap_proto::identity::Subject;
use zdap_proto::message::{Invited, Wanted};
use zdap_proto::name::UserName;
use zdap_proto::refusal::{Refusal, RefusalKind};

/// The invites of this node.
#[derive(Debug)]
pub struct Invites {
    path: PathBuf,
    book: Mutex<Book>,
}

/// The names that somebody has, as far as is known.
#[derive(Debug, Clone, Default)]
pub struct Taken {
    /// Those that own something already, enrolled or not, and those that other nodes gave.
    pub names: BTreeSet<UserName>,
    /// Those that are good for nobody any more.
    pub revoked: BTreeSet<UserName>,
    /// Those of nodes, who own what they make by themselves.
    pub nodes: BTreeSet<UserName>,
    /// Another node that may have given more.
    pub untold: Option<String>,
}

impl Taken {
    /// Refuses a name that no user can be let in by, whatever a token says.
    pub fn refuse_barred(&self, name: &UserName) -> Result<(), Refusal> {
        let why = if self.revoked.contains(name) {
            "is revoked, and no certificate of that name is good any more"
        } else if self.nodes.contains(name) {
            "is the name of a node"
        } else {
            return Ok(());
        };
        Err(Refusal::new(RefusalKind::Conflict, format!("`{name}` {why}"))
            .with_hint("another name is needed"))
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Book {
    /// By the hexadecimal SHA-256 of the secret.
    invites: BTreeMap<String, Invite>,
    users: BTreeSet<UserName>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Invite {
    invited: Invited,
    expires_at: DateTime<Utc>,
    used_at: Option<DateTime<Utc>>,
}

impl Book {
    /// Returns whether the name is enrolled, or promised to the bearer of an invite.
    fn knows(&self, name: &UserName) -> bool {
        let promised = |invite: &Invite| matches!(&invite.invited, Invited::User { name: Some(promised), .. } if promised == name);
        self.users.contains(name) || self.invites.values().any(promised)
    }
}

impl Invites {
    /// Reads the file, if there is one.
    pub fn load(path: PathBuf) -> io::Result<Self> {
        let book = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Book::default(),
            Err(error) => return Err(error),
        };
        Ok(Self {
            path,
            book: Mutex::new(book),
        })
    }

    /// Remembers an invite by the hash of its secret.
    pub fn add(
        &self,
        secret_hash: &str,
        invited: Invited,
        ttl: TimeDelta,
        now: DateTime<Utc>,
    ) -> io::Result<()> {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = book.clone();
        changed
            .invites
            .retain(|_, invite| invite.expires_at + REMEMBERED > now);
        changed.invites.insert(
            secret_hash.to_owned(),
            Invite {
                invited,
                expires_at: now + ttl,
                used_at: None,
            },
        );
        save(&self.path, &changed)?;
        *book = changed;
        Ok(())
    }

    /// Returns the names of those who are enrolled, or promised one by an invite.
    pub fn users(&self) -> BTreeSet<UserName> {
        let book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let promised = book.invites.values().filter_map(|invite| match &invite.invited {
            Invited::User { name, .. } => name.clone(),
            Invited::Node => None,
        });
        book.users.iter().cloned().chain(promised).collect()
    }

    /// Uses up the invite and returns who its bearer may become, or says why it is no good.
    ///
    /// A name that its bearer chooses must be nobody's, here or as `taken` tells.
    pub fn redeem(
        &self,
        secret_hash: &str,
        wanted: &Wanted,
        taken: &Taken,
        now: DateTime<Utc>,
    ) -> Result<Subject, Refusal> {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = book.clone();
        let invite = changed.invites.get_mut(secret_hash).ok_or_else(|| {
            // Of a kind of its own: whoever brings it to the wrong node goes to the one that made it.
            Refusal::new(RefusalKind::NotFound, "this token was not made by this node").with_hint(ASK_AGAIN)
        })?;
        if let Some(used_at) = invite.used_at {
            return Err(refused(format!(
                "this token was used already, at {}",
                used_at.format("%FT%TZ")
            ))
            .with_hint(ASK_AGAIN));
        }
        if invite.expires_at <= now {
            return Err(refused(format!(
                "this token expired at {}",
                invite.expires_at.format("%FT%TZ")
            ))
            .with_hint(ASK_AGAIN));
        }
        let is_taken = |name: &UserName| taken.names.contains(name) || book.knows(name);
        let subject = subject(&invite.invited, wanted, is_taken, taken.untold.as_deref())?;
        invite.used_at = Some(now);
        if let Subject::User(name) | Subject::Admin(name) = &subject {
            taken.refuse_barred(name)?; // which leaves the book as it was
            changed.users.insert(name.clone());
        }
        save(&self.path, &changed).map_err(|error| {
            Refusal::new(
                RefusalKind::Unavailable,
                format!("the node could not write down that the token is used: {error}"),
            )
        })?;
        *book = changed;
        Ok(subject)
    }
}

/// A token that names its user gives that name to whoever bears it. One that does not gives the name its bearer wants,
/// but not one that somebody has already: that would give away their clones.
fn subject(
    invited: &Invited,
    wanted: &Wanted,
    is_taken: impl Fn(&UserName) -> bool,
    untold: Option<&str>,
) -> Result<Subject, Refusal> {
    match (invited, wanted) {
        (Invited::Node, Wanted::Node { name }) => Ok(Subject::Node(name.clone())),
        (Invited::Node, Wanted::User { .. }) => {
            Err(refused("this token is for a node, not for a user").with_hint("`zdapd token user` makes one for a user"))
        }
        (Invited::User { .. }, Wanted::Node { .. }) => {
            Err(refused("this token is for a user, not for a node").with_hint("`zdapd token node` makes one for a node"))
        }
        (Invited::User { name: Some(name), admin }, Wanted::User { .. }) => Ok(user(name, *admin)),
        (Invited::User { name: None, admin }, Wanted::User { name: Some(name) }) => match untold {
            _ if is_taken(name) => {
                Err(Refusal::new(RefusalKind::Conflict, format!("the name `{name}` is somebody's already")).with_hint(
                    format!("choose another name with `zdap set user`, or, if it is you, ask for `zdapd token user {name}`"),
                ))
            }
            Some(untold) => Err(Refusal::new(
                RefusalKind::Unavailable,
                format!("the name `{name}` may be somebody's already: {untold} is down or has not told yet who its users are"),
            )
            .with_hint(format!("ask the administrator for a token with your name, `zdapd token user {name}`"))),
            None => Ok(user(name, *admin)),
        },
        (Invited::User { name: None, .. }, Wanted::User { name: None }) => {
            Err(Refusal::new(RefusalKind::Invalid, "this token names no user, and neither did the request")
                .with_hint("`zdap set user NAME@HOST` says who you are"))
        }
    }
}

fn user(name: &UserName, admin: bool) -> Subject {
    match admin {
        true => Subject::Admin(name.clone()),
        false => Subject::User(name.clone()),
    }
}

fn refused(message: impl Into<String>) -> Refusal {
    Refusal::new(RefusalKind::Forbidden, message)
}

fn save(path: &Path, book: &Book) -> io::Result<()> {
    crate::state::replace(path, &serde_json::to_vec_pretty(book)?)
}

/// A used or expired invite is remembered so long, so that its bearer is told what is wrong with it.
const REMEMBERED: TimeDelta = TimeDelta::days(30);
const ASK_AGAIN: &str = "ask the administrator for a new one: `zdapd token user` (or `zdapd token node`)";

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> DateTime<Utc> {
        "2026-11-22T12:00:00Z".parse().unwrap()
    }

    fn wants(name: &str) -> Wanted {
        Wanted::User {
            name: Some(name.parse().unwrap()),
        }
    }

    fn anybody() -> Invited {
        Invited::User {
            name: None,
            admin: false,
        }
    }

    struct Fixture {
        directory: tempfile::TempDir,
        invites: Invites,
    }

    fn fixture() -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let invites = Invites::load(directory.path().join("invites.json")).unwrap();
        Fixture { directory, invites }
    }

    #[test]
    fn a_token_is_good_once_also_after_a_restart() {
        let Fixture { directory, invites } = fixture();
        invites.add("h", anybody(), TimeDelta::hours(1), now()).unwrap();
        assert_eq!(
            invites
                .redeem("h", &wants("ada"), &Taken::default(), now())
                .unwrap(),
            Subject::User("ada".parse().unwrap())
        );
        let again = Invites::load(directory.path().join("invites.json")).unwrap();
        let refusal = again
            .redeem("h", &wants("bob"), &Taken::default(), now())
            .unwrap_err();
        assert!(refusal.message.contains("used already"), "{refusal}");
    }

    #[test]
    fn a_token_is_no_good_after_its_time() {
        let Fixture {
            directory: _directory,
            invites,
        } = fixture();
        invites.add("h", anybody(), TimeDelta::hours(1), now()).unwrap();
        let refusal = invites
            .redeem("h", &wants("ada"), &Taken::default(), now() + TimeDelta::hours(1))
            .unwrap_err();
        assert!(
            refusal.message.contains("expired at 2026-11-22T13:00:00Z"),
            "{refusal}"
        );
    }

    #[test]
    fn a_secret_nobody_was_given_is_no_good() {
        let Fixture {
            directory: _directory,
            invites,
        } = fixture();
        let refusal = invites
            .redeem("h", &wants("ada"), &Taken::default(), now())
            .unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::NotFound);
    }

    #[test]
    fn a_token_without_a_name_does_not_give_somebody_elses() {
        let Fixture {
            directory: _directory,
            invites,
        } = fixture();
        for hash in ["a", "b"] {
            invites.add(hash, anybody(), TimeDelta::hours(1), now()).unwrap();
        }
        invites
            .redeem("a", &wants("ada"), &Taken::default(), now())
            .unwrap();
        assert_eq!(
            invites
                .redeem("b", &wants("ada"), &Taken::default(), now())
                .unwrap_err()
                .kind,
            RefusalKind::Conflict
        );
        invites
            .redeem("b", &wants("bob"), &Taken::default(), now())
            .expect("a refused name does not use up the token");
    }

    #[test]
    fn a_token_without_a_name_does_not_give_one_that_owns_clones_or_is_promised() {
        let Fixture {
            directory: _directory,
            invites,
        } = fixture();
        let promised = Invited::User {
            name: Some("bob".parse().unwrap()),
            admin: false,
        };
        invites
            .add("promised", promised, TimeDelta::hours(1), now())
            .unwrap();
        invites.add("h", anybody(), TimeDelta::hours(1), now()).unwrap();
        let owners = Taken {
            names: BTreeSet::from(["db1".parse().unwrap()]),
            ..Taken::default()
        };
        for name in ["db1", "bob"] {
            let refusal = invites.redeem("h", &wants(name), &owners, now()).unwrap_err();
            assert_eq!(refusal.kind, RefusalKind::Conflict, "{name}");
        }
        invites.redeem("h", &wants("ada"), &owners, now()).unwrap();
        invites.redeem("promised", &wants("ada"), &owners, now()).unwrap();
    }

    #[test]
    fn a_token_without_a_name_gives_none_while_a_node_may_know_more_names_and_one_with_a_name_does() {
        let Fixture {
            directory: _directory,
            invites,
        } = fixture();
        let named = Invited::User {
            name: Some("ada".parse().unwrap()),
            admin: false,
        };
        invites.add("h", anybody(), TimeDelta::hours(1), now()).unwrap();
        invites.add("named", named, TimeDelta::hours(1), now()).unwrap();
        let taken = Taken {
            untold: Some("node `c`".to_owned()),
            ..Taken::default()
        };
        let refusal = invites.redeem("h", &wants("bob"), &taken, now()).unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::Unavailable);
        assert!(refusal.message.contains("node `c` is down"), "{refusal}");
        invites.redeem("named", &wants("ada"), &taken, now()).unwrap();
        invites
            .redeem("h", &wants("bob"), &Taken::default(), now())
            .expect("a refused name does not use up the token");
    }

    #[test]
    fn no_token_gives_the_name_of_a_node_or_of_somebody_who_was_revoked_since() {
        let Fixture {
            directory: _directory,
            invites,
        } = fixture();
        let taken = Taken {
            revoked: BTreeSet::from(["ada".parse().unwrap()]),
            nodes: BTreeSet::from(["db1".parse().unwrap()]),
            ..Taken::default()
        };
        for name in ["ada", "db1"] {
            let named = Invited::User {
                name: Some(name.parse().unwrap()),
                admin: false,
            };
            invites.add(name, named, TimeDelta::hours(1), now()).unwrap();
            invites.add("any", anybody(), TimeDelta::hours(1), now()).unwrap();
            for token in [name, "any"] {
                let refusal = invites.redeem(token, &wants(name), &taken, now()).unwrap_err();
                assert_eq!(refusal.kind, RefusalKind::Conflict, "{token}: {refusal}");
            }
        }
    }

    #[test]
    fn a_token_with_a_name_gives_that_name_whatever_is_wanted() {
        let Fixture {
            directory: _directory,
            invites,
        } = fixture();
        let invited = Invited::User {
            name: Some("ada".parse().unwrap()),
            admin: true,
        };
        invites.add("h", invited, TimeDelta::hours(1), now()).unwrap();
        assert_eq!(
            invites
                .redeem("h", &wants("bob"), &Taken::default(), now())
                .unwrap(),
            Subject::Admin("ada".parse().unwrap())
        );
    }

    #[test]
    fn a_users_token_makes_no_node_and_a_nodes_token_no_user() {
        let Fixture {
            directory: _directory,
            invites,
        } = fixture();
        invites
            .add("user", anybody(), TimeDelta::hours(1), now())
            .unwrap();
        invites
            .add("node", Invited::Node, TimeDelta::hours(1), now())
            .unwrap();
        let node = Wanted::Node {
            name: "b".parse().unwrap(),
        };
        assert!(invites.redeem("user", &node, &Taken::default(), now()).is_err());
        assert!(
            invites
                .redeem("node", &wants("ada"), &Taken::default(), now())
                .is_err()
        );
        assert_eq!(
            invites.redeem("node", &node, &Taken::default(), now()).unwrap(),
            Subject::Node("b".parse().unwrap())
        );
    }

    #[test]
    fn the_file_is_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let Fixture { directory, invites } = fixture();
        invites.add("h", anybody(), TimeDelta::hours(1), now()).unwrap();
        let mode = std::fs::metadata(directory.path().join("invites.json"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
