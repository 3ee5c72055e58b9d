//! The names of our own headers.

use axum::http::HeaderName;

/// The time up to which the users table is complete.
pub(super) const SYNCED_THROUGH: HeaderName = HeaderName::from_static("authkit-sync-synced-through");

/// The position of the change feed up to which a list contains every change.
pub(super) const POSITION: HeaderName = HeaderName::from_static("authkit-sync-position");

/// The ID of a request, as in the log.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Our headers in answers. Pages of allowed origins can read them.
pub const HEADERS: [HeaderName; 3] = [SYNCED_THROUGH, POSITION, REQUEST_ID];
