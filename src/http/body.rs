//! Reading a body that nobody vouches for yet: bounded in size, in time, and together with the others of its route in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio_util::sync::CancellationToken;

/// Why there is no body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BodyError {
    /// Longer than the limit.
    TooLarge,
    /// Not all there in time.
    Slow,
    /// The memory for bodies is full, and this one has waited longest, or all others are verified.
    Busy,
    /// The connection broke, or the framing did.
    Broken,
}

/// The memory for the bodies of one route. Each route has its own, so that unsigned input on one cannot exhaust another.
///
/// Where it is full, the body that has been arriving longest makes room. So senders of unfinished bodies, which nobody has
/// signed, cannot keep out one that arrives now. A verified body makes no room: its request is being carried out.
#[derive(Debug)]
pub(crate) struct BodyBudget {
    /// Of one body, bytes.
    body_limit: usize,
    /// Of all bodies together, bytes.
    total_limit: usize,
    bodies: Mutex<Bodies>,
}

#[derive(Debug, Default)]
struct Bodies {
    /// Bytes of all bodies, verified or not.
    used: usize,
    next: u64,
    /// Those that are still arriving, in the order of their first byte.
    arriving: BTreeMap<u64, Arriving>,
}

#[derive(Debug)]
struct Arriving {
    bytes: usize,
    evicted: CancellationToken,
}

impl BodyBudget {
    /// `body_limit` bytes for one body, `total_limit` for all; at least one body of the longest kind always fits.
    pub(crate) fn new(body_limit: usize, total_limit: usize) -> Arc<Self> {
        Arc::new(Self { body_limit, total_limit: total_limit.max(body_limit), bodies: Mutex::default() })
    }

    /// The longest body, bytes.
    pub(super) fn body_limit(&self) -> usize {
        self.body_limit
    }

    /// Whether the head already says that the body is too long.
    pub(super) fn is_declared_too_large(&self, headers: &HeaderMap) -> bool {
        let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        length.is_some_and(|length| usize::try_from(length).map_or(true, |length| length > self.body_limit))
    }

    /// Reads the whole body. Bytes are counted as they arrive, not as they are announced, so that a slow sender holds only
    /// what it has sent.
    pub(super) async fn read(self: &Arc<Self>, body: Body, timeout: Duration) -> Result<Held, BodyError> {
        tokio::time::timeout(timeout, self.collect(body)).await.unwrap_or(Err(BodyError::Slow))
    }

    async fn collect(self: &Arc<Self>, mut body: Body) -> Result<Held, BodyError> {
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

/// A body in memory, counted until dropped.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) bytes: Bytes,
    share: Share,
}

impl Held {
    /// The body's signature was verified: from now on it makes no room for others.
    pub(super) fn keep(&mut self) -> Result<(), BodyError> {
        self.share.keep()
    }
}

/// What one body holds of a budget.
#[derive(Debug)]
struct Share {
    budget: Arc<BodyBudget>,
    evicted: CancellationToken,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Empty,
    /// At this place of the queue.
    Arriving(u64),
    /// So many bytes, verified.
    Kept(usize),
}

impl Share {
    /// Takes room for `count` more bytes, of the oldest arriving bodies if need be.
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
            // Its bytes are freed as soon as its request notices.
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
            // Where it is gone, it has made room already.
            State::Arriving(place) => bodies.arriving.remove(&place).map_or(0, |own| own.bytes),
            State::Kept(bytes) => bytes,
        };
    }
}
