//! Connections that are there before they are needed: the first request to a node should not wait for a handshake.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use super::{Peers, Way};
use crate::cluster::View;
use crate::gossip::MemberState;

impl Peers {
    /// Sees to it that there is a connection to every other node, as long as they are few: of many, a new clone is offered to
    /// only some, and keeping connections to all costs more than it is worth.
    pub async fn stay_ready(self: Arc<Self>) {
        let (mut views, mut identity) = (self.view.clone(), self.identity.clone());
        loop {
            let ways = few(&views.borrow_and_update());
            // Where one cannot be reached, whoever needs it finds out.
            join_all(ways.iter().map(|way| self.connection(way))).await;
            let changed = tokio::select! {
                biased; // so that a simulation is the same each time
                changed = identity.changed() => changed,
                changed = views.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
            // News comes in bursts, and one that joins hears of a few first and then that they are many.
            tokio::time::sleep(SETTLING).await;
        }
    }
}

/// Returns the ways to the nodes that answer, if few do.
fn few(view: &View) -> Vec<Way> {
    let others = view.members.iter().filter(|(name, _)| **name != view.me);
    let alive = others.filter(|(_, seen)| seen.state == MemberState::Alive);
    let ways: Vec<Way> = alive.map(|(name, _)| Way::control(name)).collect();
    match ways.len() {
        0..=FEW => ways,
        _ => Vec::new(),
    }
}

/// Few sites have more. Each costs about 20 B/s to keep its connection up, by the size of QUIC's packets.
const FEW: usize = 8;

/// By then a node that has joined knows all others; and nobody is dialled more often.
const SETTLING: Duration = Duration::from_secs(1);
