//! Rejections of the routes of WorkOS's API, in its format.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use utoipa::{IntoResponses, ToSchema};

use super::error::log_unreported;
use super::request_log::LogFields;
use crate::store::StoreError;

/// The HTTP answer to a rejected request, in the format of WorkOS's API.
#[derive(Debug)]
pub(super) struct WorkosRejection {
    status: StatusCode,
    body: Value,
    reason: &'static str,
    retry_after: Option<u32>,
}

impl WorkosRejection {
    pub(super) fn new(status: StatusCode, reason: &'static str, body: Value) -> Self {
        Self { status, body, reason, retry_after: None }
    }

    pub(super) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", json!({"message": "Unauthorized", "code": "unauthorized"}))
    }

    /// Creates a 404. `what` is WorkOS's word for the kind of object.
    pub(super) fn not_found(what: &str, id: &str) -> Self {
        let id: String = id.chars().take(128).map(|char| if char.is_ascii_graphic() { char } else { '?' }).collect();
        let body =
            json!({"message": format!("{what} not found: '{id}'."), "code": "entity_not_found", "entity_id": id});
        Self::new(StatusCode::NOT_FOUND, "entity_not_found", body)
    }

    /// Creates a 404 for a kind of objects that is not synced. `name` is its name in the setting.
    pub(super) fn kind_disabled(name: &str) -> Self {
        let message = format!(
            "This service does not sync {name}: the setting AUTHKIT_SYNC_KINDS does not name them. Send the request to WorkOS."
        );
        Self::new(StatusCode::NOT_FOUND, "kind_disabled", json!({"message": message, "code": "kind_disabled"}))
    }

    /// Creates a 422 that names the parameter.
    pub(super) fn parameter(code: &'static str, field: &str) -> Self {
        let field: String = field.chars().filter(char::is_ascii_graphic).take(64).collect();
        let errors = json!([{"code": code, "field": field}]);
        let body = json!({"message": "Validation failed.", "code": "invalid_request_parameters", "errors": errors});
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, body)
    }

    pub(super) fn unsupported(field: &str) -> Self {
        let mut refusal = Self::parameter("unsupported_parameter", field);
        refusal.body["code"] = json!("unsupported_parameter");
        refusal.body["message"] = json!("This service does not support the parameter. Send the request to WorkOS.");
        refusal
    }

    pub(super) fn unavailable(code: &'static str, message: &str) -> Self {
        let body = json!({"message": message, "code": code});
        Self { retry_after: Some(2), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, code, body) }
    }

    pub(super) fn not_synced() -> Self {
        Self::unavailable("user_not_synced", "The users are not completely synced yet. Retry.")
    }
}

impl From<StoreError> for WorkosRejection {
    fn from(error: StoreError) -> Self {
        log_unreported(&error);
        Self::unavailable("database_unavailable", "The database is unreachable or not usable. Retry.")
    }
}

impl IntoResponse for WorkosRejection {
    fn into_response(self) -> Response {
        let mut response = (self.status, [(header::CACHE_CONTROL, "no-store")], Json(self.body)).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Bearer realm=\"authkit-sync\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response.extensions_mut().insert(LogFields::rejected(self.reason));
        response
    }
}

/// A rejection in the format of WorkOS's API.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the shape of what WorkosRejection answers")]
pub(super) struct WorkosError {
    code: String,
    message: String,
    /// The ID that was not found.
    entity_id: Option<String>,
    /// The invalid parameters.
    #[schema(inline)]
    errors: Option<Vec<FieldError>>,
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "only for /openapi.json")]
struct FieldError {
    code: String,
    field: String,
}

/// Rejections of a request for one user.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only for /openapi.json")]
pub(super) enum OneRefused {
    /// `unauthorized`.
    #[response(status = 401, headers(("WWW-Authenticate" = String, description = "See RFC 6750.")))]
    Key(WorkosError),
    /// `entity_not_found`.
    #[response(status = 404)]
    NoUser(WorkosError),
    /// `user_not_synced`, `database_unavailable`.
    #[response(status = 503, headers(("Retry-After" = u32, description = "Seconds to wait before a retry.")))]
    Unavailable(WorkosError),
}

