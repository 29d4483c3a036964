//! When a node speaks of itself. Pure.

use std::time::{Duration, Instant};

use zdap_proto::digest::NodeReport;

use super::settings::publish_period;

/// What was said last and what is to be said.
#[derive(Debug, Default)]
pub(super) struct Publisher {
    noted: Option<Noted>,
    said: Option<Said>,
}

#[derive(Debug)]
struct Noted {
    report: NodeReport,
    at: Instant,
}

#[derive(Debug)]
struct Said {
    report: NodeReport,
    at: Instant,
    bytes: usize,
}

impl Publisher {
    /// Notes how the node is now.
    pub(super) fn set(&mut self, report: NodeReport, at: Instant) {
        self.noted = Some(Noted { report, at });
    }

    /// Notes that a report was said, in so many bytes.
    pub(super) fn said(&mut self, report: NodeReport, at: Instant, bytes: usize) {
        self.said = Some(Said { report, at, bytes });
    }

    /// Has the report said again at once.
    pub(super) fn repeat(&mut self) {
        self.said = None;
    }

    /// Returns the report, as it is to be said now.
    pub(super) fn wanted(&self, stale_after: Duration, now: Instant) -> Option<NodeReport> {
        let noted = self.noted.as_ref()?;
        let mut report = noted.report.clone();
        report.flags.stale |= noted.at + stale_after <= now;
        Some(report)
    }

    /// Returns when the report is to be said, in a cluster of `nodes`:
    /// - at once, if nothing was said yet;
    /// - if clones or reservations changed, or a figure by 5 % or more: [`publish_period`] after the last;
    /// - if a flag or the catalog changed: 1 s after the last, as these are rare and others act on them;
    /// - if no report is noted for `stale_after`: then, as stale.
    pub(super) fn due(&self, nodes: usize, stale_after: Duration, now: Instant) -> Option<Instant> {
        let noted = self.noted.as_ref()?;
        let wanted = self.wanted(stale_after, now)?;
        let Some(said) = &self.said else {
            return Some(now);
        };
        let change = match change(&said.report, &wanted) {
            Change::Small => None,
            Change::Large => Some(said.at + publish_period(nodes, said.bytes)),
            Change::Urgent => Some(said.at + Duration::from_secs(1)),
        };
        let stale = (!wanted.flags.stale).then_some(noted.at + stale_after);
        change.into_iter().chain(stale).min()
    }
}

/// How much two reports differ.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    Small,
    Large,
    Urgent,
}

fn change(from: &NodeReport, to: &NodeReport) -> Change {
    let is_twentieth =
        |from: u32, to: u32, of: u32| u64::from(from.abs_diff(to)) * 20 >= u64::from(of.max(1));
    if from.flags != to.flags
        || (from.catalog_version, from.catalog_hash) != (to.catalog_version, to.catalog_hash)
    {
        Change::Urgent
    } else if (from.clones, from.reservations) != (to.clones, to.reservations)
        || (from.pool_total_mib, from.memory_total_mib) != (to.pool_total_mib, to.memory_total_mib)
        || (from.protocol, from.software) != (to.protocol, to.software)
        || is_twentieth(from.pool_free_mib, to.pool_free_mib, to.pool_total_mib)
        || is_twentieth(from.memory_free_mib, to.memory_free_mib, to.memory_total_mib)
        || is_twentieth(from.load_percent.into(), to.load_percent.into(), 100)
    {
        Change::Large
    } else {
        Change::Small
    }
}

#[cfg(test)]
mod tests {
    use zdap_proto::digest::NodeFlags;

    use super::*;

    const STALE_AFTER: Duration = Duration::from_secs(90);

    fn report() -> NodeReport {
        NodeReport {
            pool_free_mib: 500,
            pool_total_mib: 1000,
            memory_free_mib: 500,
            memory_total_mib: 1000,
            ..NodeReport::default()
        }
    }

    /// Returns how long after `report()` was said `next` is due.
    #[expect(clippy::disallowed_methods, reason = "an instant can be had in no other way")]
    fn wait(nodes: usize, next: NodeReport) -> Duration {
        let start = Instant::now();
        let mut publisher = Publisher::default();
        assert_eq!(publisher.due(nodes, STALE_AFTER, start), None, "nothing to say");
        publisher.set(report(), start);
        assert_eq!(
            publisher.due(nodes, STALE_AFTER, start),
            Some(start),
            "nothing said yet"
        );
        publisher.said(report(), start, 60);
        publisher.set(next, start);
        publisher.due(nodes, STALE_AFTER, start).unwrap() - start
    }

    #[test]
    fn small_changes_are_not_said_and_large_ones_wait_for_their_turn() {
        let with = |edit: fn(&mut NodeReport)| {
            let mut next = report();
            edit(&mut next);
            next
        };
        assert_eq!(wait(10, report()), STALE_AFTER, "then that it is stale");
        assert_eq!(wait(10, with(|next| next.pool_free_mib += 49)), STALE_AFTER);
        assert_eq!(
            wait(10, with(|next| next.pool_free_mib += 50)),
            Duration::from_secs(1)
        );
        assert_eq!(
            wait(10, with(|next| next.load_percent += 5)),
            Duration::from_secs(1)
        );
        assert_eq!(wait(10, with(|next| next.clones += 1)), Duration::from_secs(1));
        assert_eq!(
            wait(1000, with(|next| next.clones += 1)),
            Duration::from_millis(1000 * 16 * 90 / 64)
        );
    }

    #[test]
    fn a_flag_or_a_new_catalog_goes_out_within_a_second_in_any_cluster() {
        let draining = NodeReport {
            flags: NodeFlags {
                draining: true,
                ..NodeFlags::default()
            },
            ..report()
        };
        let restored = NodeReport {
            catalog_version: 1,
            ..report()
        };
        assert_eq!(wait(1000, draining), Duration::from_secs(1));
        assert_eq!(wait(1000, restored), Duration::from_secs(1));
    }
}
