//! WorkOS's own read API over users, answered from the table: the same paths, parameters, bodies and errors, so that any
//! WorkOS SDK pointed here reads without a code change. What cannot be answered is refused, never silently ignored.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use utoipa::{IntoResponses, ToSchema};

use super::Edge;
use super::headers::POSITION;
use super::openapi::{NotModified, UserShape};
use super::request_log::LogFields;
use crate::domain::user::User;
use crate::lookup::LookupError;
use crate::store::StoreError;
use crate::store::pages::{Order, PageOf};

/// A refusal in WorkOS's words.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    body: Value,
    reason: &'static str,
    retry_after: Option<u32>,
}

impl Refusal {
    fn new(status: StatusCode, reason: &'static str, body: Value) -> Self {
        Self { status, body, reason, retry_after: None }
    }

    fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", json!({"message": "Unauthorized", "code": "unauthorized"}))
    }

    fn not_found(id: &str) -> Self {
        let id: String = id.chars().take(128).map(|char| if char.is_ascii_graphic() { char } else { '?' }).collect();
        let body = json!({"message": format!("User not found: '{id}'."), "code": "entity_not_found", "entity_id": id});
        Self::new(StatusCode::NOT_FOUND, "entity_not_found", body)
    }

    /// 422, naming the parameter.
    fn parameter(code: &'static str, field: &str) -> Self {
        let field: String = field.chars().filter(char::is_ascii_graphic).take(64).collect();
        let errors = json!([{"code": code, "field": field}]);
        let body = json!({"message": "Validation failed.", "code": "invalid_request_parameters", "errors": errors});
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, body)
    }

    fn unsupported(field: &str) -> Self {
        let mut refusal = Self::parameter("unsupported_parameter", field);
        refusal.body["code"] = json!("unsupported_parameter");
        refusal.body["message"] = json!("This parameter is not served here; ask WorkOS itself.");
        refusal
    }

    fn unavailable(code: &'static str, message: &str) -> Self {
        let body = json!({"message": message, "code": code});
        Self { retry_after: Some(2), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, code, body) }
    }

    fn not_synced() -> Self {
        Self::unavailable("user_not_synced", "The table is not complete yet; try again.")
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        tracing::error!(error = %error, "the database could not be asked");
        Self::unavailable("database_unavailable", "The database cannot be reached or used now; try again.")
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, [(header::CACHE_CONTROL, "no-store")], Json(self.body)).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Bearer realm=\"authkit-sync\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response.extensions_mut().insert(LogFields::refused(self.reason));
        response
    }
}

