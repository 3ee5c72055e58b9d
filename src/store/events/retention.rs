//! Deletes payloads and rows of `workos.events` after the retention period.

use std::time::Duration;

use crate::store::DbConnection;
use crate::store::{Store, StoreError, Work};

impl Store {
    /// Deletes at most `limit` payloads that are older than `retention`, and returns their number. Quarantined payloads stay,
    /// except snapshots, which can be read from WorkOS again.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn expire_payloads(&self, retention: Duration, limit: i64) -> Result<u64, StoreError> {
        self.transaction("expire payloads", &ExpirePayloads { seconds: retention.as_secs_f64(), limit }).await
    }

    /// Deletes at most `limit` rows that are older than `retention`, and returns their number. Quarantined rows stay, except
    /// snapshots.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn expire_rows(&self, retention: Duration, limit: i64) -> Result<u64, StoreError> {
        self.transaction("expire rows", &ExpireRows { seconds: retention.as_secs_f64(), limit }).await
    }
}

struct ExpirePayloads {
    seconds: f64,
    limit: i64,
}

impl Work for ExpirePayloads {
    type Output = u64;

    async fn run(&self, connection: &mut DbConnection<'_>) -> Result<u64, StoreError> {
        let payloads = sqlx::query!(
            "-- events.expire_payloads
            update workos.events
            set payload = null
            -- By ctid, so that no plan reads the whole table.
            where ctid = any(array(
                select ctid
                from workos.events
                where
                    received_at < now() - make_interval(secs => $1)
                    and payload is not null
                    and (outcome <> 'quarantined' or type = 'snapshot')
                order by received_at
                limit $2
                for update skip locked
            ))",
            self.seconds,
            self.limit
        )
        .execute(connection)
        .await?;
        Ok(payloads.rows_affected())
    }
}

struct ExpireRows {
    seconds: f64,
    limit: i64,
}

impl Work for ExpireRows {
    type Output = u64;

    /// Rows with a payload and rows without have separate indexes.
    async fn run(&self, connection: &mut DbConnection<'_>) -> Result<u64, StoreError> {
        let rows = sqlx::query!(
            "-- events.expire_rows
            with without_payload as (
                select ctid as location
                from workos.events
                where
                    received_at < now() - make_interval(secs => $1)
                    and payload is null
                    and (outcome <> 'quarantined' or type = 'snapshot')
                order by received_at
                limit $2
                for update skip locked
            ),
            with_payload as (
                select ctid as location
                from workos.events
                where
                    received_at < now() - make_interval(secs => $1)
                    and payload is not null
                    and (outcome <> 'quarantined' or type = 'snapshot')
                order by received_at
                limit $2
                for update skip locked
            )
            delete from workos.events
            where ctid = any(array(
                select location from without_payload
                union all
                select location from with_payload
                limit $2
            ))",
            self.seconds,
            self.limit
        )
        .execute(connection)
        .await?;
        Ok(rows.rows_affected())
    }
}
