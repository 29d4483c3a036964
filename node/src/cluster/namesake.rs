//! No two living nodes of one name: whoever comes second does not start.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::bail;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::timeout;
use zdap_proto::identity::Subject;
use zdap_proto::name::NodeName;
use zdap_proto::transport;

use crate::gossip::links::Links;
use crate::gossip::streams;

/// Fails if another node answers to this node's name. The nodes at `contacts` are asked where it is, and whoever is there
/// is asked for its certificate: this node itself, at an address it has left, does not answer.
pub(crate) async fn refuse(
    links: &Links,
    contacts: &[SocketAddr],
    name: &NodeName,
    address: SocketAddr,
) -> anyhow::Result<()> {
    let Ok(namesake) = timeout(PATIENCE, find(links, contacts, name, address)).await else {
        // Nobody else is there: the first node of the cluster that starts again.
        return Ok(());
    };
    match namesake {
        Some(other) => bail!(
            "the name of node `{name}` is taken: a node of that name answers at {other}; give this one another name \
             (--node-name) and an empty state directory (--state-dir), or stop the other"
        ),
        None => Ok(()),
    }
}

async fn find(
    links: &Links,
    contacts: &[SocketAddr],
    name: &NodeName,
    address: SocketAddr,
) -> Option<SocketAddr> {
    let asks = contacts.iter().map(|contact| streams::who(links, *contact, name));
    let mut asks: FuturesUnordered<_> = asks.collect();
    let mut asked = BTreeSet::from([address]);
    while let Some(answer) = asks.next().await {
        if let Ok(Some(told)) = answer
            && asked.insert(told)
            && let Ok(connection) = links.connection(told).await
            && transport::peer(&connection).is_some_and(|peer| peer.subject == Subject::Node(name.clone()))
        {
            return Some(told);
        }
    }
    None
}

/// Longer than nodes that are there take to answer, and short for whoever waits for the start.
const PATIENCE: Duration = Duration::from_secs(2);
