//! The HTTP paths of WorkOS, and those that control the simulation.

use axum::extract::{Path, Query, RawPathParams, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, get, on, post};
use axum::{Json, Router};
use bytes::Bytes;
use serde_json::{Value, json};

use super::actions::{ActionResult, Attempt};
use super::authenticate::authenticate;
use super::cascades::Cascades;
use super::collection::{Object, text};
use super::deliveries::Faults;
use super::fault::Fault;
use super::fault_injector::{self, ApiFaults};
use super::routes::{Action, Read, Reads};
use super::state::user_not_found;
use super::tokens::TokenRequest;
use super::{
    SimulatedWorkos, domains, memberships, organization_roles, organizations, pages, permissions, roles, sessions,
    webhook_endpoints,
};

type ApiResult = Result<Json<Value>, Fault>;
type Parameters = Query<Vec<(String, String)>>;

const USER_READS: &Reads = &[
    ("/user_management/users", users),
    ("/user_management/users/{id}", |read| read.state.user(read.id(0))),
    ("/user_management/users/external_id/{external_id}", |read| {
        let user = read.state.user_by("external_id", read.id(0));
        user.ok_or_else(|| user_not_found(read.id(0)))
    }),
];

/// Every read of the API except that of events, which has a different kind of pages.
const READS: [&Reads; 7] = [
    USER_READS,
    organizations::READS,
    memberships::READS,
    roles::READS,
    organization_roles::READS,
    permissions::READS,
    sessions::READS,
];

/// The actions on objects.
static ACTIONS: [&[Action]; 7] = [
    &organizations::ACTIONS,
    &domains::ACTIONS,
    &memberships::ACTIONS,
    &roles::ACTIONS,
    &organization_roles::ACTIONS,
    &permissions::ACTIONS,
    &sessions::ACTIONS,
];

