//! Clusters of real nodes on several machines: network namespaces, each with its room on ZFS.

mod developer;
mod failures;
mod gateway;
mod host;
mod network;
mod placement;

use self::host::Host;
use self::network::Network;

/// Starts servers with pools of these sizes, in GiB, each with a snapshot of `orders`; the first founds the cluster.
fn cluster(test: &str, network: &Network, gibibytes: &[u32]) -> Option<Vec<Host>> {
    let mut hosts: Vec<Host> = Vec::new();
    for (number, &size) in gibibytes.iter().enumerate() {
        let token = hosts.first().map(|first| first.zdapd(&["token", "node"]).line());
        let host = Host::start(test, network, &format!("db{number}"), size, token.as_deref())?;
        host.restore();
        hosts.push(host);
    }
    Some(hosts)
}
