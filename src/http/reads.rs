//! The server that a request for WorkOS's API reads, and the header that depends on it.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;

use super::auth;
use super::state::HttpState;
use crate::sync::mirror::Reads;

impl FromRequestParts<Arc<HttpState>> for Reads {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<HttpState>) -> Result<Self, Infallible> {
        Ok(parts.extensions.remove::<Self>().unwrap_or_else(|| Self::begin(&state.mirror)))
    }
}

/// Adds the time up to which the users table is complete, on the server that the request reads.
pub(super) async fn with_synced_through(
    State(state): State<Arc<HttpState>>,
    mut request: Request,
    next: Next,
) -> Response {
    let reads = Reads::begin(&state.mirror);
    let synced_through = reads.synced_through();
    request.extensions_mut().insert(reads);
    auth::with_synced_through(synced_through, next.run(request).await)
}
