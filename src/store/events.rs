//! `workos.events`: the inbox of verified events.

mod read;
mod write;

pub use read::{EventFilter, EventSelection, EventSummary, MissedEvents, StoredPayload};
pub(crate) use write::record_retry;
