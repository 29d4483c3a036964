//! When a node speaks of itself. Pure.

use std::time::{Duration, Instant};

use zdap_proto::digest::NodeReport;

use super::settings::publish_period;

/// What was said last and what is to be said.
#[derive(Debug, Default)]
pub(super) struct Publisher {
    wanted: Option<NodeReport>,
    said: Option<Said>,
}

#[derive(Debug)]
struct Said {
    report: NodeReport,
    at: Instant,
    bytes: usize,
}

impl Publisher {
    /// Notes how the node is now.
    pub(super) fn set(&mut self, report: NodeReport) {
        self.wanted = Some(report);
    }

    /// Notes that the report was said, in so many bytes.
    pub(super) fn said(&mut self, at: Instant, bytes: usize) {
        self.said = self.wanted.clone().map(|report| Said { report, at, bytes });
    }

    /// Has the report said again at once.
    pub(super) fn repeat(&mut self) {
        self.said = None;
    }

    /// Returns the report.
    pub(super) fn wanted(&self) -> Option<&NodeReport> {
        self.wanted.as_ref()
    }

    /// Returns when the report is to be said, in a cluster of `nodes`:
    /// - at once, if nothing was said yet;
    /// - if clones or reservations changed, or a figure by 5 % or more: [`publish_period`] after the last;
    /// - if a flag or the catalog changed: 1 s after the last, as these are rare and others act on them;
    /// - in any case `refresh` after the last.
    pub(super) fn due(&self, nodes: usize, refresh: Duration, now: Instant) -> Option<Instant> {
        let wanted = self.wanted.as_ref()?;
        let Some(said) = &self.said else {
            return Some(now);
        };
        let wait = match change(&said.report, wanted) {
            Change::Small => refresh,
            Change::Large => publish_period(nodes, said.bytes).min(refresh),
            Change::Urgent => Duration::from_secs(1),
        };
        Some(said.at + wait)
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

    const REFRESH: Duration = Duration::from_secs(30);

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
        assert_eq!(publisher.due(nodes, REFRESH, start), None, "nothing to say");
        publisher.set(report());
        assert_eq!(
            publisher.due(nodes, REFRESH, start),
            Some(start),
            "nothing said yet"
        );
        publisher.said(start, 60);
        publisher.set(next);
        publisher.due(nodes, REFRESH, start).unwrap() - start
    }

    #[test]
    fn small_changes_wait_for_the_refresh_and_large_ones_for_their_turn() {
        let with = |edit: fn(&mut NodeReport)| {
            let mut next = report();
            edit(&mut next);
            next
        };
        assert_eq!(wait(10, report()), REFRESH);
        assert_eq!(wait(10, with(|next| next.pool_free_mib += 49)), REFRESH);
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
