//! The frame of the page: the head, the verdict with its reasons, and the order of the sections.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::text::{chip, clock, count, dash, number, process, since, with_code};
use super::view::View;
use super::{SCRIPT, STYLE, charts, dependencies, sections};
use crate::sync::health::{State, ago};
use crate::sync::heartbeat::VERSION;

/// The sections in order: the ID, the title, and the content.
type Section = (&'static str, &'static str, Markup);

/// Returns the page.
pub(super) fn page(view: &View) -> Markup {
    let sections = sections(view);
    let state = view.verdict.state.as_str();
    html! {
        (DOCTYPE)
        html lang="en" data-build={ (VERSION) "-" (STYLE.len()) "-" (SCRIPT.len()) } {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="robots" content="noindex";
                title { (view.verdict.headline) " · authkit-sync" }
                link #icon rel="icon" type="image/svg+xml" href={ "icon/" (state) ".svg" };
                style { (PreEscaped(STYLE)) }
            }
            body {
                a.skip href="#verdict" { "Skip to the verdict" }
                (top(view))
                p #stale .stale role="alert" hidden {}
                p #live .hidden role="status" aria-live="polite" {}
                main #main {
                    (verdict(view))
                    (figures(view))
                    div.sections { @for (id, title, content) in sections { (section(id, title, &content)) } }
                }
                footer data-part="footer" #footer {
                    p { "This page changes nothing and shows no personal data. Numbers of rows are up to a minute old. More: "
                        a href="metrics" { "metrics" } ", " a href="readyz" { "readiness as JSON" }
                        ", and the command " code { "authkit-sync doctor" } "." }
                }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    }
}

fn sections(view: &View) -> Vec<Section> {
    vec![
        ("charts", "The last hour", charts::charts(view)),
        ("jobs", "Background jobs", sections::jobs(view)),
        ("scans", "Backfill and reconcile", sections::scans(view)),
        ("sources", "Webhooks and polling", sections::sources(view)),
        ("handlers", "Handlers", sections::handlers(view)),
        ("quarantine", "Quarantine", sections::quarantine(view)),
        ("dependencies", "Dependencies", dependencies::dependencies(view)),
        ("replicas", "Processes", dependencies::replicas(view)),
    ]
}

fn section(id: &str, title: &str, content: &Markup) -> Markup {
    html! {
        section.card id=(id) data-part=(id) aria-labelledby={ (id) "-title" } {
            h2 id={ (id) "-title" } { (title) }
            (content)
        }
    }
}

fn top(view: &View) -> Markup {
    html! {
        header.top {
            p.brand { strong { "authkit-sync" } " " span.muted { (VERSION) " · process " (process(&view.holder)) } }
            p.updated {
                span #updated data-part="updated" .muted { "Updated " (clock(view.now)) }
                " " button #pause type="button" aria-pressed="false" hidden { "Pause updates" }
                noscript { " " a href="" { "Reload" } }
            }
        }
    }
}

fn verdict(view: &View) -> Markup {
    let state = view.verdict.state.as_str();
    let age = view.snapshot().filter(|_| view.reading.failure.is_some());
    html! {
        section #verdict .verdict.(state) data-part="verdict" data-state=(state) tabindex="-1" aria-labelledby="headline" {
            div.headline {
                (symbol(view.verdict.state))
                div {
                    h1 #headline { (view.verdict.headline) }
                    p.summary { (summary(view)) }
                }
            }
            @if let Some(snapshot) = age {
                p.note { "The database values below were read  " (since(snapshot.read_at, view.now)) "." }
            }
            @if !view.reasons.is_empty() {
                ul.reasons aria-label="Reasons, the worst first" {
                    @for check in &view.reasons {
                        li {
                            (chip(check.state, check.state.as_str()))
                            div {
                                p { strong { (check.name) } ": " (with_code(&check.text)) }
                                @if let Some(fix) = check.fix.as_deref().filter(|fix| !fix.is_empty()) { p.fix { (with_code(fix)) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn summary(view: &View) -> Markup {
    let through = view.progress.synced_through;
    let feeds = match (view.has_webhooks, view.expected.polls) {
        (true, true) => "webhooks and polling",
        (true, false) => "webhooks only",
        (false, true) => "polling only",
        (false, false) => "no source of events",
    };
    html! {
        @if let Some(at) = through { "Complete until " (clock(at)) ", " (since(at, view.now)) ". " }
        @else { "The time until which the table is complete is unknown.  " }
        "Fed by " (feeds) "."
    }
}

/// Returns the symbol of a state. Its shape differs for each state, so that the page is readable without colors.
fn symbol(state: State) -> Markup {
    let path = match state {
        State::Ok => "M7 12.5l3.5 3.5L17 9",
        State::Warning => "M12 6.5v7M12 17v.5",
        State::Failure => "M8 8l8 8M16 8l-8 8",
    };
    html! {
        svg.symbol viewBox="0 0 24 24" aria-hidden="true" {
            circle cx="12" cy="12" r="11" {}
            path d=(path) fill="none" stroke-width="2.4" stroke-linecap="round" stroke-linejoin="round" {}
        }
    }
}

/// The most important numbers.
fn figures(view: &View) -> Markup {
    let lag = view.lag_seconds.map_or_else(dash, |seconds| html! { (ago(seconds)) });
    let live = |table| view.live(table).map_or_else(dash, |rows| html! { (number(rows)) });
    let failed: i64 = view.snapshot().map_or(0, |snapshot| snapshot.handlers.iter().map(|it| it.dead_lettered).sum());
    let quarantined = view.progress.quarantined;
    let handlers = count(view.snapshot().map_or(0, handlers), "handler");
    let organizations =
        view.live("organizations").map_or("– organizations".into(), |rows| count(rows, "organization"));
    let figures = [
        ("Lag", lag, "beyond the delay by design".to_owned(), false),
        ("Users", live("users"), organizations, false),
        ("Memberships", live("organization_memberships"), "of users in organizations".to_owned(), false),
        ("Inbox", live("events"), "events kept".to_owned(), false),
        ("Quarantined", html! { (number(quarantined)) }, "events not applied".to_owned(), quarantined > 0),
        ("Dead-lettered", html! { (number(failed)) }, format!("changes of {handlers}"), failed > 0),
    ];
    html! {
        dl #figures .figures data-part="figures" {
            @for (name, value, note, is_bad) in figures {
                div { dt { (name) } dd.bad[is_bad] { (value) small.muted { (note) } } }
            }
        }
    }
}

fn handlers(snapshot: &super::snapshot::Snapshot) -> i64 {
    i64::try_from(snapshot.handlers.len()).unwrap_or(i64::MAX)
}
