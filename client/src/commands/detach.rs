//! `zdap detach`: the service is the project's own again, and the clone goes back to its node.
//!
//! The clone goes first: as long as the override has the service, detaching can be tried again after any failure.

use serde::Serialize;
use zdap_proto::name::ResourceName;

use super::{Found, tell_silent};
use crate::attachments::Attachments;
use crate::cli::Detach;
use crate::compose::{self, Attached, ComposeError};
use crate::context::Context;
use crate::error::{Failure, Kind};
use crate::node::Node;
use crate::origin::{OriginError, Silent};

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
        true => reachable(context, &attached, arguments.force).await?,
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
async fn reachable(context: &Context<'_>, attached: &[Attached], force: bool) -> Result<Vec<Found>, Failure> {
    context.output.doing("looking for the clones");
    let ask = async |node: &Node| tokio::try_join!(node.status(), node.clones());
    let (answers, silent) = match context.origins()?.gather(None, ask).await {
        Ok(gathered) => (gathered.answers, gathered.silent),
        Err(OriginError::NoneReached { silent }) => (Vec::new(), silent),
        Err(OriginError::NoneSet) => (Vec::new(), Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut found = Vec::new();
    let mut missing = Vec::new();
    for attached in attached {
        let holder = answers.iter().find_map(|(node, (_, clones))| {
            let clone = clones.iter().find(|clone| clone.id.as_str() == attached.clone)?;
            Some(Found {
                node: node.clone(),
                clone: clone.clone(),
            })
        });
        let has_answered = || {
            answers
                .iter()
                .any(|(_, (status, _))| status.name.as_str() == attached.node)
        };
        match holder {
            Some(holder) => found.push(holder),
            None if has_answered() => {
                context
                    .output
                    .say(&format!("clone {} is gone already", attached.clone));
            }
            None => missing.push(attached),
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
