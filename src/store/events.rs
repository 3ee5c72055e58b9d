//! `workos.events`: the inbox of verified events.

mod audit;
mod dismissals;
mod read;
mod redaction;
mod retention;
mod write;

pub use audit::{MissedEvents, WebhookAudit};
pub use read::{EventFilter, EventSelection, EventSummary, StoredPayload};
pub(crate) use redaction::{
    REDACTION_BATCH, advance_redaction, events_to_redact, finish_redaction, lock_redaction, replace_payloads,
};
pub(crate) use write::record_retry;
