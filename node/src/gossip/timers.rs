//! What foca wants to be told later, in the order it wants it, however late the machine is.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use foca::Timer;

use super::peer::Peer;

/// foca's timers.
#[derive(Default)]
pub(super) struct Timers {
    queue: BinaryHeap<Reverse<Due>>,
    count: u64,
}

struct Due {
    at: Instant,
    /// Timers of one instant stay in the order they were set.
    number: u64,
    timer: Timer<Peer>,
}

impl Timers {
    /// Sets one.
    pub(super) fn set(&mut self, at: Instant, timer: Timer<Peer>) {
        self.count += 1;
        self.queue.push(Reverse(Due {
            at,
            number: self.count,
            timer,
        }));
    }

    /// Has all of them be due later.
    pub(super) fn put_off(&mut self, by: Duration) {
        let mut all = std::mem::take(&mut self.queue).into_vec();
        for Reverse(due) in &mut all {
            due.at += by;
        }
        self.queue = all.into();
    }

    /// Returns when the next is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.queue.peek().map(|Reverse(due)| due.at)
    }

    /// Returns the next that is due by `now`.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Timer<Peer>> {
        match self.next() {
            Some(at) if at <= now => self.queue.pop().map(|Reverse(due)| due.timer),
            Some(_) | None => None,
        }
    }
}

/// What due timers are ordered by; late ones of different instants are further put right by foca's own order.
impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, &self.timer, self.number).cmp(&(other.at, &other.timer, other.number))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Due {}
