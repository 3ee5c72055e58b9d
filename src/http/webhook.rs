//! `POST /workos/webhook`: receives events from WorkOS.
//!
//! The headers are checked before the body is read. A body that WorkOS did not sign is neither parsed nor stored. 200 is sent only
//! after the commit.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use utoipa::ToSchema;

use super::error::Rejection;
use super::request_log::LogFields;
use super::shapes::Error;
use super::signed::{self, Accepted};
use super::state::HttpState;
use crate::domain::event::{Observation, Origin};
use crate::workos::wire;

/// Receive an event from WorkOS. The answer is 200 only after the event has been committed.
#[utoipa::path(
    post,
    path = "/workos/webhook",
    operation_id = "receiveWebhook",
    tag = "workos",
    security(("workos_signature" = [])),
    request_body(content = BTreeMap<String, Value>, description = "The event, as WorkOS signed it."),
    responses(
        (status = 200, description = "Committed.", body = Receipt),
        (status = 400, description = "`not_an_event`, `body_incomplete`", body = Error),
        (status = 401, description = "`signature_invalid`", body = Error),
        (status = 408, description = "`body_too_slow`", body = Error),
        (status = 413, description = "`body_too_large`", body = Error),
        (
            status = 503,
            description = "`database_unavailable`, `busy`, `internal`: the service failed. WorkOS retries",
            body = Error,
            headers(("Retry-After" = u32, description = "Seconds to wait before a retry."))
        )
    )
)]
pub(super) async fn receive(
    State(state): State<Arc<HttpState>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Rejection> {
    let (secrets, tolerance) = (&state.webhook_secrets, state.signature_tolerance);
    let accepted = Accepted { endpoint: "webhook", bodies: &state.webhook_bodies, secrets, tolerance };
    let signed = signed::read(&state, &headers, body, accepted).await?;
    let event = wire::event(&signed.body)
        .map_err(|error| Rejection::new(StatusCode::BAD_REQUEST, "not_an_event", error.to_string()))?;
    let mut fields = LogFields {
        event_id: Some(event.id.clone()),
        event_type: Some(event.event_type.clone()),
        ..LogFields::default()
    };
    let created_at = event.created_at;
    let observation = state.kinds.restrict(Observation::Event(event));
    let applied = state.webhooks.apply(observation).await?;
    let outcome = applied.outcome();
    let now = state.clock.now();
    state.metrics.webhook_received(now.unix_seconds());
    if let Some(created_at) = created_at.filter(|_| !applied.is_duplicate) {
        state.metrics.event_delay(Origin::Webhook.as_str(), now.unix_micros() - created_at.unix_micros());
    }
    state.metrics.event(fields.event_type.as_deref().unwrap_or_default(), Origin::Webhook.as_str(), outcome);
    fields.outcome = Some(outcome);
    fields.reason = applied.effect.reason().filter(|_| !applied.is_duplicate).map(str::to_owned);
    let mut response = Json(json!({ "outcome": outcome })).into_response();
    response.extensions_mut().insert(fields);
    Ok(response)
}

/// The outcome of a delivery.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only for /openapi.json")]
pub(super) struct Receipt {
    #[schema(inline)]
    outcome: Outcome,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "only for /openapi.json")]
enum Outcome {
    Applied,
    Stale,
    Ignored,
    Quarantined,
    Duplicate,
}
