//! Requires a service key for the routes of backends.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::Response;

use super::request_log::LogFields;
use super::state::HttpState;
use super::workos_error::WorkosRejection;

/// Rejects a request without a service key. Adds the label of the key to the log line.
pub(super) async fn require_service_key(
    State(state): State<Arc<HttpState>>,
    headers: HeaderMap,
    request: Request,
    next: Next,
) -> Result<Response, WorkosRejection> {
    let label = state.service_keys.load().label(&headers).map(str::to_owned);
    let label = label.ok_or_else(WorkosRejection::unauthorized)?;
    state.metrics.service_key(&label);
    let mut response = next.run(request).await;
    let fields = response.extensions_mut().remove::<LogFields>().unwrap_or_default();
    response.extensions_mut().insert(LogFields { caller: Some(label), ..fields });
    Ok(response)
}
