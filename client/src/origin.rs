//! The ways to the nodes: which of them answers, and which of them to ask for a clone.
//!
//! An origin is an address that is remembered together with the cluster whose identity opens it. All are asked at once;
//! one that does not answer holds nobody up for longer than [`ANSWER_DEADLINE`].

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use quinn::Endpoint;
use tokio::time::{Instant, timeout, timeout_at};
use zdap_proto::connect::CONNECT_DEADLINE;
use zdap_proto::identity::Identity;
use zdap_proto::message::NodeStatus;
use zdap_proto::name::{ClusterId, ResourceName, SnapshotTime};

use crate::node::{Node, NodeError};
use crate::offer::{Offer, best};
use crate::settings::{Home, SettingsError};
use crate::words::Pin;
use zdap_proto::refusal::chain;

/// All the ways that this machine knows.
#[derive(Debug)]
pub struct Origins {
    endpoint: Endpoint,
    ways: Vec<Way>,
}

/// One address, and who we are there.
#[derive(Debug, Clone)]
pub struct Way {
    /// `host:port`.
    pub address: String,
    /// The cluster that it belongs to.
    pub cluster: ClusterId,
    /// Who we are there, or why that cannot be said.
    identity: Result<Arc<Identity>, String>,
}

/// What became of asking all the nodes.
#[derive(Debug)]
pub struct Gathered<T> {
    /// Those that answered, and what.
    pub answers: Vec<(Node, T)>,
    /// Those that did not, and why.
    pub silent: Vec<Silent>,
}

/// A node that did not answer.
#[derive(Debug)]
pub struct Silent {
    /// Where it should be.
    pub address: String,
    /// Why, in a line that names the address.
    pub reason: String,
    /// The remedy, where there is one to name.
    pub hint: Option<String>,
    /// What it said, if it did answer but with a no.
    refused: Option<NodeError>,
}

/// Why no node can be asked.
#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    /// None is known.
    #[error("no origin is set")]
    NoneSet,
    /// None has answered.
    #[error("no origin was reached{}", indented(silent.iter().map(|silent| silent.reason.as_str())))]
    NoneReached {
        /// Those that were tried, and why not.
        silent: Vec<Silent>,
    },
    /// None of those that answer is the one that is wanted.
    #[error("no node {pin} among the origins{}", indented(known.iter().map(String::as_str)))]
    NoSuchNode {
        /// The one that is wanted.
        pin: Pin,
        /// What the others are.
        known: Vec<String>,
    },
    /// None of those that answer can host the clone.
    #[error("no node can host `{resource}`{}", indented(reasons.iter().map(String::as_str)))]
    NoPlace {
        /// What was to be cloned.
        resource: ResourceName,
        /// Each node and why not.
        reasons: Vec<String>,
    },
    /// The one that was chosen said no.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The settings cannot be read.
    #[error(transparent)]
    Settings(#[from] SettingsError),
}

impl OriginError {
    /// Returns the remedy, where there is one to name.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoneSet => Some(
                "`zdap add origin TOKEN`, with the token that an administrator gets by `zdapd token user` on a node"
                    .to_owned(),
            ),
            Self::NoneReached { silent } => silent.iter().find_map(|silent| silent.hint.clone()),
            Self::NoSuchNode { .. } => Some("`zdap list origins` shows them".to_owned()),
            Self::NoPlace { .. } => Some("`zdap list snaps --all` shows what can be cloned".to_owned()),
            Self::Node(_) | Self::Settings(_) => None,
        }
    }
}

impl Origins {
    /// Takes the origins from the settings.
    pub fn new(endpoint: Endpoint, home: &Home) -> Result<Self, OriginError> {
        let ways = home.settings()?.origins.into_iter().map(|origin| Way {
            identity: home
                .identity(&origin.cluster)
                .map(Arc::new)
                .map_err(|error| chain(&error)),
            address: origin.address,
            cluster: origin.cluster,
        });
        Ok(Self {
            endpoint,
            ways: ways.collect(),
        })
    }

