//! `GET /openapi.json`: describes the routes of the public listener.
//!
//! Each handler has an annotation `#[utoipa::path(…)]`, and [`super::router`] mounts it with `.routes(routes!(handler))`.
//! `shapes.rs` describes the bodies that have their own serialization (a user, an identity). A test compares each description with
//! the answers of a running service.

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

/// Returns the document without routes.
pub(super) fn empty() -> OpenApi {
    let about = "Looks up the user of a WorkOS AuthKit access token, and lists users and their changes, from your own PostgreSQL.";
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
    let signed = ApiKeyValue::with_description(signature::HEADER, "WorkOS's signature of the request body.");
    // utoipa does not find bodies that are named only in `IntoResponses`.
    let errors = ComponentsBuilder::new().schema_from::<Error>().schema_from::<WorkosError>();
    let mut components = errors.build();
    components
        .add_security_scheme("access_token", bearer("The AuthKit access token of a signed-in user.", Some("JWT")));
    components.add_security_scheme("service_key", bearer("One of the service keys in AUTHKIT_SYNC_API_KEYS.", None));
    components.add_security_scheme("workos_signature", SecurityScheme::ApiKey(ApiKey::Header(signed)));
    OpenApiBuilder::new().info(info).components(Some(components)).build()
}

/// Moves the description of a route to the path where it is served.
pub(super) fn at(path: &str, described: Paths) -> Paths {
    let mut served = Paths::new();
    served.paths = described.paths.into_values().map(|item| (path.to_owned(), item)).collect();
    served
}

/// Get this description of the service in OpenAPI 3.1.
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

/// Returns the document as JSON.
pub(super) fn text(document: &OpenApi) -> Bytes {
    // The document contains only text and numbers, so serialization cannot fail.
    serde_json::to_vec(document).map(Bytes::from).unwrap_or_default()
}
