//! Several nodes that know each other, each on a machine of its own.

use zdap_node::cluster::View;
use zdap_node::gossip::MemberState;
use zdap_proto::message::Invited;

use crate::world::{Apart, Machine};

/// The nodes and their machines, in the same order.
pub(crate) struct Together {
    pub(crate) machines: Vec<Machine>,
    pub(crate) nodes: Vec<Apart>,
}

impl Together {
    /// Starts a node of each name, all of one size.
    pub(crate) async fn start(names: &[&'static str]) -> Self {
        Self::start_on(names.iter().map(|name| Machine::new(name)).collect()).await
    }

    /// Starts a node on each machine. Each has a snapshot of `orders`, and all know all of it.
    pub(crate) async fn start_on(machines: Vec<Machine>) -> Self {
        let mut nodes: Vec<Apart> = Vec::new();
        for machine in &machines {
            let token = match nodes.first() {
                None => None,
                Some(first) => Some(first.token(Invited::Node).await),
            };
            let node = machine.start_apart(0, token.as_ref()).await.unwrap();
            node.operator().await.restore().await;
            nodes.push(node);
        }
        let together = Self { machines, nodes };
        together
            .until("all know all", |view| {
                together
                    .machines
                    .iter()
                    .all(|machine| has_snapshot(view, machine.name()))
            })
            .await;
        together
    }

    /// Waits until every node believes so.
    pub(crate) async fn until(&self, what: &str, believed: impl Fn(&View) -> bool) {
        for node in &self.nodes {
            node.until(what, &believed).await;
        }
    }

    /// Returns how many clones are on each machine.
    pub(crate) async fn clones(&self) -> Vec<usize> {
        let mut counts = Vec::new();
        for machine in &self.machines {
            counts.push(machine.clones().await.len());
        }
        counts
    }
}

/// Whether a node is there, with one snapshot that is known.
fn has_snapshot(view: &View, name: &str) -> bool {
    let seen = view.members.get(&name.parse().unwrap());
    seen.is_some_and(|seen| {
        let catalog = seen.catalog.as_ref();
        seen.state == MemberState::Alive
            && seen.digest.is_some()
            && catalog.is_some_and(|catalog| catalog.facts.snapshots.len() == 1)
    })
}