/// Lets in who carries a service key, and notes its label.
pub(super) async fn require_service_key(
    State(edge): State<Arc<Edge>>,
    headers: HeaderMap,
    request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    let label = edge.service_keys.label(&headers).ok_or_else(Refusal::unauthorized)?.to_owned();
    let mut response = next.run(request).await;
    let fields = response.extensions_mut().remove::<LogFields>().unwrap_or_default();
    response.extensions_mut().insert(LogFields { caller: Some(label), ..fields });
    Ok(response)
}

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
    State(edge): State<Arc<Edge>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<User>, Refusal> {
    let id = named(id)?;
    match edge.lookups.user(&id).await {
        Ok(user) => Ok(Json(user)),
        Err(LookupError::NotFound | LookupError::Deleted) => Err(Refusal::not_found(&id)),
        Err(LookupError::Store(error)) => Err(error.into()),
        Err(LookupError::NotSynced | LookupError::Token(_)) => Err(Refusal::not_synced()),
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
    State(edge): State<Arc<Edge>>,
    external_id: Result<Path<String>, PathRejection>,
) -> Result<Json<User>, Refusal> {
    let external_id = named(external_id)?;
    match edge.store.user_by_external_id(&external_id).await? {
        Some(user) => Ok(Json(user)),
        None if edge.lookups.is_incomplete().await? => Err(Refusal::not_synced()),
        None => Err(Refusal::not_found(&external_id)),
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
    State(edge): State<Arc<Edge>>,
    parameters: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(parameters) = parameters.map_err(|_| Refusal::parameter("invalid", "query"))?;
    let asked = Asked::read(parameters)?;
    // Half a list looks like a whole one.
    if edge.lookups.is_incomplete().await? {
        return Err(Refusal::not_synced());
    }
    // Asked first, so that the page shows everything up to it.
    let position = edge.feed.now().await?.to_string();
    let page = edge.store.users_page(&asked.page()).await?;
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
fn named(id: Result<Path<String>, PathRejection>) -> Result<String, Refusal> {
    id.map(|Path(id)| id).map_err(|_| Refusal::not_found("?"))
}

/// Writes have to go to WorkOS.
pub(super) async fn read_only() -> Refusal {
    let body = json!({"message": "This is a copy for reading; write to WorkOS itself.", "code": "read_only"});
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "read_only", body)
}

/// What else WorkOS has below this path.
pub(super) async fn not_served(method: Method) -> Refusal {
    if !matches!(method, Method::GET | Method::HEAD) {
        return read_only().await;
    }
    let body = json!({"message": "This path is not served here; ask WorkOS itself.", "code": "not_served"});
    Refusal::new(StatusCode::NOT_FOUND, "not_served", body)
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

/// A refusal in WorkOS's shape.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the shape of what Refusal answers")]
pub(super) struct WorkosError {
    code: String,
    message: String,
    /// Whom there is none of.
    entity_id: Option<String>,
    /// Which parameters are wrong.
    #[schema(inline)]
    errors: Option<Vec<FieldError>>,
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "only described")]
struct FieldError {
    code: String,
    field: String,
}

/// What a question about one user may be refused by.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described")]
pub(super) enum OneRefused {
    /// `unauthorized`.
    #[response(status = 401, headers(("WWW-Authenticate" = String, description = "RFC 6750")))]
    Key(WorkosError),
    /// `entity_not_found`.
    #[response(status = 404)]
    NoUser(WorkosError),
    /// `user_not_synced`, `database_unavailable`.
    #[response(status = 503, headers(("Retry-After" = u32, description = "seconds")))]
    Ours(WorkosError),
}

/// What a question about many may be refused by.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described")]
pub(super) enum ListRefused {
    /// `unauthorized`.
    #[response(status = 401, headers(("WWW-Authenticate" = String, description = "RFC 6750")))]
    Key(WorkosError),
    /// `invalid_request_parameters`, `unsupported_parameter`.
    #[response(status = 422)]
    Parameter(WorkosError),
    /// `user_not_synced`, `database_unavailable`.
    #[response(status = 503, headers(("Retry-After" = u32, description = "seconds")))]
    Ours(WorkosError),
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
    fn read(parameters: Vec<(String, String)>) -> Result<Self, Refusal> {
        let mut asked =
            Self { limit: 10, order: Order::Descending, email: None, before: None, after: None, swapped: false };
        let mut seen = BTreeSet::new();
        for (name, value) in parameters {
            if !seen.insert(name.clone()) {
                return Err(Refusal::parameter("given_twice", &name));
            }
            if value.contains('\0') {
                return Err(Refusal::parameter("invalid", &name));
            }
            match name.as_str() {
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=100).contains(limit));
                    asked.limit = limit.ok_or_else(|| Refusal::parameter("limit_out_of_range", "limit"))?;
                }
                "order" => {
                    (asked.order, asked.swapped) = match value.as_str() {
                        "asc" => (Order::Ascending, false),
                        "desc" => (Order::Descending, false),
                        "normal" => (Order::Descending, true),
                        _ => return Err(Refusal::parameter("invalid_order", "order")),
                    }
                }
                "email" => asked.email = Some(value),
                "before" => asked.before = Some(value),
                "after" => asked.after = Some(value),
                other => return Err(Refusal::unsupported(other)),
            }
        }
        if asked.before.is_some() && asked.after.is_some() {
            return Err(Refusal::parameter("exclusive", "before"));
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
