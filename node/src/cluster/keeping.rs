//! What is written down of the cluster as it changes, for the next start.

use std::collections::BTreeSet;
use std::time::Duration;

use super::files::{Met, Remembered};
use super::{Cluster, View};

impl Cluster {
    /// Keeps in the state directory who the other nodes are and where, until dropped.
    pub(crate) async fn keep_members(self) {
        let mut views = self.watch();
        // While nobody is known yet, those who were are what is left to go by.
        let mut written = BTreeSet::new();
        loop {
            let members = self.members(&views.borrow_and_update());
            let is_alone = members.is_empty();
            if members != written {
                match self.board.files.write_members(&members) {
                    Ok(()) => written = members,
                    Err(error) => tracing::error!(%error, "write down where the other nodes are"),
                }
            }
            if !is_alone {
                tokio::time::sleep(WRITTEN).await;
            }
            if views.changed().await.is_err() {
                return;
            }
        }
    }

    /// Keeps in the state directory who is a user, who is revoked and which nodes are forgotten, as other nodes tell, until dropped.
    pub(crate) async fn keep_names(self) {
        loop {
            self.board.unwritten.notified().await;
            while let Err(error) = self.board.write_names() {
                tracing::error!(%error, "write down who is a user, who is revoked and which nodes are forgotten");
                tokio::time::sleep(WRITTEN).await;
            }
        }
    }

    fn members(&self, view: &View) -> BTreeSet<Remembered> {
        let others = view.members.iter().filter(|(name, _)| **name != view.me);
        let members = others.map(|(name, seen)| {
            let told = seen.catalog.as_ref().map(|catalog| catalog.facts.address.clone());
            let before = self.board.remembered.iter().find(|before| before.is(name));
            let address = told.or_else(|| before.map(|before| before.address.clone()));
            Remembered {
                address: address.unwrap_or_else(|| seen.address.to_string()),
                member: Some(Met {
                    name: name.clone(),
                    address: seen.address,
                    epoch: seen.epoch,
                }),
            }
        });
        members.collect()
    }
}

/// Members are looked at at most this often, and what could not be written is tried again after it.
const WRITTEN: Duration = Duration::from_secs(3);
