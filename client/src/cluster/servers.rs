//! The addresses that a clone is reached by: few enough for each to be tried within a second, and among them one that has
//! been seen to work from here.

use zdap_proto::message::{NodeState, NodeView};
use zdap_proto::name::NodeName;

/// The owner's own addresses; then `reached`, by which we have reached the cluster ourselves: the nodes' own addresses may
/// mean nothing here; then others that answer, beginning behind the owner in the order of names, so that the clones of
/// different nodes go through different others.
pub(super) fn servers(nodes: &[NodeView], owner: &NodeName, reached: &str, is_owner: bool) -> Vec<String> {
    let (own, mut others): (Vec<&NodeView>, Vec<&NodeView>) =
        nodes.iter().partition(|node| node.name == *owner);
    others.retain(|node| matches!(node.state, NodeState::Alive | NodeState::Draining));
    others.sort_by_key(|node| (node.name < *owner, &node.name));
    let address = |node: &NodeView| node.address.clone();
    let mut known: Vec<String> = own.into_iter().map(address).collect();
    known.insert(if is_owner { 0 } else { known.len() }, reached.to_owned());
    let most = match is_owner || known.len() > 1 {
        true => MOST_SERVERS,
        false => MOST_WITHOUT_OWNER,
    };
    let mut servers: Vec<String> = Vec::new();
    for address in known.into_iter().chain(others.into_iter().map(address)) {
        if !servers.contains(&address) && servers.len() < most {
            servers.push(address);
        }
    }
    servers
}

/// A handful; each is tried within a second when none before it answers.
const MOST_SERVERS: usize = 8;
/// The first is taken for the clone's own node, which is never given up for not reaching it; of two neither is.
const MOST_WITHOUT_OWNER: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::tests::node_view;

    fn address(name: &str) -> String {
        format!("{name}.example.com:43210")
    }

    fn three_hundred() -> Vec<NodeView> {
        let names = (0..300).map(|number| format!("n{number:03}"));
        names.map(|name| node_view(&name, NodeState::Alive)).collect()
    }

    #[test]
    fn a_clone_is_reached_at_its_own_node_first_and_then_through_others_that_answer() {
        let nodes = [
            node_view("a", NodeState::Alive),
            node_view("b", NodeState::Alive),
            node_view("c", NodeState::Down),
            node_view("d", NodeState::Suspect),
            node_view("e", NodeState::Draining),
        ];
        let servers = |owner: &str, reached: &str, is_owner| {
            servers(&nodes, &owner.parse().unwrap(), reached, is_owner)
        };
        assert_eq!(
            servers("b", &address("a"), false),
            [address("b"), address("a"), address("e")]
        );
        assert_eq!(
            servers("b", "10.0.0.2:1", true),
            ["10.0.0.2:1".to_owned(), address("b"), address("e"), address("a")]
        );
        assert_eq!(servers("c", &address("a"), false)[0], address("c"));
    }

    #[test]
    fn the_address_that_works_from_here_is_among_them_although_no_node_calls_it_its_own() {
        let owner = "n150".parse().unwrap();
        let servers = servers(&three_hundred(), &owner, "vpn.example.com:1", false);
        assert_eq!(servers[..2], [address("n150"), "vpn.example.com:1".to_owned()]);
    }

    #[test]
    fn there_is_a_handful_however_many_nodes_there_are_and_the_one_that_was_reached_is_among_them() {
        let owner = "n150".parse().unwrap();
        let servers = servers(&three_hundred(), &owner, &address("n007"), false);
        assert_eq!(servers.len(), 8);
        let first = ["n150", "n007", "n151", "n152"].map(address);
        assert_eq!(servers[..4], first);
    }

    #[test]
    fn where_the_owner_is_not_known_there_are_too_few_to_take_the_first_for_it() {
        let owner = "somebody".parse().unwrap();
        let servers = servers(&three_hundred(), &owner, "vpn.example.com:1", false);
        assert_eq!(servers, ["vpn.example.com:1".to_owned(), address("n000")]);
    }
}
