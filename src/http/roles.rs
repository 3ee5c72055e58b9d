//! WorkOS's API for reading roles and permissions, answered from the tables.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use utoipa::ToSchema;

use super::pages::{self, Cursors, Direction, Filters, ListObject, ListQuery, Parameters};
use super::shapes::{NotModified, PermissionShape, RoleShape};
use super::state::HttpState;
use super::workos_error::{KindListRefused, KindOneRefused, OrganizationRolesRefused, WorkosRejection};
use super::workos_routes::{NamedPath, SyncedKind, named};
use crate::domain::role::{Permission, Role};
use crate::sync::mirror::Reads;

const KIND: SyncedKind = SyncedKind::Roles;

/// List the roles of the environment, in order of priority. The list has no pages.
#[utoipa::path(
    get,
    path = "/roles",
    operation_id = "listEnvironmentRoles",
    tag = "authorization",
    security(("service_key" = [])),
    responses(
        (
            status = 200,
            description = "The roles of the environment.",
            body = RolesShape,
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
    pages::no_parameters(parameters)?;
    let (roles, position) = reads.list(|store| async move { store.environment_roles().await }).await?;
    if roles.is_empty() {
        require_read(&state).await?;
    }
    Ok(pages::whole(&roles, position))
}

/// Get a role of the environment by its slug.
#[utoipa::path(
    get,
    path = "/roles/{slug}",
    operation_id = "getEnvironmentRole",
    tag = "authorization",
    security(("service_key" = [])),
    params(("slug" = String, Path, description = "The slug of the role.")),
    responses((status = 200, description = "The role.", body = RoleShape), NotModified, KindOneRefused)
)]
pub(super) async fn by_slug(
    State(state): State<Arc<HttpState>>,
    reads: Reads,
    slug: NamedPath,
) -> Result<Json<Role>, WorkosRejection> {
    KIND.require_enabled(&state)?;
    let slug = named(KIND.object(), slug)?;
    let role = &*slug;
    match reads.one(|store| async move { store.environment_role(role).await }).await? {
        Some(role) => Ok(Json(role)),
        None => Err(missing(&state, KIND, &slug).await),
    }
}

/// List the roles of an organization, in order of priority: those of the environment and its own. The list has no pages.
#[utoipa::path(
    get,
    path = "/organizations/{organization_id}/roles",
    operation_id = "listOrganizationRoles",
    tag = "authorization",
    security(("service_key" = [])),
    params(("organization_id" = String, Path, description = "WorkOS's ID of the organization.")),
    responses(
        (
            status = 200,
            description = "The roles of the organization.",
            body = RolesShape,
            headers(("AuthKit-Sync-Position" = String, description = "Pass it as `after` to GET /changes, to get all later changes."))
        ),
        NotModified,
        OrganizationRolesRefused
    )
)]
pub(super) async fn of_organization(
    State(state): State<Arc<HttpState>>,
    reads: Reads,
    organization_id: NamedPath,
    parameters: Parameters,
) -> Result<Response, WorkosRejection> {
    KIND.require_enabled(&state)?;
    pages::no_parameters(parameters)?;
    let organization_id = named(SyncedKind::Organizations.object(), organization_id)?;
    require_organization(&state, &organization_id).await?;
    let id = &*organization_id;
    let (roles, position) = reads.list(|store| async move { store.roles_in_organization(id).await }).await?;
    if roles.is_empty() {
        require_read(&state).await?;
    }
    Ok(pages::whole(&roles, position))
}

/// List the roles of an organization at the path of WorkOS's older API. The answer is the same.
#[utoipa::path(
    get,
    path = "/{id}/roles",
    operation_id = "listRolesOfOrganization",
    tag = "organizations",
    security(("service_key" = [])),
    params(("id" = String, Path, description = "WorkOS's ID of the organization.")),
    responses(
        (
            status = 200,
            description = "The roles of the organization.",
            body = RolesShape,
            headers(("AuthKit-Sync-Position" = String, description = "Pass it as `after` to GET /changes, to get all later changes."))
        ),
        NotModified,
        OrganizationRolesRefused
    )
)]
pub(super) async fn of_organization_at_older_path(
    state: State<Arc<HttpState>>,
    reads: Reads,
    organization_id: NamedPath,
    parameters: Parameters,
) -> Result<Response, WorkosRejection> {
    of_organization(state, reads, organization_id, parameters).await
}

