//! The HTTP paths of WorkOS, and those that control the simulation.

use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use super::actions::{ActionResult, Attempt};
use super::deliveries::Faults;
use super::fault::Fault;
use super::fault_injector::{self, ApiFaults};
use super::state::Object;
use super::{SimulatedWorkos, pages};

type ApiResult = Result<Json<Value>, Fault>;
type Parameters = Query<Vec<(String, String)>>;

pub(super) fn router(workos: SimulatedWorkos) -> Router {
    let with_key = Router::new()
        .route("/user_management/users", get(list_users).post(create_user))
        .route("/user_management/users/{id}", get(user).put(update_user).delete(delete_user))
        .route("/user_management/users/external_id/{external_id}", get(user_by_external_id))
        .route("/events", get(list_events))
        .layer(middleware::from_fn_with_state(workos.clone(), require_api_key))
        .layer(middleware::from_fn_with_state(workos.clone(), fault_injector::inject));
    Router::new()
        .route("/sso/jwks/{client_id}", get(jwks))
        .route("/user_management/authenticate", post(authenticate))
        .route("/_simulate/deliveries", post(set_faults))
        .route("/_simulate/api", post(set_api_faults))
        .route("/_simulate/actions", post(attempt))
        .route("/_simulate/events", post(emit))
        .route("/_simulate/users/{id}/token", post(token))
        .merge(with_key)
        .layer(middleware::map_response_with_state(workos.clone(), add_headers))
        .with_state(workos)
}

async fn require_api_key(
    State(workos): State<SimulatedWorkos>,
    request: Request,
    next: Next,
) -> Result<Response, Fault> {
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if given.and_then(|value| value.strip_prefix("Bearer ")) == Some(&workos.api_key()) {
        Ok(next.run(request).await)
    } else {
        Err(Fault::unauthorized())
    }
}

/// Adds headers to every response. The date is the time of the simulation, because clients order observations by it.
async fn add_headers(State(workos): State<SimulatedWorkos>, mut response: Response) -> Response {
    let id = HeaderValue::from_str(&workos.next_id("req")).unwrap_or(HeaderValue::from_static("req"));
    response.headers_mut().insert(HeaderName::from_static("x-request-id"), id);
    let date = workos.now().plus_seconds(workos.fault_injector().faults().date_offset_s);
    if let Ok(date) = HeaderValue::from_str(&workos.http_date(date)) {
        response.headers_mut().insert(header::DATE, date);
    }
    response
}

async fn list_users(State(workos): State<SimulatedWorkos>, Query(parameters): Parameters) -> ApiResult {
    let faults = workos.fault_injector().faults();
    workos.read(|state| pages::users(state, &parameters, &faults)).map(Json)
}

async fn list_events(State(workos): State<SimulatedWorkos>, Query(parameters): Parameters) -> ApiResult {
    let fault_injector = workos.fault_injector();
    let after = parameters.iter().find(|(name, _)| name == "after").map(|(_, id)| id.as_str());
    let window =
        pages::Window { faults: fault_injector.faults(), lost: fault_injector.cursors_lost(after), now: workos.now() };
    let page = workos.read(|state| pages::events(&state.events, &parameters, &window))?;
    fault_injector.listed(&page);
    Ok(Json(page))
}

async fn user(State(workos): State<SimulatedWorkos>, Path(id): Path<String>) -> ApiResult {
    workos.read(|state| state.user(&id)).map(Json).map_err(|fault| not_found(&workos, fault))
}

/// Returns the 404 in the format that the faults select.
fn not_found(workos: &SimulatedWorkos, fault: Fault) -> Fault {
    if workos.fault_injector().faults().emulator_not_found { Fault::emulator_not_found() } else { fault }
}

async fn user_by_external_id(State(workos): State<SimulatedWorkos>, Path(id): Path<String>) -> ApiResult {
    let user = workos.read(|state| state.user_by("external_id", &id));
    user.map(Json).ok_or_else(|| not_found(&workos, Fault::not_found(&id)))
}

async fn create_user(
    State(workos): State<SimulatedWorkos>,
    Json(given): Json<Object>,
) -> Result<impl IntoResponse, Fault> {
    workos.create_user(&given).map(|user| (StatusCode::CREATED, Json(user)))
}

async fn update_user(
    State(workos): State<SimulatedWorkos>,
    Path(id): Path<String>,
    Json(given): Json<Object>,
) -> ApiResult {
    workos.update_user(&id, &given).map(Json)
}

async fn delete_user(State(workos): State<SimulatedWorkos>, Path(id): Path<String>) -> Result<StatusCode, Fault> {
    workos.delete_user(&id).map(|()| StatusCode::OK)
}

async fn jwks(State(workos): State<SimulatedWorkos>, Path(client_id): Path<String>) -> Response {
    if client_id != workos.client_id() {
        let body = Json(json!({"message": "Not Found"}));
        return (StatusCode::NOT_FOUND, body).into_response();
    }
    if let Some(status) = workos.jwks_status() {
        return status.into_response();
    }
    ([(header::CONTENT_TYPE, "application/jwk-set+json")], workos.jwks().to_string()).into_response()
}

/// Signs a user in with any password, because nothing is protected.
async fn authenticate(State(workos): State<SimulatedWorkos>, Json(given): Json<Object>) -> ApiResult {
    let text = |name: &str| given.get(name).and_then(Value::as_str).unwrap_or_default();
    if text("client_id") != workos.client_id() || text("client_secret") != workos.api_key() {
        return Err(Fault::bad("invalid_client", "Invalid client ID or client secret."));
    }
    if text("grant_type") != "password" {
        return Err(Fault::bad("unsupported_grant_type", "The simulated WorkOS signs in with grant_type password."));
    }
    let user = workos.read(|state| state.user_by("email", text("email")));
    let user = user.ok_or_else(|| Fault::grant("There is no user with this email address."))?;
    let id = user.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
    let access_token = workos.sign_in(&id)?;
    // At the real WorkOS, users in this response have no metadata either.
    let mut user = workos.read(|state| state.user(&id))?;
    if let Value::Object(user) = &mut user {
        user.remove("metadata");
    }
    Ok(Json(json!({
        "user": user, "organization_id": null, "access_token": access_token,
        "refresh_token": workos.next_id("refresh"), "authentication_method": "Password",
    })))
}

async fn set_faults(State(workos): State<SimulatedWorkos>, Json(faults): Json<Faults>) -> Json<Faults> {
    workos.set_faults(faults);
    Json(faults)
}

async fn set_api_faults(State(workos): State<SimulatedWorkos>, Json(faults): Json<ApiFaults>) -> Json<ApiFaults> {
    workos.set_api_faults(faults.clone());
    Json(faults)
}

async fn attempt(
    State(workos): State<SimulatedWorkos>,
    Json(attempt): Json<Attempt>,
) -> Result<Json<ActionResult>, Fault> {
    workos.attempt(attempt).await.map(Json)
}

async fn emit(State(workos): State<SimulatedWorkos>, Json(given): Json<Object>) -> ApiResult {
    let event_type = given.get("event").and_then(Value::as_str).ok_or_else(|| Fault::invalid("required", "event"))?;
    Ok(Json(workos.emit(event_type, given.get("data").cloned().unwrap_or(json!({})))))
}

async fn token(State(workos): State<SimulatedWorkos>, Path(id): Path<String>) -> ApiResult {
    workos.sign_in(&id).map(|access_token| Json(json!({"access_token": access_token})))
}
