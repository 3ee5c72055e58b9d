//! WorkOS's API for reading organizations, answered from the table.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use utoipa::ToSchema;

use super::pages::{Cursors, Direction, Filters, ListObject, ListQuery, Parameters};
use super::shapes::{NotModified, OrganizationShape};
use super::state::HttpState;
use super::workos_error::{KindListRefused, KindOneRefused, WorkosRejection};
use super::workos_routes::{NamedPath, SyncedKind, named};
use crate::domain::organization::Organization;
use crate::store::organizations::OrganizationFilter;
use crate::sync::mirror::Reads;

const KIND: SyncedKind = SyncedKind::Organizations;

/// Get an organization by ID.
#[utoipa::path(
    get,
    path = "/{id}",
    operation_id = "getOrganization",
    tag = "organizations",
    security(("service_key" = [])),
    params(("id" = String, Path, description = "WorkOS's ID of the organization.")),
    responses(
        (status = 200, description = "The live organization.", body = OrganizationShape),
        NotModified,
        KindOneRefused
    )
)]
pub(super) async fn by_id(
    State(state): State<Arc<HttpState>>,
    reads: Reads,
    id: NamedPath,
) -> Result<Json<Organization>, WorkosRejection> {
    KIND.require_enabled(&state)?;
    let id = named(KIND.object(), id)?;
    let organization_id = &*id;
    match reads.one(|store| async move { Ok(store.organization(organization_id).await?.present()) }).await? {
        Some(stored) => stored.into_live().map(Json).ok_or_else(|| WorkosRejection::not_found(KIND.object(), &id)),
        None => Err(KIND.missing(&state, &id).await),
    }
}

/// Get an organization by your own ID. If several organizations have it, the answer is the one that WorkOS updated last.
#[utoipa::path(
    get,
    path = "/external_id/{external_id}",
    operation_id = "getOrganizationByExternalId",
    tag = "organizations",
    security(("service_key" = [])),
    params(("external_id" = String, Path, description = "Your own ID of the organization.")),
    responses(
        (status = 200, description = "The live organization.", body = OrganizationShape),
        NotModified,
        KindOneRefused
    )
)]
pub(super) async fn by_external_id(
    State(state): State<Arc<HttpState>>,
    reads: Reads,
    external_id: NamedPath,
) -> Result<Json<Organization>, WorkosRejection> {
    KIND.require_enabled(&state)?;
    let external_id = named(KIND.object(), external_id)?;
    let id = &*external_id;
    match reads.one(|store| async move { store.organization_by_external_id(id).await }).await? {
        Some(organization) => Ok(Json(organization)),
        None => Err(KIND.missing(&state, &external_id).await),
    }
}

/// List organizations, in pages.
#[utoipa::path(
    get,
    path = "/",
    operation_id = "listOrganizations",
    tag = "organizations",
    security(("service_key" = [])),
    params(
        ("limit" = Option<u8>, Query, description = "Maximum number of organizations. Default 10.", minimum = 1, maximum = 100),
        ("order" = inline(Option<Direction>), Query, description = "Default `desc`: newest first. `normal`: newest first, with the meaning of `before` and `after` reversed."),
        ("domains" = Option<Vec<String>>, Query, description = "Only organizations with one of these domains. Repeated, or separated by commas."),
        ("search" = Option<String>, Query, description = "Only organizations whose name has, for each word of the \
                                                          text, a word that begins with it. Not case-sensitive."),
        ("before" = Option<String>, Query, description = "Only organizations before the organization with this ID."),
        ("after" = Option<String>, Query, description = "Only organizations after the organization with this ID.")
    ),
    responses(
        (
            status = 200,
            description = "A page of organizations.",
            body = OrganizationsShape,
            headers(("AuthKit-Sync-Position" = String, description = "Pass it as `after` to GET /changes, to get all later changes."))
        ),
        NotModified,
        KindListRefused
    )
)]
pub(super) async fn list(
    State(state): State<Arc<HttpState>>,
    reads: Reads,
    parameters: Parameters,
) -> Result<Response, WorkosRejection> {
    KIND.require_enabled(&state)?;
    let asked = ListQuery::read(parameters, &Filters { single: &["search"], several: &["domains"] })?;
    KIND.require_complete(&state).await?;
    let filter = OrganizationFilter {
        domains: asked.several("domains").filter(|domains| !domains.is_empty()),
        search: asked.single("search").filter(|text| !text.is_empty()),
    };
    let (filter, page) = (&filter, asked.page());
    let (page, position) = reads.list(|store| async move { store.organizations_page(filter, &page).await }).await?;
    Ok(asked.answer(page, position))
}

/// A page of organizations.
#[derive(ToSchema)]
#[schema(as = OrganizationList)]
#[expect(dead_code, reason = "the body of `list`")]
pub(super) struct OrganizationsShape {
    #[schema(inline)]
    object: ListObject,
    data: Vec<OrganizationShape>,
    #[schema(inline)]
    list_metadata: Cursors,
}
