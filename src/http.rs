//! The HTTP edge: requests in, status codes out. It holds no SQL and no rules; who must act decides the status.

mod action;
mod auth;
mod body;
mod conditional;
mod error;
mod ops;
mod server;
mod service_keys;
mod signed;
mod users;
mod webhook;
mod wide_log;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware;
use axum::routing::{get, post};
use tokio::sync::Semaphore;
use tower_http::cors::CorsLayer;

use crate::auth::KeyCache;
use crate::domain::clock::Clock;
use crate::lookup::Lookups;
use crate::metrics::Metrics;
use crate::store::Store;
use crate::sync::driver::Jobs;
use crate::sync::progress::Watch;
use crate::workos::signature::Secret;

pub use action::ACTION_PATH;
pub(crate) use action::ActionEdge;
pub(crate) use auth::bearer;
pub use error::Refusal as Rejection;
pub use server::CONNECTIONS;
pub(crate) use server::{Limits, Served, serve};
pub use service_keys::KEY_LENGTH;
pub(crate) use service_keys::ServiceKeys;

/// What the handlers share.
#[derive(Debug)]
pub(crate) struct Edge {
    /// Where events go.
    pub(crate) store: Store,
    /// Where answers come from.
    pub(crate) lookups: Lookups,
    /// What WorkOS may sign with; without one there is no receiver.
    pub(crate) webhook_secrets: Vec<Secret>,
    /// Who decides about actions; `None`: there is no such route.
    pub(crate) actions: Option<Arc<ActionEdge>>,
    /// The keys of backends that read users; without one they cannot.
    pub(crate) service_keys: ServiceKeys,
    /// Whose pages may ask.
    pub(crate) cors_origins: Vec<HeaderValue>,
    /// Where WorkOS posts.
    pub(crate) webhook_path: String,
    /// How far a signature's time may lie from ours.
    pub(crate) signature_tolerance: Duration,
    /// The largest body taken, bytes.
    pub(crate) body_limit: usize,
    /// How long a body may take to arrive.
    pub(crate) body_timeout: Duration,
    /// Body bytes being read now, all requests together.
    pub(crate) bytes_in_flight: Arc<Semaphore>,
    /// Tells the time.
    pub(crate) clock: Clock,
    /// Counts.
    pub(crate) metrics: Arc<Metrics>,
    /// How far the table is complete.
    pub(crate) watch: Watch,
    /// How background jobs stand in this process.
    pub(crate) jobs: Arc<Jobs>,
    /// This process takes part in catch-up.
    pub(crate) catches_up: bool,
    /// WorkOS's signing keys, whose state the ops page shows.
    pub(crate) keys: KeyCache,
}

/// The application's routes.
pub(crate) fn router(edge: Arc<Edge>) -> Router {
    let lookups = Router::new()
        .route("/auth/user", get(auth::user))
        .route("/auth/session", get(auth::session))
        .layer(middleware::map_response_with_state(edge.clone(), auth::synced_through));
    let mut asked = lookups.route("/auth/identity", get(auth::identity));
    if !edge.service_keys.is_empty() {
        asked = asked.nest("/user_management", user_management(&edge));
    }
    let mut routes = asked
        .layer(middleware::from_fn(conditional::answer))
        .route("/healthz", get(ops::healthz))
        .route("/readyz", get(ops::readyz));
    if !edge.webhook_secrets.is_empty() {
        routes = routes.route(&edge.webhook_path, post(webhook::receive));
    }
    if let Some(actions) = &edge.actions {
        let decide = post(action::decide).with_state((edge.clone(), actions.clone()));
        routes = routes.route(ACTION_PATH, decide);
    }
    let routes = routes.layer(middleware::from_fn_with_state(edge.clone(), wide_log::request));
    match cors(&edge.cors_origins) {
        Some(cors) => routes.layer(cors).with_state(edge),
        None => routes.with_state(edge),
    }
}

/// Lets pages of these origins, and no others, ask with a token of their user. No cookies: there are none.
fn cors(origins: &[HeaderValue]) -> Option<CorsLayer> {
    let exposed =
        [header::WWW_AUTHENTICATE, header::ETAG, header::RETRY_AFTER, HeaderName::from_static("x-request-id")];
    let layer = CorsLayer::new()
        .allow_origin(origins.to_vec())
        .allow_methods([Method::GET, Method::HEAD])
        .allow_headers([header::AUTHORIZATION, header::IF_NONE_MATCH, HeaderName::from_static("x-request-id")])
        .expose_headers(exposed)
        .max_age(Duration::from_secs(600));
    (!origins.is_empty()).then_some(layer)
}

/// WorkOS's own read API.
fn user_management(edge: &Arc<Edge>) -> Router<Arc<Edge>> {
    Router::new()
        .route("/users", get(users::list).fallback(users::read_only))
        .route("/users/{id}", get(users::by_id).fallback(users::read_only))
        .route("/users/external_id/{external_id}", get(users::by_external_id).fallback(users::read_only))
        .fallback(users::not_served)
        .layer(middleware::map_response_with_state(edge.clone(), auth::synced_through))
        .layer(middleware::from_fn_with_state(edge.clone(), users::demand_key))
}

/// The operator's routes: probes with detail, and metrics.
pub(crate) fn ops_router(edge: Arc<Edge>) -> Router {
    Router::new()
        .route("/healthz", get(ops::healthz))
        .route("/readyz", get(ops::readyz_with_detail))
        .route("/metrics", get(ops::metrics))
        .fallback(error::no_route)
        .method_not_allowed_fallback(error::no_method)
        .with_state(edge)
}

/// The application's routes as a whole service: what is not a route is answered in our own shape too.
pub(crate) fn service(edge: Arc<Edge>) -> Router {
    router(edge).fallback(error::no_route).method_not_allowed_fallback(error::no_method)
}
