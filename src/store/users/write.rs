//! The statements of the write path on `workos.user_records`. Live users are written by
//! [`batch::write`](crate::store::batch::write).

use std::collections::BTreeMap;

use sqlx::types::Json;
use time::OffsetDateTime;

use super::Row;
use crate::domain::fields::Extra;
use crate::domain::object::Object;
use crate::domain::timestamp::Timestamp;
use crate::store::DbConnection;
use crate::store::StoreError;
use crate::store::rows::{Found, Rows, TombstoneRow, table_statements};

table_statements!("users", "workos.user_records", "email");

/// Reads these users into `users`.
pub(in crate::store) async fn find(
    connection: &mut DbConnection<'_>,
    ids: &[String],
    users: &mut Rows,
) -> Result<(), StoreError> {
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
            stored.revision,
            sign_ins.signed_in_at as "signed_in_at?"
        from unnest($1::text[]) as named (id)
        -- With a limit, PostgreSQL cannot join a whole table instead of reading one row of it.
        left join lateral (
            select candidate.*, candidate.xmin::text as revision
            from workos.user_records as candidate
            where candidate.id = named.id
            limit 1
        ) as stored on true
        left join lateral (select * from workos.sign_ins where user_id = named.id limit 1) as sign_ins on true
        where
            stored.id is not null
            or sign_ins.user_id is not null"#,
        ids
    )
    .fetch_all(connection)
    .await?;
    users.extend(rows.into_iter().map(|row| {
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
        let stored = stored.into_stored().map(Object::User);
        (row.id, Found { stored, signed_in_at, version_at, revision: row.revision })
    }));
    Ok(())
}

/// Turns rows into tombstones, which keep only the ID and the time of the deletion.
pub(in crate::store) async fn write_tombstones(
    connection: &mut DbConnection<'_>,
    deleted: &[TombstoneRow<'_>],
) -> Result<(), StoreError> {
    let times: Vec<Option<OffsetDateTime>> = deleted.iter().map(|row| row.deleted_at.map(Into::into)).collect();
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
        where
            stored.id = deleted.id
            and stored.id = any($1)",
        &deleted.iter().map(|row| row.id).collect::<Vec<_>>() as _,
        &times as _
    )
    .execute(connection)
    .await?;
    Ok(())
}
