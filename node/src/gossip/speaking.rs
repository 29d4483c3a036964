//! What this node says of itself, and passes on of others.

use std::time::Instant;

use zdap_proto::digest::{MAX_GENERATION, NodeDigest};

use super::{Action, Gossip, take_due};

impl Gossip {
    pub(super) fn follow_digests(&mut self, now: Instant) {
        let (news, ahead) = {
            let mut overheard = self.shared.lock();
            (std::mem::take(&mut overheard.news), overheard.ahead.take())
        };
        if !news.is_empty() {
            let earliest = self.relayed_at.map_or(now, |at| at + self.settings.relay_period);
            let relay = (now + self.settings.relay_delay).max(earliest);
            self.next.relay.get_or_insert(relay);
        }
        self.actions.extend(news.into_iter().map(Action::Digest));
        if let Some(ahead) = ahead
            && ahead >= self.generation
            && ahead < MAX_GENERATION
        {
            self.generation = ahead + 1;
            self.sequence = 0;
            self.persist(self.generation);
            self.publisher.repeat();
        }
        let nodes = self.foca.num_members() + 1;
        let stale_after = self.settings.stale_after;
        self.next.publish = self.publisher.due(nodes, stale_after, now);
        if take_due(&mut self.next.publish, now) {
            self.say(now);
            self.next.publish = self.publisher.due(nodes, stale_after, now);
        }
    }

    fn say(&mut self, now: Instant) {
        let Some(report) = self.publisher.wanted(self.settings.stale_after, now) else {
            return;
        };
        if self.sequence == u32::MAX {
            self.generation += 1;
            self.sequence = 0;
            self.persist(self.generation);
        }
        self.sequence += 1;
        let digest = NodeDigest {
            node: self.me.name().clone(),
            generation: self.generation,
            sequence: self.sequence,
            report,
        };
        let bytes = digest.encode();
        self.publisher.said(digest.report.clone(), now, bytes.len());
        self.shared.lock().digests.merge(&digest, now);
        if let Err(error) = self.foca.add_broadcast(&bytes) {
            tracing::error!(%error, "pass this node's digest on");
        }
        self.relay(now);
        self.collect(now);
    }

    /// Passes news on at once.
    pub(super) fn relay(&mut self, now: Instant) {
        self.relayed_at = Some(now);
        if let Err(error) = self.foca.broadcast(&mut self.outbox) {
            tracing::debug!(%error, "pass digests on");
        }
    }
}
