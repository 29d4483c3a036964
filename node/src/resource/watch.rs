//! Reads the resource directory again when it changes.
//!
//! The kernel says when; a slow poll stands in for it on network file systems, behind symbolic links and where the
//! kernel's watches have run out.

use std::fs;
use std::io;
use std::path::{Path, PathBuf, absolute};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{info, warn};

use super::catalogue::Catalogue;

/// Why a directory cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// It is not there, not a directory, or not ours to read.
    #[error(
        "the resource directory {directory} cannot be read; create it, or name another by `--config-dir`"
    )]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// Why it cannot be read.
        #[source]
        source: io::Error,
    },
}

/// Keeps a [`Catalogue`] up to date while [`Self::run`] runs.
#[derive(Debug)]
pub struct ResourceWatch {
    directory: PathBuf,
    catalogue: watch::Sender<Arc<Catalogue>>,
    /// Absent where the kernel cannot tell.
    watcher: Option<RecommendedWatcher>,
    changes: mpsc::Receiver<()>,
    poll: Duration,
}

/// What keeps a catalogue up to date, and the catalogue.
pub type Watched = (ResourceWatch, watch::Receiver<Arc<Catalogue>>);

/// Reads the directory for the first time, and returns what keeps the result up to date.
///
/// Bad files are no error here: they are in the catalogue's `errors`, and in the log.
pub fn open(directory: &Path) -> Result<Watched, WatchError> {
    let readable = absolute(directory).and_then(|path| fs::read_dir(&path).map(|_| path));
    let directory = readable.map_err(|source| WatchError::Directory {
        directory: directory.to_owned(),
        source,
    })?;
    // Watched first and read after, so that no change falls between.
    let (changed, changes) = mpsc::channel(1);
    let watcher = watcher(&directory, changed);
    let first = Catalogue::read(&directory, &Catalogue::default());
    log_difference(&Catalogue::default(), &first);
    let (catalogue, receiver) = watch::channel(Arc::new(first));
    let watch = ResourceWatch {
        directory,
        catalogue,
        watcher,
        changes,
        poll: POLL,
    };
    Ok((watch, receiver))
}

impl ResourceWatch {
    /// Reads the directory again at each change, until nobody holds the receiver any more.
    pub async fn run(mut self) {
        loop {
            tokio::select! {
                biased; // so that a simulation is the same each time
                () = self.catalogue.closed() => return,
                Some(()) = self.changes.recv() => self.settle().await,
                // A directory that was replaced, or has appeared behind a link, has no watch yet.
                () = sleep(self.poll) => self.watch_again(),
            }
            self.read_again().await;
        }
    }

    /// Waits until the burst of changes that a save or a checkout makes is over.
    async fn settle(&mut self) {
        let latest = Instant::now() + LONGEST_BURST;
        loop {
            let quiet = (Instant::now() + QUIET).min(latest);
            match timeout_at(quiet, self.changes.recv()).await {
                Ok(Some(())) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }

    fn watch_again(&mut self) {
        if let Some(watcher) = &mut self.watcher {
            // What is wrong with the directory is found and told by reading it.
            let _ = watcher.watch(&self.directory, RecursiveMode::Recursive);
        }
    }

    async fn read_again(&self) {
        let previous = self.catalogue.borrow().clone();
        let directory = self.directory.clone();
        let read = tokio::task::spawn_blocking(move || {
            let next = Catalogue::read(&directory, &previous);
            log_difference(&previous, &next);
            (*previous != next).then_some(next)
        });
        match read.await {
            Ok(Some(next)) => {
                self.catalogue.send_replace(Arc::new(next));
            }
            Ok(None) => {}
            Err(error) => warn!(%error, "reading the resource files was cut short"),
        }
    }
}

fn watcher(directory: &Path, changed: mpsc::Sender<()>) -> Option<RecommendedWatcher> {
    let tell = move |event: notify::Result<notify::Event>| {
        // Our own reading is an access. One message waiting is as good as many.
        if !event.is_ok_and(|event| event.kind.is_access()) {
            let _ = changed.try_send(());
        }
    };
    let watcher = notify::recommended_watcher(tell).and_then(|mut watcher| {
        watcher.watch(directory, RecursiveMode::Recursive)?;
        Ok(watcher)
    });
    match watcher {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            warn!(%error, "changed resource files are seen only every {POLL:?}");
            None
        }
    }
}

/// Says once what came, went, changed or broke.
fn log_difference(previous: &Catalogue, next: &Catalogue) {
    for (name, resource) in &next.resources {
        match previous.resources.get(name) {
            None => info!(resource = %name, file = %resource.file.display(), "resource in service"),
            Some(old) if old != resource => {
                info!(resource = %name, file = %resource.file.display(), "resource changed");
            }
            Some(_) => {}
        }
    }
    for name in previous.resources.keys() {
        if !next.resources.contains_key(name) {
            info!(resource = %name, "resource no longer in service: its file is gone");
        }
    }
    for error in &next.errors {
        if previous.errors.contains(error) {
            continue;
        }
        let kept: Vec<_> = next
            .resources
            .values()
            .filter(|resource| resource.file.starts_with(&error.file))
            .map(|resource| resource.name.as_str())
            .collect();
        match kept.as_slice() {
            [] => warn!("{error}"),
            kept => warn!(
                "{error} (the last good version stays in service: {})",
                kept.join(", ")
            ),
        }
    }
}

/// How long a change that the kernel does not tell of may take to be seen.
const POLL: Duration = Duration::from_secs(30);
/// Editors and `git` finish a save within this.
const QUIET: Duration = Duration::from_millis(100);
/// A directory that never comes to rest is read all the same.
const LONGEST_BURST: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::super::testing::resource_file;
    use super::*;

