//! `zdap add origin`, `zdap remove origin`, `zdap list origins`.

use std::sync::Arc;

use indicatif::BinaryBytes;
use serde::Serialize;
use zdap_proto::connect::{ConnectError, answers};
use zdap_proto::identity::Identity;
use zdap_proto::message::{NodeState, NodeView};
use zdap_proto::name::{ClusterId, NodeName};
use zdap_proto::refusal::{RefusalKind, chain};
use zdap_proto::token::Token;

use super::enrol::enrol;
use super::nodes::{self, NodeDocument};
use super::table::table;
use crate::cluster::Cluster;
use crate::context::Context;
use crate::error::{Failure, Kind};
use crate::origin::{Silent, Visit};
use crate::settings::{Forgotten, Settings};
use crate::words::address;

/// What was added; part of the contract.
#[derive(Serialize)]
struct Added<'a> {
    cluster: &'a ClusterId,
    user: Option<String>,
    origins: &'a [String],
}

/// Enrols with a token, or adds a node of a cluster that we are enrolled in.
pub(super) async fn add(context: &Context<'_>, origin: &str, token: Option<&str>) -> Result<(), Failure> {
    match token {
        None if looks_like_a_token(origin) => join(context, read_token(origin)?, None).await,
        None => add_address(context, address(origin)?).await,
        Some(token) => join(context, token.parse()?, Some(address(origin)?)).await,
    }
}

/// Forgets an address.
pub(super) fn remove(context: &Context<'_>, origin: &str) -> Result<(), Failure> {
    let wanted = address(origin)?;
    let (forgotten, left) = context.home.change(|settings| {
        let forgotten = settings.forget(&wanted);
        let left = settings.origins.iter().map(|origin| origin.address.clone());
        (forgotten, left.collect::<Vec<_>>())
    })?;
    match forgotten {
        Forgotten::Gone(also) => {
            context.output.say(&format!("removed {wanted}"));
            if let Some(another) = also.first() {
                context.output.say(&format!(
                    "it was the last origin of its cluster, whose other nodes are forgotten too: {}; \
                     `zdap add origin {another}` brings them back",
                    also.join(", ")
                ));
            }
            let document = serde_json::json!({ "removed": wanted, "origins": left });
            context.output.data("", &document)
        }
        Forgotten::Learned(origins) => Err(Failure::not_found(format!(
            "`{wanted}` was not added: a cluster has told of it"
        ))
        .hinted(forget_the_cluster(&origins))),
        Forgotten::Unknown => {
            let hint = match left.as_slice() {
                [] => "none is set".to_owned(),
                left => format!("set are {}", left.join(", ")),
            };
            Err(Failure::not_found(format!("`{wanted}` is not among the origins")).hinted(hint))
        }
    }
}

/// One that was forgotten alone would be back with the next command.
fn forget_the_cluster(origins: &[String]) -> String {
    let commands = origins
        .iter()
        .map(|origin| format!("`zdap remove origin {origin}`"));
    let commands: Vec<String> = commands.collect();
    format!(
        "to forget the cluster with all its nodes: {}",
        commands.join(", ")
    )
}

/// One address and whether it answers; part of the contract.
#[derive(Serialize)]
struct OriginDocument<'a> {
    address: &'a str,
    cluster: &'a ClusterId,
    connected: bool,
    /// By the user; else the cluster has told of it.
    added: bool,
    error: Option<&'a str>,
    node: Option<NodeDocument<'a>>,
    #[serde(skip)]
    view: Option<&'a NodeView>,
    #[serde(skip)]
    name: Option<NodeName>,
}

/// Shows all addresses that are known, whose they are, and whether they answer.
pub(super) async fn list(context: &Context<'_>) -> Result<(), Failure> {
    context.output.doing("asking the nodes how they are");
    let settings = context.home.settings()?;
    let visits = context.origins()?.visit_all().await;
    for cluster in settings.known_clusters() {
        let mut answered = visits.iter().filter(|visit| visit.cluster == cluster);
        if let Some((address, nodes)) = answered.find_map(|visit| {
            let (_, nodes) = visit.result.as_ref().ok()?;
            Some((&visit.address, nodes))
        }) {
            context.home.learn(&cluster, address, nodes);
        }
    }
    let documents: Vec<OriginDocument<'_>> = visits
        .iter()
        .map(|visit| document(visit, &visits, &settings))
        .collect();
    if documents.is_empty() {
        context
            .output
            .say("no origin is set; `zdap add origin TOKEN` adds one");
    }
    let text = as_table(&documents, context.output.is_verbose());
    context.output.data(&text, &documents)?;
    match documents.is_empty() || documents.iter().any(|origin| origin.connected) {
        true => Ok(()),
        false => Err(none_usable(context, &documents)),
    }
}

