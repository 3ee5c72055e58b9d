//! WorkOS's API for reading organization memberships, answered from the table.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::json;
use utoipa::ToSchema;

use super::pages::{Cursors, Direction, Filters, ListObject, ListQuery, Parameters};
use super::shapes::{MembershipShape, NotModified};
use super::state::HttpState;
use super::workos_error::{KindOneRefused, MembershipsRefused, WorkosRejection};
use super::workos_routes::{NamedPath, SyncedKind, named};
use crate::domain::membership::{self, ListedMembership};
use crate::lookup::LookupError;
use crate::store::memberships::{MembershipFilter, MembershipsOf};
use crate::sync::mirror::Reads;

const KIND: SyncedKind = SyncedKind::Memberships;

/// Maximum number of users that one request reads from WorkOS.
const MAX_USER_READS: usize = 10;

/// Get a membership by ID, in any status.
#[utoipa::path(
    get,
    path = "/organization_memberships/{id}",
    operation_id = "getOrganizationMembership",
    tag = "user_management",
    security(("service_key" = [])),
    params(("id" = String, Path, description = "WorkOS's ID of the membership.")),
    responses((status = 200, description = "The membership.", body = MembershipShape), NotModified, KindOneRefused)
)]
pub(super) async fn by_id(
    State(state): State<Arc<HttpState>>,
    reads: Reads,
    id: NamedPath,
) -> Result<Json<ListedMembership>, WorkosRejection> {
    KIND.require_enabled(&state)?;
    let id = named(KIND.object(), id)?;
    let membership_id = &*id;
    let found = reads.one(|store| async move { store.listed_membership(membership_id).await }).await?;
    let Some(mut membership) = found else {
        return Err(KIND.missing(&state, &id).await);
    };
    add_missing_users(&state, std::iter::once(&mut membership)).await?;
    Ok(Json(membership))
}

/// List memberships of a user, of an organization, or of a user in an organization, in pages.
#[utoipa::path(
    get,
    path = "/organization_memberships",
    operation_id = "listOrganizationMemberships",
    tag = "user_management",
    security(("service_key" = [])),
    params(
        ("user_id" = Option<String>, Query, description = "Only memberships of this user. Required without `organization_id`."),
        ("organization_id" = Option<String>, Query, description = "Only memberships of this organization. Required without `user_id`."),
        ("statuses" = Option<Vec<String>>, Query, description = "Only memberships with one of these statuses. Default `active`. Repeated, or separated by commas."),
        ("limit" = Option<u8>, Query, description = "Maximum number of memberships. Default 10.", minimum = 1, maximum = 100),
        ("order" = inline(Option<Direction>), Query, description = "Default `desc`: newest first. `normal`: newest first, with the meaning of `before` and `after` reversed."),
        ("before" = Option<String>, Query, description = "Only memberships before the membership with this ID."),
        ("after" = Option<String>, Query, description = "Only memberships after the membership with this ID.")
    ),
    responses(
        (
            status = 200,
            description = "A page of memberships that have not ended.",
            body = MembershipsShape,
            headers(("AuthKit-Sync-Position" = String, description = "Pass it as `after` to GET /changes, to get all later changes."))
        ),
        NotModified,
        MembershipsRefused
    )
)]
pub(super) async fn list(
    State(state): State<Arc<HttpState>>,
    reads: Reads,
    parameters: Parameters,
) -> Result<Response, WorkosRejection> {
    KIND.require_enabled(&state)?;
    let filters = Filters { single: &["user_id", "organization_id"], several: &["statuses"] };
    let asked = ListQuery::read(parameters, &filters)?;
    let side = |name: &str| asked.single(name).filter(|id| !id.is_empty());
    let of = match (side("user_id"), side("organization_id")) {
        (Some(user_id), organization_id) => MembershipsOf::User(user_id, organization_id),
        (None, Some(organization_id)) => MembershipsOf::Organization(organization_id),
        (None, None) => return Err(no_side()),
    };
    KIND.require_complete(&state).await?;
    let statuses: BTreeSet<&String> = asked.several("statuses").into_iter().flatten().collect();
    let mut statuses: Vec<String> = statuses.into_iter().cloned().collect();
    if statuses.is_empty() {
        statuses.push(membership::ACTIVE.to_owned());
    }
    let filter = MembershipFilter { of, statuses: &statuses };
    let (filter, page) = (&filter, asked.page());
    let (mut page, position) = reads.list(|store| async move { store.memberships_page(filter, &page).await }).await?;
    add_missing_users(&state, page.items.iter_mut()).await?;
    Ok(asked.answer(page, position))
}

/// Rejects a list that names neither a user nor an organization.
fn no_side() -> WorkosRejection {
    let code = "missing_user_id_or_organization_id";
    let body = json!({"message": "The request needs `user_id` or `organization_id`.", "code": code});
    WorkosRejection::new(StatusCode::BAD_REQUEST, code, body)
}

/// Adds users that are not stored yet: a membership may arrive before its user, and an SDK may require the user. If read-through is
/// enabled, they are requested from WorkOS. A user that remains unknown is omitted.
async fn add_missing_users(
    state: &HttpState,
    memberships: impl Iterator<Item = &mut ListedMembership>,
) -> Result<(), WorkosRejection> {
    for membership in memberships.filter(|membership| membership.user.is_none()).take(MAX_USER_READS) {
        membership.user = match state.lookups.user(&membership.membership.of.user_id).await {
            Ok(user) => Some(user),
            Err(LookupError::Store(error)) => return Err(error.into()),
            // WorkOS is unreachable. The list is complete without these users, so it does not wait for each of them.
            Err(LookupError::NotSynced) => break,
            Err(_) => None,
        };
    }
    Ok(())
}

/// A page of memberships.
#[derive(ToSchema)]
#[schema(as = OrganizationMembershipList)]
#[expect(dead_code, reason = "the body of `list`")]
pub(super) struct MembershipsShape {
    #[schema(inline)]
    object: ListObject,
    data: Vec<MembershipShape>,
    #[schema(inline)]
    list_metadata: Cursors,
}
