//! Reads a body that WorkOS must have signed. The headers are checked before the body is read, and nothing is parsed before the
//! signature is verified.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};

use super::body::{BodyBudget, BodyError, Held, discard};
use super::error::Rejection;
use super::state::HttpState;
use crate::workos::signature::{self, Secret, SignatureError, SignatureHeader, VerifiedBody};

/// Value of `Retry-After`, in seconds. WorkOS ignores it and retries on its own schedule.
pub(super) const RETRY_AFTER: u64 = 5;

/// A verified body. It counts against the memory budget until it is dropped.
pub(super) struct Signed {
    pub(super) body: VerifiedBody,
    _held: Held,
}

/// What a route accepts: its secrets and limits.
pub(super) struct Accepted<'a> {
    /// The name of the route in metrics.
    pub(super) endpoint: &'static str,
    /// Memory for bodies.
    pub(super) bodies: &'a Arc<BodyBudget>,
    /// The secrets with which WorkOS may have signed a body.
    pub(super) secrets: &'a ArcSwap<Vec<Secret>>,
    /// Tolerated difference between the time of the signature and our clock.
    pub(super) tolerance: Duration,
}

/// Reads and verifies a request's body.
pub(super) async fn read(
    state: &HttpState,
    headers: &HeaderMap,
    mut body: Body,
    accepted: Accepted<'_>,
) -> Result<Signed, Rejection> {
    let outcome = verify(state, headers, &mut body, accepted).await;
    // A sender that waits for `100 Continue` has sent nothing yet.
    let is_sent = !headers.contains_key(header::EXPECT);
    if outcome.as_ref().is_err_and(|refused| is_sent && refused.status().is_client_error()) {
        discard(body).await;
    }
    outcome
}

async fn verify(
    state: &HttpState,
    headers: &HeaderMap,
    body: &mut Body,
    Accepted { endpoint, bodies, secrets, tolerance }: Accepted<'_>,
) -> Result<Signed, Rejection> {
    let header = headers.get(signature::HEADER).map(HeaderValue::as_bytes);
    let header = SignatureHeader::parse(header, state.clock.now(), tolerance)?;
    let limit = bodies.body_limit();
    if bodies.is_declared_too_large(headers) {
        return Err(too_large(limit));
    }
    let held = bodies.read(body, state.body_timeout).await;
    let mut held = held.map_err(|error| refuse_body(&error, limit))?;
    // The secrets may have been replaced while the body was received.
    let body = header.verify(&secrets.load(), held.bytes.clone())?;
    state.metrics.verified_signature(endpoint, body.position());
    held.keep().map_err(|error| refuse_body(&error, limit))?;
    Ok(Signed { body, _held: held })
}

impl From<SignatureError> for Rejection {
    fn from(error: SignatureError) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "signature_invalid", error.to_string()).because(error.reason())
    }
}

fn too_large(limit: usize) -> Rejection {
    Rejection::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", format!("the body is larger than {limit} bytes"))
}

fn refuse_body(error: &BodyError, limit: usize) -> Rejection {
    match error {
        BodyError::TooLarge => too_large(limit),
        BodyError::Slow => {
            Rejection::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", "the body did not arrive in time")
        }
        BodyError::Broken => Rejection::new(StatusCode::BAD_REQUEST, "body_incomplete", "the body ended early"),
        BodyError::Busy => {
            Rejection::unavailable("busy", "too many bodies are being received at the same time; retry", RETRY_AFTER)
        }
    }
}
