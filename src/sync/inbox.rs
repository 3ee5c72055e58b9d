//! Applies stored events again: retries quarantined events, and replays all events.

use std::collections::BTreeMap;

use serde::Serialize;

use super::reapply;
use crate::domain::decide::Effect;
use crate::domain::event::{Observation, Outcome};
use crate::domain::kinds::Kinds;
use crate::domain::timestamp::Timestamp;
use crate::store::events::{EventSelection, StoredPayload};
use crate::store::{Store, StoreError};
use crate::workos::wire;

/// Number of events that are read and applied together.
const BATCH: i64 = 100;

/// The result of a retry or a replay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Retried {
    /// Number of events by outcome.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// The events that are still quarantined, with the reason.
    pub quarantined: BTreeMap<String, String>,
}

impl Retried {
    /// Returns the number of events.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.outcomes.values().sum()
    }
}

/// Retries all quarantined events, or the one with this ID. If `sign_ins` is true, sessions are stored as sign-ins.
///
/// # Errors
/// [`StoreError`]. Events that were applied before the failure stay applied.
pub async fn retry(store: &Store, kinds: Kinds, id: Option<&str>) -> Result<Retried, StoreError> {
    apply_stored(store, kinds, EventSelection { id, quarantined: true }, Timestamp::from_unix_micros(0)).await
}

/// Applies every stored event that was received since then again. Rows that are already correct do not change. If `sign_ins` is
/// true, sessions are stored as sign-ins, also those that were received while that was disabled.
///
/// # Errors
/// [`StoreError`]. Events that were applied before the failure stay applied.
pub async fn replay(store: &Store, kinds: Kinds, since: Timestamp) -> Result<Retried, StoreError> {
    apply_stored(store, kinds, EventSelection { id: None, quarantined: false }, since).await
}

async fn apply_stored(
    store: &Store,
    kinds: Kinds,
    selection: EventSelection<'_>,
    since: Timestamp,
) -> Result<Retried, StoreError> {
    let mut retried = Retried::default();
    let mut after = (since.plus_micros(-1), String::new());
    loop {
        let batch = store.stored_payloads(selection, (after.0, &after.1), BATCH).await?;
        let Some(last) = batch.last() else { return Ok(retried) };
        after = (last.received_at, last.id.clone());
        apply_batch(store, kinds, &batch, &mut retried).await?;
    }
}

async fn apply_batch(
    store: &Store,
    kinds: Kinds,
    batch: &[StoredPayload],
    retried: &mut Retried,
) -> Result<(), StoreError> {
    let (mut ids, mut observations): (Vec<&str>, Vec<Observation>) = (Vec::new(), Vec::new());
    for stored in batch {
        if let Some(observation) = wire::stored_observation(&stored.event_type, stored.created_at, &stored.payload) {
            ids.push(&stored.id);
            observations.push(kinds.restrict(observation));
        } else {
            *retried.outcomes.entry(Outcome::Quarantined.as_str()).or_default() += 1;
            retried.quarantined.insert(stored.id.clone(), "the payload still cannot be parsed".to_owned());
        }
    }
    let applied = reapply(store, &observations).await?;
    for (id, applied) in ids.into_iter().zip(applied) {
        *retried.outcomes.entry(applied.effect.outcome().as_str()).or_default() += 1;
        if let Effect::Quarantined(reason) = applied.effect {
            retried.quarantined.insert(id.to_owned(), reason.into_owned());
        }
    }
    Ok(())
}
