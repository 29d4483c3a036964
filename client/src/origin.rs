//! The ways to the clusters: of each the addresses that are known, one of which is enough.

mod visit;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::join_all;
use quinn::Endpoint;
use zdap_proto::connect::ConnectError;
use zdap_proto::identity::Identity;
use zdap_proto::message::{NodeView, SilentNode};
use zdap_proto::name::{ClusterId, NodeName};
use zdap_proto::refusal::chain;

pub use self::visit::Visit;
use crate::cluster::Cluster;
use crate::node::NodeError;
use crate::settings::{Home, SettingsError};
use crate::words::Pin;

/// All the ways that this machine knows.
#[derive(Debug)]
pub struct Origins {
    endpoint: Endpoint,
    known: Vec<Known>,
    is_any_reached: Arc<AtomicBool>,
}

/// A cluster, who we are there, and where it is.
#[derive(Debug)]
struct Known {
    cluster: ClusterId,
    /// Or why that cannot be said.
    identity: Result<Arc<Identity>, String>,
    /// The likeliest to answer first.
    addresses: Vec<String>,
    /// Which node is at an address, as far as it was learned.
    names: BTreeMap<String, NodeName>,
}

/// The clusters of which a node answers, at least one.
#[derive(Debug)]
pub struct Reached {
    /// In the order in which they were added.
    pub clusters: Vec<Cluster>,
    /// Why none of the nodes of the others does.
    pub silent: Vec<Silent>,
}

/// A cluster that is to be asked, and the one node of it that counts, if it is pinned.
#[derive(Debug, Clone)]
pub struct Target {
    /// The cluster.
    pub cluster: Cluster,
    /// The only node that counts.
    pub node: Option<NodeName>,
}

/// A node, or an address, that did not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silent {
    /// Which node, as far as that is known.
    pub node: Option<NodeName>,
    /// Why, in a line that names it.
    pub reason: String,
    /// The remedy, where there is one to name.
    pub hint: Option<String>,
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
    /// The one that is wanted does not exist.
    #[error("there is no node {pin}; there are{}", indented(known.iter().map(String::as_str)))]
    NoSuchNode {
        /// The one that is wanted.
        pin: Pin,
        /// What the others are.
        known: Vec<String>,
    },
    /// One that was reached said no.
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
            Self::NoSuchNode { .. } => Some("`zdap list nodes` shows them".to_owned()),
            Self::Node(_) | Self::Settings(_) => None,
        }
    }
}

impl Origins {
    /// Takes the origins from the settings. `is_any_reached` will be true as soon as any of them is reached.
    pub fn new(
        endpoint: Endpoint,
        home: &Home,
        is_any_reached: Arc<AtomicBool>,
    ) -> Result<Self, OriginError> {
        let settings = home.settings()?;
        let known = settings.known_clusters().into_iter().map(|cluster| {
            let addresses = settings.addresses(&cluster);
            let named = |address: &String| Some((address.clone(), settings.name_at(&cluster, address)?));
            Known {
                identity: home
                    .identity(&cluster)
                    .map(Arc::new)
                    .map_err(|error| chain(&error)),
                names: addresses.iter().filter_map(named).collect(),
                addresses,
                cluster,
            }
        });
        Ok(Self {
            endpoint,
            known: known.collect(),
            is_any_reached,
        })
    }

    /// Reaches one node of each cluster, whichever answers first.
    pub async fn reach(&self) -> Result<Reached, OriginError> {
        if self.known.is_empty() {
            return Err(OriginError::NoneSet);
        }
        let mut reached = Reached {
            clusters: Vec::new(),
            silent: Vec::new(),
        };
        for result in join_all(self.known.iter().map(|known| known.reach(self))).await {
            match result {
                Ok(cluster) => reached.clusters.push(cluster),
                Err(silent) => reached.silent.extend(silent),
            }
        }
        match reached.clusters.is_empty() {
            true => Err(OriginError::NoneReached {
                silent: reached.silent,
            }),
            false => Ok(reached),
        }
    }

    async fn reach_any(
        &self,
        identity: &Arc<Identity>,
        addresses: &[String],
    ) -> Result<Cluster, Vec<(String, ConnectError)>> {
        let cluster = Cluster::reach(&self.endpoint, identity, addresses).await?;
        self.is_any_reached.store(true, Ordering::Relaxed);
        Ok(cluster)
    }
}

