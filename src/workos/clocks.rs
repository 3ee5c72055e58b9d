//! When WorkOS answered: judges the `Date` header of an answer by our clock and by the database's.

use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use crate::domain::clock::Clock;
use crate::domain::timestamp::Timestamp;

/// A `Date` header counts when it is no farther than this from one of two clocks: ours and the database's. Clocks that are
/// kept in time agree to within seconds, and what half an hour can falsify is read again: whoever replaces a position in the
/// Events API goes back an hour. Seconds.
pub(crate) const DATE_TOLERANCE: i64 = 30 * 60;

/// When WorkOS answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answered {
    pub(super) at: Timestamp,
    /// See [`Page::latest`](super::api::Page::latest).
    pub(super) latest: Timestamp,
}

/// Our clock and the database's.
#[derive(Debug)]
pub(super) struct Clocks {
    clock: Clock,
    second: Mutex<SecondClock>,
}

/// Another clock than ours, to judge dates by.
#[derive(Debug, Default)]
struct SecondClock {
    /// What it said, and when that was.
    noted: Option<(Timestamp, Instant)>,
    /// The last date was refused; told once.
    refuses: bool,
}

impl Clocks {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, second: Mutex::default() }
    }

    /// Records what the second clock says now.
    pub(super) fn note_second(&self, now: Timestamp) {
        self.second.lock().unwrap_or_else(PoisonError::into_inner).noted = Some((now, Instant::now()));
    }

    /// When WorkOS answered, judged by the clocks.
    pub(super) fn answered(&self, date: Option<Timestamp>) -> Answered {
        let ours = self.clock.now();
        let mut second_clock = self.second.lock().unwrap_or_else(PoisonError::into_inner);
        let since = |noted_at: Instant| i64::try_from(noted_at.elapsed().as_micros()).unwrap_or(i64::MAX);
        let theirs = second_clock.noted.map(|(then, noted_at)| then.plus_micros(since(noted_at)));
        let answered = judge(date, ours, theirs);
        let refuses = date.is_some_and(|date| date != answered.at);
        if refuses && !second_clock.refuses {
            tracing::error!(
                date = ?date.map(|date| date.to_string()),
                clock = %ours,
                database_clock = ?theirs.map(|clock| clock.to_string()),
                "the Date header of WorkOS's answer is more than 30 minutes from our clocks and is ignored; check the clocks, \
                 and the proxies between here and WorkOS"
            );
        }
        second_clock.refuses = refuses;
        answered
    }
}

/// A date counts when one of our clocks confirms it. Otherwise our clocks count, if they confirm each other; and where no two
/// of the three agree, the earliest, so that nothing is claimed to be known which may not be.
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
    fn two_of_three_clocks_decide_and_else_the_earliest() {
        let at = |hour: i64| Timestamp::from_unix_micros(hour * 3_600_000_000);
        for (date, ours, theirs, expected, latest) in [
            (Some(10), 10, Some(10), 10, 10),
            // One is wrong.
            (Some(99), 10, Some(10), 10, 10),
            (Some(1), 10, Some(10), 10, 10),
            (Some(10), 99, Some(10), 10, 99),
            (Some(10), 1, Some(10), 10, 10),
            (Some(10), 10, Some(99), 10, 99),
            // No two agree.
            (Some(10), 50, Some(99), 10, 99),
            (Some(99), 50, Some(10), 10, 50),
            (None, 50, Some(10), 10, 50),
            // The database's is not known yet.
            (Some(10), 10, None, 10, 10),
            (Some(99), 10, None, 10, 10),
            (None, 10, None, 10, 10),
        ] {
            let judged = judge(date.map(at), at(ours), theirs.map(at));
            assert_eq!(judged, Answered { at: at(expected), latest: at(latest) }, "{date:?} {ours} {theirs:?}");
        }
    }
}
