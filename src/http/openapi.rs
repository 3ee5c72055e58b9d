//! `GET /openapi.json`: what the public listener serves, described from the routes themselves.
//!
//! A route is described where it is served: its handler carries `#[utoipa::path(…)]`, and [`super::router`] mounts it by
//! `.routes(routes!(handler))`. The shapes that are written by hand elsewhere (a user, an identity) are described here; a test
//! holds every one against what a running service answers.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{ComponentsBuilder, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, Paths};

use super::shapes::{Error, NotModified};
use super::state::HttpState;
use super::workos_error::WorkosError;
use crate::workos::signature;

/// The document before any route is in it.
pub(super) fn empty() -> OpenApi {
    let about =
        "Who is behind a WorkOS AuthKit access token, and the users it may belong to, from your own PostgreSQL.";
    let info = InfoBuilder::new()
        .title("authkit-sync")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(about))
        .license(Some(LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build()))
        .build();
    let bearer = |about: &str, format: Option<&str>| {
        let mut http = Http::new(HttpAuthScheme::Bearer);
        (http.description, http.bearer_format) = (Some(about.to_owned()), format.map(str::to_owned));
        SecurityScheme::Http(http)
    };
    let signed = ApiKeyValue::with_description(signature::HEADER, "WorkOS's signature over the body's bytes");
    // Bodies that only groups of refusals name are not found by the routes.
    let refusals = ComponentsBuilder::new().schema_from::<Error>().schema_from::<WorkosError>();
    let mut components = refusals.build();
    components.add_security_scheme("access_token", bearer("a signed-in user's AuthKit access token", Some("JWT")));
    components.add_security_scheme("service_key", bearer("one of AUTHKIT_SYNC_API_KEYS", None));
    components.add_security_scheme("workos_signature", SecurityScheme::ApiKey(ApiKey::Header(signed)));
    OpenApiBuilder::new().info(info).components(Some(components)).build()
}

/// A route that is described at one path and served at another.
pub(super) fn at(path: &str, described: Paths) -> Paths {
    let mut served = Paths::new();
    served.paths = described.paths.into_values().map(|item| (path.to_owned(), item)).collect();
    served
}

/// What this service serves, in OpenAPI 3.1.
#[utoipa::path(
    get,
    path = "/openapi.json",
    operation_id = "getDescription",
    tag = "operation",
    responses((status = 200, description = "This document.", body = BTreeMap<String, Value>), NotModified)
)]
pub(super) async fn document(State(state): State<Arc<HttpState>>) -> Response {
    let document = state.document.get().cloned().unwrap_or_default();
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "public, max-age=300")];
    (headers, document).into_response()
}

/// The document's text.
pub(super) fn text(document: &OpenApi) -> Bytes {
    // It is made of text and numbers alone, so that nothing in it can fail to be written.
    serde_json::to_vec(document).map(Bytes::from).unwrap_or_default()
}
