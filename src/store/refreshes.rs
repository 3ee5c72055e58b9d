//! `workos.refreshes`: what must be read from WorkOS again, because an event reported a change without the new state.

use std::collections::BTreeSet;
use std::time::Duration;

use time::OffsetDateTime;

use super::DbConnection;
use super::{Store, StoreError};
use crate::domain::role::Refresh;
use crate::domain::timestamp::Timestamp;

/// Requests reads. A request that is already open gets a new time, so that a read that began earlier does not complete it.
pub(crate) async fn request(connection: &mut DbConnection<'_>, wanted: &BTreeSet<&Refresh>) -> Result<(), StoreError> {
    let kinds: Vec<&str> = wanted.iter().map(|refresh| refresh.kind()).collect();
    let ids: Vec<&str> = wanted.iter().map(|refresh| refresh.id()).collect();
    sqlx::query!(
        "-- refreshes.request
        insert into workos.refreshes (kind, id)
        select kind, id
        from unnest($1::text[], $2::text[]) as wanted (kind, id)
        order by kind, id
        on conflict (kind, id) do update
        set
            requested_at = clock_timestamp(),
            due_at = least(refreshes.due_at, now()),
            attempts = 0",
        &kinds as _,
        &ids as _
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Requests another read of a list that was stored only in part. It is read after everything else that is due.
pub(crate) async fn request_rest(connection: &mut DbConnection<'_>, wanted: &Refresh) -> Result<(), StoreError> {
    sqlx::query!(
        "-- refreshes.request_rest
        insert into workos.refreshes (kind, id)
        values ($1, $2)
        on conflict (kind, id) do update
        set
            requested_at = clock_timestamp(),
            due_at = now(),
            attempts = 0",
        wanted.kind(),
        wanted.id()
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Requests the organizations among `ids` that have no row. A request that is already open does not change.
pub(crate) async fn request_absent_organizations(
    connection: &mut DbConnection<'_>,
    ids: &BTreeSet<&str>,
) -> Result<(), StoreError> {
    let ids: Vec<&str> = ids.iter().copied().collect();
    sqlx::query!(
        "-- refreshes.request_absent_organizations
        insert into workos.refreshes (kind, id)
        select 'organization', wanted.id
        from unnest($1::text[]) as wanted (id)
        where not exists (
            select
            from workos.organization_records as stored
            where stored.id = wanted.id
        )
        order by wanted.id
        on conflict (kind, id) do nothing",
        &ids as _
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A request that is due.
#[derive(Clone, Debug)]
pub(crate) struct DueRefresh {
    pub(crate) refresh: Refresh,
    /// Identifies the request: a new event changes this time.
    requested_at: Timestamp,
}

impl Store {
    /// Returns the request that has been due for the longest time.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(crate) async fn due_refresh(&self) -> Result<Option<DueRefresh>, StoreError> {
        let row = self
            .lookup(async |connection| {
                sqlx::query!(
                    "-- refreshes.due
                    select kind, id, requested_at
                    from workos.refreshes
                    where due_at <= now()
                    order by due_at
                    limit 1"
                )
                .fetch_optional(connection)
                .await
            })
            .await?;
        Ok(row.and_then(|row| {
            Some(DueRefresh { refresh: Refresh::read(&row.kind, row.id)?, requested_at: row.requested_at.into() })
        }))
    }

    /// Deletes a request, unless another event has renewed it meanwhile.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(crate) async fn finish_refresh(&self, due: &DueRefresh) -> Result<(), StoreError> {
        self.write("finish refresh", || {
            sqlx::query!(
                "-- refreshes.finish
                delete from workos.refreshes
                where
                    kind = $1
                    and id = $2
                    and requested_at = $3",
                due.refresh.kind(),
                due.refresh.id(),
                OffsetDateTime::from(due.requested_at)
            )
        })
        .await?;
        Ok(())
    }

    /// Postpones a request that failed. The pause doubles with each attempt, from `first` up to `longest`.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(crate) async fn postpone_refresh(
        &self,
        due: &DueRefresh,
        first: Duration,
        longest: Duration,
    ) -> Result<(), StoreError> {
        self.write("postpone refresh", || {
            sqlx::query!(
                "-- refreshes.postpone
                update workos.refreshes
                set
                    attempts = attempts + 1,
                    due_at = now() + make_interval(secs => least($3::float8 * power(2, least(attempts, 20)), $4::float8))
                where
                    kind = $1
                    and id = $2",
                due.refresh.kind(),
                due.refresh.id(),
                first.as_secs_f64(),
                longest.as_secs_f64()
            )
        })
        .await?;
        Ok(())
    }
}
