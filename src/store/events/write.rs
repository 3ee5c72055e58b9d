//! `workos.events`: the inbox.

use std::borrow::Cow;
use std::collections::HashSet;

use sqlx::postgres::PgConnection;
use time::OffsetDateTime;

use crate::domain::event::{Event, Origin, Outcome};
use crate::store::StoreError;

/// An event on its way into the inbox.
pub(crate) struct NewEvent<'a> {
    pub(crate) event: Cow<'a, Event>,
    pub(crate) outcome: Outcome,
    pub(crate) reason: Option<String>,
    /// Its user is deleted: the payload must not be kept.
    pub(crate) erased: bool,
}

/// Enters events, each id once, and returns the ids that were new. Of a known one only the time its feed first brought it
/// is filled in.
pub(crate) async fn record(
    connection: &mut PgConnection,
    origin: Origin,
    writes: &[NewEvent<'_>],
) -> Result<HashSet<String>, StoreError> {
    let ids: Vec<String> = writes.iter().map(|write| write.event.id.clone()).collect();
    let types: Vec<String> = writes.iter().map(|write| write.event.event_type.clone()).collect();
    let users: Vec<Option<String>> = writes.iter().map(|write| write.event.user_id.clone()).collect();
    let created: Vec<Option<OffsetDateTime>> =
        writes.iter().map(|write| write.event.created_at.map(OffsetDateTime::from)).collect();
    let payloads: Vec<Option<&[u8]>> =
        writes.iter().map(|write| (!write.erased).then_some(&write.event.payload[..])).collect();
    let outcomes: Vec<String> = writes.iter().map(|write| write.outcome.as_str().to_owned()).collect();
    let reasons: Vec<Option<&str>> = writes.iter().map(|write| write.reason.as_deref()).collect();
    let rows = sqlx::query!(
        r#"-- events.record
        insert into workos.events (id, type, user_id, created_at, payload, outcome, reason, webhook_at, catch_up_at)
        select
            id,
            type,
            user_id,
            created_at,
            payload,
            outcome,
            reason,
            case when $8 = 'webhook' then now() end,
            case when $8 = 'catch_up' then now() end
        from unnest(
            $1::text[], $2::text[], $3::text[], $4::timestamptz[], $5::bytea[], $6::text[], $7::text[]
        ) as received (id, type, user_id, created_at, payload, outcome, reason)
        on conflict (id) do update
        set
            webhook_at = coalesce(events.webhook_at, excluded.webhook_at),
            catch_up_at = coalesce(events.catch_up_at, excluded.catch_up_at)
        returning id, (xmax = 0) as "new!""#,
        &ids,
        &types,
        &users as _,
        &created as _,
        &payloads as _,
        &outcomes,
        &reasons as _,
        origin.as_str()
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().filter(|row| row.new).map(|row| row.id).collect())
}

/// Gives quarantined rows the outcome of another try, where it went well, and returns their ids.
pub(crate) async fn record_retry(
    connection: &mut PgConnection,
    writes: &[NewEvent<'_>],
) -> Result<HashSet<String>, StoreError> {
    let well = || writes.iter().filter(|write| write.outcome != Outcome::Quarantined);
    let ids: Vec<String> = well().map(|write| write.event.id.clone()).collect();
    let outcomes: Vec<String> = well().map(|write| write.outcome.as_str().to_owned()).collect();
    let reasons: Vec<Option<&str>> = well().map(|write| write.reason.as_deref()).collect();
    let erased: Vec<bool> = well().map(|write| write.erased).collect();
    let settled = sqlx::query_scalar!(
        "-- events.record_retry
        update workos.events as kept
        set
            outcome = tried.outcome,
            reason = tried.reason,
            payload = case when not tried.erased then kept.payload end
        from unnest($1::text[], $2::text[], $3::text[], $4::bool[]) as tried (id, outcome, reason, erased)
        where
            kept.id = tried.id
            and kept.outcome = 'quarantined'
        returning kept.id",
        &ids,
        &outcomes,
        &reasons as _,
        &erased
    )
    .fetch_all(connection)
    .await?;
    Ok(settled.into_iter().collect())
}
