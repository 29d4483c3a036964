//! What is attached in a project: the override and the relays' identities, which change together under one lock.
//!
//! ```text
//! .zdap.d/                       0700, beside the compose file, because compose takes relative paths from there
//!   lock                         held by whoever changes any of this, or the override
//!   .gitignore
//!   new-override                 there while the override is one that attaching has made
//!   <resource>/identity.pem      0600
//! ```
//!
//! With the last identity all of it goes, and the override with it if attaching has made it.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use zdap_proto::identity::Identity;
use zdap_proto::name::ResourceName;

use crate::compose::{self, ComposeError};
use crate::error::Failure;
use crate::project::{Project, ProjectError, failed};
use crate::settings::{SettingsError, create_private};
use zdap_proto::refusal::chain;

/// The right to change what is attached, until it is dropped.
#[derive(Debug)]
pub struct Attachments<'a> {
    project: &'a Project,
    _lock: File,
}

impl<'a> Attachments<'a> {
    /// Waits for its turn. Whoever stops waiting leaves nothing.
    pub async fn of(project: &'a Project) -> Result<Self, ProjectError> {
        let path = project.attachments().join(LOCK);
        loop {
            let lock = open(&project.attachments(), &path)?;
            match lock.try_lock() {
                Ok(()) if is_at(&lock, &path) => return Ok(Self { project, _lock: lock }),
                // The one before us has cleaned up, and this file with it.
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => tokio::time::sleep(TURN).await,
                Err(TryLockError::Error(source)) => return Err(failed("lock", &path)(source)),
            }
        }
    }

