//! Reading a body that nobody vouches for yet: bounded in size, in time, and together with all others in memory.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Why there is no body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BodyError {
    /// Longer than the limit.
    TooLarge,
    /// Not all there in time.
    Slow,
    /// Too many bytes of other requests are in memory.
    Busy,
    /// The connection broke, or the framing did.
    Broken,
}

/// A body in memory, counted against the bound until dropped.
pub(super) struct Held {
    pub(super) bytes: Bytes,
    _permit: Option<OwnedSemaphorePermit>,
}

/// Whether the head already says that the body is too long.
pub(super) fn declared_too_large(headers: &HeaderMap, limit: usize) -> bool {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    length.is_some_and(|length| usize::try_from(length).map_or(true, |length| length > limit))
}

/// Reads the whole body. Bytes are counted as they arrive, not as they are announced, so that a slow sender holds only what
/// it has sent.
pub(super) async fn read(
    body: Body,
    limit: usize,
    timeout: Duration,
    in_flight: &Arc<Semaphore>,
) -> Result<Held, BodyError> {
    tokio::time::timeout(timeout, collect(body, limit, in_flight)).await.unwrap_or(Err(BodyError::Slow))
}

async fn collect(mut body: Body, limit: usize, in_flight: &Arc<Semaphore>) -> Result<Held, BodyError> {
    let mut bytes = BytesMut::new();
    let mut held: Option<OwnedSemaphorePermit> = None;
    while let Some(frame) = body.frame().await {
        let Ok(chunk) = frame.map_err(|_| BodyError::Broken)?.into_data() else { continue };
        if bytes.len() + chunk.len() > limit {
            return Err(BodyError::TooLarge);
        }
        let count = u32::try_from(chunk.len()).map_err(|_| BodyError::TooLarge)?;
        let permit = in_flight.clone().try_acquire_many_owned(count).map_err(|_| BodyError::Busy)?;
        match &mut held {
            Some(held) => held.merge(permit),
            None => held = Some(permit),
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Held { bytes: bytes.freeze(), _permit: held })
}
