//! The operations of the write path on the rows of any kind of object: lock, read, write. Each kind has its own table with typed
//! columns, and a file named after it with the statements that name those columns. The statements that are the same for every table
//! are written once, in `rows`.

use std::collections::{BTreeMap, BTreeSet};

use super::DbConnection;
use super::rows::{Found, LiveRow, Rows, TombstoneRow};
use super::{Store, StoreError, memberships, organizations, users};
use crate::domain::decide::Stored;
use crate::domain::object::{Kind, Object};

/// Locks these objects in ID order and reads them. It returns the last committed state, and no other transaction can change that
/// state before this one ends. The lock is `no key`, so that foreign keys of an application do not wait for it.
///
/// This also holds for the sign-ins, although only the users' rows are locked: a transaction that stores a sign-in of a live user
/// writes the user's row, too, and `workos.confirm_inserted` covers absent users.
///
/// # Errors
/// [`StoreError::Conflict`] if another transaction inserted one of the rows after the locks were taken.
pub(crate) async fn lock(connection: &mut DbConnection<'_>, kind: Kind, ids: &[String]) -> Result<Rows, StoreError> {
    let locked = match kind {
        Kind::User => users::table::lock(&mut *connection, ids).await?,
        Kind::Organization => organizations::table::lock(&mut *connection, ids).await?,
        Kind::Membership => memberships::table::lock(&mut *connection, ids).await?,
    };
    let rows = find(connection, kind, ids).await?;
    let found = rows.values().filter(|row| row.revision.is_some()).count();
    // Rows are never deleted, so an equal number means the same rows.
    if found == locked { Ok(rows) } else { Err(StoreError::retry()) }
}

/// Reads these objects without locking them. An object without a row is [`Stored::Absent`].
pub(crate) async fn find(connection: &mut DbConnection<'_>, kind: Kind, ids: &[String]) -> Result<Rows, StoreError> {
    let mut rows: Rows = ids.iter().map(|id| (id.clone(), Found::absent())).collect();
    match kind {
        Kind::User => users::find(connection, ids, &mut rows).await?,
        Kind::Organization => organizations::find(connection, ids, &mut rows).await?,
        Kind::Membership => memberships::find(connection, ids, &mut rows).await?,
    }
    Ok(rows)
}

/// Inserts a placeholder for each of these objects, which have no row, so no other transaction can insert or delete them. `ids`
/// must be sorted, so that two transactions that insert the same rows do not deadlock.
///
/// # Errors
/// [`StoreError::Conflict`] if another transaction inserted one of them first.
pub(crate) async fn insert_placeholders(
    connection: &mut DbConnection<'_>,
    kind: Kind,
    ids: &[String],
) -> Result<(), StoreError> {
    let inserted = match kind {
        Kind::User => users::table::insert_placeholders(connection, ids).await?,
        Kind::Organization => organizations::table::insert_placeholders(connection, ids).await?,
        Kind::Membership => memberships::table::insert_placeholders(connection, ids).await?,
    };
    if usize::try_from(inserted).is_ok_and(|inserted| inserted == ids.len()) {
        return Ok(());
    }
    Err(StoreError::retry())
}

/// Deletes the placeholders of objects that the batch did not create.
pub(crate) async fn delete_placeholders(
    connection: &mut DbConnection<'_>,
    kind: Kind,
    ids: &[String],
) -> Result<(), StoreError> {
    match kind {
        Kind::User => users::table::delete_placeholders(connection, ids).await,
        Kind::Organization => organizations::table::delete_placeholders(connection, ids).await,
        Kind::Membership => memberships::table::delete_placeholders(connection, ids).await,
    }
}

/// Turns rows into tombstones. The rows exist and are locked.
pub(crate) async fn write_tombstones(
    connection: &mut DbConnection<'_>,
    kind: Kind,
    deleted: &[TombstoneRow<'_>],
) -> Result<(), StoreError> {
    match kind {
        Kind::User => users::write_tombstones(connection, deleted).await,
        Kind::Organization => organizations::write_tombstones(connection, deleted).await,
        Kind::Membership => memberships::write_tombstones(connection, deleted).await,
    }
}

/// Writes live objects of any kind but users, whose rows [`super::batch::write`] writes. The rows exist and are locked.
pub(crate) async fn write(
    connection: &mut DbConnection<'_>,
    kind: Kind,
    live: &[LiveRow<'_>],
) -> Result<(), StoreError> {
    match kind {
        Kind::User => Ok(()),
        Kind::Organization => organizations::write(connection, live).await,
        Kind::Membership => memberships::write(connection, live).await,
    }
}

impl Store {
    /// Returns those of these objects whose row another session has locked. Waits for no lock.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(crate) async fn locked(&self, kind: Kind, ids: &[String]) -> Result<BTreeSet<String>, StoreError> {
        let locked = self
            .one_statement(async |connection, _| match kind {
                Kind::User => users::table::locked(connection, ids).await,
                Kind::Organization => organizations::table::locked(connection, ids).await,
                Kind::Membership => memberships::table::locked(connection, ids).await,
            })
            .await?;
        Ok(locked.into_iter().collect())
    }

    /// Returns these objects, live or deleted. Absent ones are omitted.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(crate) async fn objects(&self, kind: Kind, ids: &[String]) -> Result<BTreeMap<String, Stored>, StoreError> {
        match kind {
            Kind::User => {
                let users = self.users(ids).await?;
                Ok(users.into_iter().map(|(id, stored)| (id, stored.map(Object::User))).collect())
            }
            Kind::Organization => self.organizations(ids).await,
            Kind::Membership => self.memberships(ids).await,
        }
    }
}
