//! Chooses the server that a request in WorkOS's format reads, and sets the header that depends on it.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;

use super::auth;
use super::headers::POSITION;
use super::state::HttpState;
use crate::sync::mirror::{AtLeast, Reads};

impl FromRequestParts<Arc<HttpState>> for Reads {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<HttpState>) -> Result<Self, Infallible> {
        Ok(parts.extensions.remove::<Self>().unwrap_or_else(|| Self::begin(&state.mirror, &at_least(&parts.headers))))
    }
}

/// Returns the position that the answer must contain, from the header of the request.
fn at_least(headers: &HeaderMap) -> AtLeast {
    match headers.get(POSITION).map(|value| value.to_str().ok().and_then(|text| text.parse().ok())) {
        None => AtLeast::Recent,
        Some(Some(position)) => AtLeast::Position(position),
        // The primary has every position.
        Some(None) => AtLeast::Current,
    }
}

/// Adds the time up to which the users table is complete, on the server that the request reads.
pub(super) async fn with_synced_through(
    State(state): State<Arc<HttpState>>,
    mut request: Request,
    next: Next,
) -> Response {
    let reads = Reads::begin(&state.mirror, &at_least(request.headers()));
    let synced_through = reads.synced_through();
    request.extensions_mut().insert(reads);
    auth::with_synced_through(synced_through, next.run(request).await)
}
