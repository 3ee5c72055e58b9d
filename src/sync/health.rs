//! The rules that decide whether the sync works. `doctor`, `status` and the status page use them.
//!
//! A rule is pure: it checks facts that were read before. So the status page can still check the last known facts while the
//! database is unreachable.

mod check;
mod facts;
mod handlers;
mod inbox;
mod process;
mod progress;
mod verdict;

pub(crate) use check::{Check, State, ago, count};
pub(crate) use facts::{Expected, Facts};
pub(crate) use process::ProcessFacts;
pub(crate) use verdict::{Verdict, worst};

use crate::store::handlers::{Handler, HandlerStatus};

/// Checks the sync: jobs, lag, organizations, reconcile, retention, erasure, quarantine and inbox.
pub(crate) fn checks(expected: &Expected, facts: &Facts) -> Vec<Check> {
    let mut checks = progress::checks(expected, facts);
    checks.extend(inbox::checks(facts));
    checks
}

/// Checks each handler, and whether one of them holds back the change feed.
pub(crate) fn handler_checks(statuses: &[HandlerStatus], handlers: &[Handler], facts: &Facts) -> Vec<Check> {
    handlers::checks(statuses, handlers, facts)
}

/// Checks what one process knows without the database.
pub(crate) fn process_checks(facts: &ProcessFacts<'_>) -> Vec<Check> {
    process::checks(facts)
}
