//! The numbers of the gossip, with their reasons.

use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use foca::{Config, PeriodicParams};

use super::packet::MAX_SWIM_BYTES;

/// How often and how much. The defaults are for one site; between distant ones `probe_rtt` must exceed the worst round
/// trip, that of a new connection included.
#[derive(Debug, Clone)]
pub struct Settings {
    /// One member is probed this often. Less than half of what others use: a crash shows in a second instead of two, and an
    /// idle node sends less than 500 bytes a second, QUIC's acknowledgements left out.
    pub probe_period: Duration,
    /// An answer that takes longer is asked for through others.
    pub probe_rtt: Duration,
    /// News goes on to three members this often. How many bytes an update costs depends on how often each node repeats it
    /// and not on this, so short is free.
    pub gossip_period: Duration,
    /// News of a digest goes on after this delay, to others that came in with it, ...
    pub relay_delay: Duration,
    /// ... and at most this often: under load the packets are full anyway.
    pub relay_period: Duration,
    /// Two nodes compare all they know this often: the repair for what packets lost ...
    pub exchange_period: Duration,
    /// ... and this long after a member came or went: by then the news has come round, but for the few it missed.
    pub settling_time: Duration,
    /// A node that takes no figures of itself for so long says that its digest is stale. What stays the same is never said
    /// again, as that would be most of what an idle cluster sends: whoever missed it has it from the next exchange.
    pub stale_after: Duration,
    /// Addresses that are not members are tried this often, for a cluster that has split for good ...
    pub knock_period: Duration,
    /// ... and this often while there is no member at all.
    pub lonely_knock_period: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            probe_period: Duration::from_millis(400),
            probe_rtt: Duration::from_millis(150),
            gossip_period: Duration::from_millis(50),
            relay_delay: Duration::from_millis(5),
            relay_period: Duration::from_millis(50),
            exchange_period: Duration::from_secs(5),
            settling_time: Duration::from_secs(1),
            stale_after: Duration::from_secs(90),
            knock_period: Duration::from_secs(30),
            lonely_knock_period: Duration::from_secs(2),
        }
    }
}

impl Settings {
    /// Returns foca's settings for a cluster of `nodes`.
    pub(super) fn swim(&self, nodes: usize) -> Config {
        let every = |frequency, members| {
            Some(PeriodicParams {
                frequency,
                num_members: members,
            })
        };
        Config {
            probe_period: self.probe_period,
            probe_rtt: self.probe_rtt,
            // Five of a hundred packets lost, twenty of a hundred: four ways round make a false suspicion rare.
            num_indirect_probes: FOUR,
            max_transmissions: transmissions(nodes),
            suspect_to_down_after: suspicion(nodes),
            remove_down_after: Some(super::digests::KEPT),
            max_packet_size: const { NonZeroUsize::new(MAX_SWIM_BYTES).unwrap() },
            notify_down_members: true,
            // The exchanges tell a node of members it misses, all at once.
            periodic_announce: None,
            // This heals a split: what was thought lost is asked every 5 s.
            periodic_announce_to_down_members: every(Duration::from_secs(5), TWO),
            periodic_gossip: every(self.gossip_period, THREE),
        }
    }
}

/// Returns how often each node repeats an update: with 4 for each decade of nodes practically none is missed. With 4
/// for fewer than ten nodes one in twelve would be.
pub(super) fn transmissions(nodes: usize) -> NonZeroU8 {
    let decades = (nodes.checked_ilog10().unwrap_or(0) + 1).max(2);
    u8::try_from(4 * decades)
        .ok()
        .and_then(NonZeroU8::new)
        .unwrap_or(NonZeroU8::MAX)
}

/// Returns how long a suspect has to speak up: 3 s for each decade of nodes, as news takes longer to come round.
pub(super) fn suspicion(nodes: usize) -> Duration {
    #[expect(clippy::cast_precision_loss, reason = "no cluster has 2^52 nodes")]
    let decades = (nodes as f64).log10();
    Duration::from_secs_f64(3.0 * decades.max(1.0))
}

/// Returns the shortest time between two digests of a node of a cluster of `nodes`, if each had one of `bytes` to say that
/// often: their packets stay under 64 KB/s at every node.
pub(super) fn publish_period(nodes: usize, bytes: usize) -> Duration {
    /// The digest's share of its packet's header.
    const HEADER_SHARE: usize = 30;
    let each_round = nodes * usize::from(transmissions(nodes).get()) * (bytes + HEADER_SHARE);
    Duration::from_millis((each_round / 64) as u64).max(Duration::from_secs(1))
}

const TWO: NonZeroUsize = NonZeroUsize::new(2).unwrap();
const THREE: NonZeroUsize = NonZeroUsize::new(3).unwrap();
const FOUR: NonZeroUsize = NonZeroUsize::new(4).unwrap();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn larger_clusters_repeat_more_wait_longer_and_say_less() {
        assert_eq!(
            [10, 99, 100, 1000].map(|nodes| transmissions(nodes).get()),
            [8, 8, 12, 16]
        );
        assert_eq!(
            [1, 10, 100, 1000].map(|nodes| suspicion(nodes).as_secs()),
            [3, 3, 6, 9]
        );
        assert_eq!(
            [10, 100, 1000].map(|nodes| publish_period(nodes, 128).as_secs()),
            [1, 2, 39]
        );
    }
}
