//! Names of machines -> addresses that packets go to. Each name is looked up once, when the node starts.

use std::net::SocketAddr;

use anyhow::Context;

use crate::config::NetworkAddress;

/// Returns the address that others reach this node at.
pub async fn own(network_address: &NetworkAddress, port: u16) -> anyhow::Result<SocketAddr> {
    let text = network_address.with_port(port);
    resolve(&text).await.with_context(|| {
        format!("find the address of this node, `{text}`: --network-address names where others reach it")
    })
}

/// Returns the addresses of other nodes, given as `host:port`; those that cannot be found are logged and left out.
pub async fn of_others(texts: &[String]) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for text in texts {
        match resolve(text).await {
            Ok(address) => addresses.push(address),
            Err(error) => {
                tracing::warn!(address = text, error = format!("{error:#}"), "find another node")
            }
        }
    }
    addresses
}

/// The first address, of IPv4 if there is one: a node without IPv6 can send there too.
async fn resolve(text: &str) -> anyhow::Result<SocketAddr> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let found = tokio::net::lookup_host(text).await?;
    found
        .min_by_key(SocketAddr::is_ipv6)
        .context("the name has no address")
}
