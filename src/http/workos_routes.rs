//! What the routes of WorkOS's API have in common: the name of an object in the path, and the rejection of everything that is not
//! served.

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::{Method, StatusCode};
use serde_json::json;

use super::workos_error::WorkosRejection;

/// The only variable part of a path, as axum extracts it.
pub(super) type NamedPath = Result<Path<String>, PathRejection>;

/// Returns the ID in the path. An ID that is not valid text is not found, like one with a NUL, which PostgreSQL cannot store.
pub(super) fn named(what: &str, id: NamedPath) -> Result<String, WorkosRejection> {
    let id = id.ok().map(|Path(id)| id).filter(|id| !id.contains('\0'));
    id.ok_or_else(|| WorkosRejection::not_found(what, "?"))
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
