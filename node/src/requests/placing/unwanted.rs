//! Clones that nobody waits for any more, on nodes that could not be told so.
//!
//! ```text
//! <state-dir>/unwanted   node, clone, attempt that it was the answer to: one a line
//! ```

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tokio::sync::Notify;

use super::super::Made;
use super::locked;
use crate::state::{read_if_any, replace};

/// The clones that are still to be taken back. An id is never given twice, so it is safe to do so at any time.
#[derive(Debug)]
pub(crate) struct Unwanted {
    file: PathBuf,
    waiting: Mutex<VecDeque<Made>>,
    noted: Notify,
}

impl Unwanted {
    /// Reads those that were there when the node ended last.
    pub(super) fn open(state_dir: &Path) -> io::Result<Self> {
        let file = state_dir.join("unwanted");
        let text = read_if_any(&file)?;
        Ok(Self {
            file,
            waiting: Mutex::new(text.lines().filter_map(parse).collect()),
            noted: Notify::new(),
        })
    }

    /// Remembers one until its node is back.
    pub(crate) fn note(&self, made: &Made) {
        let mut waiting = locked(&self.waiting);
        if waiting.contains(made) {
            return;
        }
        if waiting.len() == MOST {
            waiting.pop_front();
        }
        waiting.push_back(made.clone());
        self.write(&waiting);
        self.noted.notify_one();
    }

    /// Waits until there is one more.
    pub(super) async fn noted(&self) {
        self.noted.notified().await;
    }

    pub(super) fn list(&self) -> Vec<Made> {
        locked(&self.waiting).iter().cloned().collect()
    }

    pub(super) fn forget(&self, made: &Made) {
        let mut waiting = locked(&self.waiting);
        waiting.retain(|other| other != made);
        self.write(&waiting);
    }

    fn write(&self, waiting: &VecDeque<Made>) {
        let lines = waiting
            .iter()
            .map(|Made { clone, node, attempt }| format!("{node} {clone} {attempt}\n"));
        if let Err(error) = replace(&self.file, lines.collect::<String>().as_bytes()) {
            tracing::error!(%error, "write down which clones nobody waits for");
        }
    }
}

/// What is not understood is of another version, or damaged.
fn parse(line: &str) -> Option<Made> {
    let mut words = line.split(' ');
    Some(Made {
        node: words.next()?.parse().ok()?,
        clone: words.next()?.parse().ok()?,
        attempt: words.next()?.parse().ok()?,
    })
}

/// Requests that were given up while one node was away.
const MOST: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_waits_for_outlives_the_node_until_it_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let unwanted = Unwanted::open(directory.path()).unwrap();
        let made = Made {
            clone: "orders-k3v9x2mq".parse().unwrap(),
            node: "db2".parse().unwrap(),
            attempt: 3,
        };
        unwanted.note(&made);
        unwanted.note(&made);
        let again = Unwanted::open(directory.path()).unwrap();
        assert_eq!(again.list(), std::slice::from_ref(&made));
        again.forget(&made);
        assert_eq!(Unwanted::open(directory.path()).unwrap().list(), []);
    }
}
