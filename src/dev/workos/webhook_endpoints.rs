//! The webhook endpoints of the simulated WorkOS: list, create, update and delete them over HTTP.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, patch};
use axum::{Json, Router};
use serde_json::{Value, json};

use super::SimulatedWorkos;
use super::collection::Object;
use super::deliveries::Endpoint;
use super::fault::Fault;
use crate::domain::kinds::Kinds;
use crate::workos::signature::Secret;

pub(super) fn routes() -> Router<SimulatedWorkos> {
    Router::new()
        .route("/webhook_endpoints", get(list).post(create))
        .route("/webhook_endpoints/{id}", patch(update).delete(delete))
}

fn shown(workos: &SimulatedWorkos, endpoint: &Endpoint) -> Value {
    // An endpoint for all types shows those that this service needs.
    let events = if endpoint.events.is_empty() {
        json!(Kinds { sign_ins: true, ..Kinds::ALL }.event_types())
    } else {
        json!(endpoint.events)
    };
    let is_masked = workos.fault_injector().faults().mask_secrets;
    let secret = if is_masked { "whsec_****************".to_owned() } else { endpoint.secret_text.clone() };
    json!({
        "object": "webhook_endpoint", "id": endpoint.id, "endpoint_url": endpoint.url, "secret": secret,
        "status": if endpoint.is_enabled { "enabled" } else { "disabled" }, "events": events,
        "created_at": endpoint.created_at, "updated_at": endpoint.created_at,
    })
}

async fn list(State(workos): State<SimulatedWorkos>) -> Json<Value> {
    let data: Vec<Value> = workos.0.deliveries.endpoints().iter().map(|endpoint| shown(&workos, endpoint)).collect();
    Json(json!({"object": "list", "data": data, "list_metadata": {"before": null, "after": null}}))
}

/// Returns the event types of a request, which WorkOS must offer for webhooks.
fn events(workos: &SimulatedWorkos, given: &Object) -> Result<Option<Vec<String>>, Fault> {
    let Some(events) = given.get("events") else { return Ok(None) };
    let events: Vec<String> =
        serde_json::from_value(events.clone()).map_err(|_| Fault::invalid("invalid", "events"))?;
    let unknown = workos.fault_injector().faults().unknown_types;
    if events.is_empty() || events.iter().any(|event| unknown.contains(event)) {
        return Err(Fault::invalid("unknown_event_type", "events"));
    }
    Ok(Some(events))
}

async fn create(
    State(workos): State<SimulatedWorkos>,
    Json(given): Json<Object>,
) -> Result<(StatusCode, Json<Value>), Fault> {
    let url = given.get("endpoint_url").and_then(Value::as_str).unwrap_or_default().to_owned();
    // The real WorkOS requires https. The simulation also accepts loopback addresses.
    if !["https://", "http://127.0.0.1", "http://localhost"].iter().any(|start| url.starts_with(start)) {
        return Err(Fault::invalid("invalid_url", "endpoint_url"));
    }
    let events = events(&workos, &given)?.ok_or_else(|| Fault::invalid("required", "events"))?;
    if workos.0.deliveries.endpoints().iter().any(|endpoint| endpoint.url == url) {
        return Err(Fault::conflict("duplicate_endpoint", "An endpoint with this URL exists."));
    }
    let secret = workos.next_id("whsec");
    let types: Vec<&str> = events.iter().map(String::as_str).collect();
    workos.add_endpoint_for(&url, &secret, &types);
    let endpoint = workos.0.deliveries.endpoints().pop().ok_or_else(|| Fault::not_found("Webhook endpoint", &url))?;
    let mut shown = shown(&workos, &endpoint);
    shown["secret"] = json!(secret);
    Ok((StatusCode::CREATED, Json(shown)))
}

async fn update(
    State(workos): State<SimulatedWorkos>,
    Path(id): Path<String>,
    Json(given): Json<Object>,
) -> Result<Json<Value>, Fault> {
    let events = events(&workos, &given)?;
    let status = given.get("status").and_then(Value::as_str);
    let changed = workos.0.deliveries.change_endpoint(&id, |endpoint| {
        endpoint.events = events.unwrap_or_else(|| endpoint.events.clone());
        endpoint.is_enabled = status.map_or(endpoint.is_enabled, |status| status == "enabled");
    });
    changed.map(|endpoint| Json(shown(&workos, &endpoint))).ok_or_else(|| Fault::not_found("Webhook endpoint", &id))
}

async fn delete(State(workos): State<SimulatedWorkos>, Path(id): Path<String>) -> Result<StatusCode, Fault> {
    if workos.0.deliveries.remove_endpoint(&id) {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Fault::not_found("Webhook endpoint", &id))
    }
}

impl SimulatedWorkos {
    /// Adds an endpoint for events of these types (empty: all types) with its own secret.
    pub fn add_endpoint_for(&self, url: &str, secret: &str, events: &[&str]) {
        let endpoint = Endpoint {
            id: self.next_id("we"),
            url: url.to_owned(),
            secret: Secret::new(secret),
            secret_text: secret.to_owned(),
            events: events.iter().map(|&event| event.to_owned()).collect(),
            is_enabled: true,
            created_at: self.now(),
        };
        self.0.deliveries.add_endpoint(endpoint);
    }

    /// Disables every endpoint, as WorkOS does after many failures.
    pub fn disable_endpoints(&self) {
        for endpoint in self.0.deliveries.endpoints() {
            let _ = self.0.deliveries.change_endpoint(&endpoint.id, |endpoint| endpoint.is_enabled = false);
        }
    }
}
