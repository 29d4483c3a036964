//! What each request does, and who may make it: one arm a request.
//!
//! Any node answers for all of them: what concerns one clone is passed on to the node that has it, and what concerns many
//! nodes is asked of all at once. What is asked on behalf of somebody, by another node, is answered for this node alone.
//!
//! # Map
//! - [`asker`]: who asks, and what they may
//! - [`listing`]: what is there
//! - [`making`]: snapshots and clones, on this node
//! - [`placing`]: a clone, on the node that is best for it
//! - [`bidding`]: what this node says when another looks for a place
//! - [`finding`]: which node has a clone
//! - [`giving_back`]: the end of clones
//! - [`certificates`]: who is let in, and who no more

mod asker;
mod bidding;
mod certificates;
mod finding;
mod forgetting;
mod giving_back;
mod listing;
mod making;
mod placing;

use std::sync::Arc;

use tokio::fs::File;
use tokio::sync::mpsc;
use zdap_proto::identity::Peer;
use zdap_proto::message::{Answer, Call, Progress, Request, TokenText};
use zdap_proto::name::{CloneId, NodeName, ResourceName};
use zdap_proto::refusal::{Refusal, RefusalKind};

use self::asker::{Asker, Scope};
pub(crate) use self::asker::{not_revoked, on_whose_behalf};
pub use self::finding::Located;
pub(crate) use self::finding::elsewhere;
pub use self::placing::{Placing, take_back_strays};
use crate::catalog::{Facts, ResourceFacts};
use crate::enrol;
use crate::node::Node;
use crate::resource::Resource;
use crate::{instance, refuse, relay_program};

/// An answer, and the bytes that follow it if it announces some.
#[derive(Debug)]
pub struct Answered {
    /// The answer.
    pub answer: Answer,
    /// What follows it on the stream.
    pub body: Option<File>,
    /// What was made for this answer, to be destroyed if nobody takes it.
    pub made: Option<Made>,
}

/// A clone that was made for an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Which.
    pub clone: CloneId,
    /// Where it is.
    pub node: NodeName,
    /// Which attempt it was the answer to: a later one may have been answered with it too.
    pub attempt: u32,
}

/// Does what is asked of this node by `peer`, or says why not.
pub async fn answer(
    node: &Arc<Node>,
    peer: &Peer,
    call: Call,
    progress: mpsc::Sender<Progress>,
) -> Result<Answered, Refusal> {
    let Call {
        on_behalf_of,
        request,
    } = call;
    let (subject, is_passed_on) = on_whose_behalf(peer, on_behalf_of)?;
    let scope = if is_passed_on { Scope::Here } else { Scope::Cluster };
    not_revoked(node, &subject)?;
    let asker = Asker::of(&subject)?;
    asker.may_ask(&request)?;
    if scope == Scope::Cluster
        && let Some(clone) = concerned(&request)
        && let Some(owner) = elsewhere(node, clone).await?
    {
        return pass_on(node, &owner, &asker, &request).await;
    }
    let answer = match request {
        Request::ListResources => Answer::Resources(listing::resources(node, scope)),
        Request::ListSnapshots { resource } => {
            Answer::Snapshots(listing::snapshots(node, scope, resource.as_ref()))
        }
        Request::ListClones { resource, all_owners } => {
            if all_owners {
                asker.must_be_admin("list everybody's clones")?;
            }
            let (clones, silent) = listing::clones(node, scope, &asker, resource, all_owners).await;
            Answer::Clones { clones, silent }
        }
        Request::ListNodes => Answer::Nodes(listing::nodes(node, scope)),
        Request::CreateSnapshot {
            resource,
            use_existing,
        } => {
            asker.must_be_admin("restore a resource")?;
            Answer::Snapshot(making::snapshot(node, &resource, use_existing, &progress).await?)
        }
        Request::CreateClone {
            resource,
            snapshot,
            node: pinned,
            owner,
            request_id,
            attempt,
        } => {
            let wanted = making::Wanted {
                resource,
                snapshot,
                owner: asker.owner(owner)?,
                request_id,
                attempt,
            };
            return match scope {
                Scope::Here => making::clone(node, wanted).await,
                Scope::Cluster => placing::clone(node, &asker, wanted, pinned).await,
            };
        }
        Request::DestroyClone { clone } => {
            giving_back::clone(node, &asker, &clone).await?;
            Answer::Destroyed
        }
        Request::DestroyAll { bases } => {
            asker.must_be_admin("destroy everybody's clones")?;
            giving_back::everything(node, bases).await?
        }
        Request::IssueRelay { clone, public_key } => {
            let record = asker.clone_of(node, &clone)?;
            Answer::Certificate(certificates::relay(node, record, &public_key)?)
        }
        Request::Account { clone } => {
            let record = asker.clone_of(node, &clone)?;
            Answer::Account(instance::account(&*resource_named(node, record.resource())?))
        }
        Request::FetchRelay { architecture } => {
            let (file, bytes) = relay_program::open(&node.relay_program, &architecture).await?;
            let answer = Answer::Relay {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                bytes,
            };
            return Ok(Answered {
                body: Some(file),
                ..answer.into()
            });
        }
        Request::IssueToken { invited, ttl_seconds } => {
            asker.must_be_admin("make tokens")?;
            Answer::Token(TokenText(certificates::token(
                node,
                &asker,
                invited,
                ttl_seconds,
            )?))
        }
        Request::Revoke { user } => {
            asker.must_be_admin("revoke a user")?;
            let is_known = node.cluster.users().contains(&user) || enrol::owners(node).contains(&user);
            certificates::revoke(node, &user)?;
            Answer::Revoked { is_known }
        }
        Request::Forget { node: name } => {
            asker.must_be_admin("forget a node")?;
            forgetting::node(node, &name)?;
            Answer::Forgotten
        }
        Request::Renew { public_key } => {
            Answer::Certificate(certificates::renew(node, &subject, &public_key)?)
        }
        Request::Drain { is_draining } => {
            asker.must_be_admin("drain a node")?;
            let written = node.cluster.drain(is_draining);
            written.map_err(|error| certificates::not_written("that it is drained", &error))?;
            Answer::Drained
        }
        Request::TakeBack { clone, attempt } => {
            asker.must_be_node("take a clone back")?;
            let is_gone = node.clones.take_back(&clone, attempt).await;
            Answer::TakenBack { is_gone }
        }
        Request::Find(sought) => {
            asker.must_be_node("look for clones")?;
            Answer::Found(finding::here(node, &sought).await)
        }
        Request::Offer { resource, snapshot } => {
            let by = asker.must_be_node("ask for offers")?;
            bidding::answer_offer(bidding::offer(node, by, &resource, snapshot))?
        }
        Request::Reserve {
            resource,
            snapshot,
            request_id,
            at_most,
        } => {
            asker.must_be_node("reserve a place")?;
            let at_most = bidding::limit_heard(at_most);
            let reserved = bidding::reserve(node, &resource, snapshot, &request_id, at_most);
            bidding::answer_reserve(reserved)?
        }
    };
    Ok(answer.into())
}

