//! `zdap add origin`, `zdap remove origin`, `zdap list origins`.

use std::sync::Arc;

use chrono::Utc;
use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use indicatif::BinaryBytes;
use serde::Serialize;
use zdap_proto::connect::{ConnectError, connect_for_enrol, explain};
use zdap_proto::frame::{self, FrameError, REPLY_CAP, REQUEST_CAP};
use zdap_proto::identity::{Identity, Keypair};
use zdap_proto::message::{EnrolReply, EnrolRequest, Enrolled, NodeStatus, Wanted};
use zdap_proto::name::ClusterId;
use zdap_proto::token::Token;
use zdap_proto::transport::remote;

use super::user::default_name;
use crate::context::Context;
use crate::error::{Failure, Kind};
use crate::node::{Node, NodeError};
use crate::words::address;
use zdap_proto::refusal::chain;

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
        None if looks_like_a_token(origin) => enrol(context, origin.parse()?).await,
        None => add_address(context, address(origin)?).await,
        Some(token) => enrol(context, with_address(token.parse()?, address(origin)?)).await,
    }
}

/// Forgets an address.
pub(super) fn remove(context: &Context<'_>, origin: &str) -> Result<(), Failure> {
    let wanted = address(origin)?;
    let (removed, left) = context.home.change(|settings| {
        let before = settings.origins.len();
        settings.origins.retain(|origin| origin.address != wanted);
        let left: Vec<String> = settings
            .origins
            .iter()
            .map(|origin| origin.address.clone())
            .collect();
        (left.len() < before, left)
    })?;
    if !removed {
        let hint = match left.as_slice() {
            [] => "none is set".to_owned(),
            left => format!("set are {}", left.join(", ")),
        };
        return Err(Failure::not_found(format!("`{wanted}` is not among the origins")).hinted(hint));
    }
    context.output.say(&format!("removed {wanted}"));
    context
        .output
        .data("", &serde_json::json!({ "removed": wanted, "origins": left }))
}

/// One origin and whether it answers; part of the contract.
#[derive(Serialize)]
struct OriginDocument<'a> {
    address: &'a str,
    cluster: &'a ClusterId,
    connected: bool,
    error: Option<&'a str>,
    node: Option<&'a NodeStatus>,
}

/// Shows the origins and whether they answer.
pub(super) async fn list(context: &Context<'_>) -> Result<(), Failure> {
    context.output.doing("asking the nodes how they are");
    let origins = context.origins()?;
    let statuses = origins.statuses().await;
    let documents: Vec<OriginDocument<'_>> = statuses
        .iter()
        .map(|(way, status)| OriginDocument {
            address: &way.address,
            cluster: &way.cluster,
            connected: status.is_ok(),
            error: status.as_ref().err().map(|silent| silent.reason.as_str()),
            node: status.as_ref().ok(),
        })
        .collect();
    if documents.is_empty() {
        context
            .output
            .say("no origin is set; `zdap add origin TOKEN` adds one");
    }
    context
        .output
        .data(&table(&documents, context.output.is_verbose()), &documents)
}

/// A token knows the addresses, the cluster, and that it is we who may join.
async fn enrol(context: &Context<'_>, token: Token) -> Result<(), Failure> {
    if token.for_node {
        return Err(Failure::new("this token lets in a node, not a user").hinted(
            "ask for one by `zdapd token user NAME`; this one is for `zdapd serve --join TOKEN` on a new node",
        ));
    }
    let output = context.output;
    let set = context.home.settings()?.user;
    let wanted = set.clone().or_else(default_name);
    output.doing(format!("enrolling at {}", token.addresses.join(", ")));
    let keypair = Keypair::generate()?;
    let connection = connect_for_enrol(&context.endpoint()?, &token).await?;
    let place = remote(&connection).to_string();
    let request = EnrolRequest {
        secret: token.secret.to_vec(),
        public_key: keypair.public_key(),
        wanted: Wanted::User { name: wanted.clone() },
    };
    let failed = |error: FrameError| match connection.close_reason() {
        Some(reason) => Failure::from(explain(&place, reason)),
        None => Failure::caused(&format!("cannot enrol at {place}"), &error),
    };
    let (mut send, mut receive) = connection
        .open_bi()
        .await
        .map_err(|reason| Failure::from(explain(&place, reason)))?;
    frame::write(&mut send, &request, REQUEST_CAP)
        .await
        .map_err(failed)?;
    // A stream that is finished already cannot be finished again; that is all that can go wrong.
    let _ = send.finish();
    let enrolled = match frame::read(&mut receive, REPLY_CAP).await.map_err(failed)? {
        EnrolReply::Enrolled(enrolled) => enrolled,
        EnrolReply::Refused(refusal) => return Err(refusal.into()),
    };
    let identity = trusted(keypair, &enrolled, &token)?;
    context.home.keep(&identity)?;
    let addresses = known_addresses(&token, &enrolled);
    context.home.change(|settings| {
        for address in &addresses {
            settings.remember(address, identity.cluster());
        }
    })?;
    if set.is_none() && identity.subject().owner() == wanted.as_ref() {
        output.say(
            "no name was set, so it was made up; `zdap set user NAME` before the next enrolment changes it",
        );
    }
    added(context, &identity, &addresses)
}

