//! `GET /openapi.json`: what the public listener serves, described from the routes themselves.
//!
//! A route is described where it is served: its handler carries `#[utoipa::path(…)]`, and [`super::router`] mounts it by
//! `.routes(routes!(handler))`. The shapes that are written by hand elsewhere (a user, an identity) are described here; a test
//! holds every one against what a running service answers.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::Value;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{ComponentsBuilder, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, Paths};
use utoipa::{IntoResponses, ToSchema};

use super::Edge;
use super::users::WorkosError;
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
pub(super) async fn document(State(edge): State<Arc<Edge>>) -> Response {
    let document = edge.document.get().cloned().unwrap_or_default();
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "public, max-age=300")];
    (headers, document).into_response()
}

/// The document's text.
pub(super) fn text(document: &OpenApi) -> Bytes {
    // It is made of text and numbers alone, so that nothing in it can fail to be written.
    serde_json::to_vec(document).map(Bytes::from).unwrap_or_default()
}

/// A live user, as WorkOS's own API shows it; fields that this release does not know are passed on.
#[derive(ToSchema)]
#[schema(as = User)]
#[expect(dead_code, reason = "the shape of crate::domain::user::User, which writes itself")]
pub(super) struct UserShape {
    #[schema(inline)]
    object: UserObject,
    /// WorkOS's id; opaque, never reused.
    #[schema(examples("user_01M1E0K8KTSGG8REDJXJJNWG5C"))]
    id: String,
    email: String,
    email_verified: bool,
    #[schema(required)]
    first_name: Option<String>,
    #[schema(required)]
    last_name: Option<String>,
    #[schema(required)]
    name: Option<String>,
    #[schema(required)]
    profile_picture_url: Option<String>,
    /// Your own id for the user.
    #[schema(required)]
    external_id: Option<String>,
    metadata: BTreeMap<String, Option<String>>,
    /// As fresh as the user's last change or the last reconcile.
    #[schema(required, format = DateTime)]
    last_sign_in_at: Option<String>,
    #[schema(required)]
    locale: Option<String>,
    #[schema(required, format = DateTime)]
    created_at: Option<String>,
    #[schema(format = DateTime)]
    updated_at: String,
    #[serde(flatten)]
    extra: BTreeMap<String, Value>,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "a constant of WorkOS's")]
enum UserObject {
    User,
}

/// What a verified access token says.
#[derive(ToSchema)]
#[schema(as = Identity)]
#[expect(dead_code, reason = "the shape of crate::tokens::Identity, which writes itself")]
pub(super) struct IdentityShape {
    /// The user's id (`sub`).
    subject: String,
    /// `iss`, as it stands in the token.
    issuer: String,
    /// `issuer|subject`
    token_identifier: String,
    /// Somebody of yours acts as the user.
    impersonated: bool,
    /// Every claim, those of your JWT template included.
    claims: BTreeMap<String, Value>,
}

/// A refusal. Programs look at `code`, people read `message`.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the shape of what Refusal answers")]
pub(super) struct Error {
    code: String,
    message: String,
}

/// Your copy is current.
#[derive(IntoResponses)]
#[response(status = 304, headers(("ETag" = String, description = "for If-None-Match")))]
pub(super) struct NotModified;

/// What a request with an access token may be refused by, whatever it asks.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described")]
pub(super) enum TokenRefused {
    /// `token_missing`, `token_expired`, `token_invalid`.
    #[response(status = 401, headers(("WWW-Authenticate" = String, description = "why (RFC 6750)")))]
    Token(Error),
    /// `keys_unavailable`: nobody may be signed out for it.
    #[response(status = 503, headers(("Retry-After" = u32, description = "seconds")))]
    Ours(Error),
}

/// What a question about the token's user may be refused by.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described")]
pub(super) enum LookupRefused {
    /// `token_missing`, `token_expired`, `token_invalid`.
    #[response(status = 401, headers(("WWW-Authenticate" = String, description = "why (RFC 6750)")))]
    Token(Error),
    /// `user_not_found` (not here, yet), `user_deleted`.
    #[response(status = 404)]
    NoUser(Error),
    /// `user_not_synced`, `keys_unavailable`, `database_unavailable`: nobody may be signed out for it.
    #[response(status = 503, headers(("Retry-After" = u32, description = "seconds")))]
    Ours(Error),
}
