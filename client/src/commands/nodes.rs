//! `zdap list nodes`.

use indicatif::BinaryBytes;
use serde::Serialize;
use zdap_proto::message::{NodeState, NodeView};
use zdap_proto::name::{NodeName, ResourceName};

use super::ask_each;
use super::table::table;
use crate::context::Context;
use crate::error::Failure;
use crate::origin::Target;

/// One node; part of the contract.
#[derive(Serialize)]
pub(super) struct NodeDocument<'a> {
    name: &'a NodeName,
    address: &'a str,
    state: NodeState,
    generation: u64,
    clones: u32,
    free_bytes: u64,
    total_bytes: u64,
    load: f64,
    resources: &'a [ResourceName],
}

/// Shows the nodes of all clusters.
pub(super) async fn list(context: &Context<'_>) -> Result<(), Failure> {
    let reached = context.reach().await?;
    context.output.doing("asking for the nodes");
    let targets = reached.targets(None).await?;
    let ask = async |target: &Target| Ok(target.cluster.nodes().await?.to_vec());
    let nodes: Vec<NodeView> = ask_each(context.output, &targets, ask).await?.concat();
    let documents: Vec<NodeDocument<'_>> = nodes.iter().map(document).collect();
    let header = [
        "NAME",
        "ADDRESS",
        "STATE",
        "RESOURCES",
        "CLONES",
        "FREE",
        "TOTAL",
        "LOAD",
    ];
    let text = table(&header, nodes.iter().map(row));
    context.output.data(&text, &documents)
}

/// Returns how a node is, in a word.
pub(super) fn state(state: NodeState) -> &'static str {
    match state {
        NodeState::Alive => "alive",
        NodeState::Draining => "draining",
        NodeState::Suspect => "suspect",
        NodeState::Down => "down",
    }
}

/// Returns a load as people read it.
pub(super) fn load(load: f64) -> String {
    format!("{:.0} %", load * 100.0)
}

/// Returns what is said of a node in JSON.
pub(super) fn document(node: &NodeView) -> NodeDocument<'_> {
    NodeDocument {
        name: &node.name,
        address: &node.address,
        state: node.state,
        generation: node.generation,
        clones: node.clones,
        free_bytes: node.free_bytes,
        total_bytes: node.total_bytes,
        load: node.load,
        resources: &node.resources,
    }
}

fn row(node: &NodeView) -> Vec<String> {
    let resources: Vec<&str> = node.resources.iter().map(ResourceName::as_str).collect();
    vec![
        node.name.to_string(),
        node.address.clone(),
        state(node.state).to_owned(),
        match resources.is_empty() {
            true => "-".to_owned(),
            false => resources.join(","),
        },
        node.clones.to_string(),
        BinaryBytes(node.free_bytes).to_string(),
        BinaryBytes(node.total_bytes).to_string(),
        load(node.load),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::tests::node_view;

    #[test]
    fn the_json_of_a_node_is_that_of_the_contract() {
        assert_eq!(
            serde_json::to_string(&document(&node_view("db1", NodeState::Draining))).unwrap(),
            r#"{"name":"db1","address":"db1.example.com:43210","state":"draining","generation":7,"clones":3,"free_bytes":1073741824,"total_bytes":4294967296,"load":0.5,"resources":["orders"]}"#
        );
    }

    #[test]
    fn a_node_is_a_line_for_people() {
        assert_eq!(
            row(&node_view("db1", NodeState::Down)).join(" "),
            "db1 db1.example.com:43210 down orders 3 1.00 GiB 4.00 GiB 50 %"
        );
    }
}
