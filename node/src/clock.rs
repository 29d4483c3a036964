//! What time of day it is: the machine's, or that of a simulation.
//!
//! What is waited for goes by tokio's clock, which a simulation pauses; this one goes along with it there. The dates of
//! certificates are checked by the machine's clock always, since TLS reads no other.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::Instant;

/// Tells the time of day. Clones tell the same.
#[derive(Debug, Clone, Default)]
pub enum Clock {
    /// The machine's.
    #[default]
    Machine,
    /// A simulation's.
    Simulated(Arc<Simulated>),
}

/// A clock that goes along with tokio's, and can be put wrong.
#[derive(Debug)]
pub struct Simulated {
    began: Instant,
    at: DateTime<Utc>,
    milliseconds_ahead: AtomicI64,
}

impl Clock {
    /// Returns a clock that shows `at` now.
    pub fn simulated(at: DateTime<Utc>) -> Self {
        Self::Simulated(Arc::new(Simulated {
            began: Instant::now(),
            at,
            milliseconds_ahead: AtomicI64::new(0),
        }))
    }

    /// Returns the time.
    pub fn now(&self) -> DateTime<Utc> {
        match self {
            Self::Machine => Utc::now(),
            Self::Simulated(simulated) => simulated.now(),
        }
    }

    /// Puts a simulated clock forward, or back. The machine's is not ours to set.
    pub fn step(&self, by: TimeDelta) {
        if let Self::Simulated(simulated) = self {
            let ahead = &simulated.milliseconds_ahead;
            ahead.fetch_add(by.num_milliseconds(), Ordering::Relaxed);
        }
    }
}

impl Simulated {
    fn now(&self) -> DateTime<Utc> {
        let passed = TimeDelta::from_std(self.began.elapsed()).unwrap_or(TimeDelta::MAX);
        let ahead = TimeDelta::milliseconds(self.milliseconds_ahead.load(Ordering::Relaxed));
        self.at
            .checked_add_signed(passed + ahead)
            .unwrap_or(DateTime::<Utc>::MAX_UTC)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_simulated_clock_goes_along_with_the_paused_one_and_can_be_put_wrong() {
        let at: DateTime<Utc> = "2026-11-22T12:00:00Z".parse().unwrap();
        let clock = Clock::simulated(at);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(clock.now(), at + TimeDelta::seconds(60));
        clock.clone().step(TimeDelta::seconds(-90));
        assert_eq!(clock.now(), at - TimeDelta::seconds(30));
    }
}