    /// Far longer than a change takes to be seen, and far shorter than [`POLL`].
    const PATIENCE: Duration = Duration::from_secs(15);

    async fn until(
        receiver: &mut watch::Receiver<Arc<Catalogue>>,
        condition: impl FnMut(&Arc<Catalogue>) -> bool,
    ) -> Arc<Catalogue> {
        let reached = timeout(PATIENCE, receiver.wait_for(condition)).await;
        reached.expect("the change is seen").unwrap().clone()
    }

    fn has(name: &str) -> impl Fn(&Arc<Catalogue>) -> bool {
        let name = name.parse().unwrap();
        move |catalogue| catalogue.resources.contains_key(&name)
    }

    #[tokio::test]
    async fn a_file_saved_replaced_by_rename_broken_and_removed_is_followed() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let (watch, mut receiver) = open(root).unwrap();
        tokio::spawn(watch.run());

        resource_file(root, "a.resource.yml", "one");
        until(&mut receiver, has("one")).await;

        resource_file(root, "a.tmp", "two");
        fs::rename(root.join("a.tmp"), root.join("a.resource.yml")).unwrap();
        let catalogue = until(&mut receiver, has("two")).await;
        assert_eq!(catalogue.resources.len(), 1);

        fs::write(root.join("a.resource.yml"), "nam: three\n").unwrap();
        let catalogue = until(&mut receiver, |catalogue| !catalogue.errors.is_empty()).await;
        assert!(has("two")(&catalogue));
        assert_eq!(catalogue.errors[0].key.as_deref(), Some("nam"));

        fs::remove_file(root.join("a.resource.yml")).unwrap();
        until(&mut receiver, |catalogue| **catalogue == Catalogue::default()).await;
    }

    #[tokio::test]
    async fn a_directory_that_appears_later_is_followed_too() {
        let directory = tempfile::tempdir().unwrap();
        let (watch, mut receiver) = open(directory.path()).unwrap();
        tokio::spawn(watch.run());
        let later = directory.path().join("later");
        resource_file(&later, "a.resource.yml", "one");
        until(&mut receiver, has("one")).await;
        resource_file(&later, "b.resource.yml", "two");
        until(&mut receiver, has("two")).await;
    }

    #[tokio::test]
    async fn without_help_from_the_kernel_the_poll_sees_a_change() {
        let directory = tempfile::tempdir().unwrap();
        let (mut watch, mut receiver) = open(directory.path()).unwrap();
        watch.watcher = None;
        watch.poll = Duration::from_millis(10);
        tokio::spawn(watch.run());
        resource_file(directory.path(), "a.resource.yml", "one");
        until(&mut receiver, has("one")).await;
    }

    #[tokio::test]
    async fn reading_does_not_itself_count_as_a_change() {
        let directory = tempfile::tempdir().unwrap();
        resource_file(directory.path(), "a.resource.yml", "one");
        let (mut watch, _receiver) = open(directory.path()).unwrap();
        watch.read_again().await;
        // An event of its own making would come before that of the file written after it.
        watch.settle().await;
        fs::write(directory.path().join("later"), "").unwrap();
        assert_eq!(timeout(PATIENCE, watch.changes.recv()).await, Ok(Some(())));
        watch.settle().await;
        watch.read_again().await;
        assert!(timeout(2 * QUIET, watch.changes.recv()).await.is_err());
    }

    #[tokio::test]
    async fn the_watch_ends_when_nobody_listens() {
        let directory = tempfile::tempdir().unwrap();
        let (watch, receiver) = open(directory.path()).unwrap();
        let task = tokio::spawn(watch.run());
        drop(receiver);
        timeout(PATIENCE, task).await.expect("it ends").unwrap();
    }

    #[test]
    fn a_directory_that_is_missing_is_an_error_with_a_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing");
        let error = open(&missing).unwrap_err().to_string();
        assert!(
            error.contains("missing") && error.contains("--config-dir"),
            "{error}"
        );
    }
}
