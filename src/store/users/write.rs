//! The write path's statements on `workos.user_records`: hold places, lock, write.

use std::collections::BTreeMap;

use sqlx::postgres::PgConnection;
use sqlx::types::Json;
use time::OffsetDateTime;

use super::Row;
use crate::domain::decide::Stored;
use crate::domain::timestamp::Timestamp;
use crate::domain::user::{Extra, User};
use crate::domain::version::Version;
use crate::store::StoreError;

/// Makes a row for each user that has none, so that there is something to lock. `ids` are sorted: two transactions that
/// make the same rows then wait for each other in one order.
pub(crate) async fn insert_placeholders(connection: &mut PgConnection, ids: &[String]) -> Result<(), StoreError> {
    sqlx::query!(
        "-- users.insert_placeholders
        insert into workos.user_records (id)
        select id
        from unnest($1::text[]) as named (id)
        on conflict (id) do nothing",
        ids
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A user whose row is locked.
#[derive(Clone, Debug)]
pub(crate) struct Locked {
    /// The row.
    pub(crate) stored: Stored,
    /// The latest sign-in that sessions told of. Where the row is live, it shows it already; a user who is not here yet may
    /// have one, too.
    pub(crate) signed_in_at: Option<Timestamp>,
    /// When the version was last written, by the database's clock.
    pub(crate) version_at: Option<Timestamp>,
}

/// Locks the rows in id order and reads them. `no key`: an application's foreign keys check against these rows, and must
/// not wait. What it returns is the last committed state, and no other transaction can change it before this one ends.
///
/// That holds for the sign-ins too, although only the users' rows are locked: a transaction that stores one of a live user
/// writes that user's row, and one of an absent user makes whoever holds a place for that user wait.
pub(crate) async fn lock(
    connection: &mut PgConnection,
    ids: &[String],
) -> Result<BTreeMap<String, Locked>, StoreError> {
    let rows = sqlx::query!(
        r#"-- users.lock
        select
            id,
            email,
            email_verified,
            first_name,
            last_name,
            name,
            profile_picture_url,
            external_id,
            metadata as "metadata: Json<BTreeMap<String, Option<String>>>",
            last_sign_in_at,
            locale,
            created_at,
            updated_at,
            synced_extra as "synced_extra: Json<Extra>",
            synced_observed_at,
            synced_observation_id,
            synced_deleted,
            synced_deleted_at,
            synced_version_at,
            sign_ins.signed_in_at as "signed_in_at?"
        from workos.user_records as stored
        left join workos.sign_ins on sign_ins.user_id = stored.id
        where id = any($1)
        order by id
        for no key update of stored"#,
        ids
    )
    .fetch_all(connection)
    .await?;
    let locked = rows.into_iter().map(|row| {
        let signed_in_at = row.signed_in_at.map(Timestamp::from);
        let version_at = row.synced_version_at.map(Timestamp::from);
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
        (row.id, Locked { stored: stored.into_stored(), signed_in_at, version_at })
    });
    Ok(locked.collect())
}

/// Writes live users as they now stand. With `restamp` no scan under way confirms their versions, even unchanged ones.
pub(crate) async fn write_live(
    connection: &mut PgConnection,
    live: &[(&User, &Version)],
    restamp: bool,
) -> Result<(), StoreError> {
    fn column<'a, T>(live: &[(&'a User, &'a Version)], value: impl Fn(&'a User) -> T) -> Vec<T> {
        live.iter().map(|(user, _)| value(user)).collect()
    }
    let instants = |value: fn(&User) -> Option<Timestamp>| -> Vec<Option<OffsetDateTime>> {
        live.iter().map(|(user, _)| value(user).map(OffsetDateTime::from)).collect()
    };
    let observed: Vec<OffsetDateTime> = live.iter().map(|(_, version)| version.observed_at.into()).collect();
    let observations: Vec<String> = live.iter().map(|(_, version)| version.id.clone()).collect();
    sqlx::query!(
        "-- users.write_live
        update workos.user_records as stored
        set
            email = seen.email,
            email_verified = seen.email_verified,
            first_name = seen.first_name,
            last_name = seen.last_name,
            name = seen.name,
            profile_picture_url = seen.profile_picture_url,
            external_id = seen.external_id,
            metadata = seen.metadata,
            last_sign_in_at = seen.last_sign_in_at,
            locale = seen.locale,
            created_at = seen.created_at,
            updated_at = seen.updated_at,
            synced_extra = seen.extra,
            synced_observed_at = seen.observed_at,
            synced_observation_id = seen.observation,
            synced_at = now(),
            synced_version_at = case
                when not $17
                    and (stored.updated_at, stored.synced_observed_at, stored.synced_observation_id)
                        = (seen.updated_at, seen.observed_at, seen.observation)
                then stored.synced_version_at
                -- Not the transaction's start: it may have waited for the row's lock since.
                else clock_timestamp()
            end
        from unnest(
            $1::text[], $2::text[], $3::bool[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
            $9::jsonb[], $10::timestamptz[], $11::text[], $12::timestamptz[], $13::timestamptz[], $14::jsonb[],
            $15::timestamptz[], $16::text[]
        ) as seen (
            id, email, email_verified, first_name, last_name, name, profile_picture_url, external_id,
            metadata, last_sign_in_at, locale, created_at, updated_at, extra,
            observed_at, observation
        )
        where stored.id = seen.id",
        &column(live, |user| user.id.clone()),
        &column(live, |user| user.email.clone()),
        &column(live, |user| user.email_verified),
        &column(live, |user| user.first_name.clone()) as _,
        &column(live, |user| user.last_name.clone()) as _,
        &column(live, |user| user.name.clone()) as _,
        &column(live, |user| user.profile_picture_url.clone()) as _,
        &column(live, |user| user.external_id.clone()) as _,
        &column(live, |user| Json(&user.metadata)) as _,
        &instants(|user| user.last_sign_in_at) as _,
        &column(live, |user| user.locale.clone()) as _,
        &instants(|user| user.created_at) as _,
        &instants(|user| Some(user.updated_at)) as _,
        &column(live, |user| Json(&user.extra)) as _,
        &observed,
        &observations,
        restamp
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Makes tombstones: the id and the instant stay, everything else goes.
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

/// Takes back the places held for users of whom nothing is known after all.
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
