//! The commands: one function each.

mod attach;
mod auto_complete;
mod connect;
mod create;
mod destroy;
mod detach;
mod enrol;
mod explain;
mod giving_back;
mod init;
mod known;
mod list;
mod nodes;
mod origins;
mod psql;
mod relay;
mod relay_image;
mod renew;
mod table;
mod tree;
mod user;

use std::cmp::Reverse;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

use chrono::SubsecRound;
use futures_util::future::join_all;
use zdap_proto::message::{CloneView, Progress};
use zdap_proto::name::{ResourceName, SnapshotTime};
use zdap_proto::refusal::RefusalKind;

use self::known::Known;
use crate::cli::{Add, Command, List, Remove, Set};
use crate::cluster::{Cluster, Created};
use crate::context::Context;
use crate::error::{Failure, Kind};
use crate::node::NodeError;
use crate::origin::{Reached, Silent, Target};
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
        Command::List(List::Nodes) => context.until_stopped(nodes::list(context)).await,
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
        Command::Psql(arguments) => {
            let code = psql::run(context, &arguments).await?;
            renew::what_is_due(context).await;
            return Ok(code);
        }
        Command::AutoComplete { shell } => auto_complete::run(context, shell),
    };
    done?;
    renew::what_is_due(context).await;
    Ok(ExitCode::SUCCESS)
}

/// Asks the clusters. Those that do not answer are named; where none does, the first says why.
async fn ask_each<T>(
    output: &Output,
    targets: &[Target],
    ask: impl AsyncFn(&Target) -> Result<T, NodeError>,
) -> Result<Vec<T>, Failure> {
    let (mut answers, mut failed) = (Vec::new(), Vec::new());
    let asked = targets.iter().map(|target| ask(target));
    for (target, answer) in targets.iter().zip(join_all(asked).await) {
        match answer {
            Ok(answer) => answers.push(answer),
            Err(error) => failed.push((target, error)),
        }
    }
    for (target, error) in failed {
        if answers.is_empty() {
            return Err(error.into());
        }
        let node = target.cluster.node().await;
        output.warn(&Silent::failed(node.address(), &error).reason);
    }
    Ok(answers)
}

/// One clone and its cluster.
#[derive(Debug, Clone)]
struct Found {
    cluster: Cluster,
    clone: CloneView,
}

/// Whose clones are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// Ours, and for an admin also somebody else's that is named by its id.
    OursOrNamed,
    /// For an admin everybody's.
    Everybodys,
}

/// Returns the clones that the words fit, the newest first, and which nodes could not be asked.
async fn find_clones(
    reached: &Reached,
    words: &Words,
    whose: Whose,
) -> Result<(Vec<Found>, Vec<Silent>), Failure> {
    let targets = reached.targets(words.pin.as_ref()).await?;
    let asked = targets.iter().map(async |target| {
        let is_admin = target.cluster.identity().subject().is_admin();
        let is_wide = whose == Whose::Everybodys || words.subject.is_some();
        target.cluster.clones(is_admin && is_wide).await
    });
    let (mut found, mut silent) = (Vec::new(), Vec::new());
    let answers = join_all(asked).await;
    let is_any_heard = answers.iter().any(Result::is_ok);
    for (target, answer) in targets.iter().zip(answers) {
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) if is_any_heard => {
                let node = target.cluster.node().await;
                silent.push(Silent::failed(node.address(), &error));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let ours = target.cluster.identity().subject().owner();
        let counts = |clone: &CloneView| {
            let is_wanted = whose == Whose::Everybodys
                || ours == Some(&clone.owner)
                || words.subject.as_deref() == Some(clone.id.as_str());
            is_wanted && target.counts(&clone.node) && fits(clone, words)
        };
        found.extend(answer.clones.into_iter().filter(counts).map(|clone| Found {
            cluster: target.cluster.clone(),
            clone,
        }));
        let pinned = answer
            .silent
            .into_iter()
            .filter(|silent| target.counts(&silent.node));
        silent.extend(pinned.map(Silent::from));
    }
    found.sort_by_key(|found| Reverse(found.clone.created_at));
    // An id is that of one clone; where it was found the others have nothing to say.
    let is_named = |found: &Found| words.subject.as_deref() == Some(found.clone.id.as_str());
    if found.iter().any(is_named) {
        silent.clear();
    }
    Ok((found, silent))
}

/// Chooses the cluster to make a clone in: the first that has the resource.
async fn place(
    context: &Context<'_>,
    reached: &Reached,
    resource: &ResourceName,
    words: &Words,
) -> Result<Target, Failure> {
    let output = context.output;
    output.doing(format!("finding a node for `{resource}`"));
    let targets = reached.targets(words.pin.as_ref()).await?;
    let mut having = Vec::new();
    if targets.len() > 1 {
        let asked = targets
            .iter()
            .map(async |target| target.cluster.resources().await);
        for (target, resources) in targets.iter().zip(join_all(asked).await) {
            if resources.is_ok_and(|resources| resources.iter().any(|view| view.name == *resource)) {
                having.push(target);
            }
        }
    }
    if let [first, others @ ..] = having.as_slice()
        && !others.is_empty()
    {
        let others: Vec<&str> = others.iter().map(|other| other.cluster.id().as_str()).collect();
        output.say(&format!(
            "`{resource}` is in several clusters; taking {}, not {} (`@node` takes another)",
            first.cluster.id(),
            others.join(", ")
        ));
    }
    // Where none has it, the first says so itself.
    let chosen = having.into_iter().next().or_else(|| targets.first()).cloned();
    chosen.ok_or_else(|| Failure::not_found(format!("no cluster has `{resource}`")))
}

