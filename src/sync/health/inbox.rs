//! Checks of the inbox: the quarantine, its size and its growth.

use super::check::{Check, count};
use super::facts::Facts;

/// The size of the inbox, in bytes, above which the check warns.
const LARGE: i64 = 20 * 1024 * 1024 * 1024;

const MIB: i64 = 1024 * 1024;

pub(super) fn checks(facts: &Facts) -> Vec<Check> {
    vec![quarantine(facts), size(facts)]
}

fn quarantine(facts: &Facts) -> Check {
    if facts.quarantined == 0 {
        return Check::ok("quarantine", "no event is quarantined");
    }
    Check::failure(
        "quarantine",
        format!("the quarantine has {}, so the table may lack changes", count(facts.quarantined, "event")),
        "list them with `authkit-sync events list --outcome quarantined`, correct the cause, and run `authkit-sync events retry`",
    )
}

fn size(facts: &Facts) -> Check {
    let inbox = &facts.inbox;
    let text = format!(
        "the inbox has {} MiB and received {} on the last day",
        inbox.bytes / MIB,
        count(inbox.last_day, "event")
    );
    if inbox.bytes > LARGE {
        return Check::warning("inbox", text, "shorten AUTHKIT_SYNC_RETENTION, or add disk space");
    }
    Check::ok("inbox", text)
}
