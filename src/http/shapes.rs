//! Bodies and rejections that several routes share, as `/openapi.json` describes them.

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::{IntoResponses, ToSchema};

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
#[expect(dead_code, reason = "the shape of what Rejection answers")]
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
