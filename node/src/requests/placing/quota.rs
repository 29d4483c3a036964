//! How many clones of a resource somebody has on all nodes together, where that has a limit.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;
use zdap_proto::identity::Subject;
use zdap_proto::message::CloneState;
use zdap_proto::name::{ResourceName, UserName};
use zdap_proto::refusal::Refusal;

use super::super::asker::{Asker, Scope};
use super::super::listing;
use super::{Wanted, locked};
use crate::clones::as_many_as_allowed;
use crate::node::Node;

/// Who has clones in the making here, of resources that nobody may have any number of.
#[derive(Debug, Default)]
pub(super) struct Quotas(Mutex<HashMap<(UserName, ResourceName), Arc<Quota>>>);

#[derive(Debug)]
struct Quota {
    /// Held by who counts: one after the other.
    counting: tokio::sync::Mutex<()>,
    /// How many are admitted and not made yet.
    under_way: watch::Sender<u32>,
}

/// A clone that counts before it is listed; drop it when the clone is made, or has failed.
#[derive(Debug)]
pub(super) struct Counted(Arc<Quota>);

impl Quotas {
    /// Refuses whoever has as many clones of the resource as one may have. What is on a node that does not answer is not
    /// counted, nor what another node is placing.
    pub(super) async fn admit(&self, node: &Arc<Node>, wanted: &Wanted) -> Result<Option<Counted>, Refusal> {
        let resource = node.catalogue.borrow().find(&wanted.resource).cloned();
        let most = resource.and_then(|resource| resource.limits.clones_per_user);
        let Some(most) = most else { return Ok(None) };
        let quota = self.quota(wanted);
        let counting = quota.counting.lock().await;
        let mut under_way = quota.under_way.subscribe();
        loop {
            let unmade = *under_way.borrow_and_update();
            let there = count(node, wanted).await?;
            if there.saturating_add(unmade) < most {
                quota.under_way.send_modify(|count| *count += 1);
                drop(counting);
                return Ok(Some(Counted(quota)));
            }
            if unmade == 0 {
                return Err(as_many_as_allowed(&wanted.owner, &wanted.resource, most));
            }
            // One of them may have been counted twice, or fail.
            let _ = under_way.changed().await; // the sender is in `quota`
        }
    }

    fn quota(&self, wanted: &Wanted) -> Arc<Quota> {
        let mut quotas = locked(&self.0);
        quotas.retain(|_, quota| Arc::strong_count(quota) > 1);
        let key = (wanted.owner.clone(), wanted.resource.clone());
        Arc::clone(quotas.entry(key).or_default())
    }
}

async fn count(node: &Arc<Node>, wanted: &Wanted) -> Result<u32, Refusal> {
    let owner = Asker::of(&Subject::User(wanted.owner.clone()))?;
    let name = Some(wanted.resource.clone());
    let (clones, _) = listing::clones(node, Scope::Cluster, &owner, name, false).await;
    let there = clones
        .iter()
        .filter(|clone| clone.state != CloneState::Destroying);
    Ok(super::super::count(there.count()))
}

impl Default for Quota {
    fn default() -> Self {
        Self {
            counting: tokio::sync::Mutex::default(),
            under_way: watch::Sender::new(0),
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0
            .under_way
            .send_modify(|count| *count = count.saturating_sub(1));
    }
}
