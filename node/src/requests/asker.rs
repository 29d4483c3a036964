//! Who asks, whom the request is for, and what they may.

use zdap_proto::identity::{Peer, Subject};
use zdap_proto::message::{CloneRecord, Request};
use zdap_proto::name::{CloneId, NodeName, UserName};
use zdap_proto::refusal::{Refusal, RefusalKind};

use crate::node::Node;
use crate::tunnel::{may_reach, not_yours};

/// Whom an answer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// The whole cluster, whichever node is asked.
    Cluster,
    /// This node alone; another one has asked on behalf of somebody.
    Here,
}

/// Says whose request it is, and how far it reaches. Nodes alone may ask on behalf of somebody.
pub(crate) fn on_whose_behalf(
    peer: &Peer,
    on_behalf_of: Option<Subject>,
) -> Result<(Subject, bool), Refusal> {
    match (on_behalf_of, &peer.subject) {
        (None, subject) => Ok((subject.clone(), false)),
        (Some(subject), Subject::Node(_)) => Ok((subject, true)),
        (Some(_), Subject::User(_) | Subject::Admin(_) | Subject::Relay { .. }) => Err(Refusal::new(
            RefusalKind::Forbidden,
            format!("{} may not ask on behalf of somebody else", peer.subject),
        )),
    }
}

/// Refuses whoever is revoked, or is the relay of somebody who is.
pub(crate) fn not_revoked(node: &Node, subject: &Subject) -> Result<(), Refusal> {
    match subject.owner() {
        Some(user) if node.cluster.is_revoked(user) => Err(Refusal::new(
            RefusalKind::Forbidden,
            format!("the certificates of `{user}` are revoked"),
        )
        .with_hint("ask the administrator for a token with a new name: `zdapd token user`")),
        Some(_) | None => Ok(()),
    }
}

/// Who asks, and what they may.
#[derive(Debug, Clone)]
pub(super) struct Asker {
    pub(super) subject: Subject,
    /// Who owns what they make.
    pub(super) name: UserName,
}

impl Asker {
    /// What a relay would make would be its owner's.
    pub(super) fn of(subject: &Subject) -> Result<Self, Refusal> {
        let name = match subject {
            Subject::User(name) | Subject::Admin(name) | Subject::Relay { owner: name, .. } => name.clone(),
            // What a node does by itself is owned by its name.
            Subject::Node(name) => name.as_str().parse().map_err(|error| {
                Refusal::new(
                    RefusalKind::Invalid,
                    format!("the node's name cannot own a clone: {error}"),
                )
            })?,
        };
        Ok(Self {
            subject: subject.clone(),
            name,
        })
    }

    /// A relay may reach the database of its one clone, and have its certificate renewed; it asks for nothing else.
    pub(super) fn may_ask(&self, request: &Request) -> Result<(), Refusal> {
        match (&self.subject, request) {
            (Subject::Relay { .. }, Request::Renew { .. }) => Ok(()),
            (Subject::Relay { clone, .. }, _) => Err(Refusal::new(
                RefusalKind::Forbidden,
                format!("the relay of `{clone}` may only reach its clone's database"),
            )),
            (Subject::User(_) | Subject::Admin(_) | Subject::Node(_), _) => Ok(()),
        }
    }

    pub(super) fn is_node(&self) -> bool {
        matches!(self.subject, Subject::Node(_))
    }

    pub(super) fn must_be_admin(&self, what: &str) -> Result<(), Refusal> {
        match self.subject.is_admin() {
            true => Ok(()),
            false => Err(
                Refusal::new(RefusalKind::Forbidden, format!("{} may not {what}", self.subject))
                    .with_hint("it takes an admin (`zdapd token user NAME --admin`), or `zdapd` on a node"),
            ),
        }
    }

    /// Returns which node asks: what nodes ask each other is nobody else's business.
    pub(super) fn must_be_node(&self, what: &str) -> Result<&NodeName, Refusal> {
        match &self.subject {
            Subject::Node(name) => Ok(name),
            Subject::User(_) | Subject::Admin(_) | Subject::Relay { .. } => Err(Refusal::new(
                RefusalKind::Forbidden,
                format!("{} may not {what}: only nodes may", self.subject),
            )),
        }
    }

    pub(super) fn must_reach(&self, record: &CloneRecord) -> Result<(), Refusal> {
        match may_reach(&self.subject, record) {
            true => Ok(()),
            false => Err(not_yours(&self.subject, &record.id)),
        }
    }

    pub(super) fn clone_of(&self, node: &Node, id: &CloneId) -> Result<CloneRecord, Refusal> {
        let record = node.clones.find(id).ok_or_else(|| not_yours(&self.subject, id))?;
        self.must_reach(&record)?;
        Ok(record)
    }

    /// Returns who is to own a clone: the asker, or somebody else if the asker is an admin.
    pub(super) fn owner(&self, owner: Option<UserName>) -> Result<UserName, Refusal> {
        match owner {
            Some(owner) if owner != self.name => {
                self.must_be_admin("make clones for others")?;
                Ok(owner)
            }
            Some(_) | None => Ok(self.name.clone()),
        }
    }
}
