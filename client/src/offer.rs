//! Which node to make a clone on.

use zdap_proto::message::{NodeStatus, ResourceView};
use zdap_proto::name::{ResourceName, SnapshotTime};

/// What a node has to offer for one resource.
#[derive(Debug)]
pub(crate) struct Offer {
    pub(crate) node: String,
    /// None: it does not serve the resource.
    snapshots: Option<Vec<SnapshotTime>>,
    free_bytes: u64,
}

impl Offer {
    /// Takes it from what the node says.
    pub(crate) fn new(status: &NodeStatus, resources: Vec<ResourceView>, resource: &ResourceName) -> Self {
        let served = resources.into_iter().find(|view| view.name == *resource);
        Self {
            node: status.name.to_string(),
            snapshots: served.map(|view| view.snapshots),
            free_bytes: status.free_bytes,
        }
    }

    /// Returns why a clone cannot be made there, if so.
    pub(crate) fn fault(&self, snapshot: Option<SnapshotTime>) -> Option<String> {
        let fault = match (&self.snapshots, snapshot) {
            (None, _) => "does not have this resource".to_owned(),
            (Some(snapshots), None) if snapshots.is_empty() => "has no snapshot of it yet".to_owned(),
            (Some(snapshots), Some(time)) if !snapshots.contains(&time) => {
                format!("has no snapshot of {time}")
            }
            (Some(_), _) => return None,
        };
        Some(format!("{}: {fault}", self.node))
    }
}

/// Returns the index of the offer to take: of those that have the snapshot, the one with the most room; the name decides
/// between equals. Or why each cannot be taken.
pub(crate) fn best<'a>(
    offers: impl Iterator<Item = &'a Offer>,
    snapshot: Option<SnapshotTime>,
) -> Result<usize, Vec<String>> {
    let mut reasons = Vec::new();
    let mut hosts = Vec::new();
    for (index, offer) in offers.enumerate() {
        match offer.fault(snapshot) {
            Some(reason) => reasons.push(reason),
            None => hosts.push((offer.free_bytes, std::cmp::Reverse(&offer.node), index)),
        }
    }
    reasons.sort();
    hosts.into_iter().max().map(|(_, _, index)| index).ok_or(reasons)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(node: &str, snapshots: Option<&[&str]>, free_bytes: u64) -> Offer {
        let times = |times: &[&str]| times.iter().map(|time| time.parse().unwrap()).collect();
        Offer {
            node: node.to_owned(),
            snapshots: snapshots.map(times),
            free_bytes,
        }
    }

    const OLD: &str = "2026-11-21T04:00:00Z";
    const NEW: &str = "2026-11-22T04:00:00Z";

    #[test]
    fn the_node_with_the_most_room_is_taken_if_it_has_a_snapshot() {
        let offers = [
            offer("a", Some(&[NEW]), 10),
            offer("b", Some(&[]), 99),
            offer("c", None, 99),
            offer("d", Some(&[NEW]), 20),
            offer("e", Some(&[NEW]), 20),
        ];
        assert_eq!(best(offers.iter(), None), Ok(3));
    }

    #[test]
    fn a_snapshot_that_is_asked_for_has_to_be_there() {
        let offers = [offer("a", Some(&[NEW]), 99), offer("b", Some(&[NEW, OLD]), 10)];
        assert_eq!(best(offers.iter(), Some(OLD.parse().unwrap())), Ok(1));
    }

    #[test]
    fn why_no_offer_can_be_taken_is_said_of_each() {
        let offers = [
            offer("b", Some(&[]), 9),
            offer("a", None, 9),
            offer("c", Some(&[OLD]), 9),
        ];
        let reasons = best(offers.iter(), Some(NEW.parse().unwrap())).unwrap_err();
        assert_eq!(
            reasons,
            [
                "a: does not have this resource",
                "b: has no snapshot of 2026-11-22T04:00:00Z",
                "c: has no snapshot of 2026-11-22T04:00:00Z",
            ]
        );
    }
}
