//! `GET /` of the operator's listener: the status page.
//!
//! The page is rendered on the server, without a build step and without requests to another host. It shows IDs and times, no
//! personal data, and it changes nothing. The service reads the database at most every few seconds for all viewers together. The
//! last reading stays visible while the database is down.

mod charts;
mod dependencies;
mod page;
mod sections;
mod snapshot;
mod source;
mod table;
mod text;
mod view;

use std::sync::{Arc, LazyLock};

use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

use super::state::HttpState;
use crate::sync::health::{ProcessFacts, State as Verdicted, Verdict, checks, handler_checks, process_checks};
pub(crate) use source::StatusPage;
use view::View;

const STYLE: &str = include_str!("status/page.css");
const SCRIPT: &str = include_str!("status/page.js");

/// Only the page's own style and script run, requests go only to this listener, and no other site can show the page in a frame.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let hash = |text: &str| BASE64_STANDARD.encode(Sha256::digest(text.as_bytes()));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; img-src 'self'; connect-src 'self'; \
         frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
        hash(STYLE),
        hash(SCRIPT)
    );
    HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
});

pub(super) async fn show(State(state): State<Arc<HttpState>>) -> Response {
    let page = page::page(&view(&state).await).into_string();
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, POLICY.clone()),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ];
    (headers, page).into_response()
}

/// Returns the icon of a verdict, for the browser's tab.
pub(super) async fn icon(Path(name): Path<String>) -> Response {
    let color = match name.as_str() {
        "ok.svg" => "#1a7f37",
        "warning.svg" => "#bf8700",
        "failure.svg" => "#cf222e",
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    let icon = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 16 16\"><circle cx=\"8\" cy=\"8\" r=\"7\" fill=\"{color}\"/></svg>"
    );
    let headers = [(header::CONTENT_TYPE, "image/svg+xml"), (header::CACHE_CONTROL, "max-age=86400")];
    (headers, icon).into_response()
}

async fn view(state: &HttpState) -> View {
    let status = &state.status;
    let reading = status.cache.current(&status.context, &status.expected).await;
    let now = state.clock.now();
    let (keys, jobs, rejected_secrets) = (state.keys.status(), state.jobs.current(), state.rejected_secrets.current());
    let api = &status.context.api;
    let contact = api.has_key().then(|| api.contact());
    let facts = ProcessFacts {
        now,
        database_failure: reading.failure.as_deref(),
        workos: contact.as_ref().map(|contact| (api.host(), contact)),
        keys: &keys,
        jobs: &jobs,
        rejected_secrets: &rejected_secrets,
    };
    let mut found = process_checks(&facts);
    // Values that were read before the failure are not used for the verdict.
    let current = reading.snapshot.as_deref().filter(|_| reading.failure.is_none());
    if let Some(snapshot) = current {
        found.extend(checks(&status.expected, &snapshot.facts));
        found.extend(handler_checks(&snapshot.handlers, &snapshot.definitions, &snapshot.facts));
        found.extend(snapshot.webhook_check());
    }
    let verdict = Verdict::of(&found, &status.expected, current.map(|snapshot| &snapshot.facts));
    found.retain(|check| check.state != Verdicted::Ok);
    found.sort_by_key(|check| std::cmp::Reverse(check.state));
    View {
        standby: state.mirror.standby.as_ref().map(|standby| standby.state()),
        now,
        holder: status.context.holder.clone(),
        host: api.host().to_owned(),
        has_webhooks: !state.webhook_secrets.load().is_empty(),
        expected: status.expected,
        lag_seconds: state.watch.lag_seconds(now),
        progress: state.watch.progress(),
        sizes: state.watch.sizes(),
        runs: state.jobs.runs(),
        samples: status.samples.all(),
        reasons: found,
        verdict,
        keys,
        jobs,
        contact,
        reading,
    }
}
