//! `workos.user_records`: live users and tombstones.

use std::collections::BTreeMap;

use sqlx::postgres::PgConnection;
use sqlx::types::Json;
use time::OffsetDateTime;

use super::{Store, StoreError};
use crate::domain::decide::Stored;
use crate::domain::timestamp::Timestamp;
use crate::domain::user::{Extra, User};
use crate::domain::version::Version;

/// A row, before it is known to be live, a tombstone, or a place held for locking.
pub(super) struct Row {
    pub(super) id: String,
    pub(super) email: Option<String>,
    pub(super) email_verified: Option<bool>,
    pub(super) first_name: Option<String>,
    pub(super) last_name: Option<String>,
    pub(super) name: Option<String>,
    pub(super) profile_picture_url: Option<String>,
    pub(super) external_id: Option<String>,
    pub(super) metadata: Option<Json<BTreeMap<String, Option<String>>>>,
    pub(super) last_sign_in_at: Option<OffsetDateTime>,
    pub(super) locale: Option<String>,
    pub(super) created_at: Option<OffsetDateTime>,
    pub(super) updated_at: Option<OffsetDateTime>,
    pub(super) synced_extra: Option<Json<Extra>>,
    pub(super) synced_observed_at: Option<OffsetDateTime>,
    pub(super) synced_observation: Option<String>,
    pub(super) synced_deleted: bool,
    pub(super) synced_deleted_at: Option<OffsetDateTime>,
}

impl Row {
    pub(super) fn into_stored(self) -> Stored {
        if self.synced_deleted {
            return Stored::Tombstone { deleted_at: self.synced_deleted_at.map(Timestamp::from) };
        }
        // The table's check constraint makes these four null together, in a row that only holds a place.
        let (Some(email), Some(updated_at), Some(observed_at), Some(observation)) =
            (self.email, self.updated_at, self.synced_observed_at, self.synced_observation)
        else {
            return Stored::Absent;
        };
        let updated_at = Timestamp::from(updated_at);
        Stored::Live {
            version: Version { updated_at, observed_at: observed_at.into(), id: observation },
            user: Box::new(User {
                id: self.id,
                email,
                email_verified: self.email_verified.unwrap_or_default(),
                first_name: self.first_name,
                last_name: self.last_name,
                name: self.name,
                profile_picture_url: self.profile_picture_url,
                external_id: self.external_id,
                metadata: self.metadata.map(|json| json.0).unwrap_or_default(),
                last_sign_in_at: self.last_sign_in_at.map(Timestamp::from),
                locale: self.locale,
                created_at: self.created_at.map(Timestamp::from),
                updated_at,
                extra: self.synced_extra.map(|json| json.0).unwrap_or_default(),
            }),
        }
    }
}

impl Store {
    /// The user with this id, dead or alive. One statement, one index lookup.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn user(&self, id: &str) -> Result<Stored, StoreError> {
        let row = self
            .lookup(async |connection| {
                sqlx::query_as!(
                    Row,
                    r#"-- users.by_id
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
                        synced_observation,
                        synced_deleted,
                        synced_deleted_at
                    from workos.user_records
                    where id = $1"#,
                    id
                )
                .fetch_optional(connection)
                .await
            })
            .await?;
        Ok(row.map_or(Stored::Absent, Row::into_stored))
    }
}

impl Store {
    /// These users, dead or alive, as the table holds them; absent ones are left out.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn users(&self, ids: &[String]) -> Result<BTreeMap<String, Stored>, StoreError> {
        let rows = self
            .lookup(async |connection| {
                sqlx::query_as!(
                    Row,
                    r#"-- users.by_ids
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
                        synced_observation,
                        synced_deleted,
                        synced_deleted_at
                    from workos.user_records
                    where id = any($1)"#,
                    ids
                )
                .fetch_all(connection)
                .await
            })
            .await?;
        Ok(rows.into_iter().map(|row| (row.id.clone(), row.into_stored())).collect())
    }

    /// Ids of live users behind `after`, in order, that were created before `before` or nobody knows when.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn live_ids(&self, after: &str, before: Timestamp, limit: i64) -> Result<Vec<String>, StoreError> {
        self.lookup(async |connection| {
            sqlx::query_scalar!(
                "-- users.live_ids
                select id
                from workos.user_records
                where
                    id > $1
                    and not synced_deleted
                    and email is not null
                    and coalesce(created_at, updated_at) < $2
                order by id
                limit $3",
                after,
                OffsetDateTime::from(before),
                limit
            )
            .fetch_all(connection)
            .await
        })
        .await
    }

    /// How many users are alive.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn live_count(&self) -> Result<i64, StoreError> {
        self.lookup(async |connection| {
            sqlx::query_scalar!(
                r#"-- users.live_count
                select count(*) as "count!"
                from workos.user_records
                where not synced_deleted"#
            )
            .fetch_one(connection)
            .await
        })
        .await
    }

    /// Up to `limit` live users, picked at random.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn sample_live(&self, limit: i64) -> Result<Vec<String>, StoreError> {
        self.lookup(async |connection| {
            // Of a large table only some pages are read, about two thousand rows; of a small one all.
            sqlx::query_scalar!(
                "-- users.sample_live
                select id
                from workos.user_records tablesample system ((
                    select least(100, 200000 / greatest(reltuples, 1))
                    from pg_class
                    where oid = 'workos.user_records'::regclass
                ))
                where
                    not synced_deleted
                    and email is not null
                order by random()
                limit $1",
                limit
            )
            .fetch_all(connection)
            .await
        })
        .await
    }
}

/// Makes a row for each user that has none, so that there is something to lock. `ids` are sorted: two transactions that
/// make the same rows then wait for each other in one order.
pub(crate) async fn hold_places(connection: &mut PgConnection, ids: &[String]) -> Result<(), StoreError> {
    sqlx::query!(
        "-- users.hold_places
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
            synced_observation,
            synced_deleted,
            synced_deleted_at,
            sign_ins.at as "signed_in_at?"
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
            synced_observation: row.synced_observation,
            synced_deleted: row.synced_deleted,
            synced_deleted_at: row.synced_deleted_at,
        };
        (row.id, Locked { stored: stored.into_stored(), signed_in_at })
    });
    Ok(locked.collect())
}

/// Writes live users as they now stand.
pub(crate) async fn write_live(connection: &mut PgConnection, live: &[(&User, &Version)]) -> Result<(), StoreError> {
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
            synced_observation = seen.observation,
            synced_at = now()
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
        &observations
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
            synced_observation = null,
            synced_at = null,
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
pub(crate) async fn release_places(connection: &mut PgConnection, ids: &[String]) -> Result<(), StoreError> {
    sqlx::query!(
        "-- users.release_places
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