/// Get a role of an organization by its slug: its own, else the one of the environment.
#[utoipa::path(
    get,
    path = "/organizations/{organization_id}/roles/{slug}",
    operation_id = "getOrganizationRole",
    tag = "authorization",
    security(("service_key" = [])),
    params(
        ("organization_id" = String, Path, description = "WorkOS's ID of the organization."),
        ("slug" = String, Path, description = "The slug of the role.")
    ),
    responses((status = 200, description = "The role.", body = RoleShape), NotModified, KindOneRefused)
)]
pub(super) async fn of_organization_by_slug(
    State(state): State<Arc<HttpState>>,
    reads: Reads,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<Json<Role>, WorkosRejection> {
    KIND.require_enabled(&state)?;
    let path = path.ok().map(|Path(path)| path).filter(|(id, slug)| !id.contains('\0') && !slug.contains('\0'));
    let (organization_id, slug) = path.ok_or_else(|| WorkosRejection::not_found(KIND.object(), "?"))?;
    require_organization(&state, &organization_id).await?;
    let (id, role) = (&*organization_id, &*slug);
    match reads.one(|store| async move { store.role_in_organization(id, role).await }).await? {
        Some(role) => Ok(Json(role)),
        None => Err(missing(&state, KIND, &slug).await),
    }
}

/// List the permissions of the environment, in pages.
#[utoipa::path(
    get,
    path = "/permissions",
    operation_id = "listPermissions",
    tag = "authorization",
    security(("service_key" = [])),
    params(
        ("limit" = Option<u8>, Query, description = "Maximum number of permissions. Default 10.", minimum = 1, maximum = 100),
        ("order" = inline(Option<Direction>), Query, description = "Default `desc`: newest first. `normal`: newest first, with the meaning of `before` and `after` reversed."),
        ("before" = Option<String>, Query, description = "Only permissions before the permission with this ID."),
        ("after" = Option<String>, Query, description = "Only permissions after the permission with this ID.")
    ),
    responses(
        (
            status = 200,
            description = "A page of permissions.",
            body = PermissionsShape,
            headers(("AuthKit-Sync-Position" = String, description = "Pass it as `after` to GET /changes, to get all later changes."))
        ),
        NotModified,
        KindListRefused
    )
)]
pub(super) async fn permissions(
    State(state): State<Arc<HttpState>>,
    reads: Reads,
    parameters: Parameters,
) -> Result<Response, WorkosRejection> {
    KIND.require_enabled(&state)?;
    let asked = ListQuery::read(parameters, &Filters { single: &[], several: &[] })?;
    let page = asked.page();
    let (page, position) = reads.list(|store| async move { store.permissions_page(&page).await }).await?;
    if page.items.is_empty() {
        require_read(&state).await?;
    }
    Ok(asked.answer(page, position))
}

/// Get a permission by its slug.
#[utoipa::path(
    get,
    path = "/permissions/{slug}",
    operation_id = "getPermission",
    tag = "authorization",
    security(("service_key" = [])),
    params(("slug" = String, Path, description = "The slug of the permission.")),
    responses((status = 200, description = "The permission.", body = PermissionShape), NotModified, KindOneRefused)
)]
pub(super) async fn permission_by_slug(
    State(state): State<Arc<HttpState>>,
    reads: Reads,
    slug: NamedPath,
) -> Result<Json<Permission>, WorkosRejection> {
    KIND.require_enabled(&state)?;
    let slug = named(SyncedKind::Permissions.object(), slug)?;
    let permission = &*slug;
    match reads.one(|store| async move { store.permission(permission).await }).await? {
        Some(permission) => Ok(Json(permission)),
        None => Err(missing(&state, SyncedKind::Permissions, &slug).await),
    }
}

/// Rejects the request until the roles and permissions have been read from WorkOS once. A list is stored as a whole, so a list that
/// is not empty needs no check.
async fn require_read(state: &HttpState) -> Result<(), WorkosRejection> {
    if state.store.has_roles().await? { Ok(()) } else { Err(KIND.not_synced()) }
}

/// Returns the rejection of a request for a slug that is not stored.
async fn missing(state: &HttpState, kind: SyncedKind, slug: &str) -> WorkosRejection {
    match require_read(state).await {
        Ok(()) => WorkosRejection::not_found(kind.object(), slug),
        Err(rejection) => rejection,
    }
}

/// Rejects the request if the organization is unknown or deleted.
async fn require_organization(state: &HttpState, id: &str) -> Result<(), WorkosRejection> {
    if state.store.organization(id).await?.into_live().is_some() {
        return Ok(());
    }
    Err(SyncedKind::Organizations.missing(state, id).await)
}

/// A list of roles, in order of priority.
#[derive(ToSchema)]
#[schema(as = RoleList)]
#[expect(dead_code, reason = "the body of `list`")]
pub(super) struct RolesShape {
    #[schema(inline)]
    object: ListObject,
    data: Vec<RoleShape>,
}

/// A page of permissions.
#[derive(ToSchema)]
#[schema(as = PermissionList)]
#[expect(dead_code, reason = "the body of `permissions`")]
pub(super) struct PermissionsShape {
    #[schema(inline)]
    object: ListObject,
    data: Vec<PermissionShape>,
    #[schema(inline)]
    list_metadata: Cursors,
}
