//! Erases personal data of deleted users in bounded batches: of all users with a pending erasure, or of one user.

use sqlx::postgres::PgConnection;

use crate::domain::decide::Stored;
use crate::store::erasure::{self, Erased};
use crate::store::{Store, StoreError, Work, users};

/// Erases all remaining personal data of a deleted user, and returns the number of erased payloads. Returns `None` if the user is
/// not deleted.
///
/// # Errors
/// [`StoreError`]: the erasure is not complete. Erased data stays erased, and housekeeping erases the rest.
pub async fn erase_user(store: &Store, id: &str) -> Result<Option<u64>, StoreError> {
    let mut payloads = 0;
    loop {
        let batch = |limit| EraseUser { user: [id.to_owned()], limit };
        let Some(erased) = in_batches(store, "erase user", batch).await? else { return Ok(None) };
        payloads += erased.payloads;
        if erased.complete {
            return Ok(Some(payloads));
        }
    }
}

/// Erases one batch of pending erasures. Returns whether there may be more.
///
/// # Errors
/// [`StoreError`]: nothing of the batch was erased.
pub(super) async fn erase_pending(store: &Store) -> Result<bool, StoreError> {
    in_batches(store, "erase pending", |limit| ErasePending { limit }).await
}

/// Erases a batch. After a timeout, retries with half the size.
async fn in_batches<W: Work>(
    store: &Store,
    name: &'static str,
    batch: impl Fn(i64) -> W,
) -> Result<W::Output, StoreError> {
    let mut limit = erasure::BATCH;
    loop {
        match store.transaction(name, &batch(limit)).await {
            Err(StoreError::TimedOut(_)) if limit > 1 => limit /= 2,
            outcome => return outcome,
        }
    }
}

struct EraseUser {
    user: [String; 1],
    limit: i64,
}

impl Work for EraseUser {
    type Output = Option<Erased>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Option<Erased>, StoreError> {
        let stored = users::lock(connection, &self.user).await?;
        if !stored.values().any(|user| matches!(user.stored, Stored::Tombstone { .. })) {
            return Ok(None);
        }
        let erased = erasure::erase(connection, &self.user, self.limit).await?;
        erasure::remove_completed(connection, &self.user).await?;
        Ok(Some(erased))
    }
}

struct ErasePending {
    limit: i64,
}

impl Work for ErasePending {
    type Output = bool;

    async fn run(&self, connection: &mut PgConnection) -> Result<bool, StoreError> {
        let users = erasure::lock_pending(connection).await?;
        if users.is_empty() {
            return Ok(false);
        }
        erasure::erase(connection, &users, self.limit).await?;
        erasure::remove_completed(connection, &users).await?;
        Ok(true)
    }
}
