//! What a node that is late makes of it: it gives the others as much longer. Whoever is quick finds a crash meanwhile.
//!
//! A node that has to wait for its processor reads answers late. If it then thought that they never came it would suspect the
//! healthy, and that news is work for all: on a few slow processors a large cluster does not find back from it. Lifeguard
//! (arXiv 1707.00788) lets such a node wait longer before it suspects, by how many of its probes have failed. Here it waits
//! longer by how late its own timers are, which it knows before it has suspected anybody.

use std::time::{Duration, Instant};

use super::{Deadlines, Gossip};

/// What was allowed for, once anything was.
#[derive(Debug, Clone, Copy)]
pub(super) enum Allowed {
    /// So much lateness; what was put off for it has not been handled since.
    PutOff(Duration),
    /// So much; what is due is handled again, and until then however late.
    Handling(Duration, Instant),
}

impl Gossip {
    /// Puts off what is due, if foca's timers come late: by that much, and by what an answer that is on its way may need longer.
    ///
    /// Once for each probe, or a node that is always late would find nobody dead for long; and not again before what was put
    /// off is handled, or it would do nothing at all. Unless it is far later than it was: then it has stood still since.
    pub(super) fn allow_for_lateness(&mut self, now: Instant) {
        let due = self.timers.next();
        let Some(late) = due.and_then(|due| now.checked_duration_since(due)) else {
            return;
        };
        let probe_period = self.settings.probe_period;
        let beyond = late.saturating_sub(probe_period / (OTHER_WAITS + 1));
        match self.allowed {
            Some(Allowed::PutOff(before)) if beyond <= before * 2 => {
                let until = now + probe_period.saturating_sub(self.settings.probe_rtt);
                self.allowed = Some(Allowed::Handling(before, until));
            }
            Some(Allowed::Handling(before, until)) if now < until && beyond <= before * 2 => {}
            Some(_) | None if beyond.is_zero() => {}
            Some(_) | None => {
                self.put_off(late + (beyond * OTHER_WAITS).min(MOST_ALLOWED));
                self.allowed = Some(Allowed::PutOff(beyond));
            }
        }
    }

    /// With what would suspect others goes what makes work for them: they may be as late.
    fn put_off(&mut self, by: Duration) {
        self.timers.put_off(by);
        for doubt in self.doubts.values_mut() {
            doubt.put_off(by);
        }
        let Deadlines {
            knock,
            exchange,
            relay,
            doubt,
            reconcile,
            // That this node is well, and how, is said as soon as it can.
            publish: _,
            renew: _,
        } = &mut self.next;
        for at in [knock, exchange, relay, doubt, reconcile].into_iter().flatten() {
            *at += by;
        }
    }
}

/// An answer waits for a processor not only where it is read: for the gossip, the connection and the socket of this node and
/// of the other, which may be as slow, there and back. As long as that fits into the period of a probe, late is early enough.
const OTHER_WAITS: u32 = 6;

/// What was stopped for long is quick again after it.
const MOST_ALLOWED: Duration = Duration::from_secs(1);
