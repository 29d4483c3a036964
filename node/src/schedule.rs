//! When to restore anew: cron lines in the machine's local time, and the loop that keeps to them.
#![deny(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, TimeDelta, TimeZone};
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::info;
use zdap_proto::name::ResourceName;

use crate::quantity;
use crate::resource::catalogue::Catalogue;

/// A cron line that was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// Not five fields.
    #[error(
        "`{0}` is not a schedule: five fields are needed (minute, hour, day, month, weekday), such as `45 4 * * *`, \
         or `@daily`"
    )]
    Fields(String),
    /// A field that makes no sense.
    #[error("`{text}` is not a schedule: {reason}")]
    Field {
        /// The line.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A time zone is given.
    #[error("`{0}` names a time zone; schedules are in the machine's local time")]
    Zone(String),
    /// A 30th of February.
    #[error("`{0}` never comes due")]
    Never(String),
}

/// When something is due.
///
/// Five cron fields, or `@yearly`, `@annually`, `@monthly`, `@weekly`, `@daily`, `@midnight`, `@hourly` or `@every 90m`:
/// what the original understood, but for time zones.
#[derive(Clone, PartialEq)]
pub struct Schedule {
    text: String,
    rule: Rule,
}

#[derive(Clone, PartialEq)]
enum Rule {
    Cron(Box<Cron>),
    Every(TimeDelta),
}

impl Schedule {
    /// Returns the first time after `after` at which it is due.
    ///
    /// Where clocks are put forward, a time of day that does not happen is due as soon as it would be over; where they
    /// are put back, one that happens twice is due the first time only. What recurs within the hour recurs in both.
    pub fn next_after<Tz: TimeZone>(&self, after: &DateTime<Tz>) -> Option<DateTime<Tz>> {
        match &self.rule {
            Rule::Cron(cron) => cron.find_next_occurrence(after, false).ok(),
            Rule::Every(interval) => after.clone().checked_add_signed(*interval),
        }
    }

    /// Returns the longest time from one time it is due to the next: three days for the mornings of workdays. It is looked
    /// for from a fixed day on, so that it is the same whenever it is asked for.
    pub fn longest_period(&self) -> Duration {
        match &self.rule {
            Rule::Every(interval) => interval.to_std().unwrap_or_default(),
            Rule::Cron(cron) => {
                let mut at = NaiveDateTime::default();
                let mut longest = TimeDelta::zero();
                for _ in 0..PERIODS {
                    let Ok(next) = cron.find_next_occurrence(&at, false) else {
                        break;
                    };
                    if at != NaiveDateTime::default() {
                        longest = longest.max(next - at);
                    }
                    at = next;
                }
                longest.to_std().unwrap_or_default()
            }
        }
    }
}

impl FromStr for Schedule {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        let text = text.trim().to_owned();
        let field = |reason: String| ScheduleError::Field {
            text: text.clone(),
            reason,
        };
        if text.starts_with("TZ=") || text.starts_with("CRON_TZ=") {
            return Err(ScheduleError::Zone(text));
        }
        if let Some(interval) = text.strip_prefix("@every ") {
            let interval = quantity::duration(interval).map_err(|error| field(error.to_string()))?;
            let interval = TimeDelta::from_std(interval).map_err(|error| field(error.to_string()))?;
            let rule = Rule::Every(interval);
            return Ok(Self { text, rule });
        }
        if text.split_whitespace().count() != 5 && !SHORTHANDS.contains(&text.to_lowercase().as_str()) {
            return Err(ScheduleError::Fields(text));
        }
        let cron = CronParser::builder()
            .seconds(Seconds::Disallowed)
            .year(Year::Disallowed)
            .sloppy_ranges(true)
            .build()
            .parse(&text.to_lowercase().replace("@midnight", "@daily"))
            .map_err(|error| field(error.to_string()))?;
        match cron.find_next_occurrence(&NaiveDateTime::default(), true) {
            Ok(_) => Ok(Self {
                text,
                rule: Rule::Cron(Box::new(cron)),
            }),
            Err(_) => Err(ScheduleError::Never(text)),
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Schedule({:?})", self.text)
    }
}

