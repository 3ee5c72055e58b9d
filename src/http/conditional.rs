//! Answers that a cache can store and must revalidate: `ETag`, `If-None-Match`, 304.

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::response::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use sha2::{Digest, Sha256};

/// Number of headers of an answer: content type, caching, and those of the outer layers.
const HEADERS: usize = 8;

/// Initial capacity of a body, enough for a typical user, in bytes.
const TYPICAL: usize = 1_024;

/// The largest answer, in bytes. A page of 100 large users is well below it.
const LIMIT: usize = 64 * 1024 * 1024;

/// Adds the `ETag` to a 200, and answers 304 if the caller already has the same body.
///
/// The handler runs first, with all its checks. So a stored answer is not confirmed after a sign-out or deletion.
pub(super) async fn answer(request: Request, next: Next) -> Response {
    let held = request.headers().get_all(header::IF_NONE_MATCH).iter().cloned().collect::<Vec<_>>();
    let response = next.run(request).await;
    if response.status() != StatusCode::OK {
        return response;
    }
    let (parts, body) = response.into_parts();
    let Ok(bytes) = to_bytes(body, LIMIT).await else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
    finish(held.iter(), parts, bytes)
}

/// Returns a 200 with this body, or 304 if the caller already has it. The handlers of lookups call it instead of using the layer.
pub(super) fn json(request: &HeaderMap, value: &impl Serialize) -> Response {
    let mut body = Vec::with_capacity(TYPICAL);
    if serde_json::to_writer(&mut body, value).is_err() {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    let (mut parts, ()) = Response::new(()).into_parts();
    parts.headers.reserve(HEADERS);
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    finish(request.get_all(header::IF_NONE_MATCH).iter(), parts, body.into())
}

/// Adds the `ETag` to an answer, and removes the body if the caller holds the same one.
fn finish<'a>(mut held: impl Iterator<Item = &'a HeaderValue>, mut parts: Parts, bytes: Bytes) -> Response {
    let mut tag = [b'"'; 34];
    // This fails only for a slice of another length.
    let _ = hex::encode_to_slice(&Sha256::digest(&bytes)[..16], &mut tag[1..33]);
    let tag = str::from_utf8(&tag).unwrap_or_default();
    private(&mut parts.headers);
    if let Ok(value) = HeaderValue::from_str(tag) {
        parts.headers.insert(header::ETAG, value);
    }
    if held.any(|value| names(value, tag)) {
        parts.status = StatusCode::NOT_MODIFIED;
        parts.headers.remove(header::CONTENT_TYPE);
        parts.headers.remove(header::CONTENT_LENGTH);
        return Response::from_parts(parts, Body::empty());
    }
    Response::from_parts(parts, Body::from(bytes))
}

/// Marks an answer as private and to be revalidated, unless the handler has set `Cache-Control`.
fn private(headers: &mut HeaderMap) {
    if headers.contains_key(header::CACHE_CONTROL) {
        return;
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    headers.insert(header::VARY, HeaderValue::from_static("authorization, origin"));
}

/// Compares weakly, because a proxy that compresses an answer weakens its tag.
fn names(value: &HeaderValue, tag: &str) -> bool {
    let Ok(value) = value.to_str() else { return false };
    value.split(',').map(str::trim).any(|held| held == "*" || held.strip_prefix("W/").unwrap_or(held) == tag)
}
