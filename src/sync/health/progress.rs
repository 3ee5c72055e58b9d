//! Checks of the sync: the lag, the background jobs, reconcile, retention and erasure.

use super::check::{Check, ago, count};
use super::facts::{Expected, Facts};
use crate::domain::timestamp::Timestamp;
use crate::store::scans::ScanKind;

/// A lag of this many seconds is a failure: an operator must act.
const LARGE_LAG: i64 = 300;
const SMALL_LAG: i64 = 60;

/// An erasure that waits for this many seconds is a failure: an operator must act.
const LATE_ERASURE: i64 = 3_600;

const DAY: i64 = 86_400;

/// Rows of the inbox stay at least this long; see `sync::housekeeping`.
const ROW_RETENTION: i64 = 35 * DAY;

pub(super) fn checks(expected: &Expected, facts: &Facts) -> Vec<Check> {
    vec![
        jobs(expected, facts),
        lag(expected, facts),
        organizations(expected, facts),
        reconcile(expected, facts),
        retention(expected, facts),
        erasure(facts),
    ]
}

fn jobs(expected: &Expected, facts: &Facts) -> Check {
    let name = "jobs";
    let wanted = ["catch_up", "housekeeping"].into_iter().filter(|job| *job != "catch_up" || expected.polls);
    let missing: Vec<&str> = wanted.filter(|job| !facts.runs(job)).collect();
    if missing.is_empty() {
        let running: Vec<&str> =
            facts.leases.iter().filter(|lease| lease.is_held).map(|lease| lease.job.as_str()).collect();
        return Check::ok(name, format!("these jobs run: {}", running.join(", ")));
    }
    if !facts.leases.iter().any(|lease| lease.is_held) {
        return Check::failure(
            name,
            "no process runs any background job",
            "start `authkit-sync serve` on this database",
        );
    }
    let text = format!("no process runs {}", missing.join(" and "));
    Check::failure(name, text, "read /readyz on the operator's listener of `serve`, which names the error of each job")
}

fn lag(expected: &Expected, facts: &Facts) -> Check {
    let name = "sync_lag";
    if !expected.polls {
        return Check::ok(name, "polling is off or has no API key, so there is no lag to measure");
    }
    let fix = "read /readyz on the operator's listener of `serve`, which names the error of catch_up, and see the checks of WorkOS";
    match facts.lag_seconds {
        None if !facts.is_backfilled && facts.runs("backfill") => {
            let text = format!("the first backfill runs and has read {}", count(facts.users_so_far, "user"));
            Check::warning(name, text, "wait until it has completed")
        }
        None if facts.scanned_at.is_none() => Check::failure(
            name,
            "no backfill has completed, so the table is not complete",
            "start `authkit-sync serve` with AUTHKIT_SYNC_BACKFILL=auto, or run `authkit-sync backfill`",
        ),
        None => Check::warning(
            name,
            "catch-up has not reached the end of the events yet",
            "wait some minutes; then read /readyz",
        ),
        Some(lag) => {
            let at = facts.synced_through.map(|at| at.to_string()).unwrap_or_default();
            let text =
                format!("the table is {} behind WorkOS beyond the delay by design (complete until {at})", ago(lag));
            match lag {
                0..SMALL_LAG => Check::ok(name, text),
                SMALL_LAG..LARGE_LAG => Check::warning(name, text, fix),
                _ => Check::failure(name, text, fix),
            }
        }
    }
}

/// Until the first backfill has completed, lookups of memberships that are not here yet are answered 503.
fn organizations(expected: &Expected, facts: &Facts) -> Check {
    let name = "organizations";
    if !expected.kinds.organizations || !expected.polls {
        return Check::ok(name, "no backfill of organizations is wanted");
    }
    let organizations = facts.scan(ScanKind::BackfillOrganizations);
    let memberships = facts.scan(ScanKind::BackfillMemberships);
    let wanted = [(true, &organizations), (expected.kinds.memberships, &memberships)];
    if wanted.iter().all(|(is_wanted, scan)| !is_wanted || scan.completed_at.is_some()) {
        return Check::ok(name, "the backfill of organizations and memberships has completed");
    }
    let read = count(organizations.counts.total() + memberships.counts.total(), "object");
    if facts.is_backfilled && !facts.runs("backfill_organizations") {
        return Check::failure(
            name,
            format!(
                "the backfill of organizations and memberships has read {read}, has not completed, and no process runs it"
            ),
            "start `authkit-sync serve` with AUTHKIT_SYNC_BACKFILL=auto, or run `authkit-sync backfill`",
        );
    }
    let text = format!("the first backfill of organizations and memberships runs and has read {read}");
    Check::warning(name, text, "wait until it has completed")
}

fn reconcile(expected: &Expected, facts: &Facts) -> Check {
    let name = "reconcile";
    if facts.needs_reconcile {
        let text = "events may have been lost, so a full reconcile is due";
        return Check::warning(name, text, "wait for the reconcile of `serve`, or run `authkit-sync reconcile`");
    }
    let (Some(interval), Some(at)) = (expected.reconcile_interval, facts.scanned_at) else {
        return Check::ok(name, "no reconcile is scheduled, or the first scan has not completed yet");
    };
    let (interval, age) = (i64::try_from(interval.as_secs()).unwrap_or(i64::MAX), facts.age(at));
    let text = format!("the last complete comparison with WorkOS was {} ago", ago(age));
    if age > interval.saturating_mul(2).saturating_add(LATE_ERASURE) {
        let fix = "read /readyz on the operator's listener of `serve` for the error of the job reconcile, or run \
                   `authkit-sync reconcile`";
        return Check::failure(name, format!("{text}, more than twice the interval"), fix);
    }
    Check::ok(name, text)
}

fn retention(expected: &Expected, facts: &Facts) -> Check {
    let name = "retention";
    let kept = i64::try_from(expected.retention.as_secs()).unwrap_or(i64::MAX);
    let is_late = |at: Option<Timestamp>, limit: i64| at.is_some_and(|at| facts.age(at) > limit.saturating_add(DAY));
    if is_late(facts.inbox.oldest_at, kept.max(ROW_RETENTION)) || is_late(facts.inbox.oldest_payload_at, kept) {
        let oldest = facts.inbox.oldest_at.map(|at| ago(facts.age(at))).unwrap_or_default();
        let text = format!("the inbox has events that are {oldest} old, longer than AUTHKIT_SYNC_RETENTION");
        let fix = "read /readyz on the operator's listener of `serve` for the error of the job housekeeping";
        return Check::failure(name, text, fix);
    }
    Check::ok(name, "no event is older than AUTHKIT_SYNC_RETENTION allows")
}

fn erasure(facts: &Facts) -> Check {
    let name = "erasure";
    if facts.pending_erasures == 0 {
        return Check::ok(name, "every erasure is complete");
    }
    let age = ago(facts.oldest_erasure_seconds);
    let text = format!(
        "personal data of {} is still to be erased, for up to {age}",
        count(facts.pending_erasures, "deleted user")
    );
    let fix = "read /readyz on the operator's listener of `serve` for the error of the job housekeeping";
    if facts.oldest_erasure_seconds > LATE_ERASURE {
        Check::failure(name, text, fix)
    } else {
        Check::warning(name, text, fix)
    }
}