/// Has a clone made there. Should the command end early, the node will have heard of it.
async fn make_clone(
    context: &Context<'_>,
    target: &Target,
    resource: &ResourceName,
    snapshot: Option<SnapshotTime>,
) -> Result<Created, Failure> {
    let output = context.output;
    output.doing(format!("cloning `{resource}`"));
    let Target { cluster, node } = target;
    context.note_maker(cluster);
    let progress = |step: Progress| output.doing(step.stage);
    let doubt = Doubt {
        output,
        is_open: AtomicBool::new(false),
    };
    Ok(cluster
        .create_clone(resource, snapshot, node.clone(), &doubt.is_open, progress)
        .await?)
}

/// Whether a clone may be there that we were not told of. However the command goes on or ends, it is said.
struct Doubt<'a> {
    output: &'a Output,
    is_open: AtomicBool,
}

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        if *self.is_open.get_mut() {
            self.output.warn(
                "the clone may have been made all the same: `zdap list clones --all` shows it once all nodes answer, \
                 and `zdap destroy` gives it back",
            );
        }
    }
}

/// Returns those of our clones that the words fit, at least one, the newest first, and which nodes could not be asked. A word
/// that fits none may be a resource's second name.
async fn find_ours(reached: &Reached, words: &Words) -> Result<(Vec<Found>, Vec<Silent>), Failure> {
    let (mut found, mut silent) = find_clones(reached, words, Whose::OursOrNamed).await?;
    let mut resource = None;
    if let Some(subject) = words.subject.as_deref().filter(|_| found.is_empty()) {
        resource = Known::ask(reached, words.pin.as_ref()).await?.find(subject)?;
        if let Some(other) = resource.as_ref().filter(|resource| resource.as_str() != subject) {
            let words = Words {
                subject: Some(other.to_string()),
                ..words.clone()
            };
            (found, silent) = find_clones(reached, &words, Whose::OursOrNamed).await?;
        }
    }
    match found.is_empty() {
        true => Err(no_clone(words, resource.as_ref(), &silent)),
        false => Ok((found, silent)),
    }
}

/// Returns the newest of our clones that the words fit.
async fn newest_clone(context: &Context<'_>, reached: &Reached, words: &Words) -> Result<Found, Failure> {
    let subject = words.subject()?;
    context
        .output
        .doing(format!("looking for a clone of `{subject}`"));
    let (found, silent) = find_ours(reached, words).await?;
    tell_silent(context.output, &silent);
    Ok(found.into_iter().next().expect("none would be an error"))
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

/// Says that we have no clone of `resource`, or where the word is no resource's, none of that id.
fn no_clone(words: &Words, resource: Option<&ResourceName>, silent: &[Silent]) -> Failure {
    let what = match (resource, &words.subject) {
        (Some(resource), _) => format!("clone of `{resource}`"),
        (None, Some(subject)) => format!("clone `{subject}`"),
        (None, None) => "clone".to_owned(),
    };
    let time = words.time.map(|time| format!(" from {time}")).unwrap_or_default();
    let pin = words
        .pin
        .as_ref()
        .map(|pin| format!(" on {pin}"))
        .unwrap_or_default();
    let none = format!("you have no {what}{time}{pin}");
    let failure = match silent {
        [] => Failure::not_found(none),
        silent => {
            let reasons: String = silent.iter().map(|silent| format!("\n  {silent}")).collect();
            Failure::new(format!("{none} on the nodes that answered{reasons}"))
                .of_kind(Kind::Refused(RefusalKind::Unavailable))
        }
    };
    failure.hinted("`zdap list clones --all` shows yours")
}

/// Names the nodes that did not answer.
fn tell_silent(output: &Output, silent: &[Silent]) {
    for silent in silent {
        output.warn(&silent.reason);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use zdap_proto::message::{CloneState, SilentNode};

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
        let words = words(&["orders", "2026-11-22T13:39:25Z", "@db1"]);
        let failure = no_clone(&words, None, &[]);
        assert_eq!(
            failure.message,
            "you have no clone `orders` from 2026-11-22T13:39:25Z on @db1"
        );
        let resource = "orders".parse().unwrap();
        let silent = SilentNode {
            node: "db1".parse().unwrap(),
            reason: "it is down".to_owned(),
        };
        assert_eq!(
            no_clone(&words, Some(&resource), &[silent.into()]).message,
            "you have no clone of `orders` from 2026-11-22T13:39:25Z on @db1 on the nodes that answered\n  \
             db1 does not answer: it is down"
        );
    }
}