    /// Chooses the node that a clone of `resource` is made on: the pinned one, the only one, or of those that have the
    /// snapshot the one with the most room. Returns also those that did not answer.
    pub async fn choose(
        &self,
        pin: Option<&Pin>,
        resource: &ResourceName,
        snapshot: Option<SnapshotTime>,
    ) -> Result<(Node, Vec<Silent>), OriginError> {
        let ways = self.ways_of(pin)?;
        if let ([way], None | Some(Pin::Address(_))) = (ways.as_slice(), pin) {
            return match way.reach(&self.endpoint).await {
                Ok(node) => Ok((node, Vec::new())),
                Err(error) => Err(OriginError::NoneReached {
                    silent: vec![Silent::new(way, error)],
                }),
            };
        }
        let ask = async |node: &Node| {
            let (status, resources) = tokio::try_join!(node.status(), node.resources())?;
            Ok(Offer::new(&status, resources, resource))
        };
        let hosts = |offer: &Offer| (pin.is_none() && offer.fault(snapshot).is_none()).then_some(GRACE);
        let gathered = self.each(&ways, ask, hosts).await;
        let gathered = keep_pinned(gathered, pin, |node, offer| fits(pin, &offer.node, node))?;
        let no_place = |reasons| OriginError::NoPlace {
            resource: resource.clone(),
            reasons,
        };
        match best(gathered.answers.iter().map(|(_, offer)| offer), snapshot) {
            Ok(place) => {
                let chosen = gathered.answers.into_iter().nth(place);
                let (node, _) = chosen.ok_or_else(|| no_place(Vec::new()))?;
                Ok((node, gathered.silent))
            }
            Err(mut reasons) => {
                reasons.extend(gathered.silent.into_iter().map(|silent| silent.reason));
                Err(no_place(reasons))
            }
        }
    }

    /// Asks every node (or the pinned one) and waits for all of them.
    pub async fn gather<T>(
        &self,
        pin: Option<&Pin>,
        ask: impl AsyncFn(&Node) -> Result<T, NodeError>,
    ) -> Result<Gathered<T>, OriginError> {
        self.gather_until(pin, ask, |_| false).await
    }

    /// Asks every node (or the pinned one) and waits for them until an answer is the last that is needed.
    pub async fn gather_until<T>(
        &self,
        pin: Option<&Pin>,
        ask: impl AsyncFn(&Node) -> Result<T, NodeError>,
        mut is_last: impl FnMut(&T) -> bool,
    ) -> Result<Gathered<T>, OriginError> {
        let ways = self.ways_of(pin)?;
        let ask = async |node: &Node| match pin {
            Some(Pin::Name(_)) => {
                let (status, answer) = tokio::try_join!(node.status(), ask(node))?;
                Ok((Some(status.name.to_string()), answer))
            }
            Some(Pin::Address(_)) | None => Ok((None, ask(node).await?)),
        };
        let patience = |(_, answer): &(_, T)| is_last(answer).then_some(Duration::ZERO);
        let gathered = self.each(&ways, ask, patience).await;
        let pinned = |node: &Node, (name, _): &(Option<String>, T)| match name {
            Some(name) => fits(pin, name, node),
            None => true,
        };
        let gathered = keep_pinned(gathered, pin, pinned)?;
        let answers = gathered.answers.into_iter();
        Ok(Gathered {
            answers: answers.map(|(node, (_, answer))| (node, answer)).collect(),
            silent: gathered.silent,
        })
    }

    /// Asks every node, and once one has answered waits for the others only a moment more.
    pub async fn gather_quickly<T>(&self, ask: impl AsyncFn(&Node) -> Result<T, NodeError>) -> Vec<T> {
        let ways: Vec<&Way> = self.ways.iter().collect();
        let gathered = self.each(&ways, ask, |_| Some(GRACE)).await;
        gathered.answers.into_iter().map(|(_, answer)| answer).collect()
    }

    /// Asks every origin how it is; one entry each, in the order they were added.
    pub async fn statuses(&self) -> Vec<(&Way, Result<NodeStatus, Silent>)> {
        let asked = self.ways.iter().map(async |way| {
            let status = way.ask(&self.endpoint, &async |node: &Node| node.status().await);
            (way, status.await.map(|(_, status)| status))
        });
        futures_util::future::join_all(asked).await
    }

    fn ways_of(&self, pin: Option<&Pin>) -> Result<Vec<&Way>, OriginError> {
        if self.ways.is_empty() {
            return Err(OriginError::NoneSet);
        }
        let Some(Pin::Address(address)) = pin else {
            return Ok(self.ways.iter().collect());
        };
        let ways: Vec<&Way> = self.ways.iter().filter(|way| way.address == *address).collect();
        match (ways.is_empty(), pin) {
            (true, Some(pin)) => Err(OriginError::NoSuchNode {
                pin: pin.clone(),
                known: self.ways.iter().map(|way| way.address.clone()).collect(),
            }),
            (_, _) => Ok(ways),
        }
    }

    /// Asks all of `ways` at once, until the `patience` that an answer leaves for the others is at its end.
    async fn each<T>(
        &self,
        ways: &[&Way],
        ask: impl AsyncFn(&Node) -> Result<T, NodeError>,
        mut patience: impl FnMut(&T) -> Option<Duration>,
    ) -> Gathered<T> {
        let mut gathered = Gathered {
            answers: Vec::new(),
            silent: Vec::new(),
        };
        let mut asked: FuturesUnordered<_> = ways.iter().map(|way| way.ask(&self.endpoint, &ask)).collect();
        let mut until = None;
        loop {
            let next = match until {
                Some(until) => timeout_at(until, asked.next()).await.unwrap_or(None),
                None => asked.next().await,
            };
            match next {
                Some(Ok((node, answer))) => {
                    if let (None, Some(left)) = (until, patience(&answer)) {
                        until = Some(Instant::now() + left);
                    }
                    gathered.answers.push((node, answer));
                }
                Some(Err(silent)) => gathered.silent.push(silent),
                None => return gathered,
            }
        }
    }
}

