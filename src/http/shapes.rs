//! Bodies and rejections that several routes share, as `/openapi.json` describes them.

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::{IntoResponses, ToSchema};

/// A live user in the format of WorkOS's API. Fields that this release does not know are passed on.
#[derive(ToSchema)]
#[schema(as = User)]
#[expect(dead_code, reason = "the JSON of crate::domain::user::User")]
pub(super) struct UserShape {
    #[schema(inline)]
    object: UserObject,
    /// WorkOS's ID of the user. Opaque and never reused.
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
    /// Your own ID of the user.
    #[schema(required)]
    external_id: Option<String>,
    metadata: BTreeMap<String, Option<String>>,
    /// The last sign-in when the user last changed or was last reconciled, because WorkOS sends no event for a sign-in.
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

/// A live organization in the format of WorkOS's API. Fields that this release does not know are passed on.
#[derive(ToSchema)]
#[schema(as = Organization)]
#[expect(dead_code, reason = "the JSON of crate::domain::organization::Organization")]
pub(super) struct OrganizationShape {
    object: String,
    /// WorkOS's ID of the organization. Opaque and never reused.
    #[schema(examples("org_01M1BE6HKCX1KJMBSNH6QNGVQR"))]
    id: String,
    name: String,
    /// Without their verification tokens.
    domains: Vec<Value>,
    metadata: BTreeMap<String, Option<String>>,
    /// Your own ID of the organization.
    #[schema(required)]
    external_id: Option<String>,
    /// Absent if there is none, as at WorkOS.
    stripe_customer_id: Option<String>,
    #[schema(required, format = DateTime)]
    created_at: Option<String>,
    #[schema(format = DateTime)]
    updated_at: String,
    #[serde(flatten)]
    extra: BTreeMap<String, Value>,
}

/// A membership of any status in the format of WorkOS's API. Fields that this release does not know are passed on.
#[derive(ToSchema)]
#[schema(as = OrganizationMembership)]
#[expect(dead_code, reason = "the JSON of crate::domain::membership::Membership")]
pub(super) struct MembershipShape {
    object: String,
    /// WorkOS's ID of the membership. A re-added member has a new one.
    id: String,
    user_id: String,
    organization_id: String,
    /// `active`, `inactive` or `pending`. WorkOS may add others.
    status: String,
    /// The role of highest priority.
    #[schema(required)]
    role: Option<SlugShape>,
    roles: Vec<SlugShape>,
    /// Attributes from the identity provider.
    custom_attributes: BTreeMap<String, Value>,
    directory_managed: bool,
    /// The name of the organization. Only in lists of memberships. Null or absent if the organization is not synced yet.
    organization_name: Option<String>,
    #[schema(required, format = DateTime)]
    created_at: Option<String>,
    #[schema(format = DateTime)]
    updated_at: String,
    /// The member. Only at the paths of WorkOS's API. Absent if the user is unknown.
    user: Option<UserShape>,
    #[serde(flatten)]
    extra: BTreeMap<String, Value>,
}

/// A role in the format of WorkOS's API. Fields that this release does not know are passed on.
#[derive(ToSchema)]
#[schema(as = Role)]
#[expect(dead_code, reason = "the JSON of crate::domain::role::Role")]
pub(super) struct RoleShape {
    object: String,
    #[schema(required)]
    id: Option<String>,
    /// Identifies the role in its environment or organization.
    slug: String,
    #[schema(required)]
    name: Option<String>,
    #[schema(required)]
    description: Option<String>,
    /// `EnvironmentRole` or `OrganizationRole`.
    #[schema(required)]
    r#type: Option<String>,
    #[schema(required)]
    resource_type_slug: Option<String>,
    /// The slugs of the permissions of the role.
    permissions: Vec<String>,
    #[schema(required, format = DateTime)]
    created_at: Option<String>,
    #[schema(required, format = DateTime)]
    updated_at: Option<String>,
    #[serde(flatten)]
    extra: BTreeMap<String, Value>,
}

/// A permission in the format of WorkOS's API. Fields that this release does not know are passed on.
#[derive(ToSchema)]
#[schema(as = Permission)]
#[expect(dead_code, reason = "the JSON of crate::domain::role::Permission")]
pub(super) struct PermissionShape {
    object: String,
    #[schema(required)]
    id: Option<String>,
    /// Identifies the permission.
    slug: String,
    #[schema(required)]
    name: Option<String>,
    #[schema(required)]
    description: Option<String>,
    /// Whether WorkOS itself manages the permission.
    system: bool,
    #[schema(required)]
    resource_type_slug: Option<String>,
    #[schema(required, format = DateTime)]
    created_at: Option<String>,
    #[schema(required, format = DateTime)]
    updated_at: Option<String>,
    #[serde(flatten)]
    extra: BTreeMap<String, Value>,
}

/// A role of a membership.
#[derive(ToSchema)]
#[schema(as = RoleSlug)]
#[expect(dead_code, reason = "part of a membership's JSON")]
pub(super) struct SlugShape {
    slug: String,
}

/// The claims of a verified access token.
#[derive(ToSchema)]
#[schema(as = Identity)]
#[expect(dead_code, reason = "the JSON of crate::tokens::Identity")]
pub(super) struct IdentityShape {
    /// The user ID (`sub`).
    subject: String,
    /// The issuer (`iss`), unchanged.
    issuer: String,
    /// `issuer|subject`
    token_identifier: String,
    /// Whether an administrator is impersonating the user.
    impersonated: bool,
    /// Every claim, including those of your JWT template.
    claims: BTreeMap<String, Value>,
}

/// A rejection: `code` is for programs, `message` is for people.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the body of Rejection")]
pub(super) struct Error {
    code: String,
    message: String,
}

/// Your copy is current.
#[derive(IntoResponses)]
#[response(status = 304, headers(("ETag" = String, description = "Send it as `If-None-Match`.")))]
pub(super) struct NotModified;

/// Rejections of an access token.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only for /openapi.json")]
pub(super) enum TokenRefused {
    /// `token_missing`, `token_expired`, `token_invalid`.
    #[response(status = 401, headers(("WWW-Authenticate" = String, description = "The reason (RFC 6750).")))]
    Token(Error),
    /// `keys_unavailable`. The service failed: do not sign the user out.
    #[response(status = 503, headers(("Retry-After" = u32, description = "Seconds to wait before a retry.")))]
    Unavailable(Error),
}

/// Rejections of a lookup by access token.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only for /openapi.json")]
pub(super) enum LookupRefused {
    /// `token_missing`, `token_expired`, `token_invalid`, `session_revoked`.
    #[response(status = 401, headers(("WWW-Authenticate" = String, description = "The reason (RFC 6750).")))]
    Token(Error),
    /// `user_not_found` (perhaps not synced yet), `user_deleted`.
    #[response(status = 404)]
    NoUser(Error),
    /// `user_not_synced`, `keys_unavailable`, `database_unavailable`. The service failed: do not sign the user out.
    #[response(status = 503, headers(("Retry-After" = u32, description = "Seconds to wait before a retry.")))]
    Unavailable(Error),
}

/// Rejections of the list of the caller's memberships.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only for /openapi.json")]
pub(super) enum OwnMembershipsRefused {
    /// `token_missing`, `token_expired`, `token_invalid`, `session_revoked`.
    #[response(status = 401, headers(("WWW-Authenticate" = String, description = "The reason (RFC 6750).")))]
    Token(Error),
    /// `user_not_found` (perhaps not synced yet), `user_deleted`; `kind_disabled` if AUTHKIT_SYNC_KINDS does not name memberships.
    #[response(status = 404)]
    NoUser(Error),
    /// `user_not_synced`, `memberships_not_synced` (the first backfill has not completed), `keys_unavailable`,
    /// `database_unavailable`. The service failed: do not sign the user out.
    #[response(status = 503, headers(("Retry-After" = u32, description = "Seconds to wait before a retry.")))]
    Unavailable(Error),
}

/// Rejections of a lookup in the token's organization.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only for /openapi.json")]
pub(super) enum SessionRefused {
    /// `token_missing`, `token_expired`, `token_invalid`, `session_revoked`.
    #[response(status = 401, headers(("WWW-Authenticate" = String, description = "The reason (RFC 6750).")))]
    Token(Error),
    /// `membership_inactive`, `organization_deleted`. The user is not an active member of the token's organization, or the
    /// organization was deleted.
    #[response(status = 403)]
    NoMember(Error),
    /// `user_not_found` (perhaps not synced yet), `user_deleted`.
    #[response(status = 404)]
    NoUser(Error),
    /// `user_not_synced`, `memberships_not_synced`, `keys_unavailable`, `database_unavailable`. The service failed: do not sign the
    /// user out.
    #[response(status = 503, headers(("Retry-After" = u32, description = "Seconds to wait before a retry.")))]
    Unavailable(Error),
}
