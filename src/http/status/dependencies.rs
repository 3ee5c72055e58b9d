//! The sections about the dependencies of the service (database, WorkOS, signing keys) and about the processes on this database.

use std::collections::BTreeSet;

use maud::{Markup, html};

use super::sections::UNREAD;
use super::table::{facts, table};
use super::text::{chip, count, dash, lasting, number, process, since, since_or_dash};
use super::view::View;
use crate::sync::health::{State, ago};
use crate::sync::standby::StandbyState;

/// Database, WorkOS, and signing keys.
pub(super) fn dependencies(view: &View) -> Markup {
    html! {
        div.columns.three {
            div { (database(view)) }
            div { (workos(view)) }
            div { (signing_keys(view)) }
        }
    }
}

fn database(view: &View) -> Markup {
    let snapshot = view.snapshot();
    let connections = snapshot.map_or_else(dash, |snapshot| {
        let server = &snapshot.server;
        html! { (server.used_connections) " of " (server.usable_connections) ", ours " (server.own_connections) }
    });
    let took = snapshot.map_or_else(dash, |snapshot| html! { (snapshot.took.as_millis()) " ms" });
    let state =
        if view.reading.failure.is_none() { chip(State::Ok, "reachable") } else { chip(State::Failure, "unreachable") };
    html! {
        h3 { "Database " (state) }
        (facts(vec![
            ("PostgreSQL", snapshot.map_or_else(dash, |snapshot| html! { (snapshot.server.version) })),
            ("Connections", connections),
            ("Check took", took),
            ("Last read", since_or_dash(snapshot.map(|snapshot| snapshot.read_at), view.now)),
        ]))
        // The verdict says what to do.
        @if let Some((what, _)) = view.reading.failure.as_deref().map(|text| text.split_once("; ").unwrap_or((text, ""))) {
            p.error { (what) }
        }
        @if let Some(standby) = &view.standby { (standby_facts(standby)) }
    }
}

/// The state of the standby.
fn standby_facts(standby: &StandbyState) -> Markup {
    let state = if standby.used { chip(State::Ok, "used") } else { chip(State::Warning, "not used") };
    let age = standby.age_seconds.map_or_else(dash, |age| html! { "at most " (format!("{age:.1}")) " s" });
    html! {
        h3 { "Standby " (state) }
        (facts(vec![("Age of its data", age)]))
        @if let Some(problem) = &standby.problem { p.error { (problem) } }
    }
}

fn workos(view: &View) -> Markup {
    let Some(contact) = &view.contact else {
        return html! { h3 { "WorkOS " span.chip { "no API key" } } p.muted { "Without WORKOS_API_KEY the service only receives webhooks." } };
    };
    let state = match (contact.is_key_refused, contact.failing_since) {
        (true, _) => chip(State::Failure, "key refused"),
        (_, Some(_)) => chip(State::Failure, "failing"),
        (_, None) if contact.answered_at.is_none() => html! { span.chip { "no request yet" } },
        _ => chip(State::Ok, "reachable"),
    };
    let clock = view.keys.clock_ahead_seconds.map_or_else(dash, |seconds| html! { (seconds) " s ahead" });
    html! {
        h3 { "WorkOS " (state) }
        (facts(vec![
            ("Host", html! { (view.host) }),
            ("Last answer", since_or_dash(contact.answered_at, view.now)),
            ("Failing", contact.failing_since.map_or_else(dash, |at| html! { "for " (lasting(at, view.now)) })),
            ("Our clock", clock),
        ]))
        @if let Some(failure) = &contact.failure { p.error { (failure) } }
    }
}

fn signing_keys(view: &View) -> Markup {
    let keys = &view.keys;
    let state = match (keys.keys, &keys.error) {
        (0, Some(_)) => chip(State::Failure, "missing"),
        (0, None) => html! { span.chip { "not fetched yet" } },
        (_, Some(_)) => chip(State::Warning, "not refreshed"),
        (_, None) => chip(State::Ok, "fresh"),
    };
    html! {
        h3 { "Signing keys " (state) }
        (facts(vec![
            ("Keys", html! { (keys.keys) }),
            ("Fetched", since_or_dash(keys.fetched_at, view.now)),
            ("Failing", keys.failing_since.map_or_else(dash, |at| html! { "for " (lasting(at, view.now)) })),
            ("Failures since start", html! { (number(i64::try_from(keys.failures).unwrap_or(i64::MAX))) }),
        ]))
        @if let Some(error) = &keys.error { p.error { (error) } }
    }
}

/// The processes that serve this database, with their releases.
pub(super) fn replicas(view: &View) -> Markup {
    let Some(snapshot) = view.snapshot() else { return html! { p.muted { (UNREAD) } } };
    let database_now = snapshot.facts.now;
    let rows = snapshot.replicas.iter().map(|replica| {
        let leases = snapshot.facts.leases.iter().filter(|lease| lease.is_held && lease.holder == replica.holder);
        let jobs: Vec<&str> = leases.map(|lease| lease.job.as_str()).collect();
        vec![
            html! { (process(&replica.holder)) @if *replica.holder == *view.holder { " " span.muted { "this process" } } },
            html! { (replica.version) },
            since(replica.started_at, view.now),
            html! { (ago(database_now.unix_seconds() - replica.seen_at.unix_seconds())) " ago" },
            if jobs.is_empty() { dash() } else { html! { (jobs.join(", ")) } },
        ]
    });
    let versions: BTreeSet<&str> = snapshot.replicas.iter().map(|replica| replica.version.as_str()).collect();
    let columns = ["Process", "Release", "Started", "Heartbeat", "Holds the leases of"];
    html! {
        (table("Processes on this database", &columns, rows.collect(), "No process has written its heartbeat yet."))
        @if versions.len() > 1 {
            p.note { "These processes run " (count(i64::try_from(versions.len()).unwrap_or(i64::MAX), "release"))
                ". That is expected while replicas are replaced." }
        }
    }
}
