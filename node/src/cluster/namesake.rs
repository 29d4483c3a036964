//! No two living nodes of one name: whoever comes second does not start.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::bail;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, interval, sleep_until};
use zdap_proto::identity::Subject;
use zdap_proto::name::NodeName;
use zdap_proto::transport;

use crate::gossip::links::Links;
use crate::gossip::streams;

/// Fails if another node answers to this node's name. Nodes at `contacts` are asked where it is, and whoever is there
/// is asked for its certificate: this node itself, at an address it has left, does not answer.
pub(crate) async fn refuse(
    links: &Links,
    contacts: &[SocketAddr],
    name: &NodeName,
    address: SocketAddr,
) -> anyhow::Result<()> {
    match find(links, contacts, name, address).await {
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
    let mut unasked = contacts.iter();
    let mut asks = FuturesUnordered::new();
    let mut asked = BTreeSet::from([address]);
    // Nobody at all is there when the whole cluster starts again.
    let mut patience = Instant::now() + PATIENCE;
    let mut more = interval(BETWEEN);
    while unasked.len() > 0 || !asks.is_empty() {
        let answer = tokio::select! {
            biased; // so that a simulation is the same each time
            () = sleep_until(patience) => return None,
            Some(answer) = asks.next() => answer,
            _ = more.tick(), if unasked.len() > 0 => {
                let some = unasked.by_ref().take(AT_ONCE);
                asks.extend(some.map(|contact| streams::who(links, *contact, name)));
                continue;
            }
        };
        if answer.is_ok() {
            patience = patience.min(Instant::now() + GRACE);
        }
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
const PATIENCE: Duration = Duration::from_secs(1);
/// When one has answered, the others that are there do too.
const GRACE: Duration = Duration::from_millis(200);
/// So many nodes are asked at once, and as many more a little later: each takes a handshake, and of hundreds one is enough.
const AT_ONCE: usize = 8;
const BETWEEN: Duration = Duration::from_millis(25);
