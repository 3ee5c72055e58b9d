//! The sections about the work: jobs, scans, sources of events, handlers, quarantine.

use maud::{Markup, html};

use super::snapshot::{QUARANTINE_LIMIT, Snapshot};
use super::table::{facts, table};
use super::text::{chip, coming, count, dash, id, lasting, number, process, since, since_or_dash};
use super::view::View;
use crate::store::handlers::HandlerStatus;
use crate::store::scans::ScanState;
use crate::sync::health::State;
use crate::sync::job::JobStatus;

/// The text for values that have not been read yet.
pub(super) const UNREAD: &str = "Not read from the database yet.";

/// Each job: its state here, who runs it, its last and its next run.
pub(super) fn jobs(view: &View) -> Markup {
    let leases = view.snapshot().map(|snapshot| snapshot.facts.leases.as_slice()).unwrap_or_default();
    let rows = view.jobs.iter().map(|(name, status)| {
        let run = view.runs.get(name).copied().unwrap_or_default();
        let holder = leases.iter().find(|lease| lease.job == **name && lease.is_held).map(|lease| &*lease.holder);
        let runs_in = match holder {
            Some(holder) if *holder == *view.holder => html! { "this process" },
            Some(holder) => process(holder),
            None if status.state == "standby" => dash(),
            None => html! { "this process" },
        };
        vec![
            html! { (name) @if let Some(error) = job_error(view, status) { p.error { (error) } } },
            html! { (job_chip(status)) " " span.muted { "for " (lasting(status.since, view.now)) } },
            runs_in,
            since_or_dash(run.began_at, view.now),
            coming(run.next_at, view.now),
        ]
    });
    let columns = ["Job", "State", "Runs in", "Last run", "Next run"];
    table("Background jobs of this process", &columns, rows.collect(), "No job has run in this process yet.")
}

/// Returns the error of a job. The verdict already contains failures of the database and of WorkOS, so they are not repeated for
/// each job.
fn job_error<'a>(view: &View, status: &'a JobStatus) -> Option<&'a str> {
    let error = status.error.as_deref()?;
    let is_workos_down = view.contact.as_ref().is_some_and(|contact| contact.failing_since.is_some());
    Some(match (status.is_of_database && view.reading.failure.is_some(), status.is_of_workos && is_workos_down) {
        (true, _) => "The database does not answer.",
        (_, true) => "WorkOS does not answer.",
        _ => error,
    })
}

fn job_chip(status: &JobStatus) -> Markup {
    let state = match status.state {
        "failing" => State::Failure,
        _ => State::Ok,
    };
    if status.state == "standby" {
        html! { span.chip { "standby" } }
    } else {
        chip(state, status.state)
    }
}

/// The kinds of scans in the order of the page: the name in the database, the title, and the table that it fills or compares.
const SCANS: [(&str, &str, &str); 7] = [
    ("backfill", "Backfill of users", "users"),
    ("backfill_organizations", "Backfill of organizations", "organizations"),
    ("backfill_memberships", "Backfill of memberships", "organizations"),
    ("backfill_organization_roles", "Backfill of roles", "organizations"),
    ("reconcile", "Reconcile of users", "users"),
    ("reconcile_organizations", "Reconcile of organizations", "organizations"),
    ("reconcile_memberships", "Reconcile of memberships", "organization_memberships"),
];

/// Backfill and reconcile, with bars while they run.
pub(super) fn scans(view: &View) -> Markup {
    let Some(snapshot) = view.snapshot() else { return html! { p.muted { (UNREAD) } } };
    let known = SCANS.iter().filter_map(|(kind, title, of)| {
        let (_, state) = snapshot.facts.scans.iter().find(|(name, _)| name == kind)?;
        Some((*kind, *title, *of, state))
    });
    let known: Vec<_> = known.collect();
    html! {
        @if known.is_empty() { p.muted { "No backfill and no reconcile has run yet." } }
        ul.scans { @for (kind, title, of, state) in known { li { (scan(view, kind, title, of, state)) } } }
    }
}

fn scan(view: &View, kind: &str, title: &str, of: &str, state: &ScanState) -> Markup {
    let Some(started_at) = state.started_at else {
        return html! {
            div.row { span { (title) } span { (chip(State::Ok, "complete")) } }
            p.muted { (count(state.counts.total(), "object")) ", completed " (since_or_dash(state.completed_at, view.now)) }
        };
    };
    let left = view.progress.memberships.organizations_left.filter(|_| kind == "backfill_memberships");
    let compared = view.runs.get(kind).and_then(|run| run.compared);
    let expected = view.live(of).filter(|expected| *expected > 0);
    // The number of objects at WorkOS is unknown during a backfill. A reconcile expects the number of stored objects.
    let done = match (left, compared, expected) {
        (Some(left), _, Some(expected)) => Some((expected.saturating_sub(left).max(0), expected)),
        (None, Some(compared), Some(expected)) => Some((compared.min(expected), expected)),
        _ => None,
    };
    let label = format!("{kind}-label");
    html! {
        div.row { span id=(label) { (title) } span { (chip(State::Warning, "running")) } }
        @if let Some((done, expected)) = done {
            progress max=(expected) value=(done) aria-labelledby=(label) { (done) " of " (expected) }
            p.muted { (percent(done, expected)) " % (" (number(done)) " of " @if left.is_none() { "about " } (number(expected)) " "
                (of.replace('_', " ")) "), started " (since(started_at, view.now)) }
        } @else {
            progress aria-labelledby=(label) { "running" }
            p.muted { (count(state.counts.total().max(compared.unwrap_or_default()), "object")) " so far, started " (since(started_at, view.now)) }
        }
    }
}

