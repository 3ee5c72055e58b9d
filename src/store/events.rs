//! `workos.events`: the inbox of verified events.

mod audit;
mod read;
mod retention;
mod write;

pub use audit::MissedEvents;
pub use read::{EventFilter, EventSelection, EventSummary, StoredPayload};
pub(crate) use write::record_retry;
