//! `zdap detach`: the service is the project's own again, and the clone goes back to its node.
//!
//! The clone goes first: as long as the override has the service, detaching can be tried again after any failure.

use serde::Serialize;
use zdap_proto::message::CloneView;
use zdap_proto::name::{ClusterId, ResourceName};
use zdap_proto::refusal::RefusalKind;

use super::{Found, tell_silent};
use crate::attachments::Attachments;
use crate::cli::Detach;
use crate::compose::{self, Attached, ComposeError};
use crate::context::Context;
use crate::error::{Failure, Kind};
use crate::node::Node;
use crate::origin::{OriginError, Silent};
use crate::project::Project;

/// One service and what became of its clone.
#[derive(Debug, Serialize)]
struct Detached {
    resource: String,
    clone: String,
    destroyed: bool,
}

#[derive(Serialize)]
struct Document<'a> {
    detached: &'a [Detached],
}

/// Detaches the services. Should a clone not go back, all stay attached, and what has gone is gone already the next time.
pub(super) async fn run(context: &Context<'_>, arguments: &Detach) -> Result<(), Failure> {
    let project = context.project()?;
    let output = context.output;
    let attached = selected(&project.attached()?, &arguments.resources)?;

    // Whether it will work, before anything is given away.
    let without = |text: &str| {
        let mut text = text.to_owned();
        for attached in &attached {
            text = compose::detach(&text, &attached.service)?;
        }
        Ok(text)
    };
    without(&project.override_text()?).map_err(|source| ComposeError::InFile {
        path: project.r#override.clone(),
        source: Box::new(source),
    })?;

    let mut detached = Vec::new();
    let clones = match arguments.destroy {
        true => {
            let wanted = |attached: &Attached| Wanted {
                cluster: cluster_of(&project, attached),
                attached: attached.clone(),
            };
            let wanted: Vec<Wanted> = attached.iter().map(wanted).collect();
            reachable(context, &wanted, arguments.force).await?
        }
        false => Vec::new(),
    };
    for attached in &attached {
        let found = clones
            .iter()
            .find(|found| found.clone.id.as_str() == attached.clone);
        if let Some(Found { node, clone }) = found {
            output.doing(format!("destroying {} on {}", clone.id, clone.node));
            node.destroy(&clone.id).await?;
        }
        detached.push(Detached {
            resource: attached.service.clone(),
            clone: attached.clone.clone(),
            destroyed: found.is_some(),
        });
    }
    let resources = attached.iter().map(|attached| attached.resource.parse());
    let resources: Vec<ResourceName> = resources.filter_map(Result::ok).collect();
    output.doing("waiting for another zdap in this project");
    Attachments::of(&project).await?.detach(&resources, without)?;

    let lines: Vec<String> = detached
        .iter()
        .map(|detached| format!("{} detached", detached.resource))
        .collect();
    let document = Document { detached: &detached };
    output.data(&lines.join("\n"), &document)
}

fn selected(attached: &[Attached], resources: &[String]) -> Result<Vec<Attached>, Failure> {
    let mut selected: Vec<Attached> = Vec::new();
    for resource in resources {
        let Some(found) = attached.iter().find(|attached| attached.service == *resource) else {
            let names: Vec<&str> = attached
                .iter()
                .map(|attached| attached.service.as_str())
                .collect();
            return Err(
                Failure::not_found(format!("`{resource}` is not attached")).hinted(match names.as_slice() {
                    [] => "nothing is attached in this project".to_owned(),
                    names => format!("attached are `{}`", names.join("`, `")),
                }),
            );
        };
        if !selected.contains(found) {
            selected.push(found.clone());
        }
    }
    Ok(selected)
}

