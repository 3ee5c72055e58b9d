//! `GET /auth/user`, `/auth/identity` and `/auth/session`: the user and the claims of an access token.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::conditional;
use super::error::Rejection;
use super::headers::SYNCED_THROUGH;
use super::shapes::{
    IdentityShape, LookupRefused, MembershipShape, NotModified, OrganizationShape, SessionRefused, TokenRefused,
    UserShape,
};
use super::state::HttpState;
use crate::domain::membership::Membership;
use crate::domain::organization::Organization;
use crate::domain::timestamp::Timestamp;
use crate::domain::user::User;
use crate::lookup::Session;
use crate::tokens::Identity;

/// Get the user of the access token.
#[utoipa::path(
    get,
    path = "/auth/user",
    operation_id = "getAuthUser",
    tag = "auth",
    security(("access_token" = [])),
    responses(
        (
            status = 200,
            description = "The live user.",
            body = UserShape,
            headers(
                ("ETag" = String, description = "Send it as `If-None-Match`."),
                ("AuthKit-Sync-Synced-Through" = String, description = "The users table is complete up to this time.")
            )
        ),
        NotModified,
        LookupRefused
    )
)]
pub(super) async fn user(State(state): State<Arc<HttpState>>, request: Request) -> Response {
    let headers = request.headers();
    let answer = async { Ok(conditional::json(headers, &state.lookups.auth_user(bearer(headers)?).await?)) };
    let response = answer.await.unwrap_or_else(Rejection::into_response);
    with_synced_through(state.watch.progress().synced_through, response)
}

/// Get the claims of the access token. The database is not used.
#[utoipa::path(
    get,
    path = "/auth/identity",
    operation_id = "getIdentity",
    tag = "auth",
    security(("access_token" = [])),
    responses(
        (
            status = 200,
            description = "The token's claims.",
            body = IdentityShape,
            headers(
                ("ETag" = String, description = "Send it as `If-None-Match`.")
            )
        ),
        NotModified,
        TokenRefused
    )
)]
pub(super) async fn identity(State(state): State<Arc<HttpState>>, request: Request) -> Result<Response, Rejection> {
    let headers = request.headers();
    Ok(conditional::json(headers, &state.lookups.identity(bearer(headers)?).await?))
}

/// Get the user and the claims of the access token, and what the user may do in the token's organization.
#[utoipa::path(
    get,
    path = "/auth/session",
    operation_id = "getSession",
    tag = "auth",
    security(("access_token" = [])),
    responses(
        (
            status = 200,
            description = "The live user, the token's claims, and the active membership in the token's organization.",
            body = SessionAnswer,
            headers(
                ("ETag" = String, description = "Send it as `If-None-Match`."),
                ("AuthKit-Sync-Synced-Through" = String, description = "The users table is complete up to this time.")
            )
        ),
        NotModified,
        SessionRefused
    )
)]
pub(super) async fn session(State(state): State<Arc<HttpState>>, request: Request) -> Response {
    let headers = request.headers();
    let answer = async {
        let session = state.lookups.session(bearer(headers)?).await?;
        let synced_through = state.watch.progress().synced_through;
        Ok(conditional::json(headers, &SessionAnswer::of(session, state.lookups.checks_memberships(), synced_through)))
    };
    let response = answer.await.unwrap_or_else(Rejection::into_response);
    with_synced_through(state.watch.progress().synced_through, response)
}

/// Adds the time up to which the users table is complete.
pub(super) fn with_synced_through(synced_through: Option<Timestamp>, mut response: Response) -> Response {
    let synced_through = synced_through.map(|at| at.to_string());
    if let Some(value) = synced_through.and_then(|at| HeaderValue::from_str(&at).ok()) {
        response.headers_mut().insert(SYNCED_THROUGH, value);
    }
    response
}

#[derive(Serialize, ToSchema)]
#[schema(as = Session)]
pub(super) struct SessionAnswer {
    #[schema(value_type = UserShape)]
    user: User,
    #[schema(value_type = IdentityShape)]
    identity: Identity,
    /// The token's organization. Null if it has none. Absent, like the next four fields, if memberships are not checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<OrganizationShape>)]
    organization: Option<Option<Organization>>,
    /// The active membership in the organization. Null if the token has no organization.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<MembershipShape>)]
    membership: Option<Option<Membership>>,
    /// The current slugs of the membership's roles.
    #[serde(skip_serializing_if = "Option::is_none")]
    roles: Option<Vec<String>>,
    /// The current slugs of the permissions of these roles.
    #[serde(skip_serializing_if = "Option::is_none")]
    permissions: Option<Vec<String>>,
    /// The claims `role`, `roles` and `permissions` of the token that differ from the fields above, because roles or permissions
    /// have changed since the token was issued. Usually empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_differs: Option<Map<String, Value>>,
    /// The users table is complete up to this time. Null until a first backfill or reconcile has completed and catch-up has reached
    /// the end of the events.
    #[schema(required, value_type = Option<String>, format = DateTime)]
    synced_through: Option<Timestamp>,
}

impl SessionAnswer {
    fn of(session: Session, checks_memberships: bool, synced_through: Option<Timestamp>) -> Self {
        let Session { user, identity, organization, membership, roles, permissions } = session;
        let differs = membership.as_ref().map(|membership| differences(&identity, membership, &permissions));
        Self {
            organization: checks_memberships.then_some(organization),
            membership: checks_memberships.then_some(membership),
            roles: checks_memberships.then_some(roles),
            permissions: checks_memberships.then_some(permissions),
            token_differs: checks_memberships.then(|| differs.unwrap_or_default()),
            user,
            identity,
            synced_through,
        }
    }
}

/// The claims of a token about roles and permissions.
#[derive(Default, Deserialize)]
#[serde(default)]
struct RoleClaims {
    role: Option<Value>,
    roles: Option<Value>,
    permissions: Option<Value>,
}

/// Returns the token's claims about roles and permissions that differ from the membership.
fn differences(identity: &Identity, membership: &Membership, permissions: &[String]) -> Map<String, Value> {
    let claims: RoleClaims = identity.claims().unwrap_or_default();
    let is_same = |claim: &Value, stored: &[String]| {
        let claimed: BTreeSet<&str> = claim.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        claimed == stored.iter().map(String::as_str).collect()
    };
    let role = claims.role.filter(|claim| claim.as_str() != membership.role.as_deref());
    let roles = claims.roles.filter(|claim| !is_same(claim, &membership.roles));
    let permissions = claims.permissions.filter(|claim| !is_same(claim, permissions));
    let differences = [("role", role), ("roles", roles), ("permissions", permissions)];
    differences.into_iter().filter_map(|(name, claim)| Some((name.to_owned(), claim?))).collect()
}

/// Returns the token of `Authorization: Bearer <token>` (RFC 6750). The scheme is not case-sensitive.
pub(crate) fn bearer(headers: &HeaderMap) -> Result<&str, Rejection> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().ok_or_else(|| Rejection::token_missing("send `Authorization: Bearer <access token>`"))?;
    if values.next().is_some() {
        return Err(Rejection::token_missing("there is more than one Authorization header; send one"));
    }
    let (scheme, token) = value.to_str().ok().and_then(|value| value.split_once(' ')).unwrap_or_default();
    if scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty() {
        Ok(token.trim())
    } else {
        Err(Rejection::token_missing("the Authorization header is not `Bearer <access token>`"))
    }
}
