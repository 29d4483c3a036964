use chrono::{FixedOffset, MappedLocalTime, NaiveDate, Utc};
use tokio::time::Instant;

use super::*;

/// Central European time in 2026: an hour forward on March 29 at 2:00, an hour back on October 25 at 3:00.
#[derive(Debug, Clone, Copy)]
struct CentralEurope;

impl TimeZone for CentralEurope {
    type Offset = FixedOffset;

    fn from_offset(_: &FixedOffset) -> Self {
        Self
    }

    fn offset_from_local_date(&self, local: &NaiveDate) -> MappedLocalTime<FixedOffset> {
        self.offset_from_local_datetime(&local.and_hms_opt(0, 0, 0).unwrap())
    }

    fn offset_from_local_datetime(&self, local: &NaiveDateTime) -> MappedLocalTime<FixedOffset> {
        let candidates = [hours(2), hours(1)];
        let fits = |offset: &&FixedOffset| self.offset_from_utc_datetime(&(*local - **offset)) == **offset;
        let mut fitting = candidates.iter().filter(fits);
        match (fitting.next(), fitting.next()) {
            (Some(earlier), Some(later)) => MappedLocalTime::Ambiguous(*earlier, *later),
            (Some(only), None) => MappedLocalTime::Single(*only),
            (None, _) => MappedLocalTime::None,
        }
    }

    fn offset_from_utc_date(&self, utc: &NaiveDate) -> FixedOffset {
        self.offset_from_utc_datetime(&utc.and_hms_opt(0, 0, 0).unwrap())
    }

    fn offset_from_utc_datetime(&self, utc: &NaiveDateTime) -> FixedOffset {
        let change = |month, day| {
            NaiveDate::from_ymd_opt(2026, month, day)
                .unwrap()
                .and_hms_opt(1, 0, 0)
                .unwrap()
        };
        match (change(3, 29)..change(10, 25)).contains(utc) {
            true => hours(2),
            false => hours(1),
        }
    }
}

fn hours(hours: i32) -> FixedOffset {
    FixedOffset::east_opt(hours * 3600).unwrap()
}

fn time(text: &str) -> DateTime<CentralEurope> {
    DateTime::parse_from_rfc3339(text)
        .unwrap()
        .with_timezone(&CentralEurope)
}

fn schedule(text: &str) -> Schedule {
    text.parse().unwrap()
}

fn following(text: &str, after: &str, count: usize) -> Vec<String> {
    let schedule = schedule(text);
    let mut times = Vec::new();
    let mut now = time(after);
    for _ in 0..count {
        now = schedule.next_after(&now).unwrap();
        times.push(now.to_rfc3339());
    }
    times
}

#[test]
fn a_nightly_time_is_due_every_night_in_local_time() {
    assert_eq!(
        following("45 4 * * *", "2026-03-27T12:00:00+01:00", 3),
        [
            "2026-03-28T04:45:00+01:00",
            "2026-03-29T04:45:00+02:00",
            "2026-03-30T04:45:00+02:00"
        ]
    );
}

#[test]
fn a_time_that_the_spring_leaves_out_is_due_once_when_it_would_be_over() {
    assert_eq!(
        following("30 2 * * *", "2026-03-28T12:00:00+01:00", 2),
        ["2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"]
    );
}

#[test]
fn a_time_that_the_autumn_repeats_is_due_once() {
    assert_eq!(
        following("30 2 * * *", "2026-10-24T12:00:00+02:00", 2),
        ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"]
    );
}

#[test]
fn what_the_original_understood_is_understood() {
    for text in [
        "15 6 * * *",
        "*/15 * * * *",
        "0 4 * * MON-FRI",
        "0 4 1,15 jan-jun ?",
        "5/10 * * * *",
        "@daily",
        "@midnight",
        "@Hourly",
        "@weekly",
        "@monthly",
        "@yearly",
        "@annually",
        "@every 90m",
        " 0 0 29 2 * ",
    ] {
        assert!(text.parse::<Schedule>().is_ok(), "{text}");
    }
    assert_eq!(
        following("@every 1h30m", "2026-03-28T12:00:00+01:00", 1),
        ["2026-03-28T13:30:00+01:00"]
    );
    assert_eq!(
        following("@midnight", "2026-03-28T12:00:00+01:00", 1),
        ["2026-03-29T00:00:00+01:00"]
    );
}

#[test]
fn a_line_that_is_no_schedule_is_refused_with_the_reason() {
    let error = |text: &str| text.parse::<Schedule>().unwrap_err();
    for text in ["", "* * * *", "0 45 4 * * *", "@dayly", "@reboot", "daily"] {
        assert_eq!(error(text), ScheduleError::Fields(text.to_owned()));
    }
    for text in [
        "61 * * * *",
        "x * * * *",
        "* 24 * * *",
        "* * 0 * *",
        "*/0 * * * *",
        "@every soon",
        "@every 0s",
    ] {
        assert!(matches!(error(text), ScheduleError::Field { .. }), "{text}");
    }
    assert_eq!(error("0 0 30 2 *"), ScheduleError::Never("0 0 30 2 *".to_owned()));
    let zoned = "TZ=Europe/Stockholm 45 4 * * *";
    assert_eq!(error(zoned), ScheduleError::Zone(zoned.to_owned()));
}

