//! WorkOS's API for reading users, answered from the table.
//!
//! Paths, parameters, bodies and errors are the same, so any WorkOS SDK can use this service without a code change. Unsupported
//! parameters are rejected, never silently ignored.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use utoipa::ToSchema;

use super::pages::{Cursors, Direction, Filters, ListObject, ListQuery, Parameters};
use super::shapes::{NotModified, UserShape};
use super::state::HttpState;
use super::workos_error::{ListRefused, OneRefused, WorkosRejection};
use super::workos_routes::{NamedPath, named};
use crate::domain::user::User;
use crate::lookup::LookupError;
use crate::sync::mirror::Reads;

/// Get a user by ID. If read-through is enabled, a missing user is requested from WorkOS.
#[utoipa::path(
    get,
    path = "/users/{id}",
    operation_id = "getUser",
    tag = "user_management",
    security(("service_key" = [])),
    params(("id" = String, Path, description = "WorkOS's ID of the user.")),
    responses((status = 200, description = "The live user.", body = UserShape), NotModified, OneRefused)
)]
pub(super) async fn by_id(
    State(state): State<Arc<HttpState>>,
    reads: Reads,
    id: NamedPath,
) -> Result<Json<User>, WorkosRejection> {
    let id = named("User", id)?;
    if let Some(user) = reads.live_user(&id).await {
        return Ok(Json(user));
    }
    match state.lookups.user(&id).await {
        Ok(user) => Ok(Json(user)),
        Err(LookupError::NotFound | LookupError::Deleted) => Err(WorkosRejection::not_found("User", &id)),
        Err(LookupError::Store(error)) => Err(error.into()),
        Err(_) => Err(WorkosRejection::not_synced()),
    }
}

/// Get a user by your own ID. If several users have it, the answer is the one that WorkOS updated last.
#[utoipa::path(
    get,
    path = "/users/external_id/{external_id}",
    operation_id = "getUserByExternalId",
    tag = "user_management",
    security(("service_key" = [])),
    params(("external_id" = String, Path, description = "Your own ID of the user.")),
    responses((status = 200, description = "The live user.", body = UserShape), NotModified, OneRefused)
)]
pub(super) async fn by_external_id(
    State(state): State<Arc<HttpState>>,
    reads: Reads,
    external_id: NamedPath,
) -> Result<Json<User>, WorkosRejection> {
    let external_id = named("User", external_id)?;
    let id = &*external_id;
    match reads.one(|store| async move { store.user_by_external_id(id).await }).await? {
        Some(user) => Ok(Json(user)),
        None if state.lookups.is_incomplete().await? => Err(WorkosRejection::not_synced()),
        None => Err(WorkosRejection::not_found("User", &external_id)),
    }
}

/// List users, in pages.
#[utoipa::path(
    get,
    path = "/users",
    operation_id = "listUsers",
    tag = "user_management",
    security(("service_key" = [])),
    params(
        ("limit" = Option<u8>, Query, description = "Maximum number of users. Default 10.", minimum = 1, maximum = 100),
        ("order" = inline(Option<Direction>), Query, description = "Default `desc`: newest first. `normal`: newest first, with the meaning of `before` and `after` reversed."),
        ("email" = Option<String>, Query, description = "Only users with this email address. Not case-sensitive."),
        ("before" = Option<String>, Query, description = "Only users before the user with this ID."),
        ("after" = Option<String>, Query, description = "Only users after the user with this ID.")
    ),
    responses(
        (
            status = 200,
            description = "A page of users.",
            body = PageShape,
            headers(("AuthKit-Sync-Position" = String, description = "Pass it as `after` to GET /changes, to get all later changes."))
        ),
        NotModified,
        ListRefused
    )
)]
pub(super) async fn list(
    State(state): State<Arc<HttpState>>,
    reads: Reads,
    parameters: Parameters,
) -> Result<Response, WorkosRejection> {
    let asked = ListQuery::read(parameters, &Filters { single: &["email"], several: &[] })?;
    // A caller cannot distinguish an incomplete list from a complete one.
    if state.lookups.is_incomplete().await? {
        return Err(WorkosRejection::not_synced());
    }
    let (email, page) = (asked.single("email"), asked.page());
    let (page, position) = reads.list(|store| async move { store.users_page(email, &page).await }).await?;
    Ok(asked.answer(page, position))
}

/// A page of users.
#[derive(ToSchema)]
#[schema(as = UserList)]
#[expect(dead_code, reason = "the body of `list`")]
pub(super) struct PageShape {
    #[schema(inline)]
    object: ListObject,
    data: Vec<UserShape>,
    #[schema(inline)]
    list_metadata: Cursors,
}
