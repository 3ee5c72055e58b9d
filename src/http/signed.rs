//! A body that WorkOS must have signed: what can be refused is refused before it is read, and nothing is parsed before its
//! signature.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode};

use super::Edge;
use super::body::{self, BodyError, Held};
use super::error::Refusal;
use crate::workos::signature::{self, Secret, SignatureError, SignatureHeader, VerifiedBody};

/// WorkOS retries on its own schedule; this tells everyone else.
pub(super) const RETRY_AFTER: u64 = 5;

/// A verified body, counted against the bound on bodies in memory until dropped.
pub(super) struct Signed {
    pub(super) body: VerifiedBody,
    _held: Held,
}

/// Reads and verifies a request's body.
pub(super) async fn read(
    edge: &Edge,
    headers: &HeaderMap,
    body: Body,
    secrets: &[Secret],
    tolerance: Duration,
) -> Result<Signed, Refusal> {
    let header = headers.get(signature::HEADER).map(HeaderValue::as_bytes);
    let header = SignatureHeader::parse(header, edge.clock.now(), tolerance)?;
    if body::declared_too_large(headers, edge.body_limit) {
        return Err(too_large(edge.body_limit));
    }
    let held = body::read(body, edge.body_limit, edge.body_timeout, &edge.bytes_in_flight)
        .await
        .map_err(|error| refuse_body(&error, edge.body_limit))?;
    let body = header.verify(secrets, held.bytes.clone())?;
    Ok(Signed { body, _held: held })
}

impl From<SignatureError> for Refusal {
    fn from(error: SignatureError) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "signature_invalid", error.to_string()).because(error.reason())
    }
}

fn too_large(limit: usize) -> Refusal {
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", format!("the body is longer than {limit} bytes"))
}

fn refuse_body(error: &BodyError, limit: usize) -> Refusal {
    match error {
        BodyError::TooLarge => too_large(limit),
        BodyError::Slow => {
            Refusal::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", "the body did not arrive in time")
        }
        BodyError::Broken => Refusal::new(StatusCode::BAD_REQUEST, "body_incomplete", "the body ended early"),
        BodyError::Busy => {
            Refusal::unavailable("busy", "too many bodies are being received at once; try again", RETRY_AFTER)
        }
    }
}