fn percent(done: i64, expected: i64) -> i64 {
    done.saturating_mul(100) / expected.max(1)
}

/// Webhooks and polling, in two columns.
pub(super) fn sources(view: &View) -> Markup {
    let counted = |read: fn(&crate::metrics::Counted) -> u64| {
        let (first, last) = (view.samples.first(), view.samples.last());
        let of = |sample: Option<&crate::sync::heartbeat::Sample>| sample.map_or(0, |sample| read(&sample.counted));
        number(i64::try_from(of(last).saturating_sub(of(first))).unwrap_or(i64::MAX))
    };
    let poll = view.runs.get("catch_up").copied().unwrap_or_default();
    let missed = view.snapshot().map_or_else(dash, |snapshot| html! { (number(snapshot.missed.events)) });
    let last_webhook = view.snapshot().and_then(|snapshot| snapshot.webhooks.last_at);
    let cursor = view.snapshot().and_then(|snapshot| snapshot.catch_up.as_ref()?.cursor.clone());
    html! {
        div.columns {
            div {
                h3 { "Webhooks " (on_or_off(view.has_webhooks)) }
                (facts(vec![
                    ("Last verified", since_or_dash(last_webhook, view.now)),
                    ("Last hour, this process", html! { (counted(|counted| counted.webhooks)) }),
                    ("Missed on the last day", missed),
                ]))
            }
            div {
                h3 { "Polling " (on_or_off(view.expected.polls)) }
                (facts(vec![
                    ("Last event", since_or_dash(cursor.as_ref().and_then(|cursor| cursor.created_at), view.now)),
                    ("Last hour, this process", html! { (counted(|counted| counted.polled)) }),
                    ("Last poll, this process", since_or_dash(poll.began_at, view.now)),
                ]))
                @if let Some(cursor) = &cursor { p.muted { "Cursor " (id(&cursor.id)) } }
            }
        }
    }
}

fn on_or_off(is_on: bool) -> Markup {
    if is_on {
        chip(State::Ok, "on")
    } else {
        html! { span.chip { "off" } }
    }
}

/// Each handler with its last error, without the message, which could contain personal data.
pub(super) fn handlers(view: &View) -> Markup {
    let Some(snapshot) = view.snapshot() else { return html! { p.muted { (UNREAD) } } };
    let rows = snapshot.handlers.iter().map(|handler| {
        let name = html! {
            (id(&handler.name))
            @if let Some(problem) = &handler.problem { p.error { (problem) } }
            (last_error(handler, view))
        };
        let depth = html! { (number(handler.depth)) @if let Some(at) = handler.oldest_at { span.muted { ", oldest " (since(at, view.now)) } } };
        vec![name, handler_chip(handler), depth, html! { (number(handler.waiting)) }, html! { (number(handler.dead_lettered)) }]
    });
    let columns = ["Handler", "State", "Ahead", "To retry", "Dead-lettered"];
    table("Handlers", &columns, rows.collect(), "No handler is registered.")
}

fn last_error(handler: &HandlerStatus, view: &View) -> Markup {
    let Some(error) = &handler.last_error else { return html! {} };
    html! {
        p.error {
            "Position " (error.position) ", user " (id(&error.user_id))
            @if let Some(code) = &error.sqlstate { ", SQLSTATE " (id(code)) }
            @if let Some(constraint) = &error.constraint { ", constraint " (id(constraint)) }
            @if let Some(location) = &error.location { ", in " (id(location)) }
            @if let Some(at) = error.at { ", " (since(at, view.now)) }
        }
    }
}

fn handler_chip(handler: &HandlerStatus) -> Markup {
    let is_failing = handler.dead_lettered > 0 || (handler.waiting > 0 && handler.last_error.is_some());
    match handler.state.as_str() {
        "blocked" => chip(State::Failure, "blocked"),
        "paused" => chip(State::Warning, "paused"),
        _ if is_failing => chip(State::Failure, "failing"),
        state => chip(State::Ok, state),
    }
}

/// The newest quarantined events.
pub(super) fn quarantine(view: &View) -> Markup {
    let Some(snapshot) = view.snapshot() else { return html! { p.muted { (UNREAD) } } };
    let rows = snapshot.quarantined.iter().map(|event| {
        let reason = event.reason.as_deref().unwrap_or("unknown");
        vec![id(&event.id), id(&event.event_type), html! { (reason) }, since(event.received_at, view.now)]
    });
    html! {
        (table("Quarantined events", &["Event", "Type", "Reason", "Received"], rows.collect(), "No event is quarantined."))
        (more(view, snapshot))
    }
}

fn more(view: &View, snapshot: &Snapshot) -> Markup {
    let shown = i64::try_from(snapshot.quarantined.len()).unwrap_or(i64::MAX);
    html! {
        @if shown >= QUARANTINE_LIMIT && view.progress.quarantined > shown {
            p.muted { "The newest " (shown) " of " (number(view.progress.quarantined)) ". All: "
                code { "authkit-sync events list --outcome quarantined" } }
        }
    }
}
