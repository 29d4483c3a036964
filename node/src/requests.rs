//! What each request does, and who may make it: one arm a request.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use tokio::fs::File;
use tokio::sync::{mpsc, watch};
use zdap_proto::identity::{Peer, Subject};
use zdap_proto::message::{
    Answer, CloneRecord, Invited, NodeStatus, Progress, Request, ResourceView, SnapshotView, TokenText,
};
use zdap_proto::name::{CloneId, RequestId, ResourceName, SnapshotId, SnapshotTime, UserName};
use zdap_proto::refusal::{Refusal, RefusalKind, chain};
use zdap_proto::token::Token;

use crate::bases::{RestoreState, no_snapshot};
use crate::clones::Order;
use crate::machine::Machine;
use crate::node::Node;
use crate::resource::Resource;
use crate::state::CERTIFICATE_LIFE;
use crate::storage::DatasetId;
use crate::tunnel::{may_reach, not_yours};
use crate::{instance, relay_program};

/// An answer, and the bytes that follow it if it announces some.
#[derive(Debug)]
pub struct Answered {
    /// The answer.
    pub answer: Answer,
    /// What follows it on the stream.
    pub body: Option<File>,
    /// The clone that was made for this answer, to be destroyed if nobody takes it.
    pub made: Option<CloneId>,
}

