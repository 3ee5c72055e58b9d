//! Reads unverified bodies within limits: size, time, and memory of all bodies of one route.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio_util::sync::CancellationToken;

/// Limits for reading a refused body: bytes and time.
const DISCARDED: usize = 1024 * 1024;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(1);

/// Why there is no body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BodyError {
    /// It is larger than the limit.
    TooLarge,
    /// It did not arrive within the timeout.
    Slow,
    /// The memory for bodies is full. This body has been arriving for the longest time, or all others are verified.
    Busy,
    /// The connection was lost, or the framing is invalid.
    Broken,
}

/// The memory for the bodies of one route. Each route has its own, so that unsigned input on one route cannot exhaust another.
///
/// If the memory is full, the body that has been arriving longest is dropped. So senders of unfinished, unsigned bodies cannot
/// block a new one. A verified body is never dropped, because its request is being processed.
#[derive(Debug)]
pub(crate) struct BodyBudget {
    /// Limit of one body, in bytes.
    body_limit: usize,
    /// Limit of all bodies together, in bytes.
    total_limit: usize,
    bodies: Mutex<Bodies>,
}

#[derive(Debug, Default)]
struct Bodies {
    /// Bytes of all bodies, verified or not.
    used: usize,
    next: u64,
    /// Bodies that are still arriving, in the order of their first byte.
    arriving: BTreeMap<u64, Arriving>,
}

#[derive(Debug)]
struct Arriving {
    bytes: usize,
    evicted: CancellationToken,
}

impl BodyBudget {
    /// Creates a budget of `body_limit` bytes for one body and `total_limit` bytes for all. At least one body of the largest
    /// size always fits.
    pub(crate) fn new(body_limit: usize, total_limit: usize) -> Arc<Self> {
        Arc::new(Self { body_limit, total_limit: total_limit.max(body_limit), bodies: Mutex::default() })
    }

    /// Returns the limit of one body, in bytes.
    pub(super) fn body_limit(&self) -> usize {
        self.body_limit
    }

    /// Returns true if `Content-Length` exceeds the limit.
    pub(super) fn is_declared_too_large(&self, headers: &HeaderMap) -> bool {
        let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        length.is_some_and(|length| usize::try_from(length).map_or(true, |length| length > self.body_limit))
    }

    /// Reads the whole body. Counts bytes when they arrive, not when they are announced, so a slow sender occupies only what it
    /// has sent.
    pub(super) async fn read(self: &Arc<Self>, body: &mut Body, timeout: Duration) -> Result<Held, BodyError> {
        tokio::time::timeout(timeout, self.collect(body)).await.unwrap_or(Err(BodyError::Slow))
    }

    async fn collect(self: &Arc<Self>, body: &mut Body) -> Result<Held, BodyError> {
        let mut bytes = BytesMut::new();
        let mut share = Share { budget: self.clone(), evicted: CancellationToken::new(), state: State::Empty };
        loop {
            let frame = tokio::select! {
                biased;
                () = share.evicted.cancelled() => return Err(BodyError::Busy),
                frame = body.frame() => frame,
            };
            let Some(frame) = frame else { break };
            let Ok(chunk) = frame.map_err(|_| BodyError::Broken)?.into_data() else { continue };
            if bytes.len() + chunk.len() > self.body_limit {
                return Err(BodyError::TooLarge);
            }
            share.grow(chunk.len())?;
            bytes.extend_from_slice(&chunk);
        }
        Ok(Held { bytes: bytes.freeze(), share })
    }

    fn bodies(&self) -> MutexGuard<'_, Bodies> {
        self.bodies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the rest of a refused body without keeping it, within limits. If the rest were not read, closing the connection would
/// reset it, and the sender might not receive the answer.
pub(super) async fn discard(mut body: Body) {
    let rest = async {
        let mut bytes = 0;
        while bytes < DISCARDED
            && let Some(Ok(frame)) = body.frame().await
        {
            bytes += frame.data_ref().map_or(0, Bytes::len);
        }
    };
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, rest).await;
}

/// A body in memory, counted until dropped.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) bytes: Bytes,
    share: Share,
}

impl Held {
    /// Protects the body from being dropped. Call it after the signature was verified.
    pub(super) fn keep(&mut self) -> Result<(), BodyError> {
        self.share.keep()
    }
}

/// The memory that one body occupies in a budget.
#[derive(Debug)]
struct Share {
    budget: Arc<BodyBudget>,
    evicted: CancellationToken,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Empty,
    /// Position in the queue of arriving bodies.
    Arriving(u64),
    /// Verified; the number of bytes.
    Kept(usize),
}

impl Share {
    /// Reserves `count` more bytes. If necessary, drops the oldest arriving bodies.
    fn grow(&mut self, count: usize) -> Result<(), BodyError> {
        let mut bodies = self.budget.bodies();
        if let State::Empty = self.state {
            bodies.next += 1;
            let place = bodies.next;
            bodies.arriving.insert(place, Arriving { bytes: 0, evicted: self.evicted.clone() });
            self.state = State::Arriving(place);
        }
        let State::Arriving(place) = self.state else { return Err(BodyError::Busy) };
        while bodies.used + count > self.budget.total_limit {
            let Some((_, oldest)) = bodies.arriving.pop_first() else { return Err(BodyError::Busy) };
            // The bytes are freed when the dropped body's request notices the cancellation.
            bodies.used -= oldest.bytes;
            oldest.evicted.cancel();
        }
        let own = bodies.arriving.get_mut(&place).ok_or(BodyError::Busy)?;
        own.bytes += count;
        bodies.used += count;
        Ok(())
    }

    fn keep(&mut self) -> Result<(), BodyError> {
        if let State::Arriving(place) = self.state {
            let own = self.budget.bodies().arriving.remove(&place).ok_or(BodyError::Busy)?;
            self.state = State::Kept(own.bytes);
        }
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut bodies = self.budget.bodies();
        bodies.used -= match self.state {
            State::Empty => 0,
            // If it is missing, it was dropped and its bytes are already subtracted.
            State::Arriving(place) => bodies.arriving.remove(&place).map_or(0, |own| own.bytes),
            State::Kept(bytes) => bytes,
        };
    }
}
