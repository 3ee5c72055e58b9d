//! `workos.replicas`: the processes that serve this database, and their releases.

use time::OffsetDateTime;

use super::{Store, StoreError};
use crate::domain::timestamp::Timestamp;

/// A process counts as running if it has written its row within this many seconds, which are three intervals of the heartbeat.
const RECENT_SECONDS: f64 = 95.0;

/// The row of a process that was killed is deleted after this many seconds.
const GONE_AFTER_SECONDS: f64 = 600.0;

/// Maximum number of rows that are read, and that are deleted at a time.
const LIMIT: i64 = 100;

/// A process that serves this database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// The name of the process in leases.
    pub holder: String,
    /// Its release.
    pub version: String,
    /// When it started, by its own clock.
    pub started_at: Timestamp,
    /// When it last wrote its row, by the database's clock.
    pub seen_at: Timestamp,
}

impl Store {
    /// Writes the row of a process, and deletes rows of processes that were killed.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn note_replica(&self, holder: &str, version: &str, started_at: Timestamp) -> Result<(), StoreError> {
        self.write("note replica", || {
            sqlx::query!(
                "-- replicas.note
                with gone as (
                    delete from workos.replicas
                    where
                        holder in (
                            select holder
                            from workos.replicas
                            where
                                holder <> $1
                                and seen_at < now() - make_interval(secs => $4)
                            limit $5
                            for update skip locked
                        )
                )
                insert into workos.replicas as replica (holder, version, started_at)
                values ($1, $2, $3)
                on conflict (holder) do update
                set seen_at = now()",
                holder,
                version,
                OffsetDateTime::from(started_at),
                GONE_AFTER_SECONDS,
                LIMIT
            )
        })
        .await?;
        Ok(())
    }

    /// Deletes the row of a process that stops.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn remove_replica(&self, holder: &str) -> Result<(), StoreError> {
        self.write("remove replica", || {
            sqlx::query!("-- replicas.remove\ndelete from workos.replicas where holder = $1", holder)
        })
        .await?;
        Ok(())
    }

    /// Returns the running processes, the oldest first. At most 100.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn replicas(&self) -> Result<Vec<Replica>, StoreError> {
        let rows = self
            .lookup(async |connection| {
                sqlx::query!(
                    "-- replicas.running
                    select holder, version, started_at, seen_at
                    from workos.replicas
                    where seen_at > now() - make_interval(secs => $1)
                    order by started_at, holder
                    limit $2",
                    RECENT_SECONDS,
                    LIMIT
                )
                .fetch_all(connection)
                .await
            })
            .await?;
        Ok(rows
            .into_iter()
            .map(|row| Replica {
                holder: row.holder,
                version: row.version,
                started_at: row.started_at.into(),
                seen_at: row.seen_at.into(),
            })
            .collect())
    }
}