fn orders() -> ResourceName {
    "orders".parse().unwrap()
}

#[test]
fn a_time_missed_while_the_machine_slept_is_made_up_for_once() {
    let (name, hourly) = (orders(), schedule("0 * * * *"));
    let mut planner = Planner::default();
    let mut due = |now: &str| planner.due([(&name, &hourly)].into_iter(), &time(now)).len();
    assert_eq!(due("2026-05-01T10:30:00+02:00"), 0);
    assert_eq!(due("2026-05-03T17:20:00+02:00"), 1);
    assert_eq!(due("2026-05-03T17:20:01+02:00"), 0);
    assert_eq!(due("2026-05-03T18:00:00+02:00"), 1);
}

#[test]
fn a_small_correction_of_the_clock_starts_nothing_twice() {
    let (name, nightly) = (orders(), schedule("45 4 * * *"));
    let mut planner = Planner::default();
    let mut due = |now: &str| planner.due([(&name, &nightly)].into_iter(), &time(now)).len();
    assert_eq!(due("2026-05-01T04:44:00+02:00"), 0);
    assert_eq!(due("2026-05-01T04:45:00+02:00"), 1);
    assert_eq!(due("2026-05-01T04:44:59+02:00"), 0);
    assert_eq!(due("2026-05-01T04:45:00+02:00"), 0);
}

#[test]
fn plans_made_by_a_clock_that_was_years_ahead_are_made_anew() {
    let (name, nightly) = (orders(), schedule("45 4 * * *"));
    let mut planner = Planner::default();
    let mut due = |now: &str| planner.due([(&name, &nightly)].into_iter(), &time(now)).len();
    assert_eq!(due("2036-05-01T12:00:00+01:00"), 0);
    assert_eq!(due("2026-05-01T12:00:00+02:00"), 0);
    assert_eq!(due("2026-05-02T04:45:00+02:00"), 1);
}

#[test]
fn a_changed_schedule_is_planned_from_now_on() {
    let name = orders();
    let (early, late) = (schedule("0 3 * * *"), schedule("0 5 * * *"));
    let mut planner = Planner::default();
    let mut due =
        |schedule: &Schedule, now: &str| planner.due([(&name, schedule)].into_iter(), &time(now)).len();
    assert_eq!(due(&early, "2026-05-01T02:00:00+02:00"), 0);
    assert_eq!(due(&late, "2026-05-01T04:00:00+02:00"), 0);
    assert_eq!(due(&late, "2026-05-01T05:00:00+02:00"), 1);
}

#[test]
fn the_clock_is_looked_at_each_minute_and_in_time_for_what_is_due() {
    let (name, nightly) = (orders(), schedule("45 4 * * *"));
    let mut planner = Planner::default();
    let mut wait = |now: &str| {
        planner.due([(&name, &nightly)].into_iter(), &time(now));
        planner.wait(&time(now)).as_secs()
    };
    assert_eq!(wait("2026-05-01T02:00:00+02:00"), 60);
    assert_eq!(wait("2026-05-01T04:44:50+02:00"), 10);
    assert_eq!(
        Planner::default().wait(&time("2026-05-01T02:00:00+02:00")),
        LONGEST_WAIT
    );
}

#[tokio::test(start_paused = true)]
async fn the_loop_starts_each_restore_in_time_and_follows_the_catalogue() {
    let directory = tempfile::tempdir().unwrap();
    let read = |cron: &str| {
        crate::resource::testing::resource_file(
            directory.path(),
            "a.resource.yml",
            &format!("orders\ncron: {cron}"),
        );
        Arc::new(Catalogue::read(directory.path(), &Catalogue::default()))
    };
    let begin = Instant::now();
    let clock = move || {
        DateTime::<Utc>::from_timestamp(1_800_000_000, 0).unwrap()
            + TimeDelta::from_std(begin.elapsed()).unwrap()
    };
    let (sender, receiver) = watch::channel(read("'@every 90m'"));
    let (told, mut starts) = tokio::sync::mpsc::unbounded_channel();
    let watched = run(receiver, clock, |resource| {
        let minutes = begin.elapsed().as_secs() / 60;
        told.send((resource.to_string(), minutes)).unwrap();
    });
    let script = async {
        let mut minutes = Vec::new();
        for change in [None, Some("'@every 10m'"), None] {
            let (resource, minute) = starts.recv().await.unwrap();
            assert_eq!(resource, "orders");
            minutes.push(minute);
            if let Some(cron) = change {
                sender.send(read(cron)).unwrap();
            }
        }
        drop(sender);
        minutes
    };
    let ((), minutes) = tokio::join!(watched, script);
    assert_eq!(minutes, [90, 180, 190]);
}

#[test]
fn the_longest_period_of_a_schedule_is_that_over_a_night_or_a_weekend() {
    let hours = |text: &str| text.parse::<Schedule>().unwrap().longest_period().as_secs_f64() / 3600.0;
    assert_eq!(hours("45 4 * * *"), 24.0);
    assert_eq!(hours("45 4 * * 1-5"), 72.0);
    assert_eq!(hours("*/10 9-17 * * *"), 15.0 + 10.0 / 60.0);
    assert_eq!(hours("@every 90m"), 1.5);
    assert_eq!(hours("@monthly"), 31.0 * 24.0);
}