impl Known {
    async fn reach(&self, origins: &Origins) -> Result<Cluster, Vec<Silent>> {
        let identity = self.identity.as_ref().map_err(|reason| {
            let silent = self
                .addresses
                .iter()
                .map(|address| Silent::without_identity(address, reason));
            silent.collect::<Vec<_>>()
        })?;
        let reached = origins.reach_any(identity, &self.addresses).await;
        reached.map_err(|errors| {
            let silent = errors
                .iter()
                .map(|(address, error)| Silent::unreached(address, error));
            silent.collect()
        })
    }
}

impl Reached {
    /// Returns which clusters to ask, and of each which node counts: the pinned one, or all.
    pub async fn targets(&self, pin: Option<&Pin>) -> Result<Vec<Target>, OriginError> {
        let Some(pin) = pin else {
            let all = self.clusters.iter().map(|cluster| Target {
                cluster: cluster.clone(),
                node: None,
            });
            return Ok(all.collect());
        };
        let mut targets = Vec::new();
        let mut known = Vec::new();
        let mut failed = Vec::new();
        for cluster in &self.clusters {
            match (cluster.resolve(pin).await, cluster.nodes().await) {
                (Ok(Some(node)), _) => targets.push(Target {
                    cluster: cluster.clone(),
                    node: Some(node),
                }),
                (Ok(None), Ok(nodes)) => known.extend(nodes.iter().map(|node| {
                    let NodeView { name, address, .. } = node;
                    format!("{name} at {address}")
                })),
                (Err(error), _) | (Ok(None), Err(error)) => {
                    let reason = Silent::failed(cluster.node().await.address(), &error).reason;
                    failed.push((reason, error));
                }
            }
        }
        if failed.len() == self.clusters.len()
            && let Some((_, error)) = failed.pop()
        {
            return Err(error.into());
        }
        let failed = failed.into_iter().map(|(reason, _)| reason);
        if targets.is_empty() {
            known.extend(failed);
            known.extend(self.silent.iter().map(|silent| silent.reason.clone()));
            return Err(OriginError::NoSuchNode {
                pin: pin.clone(),
                known,
            });
        }
        for reason in failed {
            // It may have a node of that name, too.
            tracing::warn!("{reason}");
        }
        Ok(targets)
    }
}

impl Target {
    /// Returns whether what is on `node` counts.
    pub fn counts(&self, node: &NodeName) -> bool {
        self.node.as_ref().is_none_or(|pinned| pinned == node)
    }
}

impl Silent {
    /// Says why an address was not reached.
    pub fn unreached(address: &str, error: &ConnectError) -> Self {
        Self {
            hint: error.hint(),
            ..Self::failed(address, error)
        }
    }

    /// Says why nothing came of asking at an address.
    pub fn failed(address: &str, error: &dyn std::error::Error) -> Self {
        let reason = chain(error);
        Self {
            node: None,
            reason: match reason.contains(address) {
                true => reason,
                false => format!("{address}: {reason}"),
            },
            hint: None,
        }
    }

    fn without_identity(address: &str, reason: &str) -> Self {
        Self {
            node: None,
            reason: format!("{address}: no identity to show: {reason}"),
            hint: Some("enrol again with a new token".to_owned()),
        }
    }
}

impl From<SilentNode> for Silent {
    fn from(silent: SilentNode) -> Self {
        let SilentNode { node, reason } = silent;
        Self {
            reason: format!("{node} does not answer: {reason}"),
            node: Some(node),
            hint: None,
        }
    }
}

impl fmt::Display for Silent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

fn indented<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    lines.map(|line| format!("\n  {line}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_no_node_answers_each_address_is_named_with_its_reason() {
        let silent = ["db1:43210", "db2:43210"].map(|address| {
            let error = ConnectError::OtherVersion(address.to_owned());
            Silent::unreached(address, &error)
        });
        let error = OriginError::NoneReached {
            silent: silent.to_vec(),
        };
        assert_eq!(
            error.to_string(),
            "no origin was reached\n  db1:43210 does not speak this version of the protocol\n  \
             db2:43210 does not speak this version of the protocol"
        );
        assert!(error.hint().is_some_and(|hint| hint.contains("same version")));
    }

    #[test]
    fn a_node_that_is_not_there_is_named_with_those_that_are() {
        let error = OriginError::NoSuchNode {
            pin: Pin::Name("db3".to_owned()),
            known: vec!["db1 at 10.0.0.1:43210".to_owned()],
        };
        assert_eq!(
            error.to_string(),
            "there is no node @db3; there are\n  db1 at 10.0.0.1:43210"
        );
    }
}