/// Rejections of a list of users.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only for /openapi.json")]
pub(super) enum ListRefused {
    /// `unauthorized`.
    #[response(status = 401, headers(("WWW-Authenticate" = String, description = "See RFC 6750.")))]
    Key(WorkosError),
    /// `invalid_request_parameters`, `unsupported_parameter`.
    #[response(status = 422)]
    Parameter(WorkosError),
    /// `user_not_synced`, `database_unavailable`.
    #[response(status = 503, headers(("Retry-After" = u32, description = "Seconds to wait before a retry.")))]
    Unavailable(WorkosError),
}

/// Rejections of a request for one object of a kind that can be disabled.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only for /openapi.json")]
pub(super) enum KindOneRefused {
    /// `unauthorized`.
    #[response(status = 401, headers(("WWW-Authenticate" = String, description = "See RFC 6750.")))]
    Key(WorkosError),
    /// `entity_not_found`; `kind_disabled` if AUTHKIT_SYNC_KINDS does not name the kind.
    #[response(status = 404)]
    NotFound(WorkosError),
    /// `organizations_not_synced`, `memberships_not_synced`, `roles_not_synced`, `database_unavailable`.
    #[response(status = 503, headers(("Retry-After" = u32, description = "Seconds to wait before a retry.")))]
    Unavailable(WorkosError),
}

/// Rejections of a list of memberships.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only for /openapi.json")]
pub(super) enum MembershipsRefused {
    /// `missing_user_id_or_organization_id`.
    #[response(status = 400)]
    NoSide(WorkosError),
    /// `unauthorized`.
    #[response(status = 401, headers(("WWW-Authenticate" = String, description = "See RFC 6750.")))]
    Key(WorkosError),
    /// `kind_disabled`: AUTHKIT_SYNC_KINDS does not name the kind.
    #[response(status = 404)]
    Disabled(WorkosError),
    /// `invalid_request_parameters`, `unsupported_parameter`.
    #[response(status = 422)]
    Parameter(WorkosError),
    /// `memberships_not_synced`, `database_unavailable`.
    #[response(status = 503, headers(("Retry-After" = u32, description = "Seconds to wait before a retry.")))]
    Unavailable(WorkosError),
}

/// Rejections of a list of the roles of an organization.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only for /openapi.json")]
pub(super) enum OrganizationRolesRefused {
    /// `unauthorized`.
    #[response(status = 401, headers(("WWW-Authenticate" = String, description = "See RFC 6750.")))]
    Key(WorkosError),
    /// `entity_not_found` for an unknown organization; `kind_disabled` if AUTHKIT_SYNC_KINDS does not name the kind.
    #[response(status = 404)]
    NotFound(WorkosError),
    /// `unsupported_parameter`.
    #[response(status = 422)]
    Parameter(WorkosError),
    /// `organizations_not_synced`, `roles_not_synced`, `database_unavailable`.
    #[response(status = 503, headers(("Retry-After" = u32, description = "Seconds to wait before a retry.")))]
    Unavailable(WorkosError),
}

/// Rejections of a list of a kind that can be disabled.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only for /openapi.json")]
pub(super) enum KindListRefused {
    /// `unauthorized`.
    #[response(status = 401, headers(("WWW-Authenticate" = String, description = "See RFC 6750.")))]
    Key(WorkosError),
    /// `kind_disabled`: AUTHKIT_SYNC_KINDS does not name the kind.
    #[response(status = 404)]
    Disabled(WorkosError),
    /// `invalid_request_parameters`, `unsupported_parameter`.
    #[response(status = 422)]
    Parameter(WorkosError),
    /// `organizations_not_synced`, `memberships_not_synced`, `roles_not_synced`, `database_unavailable`.
    #[response(status = 503, headers(("Retry-After" = u32, description = "Seconds to wait before a retry.")))]
    Unavailable(WorkosError),
}