    /// Keeps the relay's identity and changes the override, or neither.
    pub fn attach(
        &self,
        resource: &ResourceName,
        identity: &Identity,
        change: impl Fn(&str) -> Result<String, ComposeError>,
    ) -> Result<(), Failure> {
        let r#override = &self.project.r#override;
        change(&self.project.override_text()?).map_err(|source| ComposeError::InFile {
            path: r#override.clone(),
            source: Box::new(source),
        })?;
        let earlier = self.project.identity(resource);
        let attached = self
            .keep(resource, identity)
            .map_err(Failure::from)
            .and_then(|()| Ok(compose::edit(r#override, &change)?));
        if attached.is_err() {
            let undone = match earlier {
                Some(earlier) => self.keep(resource, &earlier),
                None => self.remove(resource),
            };
            if let Err(error) = undone {
                tracing::warn!("{}", chain(&error));
            }
        }
        attached
    }

    /// Puts a renewed identity in the place of an earlier one for the same clone.
    pub fn renew(&self, resource: &ResourceName, identity: &Identity) -> Result<(), Failure> {
        let there = self.project.identity(resource);
        if there.is_some_and(|there| there.peer() == identity.peer()) {
            identity.save(&self.project.identity_directory(resource))?;
        }
        Ok(())
    }

    /// Changes the override, then removes the identities of what it no longer has.
    pub fn detach(
        &self,
        resources: &[ResourceName],
        change: impl FnOnce(&str) -> Result<String, ComposeError>,
    ) -> Result<(), Failure> {
        compose::edit(&self.project.r#override, change)?;
        for resource in resources {
            self.remove(resource)?;
        }
        Ok(())
    }

    /// Only its owner can read it, and git does not see it.
    fn keep(&self, resource: &ResourceName, identity: &Identity) -> Result<(), ProjectError> {
        let root = self.project.attachments();
        let mut notes = vec![(IGNORE, "*\n")];
        if !self.project.r#override.exists() {
            notes.push((NEW_OVERRIDE, ""));
        }
        for (name, text) in notes {
            let path = root.join(name);
            if !path.exists() {
                fs::write(&path, text).map_err(failed("write", &path))?;
            }
        }
        let directory = self.project.identity_directory(resource);
        create_private(&directory)?;
        Ok(identity.save(&directory)?)
    }

    fn remove(&self, resource: &ResourceName) -> Result<(), ProjectError> {
        let directory = self.project.identity_directory(resource);
        if_there(fs::remove_dir_all(&directory)).map_err(failed("remove", &directory))
    }

    fn clean_up(&self) -> Result<(), ProjectError> {
        let root = self.project.attachments();
        let entries = fs::read_dir(&root).map_err(failed("read", &root))?;
        let mut names = entries.flatten().map(|entry| entry.file_name());
        if !names.all(|name| OURS.iter().any(|our| name == *our)) {
            return Ok(());
        }
        let r#override = &self.project.r#override;
        let is_empty = fs::metadata(r#override).is_ok_and(|metadata| metadata.len() == 0);
        if is_empty && root.join(NEW_OVERRIDE).exists() {
            fs::remove_file(r#override).map_err(failed("remove", r#override))?;
        }
        for path in OURS.map(|name| root.join(name)) {
            if_there(fs::remove_file(&path)).map_err(failed("remove", &path))?;
        }
        // It fails when the next has put a lock of its own into it already, and then it has to stay.
        let _ = fs::remove_dir(&root);
        Ok(())
    }
}

impl Drop for Attachments<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.clean_up() {
            tracing::warn!("{}", chain(&error));
        }
    }
}

/// Opens the lock for writing, which network file systems ask of whoever locks.
fn open(directory: &Path, path: &Path) -> Result<File, ProjectError> {
    loop {
        match create_private(directory) {
            Ok(()) => {}
            // It was there, and has just been cleaned up; in the place of a file none can be made.
            Err(SettingsError::Io { source, .. })
                if matches!(source.kind(), ErrorKind::AlreadyExists | ErrorKind::NotFound)
                    && (directory.is_dir() || !directory.exists()) =>
            {
                continue;
            }
            Err(error) => return Err(error.into()),
        }
        let mut options = File::options();
        options.create(true).truncate(false).write(true).mode(0o600);
        match options.open(path) {
            Ok(lock) => return Ok(lock),
            // The directory has just been cleaned up.
            Err(error) if error.kind() == ErrorKind::NotFound && !directory.exists() => {}
            Err(source) => return Err(failed("open", path)(source)),
        }
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let place = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    match (file.metadata(), fs::metadata(path)) {
        (Ok(file), Ok(there)) => place(file) == place(there),
        (_, _) => false,
    }
}

fn if_there(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

impl Project {
    /// Returns where the relay's identity for `resource` is, as the override says it: relative to the project.
    pub fn identity_mount(resource: &ResourceName) -> String {
        format!("./{ATTACHMENTS}/{resource}")
    }

    /// Returns the relay's identity for `resource`, if there is a usable one.
    pub fn identity(&self, resource: &ResourceName) -> Option<Identity> {
        Identity::load(&self.identity_directory(resource)).ok()
    }

    fn attachments(&self) -> PathBuf {
        self.directory().join(ATTACHMENTS)
    }

    fn identity_directory(&self, resource: &ResourceName) -> PathBuf {
        self.attachments().join(resource.as_str())
    }
}

const ATTACHMENTS: &str = ".zdap.d";
const LOCK: &str = "lock";
const IGNORE: &str = ".gitignore";
const NEW_OVERRIDE: &str = "new-override";
/// The lock goes last: whoever comes then locks a file of their own.
const OURS: [&str; 3] = [IGNORE, NEW_OVERRIDE, LOCK];
/// A change takes some milliseconds.
const TURN: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use chrono::Utc;
    use zdap_proto::identity::{ClusterCa, Subject};

    use super::*;

    fn identity() -> Identity {
        let now = Utc::now();
        let subject = Subject::User("ada".parse().unwrap());
        let lifetime = Duration::from_secs(60);
        ClusterCa::found(now)
            .unwrap()
            .identity(&subject, lifetime, now)
            .unwrap()
    }

    fn project(directory: &Path) -> Project {
        fs::write(directory.join("compose.yml"), "").unwrap();
        Project::find(directory, |_| None).unwrap()
    }

    fn resource(name: &str) -> ResourceName {
        name.parse().unwrap()
    }

    fn refuse(_: &str) -> Result<String, ComposeError> {
        Err(ComposeError::ServiceName { name: "/".to_owned() })
    }

    #[tokio::test]
    async fn identities_are_private_ignored_by_git_and_leave_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let project = project(directory.path());
        let (orders, users) = (resource("orders"), resource("users"));
        let attachments = Attachments::of(&project).await.unwrap();
        let append = |text: &str| Ok(format!("{text}#\n"));
        attachments.attach(&orders, &identity(), append).unwrap();
        attachments.attach(&users, &identity(), append).unwrap();
        drop(attachments);
        let root = directory.path().join(".zdap.d");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&root), 0o700);
        assert_eq!(mode(&root.join("orders")), 0o700);
        assert_eq!(mode(&root.join("orders/identity.pem")), 0o600);
        assert_eq!(fs::read_to_string(root.join(".gitignore")).unwrap(), "*\n");

        let attachments = Attachments::of(&project).await.unwrap();
        attachments.detach(&[orders], |text| Ok(text.to_owned())).unwrap();
        drop(attachments);
        assert!(project.identity(&users).is_some());
        let attachments = Attachments::of(&project).await.unwrap();
        attachments.detach(&[users], |_| Ok(String::new())).unwrap();
        drop(attachments);
        assert!(!root.exists());
        assert!(!project.r#override.exists(), "attaching had made it");
    }

    #[tokio::test]
    async fn an_attach_that_comes_second_leaves_the_first_its_identity() {
        let directory = tempfile::tempdir().unwrap();
        let project = project(directory.path());
        let (orders, first) = (resource("orders"), identity());
        let attachments = Attachments::of(&project).await.unwrap();
        attachments
            .attach(&orders, &first, |_| Ok("#\n".to_owned()))
            .unwrap();
        drop(attachments);
        let attachments = Attachments::of(&project).await.unwrap();
        attachments.attach(&orders, &identity(), refuse).unwrap_err();
        drop(attachments);
        let kept = project.identity(&orders).unwrap();
        assert_eq!(kept.ca_fingerprint(), first.ca_fingerprint());
    }

    #[tokio::test]
    async fn an_override_that_cannot_be_written_brings_the_earlier_identity_back() {
        let directory = tempfile::tempdir().unwrap();
        let project = project(directory.path());
        let (orders, first) = (resource("orders"), identity());
        let attachments = Attachments::of(&project).await.unwrap();
        attachments
            .attach(&orders, &first, |_| Ok("#\n".to_owned()))
            .unwrap();
        fs::set_permissions(&project.r#override, fs::Permissions::from_mode(0o444)).unwrap();
        attachments
            .attach(&orders, &identity(), |_| Ok("##\n".to_owned()))
            .unwrap_err();
        let kept = project.identity(&orders).unwrap();
        assert_eq!(kept.ca_fingerprint(), first.ca_fingerprint());
    }

    #[tokio::test]
    async fn an_identity_is_renewed_only_where_the_same_is_there_still() {
        let directory = tempfile::tempdir().unwrap();
        let project = project(directory.path());
        let (orders, first, other) = (resource("orders"), identity(), identity());
        let attachments = Attachments::of(&project).await.unwrap();
        attachments.renew(&orders, &first).unwrap();
        assert!(project.identity(&orders).is_none());
        attachments
            .attach(&orders, &first, |_| Ok("#\n".to_owned()))
            .unwrap();
        attachments.renew(&orders, &other).unwrap();
        let kept = project.identity(&orders).unwrap();
        assert_eq!(kept.ca_fingerprint(), first.ca_fingerprint());
    }

    #[tokio::test]
    async fn an_attach_that_fails_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let project = project(directory.path());
        let attachments = Attachments::of(&project).await.unwrap();
        attachments
            .attach(&resource("orders"), &identity(), refuse)
            .unwrap_err();
        drop(attachments);
        assert!(!directory.path().join(".zdap.d").exists());
        assert!(!project.r#override.exists());
    }

    #[tokio::test]
    async fn whoever_waits_for_the_lock_can_stop_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let project = project(directory.path());
        let first = Attachments::of(&project).await.unwrap();
        let second = tokio::time::timeout(Duration::from_millis(30), Attachments::of(&project)).await;
        assert!(second.is_err(), "the first has it");
        drop(first);
        Attachments::of(&project).await.unwrap();
        assert!(!directory.path().join(".zdap.d").exists());
    }

    #[test]
    fn changes_at_once_lose_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let project = project(directory.path());
        std::thread::scope(|scope| {
            for writer in 0..8 {
                let project = &project;
                scope.spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build()
                        .unwrap();
                    for turn in 0..10 {
                        // Each time all is cleaned up, the lock included.
                        let attachments = runtime.block_on(Attachments::of(project)).unwrap();
                        let append = |text: &str| Ok(format!("{text}{writer}.{turn}\n"));
                        attachments.detach(&[], append).unwrap();
                    }
                });
            }
        });
        let text = fs::read_to_string(&project.r#override).unwrap();
        let lines: std::collections::BTreeSet<&str> = text.lines().collect();
        assert_eq!((lines.len(), text.lines().count()), (80, 80));
        assert!(!directory.path().join(".zdap.d").exists());
    }
}
