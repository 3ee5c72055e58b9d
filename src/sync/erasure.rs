//! Erases personal data of deleted users in bounded batches: of all users with a pending erasure, or of one user.

use super::records;
use crate::domain::event::Origin;
use crate::domain::object::Kind;
use crate::store::DbConnection;
use crate::store::batch::{self, Writes};
use crate::store::erasure::{self, Erased};
use crate::store::{Store, StoreError, Work, memberships, objects};

/// Erases all remaining personal data of a deleted user, and returns the number of erased payloads. Returns `None` if the user is
/// not deleted.
///
/// # Errors
/// [`StoreError`]: the erasure is not complete. Erased data stays erased, and housekeeping erases the rest.
pub async fn erase_user(store: &Store, id: &str) -> Result<Option<u64>, StoreError> {
    let mut payloads = 0;
    loop {
        let batch = |limit| EraseUser { user: [id.to_owned()], limit };
        let Some(erased) = in_batches(store, "erase user", erasure::BATCH, batch).await? else { return Ok(None) };
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
    in_batches(store, "erase pending", erasure::BATCH, |limit| ErasePending { limit }).await
}

/// Runs a batch of at most `limit` rows. After a timeout, retries with half the size.
pub(super) async fn in_batches<W: Work>(
    store: &Store,
    name: &'static str,
    mut limit: i64,
    batch: impl Fn(i64) -> W,
) -> Result<W::Output, StoreError> {
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

    async fn run(&self, connection: &mut DbConnection<'_>) -> Result<Option<Erased>, StoreError> {
        let stored = objects::lock(connection, Kind::User, &self.user).await?;
        if !stored.values().any(|user| user.stored.is_tombstone()) {
            return Ok(None);
        }
        let erased = erase(connection, &self.user, self.limit).await?;
        erasure::remove_completed(connection, &self.user).await?;
        Ok(Some(erased))
    }
}

struct ErasePending {
    limit: i64,
}

impl Work for ErasePending {
    type Output = bool;

    async fn run(&self, connection: &mut DbConnection<'_>) -> Result<bool, StoreError> {
        let users = erasure::lock_pending(connection).await?;
        if users.is_empty() {
            return Ok(false);
        }
        erase(connection, &users, self.limit).await?;
        erasure::remove_completed(connection, &users).await?;
        Ok(true)
    }
}

/// Ends memberships of these deleted users, and erases personal data: at most `limit` rows per table. The users' rows are locked.
async fn erase(connection: &mut DbConnection<'_>, users: &[String], limit: i64) -> Result<Erased, StoreError> {
    let ended = memberships::end_of_users(connection, users, limit).await?;
    if !ended.is_empty() {
        batch::write(connection, &Writes::of_changes(records::ended_changes(&ended, Origin::CatchUp))).await?;
    }
    erasure::erase(connection, users, ended.len(), limit).await
}