fn none_usable(context: &Context<'_>, origins: &[OriginDocument<'_>]) -> Failure {
    let reasons = origins.iter().filter_map(|origin| origin.error);
    let reasons: String = reasons.map(|reason| format!("\n  {reason}")).collect();
    let failure = Failure::new(format!("no origin can be used{reasons}"));
    match context.is_any_reached() {
        true => failure, // each has said why not
        false => failure.of_kind(Kind::Unreachable),
    }
}

/// Enrols, and remembers the addresses that the token knows, and the one that was typed if the cluster answers there.
async fn join(context: &Context<'_>, token: Token, typed: Option<String>) -> Result<(), Failure> {
    let own = token.addresses.clone();
    let identity = Arc::new(enrol_by_way_of(context, &token, typed.as_ref()).await?);
    let typed = typed.filter(|typed| !own.contains(typed));
    context.home.change(|settings| {
        for address in &own {
            settings.remember_new(address, identity.cluster());
        }
    })?;
    // Enrolment is done, whatever comes of this.
    let endpoint = context.endpoint()?;
    for addresses in [typed.as_slice(), own.as_slice()] {
        match Cluster::reach(&endpoint, &identity, addresses).await {
            Ok(cluster) => {
                context.note_reached();
                let node = cluster.node().await;
                let remember = |settings: &mut Settings| settings.remember(node.address(), cluster.id());
                context.home.change(remember)?;
                learn(context, &cluster).await;
                break;
            }
            Err(errors) => {
                for (address, error) in errors {
                    context.output.warn(&Silent::unreached(&address, &error).reason);
                }
            }
        }
    }
    added(context, &identity)
}

/// Enrols at the address that was typed, or if another node is there than the one that made the token, at that one.
async fn enrol_by_way_of(
    context: &Context<'_>,
    token: &Token,
    typed: Option<&String>,
) -> Result<Identity, Failure> {
    let Some(typed) = typed else {
        return enrol(context, token).await;
    };
    match enrol(context, &with_address(token.clone(), typed.clone())).await {
        Err(failure) if failure.kind == Kind::Refused(RefusalKind::NotFound) => {}
        done => return done,
    }
    enrol(context, token).await.map_err(|failure| {
        if failure.kind != Kind::Unreachable {
            return failure;
        }
        Failure::new(format!(
            "the node at {typed} did not make this token, and the one that did was not reached: {}",
            failure.message
        ))
        .of_kind(Kind::Unreachable)
        .hinted("ask for a token of a node that you can reach: `zdapd token user NAME` there")
    })
}

/// An address alone will do where a cluster has enrolled us already.
async fn add_address(context: &Context<'_>, address: String) -> Result<(), Failure> {
    let endpoint = context.endpoint()?;
    let mut reasons: Vec<Failure> = Vec::new();
    let mut is_node_there = false;
    for identity in context.home.identities()? {
        context.output.doing(format!("connecting to {address}"));
        let identity = Arc::new(identity);
        let error = match Cluster::reach(&endpoint, &identity, std::slice::from_ref(&address)).await {
            Ok(cluster) => {
                context.note_reached();
                match cluster.nodes().await {
                    Ok(_) => {
                        context
                            .home
                            .change(|settings| settings.remember(&address, identity.cluster()))?;
                        learn(context, &cluster).await;
                        return added(context, &identity);
                    }
                    Err(error) => error.into(),
                }
            }
            Err(errors) => match errors.into_iter().next() {
                Some((_, ConnectError::OtherCluster(_))) => {
                    context.note_reached();
                    is_node_there = true;
                    continue;
                }
                None => continue,
                Some((_, error)) => error.into(),
            },
        };
        reasons.push(error);
    }
    if let Some(reason) = reasons.into_iter().next() {
        return Err(reason);
    }
    if !is_node_there {
        // Before anybody goes and asks for a token.
        context.output.doing(format!("connecting to {address}"));
        answers(&endpoint, &address).await?;
        context.note_reached();
    }
    let question = format!("Token for {address} (an administrator gets it by `zdapd token user` there):");
    match context.output.ask(&question).await {
        Some(token) => join(context, token.parse()?, Some(address)).await,
        None => Err(Failure::new(format!("a token is needed for {address}")).hinted(
            "ask the administrator to run `zdapd token user NAME` on a node and give you the token; \
             then `zdap add origin TOKEN`",
        )),
    }
}

