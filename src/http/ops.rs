//! Probes and metrics.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::state::HttpState;

/// Check that the process is alive.
///
/// It does not depend on the database or on WorkOS.
#[utoipa::path(
    get,
    path = "/healthz",
    operation_id = "getHealth",
    tag = "operation",
    responses((status = 200, description = "`alive`", body = Probe))
)]
pub(super) async fn healthz() -> Json<Value> {
    Json(json!({ "status": "alive" }))
}

/// Check that the service is ready: the database answers, is writable, and has a usable schema.
///
/// It does not depend on WorkOS. An outage at WorkOS must not stop lookups. At shutdown it answers 503 `draining` while
/// all requests are still answered, so that a proxy stops sending requests before the listener closes.
#[utoipa::path(
    get,
    path = "/readyz",
    operation_id = "getReadiness",
    tag = "operation",
    responses(
        (status = 200, description = "`ready`", body = Probe),
        (status = 503, description = "`not_ready`, or `draining` at shutdown", body = Probe)
    )
)]
pub(super) async fn readyz(State(state): State<Arc<HttpState>>) -> Response {
    state.drain.note_poll();
    let status = Readiness::of(&state, readiness(&state).await.is_ok());
    probe(status, json!({ "status": status.text() }))
}

/// The answer to a probe.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only described")]
pub(super) struct Probe {
    status: String,
}

/// Answers like [`readyz`], with details for the operator.
pub(super) async fn readyz_with_detail(State(state): State<Arc<HttpState>>) -> Response {
    state.drain.note_poll();
    let readiness = readiness(&state).await;
    let database = readiness.as_ref().err().map_or("ok", String::as_str);
    let status = Readiness::of(&state, readiness.is_ok());
    let progress = state.watch.progress();
    let body = json!({
        "status": status.text(),
        "database": database,
        "feeds": feeds(&state),
        "synced_through": progress.synced_through,
        "lag_seconds": state.watch.lag_seconds(state.clock.now()),
        "backfill_completed": progress.backfilled,
        "organizations": state.kinds.organizations.then_some(progress.organizations),
        "memberships": state.kinds.memberships.then_some(progress.memberships),
        "quarantined": progress.quarantined,
        "standby": state.mirror.standby.as_ref().map(|standby| standby.state()),
        "jobs": state.jobs.current(),
        "signing_keys": state.keys.status(),
        "rejected_secrets": state.rejected_secrets.current(),
    });
    probe(status, body)
}

/// Returns the configured sources of events.
fn feeds(state: &HttpState) -> &'static str {
    match (state.webhook_secrets.load().is_empty(), state.catches_up) {
        (false, true) => "webhooks and polling",
        (false, false) => "webhooks only",
        (true, true) => "polling only",
        (true, false) => "none",
    }
}

async fn readiness(state: &HttpState) -> Result<(), String> {
    state.store.ping().await.map_err(|error| error.to_string())
}

/// Whether this process should get requests.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Readiness {
    Ready,
    NotReady,
    Draining,
}

impl Readiness {
    fn of(state: &HttpState, is_usable: bool) -> Self {
        match is_usable {
            _ if state.drain.has_begun() => Self::Draining,
            true => Self::Ready,
            false => Self::NotReady,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::NotReady => "not_ready",
            Self::Draining => "draining",
        }
    }
}

fn probe(readiness: Readiness, body: Value) -> Response {
    let status = if readiness == Readiness::Ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, [(header::CACHE_CONTROL, "no-store")], Json(body)).into_response()
}

pub(super) async fn metrics(State(state): State<Arc<HttpState>>) -> Response {
    // It grows with the clock, so it is computed for each answer.
    let _ = state.watch.lag_seconds(state.clock.now());
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    state.metrics.encode().map_or_else(
        |_| StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        |page| ([(header::CONTENT_TYPE, content_type)], page).into_response(),
    )
}
