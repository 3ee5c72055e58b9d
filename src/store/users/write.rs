//! The statements of the write path on `workos.user_records`: lock, read, insert placeholders, write tombstones.

use std::collections::BTreeMap;

use sqlx::postgres::PgConnection;
use sqlx::types::Json;
use time::OffsetDateTime;

use super::Row;
use crate::domain::decide::Stored;
use crate::domain::timestamp::Timestamp;
use crate::domain::user::Extra;
use crate::store::StoreError;

/// Inserts a placeholder for each of these users, which have no row, so no other transaction can insert or delete them. `ids` must be
/// sorted, so that two transactions that insert the same rows do not deadlock.
///
/// # Errors
/// [`StoreError::Conflict`] if another transaction inserted one of them first.
pub(crate) async fn insert_placeholders(connection: &mut PgConnection, ids: &[String]) -> Result<(), StoreError> {
    let inserted = sqlx::query!(
        "-- users.insert_placeholders
        insert into workos.user_records (id)
        select id
        from unnest($1::text[]) as named (id)
        on conflict (id) do nothing",
        ids
    )
    .execute(connection)
    .await?
    .rows_affected();
    if usize::try_from(inserted).is_ok_and(|inserted| inserted == ids.len()) {
        return Ok(());
    }
    Err(StoreError::retry())
}

/// The state of a user before a batch.
#[derive(Clone, Debug)]
pub(crate) struct FoundUser {
    /// The row.
    pub(crate) stored: Stored,
    /// The latest sign-in according to session events. The row of a live user already contains it. An absent user can have one, too.
    pub(crate) signed_in_at: Option<Timestamp>,
    /// When the version was last written, by the database's clock.
    pub(crate) version_at: Option<Timestamp>,
    /// Identifies this version of the row (its `xmin`); `None` if the user has no row.
    pub(crate) revision: Option<String>,
}

impl FoundUser {
    fn absent() -> Self {
        Self { stored: Stored::Absent, signed_in_at: None, version_at: None, revision: None }
    }
}

/// Locks these users in ID order and reads them. It returns the last committed state, and no other transaction can change that state
/// before this one ends. The lock is `no key`, so that foreign keys of an application do not wait for it.
///
/// This also holds for the sign-ins, although only the users' rows are locked: a transaction that stores a sign-in of a live user
/// writes the user's row, too, and `workos.confirm_inserted` covers absent users.
///
/// # Errors
/// [`StoreError::Conflict`] if another transaction inserted one of the rows after the locks were taken.
pub(crate) async fn lock(
    connection: &mut PgConnection,
    ids: &[String],
) -> Result<BTreeMap<String, FoundUser>, StoreError> {
    let locked = sqlx::query_scalar!(
        "-- users.lock
        select id
        from workos.user_records
        where id = any($1)
        order by id
        for no key update",
        ids
    )
    .fetch_all(&mut *connection)
    .await?;
    let users = find(connection, ids).await?;
    let found = users.values().filter(|user| user.revision.is_some()).count();
    // Rows are never deleted, so the same number means the same rows.
    if found == locked.len() { Ok(users) } else { Err(StoreError::retry()) }
}

/// Reads these users without locking them. A user without a row is [`Stored::Absent`].
pub(crate) async fn find(
    connection: &mut PgConnection,
    ids: &[String],
) -> Result<BTreeMap<String, FoundUser>, StoreError> {
    let rows = sqlx::query!(
        r#"-- users.find
        select
            named.id as "id!",
            email as "email?",
            email_verified as "email_verified?",
            first_name as "first_name?",
            last_name as "last_name?",
            name as "name?",
            profile_picture_url as "profile_picture_url?",
            external_id as "external_id?",
            metadata as "metadata?: Json<BTreeMap<String, Option<String>>>",
            last_sign_in_at as "last_sign_in_at?",
            locale as "locale?",
            created_at as "created_at?",
            updated_at as "updated_at?",
            synced_extra as "synced_extra?: Json<Extra>",
            synced_observed_at as "synced_observed_at?",
            synced_observation_id as "synced_observation_id?",
            coalesce(synced_deleted, false) as "synced_deleted!",
            synced_deleted_at as "synced_deleted_at?",
            synced_version_at as "synced_version_at?",
            stored.xmin::text as revision,
            sign_ins.signed_in_at as "signed_in_at?"
        from unnest($1::text[]) as named (id)
        left join workos.user_records as stored on stored.id = named.id
        left join workos.sign_ins on sign_ins.user_id = named.id
        where
            stored.id is not null
            or sign_ins.user_id is not null"#,
        ids
    )
    .fetch_all(connection)
    .await?;
    let mut users: BTreeMap<String, FoundUser> = ids.iter().map(|id| (id.clone(), FoundUser::absent())).collect();
    users.extend(rows.into_iter().map(|row| {
        let signed_in_at = row.signed_in_at.map(Timestamp::from);
        let version_at = row.synced_version_at.map(Timestamp::from);
        let revision = row.revision;
        let stored = Row {
            id: row.id.clone(),
            email: row.email,
            email_verified: row.email_verified,
            first_name: row.first_name,
            last_name: row.last_name,
            name: row.name,
            profile_picture_url: row.profile_picture_url,
            external_id: row.external_id,
            metadata: row.metadata,
            last_sign_in_at: row.last_sign_in_at,
            locale: row.locale,
            created_at: row.created_at,
            updated_at: row.updated_at,
            synced_extra: row.synced_extra,
            synced_observed_at: row.synced_observed_at,
            synced_observation_id: row.synced_observation_id,
            synced_deleted: row.synced_deleted,
            synced_deleted_at: row.synced_deleted_at,
        };
        (row.id, FoundUser { stored: stored.into_stored(), signed_in_at, version_at, revision })
    }));
    Ok(users)
}

/// Turns rows into tombstones: only the ID and the time of the deletion stay.
pub(crate) async fn write_tombstones(
    connection: &mut PgConnection,
    deleted: &[(&str, Option<Timestamp>)],
) -> Result<(), StoreError> {
    let ids: Vec<String> = deleted.iter().map(|(id, _)| (*id).to_owned()).collect();
    let instants: Vec<Option<OffsetDateTime>> = deleted.iter().map(|(_, at)| at.map(OffsetDateTime::from)).collect();
    sqlx::query!(
        "-- users.write_tombstones
        update workos.user_records as stored
        set
            email = null,
            email_verified = null,
            first_name = null,
            last_name = null,
            name = null,
            profile_picture_url = null,
            external_id = null,
            metadata = null,
            last_sign_in_at = null,
            locale = null,
            created_at = null,
            updated_at = null,
            synced_extra = null,
            synced_observed_at = null,
            synced_observation_id = null,
            synced_at = null,
            synced_version_at = null,
            synced_deleted = true,
            synced_deleted_at = deleted.at
        from unnest($1::text[], $2::timestamptz[]) as deleted (id, at)
        where stored.id = deleted.id",
        &ids,
        &instants as _
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Deletes the placeholders of users that the batch did not create.
pub(crate) async fn delete_placeholders(connection: &mut PgConnection, ids: &[String]) -> Result<(), StoreError> {
    sqlx::query!(
        "-- users.delete_placeholders
        delete from workos.user_records
        where
            id = any($1)
            and email is null
            and not synced_deleted",
        ids
    )
    .execute(connection)
    .await?;
    Ok(())
}
