//! Which resources there are: a name that nobody knows is told from one of which there is nothing to list.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use zdap_proto::message::{NodeState, NodeView, ResourceView, SilentNode};
use zdap_proto::name::ResourceName;
use zdap_proto::refusal::RefusalKind;

use crate::error::{Failure, Kind};
use crate::origin::{Reached, Silent, Target};
use crate::words::Pin;

/// The resources of the nodes that answer, and, as far as these know, of those that are down.
pub(super) struct Known {
    names: BTreeSet<ResourceName>,
    /// Each may be that of another resource on another node.
    aliases: BTreeMap<String, BTreeSet<ResourceName>>,
    /// Those that may have others; where a node is pinned, no other than that.
    silent: Vec<Silent>,
    pin: Option<Pin>,
}

impl Known {
    /// Asks every cluster that was reached: what is not on the node that is pinned may be known on another.
    pub(super) async fn ask(reached: &Reached, pin: Option<&Pin>) -> Result<Self, Failure> {
        let targets = reached.targets(pin).await?;
        let mut known = Self {
            names: BTreeSet::new(),
            aliases: BTreeMap::new(),
            silent: match pin {
                Some(_) => Vec::new(),
                None => reached.silent.clone(),
            },
            pin: pin.cloned(),
        };
        let asked = reached
            .clusters
            .iter()
            .map(async |cluster| tokio::try_join!(cluster.resources(), cluster.nodes()));
        let answers = join_all(asked).await;
        let is_any_heard = answers.iter().any(Result::is_ok);
        for (cluster, answer) in reached.clusters.iter().zip(answers) {
            let target = targets.iter().find(|target| target.cluster.id() == cluster.id());
            match answer {
                Ok((resources, nodes)) => {
                    known.add(&resources, nodes);
                    let silent = target.map(|target| silent_nodes(target, nodes, ""));
                    known.silent.extend(silent.unwrap_or_default());
                }
                Err(error) if is_any_heard => {
                    let address = cluster.node().await.address().to_owned();
                    let silent = target.map(|_| Silent::failed(&address, &error));
                    known.silent.extend(silent);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(known)
    }

    /// Returns the resource that is called so, by its name or its alias.
    pub(super) fn called(&self, word: &str) -> Result<ResourceName, Failure> {
        self.find(word)?.ok_or_else(|| self.unknown(word))
    }

    /// Returns the resource that is called so, if there is one. An alias that is that of several is an error.
    pub(super) fn find(&self, word: &str) -> Result<Option<ResourceName>, Failure> {
        if let Some(name) = self.names.iter().find(|name| name.as_str() == word) {
            return Ok(Some(name.clone()));
        }
        let Some(called) = self.aliases.get(word) else {
            return Ok(None);
        };
        match called.len() {
            0 | 1 => Ok(called.first().cloned()),
            _ => Err(several(word, called)),
        }
    }

    /// Says that nothing is called so, or that nothing can be.
    pub(super) fn unknown(&self, word: &str) -> Failure {
        if let Err(error) = word.parse::<ResourceName>() {
            return error.into();
        }
        let none = format!("there is no resource `{word}`");
        let failure = match (self.silent.as_slice(), &self.pin) {
            ([], None) => Failure::not_found(none),
            ([], Some(pin)) => Failure::not_found(format!("{none} on {pin}")),
            (silent, _) => {
                let reasons: String = silent.iter().map(|silent| format!("\n  {silent}")).collect();
                Failure::new(format!("{none} on the nodes that answered{reasons}"))
                    .of_kind(Kind::Refused(RefusalKind::Unavailable))
            }
        };
        let all = "`zdap list resources --all` shows all";
        failure.hinted(match self.nearest(word).as_slice() {
            [] => all.to_owned(),
            nearest => format!("did you mean `{}`? {all}", nearest.join("`, `")),
        })
    }

    fn add(&mut self, resources: &[ResourceView], nodes: &[NodeView]) {
        self.names.extend(resources.iter().map(|view| view.name.clone()));
        for view in resources {
            if let Some(alias) = &view.alias {
                let called = self.aliases.entry(alias.clone()).or_default();
                called.insert(view.name.clone());
            }
        }
        self.names
            .extend(nodes.iter().flat_map(|node| node.resources.clone()));
    }

    /// Returns the names that `word` may be a slip of, the likeliest first.
    fn nearest(&self, word: &str) -> Vec<&str> {
        let aliases = self.aliases.keys().map(String::as_str);
        let known: BTreeSet<&str> = self
            .names
            .iter()
            .map(ResourceName::as_str)
            .chain(aliases)
            .collect();
        let mut nearest: Vec<(f64, &str)> = known
            .into_iter()
            .map(|known| (strsim::jaro_winkler(known, word), known))
            .filter(|(likeness, _)| *likeness >= LIKE_ENOUGH)
            .collect();
        nearest.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        nearest
            .into_iter()
            .map(|(_, known)| known)
            .take(SUGGESTED)
            .collect()
    }
}

fn several(alias: &str, called: &BTreeSet<ResourceName>) -> Failure {
    let names: Vec<&str> = called.iter().map(ResourceName::as_str).collect();
    Failure::new(format!(
        "`{alias}` is another name of several resources: `{}`",
        names.join("`, `")
    ))
    .hinted("use the name of the one that is meant")
}

/// Returns the nodes of a target that do not say now what they have, as the others see it. `meanwhile` is added for one that
/// has only just fallen silent.
pub(super) fn silent_nodes(target: &Target, nodes: &[NodeView], meanwhile: &str) -> Vec<Silent> {
    let counting = nodes.iter().filter(|node| target.counts(&node.name));
    counting.filter_map(|node| silence(node, meanwhile)).collect()
}

fn silence(node: &NodeView, meanwhile: &str) -> Option<Silent> {
    let name = node.name.clone();
    match node.state {
        NodeState::Alive | NodeState::Draining => None,
        NodeState::Down => Some(Silent::from(SilentNode {
            node: name,
            reason: "it is down".to_owned(),
        })),
        NodeState::Suspect => Some(Silent {
            reason: format!("{name} does not answer just now{meanwhile}"),
            node: Some(name),
            hint: None,
        }),
    }
}

/// What clap asks of a suggestion, too.
const LIKE_ENOUGH: f64 = 0.7;
/// More are no help.
const SUGGESTED: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<ResourceName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn known(served: &[&str], silent: Vec<Silent>) -> Known {
        Known {
            names: names(served),
            aliases: BTreeMap::from([
                ("shop".to_owned(), names(&["orders"])),
                ("store".to_owned(), names(&["orders", "stock"])),
            ]),
            silent,
            pin: None,
        }
    }

    #[test]
    fn the_nearest_names_are_suggested_and_the_likeliest_first() {
        let known = known(&["orders", "order-items", "users"], Vec::new());
        assert_eq!(known.nearest("order"), ["orders", "order-items"]);
        assert_eq!(known.nearest("shops"), ["shop"]);
        assert_eq!(known.nearest("xyz"), [""; 0]);
    }

    #[test]
    fn a_name_counts_for_more_than_an_alias() {
        let called = |names: &[&str]| known(names, Vec::new()).called("shop").ok();
        assert_eq!(called(&["orders"]), Some("orders".parse().unwrap()));
        assert_eq!(called(&["orders", "shop"]), Some("shop".parse().unwrap()));
    }

    #[test]
    fn an_alias_of_several_resources_is_refused_unless_it_is_a_name() {
        let failure = known(&["orders", "stock"], Vec::new()).find("store").unwrap_err();
        assert_eq!(failure.kind.exit_code(), 1);
        assert_eq!(
            failure.message,
            "`store` is another name of several resources: `orders`, `stock`"
        );
        let named = known(&["orders", "stock", "store"], Vec::new()).find("store");
        assert_eq!(named.ok().flatten(), Some("store".parse().unwrap()));
    }
}
