//! `GET /auth/memberships`: the memberships of the user behind an access token.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::auth::bearer;
use super::conditional;
use super::error::Rejection;
use super::shapes::{MembershipShape, NotModified, OwnMembershipsRefused};
use super::state::HttpState;
use crate::domain::membership::Membership;

/// Maximum number of memberships in an answer.
const PAGE: usize = 100;

/// Get the memberships of the user of the access token, in every status. Ended memberships are not included.
#[utoipa::path(
    get,
    path = "/auth/memberships",
    operation_id = "getMemberships",
    tag = "auth",
    security(("access_token" = [])),
    params(Page),
    responses(
        (
            status = 200,
            description = "A page of memberships, in the order of their IDs.",
            body = Memberships,
            headers(("ETag" = String, description = "Send it as `If-None-Match`."))
        ),
        (status = 400, description = "`invalid_parameter`", body = super::shapes::Error),
        NotModified,
        OwnMembershipsRefused
    )
)]
pub(super) async fn list(
    State(state): State<Arc<HttpState>>,
    headers: HeaderMap,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Response, Rejection> {
    if !state.kinds.memberships {
        let message = "memberships are not synced: AUTHKIT_SYNC_KINDS does not name them";
        return Err(Rejection::new(StatusCode::NOT_FOUND, "kind_disabled", message));
    }
    let refused = || {
        let message = "`limit` must be a number from 1 to 100, and `after` must be a membership ID";
        Rejection::new(StatusCode::BAD_REQUEST, "invalid_parameter", message)
    };
    let Query(page) = page.map_err(|_| refused())?;
    let limit = page.limit.unwrap_or(PAGE);
    let after = page.after.unwrap_or_default();
    if !(1..=PAGE).contains(&limit) || after.contains('\0') {
        return Err(refused());
    }
    let mut found = state.lookups.memberships(bearer(&headers)?, &after, limit + 1).await?;
    let more = found.len() > limit;
    found.truncate(limit);
    let after = found.last().filter(|_| more).map(|(membership, _)| membership.id.clone());
    let data = found.into_iter().map(|(membership, organization_name)| Named { membership, organization_name });
    let answer = Memberships { object: "list", data: data.collect(), list_metadata: After { after } };
    Ok(conditional::json(&headers, &answer))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Page {
    /// Maximum number of memberships. Default 100.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<usize>,
    /// Only memberships after the membership with this ID.
    after: Option<String>,
}

/// A page of memberships.
#[derive(Serialize, ToSchema)]
pub(super) struct Memberships {
    object: &'static str,
    #[schema(value_type = Vec<MembershipShape>)]
    data: Vec<Named>,
    #[schema(inline)]
    list_metadata: After,
}

#[derive(Serialize, ToSchema)]
struct After {
    /// Pass it as `after` to get the next page. Null on the last page.
    #[schema(required)]
    after: Option<String>,
}

/// A membership with the name of its organization.
#[derive(Serialize)]
struct Named {
    #[serde(flatten)]
    membership: Membership,
    /// Null if the organization is not synced yet.
    organization_name: Option<String>,
}
