//! `zdap destroy`.

use serde::Serialize;
use zdap_proto::name::CloneId;

use super::{Found, find_clones, no_clone, tell_silent};
use crate::cli::Destroy;
use crate::context::Context;
use crate::error::{Failure, Kind};
use crate::words::Words;

#[derive(Serialize)]
struct Document<'a> {
    destroyed: Vec<&'a CloneId>,
}

/// Gives back the clone that the words name; of several, all or none.
pub(super) async fn run(context: &Context<'_>, arguments: &Destroy) -> Result<(), Failure> {
    let words = Words::parse(&arguments.words)?;
    let subject = words.subject()?.to_owned();
    let output = context.output;
    output.doing(format!("looking for clones of `{subject}`"));
    let (found, silent) = find_clones(&context.origins()?, &words).await?;
    tell_silent(output, &silent);
    if found.is_empty() {
        return Err(match silent.is_empty() {
            true => no_clone(&words),
            false => no_clone(&words).of_kind(Kind::Unreachable),
        });
    }
    if found.len() > 1 && !arguments.all {
        return Err(several(&subject, &found));
    }
    for Found { node, clone } in &found {
        output.doing(format!("destroying {} on {}", clone.id, clone.node));
        node.destroy(&clone.id).await?;
        tell_attached(context, &clone.id);
    }
    let destroyed: Vec<&CloneId> = found.iter().map(|found| &found.clone.id).collect();
    let lines: Vec<String> = destroyed.iter().map(|id| format!("{id} destroyed")).collect();
    output.data(&lines.join("\n"), &Document { destroyed })
}

fn several(subject: &str, found: &[Found]) -> Failure {
    let lines = found.iter().map(|found| {
        let clone = &found.clone;
        format!(
            "\n  {}  on {}, made {}, of {}",
            clone.id,
            clone.node,
            clone.created_at.format("%Y-%m-%dT%H:%M:%SZ"),
            clone.snapshot
        )
    });
    let example = found
        .first()
        .map(|found| found.clone.id.to_string())
        .unwrap_or_default();
    Failure::new(format!(
        "you have {} clones of `{subject}`{}",
        found.len(),
        lines.collect::<String>()
    ))
    .hinted(format!(
        "name one, e.g. `zdap destroy {example}`, or destroy all of them with `--all`"
    ))
}

/// A relay that has lost its clone would stay in the override unnoticed.
fn tell_attached(context: &Context<'_>, id: &CloneId) {
    let attached = context.project().ok().and_then(|project| project.attached().ok());
    for attached in attached.unwrap_or_default() {
        if attached.clone == id.as_str() {
            context.output.say(&format!(
                "`{}` is still attached to it here: `zdap detach {}`",
                attached.service, attached.service
            ));
        }
    }
}