/// An address alone will do where a cluster has enrolled us already.
async fn add_address(context: &Context<'_>, address: String) -> Result<(), Failure> {
    let endpoint = context.endpoint()?;
    let mut reasons: Vec<Failure> = Vec::new();
    for identity in context.home.identities()? {
        context.output.doing(format!("connecting to {address}"));
        let identity = Arc::new(identity);
        let asked = async {
            let node = Node::connect(&endpoint, &identity, &address).await?;
            node.status().await
        };
        match asked.await {
            Ok(_) => {
                let addresses = [address.clone()];
                context
                    .home
                    .change(|settings| settings.remember(&address, identity.cluster()))?;
                return added(context, &identity, &addresses);
            }
            Err(NodeError::Connect(ConnectError::OtherCluster(_))) => {}
            Err(error) => reasons.push(error.into()),
        }
    }
    if let Some(reason) = reasons.into_iter().next() {
        return Err(reason);
    }
    let question = format!("Token for {address} (an administrator gets it by `zdapd token user` there):");
    match context.output.ask(&question).await {
        Some(token) => enrol(context, with_address(token.parse()?, address)).await,
        None => Err(Failure::new(format!("a token is needed for {address}")).hinted(
            "ask the administrator to run `zdapd token user NAME` on a node and give you the token; \
             then `zdap add origin TOKEN`",
        )),
    }
}

fn added(context: &Context<'_>, identity: &Identity, addresses: &[String]) -> Result<(), Failure> {
    context.output.say(&format!(
        "you are {} in cluster {}; origins: {}",
        identity.subject(),
        identity.cluster(),
        addresses.join(", ")
    ));
    let document = Added {
        cluster: identity.cluster(),
        user: identity.subject().owner().map(ToString::to_string),
        origins: addresses,
    };
    context.output.data("", &document)
}

/// What the node gives has to be for our key, in the cluster that the token is from.
fn trusted(keypair: Keypair, enrolled: &Enrolled, token: &Token) -> Result<Identity, Failure> {
    let identity = Identity::new(keypair, &enrolled.certificate)?;
    let is_same =
        identity.ca_fingerprint() == token.ca_fingerprint && *identity.cluster() == enrolled.cluster;
    if !is_same {
        return Err(
            Failure::new("the node gave a certificate of another cluster than the token's")
                .of_kind(Kind::Refused(zdap_proto::refusal::RefusalKind::Forbidden)),
        );
    }
    if let Err(error) = identity.check_dates(Utc::now()) {
        let hint = error.hint();
        return Err(Failure::new(chain(&error)).maybe_hinted(hint));
    }
    Ok(identity)
}

/// `zdap1-` and what follows; an address that begins so has a dot or a port.
fn looks_like_a_token(text: &str) -> bool {
    let version = text.strip_prefix("zdap").and_then(|rest| rest.split_once('-'));
    let is_version =
        |(number, _): (&str, &str)| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    version.is_some_and(is_version) && !text.contains(['.', ':'])
}

/// Puts `address` in front of those that the token knows.
fn with_address(mut token: Token, address: String) -> Token {
    token.addresses.retain(|known| *known != address);
    token.addresses.insert(0, address);
    token
}

