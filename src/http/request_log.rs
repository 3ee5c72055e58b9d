//! One log line and one measurement per request.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, Version, header};
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
    let method = request.method().clone();
    let path = request.extensions().get::<MatchedPath>().cloned();
    let id = request_id(request.headers());
    let is_http_1 = request.version() <= Version::HTTP_11;
    let mut response = next.run(request).await;
    let route = path.as_ref().map_or("other", MatchedPath::as_str);
    response.headers_mut().insert(REQUEST_ID, id.clone());
    if is_http_1 && state.drain.has_begun() {
        // Tells the client to close the connection. Otherwise it could send its next request while the service closes it.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let took = started.elapsed();
    let status = response.status().as_u16();
    state.metrics.request(route, status, took);
    let fields = response.extensions_mut().remove::<LogFields>().unwrap_or_default();
    if let Some(reason) = fields.rejection {
        state.metrics.rejected_request(route, reason);
    }
    // Orchestrators probe every few seconds. At level info their lines would hide the others.
    if matches!(route, "/healthz" | "/readyz") {
        tracing::debug!(http.route = route, http.status = status, "probe");
        return response;
    }
    tracing::info!(
        request.id = id.to_str().unwrap_or_default(),
        http.method = &*method_name(&method),
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
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let is_usable = |id: &&HeaderValue| (1..=64).contains(&id.len()) && id.as_bytes().iter().all(plain);
    if let Some(given) = headers.get(REQUEST_ID).filter(is_usable) {
        return given.clone();
    }
    let mut digits = [b'0'; 32];
    // It fails only for a slice of another length.
    let _ = hex::encode_to_slice(fastrand::u128(..).to_be_bytes(), &mut digits);
    HeaderValue::from_bytes(&digits).unwrap_or(HeaderValue::from_static("unknown"))
}

/// Returns the name of a method for the log. A client can send any text as a method.
fn method_name(method: &Method) -> Cow<'static, str> {
    match *method {
        Method::GET => "GET".into(),
        Method::POST => "POST".into(),
        Method::HEAD => "HEAD".into(),
        Method::OPTIONS => "OPTIONS".into(),
        _ => printable(method.as_str()).into(),
    }
}

/// Returns at most 64 characters of printable ASCII. An ID is opaque and could contain anything.
fn printable(text: &str) -> String {
    text.chars().take(64).map(|char| if char.is_ascii_graphic() { char } else { '?' }).collect()
}
