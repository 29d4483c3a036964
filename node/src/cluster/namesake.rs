//! No two living nodes of one name: whoever comes second does not start.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::bail;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use zdap_proto::identity::Subject;
use zdap_proto::name::NodeName;
use zdap_proto::transport;

use crate::gossip::links::Links;
use crate::gossip::streams::{self, AskError};

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
    // Nobody at all is there when the whole cluster starts again.
    let mut patience = Instant::now() + PATIENCE;
    let mut more = interval(BETWEEN);
    more.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while unasked.len() > 0 || !asks.is_empty() {
        tokio::select! {
            biased; // so that a simulation is the same each time, and what has been said counts
            Some(answer) = asks.next() => match answer {
                Ok(Some(other)) => return Some(other),
                Ok(None) => patience = patience.min(Instant::now() + GRACE),
                Err(_) => {}
            },
            () = sleep_until(patience) => return None,
            _ = more.tick(), if unasked.len() > 0 => {
                let some = unasked.by_ref().take(AT_ONCE);
                asks.extend(some.map(|contact| ask(links, *contact, name, address)));
            }
        }
    }
    None
}

/// Asks the node at `contact` who else goes by `name`, and makes sure of it.
async fn ask(
    links: &Links,
    contact: SocketAddr,
    name: &NodeName,
    address: SocketAddr,
) -> Result<Option<SocketAddr>, AskError> {
    let told = streams::who(links, contact, name).await?;
    let Some(told) = told.filter(|told| *told != address) else {
        return Ok(None);
    };
    let connection = links.connection(told).await.map_err(AskError::Link)?;
    let is_it = transport::peer(&connection).is_some_and(|peer| peer.subject == Subject::Node(name.clone()));
    Ok(is_it.then_some(told))
}

/// Longer than nodes that are there take to answer, and short for whoever waits for the start.
const PATIENCE: Duration = Duration::from_secs(1);
/// When one has answered, the others that are there do too.
const GRACE: Duration = Duration::from_millis(200);
/// So many nodes are asked at once, and as many more a little later: each takes a handshake, and of hundreds one is enough.
const AT_ONCE: usize = 8;
const BETWEEN: Duration = Duration::from_millis(25);
