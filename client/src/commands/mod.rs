//! The commands: one function each.

mod attach;
mod auto_complete;
mod connect;
mod create;
mod destroy;
mod detach;
mod init;
mod list;
mod origins;
mod psql;
mod relay;
mod relay_image;
mod tree;
mod user;

use std::cmp::Reverse;
use std::process::ExitCode;

use chrono::SubsecRound;
use zdap_proto::message::{CloneView, Progress};
use zdap_proto::name::{ResourceName, SnapshotTime};

use crate::cli::{Add, Command, List, Remove, Set};
use crate::context::Context;
use crate::error::{Failure, Kind};
use crate::node::{Created, Node};
use crate::origin::{Gathered, Origins, Silent};
use crate::output::Output;
use crate::words::Words;

/// Runs one command. Those that clean up, or that Ctrl-C ends well, wait for signals themselves.
pub async fn run(context: &Context<'_>, command: Command) -> Result<ExitCode, Failure> {
    if context.output.is_json() && matches!(command, Command::Psql(_) | Command::AutoComplete { .. }) {
        return Err(
            Failure::new("`--json` does not go with what another program reads or prints")
                .of_kind(Kind::Usage),
        );
    }
    let done = match command {
        Command::Set(Set::User { name }) => user::set(context, &name),
        Command::Add(Add::Origin { origin, token }) => {
            let work = origins::add(context, &origin, token.as_deref());
            context.until_stopped(work).await
        }
        Command::Remove(Remove::Origin { address }) => origins::remove(context, &address),
        Command::List(List::Origins) => context.until_stopped(origins::list(context)).await,
        Command::List(List::Resources(arguments)) => {
            context.until_stopped(list::resources(context, &arguments)).await
        }
        Command::List(List::Snaps(arguments)) => {
            context.until_stopped(list::snapshots(context, &arguments)).await
        }
        Command::List(List::Clones(arguments)) => {
            context.until_stopped(list::clones(context, &arguments)).await
        }
        Command::Init(arguments) => init::run(context, arguments),
        Command::Attach(arguments) => attach::run(context, &arguments).await,
        Command::Detach(arguments) => context.until_stopped(detach::run(context, &arguments)).await,
        Command::Clone(arguments) => context.until_stopped(create::run(context, &arguments)).await,
        Command::Destroy(arguments) => context.until_stopped(destroy::run(context, &arguments)).await,
        Command::Connect(arguments) => connect::run(context, &arguments).await,
        Command::Psql(arguments) => return psql::run(context, &arguments).await,
        Command::AutoComplete { shell } => auto_complete::run(context, shell),
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// One clone and a node that knows it.
#[derive(Debug, Clone)]
struct Found {
    node: Node,
    clone: CloneView,
}

/// Returns our clones that the words fit, the newest first, and which nodes could not be asked.
async fn find_clones(origins: &Origins, words: &Words) -> Result<(Vec<Found>, Vec<Silent>), Failure> {
    // An id is that of one clone; where it was found the others have nothing to say.
    let is_found = |clones: &Vec<CloneView>| {
        let mut ids = clones.iter().map(|clone| clone.id.as_str());
        ids.any(|id| words.subject.as_deref() == Some(id))
    };
    let ask = async |node: &Node| node.clones().await;
    let gathered = origins.gather_until(words.pin.as_ref(), ask, is_found);
    let Gathered { answers, silent } = gathered.await?;
    let all = answers.into_iter().flat_map(|(node, clones)| {
        let found = move |clone| Found {
            node: node.clone(),
            clone,
        };
        clones.into_iter().map(found)
    });
    let mut found: Vec<Found> = all.filter(|found| fits(&found.clone, words)).collect();
    // A node that is known by two addresses answers twice.
    found.sort_by(|a, b| a.clone.id.cmp(&b.clone.id));
    found.dedup_by(|a, b| a.clone.id == b.clone.id);
    found.sort_by_key(|found| Reverse(found.clone.created_at));
    Ok((found, silent))
}

/// Chooses the node to make a clone on.
async fn choose(
    context: &Context<'_>,
    origins: &Origins,
    resource: &ResourceName,
    words: &Words,
) -> Result<Node, Failure> {
    let output = context.output;
    output.doing(format!("finding a node for `{resource}`"));
    let (node, silent) = origins.choose(words.pin.as_ref(), resource, words.time).await?;
    tell_silent(output, &silent);
    Ok(node)
}

/// Has a clone made there. Should the command end early, the node will have heard of it.
async fn make_clone(
    context: &Context<'_>,
    node: &mut Node,
    resource: &ResourceName,
    snapshot: Option<SnapshotTime>,
) -> Result<Created, Failure> {
    let output = context.output;
    output.doing(format!("cloning `{resource}` on {}", node.address()));
    let asking = |node: &Node| context.note_maker(node);
    let progress = |step: Progress| output.doing(step.stage);
    Ok(node.create_clone(resource, snapshot, asking, progress).await?)
}

/// Returns the newest of our clones that the words fit.
async fn newest_clone(context: &Context<'_>, origins: &Origins, words: &Words) -> Result<Found, Failure> {
    let subject = words.subject()?;
    context
        .output
        .doing(format!("looking for a clone of `{subject}`"));
    let (found, silent) = find_clones(origins, words).await?;
    tell_silent(context.output, &silent);
    found.into_iter().next().ok_or_else(|| no_clone(words))
}

/// A clone's id fits that clone, a resource all its clones; a time fits when the clone or its snapshot was made.
fn fits(clone: &CloneView, words: &Words) -> bool {
    let subject = words.subject.as_deref();
    let is_subject =
        subject.is_none_or(|subject| subject == clone.id.as_str() || subject == clone.resource.as_str());
    let is_time = words.time.is_none_or(|time| {
        clone.snapshot == time || SnapshotTime::new(clone.created_at.trunc_subsecs(0)) == time
    });
    is_subject && is_time
}

fn no_clone(words: &Words) -> Failure {
    let subject = words.subject.as_deref().unwrap_or_default();
    let time = words.time.map(|time| format!(" of {time}")).unwrap_or_default();
    let pin = words
        .pin
        .as_ref()
        .map(|pin| format!(" on {pin}"))
        .unwrap_or_default();
    Failure::not_found(format!("you have no clone `{subject}`{time}{pin}"))
        .hinted("`zdap list clones --all` shows yours")
}

/// Names the nodes that did not answer.
fn tell_silent(output: &Output, silent: &[Silent]) {
    for silent in silent {
        output.warn(&silent.reason);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use zdap_proto::message::CloneState;

    use super::*;

    pub(crate) fn clone_view(id: &str, created_at: &str, snapshot: &str) -> CloneView {
        CloneView {
            id: id.parse().unwrap(),
            resource: id.rsplit_once('-').unwrap().0.parse().unwrap(),
            node: "db1".parse().unwrap(),
            owner: "ada@laptop".parse().unwrap(),
            snapshot: snapshot.parse().unwrap(),
            created_at: created_at.parse().unwrap(),
            state: CloneState::Ready,
            pooled: false,
            expires_at: None,
        }
    }

    fn words(words: &[&str]) -> Words {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        Words::parse(&words).unwrap()
    }

    #[test]
    fn a_clone_is_found_by_id_by_resource_and_by_either_time() {
        let clone = clone_view(
            "orders-k3v9x2mq",
            "2026-11-22T13:39:25.123Z",
            "2026-11-22T04:00:00Z",
        );
        for fitting in [
            &["orders"][..],
            &["orders-k3v9x2mq"],
            &["orders", "2026-11-22T13:39:25Z"],
            &["orders", "2026-11-22T04:00:00Z"],
        ] {
            assert!(fits(&clone, &words(fitting)), "{fitting:?}");
        }
        for other in [
            &["order"][..],
            &["orders-k3v9x2mz"],
            &["orders", "2026-11-22T13:39:26Z"],
        ] {
            assert!(!fits(&clone, &words(other)), "{other:?}");
        }
    }

    #[test]
    fn the_json_of_a_clone_is_that_of_the_contract() {
        let clone = clone_view("orders-k3v9x2mq", "2026-11-22T13:39:25Z", "2026-11-22T04:00:00Z");
        assert_eq!(
            serde_json::to_string(&clone).unwrap(),
            r#"{"id":"orders-k3v9x2mq","resource":"orders","node":"db1","owner":"ada@laptop","snapshot":"2026-11-22T04:00:00Z","created_at":"2026-11-22T13:39:25Z","state":"ready","pooled":false,"expires_at":null}"#
        );
    }

    #[test]
    fn what_was_not_found_is_named_with_all_its_words() {
        let failure = no_clone(&words(&["orders", "2026-11-22T13:39:25Z", "@db1"]));
        assert_eq!(
            failure.message,
            "you have no clone `orders` of 2026-11-22T13:39:25Z on @db1"
        );
    }
}