/// The token's addresses, and those that the node knows of.
fn known_addresses(token: &Token, enrolled: &Enrolled) -> Vec<String> {
    let mut addresses: Vec<String> = Vec::new();
    for address in token.addresses.iter().chain(&enrolled.nodes) {
        if !addresses.contains(address) {
            addresses.push(address.clone());
        }
    }
    addresses
}

fn table(origins: &[OriginDocument<'_>], is_verbose: bool) -> String {
    if origins.is_empty() {
        return String::new();
    }
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    let mut header = vec!["ADDRESS", "NODE", "STATE"];
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
    table.set_header(header);
    for origin in origins {
        let name = origin.node.map(|node| node.name.to_string());
        let state = match origin.error {
            None => "connected",
            Some(_) if origin.node.is_none() && !is_verbose => "could not connect",
            Some(reason) => reason,
        };
        let mut row = vec![
            origin.address.to_owned(),
            name.unwrap_or_else(|| "-".to_owned()),
            state.to_owned(),
        ];
        if let (true, Some(node)) = (is_verbose, origin.node) {
            let of = |free, total| format!("{} of {}", BinaryBytes(free), BinaryBytes(total));
            let [one, five, fifteen] = node.load;
            row.extend([
                node.resources.len().to_string(),
                node.snapshots.to_string(),
                node.clones.to_string(),
                of(node.free_bytes, node.total_bytes),
                of(node.available_memory_bytes, node.total_memory_bytes),
                format!("{one:.2} {five:.2} {fifteen:.2}"),
                node.version.clone(),
            ]);
        }
        table.add_row(row);
    }
    let text = table.to_string();
    text.lines().map(str::trim).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> NodeStatus {
        NodeStatus {
            name: "db1".parse().unwrap(),
            cluster: "abc".parse().unwrap(),
            address: "10.0.0.1:43210".to_owned(),
            version: "0.1.0".to_owned(),
            resources: vec!["orders".parse().unwrap()],
            snapshots: 2,
            clones: 3,
            free_bytes: 1 << 30,
            total_bytes: 4 << 30,
            available_memory_bytes: 1 << 30,
            total_memory_bytes: 2 << 30,
            load: [0.5, 0.25, 0.0],
        }
    }

    #[test]
    fn the_json_of_an_origin_says_whether_it_answers_and_why_not() {
        let cluster = "abc".parse().unwrap();
        let document = OriginDocument {
            address: "db2:43210",
            cluster: &cluster,
            connected: false,
            error: Some("no answer"),
            node: None,
        };
        assert_eq!(
            serde_json::to_string(&document).unwrap(),
            r#"{"address":"db2:43210","cluster":"abc","connected":false,"error":"no answer","node":null}"#
        );
    }

    #[test]
    fn a_table_says_more_when_asked() {
        let (cluster, status) = ("abc".parse().unwrap(), status());
        let document = OriginDocument {
            address: "10.0.0.1:43210",
            cluster: &cluster,
            connected: true,
            error: None,
            node: Some(&status),
        };
        let words = |verbose| {
            let table = table(std::slice::from_ref(&document), verbose);
            let words = table.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            words.join(" ")
        };
        assert_eq!(words(false), "ADDRESS NODE STATE 10.0.0.1:43210 db1 connected");
        assert!(
            words(true)
                .ends_with("connected 1 2 3 1.00 GiB of 4.00 GiB 1.00 GiB of 2.00 GiB 0.50 0.25 0.00 0.1.0"),
            "{}",
            words(true)
        );
    }

    #[test]
    fn a_token_is_told_from_an_address_even_when_cut_off() {
        assert!(looks_like_a_token("zdap1-AVbk"));
        assert!(looks_like_a_token("zdap2-AVbk"));
        for address in [
            "zdap1-db:43210",
            "zdap1-db.example.com",
            "zdap-db",
            "zdapx-db",
            "db1",
        ] {
            assert!(!looks_like_a_token(address), "{address}");
        }
    }

    #[test]
    fn the_address_that_was_typed_is_tried_first_and_all_are_remembered_once() {
        let token = Token::new(vec!["a:1".to_owned(), "b:1".to_owned()], [0; 32], false);
        let token = with_address(token, "b:1".to_owned());
        assert_eq!(token.addresses, ["b:1", "a:1"]);
    }
}
