//! The inbox as a tool: another try for the quarantine, a replay, one more sweep behind a deleted user.

use std::collections::BTreeMap;

use serde::Serialize;
use sqlx::postgres::PgConnection;

use super::apply_again;
use crate::domain::decide::Stored;
use crate::domain::event::{Observation, Outcome};
use crate::domain::timestamp::Timestamp;
use crate::store::inbox::{Kept, Kin};
use crate::store::{Store, StoreError, Work, events, handlers as backlog, sign_ins, users};
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

/// Tries what is in quarantine again: all of it, or one event.
///
/// # Errors
/// [`StoreError`]: what was tried before it stays tried.
pub async fn retry(store: &Store, id: Option<&str>) -> Result<Retried, StoreError> {
    again(store, Kin { id, quarantined: true }, Timestamp::from_unix_micros(0)).await
}

/// Applies every kept event received since then once more; where the table is right, nothing changes.
///
/// # Errors
/// [`StoreError`]: what was applied before it stays applied.
pub async fn replay(store: &Store, since: Timestamp) -> Result<Retried, StoreError> {
    again(store, Kin { id: None, quarantined: false }, since).await
}

async fn again(store: &Store, kin: Kin<'_>, since: Timestamp) -> Result<Retried, StoreError> {
    let mut retried = Retried::default();
    let mut after = (since.plus_micros(-1), String::new());
    loop {
        let batch = store.kept(kin, (after.0, &after.1), BATCH).await?;
        let Some(last) = batch.last() else { return Ok(retried) };
        after = (last.received_at, last.id.clone());
        apply_batch(store, &batch, &mut retried).await?;
    }
}

async fn apply_batch(store: &Store, batch: &[Kept], retried: &mut Retried) -> Result<(), StoreError> {
    let (mut ids, mut observations): (Vec<&str>, Vec<Observation>) = (Vec::new(), Vec::new());
    for kept in batch {
        if let Some(observation) = wire::kept(&kept.event_type, kept.created_at, &kept.payload) {
            ids.push(&kept.id);
            observations.push(observation);
        } else {
            *retried.outcomes.entry(Outcome::Quarantined.as_str()).or_default() += 1;
            retried.left.insert(kept.id.clone(), "it still cannot be read as what it is".to_owned());
        }
    }
    let applied = apply_again(store, &observations).await?;
    for (id, applied) in ids.into_iter().zip(applied) {
        *retried.outcomes.entry(applied.outcome.as_str()).or_default() += 1;
        if applied.outcome == Outcome::Quarantined {
            retried.left.insert(id.to_owned(), applied.reason.unwrap_or_default());
        }
    }
    Ok(())
}

/// Erases once more what is kept of a deleted user; returns how many payloads there were. `None` when it is not deleted.
///
/// # Errors
/// [`StoreError`]
pub async fn sweep(store: &Store, user: &str) -> Result<Option<u64>, StoreError> {
    store.transaction("sweep", &Sweep { user: user.to_owned() }).await
}

struct Sweep {
    user: String,
}

impl Work for Sweep {
    type Output = Option<u64>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Option<u64>, StoreError> {
        let named = std::slice::from_ref(&self.user);
        let stored = users::lock(connection, named).await?;
        match stored.get(&self.user) {
            Some(Stored::Tombstone { .. }) => {
                backlog::erase(connection, named).await?;
                sign_ins::forget(connection, named).await?;
                events::erase(connection, named).await.map(Some)
            }
            _ => Ok(None),
        }
    }
}
