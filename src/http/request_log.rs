//! One log line and one measurement per request.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;

use super::headers::REQUEST_ID;
use super::state::HttpState;
use crate::domain::action::Action;

/// The fields that a handler adds to the log line of its request.
#[derive(Clone, Debug, Default)]
pub(super) struct LogFields {
    pub(super) rejection: Option<&'static str>,
    pub(super) event_id: Option<String>,
    pub(super) event_type: Option<String>,
    pub(super) outcome: Option<&'static str>,
    pub(super) reason: Option<String>,
    pub(super) action_id: Option<String>,
    pub(super) action_kind: Option<&'static str>,
    pub(super) verdict: Option<&'static str>,
    pub(super) decided_by: Option<String>,
    /// Whether the verdict was stored by an earlier request.
    pub(super) repeated: Option<bool>,
    /// The label of the request's service key.
    pub(super) caller: Option<String>,
}

impl LogFields {
    pub(super) fn rejected(reason: &'static str) -> Self {
        Self { rejection: Some(reason), ..Self::default() }
    }

    pub(super) fn of_action(action: &Action) -> Self {
        let (action_id, action_kind) = (Some(action.id.clone()), Some(action.kind().as_str()));
        Self { action_id, action_kind, ..Self::default() }
    }
}

/// Measures and logs the request. The line contains no header, no query string and no body.
pub(super) async fn request(State(state): State<Arc<HttpState>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = printable(request.method().as_str());
    let route =
        request.extensions().get::<MatchedPath>().map_or_else(|| "other".to_owned(), |path| path.as_str().to_owned());
    let id = request_id(request.headers());
    let mut response = next.run(request).await;
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let took = started.elapsed();
    let status = response.status().as_u16();
    state.metrics.request(&route, status, took);
    let fields = response.extensions_mut().remove::<LogFields>().unwrap_or_default();
    if let Some(reason) = fields.rejection {
        state.metrics.rejected_request(&route, reason);
    }
    // Orchestrators probe every few seconds. At level info their lines would hide the others.
    if matches!(route.as_str(), "/healthz" | "/readyz") {
        tracing::debug!(http.route = route, http.status = status, "probe");
        return response;
    }
    tracing::info!(
        request.id = id,
        http.method = method,
        http.route = route,
        http.status = status,
        duration_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        reason = fields.rejection,
        event.id = fields.event_id.as_deref().map(printable),
        event.type = fields.event_type.as_deref().map(printable),
        event.outcome = fields.outcome,
        event.reason = fields.reason,
        action.id = fields.action_id.as_deref().map(printable),
        action.kind = fields.action_kind,
        action.verdict = fields.verdict,
        action.decided_by = fields.decided_by,
        action.repeated = fields.repeated,
        caller = fields.caller,
        "request"
    );
    response
}

/// Returns the caller's request ID if it is short and plain, or a new one.
fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let given = given.filter(|id| (1..=64).contains(&id.len()) && id.bytes().all(plain));
    given.map_or_else(|| format!("{:032x}", fastrand::u128(..)), str::to_owned)
}

/// Returns at most 64 characters of printable ASCII. An ID is opaque and could contain anything.
fn printable(text: &str) -> String {
    text.chars().take(64).map(|char| if char.is_ascii_graphic() { char } else { '?' }).collect()
}
