//! When a problem of the standby is logged, and how long the primary answers after a read from the standby has failed.

use std::time::Duration;

use tokio::time::Instant;

/// Number of failed checks before a problem is logged: two seconds. A restart of the standby, or of this process, is shorter.
const FAILED_CHECKS: u32 = 4;

/// The shortest time between two log lines about different problems.
const REPEAT_AFTER: Duration = Duration::from_secs(60);

/// The time during which the primary answers after the first failed read, and the longest one. It doubles with each failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A failure is the first one again if the last one is longer ago than this.
const FORGET_AFTER: Duration = Duration::from_secs(300);

/// What was logged.
#[derive(Debug, Default)]
pub(super) struct Report {
    failed_checks: u32,
    /// The problem that was logged last, or `None` for its end.
    logged: Option<(Option<String>, Instant)>,
}

impl Report {
    /// Returns whether the result of a check must be logged.
    pub(super) fn is_due(&mut self, problem: Option<&str>, now: Instant) -> bool {
        self.failed_checks = if problem.is_some() { self.failed_checks.saturating_add(1) } else { 0 };
        let is_new = match &self.logged {
            None => true,
            Some((logged, _)) if logged.is_some() != problem.is_some() => true,
            Some((logged, at)) => logged.as_deref() != problem && now.duration_since(*at) >= REPEAT_AFTER,
        };
        let is_due = is_new && (problem.is_none() || self.failed_checks >= FAILED_CHECKS);
        if is_due {
            self.logged = Some((problem.map(str::to_owned), now));
        }
        is_due
    }
}

/// Reads from the standby that have failed.
#[derive(Debug, Default)]
pub(super) struct ReadFailures {
    count: u32,
    last: Option<(String, Instant)>,
}

impl ReadFailures {
    /// Records a failure.
    pub(super) fn note(&mut self, why: String, now: Instant) {
        if self.current(now).is_some() {
            // A read that began before the last failure.
            return;
        }
        let is_repeated = self.last.as_ref().is_some_and(|(_, at)| now.duration_since(*at) < FORGET_AFTER);
        self.count = if is_repeated { self.count.saturating_add(1) } else { 0 };
        self.last = Some((why, now));
    }

    /// Returns the last failure, if the primary must still answer because of it.
    pub(super) fn current(&self, now: Instant) -> Option<&str> {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.count.min(6)).min(LONGEST_PAUSE);
        self.last.as_ref().filter(|(_, at)| now.duration_since(*at) < pause).map(|(why, _)| why.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_each_failed_read_the_primary_answers_longer_up_to_a_minute() {
        let (mut failures, mut now) = (ReadFailures::default(), Instant::now());
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            failures.note("it failed".to_owned(), now);
            failures.note("it failed again, in a request that began earlier".to_owned(), now);
            now += Duration::from_secs(seconds);
            assert_eq!(failures.current(now - Duration::from_millis(1)), Some("it failed"));
            assert_eq!(failures.current(now), None, "{seconds}");
        }
        now += FORGET_AFTER;
        failures.note("it failed".to_owned(), now);
        assert_eq!(failures.current(now + FIRST_PAUSE), None);
    }

    #[test]
    fn a_problem_is_logged_once_after_two_seconds_and_another_one_after_a_minute() {
        let (mut report, now) = (Report::default(), Instant::now());
        assert_eq!([(); 4].map(|()| report.is_due(Some("down"), now)), [false, false, false, true]);
        assert!(!report.is_due(Some("down"), now) && !report.is_due(Some("behind"), now));
        let later = now + REPEAT_AFTER;
        assert!(!report.is_due(Some("down"), later) && report.is_due(Some("behind"), later));
        assert!(!report.is_due(Some("behind"), later));
        assert!(report.is_due(None, later) && !report.is_due(None, later));
        assert_eq!([(); 3].map(|()| report.is_due(Some("down"), later)), [false; 3]);
        assert!(!report.is_due(None, later), "it was too short to be logged");
    }
}
