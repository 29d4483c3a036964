//! Connections that are there before they are needed: the first request to a node should not wait for a handshake.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use zdap_proto::name::NodeName;

use super::{Peers, Way, Whereabouts};
use crate::cluster::View;
use crate::gossip::MemberState;

impl Peers {
    /// Connects to each node that comes, or comes back, as long as there are few: of many, a request asks only some, and that
    /// each keeps a connection to all others costs more than it is worth.
    pub async fn stay_ready(self: Arc<Self>) {
        let mut views = self.view.clone();
        let mut met = BTreeMap::new();
        let mut dialling = JoinSet::new();
        loop {
            let there = Self::few(&views.borrow_and_update());
            for (node, at) in &there {
                if met.get(node) != Some(at) {
                    let (peers, way) = (Arc::clone(&self), Way::control(node));
                    // Where it cannot be reached, whoever needs it finds out.
                    dialling.spawn(async move { drop(peers.connection(&way).await) });
                }
            }
            met = there;
            while dialling.try_join_next().is_some() {}
            if views.changed().await.is_err() {
                return;
            }
            // One that joins hears of a few first, and may then find that they are many.
            tokio::time::sleep(SETTLING).await;
        }
    }

    fn few(view: &View) -> BTreeMap<NodeName, Whereabouts> {
        let others = view.members.iter().filter(|(name, _)| **name != view.me);
        if others.clone().count() > FEW {
            return BTreeMap::new();
        }
        others
            .filter(|(_, seen)| seen.state == MemberState::Alive)
            .map(|(name, seen)| (name.clone(), Whereabouts::of(seen)))
            .collect()
    }
}

/// Two for each of the eight or so that a large site has.
const FEW: usize = 16;

/// By then a node that has joined knows all others.
const SETTLING: Duration = Duration::from_secs(1);