/// The other actions: path, body and effect. Their method is `POST`.
const OTHER_ACTIONS: [(&str, &str, &str); 6] = [
    (
        "/_simulate/deliveries",
        r#"{"duplicate":0,"reorder":0,"delay_ms":0,"drop":0}"#,
        "makes deliveries unreliable (percent)",
    ),
    (
        "/_simulate/api",
        r#"{"error":0,"rate_limit":0}"#,
        "makes the API unreliable (percent; more fields: type ApiFaults)",
    ),
    (
        "/_simulate/cascades",
        r#"{"memberships":false,"sessions":false}"#,
        "selects whether events are created for what a deletion of a user, an organization, a membership or a role ends",
    ),
    ("/_simulate/events", r#"{"event":"type","data":{}}"#, "creates an event of any type"),
    (
        "/_simulate/actions",
        r#"{"email":"…"} or {"user_id":"…"}"#,
        "requests a verdict from the application: whether a person may sign up or sign in",
    ),
    (
        "/_simulate/users/{id}/token",
        r#"{"org_id":"org_…","session_id":"session_…","role":"…","roles":[],"permissions":[],"expires_in_s":300,"claims":{}}"#,
        "returns an access token; every field is optional. Without session_id the user signs in. Event: session.created",
    ),
];

pub(super) fn router(workos: SimulatedWorkos) -> Router {
    let mut with_key = Router::new()
        .route("/user_management/users", post(create_user))
        .route("/user_management/users/{id}", on(MethodFilter::PUT, update_user).delete(delete_user))
        .route("/user_management/sessions/revoke", post(revoke_session))
        .route("/events", get(list_events))
        .merge(webhook_endpoints::routes());
    for (path, read) in READS.into_iter().flatten() {
        with_key = with_key.route(path, get(async |state, path, query| answer(*read, state, path, query)));
    }
    let with_key = with_key
        .layer(middleware::from_fn_with_state(workos.clone(), require_api_key))
        .layer(middleware::from_fn_with_state(workos.clone(), fault_injector::inject));
    let mut router = Router::new()
        .route("/", get(async || Json(described())))
        .route("/sso/jwks/{client_id}", get(jwks))
        .route("/user_management/authenticate", post(authenticate))
        .route("/_simulate/deliveries", post(set_faults))
        .route("/_simulate/api", post(set_api_faults))
        .route("/_simulate/cascades", post(set_cascades))
        .route("/_simulate/actions", post(attempt))
        .route("/_simulate/events", post(emit))
        .route("/_simulate/users/{id}/token", post(token));
    for action in ACTIONS.into_iter().flatten() {
        router = router.route(action.path, of_action(action));
    }
    router.merge(with_key).layer(middleware::map_response_with_state(workos.clone(), add_headers)).with_state(workos)
}

/// Describes the paths that control the simulation.
fn described() -> Value {
    let others = OTHER_ACTIONS.iter().map(|(path, body, effect)| ("POST", *path, *body, *effect));
    let actions = ACTIONS.into_iter().flatten();
    let actions = actions.map(|action| (action.method.as_str(), action.path, action.body, action.effect));
    let described = others.chain(actions).map(|(method, path, body, effect)| {
        json!({"method": method, "path": path, "body": if body.is_empty() { None } else { Some(body) }, "effect": effect})
    });
    json!({"object": "list", "data": described.collect::<Vec<_>>()})
}

/// Answers a read. A 404 has the format that the faults select.
fn answer(
    read: fn(&Read<'_>) -> Result<Value, Fault>,
    State(workos): State<SimulatedWorkos>,
    path: RawPathParams,
    Query(parameters): Parameters,
) -> ApiResult {
    let (path, faults) = (values(&path), workos.fault_injector().faults());
    let now = workos.now();
    let answer = workos.read(|state| read(&Read { state, path: &path, parameters: &parameters, faults: &faults, now }));
    answer.map(Json).map_err(|fault| match &faults {
        faults if faults.emulator_not_found => fault.like_emulator(),
        faults if faults.bare_not_found => fault.bare(),
        _ => fault,
    })
}

fn of_action(action: &'static Action) -> MethodRouter<SimulatedWorkos> {
    let method = MethodFilter::try_from(action.method.clone()).unwrap_or(MethodFilter::POST);
    let run = async |State(workos): State<SimulatedWorkos>, path: RawPathParams, body: Bytes| -> ApiResult {
        (action.run)(&workos, &values(&path), &given(&body)?).map(Json)
    };
    on(method, run)
}

/// Returns the values of the placeholders in a path.
fn values(path: &RawPathParams) -> Vec<String> {
    path.iter().map(|(_, value)| value.to_owned()).collect()
}

/// Reads a body that can be absent.
fn given(body: &Bytes) -> Result<Object, Fault> {
    let object = if body.is_empty() { Ok(Object::new()) } else { serde_json::from_slice(body) };
    object.map_err(|_| Fault::bad("invalid_json", "The body is not a JSON object."))
}

async fn require_api_key(
    State(workos): State<SimulatedWorkos>,
    request: Request,
    next: Next,
) -> Result<Response, Fault> {
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if given.and_then(|value| value.strip_prefix("Bearer ")).is_some_and(|key| workos.accepts_api_key(key)) {
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

async fn list_events(State(workos): State<SimulatedWorkos>, Query(parameters): Parameters) -> ApiResult {
    let fault_injector = workos.fault_injector();
    let after = parameters.iter().find(|(name, _)| name == "after").map(|(_, id)| id.as_str());
    let window =
        pages::Window { faults: fault_injector.faults(), lost: fault_injector.cursors_lost(after), now: workos.now() };
    let page = workos.read(|state| pages::events(&state.events, &parameters, &window))?;
    fault_injector.listed(&page);
    Ok(Json(page))
}

/// `GET /user_management/users`, optionally the active members of an organization.
fn users(read: &Read<'_>) -> Result<Value, Fault> {
    let users = &read.state.users;
    let (mut keys, of_organization);
    keys = read.parameter("email").map_or(users.keys(), |email| users.keys_with("email", email));
    if let Some(organization) = read.parameter("organization_id") {
        let members = read.state.memberships.with("organization_id", organization);
        let active = members.filter(|membership| text(membership, "status") == "active");
        let active = active.filter_map(|membership| users.key(text(membership, "user_id")));
        of_organization = active.filter(|key| keys.contains(key)).collect();
        keys = &of_organization;
    }
    read.page(users, keys, |_| true, |user| Value::Object(user.clone()))
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

async fn set_faults(State(workos): State<SimulatedWorkos>, Json(faults): Json<Faults>) -> Json<Faults> {
    workos.set_faults(faults);
    Json(faults)
}

async fn set_cascades(State(workos): State<SimulatedWorkos>, Json(cascades): Json<Cascades>) -> Json<Cascades> {
    workos.set_cascades(cascades);
    Json(cascades)
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

async fn token(State(workos): State<SimulatedWorkos>, Path(id): Path<String>, body: Bytes) -> ApiResult {
    let request = Value::Object(given(&body)?);
    let request: TokenRequest = serde_json::from_value(request)
        .map_err(|_| Fault::bad("invalid_token_request", "The body has an unknown or malformed field."))?;
    workos.issue_token(&id, request).map(|access_token| Json(json!({"access_token": access_token})))
}

async fn revoke_session(State(workos): State<SimulatedWorkos>, Json(given): Json<Object>) -> ApiResult {
    workos.revoke_session(text(&given, "session_id")).map(Json)
}