impl Way {
    async fn reach(&self, endpoint: &Endpoint) -> Result<Node, Fault> {
        let identity = self
            .identity
            .as_ref()
            .map_err(|reason| Fault::Identity(reason.clone()))?;
        Ok(Node::connect(endpoint, identity, &self.address).await?)
    }

    async fn ask<T>(
        &self,
        endpoint: &Endpoint,
        ask: &impl AsyncFn(&Node) -> Result<T, NodeError>,
    ) -> Result<(Node, T), Silent> {
        let asked = async {
            let node = self.reach(endpoint).await?;
            let answer = ask(&node).await?;
            Ok((node, answer))
        };
        let result = timeout(ANSWER_DEADLINE, asked).await.unwrap_or_else(|_| {
            Err(Fault::Node(NodeError::Silent {
                address: self.address.clone(),
                after: ANSWER_DEADLINE,
            }))
        });
        result.map_err(|fault| Silent::new(self, fault))
    }
}

/// Why one way leads nowhere.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("no identity to show: {0}")]
    Identity(String),
    #[error(transparent)]
    Node(#[from] NodeError),
}

impl Silent {
    fn new(way: &Way, fault: Fault) -> Self {
        let reason = chain(&fault);
        let (hint, refused) = match fault {
            Fault::Identity(_) => (Some("enrol again with a new token".to_owned()), None),
            Fault::Node(NodeError::Connect(error)) => (error.hint(), None),
            Fault::Node(error) => (None, matches!(error, NodeError::Refused { .. }).then_some(error)),
        };
        Self {
            reason: match reason.contains(&way.address) {
                true => reason,
                false => format!("{}: {reason}", way.address),
            },
            address: way.address.clone(),
            hint,
            refused,
        }
    }
}

/// Drops the answers of nodes that are not the pinned one; no answer at all is an error.
fn keep_pinned<T>(
    mut gathered: Gathered<T>,
    pin: Option<&Pin>,
    is_pinned: impl Fn(&Node, &T) -> bool,
) -> Result<Gathered<T>, OriginError> {
    if gathered.answers.is_empty() {
        let refused = gathered
            .silent
            .iter_mut()
            .find_map(|silent| silent.refused.take());
        return Err(match refused {
            Some(error) => error.into(),
            None => OriginError::NoneReached {
                silent: gathered.silent,
            },
        });
    }
    let known = gathered.answers.iter().map(|(node, _)| node.address().to_owned());
    let known: Vec<String> = known
        .chain(gathered.silent.iter().map(|silent| silent.reason.clone()))
        .collect();
    gathered.answers.retain(|(node, answer)| is_pinned(node, answer));
    match (gathered.answers.is_empty(), pin) {
        (true, Some(pin)) => Err(OriginError::NoSuchNode {
            pin: pin.clone(),
            known,
        }),
        (_, _) => Ok(gathered),
    }
}

/// Returns whether a node of this name, reached at this address, is the pinned one.
fn fits(pin: Option<&Pin>, name: &str, node: &Node) -> bool {
    match pin {
        Some(Pin::Name(wanted)) => is_called(wanted, name, node.address()),
        Some(Pin::Address(wanted)) => wanted == node.address(),
        None => true,
    }
}

fn is_called(wanted: &str, name: &str, address: &str) -> bool {
    let host = address.rsplit_once(':').map(|(host, _)| host);
    wanted == name || host == Some(wanted)
}

fn indented<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    lines.map(|line| format!("\n  {line}")).collect()
}

/// A node that is well answers in one round trip; somebody is waiting. Connecting gives up first, as it can say more.
const ANSWER_DEADLINE: Duration = CONNECT_DEADLINE.saturating_add(Duration::from_secs(1));
/// What a better place may take longer to answer than a good one: a round trip round the world.
const GRACE: Duration = Duration::from_millis(300);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_no_node_will_do_each_is_named_with_its_reason() {
        let error = OriginError::NoPlace {
            resource: "orders".parse().unwrap(),
            reasons: vec!["db1: no".to_owned(), "db2:43210: no answer".to_owned()],
        };
        assert_eq!(
            error.to_string(),
            "no node can host `orders`\n  db1: no\n  db2:43210: no answer"
        );
    }

    #[test]
    fn a_node_is_called_by_its_name_or_its_host() {
        assert!(is_called("db1", "db1", "10.0.0.1:43210"));
        assert!(is_called("10.0.0.1", "db1", "10.0.0.1:43210"));
        assert!(!is_called("db", "db1", "db1.example.com:43210"));
    }
}
