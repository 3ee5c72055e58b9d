//! `GET /auth/user`, `/auth/identity` and `/auth/session`: the user and the claims of an access token.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::conditional;
use super::error::Rejection;
use super::headers::SYNCED_THROUGH;
use super::shapes::{IdentityShape, LookupRefused, NotModified, TokenRefused, UserShape};
use super::state::HttpState;
use crate::domain::timestamp::Timestamp;
use crate::domain::user::User;
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
    with_synced_through(&state, answer.await.unwrap_or_else(Rejection::into_response))
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

/// Get the user and the claims of the access token.
#[utoipa::path(
    get,
    path = "/auth/session",
    operation_id = "getSession",
    tag = "auth",
    security(("access_token" = [])),
    responses(
        (
            status = 200,
            description = "The live user and the token's claims.",
            body = Session,
            headers(
                ("ETag" = String, description = "Send it as `If-None-Match`."),
                ("AuthKit-Sync-Synced-Through" = String, description = "The users table is complete up to this time.")
            )
        ),
        NotModified,
        LookupRefused
    )
)]
pub(super) async fn session(State(state): State<Arc<HttpState>>, request: Request) -> Response {
    let headers = request.headers();
    let answer = async {
        let (user, identity) = state.lookups.session(bearer(headers)?).await?;
        let synced_through = state.watch.progress().synced_through;
        Ok(conditional::json(headers, &Session { user, identity, synced_through }))
    };
    with_synced_through(&state, answer.await.unwrap_or_else(Rejection::into_response))
}

/// Adds the time up to which the users table is complete.
pub(super) async fn synced_through(State(state): State<Arc<HttpState>>, response: Response) -> Response {
    with_synced_through(&state, response)
}

fn with_synced_through(state: &HttpState, mut response: Response) -> Response {
    let synced_through = state.watch.progress().synced_through.map(|at| at.to_string());
    if let Some(value) = synced_through.and_then(|at| HeaderValue::from_str(&at).ok()) {
        response.headers_mut().insert(SYNCED_THROUGH, value);
    }
    response
}

#[derive(Serialize, ToSchema)]
pub(super) struct Session {
    #[schema(value_type = UserShape)]
    user: User,
    #[schema(value_type = IdentityShape)]
    identity: Identity,
    /// The users table is complete up to this time. Null until a first backfill or reconcile has completed and catch-up has
    /// read to the end.
    #[schema(required, value_type = Option<String>, format = DateTime)]
    synced_through: Option<Timestamp>,
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
