//! The names of the headers that are our own, each written once.

use axum::http::HeaderName;

/// How far the table is complete.
pub(super) const SYNCED_THROUGH: HeaderName = HeaderName::from_static("authkit-sync-synced-through");

/// The position of the change feed that belongs to a list of users.
pub(super) const POSITION: HeaderName = HeaderName::from_static("authkit-sync-position");

/// Names a request in the log.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Every one an answer carries. Pages of allowed origins may read them.
pub const HEADERS: [HeaderName; 3] = [SYNCED_THROUGH, POSITION, REQUEST_ID];
