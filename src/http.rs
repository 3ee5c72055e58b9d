//! The HTTP edge: requests in, status codes out. It holds no SQL and no rules; who must act decides the status.

mod action;
mod auth;
mod body;
mod changes;
mod conditional;
mod connections;
mod error;
mod headers;
mod openapi;
mod ops;
mod server;
mod service_keys;
mod signed;
mod users;
mod webhook;
mod request_log;
mod write_timeout;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderValue, Method, header};
use axum::middleware;
use axum::routing::get;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use tower_http::cors::CorsLayer;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter, UtoipaMethodRouterExt};
use utoipa_axum::routes;

use crate::domain::clock::Clock;
use crate::lookup::Lookups;
use crate::metrics::Metrics;
use crate::store::Store;
use crate::sync::driver::Jobs;
use crate::sync::feed::Feed;
use crate::sync::progress::Watch;
use crate::tokens::KeyCache;
use crate::workos::signature::Secret;

pub(crate) use action::ActionEdge;
pub use action::{ACTION_BODY_LIMIT, ACTION_PATH};
pub(crate) use auth::bearer;
pub(crate) use body::BodyBudget;
pub use error::Refusal as Rejection;
pub use headers::HEADERS;
use headers::REQUEST_ID;
pub use server::CONNECTIONS;
pub(crate) use server::{Limits, OPS_CONNECTIONS, Served, WRITE_TIMEOUT, serve};
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
    /// Sessions that webhooks bring are stored as sign-ins.
    pub(crate) session_sign_ins: bool,
    /// Whose pages may ask.
    pub(crate) cors_origins: Vec<HeaderValue>,
    /// Where WorkOS posts.
    pub(crate) webhook_path: String,
    /// How far a signature's time may lie from ours.
    pub(crate) signature_tolerance: Duration,
    /// How long a body may take to arrive.
    pub(crate) body_timeout: Duration,
    /// The memory for webhooks that are arriving.
    pub(crate) webhook_bodies: Arc<BodyBudget>,
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
    /// What has changed.
    pub(crate) feed: Feed,
    /// Cancelled when the service is about to end: nobody should wait for news any longer.
    pub(crate) closing: CancellationToken,
    /// What `/openapi.json` answers, written when the routes are put together.
    pub(crate) document: OnceLock<Bytes>,
    /// WorkOS's signing keys, whose state the ops page shows.
    pub(crate) keys: KeyCache,
}

/// The application's routes. A route stands here by its handler, whose annotation says where it is and what it answers, so that
/// what is served is what `/openapi.json` describes.
pub(crate) fn router(edge: Arc<Edge>) -> Router {
    with_layers(routes(&edge), edge)
}

/// The application's routes as a whole service: what is not a route is answered in our own shape too. That stands beneath the
/// layers, or a browser's preflight, whose method no route takes, would never come to CORS.
pub(crate) fn service(edge: Arc<Edge>) -> Router {
    with_layers(routes(&edge).fallback(error::no_route).method_not_allowed_fallback(error::no_method), edge)
}

fn routes(edge: &Arc<Edge>) -> Router<Arc<Edge>> {
    let lookups = OpenApiRouter::with_openapi(openapi::empty())
        .routes(routes!(auth::user))
        .routes(routes!(auth::session))
        .layer(middleware::map_response_with_state(edge.clone(), auth::synced_through));
    let mut asked = lookups.routes(routes!(auth::identity)).routes(routes!(openapi::document));
    let mut unkept = OpenApiRouter::new().routes(routes!(ops::healthz)).routes(routes!(ops::readyz));
    let users = OpenApiRouter::new().nest("/user_management", user_management(edge));
    if edge.service_keys.is_empty() {
        // Described all the same: a client is generated once, and a key may come tomorrow.
        asked.get_openapi_mut().merge(users.into_openapi());
        unkept.get_openapi_mut().merge(feed(edge).into_openapi());
    } else {
        (asked, unkept) = (asked.merge(users), unkept.merge(feed(edge)));
    }
    let mut all = asked.layer(middleware::from_fn(conditional::answer)).merge(unkept);
    if !edge.webhook_secrets.is_empty() {
        let (schemas, paths, receiver) = routes!(webhook::receive);
        all = all.routes((schemas, openapi::at(&edge.webhook_path, paths), receiver));
    }
    if edge.actions.is_some() {
        all = all.routes(routes!(action::decide));
    }
    let (routes, described) = all.split_for_parts();
    edge.document.get_or_init(|| openapi::text(&described));
    routes
}

/// Measured, logged and open to pages of the configured origins.
fn with_layers(routes: Router<Arc<Edge>>, edge: Arc<Edge>) -> Router {
    let routes = routes.layer(middleware::from_fn_with_state(edge.clone(), request_log::request));
    match cors(&edge.cors_origins) {
        Some(cors) => routes.layer(cors).with_state(edge),
        None => routes.with_state(edge),
    }
}

/// Lets pages of these origins, and no others, ask with a token of their user. No cookies: there are none.
fn cors(origins: &[HeaderValue]) -> Option<CorsLayer> {
    let exposed = [header::WWW_AUTHENTICATE, header::ETAG, header::RETRY_AFTER].into_iter().chain(HEADERS);
    let layer = CorsLayer::new()
        .allow_origin(origins.to_vec())
        .allow_methods([Method::GET, Method::HEAD])
        .allow_headers([header::AUTHORIZATION, header::IF_NONE_MATCH, REQUEST_ID])
        .expose_headers(exposed.collect::<Vec<_>>())
        .max_age(Duration::from_secs(600));
    (!origins.is_empty()).then_some(layer)
}

/// WorkOS's own read API.
fn user_management(edge: &Arc<Edge>) -> OpenApiRouter<Arc<Edge>> {
    let read_only = |route: UtoipaMethodRouter<Arc<Edge>>| route.map(|methods| methods.fallback(users::read_only));
    OpenApiRouter::new()
        .routes(read_only(routes!(users::list)))
        .routes(read_only(routes!(users::by_id)))
        .routes(read_only(routes!(users::by_external_id)))
        .fallback(users::not_served)
        .layer(middleware::map_response_with_state(edge.clone(), auth::synced_through))
        .layer(middleware::from_fn_with_state(edge.clone(), users::require_service_key))
}

/// The change feed.
fn feed(edge: &Arc<Edge>) -> OpenApiRouter<Arc<Edge>> {
    let keyed = middleware::from_fn_with_state(edge.clone(), users::require_service_key);
    OpenApiRouter::new().routes(routes!(changes::read)).layer(keyed)
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
