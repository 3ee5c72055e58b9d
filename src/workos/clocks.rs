//! Determines when WorkOS answered: checks the `Date` header of a response against our clock and the database's clock.

use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use crate::domain::clock::Clock;
use crate::domain::timestamp::Timestamp;

/// A `Date` header is used if it differs from our clock or from the database's clock by at most this many seconds. Synchronized
/// clocks agree within seconds. An error of half an hour does no harm, because a replaced cursor of the Events API goes back an
/// hour.
pub(crate) const DATE_TOLERANCE: i64 = 30 * 60;

/// The time at which WorkOS answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answered {
    pub(super) at: Timestamp,
    /// See [`Page::latest`](super::api::Page::latest).
    pub(super) latest: Timestamp,
}

/// Our clock and the database's clock.
#[derive(Debug)]
pub(super) struct Clocks {
    clock: Clock,
    second: Mutex<SecondClock>,
}

/// The database's clock, and whether the last date was rejected.
#[derive(Debug, Default)]
struct SecondClock {
    /// The last known time of this clock, and when it was read.
    noted: Option<(Timestamp, Instant)>,
    /// The last date was rejected. Only the first rejection in a row is logged.
    is_rejecting: bool,
}

impl Clocks {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, second: Mutex::default() }
    }

    /// Returns the current time of our clock.
    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Returns the seconds by which our clock is ahead of `date`.
    pub(super) fn ahead_of(&self, date: Timestamp) -> i64 {
        self.clock.now().unix_seconds() - date.unix_seconds()
    }

    /// Records the current time of the second clock.
    pub(super) fn note_second(&self, now: Timestamp) {
        self.second.lock().unwrap_or_else(PoisonError::into_inner).noted = Some((now, Instant::now()));
    }

    /// Returns when WorkOS answered. `date` is the response's `Date` header.
    pub(super) fn answered(&self, date: Option<Timestamp>) -> Answered {
        let ours = self.clock.now();
        let mut second_clock = self.second.lock().unwrap_or_else(PoisonError::into_inner);
        let since = |noted_at: Instant| i64::try_from(noted_at.elapsed().as_micros()).unwrap_or(i64::MAX);
        let theirs = second_clock.noted.map(|(then, noted_at)| then.plus_micros(since(noted_at)));
        let answered = judge(date, ours, theirs);
        let is_rejecting = date.is_some_and(|date| date != answered.at);
        if is_rejecting && !second_clock.is_rejecting {
            tracing::error!(
                date = ?date.map(|date| date.to_string()),
                clock = %ours,
                database_clock = ?theirs.map(|clock| clock.to_string()),
                "the Date header of WorkOS's response differs from our clocks by more than 30 minutes and is ignored; check the \
                 clocks of this machine and of the database, and the proxies between the service and WorkOS"
            );
        }
        second_clock.is_rejecting = is_rejecting;
        answered
    }
}

/// Uses the date if one of our clocks agrees with it. If not, uses the earlier of our clocks, if they agree with each other. If no
/// two of the three agree, uses the earliest, so that a snapshot is never ordered after events that it does not contain.
fn judge(date: Option<Timestamp>, ours: Timestamp, theirs: Option<Timestamp>) -> Answered {
    let agree = |one: Timestamp, other: Timestamp| (one.unix_seconds() - other.unix_seconds()).abs() <= DATE_TOLERANCE;
    let confirmed = date.filter(|date| agree(*date, ours) || theirs.is_some_and(|theirs| agree(*date, theirs)));
    let agreed = theirs.filter(|theirs| agree(*theirs, ours)).map(|theirs| theirs.min(ours));
    let clocks = [date, Some(ours), theirs];
    let earliest = clocks.iter().flatten().copied().min().unwrap_or(ours);
    let latest = clocks.iter().flatten().filter(|clock| confirmed.is_some() || date != Some(**clock)).copied().max();
    Answered { at: confirmed.or(agreed).unwrap_or(earliest), latest: latest.unwrap_or(ours) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_of_three_clocks_decide_or_else_the_earliest() {
        let at = |hour: i64| Timestamp::from_unix_micros(hour * 3_600_000_000);
        for (date, ours, theirs, expected, latest) in [
            (Some(10), 10, Some(10), 10, 10),
            // One clock is wrong.
            (Some(99), 10, Some(10), 10, 10),
            (Some(1), 10, Some(10), 10, 10),
            (Some(10), 99, Some(10), 10, 99),
            (Some(10), 1, Some(10), 10, 10),
            (Some(10), 10, Some(99), 10, 99),
            // No two agree.
            (Some(10), 50, Some(99), 10, 99),
            (Some(99), 50, Some(10), 10, 50),
            (None, 50, Some(10), 10, 50),
            // The database's clock is not known yet.
            (Some(10), 10, None, 10, 10),
            (Some(99), 10, None, 10, 10),
            (None, 10, None, 10, 10),
        ] {
            let judged = judge(date.map(at), at(ours), theirs.map(at));
            assert_eq!(judged, Answered { at: at(expected), latest: at(latest) }, "{date:?} {ours} {theirs:?}");
        }
    }
}
