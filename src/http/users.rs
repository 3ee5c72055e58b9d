//! WorkOS's API for reading users, answered from the table.
//!
//! Paths, parameters, bodies and errors are the same, so any WorkOS SDK can use this service without a code change. Unsupported
//! parameters are rejected, never silently ignored.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use utoipa::ToSchema;

use super::headers::POSITION;
use super::shapes::{NotModified, UserShape};
use super::state::HttpState;
use super::workos_error::{ListRefused, OneRefused, WorkosRejection};
use crate::domain::user::User;
use crate::lookup::LookupError;
use crate::store::users::{Order, PageOf};

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
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<User>, WorkosRejection> {
    let id = named(id)?;
    match state.lookups.user(&id).await {
        Ok(user) => Ok(Json(user)),
        Err(LookupError::NotFound | LookupError::Deleted) => Err(WorkosRejection::not_found(&id)),
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
    external_id: Result<Path<String>, PathRejection>,
) -> Result<Json<User>, WorkosRejection> {
    let external_id = named(external_id)?;
    match state.store.user_by_external_id(&external_id).await? {
        Some(user) => Ok(Json(user)),
        None if state.lookups.is_incomplete().await? => Err(WorkosRejection::not_synced()),
        None => Err(WorkosRejection::not_found(&external_id)),
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
    parameters: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Response, WorkosRejection> {
    let Query(parameters) = parameters.map_err(|_| WorkosRejection::parameter("invalid", "query"))?;
    let asked = ListQuery::read(parameters)?;
    // A caller cannot distinguish an incomplete list from a complete one.
    if state.lookups.is_incomplete().await? {
        return Err(WorkosRejection::not_synced());
    }
    // The position is read first, so the page contains every change up to it.
    let position = state.feed.now().await?.to_string();
    let page = state.store.users_page(&asked.page()).await?;
    let id = |user: &User| user.id.clone();
    let mut before = page.users.first().filter(|_| page.before).map(id);
    let mut after = page.users.last().filter(|_| page.after).map(id);
    if asked.swapped {
        std::mem::swap(&mut before, &mut after);
    }
    let body = json!({"object": "list", "data": page.users, "list_metadata": {"before": before, "after": after}});
    Ok(([(POSITION, position)], Json(body)).into_response())
}

/// Returns the ID in the path. An ID that is not valid text is not found.
fn named(id: Result<Path<String>, PathRejection>) -> Result<String, WorkosRejection> {
    id.map(|Path(id)| id).map_err(|_| WorkosRejection::not_found("?"))
}

/// Rejects writes.
pub(super) async fn read_only() -> WorkosRejection {
    let body = json!({"message": "This service is read-only. Send the request to WorkOS.", "code": "read_only"});
    WorkosRejection::new(StatusCode::METHOD_NOT_ALLOWED, "read_only", body)
}

/// Rejects the other routes that WorkOS has below this path.
pub(super) async fn not_served(method: Method) -> WorkosRejection {
    if !matches!(method, Method::GET | Method::HEAD) {
        return read_only().await;
    }
    let body =
        json!({"message": "This service does not serve the path. Send the request to WorkOS.", "code": "not_served"});
    WorkosRejection::new(StatusCode::NOT_FOUND, "not_served", body)
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

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "a constant in WorkOS's format")]
enum ListObject {
    List,
}

/// IDs to pass as `before` and `after` for the neighbouring pages. Null at the end of the list.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only for /openapi.json")]
struct Cursors {
    #[schema(required)]
    before: Option<String>,
    #[schema(required)]
    after: Option<String>,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "only for /openapi.json")]
enum Direction {
    Asc,
    Desc,
    Normal,
}

struct ListQuery {
    limit: usize,
    order: Order,
    email: Option<String>,
    before: Option<String>,
    after: Option<String>,
    /// `order=normal`: newest first, and `before` means older users, `after` newer ones.
    swapped: bool,
}

impl ListQuery {
    fn read(parameters: Vec<(String, String)>) -> Result<Self, WorkosRejection> {
        let mut asked =
            Self { limit: 10, order: Order::Descending, email: None, before: None, after: None, swapped: false };
        let mut seen = BTreeSet::new();
        for (name, value) in parameters {
            if !seen.insert(name.clone()) {
                return Err(WorkosRejection::parameter("given_twice", &name));
            }
            if value.contains('\0') {
                return Err(WorkosRejection::parameter("invalid", &name));
            }
            match name.as_str() {
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=100).contains(limit));
                    asked.limit = limit.ok_or_else(|| WorkosRejection::parameter("limit_out_of_range", "limit"))?;
                }
                "order" => {
                    (asked.order, asked.swapped) = match value.as_str() {
                        "asc" => (Order::Ascending, false),
                        "desc" => (Order::Descending, false),
                        "normal" => (Order::Descending, true),
                        _ => return Err(WorkosRejection::parameter("invalid_order", "order")),
                    }
                }
                "email" => asked.email = Some(value),
                "before" => asked.before = Some(value),
                "after" => asked.after = Some(value),
                other => return Err(WorkosRejection::unsupported(other)),
            }
        }
        if asked.before.is_some() && asked.after.is_some() {
            return Err(WorkosRejection::parameter("exclusive", "before"));
        }
        if asked.swapped {
            std::mem::swap(&mut asked.before, &mut asked.after);
        }
        Ok(asked)
    }

    fn page(&self) -> PageOf<'_> {
        PageOf {
            email: self.email.as_deref(),
            order: self.order,
            before: self.before.as_deref(),
            after: self.after.as_deref(),
            limit: self.limit,
        }
    }
}
