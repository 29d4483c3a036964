//! `zdap destroy`.

use serde::Serialize;
use zdap_proto::name::CloneId;

use super::giving_back::{Given, give_back, outcomes};
use super::{Found, find_ours, tell_silent};
use crate::cli::Destroy;
use crate::context::Context;
use crate::error::Failure;
use crate::words::Words;

#[derive(Serialize)]
struct Document<'a> {
    destroyed: Vec<&'a CloneId>,
}

/// Gives back the clone that the words name, or with `--all` every one that can be given back.
pub(super) async fn run(context: &Context<'_>, arguments: &Destroy) -> Result<(), Failure> {
    let words = Words::parse(&arguments.words)?;
    let subject = words.subject()?.to_owned();
    let output = context.output;
    let reached = context.reach().await?;
    output.doing(format!("looking for clones of `{subject}`"));
    let (found, silent) = find_ours(&reached, &words).await?;
    tell_silent(output, &silent);
    if found.len() > 1 && !arguments.all {
        return Err(several(&words, &found));
    }
    // One that was named is not to be looked for on a node that is silent.
    let is_named = found.iter().all(|found| found.clone.id.as_str() == subject);
    if !silent.is_empty() && !is_named && !arguments.all {
        return Err(perhaps_more(&subject, &found));
    }
    let faults: Vec<String> = match is_named {
        true => Vec::new(),
        false => silent.into_iter().map(|silent| silent.reason).collect(),
    };
    let given = give_back(context, &found).await;
    let destroyed = given.iter().filter(|one| one.result.is_ok());
    let destroyed: Vec<&CloneId> = destroyed.map(|one| one.clone).collect();
    tell_attached(context, &destroyed);
    let is_every_one = destroyed.len() == found.len() && faults.is_empty();
    if arguments.all && !is_every_one {
        return Err(not_all(&given, &faults));
    }
    for one in given {
        one.result?;
    }
    let lines: Vec<String> = destroyed.iter().map(|id| format!("{id} destroyed")).collect();
    output.data(&lines.join("\n"), &Document { destroyed })
}

/// The one that was found need not be the one that was meant.
fn perhaps_more(subject: &str, found: &[Found]) -> Failure {
    let ids: Vec<&str> = found.iter().map(|found| found.clone.id.as_str()).collect();
    Failure::new(format!(
        "not all nodes answer, so there may be more clones of `{subject}` than {}",
        ids.join(", ")
    ))
    .hinted(format!(
        "name the one that is meant, e.g. `zdap destroy {}`, or destroy what can be reached with `--all`",
        ids.first().unwrap_or(&subject)
    ))
}

fn not_all(given: &[Given<'_>], faults: &[String]) -> Failure {
    let what = match given.iter().all(|one| one.result.is_ok()) {
        true => "there may be more clones than were destroyed, as not all nodes answer",
        false => "not every clone was destroyed",
    };
    Failure::new(format!("{what}{}", outcomes(given, faults)))
        .hinted("try again later; `zdap list clones --all` shows what is left")
}

fn several(words: &Words, found: &[Found]) -> Failure {
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
        "{} of your clones fit `{words}`{}",
        found.len(),
        lines.collect::<String>()
    ))
    .hinted(format!(
        "name one, e.g. `zdap destroy {example}`, or destroy all of these: `zdap destroy {words} --all`"
    ))
}

/// A relay that has lost its clone would stay in the override unnoticed.
fn tell_attached(context: &Context<'_>, destroyed: &[&CloneId]) {
    let attached = context.project().ok().and_then(|project| project.attached().ok());
    for attached in attached.unwrap_or_default() {
        if destroyed.iter().any(|id| id.as_str() == attached.clone) {
            context.output.say(&format!(
                "`{}` is still attached to {} here: `zdap detach {}`",
                attached.service, attached.clone, attached.service
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_destroyed_and_what_was_not_is_all_said() {
        let id: CloneId = "orders-k3v9x2mq".parse().unwrap();
        let given = Given {
            clone: &id,
            result: Ok(()),
        };
        let failure = not_all(&[given], &["db2:43210: no answer".to_owned()]);
        assert_eq!(failure.kind.exit_code(), 1);
        assert_eq!(
            failure.message,
            "there may be more clones than were destroyed, as not all nodes answer\n  orders-k3v9x2mq destroyed\n  \
             db2:43210: no answer"
        );
    }
}
