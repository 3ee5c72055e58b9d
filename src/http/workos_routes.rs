//! What the routes of WorkOS's API have in common: the ID or slug in the path, and the rejection of paths and methods that are not
//! served.

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::{Method, StatusCode};
use serde_json::json;

use super::state::HttpState;
use super::workos_error::WorkosRejection;

/// The kinds of objects other than users that these routes serve.
#[derive(Clone, Copy, Debug)]
pub(super) enum SyncedKind {
    Organizations,
    Memberships,
    Roles,
    Permissions,
}

impl SyncedKind {
    /// Returns WorkOS's word for an object of this kind.
    pub(super) fn object(self) -> &'static str {
        match self {
            Self::Organizations => "Organization",
            Self::Memberships => "Organization membership",
            Self::Roles => "Role",
            Self::Permissions => "Permission",
        }
    }

    /// Rejects the request if the kind is not synced.
    pub(super) fn require_enabled(self, state: &HttpState) -> Result<(), WorkosRejection> {
        let (is_enabled, name) = match self {
            Self::Organizations => (state.kinds.organizations, "organizations"),
            Self::Memberships => (state.kinds.memberships, "memberships"),
            Self::Roles | Self::Permissions => (state.kinds.roles, "roles"),
        };
        if is_enabled { Ok(()) } else { Err(WorkosRejection::kind_disabled(name)) }
    }

    /// Rejects the request until the first backfill has completed: a caller cannot distinguish an incomplete list from a complete
    /// one.
    pub(super) async fn require_complete(self, state: &HttpState) -> Result<(), WorkosRejection> {
        let is_incomplete = match self {
            Self::Organizations => state.lookups.are_organizations_incomplete(false).await?,
            Self::Memberships => state.lookups.are_organizations_incomplete(true).await?,
            // The routes of roles and permissions check instead whether the list was read (`roles::require_read`).
            Self::Roles | Self::Permissions => state.lookups.is_incomplete().await?,
        };
        if is_incomplete { Err(self.not_synced()) } else { Ok(()) }
    }

    /// Returns the rejection of a request for an object that is not stored: unknown, or perhaps not synced yet.
    pub(super) async fn missing(self, state: &HttpState, id: &str) -> WorkosRejection {
        match self.require_complete(state).await {
            Ok(()) => WorkosRejection::not_found(self.object(), id),
            Err(rejection) => rejection,
        }
    }

    pub(super) fn not_synced(self) -> WorkosRejection {
        let (code, message) = match self {
            Self::Organizations => {
                ("organizations_not_synced", "The organizations are not completely synced yet. Retry.")
            }
            Self::Memberships => ("memberships_not_synced", "The memberships are not completely synced yet. Retry."),
            Self::Roles | Self::Permissions => {
                ("roles_not_synced", "The roles and permissions are not completely synced yet. Retry.")
            }
        };
        WorkosRejection::unavailable(code, message)
    }
}

/// The only variable part of a path, as axum extracts it.
pub(super) type NamedPath = Result<Path<String>, PathRejection>;

/// Returns the ID in the path. An ID that is not valid UTF-8 is answered 404, like an ID with a NUL, which PostgreSQL cannot store.
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