/// Does what `peer` asks, or says why not.
pub async fn answer(
    node: &Arc<Node>,
    peer: &Peer,
    request: Request,
    progress: mpsc::Sender<Progress>,
) -> Result<Answered, Refusal> {
    let asker = Asker::of(&peer.subject)?;
    let answer = match request {
        Request::Status => Answer::Status(status(node)),
        Request::ListResources => Answer::Resources(resources(node)),
        Request::ListSnapshots { resource } => {
            let resource = resource.map(|name| real_name(node, name));
            Answer::Snapshots(snapshots(node, resource.as_ref()))
        }
        Request::ListClones { resource, all_owners } => {
            if all_owners {
                asker.must_be_admin("list everybody's clones")?;
            }
            let resource = resource.map(|name| real_name(node, name));
            let mut clones = node.clones.list();
            clones.retain(|clone| {
                (all_owners || clone.owner == asker.name)
                    && resource.as_ref().is_none_or(|name| clone.resource() == name)
            });
            Answer::Clones(clones.iter().map(|clone| clone.view(&node.name)).collect())
        }
        Request::CreateSnapshot {
            resource,
            use_existing,
        } => {
            asker.must_be_admin("restore a resource")?;
            Answer::Snapshot(create_snapshot(node, &resource, use_existing, &progress).await?)
        }
        Request::CreateClone {
            resource,
            snapshot,
            owner,
            request_id,
        } => {
            let owner = match owner {
                Some(owner) if owner != asker.name => {
                    asker.must_be_admin("make clones for others")?;
                    owner
                }
                Some(_) | None => asker.name,
            };
            return create_clone(node, &resource, snapshot, owner, request_id).await;
        }
        Request::DestroyClone { clone } => {
            if let Some(record) = node.clones.find(&clone) {
                asker.must_reach(&record)?;
                node.clones.destroy(&clone).await;
            }
            Answer::Destroyed
        }
        Request::DestroyAll { bases } => {
            asker.must_be_admin("destroy everybody's clones")?;
            destroy_all(node, bases).await?
        }
        Request::IssueRelay { clone, public_key } => {
            let record = asker.clone_of(node, &clone)?;
            let subject = Subject::Relay {
                owner: record.owner,
                clone,
            };
            Answer::Certificate(node.sign(&public_key, &subject)?)
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
            if invited == Invited::Node && !matches!(peer.subject, Subject::Node(_)) {
                return Err(Refusal::new(
                    RefusalKind::Forbidden,
                    "a token for a node hands over the cluster's CA; only nodes make one",
                )
                .with_hint("run `zdapd token node` on a node"));
            }
            Answer::Token(TokenText(issue_token(node, invited, ttl_seconds)?))
        }
    };
    Ok(answer.into())
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

/// Who asks, and what they may.
struct Asker {
    subject: Subject,
    name: UserName,
}

impl Asker {
    /// A relay may reach the database of its one clone, and ask for nothing.
    fn of(subject: &Subject) -> Result<Self, Refusal> {
        let name = match subject {
            Subject::User(name) | Subject::Admin(name) => name.clone(),
            // What a node does by itself is owned by its name.
            Subject::Node(name) => name.as_str().parse().map_err(|error| {
                Refusal::new(
                    RefusalKind::Invalid,
                    format!("the node's name cannot own a clone: {error}"),
                )
            })?,
            Subject::Relay { clone, .. } => {
                return Err(Refusal::new(
                    RefusalKind::Forbidden,
                    format!("the relay of `{clone}` may only reach its clone's database"),
                ));
            }
        };
        Ok(Self {
            subject: subject.clone(),
            name,
        })
    }

    fn must_be_admin(&self, what: &str) -> Result<(), Refusal> {
        match self.subject.is_admin() {
            true => Ok(()),
            false => Err(
                Refusal::new(RefusalKind::Forbidden, format!("{} may not {what}", self.subject))
                    .with_hint("it takes an admin (`zdapd token user NAME --admin`), or `zdapd` on a node"),
            ),
        }
    }

    fn must_reach(&self, record: &CloneRecord) -> Result<(), Refusal> {
        match may_reach(&self.subject, record) {
            true => Ok(()),
            false => Err(not_yours(&self.subject, &record.id)),
        }
    }

    fn clone_of(&self, node: &Node, id: &CloneId) -> Result<CloneRecord, Refusal> {
        let record = node.clones.find(id).ok_or_else(|| not_yours(&self.subject, id))?;
        self.must_reach(&record)?;
        Ok(record)
    }
}

fn status(node: &Node) -> NodeStatus {
    let capacity = *node.capacity.borrow();
    let Machine {
        available_memory_bytes,
        total_memory_bytes,
        load,
    } = Machine::read();
    NodeStatus {
        name: node.name.clone(),
        cluster: node.identity.cluster().clone(),
        address: node.address.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        resources: node.catalogue.borrow().resources.keys().cloned().collect(),
        snapshots: count(node.bases.list().len()),
        clones: count(node.clones.list().len()),
        free_bytes: capacity.free_bytes,
        total_bytes: capacity.total_bytes,
        available_memory_bytes,
        total_memory_bytes,
        load,
    }
}

fn resources(node: &Node) -> Vec<ResourceView> {
    let all = node.bases.list();
    let view = |resource: &Arc<Resource>| {
        let of = all
            .iter()
            .map(|(snapshot, _)| snapshot)
            .filter(|snapshot| snapshot.base.resource == resource.name);
        let mut snapshots: Vec<SnapshotTime> = of.map(|snapshot| snapshot.taken_at).collect();
        snapshots.sort_unstable_by(|a, b| b.cmp(a));
        ResourceView {
            name: resource.name.clone(),
            alias: resource.alias.clone(),
            image: resource.docker.image.clone(),
            node: node.name.clone(),
            snapshots,
        }
    };
    node.catalogue.borrow().resources.values().map(view).collect()
}

fn snapshots(node: &Node, resource: Option<&ResourceName>) -> Vec<SnapshotView> {
    let clones = node.clones.list();
    let wanted = |snapshot: &SnapshotId| resource.is_none_or(|name| &snapshot.base.resource == name);
    let all = node
        .bases
        .list()
        .into_iter()
        .filter(|(snapshot, _)| wanted(snapshot));
    all.map(|(snapshot, bytes)| snapshot_view(node, &clones, &snapshot, bytes))
        .collect()
}

fn snapshot_view(
    node: &Node,
    clones: &[CloneRecord],
    snapshot: &SnapshotId,
    size_bytes: u64,
) -> SnapshotView {
    SnapshotView {
        resource: snapshot.base.resource.clone(),
        taken_at: snapshot.taken_at,
        node: node.name.clone(),
        clones: count(clones.iter().filter(|clone| &clone.snapshot == snapshot).count()),
        size_bytes,
    }
}

async fn create_snapshot(
    node: &Arc<Node>,
    name: &ResourceName,
    use_existing: bool,
    progress: &mpsc::Sender<Progress>,
) -> Result<SnapshotView, Refusal> {
    let resource = resource_named(node, name)?;
    let name = &resource.name;
    let snapshot = match use_existing {
        true => node.bases.snapshot_existing(name, Utc::now()).await?,
        false => follow(node.bases.restore(&resource, Utc::now()), progress).await?,
    };
    let bytes = node
        .bases
        .list()
        .into_iter()
        .find(|(other, _)| other == &snapshot)
        .map(|(_, bytes)| bytes);
    Ok(snapshot_view(
        node,
        &node.clones.list(),
        &snapshot,
        bytes.unwrap_or_default(),
    ))
}

/// Passes a restore's progress on until it ends.
async fn follow(
    mut restore: watch::Receiver<RestoreState>,
    progress: &mpsc::Sender<Progress>,
) -> Result<SnapshotId, Refusal> {
    loop {
        let state = restore.borrow_and_update().clone();
        match state {
            RestoreState::Ended(result) => return result,
            // Nobody listens any more when this fails; the restore goes on.
            RestoreState::Running(step) => {
                let _ = progress.try_send(step);
            }
        }
        if restore.changed().await.is_err() {
            return Err(Refusal::new(
                RefusalKind::Failed,
                "the restore ended without a result; the node's log says more",
            ));
        }
    }
}

async fn create_clone(
    node: &Arc<Node>,
    name: &ResourceName,
    snapshot: Option<SnapshotTime>,
    owner: UserName,
    request_id: RequestId,
) -> Result<Answered, Refusal> {
    let resource = resource_named(node, name)?;
    let name = &resource.name;
    let snapshot = match snapshot {
        None => node.bases.newest(name).ok_or_else(|| no_snapshot(name))?,
        Some(time) => node.bases.find(name, time).ok_or_else(|| {
            Refusal::new(
                RefusalKind::NotFound,
                format!("`{name}` has no snapshot of {time}"),
            )
            .with_hint(format!("`zdap list snaps {name}` shows them"))
        })?,
    };
    let order = Order {
        resource: Arc::clone(&resource),
        snapshot,
        owner,
        request_id,
        now: Utc::now(),
    };
    let (record, stages) = node.clones.create(order).await?;
    let made = stages.is_some().then(|| record.id.clone());
    let answer = Answer::Created {
        clone: record.view(&node.name),
        stages: stages.unwrap_or_default(),
    };
    Ok(Answered {
        made,
        ..answer.into()
    })
}

async fn destroy_all(node: &Arc<Node>, bases: bool) -> Result<Answer, Refusal> {
    let clones = node.clones.list();
    let work = clones.iter().map(|clone| node.clones.destroy(&clone.id));
    futures_util::future::join_all(work).await;
    let left = node
        .clones
        .list()
        .into_iter()
        .filter(|clone| clones.iter().any(|other| other.id == clone.id))
        .count();
    if left > 0 {
        return Err(Refusal::new(
            RefusalKind::Unavailable,
            format!("{left} of {} clones are still busy", clones.len()),
        )
        .with_hint("they are marked and go as soon as nothing uses them"));
    }
    let mut removed = 0;
    if bases {
        let all: BTreeSet<_> = node
            .bases
            .list()
            .into_iter()
            .map(|(snapshot, _)| snapshot.base)
            .collect();
        for base in all {
            node.bases.remove(&DatasetId::Base(base)).await?;
            removed += 1;
        }
    }
    Ok(Answer::DestroyedAll {
        clones: count(clones.len()),
        bases: removed,
    })
}

fn issue_token(node: &Node, invited: Invited, ttl_seconds: u32) -> Result<String, Refusal> {
    if ttl_seconds == 0 || Duration::from_secs(ttl_seconds.into()) > LONGEST_INVITE {
        return Err(Refusal::new(
            RefusalKind::Invalid,
            format!("a token cannot be good for {ttl_seconds} seconds"),
        )
        .with_hint("from one second to 30 days: `--ttl 24h`"));
    }
    let token = Token::new(
        vec![node.address.clone()],
        node.ca.fingerprint(),
        invited == Invited::Node,
    );
    let hash = data_encoding::HEXLOWER.encode(&token.secret_hash());
    node.invites
        .add(&hash, invited, TimeDelta::seconds(ttl_seconds.into()), Utc::now())
        .map_err(|error| {
            Refusal::new(
                RefusalKind::Failed,
                format!("the node could not write down the invite: {error}"),
            )
        })?;
    Ok(token.to_string())
}

impl Node {
    /// Signs a public key, for as long as certificates live.
    pub fn sign(
        &self,
        public_key: &[u8],
        subject: &Subject,
    ) -> Result<zdap_proto::message::Certificate, Refusal> {
        self.ca
            .issue(public_key, subject, CERTIFICATE_LIFE, Utc::now())
            .map_err(|error| {
                Refusal::new(
                    RefusalKind::Invalid,
                    format!("the public key cannot be certified: {}", chain(&error)),
                )
            })
    }
}

/// Returns the name of the resource that is called so, or has that alias; a name that no resource has stays.
fn real_name(node: &Node, name: ResourceName) -> ResourceName {
    match node.catalogue.borrow().find(&name) {
        Some(resource) => resource.name.clone(),
        None => name,
    }
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

const LONGEST_INVITE: Duration = Duration::from_secs(30 * 24 * 3600);