/// Calls `start_restore` for each resource of the catalogue when it is due, until the catalogue has no sender any more.
///
/// `clock` tells the local time. It is looked at once a minute at least, so a machine that slept or whose clock was set
/// is at most that late; a restore that was missed is started once, however often it was missed. `start_restore` must
/// not wait for the restore.
pub async fn run<Tz: TimeZone>(
    mut catalogue: watch::Receiver<Arc<Catalogue>>,
    clock: impl Fn() -> DateTime<Tz>,
    start_restore: impl Fn(ResourceName),
) {
    let mut planner = Planner::default();
    loop {
        let now = clock();
        let current = catalogue.borrow_and_update().clone();
        let schedules = current
            .resources
            .iter()
            .filter_map(|(name, resource)| Some((name, resource.cron.as_ref()?)));
        for resource in planner.due(schedules, &now) {
            info!(%resource, "restore is due");
            start_restore(resource);
        }
        if let Ok(Err(_)) = timeout(planner.wait(&now), catalogue.changed()).await {
            return;
        }
    }
}

/// What is due next, for each resource.
#[derive(Debug)]
struct Planner<Tz: TimeZone> {
    planned: BTreeMap<ResourceName, Planned<Tz>>,
    /// When it was last asked.
    asked: Option<DateTime<Tz>>,
}

#[derive(Debug)]
struct Planned<Tz: TimeZone> {
    schedule: Schedule,
    next: Option<DateTime<Tz>>,
}

impl<Tz: TimeZone> Default for Planner<Tz> {
    fn default() -> Self {
        Self {
            planned: BTreeMap::new(),
            asked: None,
        }
    }
}

impl<Tz: TimeZone> Planner<Tz> {
    /// Returns what is due now, and plans its next time. A schedule that is new, or has changed, is planned from now on.
    fn due<'a>(
        &mut self,
        schedules: impl Iterator<Item = (&'a ResourceName, &'a Schedule)>,
        now: &DateTime<Tz>,
    ) -> Vec<ResourceName> {
        // A clock that was far ahead has put every plan where it may never come due. A small correction has not, and
        // planning anew would start twice what has just been started.
        let was_set_back = self
            .asked
            .replace(now.clone())
            .is_some_and(|asked| asked.signed_duration_since(now.clone()) > SET_BACK);
        let mut previous = std::mem::take(&mut self.planned);
        let mut due = Vec::new();
        for (name, schedule) in schedules {
            let mut next = match previous.remove(name) {
                Some(planned) if planned.schedule == *schedule && !was_set_back => planned.next,
                Some(_) | None => schedule.next_after(now),
            };
            if next.as_ref().is_some_and(|next| next <= now) {
                due.push(name.clone());
                next = schedule.next_after(now);
            }
            let planned = Planned {
                schedule: schedule.clone(),
                next,
            };
            self.planned.insert(name.clone(), planned);
        }
        due
    }

    /// Returns how long nothing is due, up to a minute.
    fn wait(&self, now: &DateTime<Tz>) -> Duration {
        let until = |next: &DateTime<Tz>| next.clone().signed_duration_since(now.clone()).to_std();
        self.planned
            .values()
            .filter_map(|planned| planned.next.as_ref())
            // What lies in the past is due at once.
            .map(|next| until(next).unwrap_or_default())
            .min()
            .map_or(LONGEST_WAIT, |wait| wait.min(LONGEST_WAIT))
    }
}

/// Times that are looked at for the longest period: more than a week of what is due every ten minutes.
const PERIODS: usize = 1000;
const SHORTHANDS: &[&str] = &[
    "@yearly",
    "@annually",
    "@monthly",
    "@weekly",
    "@daily",
    "@midnight",
    "@hourly",
];
/// No sleep tells that the clock was set or the machine slept: look again after this.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Time services correct by less; more is a clock that was plainly wrong.
const SET_BACK: TimeDelta = TimeDelta::hours(1);

#[cfg(test)]
mod tests;