/// Returns those of the clones that are still there. One whose node does not answer is an error, unless `force` says to
/// leave it there; one that its node does not know is gone.
async fn reachable(context: &Context<'_>, wanted: &[Wanted], force: bool) -> Result<Vec<Found>, Failure> {
    context.output.doing("looking for the clones");
    let ask = async |node: &Node| {
        let (status, clones) = tokio::try_join!(node.status(), node.clones())?;
        Ok(Answer {
            name: status.name.to_string(),
            cluster: status.cluster,
            owner: node.identity().subject().owner().map(ToString::to_string),
            clones,
        })
    };
    let mut open: Vec<&Wanted> = wanted.iter().collect();
    let is_last = |answer: &Answer| {
        open.retain(|wanted| wanted.fate(answer).is_none());
        open.is_empty()
    };
    let (answers, silent) = match context.origins()?.gather_until(None, ask, is_last).await {
        Ok(gathered) => (gathered.answers, gathered.silent),
        Err(OriginError::NoneReached { silent }) => (Vec::new(), silent),
        Err(OriginError::NoneSet) => (Vec::new(), Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut found = Vec::new();
    let mut missing = Vec::new();
    for wanted in wanted {
        let mut fates = answers
            .iter()
            .filter_map(|(node, answer)| Some((node, wanted.fate(answer)?)))
            .collect::<Vec<_>>();
        // A node that has it knows better than one that does not.
        fates.sort_by_key(|(_, fate)| !matches!(fate, Fate::There(_)));
        let attached = &wanted.attached;
        match fates.into_iter().next() {
            Some((node, Fate::There(clone))) => found.push(Found {
                node: node.clone(),
                clone: *clone,
            }),
            Some((_, Fate::Gone)) => {
                let gone = format!("clone {} is gone already", attached.clone);
                context.output.say(&gone);
            }
            Some((_, Fate::OfAnother(owner))) if !force => return Err(of_another(attached, &owner)),
            Some((_, Fate::OfAnother(_))) | None => missing.push(attached),
        }
    }
    match (missing.is_empty(), force) {
        (true, _) => Ok(found),
        (false, false) => Err(unreachable(&missing, &silent)),
        (false, true) => {
            tell_silent(context.output, &silent);
            for attached in missing {
                context.output.say(&format!(
                    "clone {} stays on {}; later: `zdap destroy {}`",
                    attached.clone, attached.node, attached.clone
                ));
            }
            Ok(found)
        }
    }
}

/// A clone to be given back.
struct Wanted {
    attached: Attached,
    /// None: its relay's identity is lost.
    cluster: Option<ClusterId>,
}

/// What one node says, and to whom.
struct Answer {
    name: String,
    cluster: ClusterId,
    owner: Option<String>,
    clones: Vec<CloneView>,
}

/// What has become of a clone.
#[derive(Debug, PartialEq)]
enum Fate {
    There(Box<CloneView>),
    Gone,
    /// It is not ours to see: we are somebody else to its node now.
    OfAnother(String),
}

impl Wanted {
    /// Returns what the answer says of the clone; nothing if it is another node's. Names of nodes repeat across clusters.
    fn fate(&self, answer: &Answer) -> Option<Fate> {
        let clone = answer
            .clones
            .iter()
            .find(|clone| clone.id.as_str() == self.attached.clone);
        if let Some(clone) = clone {
            return Some(Fate::There(Box::new(clone.clone())));
        }
        let is_cluster = self
            .cluster
            .as_ref()
            .is_none_or(|cluster| *cluster == answer.cluster);
        if answer.name != self.attached.node || !is_cluster {
            return None;
        }
        match &answer.owner {
            Some(owner) if *owner != self.attached.owner => Some(Fate::OfAnother(owner.clone())),
            Some(_) | None => Some(Fate::Gone),
        }
    }
}

/// The relay's identity is of the cluster that the clone is in.
fn cluster_of(project: &Project, attached: &Attached) -> Option<ClusterId> {
    let resource: ResourceName = attached.resource.parse().ok()?;
    Some(project.identity(&resource)?.cluster().clone())
}

fn of_another(attached: &Attached, owner: &str) -> Failure {
    Failure::new(format!(
        "clone {} on {} belongs to {}; you are {owner} there",
        attached.clone, attached.node, attached.owner
    ))
    .of_kind(Kind::Refused(RefusalKind::Forbidden))
    .hinted("`--force` gives the service back and leaves the clone on its node")
}

fn unreachable(missing: &[&Attached], silent: &[Silent]) -> Failure {
    let clones = missing
        .iter()
        .map(|attached| format!("{} on {}", attached.clone, attached.node));
    let clones: Vec<String> = clones.collect();
    let reasons = silent.iter().map(|silent| format!("\n  {}", silent.reason));
    Failure::new(format!(
        "no way to {}; nothing was changed{}",
        clones.join(", "),
        reasons.collect::<String>()
    ))
    .of_kind(Kind::Unreachable)
    .hinted("try again later, or detach with `--force` and leave the clone on its node")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::tests::clone_view;

    fn attached(service: &str) -> Attached {
        Attached {
            service: service.to_owned(),
            resource: service.to_owned(),
            clone: format!("{service}-k3v9x2mq"),
            node: "db1".to_owned(),
            owner: "ada".to_owned(),
        }
    }

    #[test]
    fn what_is_not_attached_is_refused_with_what_is() {
        let failure = selected(
            &[attached("orders"), attached("users")],
            &["orders".to_owned(), "order".to_owned()],
        )
        .unwrap_err();
        assert_eq!(failure.message, "`order` is not attached");
        assert_eq!(failure.hint.as_deref(), Some("attached are `orders`, `users`"));
        let failure = selected(&[], &["orders".to_owned()]).unwrap_err();
        assert_eq!(
            failure.hint.as_deref(),
            Some("nothing is attached in this project")
        );
    }

    #[test]
    fn a_service_that_is_named_twice_is_detached_once() {
        let twice = ["orders".to_owned(), "orders".to_owned()];
        assert_eq!(selected(&[attached("orders")], &twice).unwrap().len(), 1);
    }

    fn answer(node: &str, cluster: &str, owner: &str) -> Answer {
        Answer {
            name: node.to_owned(),
            cluster: cluster.parse().unwrap(),
            owner: Some(owner.to_owned()),
            clones: Vec::new(),
        }
    }

    #[test]
    fn only_its_own_node_can_say_that_a_clone_is_gone() {
        let wanted = Wanted {
            attached: attached("orders"),
            cluster: Some("abc".parse().unwrap()),
        };
        assert_eq!(wanted.fate(&answer("db1", "abc", "ada")), Some(Fate::Gone));
        assert_eq!(wanted.fate(&answer("db2", "abc", "ada")), None);
        assert_eq!(
            wanted.fate(&answer("db1", "xyz", "ada")),
            None,
            "another cluster's db1"
        );
        let clone = clone_view("orders-k3v9x2mq", "2026-11-22T13:39:25Z", "2026-11-22T04:00:00Z");
        let there = Answer {
            clones: vec![clone.clone()],
            ..answer("db1", "abc", "ada")
        };
        assert_eq!(wanted.fate(&there), Some(Fate::There(Box::new(clone))));
    }

    #[test]
    fn the_clone_of_ones_former_name_is_not_taken_for_gone() {
        let wanted = Wanted {
            attached: attached("orders"),
            cluster: None,
        };
        let fate = wanted.fate(&answer("db1", "abc", "bob"));
        assert_eq!(fate, Some(Fate::OfAnother("bob".to_owned())));
        assert_eq!(
            of_another(&wanted.attached, "bob").message,
            "clone orders-k3v9x2mq on db1 belongs to ada; you are bob there"
        );
    }

    #[test]
    fn a_clone_out_of_reach_is_named_with_its_node() {
        let failure = unreachable(&[&attached("orders")], &[]);
        assert_eq!(failure.kind.exit_code(), 3);
        assert_eq!(
            failure.message,
            "no way to orders-k3v9x2mq on db1; nothing was changed"
        );
    }

    #[test]
    fn the_json_names_each_service_and_what_became_of_its_clone() {
        let detached = [Detached {
            resource: "orders".to_owned(),
            clone: "orders-k3v9x2mq".to_owned(),
            destroyed: true,
        }];
        assert_eq!(
            serde_json::to_string(&Document { detached: &detached }).unwrap(),
            r#"{"detached":[{"resource":"orders","clone":"orders-k3v9x2mq","destroyed":true}]}"#
        );
    }
}
