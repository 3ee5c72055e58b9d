//! HTTP: answers requests.
//!
//! This layer contains no SQL and no rules. The status says who must act: 4xx the caller, 503 this service.

mod action;
mod auth;
mod auth_memberships;
mod body;
mod changes;
mod conditional;
mod connections;
mod drain;
mod error;
mod headers;
mod memberships;
mod openapi;
mod ops;
mod organizations;
mod pages;
mod reads;
mod rejected_secrets;
mod request_log;
mod roles;
mod server;
mod service_key_check;
mod service_keys;
mod shapes;
mod signed;
mod state;
mod status;
mod users;
mod webhook;
mod workos_error;
mod workos_routes;
mod write_timeout;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderValue, Method, header};
use axum::middleware;
use axum::routing::get;
use tower_http::cors::CorsLayer;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter, UtoipaMethodRouterExt};
use utoipa_axum::routes;

pub use action::{ACTION_BODY_LIMIT, ACTION_PATH};
pub(crate) use auth::bearer;
pub(crate) use body::BodyBudget;
pub use drain::DRAIN_DELAY;
pub(crate) use drain::Drain;
pub use error::Rejection;
pub use headers::HEADERS;
use headers::REQUEST_ID;
pub(crate) use rejected_secrets::RejectedSecrets;
pub use server::CONNECTIONS;
pub(crate) use server::{Limits, OPS_CONNECTIONS, OPS_DRAIN, Served, WRITE_TIMEOUT, serve};
use service_key_check::require_service_key;
pub use service_keys::KEY_LENGTH;
pub(crate) use service_keys::ServiceKeys;
pub(crate) use state::{ActionState, HttpState};
pub(crate) use status::StatusPage;

/// Returns the application's routes, to be mounted in another router.
///
/// Each route is mounted by its handler. The handler's annotation contains the path and the answers, so `/openapi.json` describes
/// what is served.
pub(crate) fn router(state: Arc<HttpState>) -> Router {
    with_layers(routes(&state), state)
}

/// Returns the application's routes as a complete service: unknown paths and methods are answered in our error format too.
///
/// The fallbacks are below the layers. Otherwise a browser's preflight request, whose method no route accepts, would not reach the
/// CORS layer.
pub(crate) fn service(state: Arc<HttpState>) -> Router {
    with_layers(routes(&state).fallback(error::no_route).method_not_allowed_fallback(error::no_method), state)
}

fn routes(state: &Arc<HttpState>) -> Router<Arc<HttpState>> {
    let lookups = OpenApiRouter::with_openapi(openapi::empty())
        .routes(routes!(auth::user))
        .routes(routes!(auth::session))
        .routes(routes!(auth::identity))
        .routes(routes!(auth_memberships::list));
    let mut cached = OpenApiRouter::new().routes(routes!(openapi::document));
    let mut uncached = OpenApiRouter::new().routes(routes!(ops::healthz)).routes(routes!(ops::readyz));
    let mirror = mirror(state);
    if state.service_keys.load().is_empty() {
        // The routes are described even without a key, because a client is generated once, and a key can be configured later.
        cached.get_openapi_mut().merge(mirror.into_openapi());
        uncached.get_openapi_mut().merge(feed(state).into_openapi());
    } else {
        (cached, uncached) = (cached.merge(mirror), uncached.merge(feed(state)));
    }
    // The handlers of lookups answer 304 themselves, because each layer costs time.
    let mut all = lookups.merge(cached.layer(middleware::from_fn(conditional::answer))).merge(uncached);
    if !state.webhook_secrets.load().is_empty() {
        state.metrics.receives_webhooks(&state.webhook_path, state.webhook_secrets.load().len());
        let (schemas, paths, receiver) = routes!(webhook::receive);
        all = all.routes((schemas, openapi::at(&state.webhook_path, paths), receiver));
    }
    if state.actions.is_some() {
        all = all.routes(routes!(action::decide));
    }
    let (routes, described) = all.split_for_parts();
    state.document.get_or_init(|| openapi::text(&described));
    routes
}

/// Adds the layers: measurement, the log line, and CORS.
fn with_layers(routes: Router<Arc<HttpState>>, state: Arc<HttpState>) -> Router {
    let routes = routes.layer(middleware::from_fn_with_state(state.clone(), request_log::request));
    match cors(&state.cors_origins) {
        Some(cors) => routes.layer(cors).with_state(state),
        None => routes.with_state(state),
    }
}

/// Returns the CORS layer for these origins. It allows bearer tokens. It does not allow cookies, because the service uses none.
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

/// Returns the routes of WorkOS's API for reading, with its paths.
fn mirror(state: &Arc<HttpState>) -> OpenApiRouter<Arc<HttpState>> {
    let users = OpenApiRouter::new()
        .routes(readable(routes!(users::list)))
        .routes(readable(routes!(users::by_id)))
        .routes(readable(routes!(users::by_external_id)))
        .layer(middleware::from_fn_with_state(state.clone(), reads::with_synced_through));
    let memberships =
        OpenApiRouter::new().routes(readable(routes!(memberships::list))).routes(readable(routes!(memberships::by_id)));
    let organizations = OpenApiRouter::new()
        .routes(readable(routes!(organizations::list)))
        .routes(readable(routes!(organizations::by_id)))
        .routes(readable(routes!(organizations::by_external_id)))
        .routes(readable(routes!(roles::of_organization_at_older_path)));
    let authorization = OpenApiRouter::new()
        .routes(readable(routes!(roles::list)))
        .routes(readable(routes!(roles::by_slug)))
        .routes(readable(routes!(roles::of_organization)))
        .routes(readable(routes!(roles::of_organization_by_slug)))
        .routes(readable(routes!(roles::permissions)))
        .routes(readable(routes!(roles::permission_by_slug)));
    OpenApiRouter::new()
        .nest("/user_management", users.merge(memberships).fallback(workos_routes::not_served))
        .nest("/organizations", organizations.fallback(workos_routes::not_served))
        .nest("/authorization", authorization.fallback(workos_routes::not_served))
        .layer(middleware::from_fn_with_state(state.clone(), require_service_key))
}

/// Returns a route that answers all methods but reads with `read_only`.
fn readable(route: UtoipaMethodRouter<Arc<HttpState>>) -> UtoipaMethodRouter<Arc<HttpState>> {
    route.map(|methods| methods.fallback(workos_routes::read_only))
}

/// Returns the route of the change feed.
fn feed(state: &Arc<HttpState>) -> OpenApiRouter<Arc<HttpState>> {
    let keyed = middleware::from_fn_with_state(state.clone(), require_service_key);
    OpenApiRouter::new().routes(routes!(changes::read)).layer(keyed)
}

/// Returns the operator's routes: the status page, probes with detail, and metrics.
pub(crate) fn ops_router(state: Arc<HttpState>) -> Router {
    Router::new()
        .route("/", get(status::show))
        .route("/icon/{name}", get(status::icon))
        .route("/healthz", get(ops::healthz))
        .route("/readyz", get(ops::readyz_with_detail))
        .route("/metrics", get(ops::metrics))
        .fallback(error::no_route)
        .method_not_allowed_fallback(error::no_method)
        .with_state(state)
}