async fn learn(context: &Context<'_>, cluster: &Cluster) {
    match cluster.nodes().await {
        Ok(nodes) => {
            let node = cluster.node().await;
            context.home.learn(cluster.id(), node.address(), nodes);
        }
        Err(error) => context
            .output
            .warn(&format!("the other nodes are not known yet: {}", chain(&error))),
    }
}

fn added(context: &Context<'_>, identity: &Identity) -> Result<(), Failure> {
    let addresses = context.home.settings()?.addresses(identity.cluster());
    context.output.say(&format!(
        "you are {} in cluster {}; origins: {}",
        identity.subject(),
        identity.cluster(),
        addresses.join(", ")
    ));
    let document = Added {
        cluster: identity.cluster(),
        user: identity.subject().owner().map(ToString::to_string),
        origins: &addresses,
    };
    context.output.data("", &document)
}

/// `zdap1-` and what follows. An address that begins so has a port.
fn looks_like_a_token(text: &str) -> bool {
    let version = text.strip_prefix("zdap").and_then(|rest| rest.split_once('-'));
    let is_version =
        |(number, _): (&str, &str)| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    version.is_some_and(is_version) && !text.contains(':')
}

fn read_token(text: &str) -> Result<Token, Failure> {
    text.parse().map_err(|error| {
        let failure = Failure::from(error);
        match (text.contains('.'), &failure.hint) {
            (true, Some(hint)) => {
                let hint = format!("{hint}; if it is an address, say its port, too: {text}:43210");
                failure.hinted(hint)
            }
            (_, _) => failure,
        }
    })
}

/// Puts `address` in front of those that the token knows.
fn with_address(mut token: Token, address: String) -> Token {
    token.addresses.retain(|known| *known != address);
    token.addresses.insert(0, address);
    token
}

/// A node that does not answer may be known to those that do.
fn document<'a>(visit: &'a Visit, visits: &'a [Visit], settings: &Settings) -> OriginDocument<'a> {
    let named = match &visit.result {
        Ok((name, _)) => name.clone(),
        Err(_) => settings.name_at(&visit.cluster, &visit.address),
    };
    let others = visits.iter().filter(|other| other.cluster == visit.cluster);
    let nodes = std::iter::once(visit)
        .chain(others)
        .find_map(|visit| visit.result.as_ref().ok())
        .map(|(_, nodes)| nodes.as_slice());
    let is_it = |node: &&NodeView| match &named {
        Some(name) => node.name == *name,
        None => node.address == visit.address,
    };
    let node = nodes.unwrap_or_default().iter().find(is_it);
    OriginDocument {
        address: &visit.address,
        cluster: &visit.cluster,
        connected: visit.result.is_ok(),
        added: settings.is_added(&visit.cluster, &visit.address),
        error: visit.result.as_ref().err().map(|silent| silent.reason.as_str()),
        node: node.map(nodes::document),
        view: node,
        name: named.or_else(|| node.map(|node| node.name.clone())),
    }
}

fn as_table(origins: &[OriginDocument<'_>], is_verbose: bool) -> String {
    let mut header = vec!["ADDRESS", "NODE", "STATE", "KNOWN"];
    if is_verbose {
        header.extend([
            "RESOURCES",
            "SNAPS",
            "CLONES",
            "DISK FREE",
            "MEMORY FREE",
            "LOAD",
            "VERSION",
        ]);
    }
    table(&header, origins.iter().map(|origin| row(origin, is_verbose)))
}

fn row(origin: &OriginDocument<'_>, is_verbose: bool) -> Vec<String> {
    let name = origin.name.as_ref().map(ToString::to_string);
    let mut row = vec![
        origin.address.to_owned(),
        name.unwrap_or_else(|| "-".to_owned()),
        match (origin.error, origin.view) {
            (None, None) => "connected".to_owned(),
            (None, Some(node)) => nodes::state(node.state).to_owned(),
            (Some(reason), _) if is_verbose => reason.to_owned(),
            (Some(_), Some(node)) if node.state == NodeState::Down => nodes::state(node.state).to_owned(),
            (Some(_), _) => "could not connect".to_owned(),
        },
        if origin.added { "added" } else { "learned" }.to_owned(),
    ];
    // What is known of a node that does not answer is of another time.
    if let (true, true, Some(node)) = (is_verbose, origin.connected, origin.view) {
        let of = |free, total| format!("{} of {}", BinaryBytes(free), BinaryBytes(total));
        row.extend([
            node.resources.len().to_string(),
            node.snapshots.to_string(),
            node.clones.to_string(),
            of(node.free_bytes, node.total_bytes),
            of(node.available_memory_bytes, node.total_memory_bytes),
            nodes::load(node.load),
            node.version.clone(),
        ]);
    }
    row
}

#[cfg(test)]
mod tests;
