//! WorkOS's own read API over users, answered from the table: the same paths, parameters, bodies and errors, so that any
//! WorkOS SDK pointed here reads without a code change. What cannot be answered is refused, never silently ignored.

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

/// One user, read through from WorkOS where that is on.
#[utoipa::path(
    get,
    path = "/users/{id}",
    operation_id = "getUser",
    tag = "user_management",
    security(("service_key" = [])),
    params(("id" = String, Path, description = "WorkOS's id")),
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
        Err(LookupError::NotSynced | LookupError::Token(_)) => Err(WorkosRejection::not_synced()),
    }
}

/// One user by your own id; of several the one WorkOS changed last.
#[utoipa::path(
    get,
    path = "/users/external_id/{external_id}",
    operation_id = "getUserByExternalId",
    tag = "user_management",
    security(("service_key" = [])),
    params(("external_id" = String, Path, description = "your own id")),
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

/// A page of users.
#[utoipa::path(
    get,
    path = "/users",
    operation_id = "listUsers",
    tag = "user_management",
    security(("service_key" = [])),
    params(
        ("limit" = Option<u8>, Query, description = "how many", minimum = 1, maximum = 100),
        ("order" = inline(Option<Direction>), Query, description = "default `desc`, newest first; `normal`: the same, and the cursors' sense reversed"),
        ("email" = Option<String>, Query, description = "only with this e-mail address, whatever its case"),
        ("before" = Option<String>, Query, description = "the users before this id"),
        ("after" = Option<String>, Query, description = "the users after this id")
    ),
    responses(
        (
            status = 200,
            description = "A page.",
            body = PageShape,
            headers(("AuthKit-Sync-Position" = String, description = "from where GET /changes goes on"))
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
    let asked = Asked::read(parameters)?;
    // Half a list looks like a whole one.
    if state.lookups.is_incomplete().await? {
        return Err(WorkosRejection::not_synced());
    }
    // Asked first, so that the page shows everything up to it.
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

/// The id in the path. Nobody has one that is not text.
fn named(id: Result<Path<String>, PathRejection>) -> Result<String, WorkosRejection> {
    id.map(|Path(id)| id).map_err(|_| WorkosRejection::not_found("?"))
}

/// Writes have to go to WorkOS.
pub(super) async fn read_only() -> WorkosRejection {
    let body = json!({"message": "This is a copy for reading; write to WorkOS itself.", "code": "read_only"});
    WorkosRejection::new(StatusCode::METHOD_NOT_ALLOWED, "read_only", body)
}

/// What else WorkOS has below this path.
pub(super) async fn not_served(method: Method) -> WorkosRejection {
    if !matches!(method, Method::GET | Method::HEAD) {
        return read_only().await;
    }
    let body = json!({"message": "This path is not served here; ask WorkOS itself.", "code": "not_served"});
    WorkosRejection::new(StatusCode::NOT_FOUND, "not_served", body)
}

/// A page of users.
#[derive(ToSchema)]
#[schema(as = UserList)]
#[expect(dead_code, reason = "the shape of what `list` answers")]
pub(super) struct PageShape {
    #[schema(inline)]
    object: ListObject,
    data: Vec<UserShape>,
    #[schema(inline)]
    list_metadata: Cursors,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "a constant of WorkOS's")]
enum ListObject {
    List,
}

/// Ids to go on from, either way; null at the end.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only described")]
struct Cursors {
    #[schema(required)]
    before: Option<String>,
    #[schema(required)]
    after: Option<String>,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "only described")]
enum Direction {
    Asc,
    Desc,
    Normal,
}

struct Asked {
    limit: usize,
    order: Order,
    email: Option<String>,
    before: Option<String>,
    after: Option<String>,
    /// `normal` is newest first with the cursors' sense reversed: `before` are older users, `after` newer ones.
    swapped: bool,
}

impl Asked {
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