/// Takes back what was made for an asker who no longer wants it, unless a later attempt was answered with it.
pub async fn undo(node: &Arc<Node>, made: &Made) {
    tracing::info!(clone = %made.clone, node = %made.node, "nobody waits for this clone any more");
    if let Err(error) = placing::take_back(node, made).await {
        tracing::warn!(clone = %made.clone, %error, "a clone that nobody waits for goes when its node is back");
        node.placing.unwanted.note(made);
    }
}

impl From<Answer> for Answered {
    fn from(answer: Answer) -> Self {
        Self {
            answer,
            body: None,
            made: None,
        }
    }
}

/// Returns the one clone that a request is about, if it can be answered only where that is.
fn concerned(request: &Request) -> Option<&CloneId> {
    match request {
        Request::DestroyClone { clone } | Request::IssueRelay { clone, .. } | Request::Account { clone } => {
            Some(clone)
        }
        Request::ListResources
        | Request::ListSnapshots { .. }
        | Request::ListClones { .. }
        | Request::ListNodes
        | Request::CreateSnapshot { .. }
        | Request::CreateClone { .. }
        | Request::DestroyAll { .. }
        | Request::FetchRelay { .. }
        | Request::IssueToken { .. }
        | Request::Drain { .. }
        | Request::Revoke { .. }
        | Request::Forget { .. }
        | Request::TakeBack { .. }
        | Request::Renew { .. }
        | Request::Find(_)
        | Request::Offer { .. }
        | Request::Reserve { .. } => None,
    }
}

async fn pass_on(
    node: &Node,
    owner: &NodeName,
    asker: &Asker,
    request: &Request,
) -> Result<Answered, Refusal> {
    let answer = node
        .peers
        .ask_patiently(owner, &asker.subject, request, |_| {})
        .await;
    answer.map(Answered::from).map_err(|error| refuse::peer(&error))
}

/// Returns the name of the resource that is called so, or has that alias; a name that no resource has stays.
fn real_name(node: &Node, name: ResourceName) -> ResourceName {
    match node.catalogue.borrow().find(&name) {
        Some(resource) => resource.name.clone(),
        None => name,
    }
}

/// Returns the name of the resource of another node that is called so, or has that alias.
fn name_in<'a>(facts: &'a Facts, name: &ResourceName) -> Option<&'a ResourceName> {
    let has_alias = |resource: &ResourceFacts| resource.alias.as_deref() == Some(name.as_str());
    let by_alias = || facts.resources.iter().find(|(_, resource)| has_alias(resource));
    let found = facts.resources.get_key_value(name).or_else(by_alias);
    found.map(|(name, _)| name)
}

fn resource_named(node: &Node, name: &ResourceName) -> Result<Arc<Resource>, Refusal> {
    let catalogue = node.catalogue.borrow();
    catalogue.find(name).cloned().ok_or_else(|| {
        let names: Vec<_> = catalogue.resources.keys().map(ResourceName::as_str).collect();
        let known = match names.is_empty() {
            true => "this node has none".to_owned(),
            false => format!("this node has {}", names.join(", ")),
        };
        Refusal::new(
            RefusalKind::NotFound,
            format!("there is no resource `{name}`; {known}"),
        )
        .with_hint("`zdap list resources --all` shows those of every node")
    })
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
