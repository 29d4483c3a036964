//! `zdap detach`: the service is the project's own again, and the clone goes back to its node.
//!
//! The clone goes first: as long as the override has the service, detaching can be tried again after any failure.

mod fate;

use futures_util::future::join_all;
use serde::Serialize;
use zdap_proto::name::{CloneId, ClusterId, ResourceName};
use zdap_proto::refusal::{RefusalKind, chain};

use self::fate::{Fate, Wanted, ask};
use super::giving_back::{Given, give_back, outcomes};
use super::{Found, tell_silent};
use crate::attachments::Attachments;
use crate::cli::Detach;
use crate::compose::{self, Attached, ComposeError};
use crate::context::Context;
use crate::error::{Failure, Kind};
use crate::origin::{OriginError, Reached, Silent};
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
    let output = context.output;
    let unnamed = arguments.resources.is_empty() && !arguments.all;
    let project = match unnamed {
        true => context.project_if_any()?.ok_or_else(|| nothing_named(&[]))?,
        false => context.project()?,
    };
    let attached = project.attached()?;
    let attached = match (unnamed, arguments.all) {
        (true, _) => return Err(nothing_named(&attached)),
        (false, true) => attached,
        (false, false) => selected(&attached, &arguments.resources)?,
    };
    if attached.is_empty() {
        output.say("nothing is attached in this project");
        return output.data("", &Document { detached: &[] });
    }

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
    let destroyed = destroy(context, &clones, arguments.force).await?;
    let detached: Vec<Detached> = attached
        .iter()
        .map(|attached| Detached {
            resource: attached.service.clone(),
            clone: attached.clone.clone(),
            destroyed: destroyed.iter().any(|id| id.as_str() == attached.clone),
        })
        .collect();
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

/// Gives the clones back and returns which have gone; with `force` nothing depends on it.
async fn destroy<'a>(
    context: &Context<'_>,
    clones: &'a [Found],
    force: bool,
) -> Result<Vec<&'a CloneId>, Failure> {
    let given = give_back(context, clones).await;
    let is_any_left = given.iter().any(|one| one.result.is_err());
    if is_any_left && !force && clones.len() > 1 {
        return Err(not_all(&given));
    }
    let mut gone = Vec::new();
    for (one, Found { clone, .. }) in given.into_iter().zip(clones) {
        match one.result {
            Ok(()) => gone.push(one.clone),
            Err(error) if force => context.output.warn(&format!(
                "clone {} stays on {}: {}; later: `zdap destroy {}`",
                clone.id,
                clone.node,
                chain(&error),
                clone.id
            )),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(gone)
}

fn not_all(given: &[Given<'_>]) -> Failure {
    Failure::new(format!(
        "not every clone was destroyed; all stay attached{}",
        outcomes(given, &[])
    ))
    .hinted("try again later, or detach with `--force` and leave the others on their nodes")
}

fn nothing_named(attached: &[Attached]) -> Failure {
    let names: Vec<&str> = attached
        .iter()
        .map(|attached| attached.service.as_str())
        .collect();
    let failure = Failure::new("a service is missing").of_kind(Kind::Usage);
    match names.as_slice() {
        [] => failure.hinted("nothing is attached in this project"),
        [first, ..] => failure.hinted(format!(
            "attached are `{}`; `zdap detach {first}` gives back one, `zdap detach --all` all of them",
            names.join("`, `")
        )),
    }
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
/// leave it there; one that its node does not know, or whose node its cluster does not have any more, is gone.
async fn reachable(context: &Context<'_>, wanted: &[Wanted], force: bool) -> Result<Vec<Found>, Failure> {
    context.output.doing("looking for the clones");
    let Reached { clusters, mut silent } = match context.origins()?.reach().await {
        Ok(reached) => reached,
        Err(OriginError::NoneReached { silent }) => Reached {
            clusters: Vec::new(),
            silent,
        },
        Err(OriginError::NoneSet) => Reached {
            clusters: Vec::new(),
            silent: Vec::new(),
        },
        Err(error) => return Err(error.into()),
    };
    for cluster in &clusters {
        context.learn_from(cluster);
    }
    let mut answers = Vec::new();
    for (cluster, answer) in clusters.iter().zip(join_all(clusters.iter().map(ask)).await) {
        match answer {
            Ok(answer) => answers.push((cluster, answer)),
            Err(error) => silent.push(Silent::failed(cluster.node().await.address(), &error)),
        }
    }
    silent.extend(answers.iter().flat_map(|(_, answer)| answer.silent.clone()));
    let mut found = Vec::new();
    let mut missing = Vec::new();
    for wanted in wanted {
        let mut fates = answers
            .iter()
            .filter_map(|(cluster, answer)| Some((*cluster, wanted.fate(answer)?)))
            .collect::<Vec<_>>();
        // A cluster that has it knows better than one that does not.
        fates.sort_by_key(|(_, fate)| !matches!(fate, Fate::There(_)));
        let attached = &wanted.attached;
        match fates.into_iter().next() {
            Some((cluster, Fate::There(clone))) => found.push(Found {
                cluster: cluster.clone(),
                clone: *clone,
            }),
            Some((_, Fate::Gone)) if !wanted.may_be_at(&silent) => {
                let gone = format!("clone {} is gone already", attached.clone);
                context.output.say(&gone);
            }
            Some((_, Fate::GoneWithNode)) => context.output.say(&format!(
                "clone {} is gone with {}, which is no node of its cluster any more",
                attached.clone, attached.node
            )),
            Some((_, Fate::OfAnother(owner))) if !force => return Err(of_another(attached, &owner)),
            Some((_, Fate::Gone | Fate::OfAnother(_))) | None => missing.push(attached),
        }
    }
    match (missing.is_empty(), force) {
        (true, _) => Ok(found),
        (false, false) => Err(unreachable(&missing, &silent, !clusters.is_empty())),
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

fn unreachable(missing: &[&Attached], silent: &[Silent], is_any_reached: bool) -> Failure {
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
    .of_kind(match is_any_reached {
        true => Kind::Refused(RefusalKind::Unavailable),
        false => Kind::Unreachable,
    })
    .hinted("try again later, or detach with `--force` and leave the clone on its node")
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn attached(service: &str) -> Attached {
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
    fn where_nothing_is_named_it_is_said_what_could_be() {
        let failure = nothing_named(&[attached("orders"), attached("users")]);
        assert_eq!(failure.kind.exit_code(), 2);
        assert_eq!(
            failure.hint.as_deref(),
            Some(
                "attached are `orders`, `users`; `zdap detach orders` gives back one, `zdap detach --all` all of them"
            )
        );
    }

    #[test]
    fn a_service_that_is_named_twice_is_detached_once() {
        let twice = ["orders".to_owned(), "orders".to_owned()];
        assert_eq!(selected(&[attached("orders")], &twice).unwrap().len(), 1);
    }

    #[test]
    fn the_clone_of_ones_former_name_is_named_with_both_names() {
        assert_eq!(
            of_another(&attached("orders"), "bob").message,
            "clone orders-k3v9x2mq on db1 belongs to ada; you are bob there"
        );
    }

    #[test]
    fn a_clone_out_of_reach_is_named_with_its_node() {
        let failure = unreachable(&[&attached("orders")], &[], false);
        assert_eq!(failure.kind.exit_code(), 3);
        let others_answer = unreachable(&[&attached("orders")], &[], true);
        assert_eq!(others_answer.kind.exit_code(), 1);
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
