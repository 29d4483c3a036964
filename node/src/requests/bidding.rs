//! What this node says when another looks for a place, or it does so itself; and the figures as they cross the wire.

use tokio::time::Instant;
use zdap_proto::message::{self, Answer, Bottleneck};
use zdap_proto::name::{NodeName, RequestId, ResourceName, SnapshotTime};
use zdap_proto::refusal::{Refusal, RefusalKind};

use crate::cluster::report::figures;
use crate::node::Node;
use crate::placement::{self, Demand, Prediction, Reason, Share};
use crate::reserve::{GRACE, Offered, Refused};

/// Says how busy this node would be with one more clone, or why there can be none, to the node `by`.
pub(super) fn offer(
    node: &Node,
    by: &NodeName,
    resource: &ResourceName,
    snapshot: SnapshotTime,
) -> Result<Offered, Reason> {
    let clone = demand(node, resource, snapshot)?;
    let now = Instant::now().into_std();
    let offered = node
        .reservations
        .offer(by, clone, now, |tokens| figures(node, tokens));
    offered.map_err(|refused| refused.reason)
}

/// Why a place was not promised.
#[derive(Debug)]
pub(super) enum NotReserved {
    /// It costs more by now.
    Outpaced(Offered),
    /// There can be none.
    Out(Reason),
}

/// Keeps a place for one more clone, unless this node has come to cost more than `at_most`.
pub(super) fn reserve(
    node: &Node,
    resource: &ResourceName,
    snapshot: SnapshotTime,
    request_id: &RequestId,
    at_most: Option<Share>,
) -> Result<(), NotReserved> {
    let clone = demand(node, resource, snapshot).map_err(NotReserved::Out)?;
    let now = Instant::now().into_std();
    let figures = |tokens: &_| figures(node, tokens);
    match node
        .reservations
        .reserve(request_id, clone, at_most, now, figures)
    {
        Ok(()) => {
            node.cluster.look_again();
            Ok(())
        }
        Err(Refused {
            reason: Reason::Outpaced { .. },
            offered,
        }) => Err(NotReserved::Outpaced(offered)),
        Err(Refused { reason, .. }) => Err(NotReserved::Out(reason)),
    }
}

/// Returns the answer to a [`message::Request::Offer`].
pub(super) fn answer_offer(offered: Result<Offered, Reason>) -> Result<Answer, Refusal> {
    offered
        .map(|offered| told(&offered))
        .map_err(|reason| no_place(&reason))
}

/// Returns the answer to a [`message::Request::Reserve`].
pub(super) fn answer_reserve(reserved: Result<(), NotReserved>) -> Result<Answer, Refusal> {
    match reserved {
        Ok(()) => Ok(Answer::Reserved),
        Err(NotReserved::Outpaced(offered)) => Ok(told(&offered)),
        Err(NotReserved::Out(reason)) => Err(no_place(&reason)),
    }
}

/// Takes an offer from the wire, if that is what the answer is.
pub(super) fn heard(answer: &Answer) -> Option<Offered> {
    let Answer::Offered {
        offered,
        per_clone,
        clones,
    } = answer
    else {
        return None;
    };
    let predicted = Prediction {
        share: share(offered.load),
        bottleneck: match offered.bottleneck {
            Bottleneck::Clones => placement::Bottleneck::Clones,
            Bottleneck::Memory => placement::Bottleneck::Memory,
            Bottleneck::Pool => placement::Bottleneck::Pool,
            Bottleneck::Processor => placement::Bottleneck::Load,
        },
        crowding: share(offered.clones),
    };
    let cost = f64::from(predicted.cost().0) / MILLION;
    Some(Offered {
        predicted,
        limit: share(cost + f64::from(GRACE) * per_clone),
        taken: *clones,
    })
}

/// Returns a prediction as clients see it.
pub(super) fn shown(predicted: &Prediction) -> message::Offered {
    message::Offered {
        load: of_one(predicted.share),
        bottleneck: match predicted.bottleneck {
            placement::Bottleneck::Clones => Bottleneck::Clones,
            placement::Bottleneck::Memory => Bottleneck::Memory,
            placement::Bottleneck::Pool => Bottleneck::Pool,
            placement::Bottleneck::Load => Bottleneck::Processor,
        },
        clones: of_one(predicted.crowding),
    }
}

/// Returns a limit as it crosses the wire.
pub(super) fn limit(at_most: Option<Share>) -> f64 {
    at_most.map_or(f64::INFINITY, of_one)
}

/// Takes a limit from the wire.
pub(super) fn limit_heard(at_most: f64) -> Option<Share> {
    at_most.is_finite().then(|| share(at_most))
}

fn told(offered: &Offered) -> Answer {
    let further = of_one(offered.limit) - of_one(offered.predicted.cost());
    Answer::Offered {
        offered: shown(&offered.predicted),
        per_clone: further / f64::from(GRACE),
        clones: offered.taken,
    }
}

fn no_place(reason: &Reason) -> Refusal {
    Refusal::new(RefusalKind::Full, reason.to_string())
}

fn demand(node: &Node, name: &ResourceName, snapshot: SnapshotTime) -> Result<Demand, Reason> {
    let resource = node.catalogue.borrow().find(name).cloned();
    let resource = resource.ok_or(Reason::NoResource)?;
    let id = node
        .bases
        .find(&resource.name, snapshot)
        .ok_or(Reason::NoSuchSnapshot { wanted: snapshot })?;
    let bytes = node.bases.bytes(&id).unwrap_or_default();
    Ok(Demand::of_clone(resource.limits.memory_bytes, bytes))
}

fn of_one(share: Share) -> f64 {
    f64::from(share.0) / MILLION
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a cast to an integer takes the nearest that fits"
)]
fn share(of_one: f64) -> Share {
    Share((of_one * MILLION).round() as u32)
}

const MILLION: f64 = 1_000_000.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_is_worth_the_same_on_both_ends_of_the_wire() {
        for limit in [520_001, 100_003] {
            let offered = Offered {
                predicted: Prediction {
                    share: Share(630_001),
                    bottleneck: placement::Bottleneck::Pool,
                    crowding: Share(70_000),
                },
                limit: Share(limit),
                taken: 7,
            };
            assert_eq!(heard(&told(&offered)), Some(offered));
            assert_eq!(
                limit_heard(super::limit(Some(offered.limit))),
                Some(offered.limit)
            );
        }
        assert_eq!(limit_heard(limit(None)), None);
    }
}
