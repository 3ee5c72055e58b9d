//! The inbox as a tool: a retry of the quarantine, and a replay.

use std::collections::BTreeMap;

use serde::Serialize;

use super::reapply;
use crate::domain::decide::Effect;
use crate::domain::event::{Observation, Outcome};
use crate::domain::timestamp::Timestamp;
use crate::store::events::{EventSelection, StoredPayload};
use crate::store::{Store, StoreError};
use crate::workos::wire;

/// Events taken at once.
const BATCH: i64 = 100;

/// What another try came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Retried {
    /// Events tried, by outcome.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// Those that stay in quarantine, and why.
    pub left: BTreeMap<String, String>,
}

impl Retried {
    /// Events tried.
    #[must_use]
    pub fn tried(&self) -> u64 {
        self.outcomes.values().sum()
    }
}

/// Retries what is in quarantine: all of it, or one event. With `sign_ins` the sessions among it are stored as sign-ins.
///
/// # Errors
/// [`StoreError`]: what was retried before it stays retried.
pub async fn retry(store: &Store, sign_ins: bool, id: Option<&str>) -> Result<Retried, StoreError> {
    again(store, sign_ins, EventSelection { id, quarantined: true }, Timestamp::from_unix_micros(0)).await
}

/// Applies every kept event received since then once more; where the table is right, nothing changes. With `sign_ins` the
/// sessions among them are stored as sign-ins, also those that arrived while that was disabled.
///
/// # Errors
/// [`StoreError`]: what was applied before it stays applied.
pub async fn replay(store: &Store, sign_ins: bool, since: Timestamp) -> Result<Retried, StoreError> {
    again(store, sign_ins, EventSelection { id: None, quarantined: false }, since).await
}

async fn again(
    store: &Store,
    sign_ins: bool,
    selection: EventSelection<'_>,
    since: Timestamp,
) -> Result<Retried, StoreError> {
    let mut retried = Retried::default();
    let mut after = (since.plus_micros(-1), String::new());
    loop {
        let batch = store.stored_payloads(selection, (after.0, &after.1), BATCH).await?;
        let Some(last) = batch.last() else { return Ok(retried) };
        after = (last.received_at, last.id.clone());
        apply_batch(store, sign_ins, &batch, &mut retried).await?;
    }
}

async fn apply_batch(
    store: &Store,
    sign_ins: bool,
    batch: &[StoredPayload],
    retried: &mut Retried,
) -> Result<(), StoreError> {
    let (mut ids, mut observations): (Vec<&str>, Vec<Observation>) = (Vec::new(), Vec::new());
    for kept in batch {
        if let Some(observation) = wire::kept(&kept.event_type, kept.created_at, &kept.payload) {
            ids.push(&kept.id);
            observations.push(observation.with_sign_in(sign_ins));
        } else {
            *retried.outcomes.entry(Outcome::Quarantined.as_str()).or_default() += 1;
            retried.left.insert(kept.id.clone(), "it still cannot be read as what it is".to_owned());
        }
    }
    let applied = reapply(store, &observations).await?;
    for (id, applied) in ids.into_iter().zip(applied) {
        *retried.outcomes.entry(applied.effect.outcome().as_str()).or_default() += 1;
        if let Effect::Quarantined(reason) = applied.effect {
            retried.left.insert(id.to_owned(), reason.into_owned());
        }
    }
    Ok(())
}
