//! `workos.catch_up`: the progress of catch-up in the Events API.

use time::OffsetDateTime;

use super::DbConnection;
use super::{Store, StoreError, Work};
use crate::domain::timestamp::Timestamp;

/// The last event that was applied. Catch-up continues after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The ID of the event.
    pub id: String,
    /// When WorkOS created the event.
    pub created_at: Option<Timestamp>,
}

/// The progress of catch-up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatchUpState {
    /// Increases with every change. A change fails if the revision is no longer the one that was read.
    pub revision: i64,
    /// The last applied event.
    pub cursor: Option<Cursor>,
    /// The start of reading while there is no cursor.
    pub range_start: Timestamp,
    /// The earliest `range_start` so far. Earlier events are not applied, because their deletions may have been missed.
    pub earliest_range_start: Timestamp,
    /// When `range_start` was set, by WorkOS's clock.
    pub range_decided_at: Timestamp,
    /// The table contains everything that happened at WorkOS until this time.
    pub synced_through: Option<Timestamp>,
    /// Whether events may have been lost, so that a full reconcile is needed.
    pub needs_reconcile: bool,
    /// The same for organizations and memberships.
    pub needs_organization_reconcile: bool,
}

/// The progress of the sync.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The table contains everything that happened at WorkOS until this time. `None` until a backfill or a reconcile has completed
    /// and catch-up has reached the end of the events.
    pub synced_through: Option<Timestamp>,
    /// Whether a backfill has completed.
    pub backfilled: bool,
    /// Number of quarantined events. Counted up to 10,000.
    pub quarantined: i64,
    /// The backfill of organizations.
    pub organizations: KindProgress,
    /// The backfill of memberships.
    pub memberships: KindProgress,
}

/// The progress of the backfill of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct KindProgress {
    /// Whether a backfill has completed.
    pub backfill_completed: bool,
    /// Number of objects that the current backfill has read, or else the last one.
    pub read: i64,
    /// Number of organizations whose memberships the current backfill has not read yet. `None` if none is running.
    pub organizations_left: Option<i64>,
}

impl Store {
    /// Returns the progress of catch-up, or `None` before its first start.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn catch_up_state(&self) -> Result<Option<CatchUpState>, StoreError> {
        let row = self
            .lookup(async |connection| {
                sqlx::query!(
                    r#"-- catch_up.state
                    select
                        revision,
                        cursor,
                        cursor_created_at,
                        range_start,
                        earliest_range_start,
                        range_decided_at,
                        synced_through,
                        needs_reconcile,
                        needs_organization_reconcile
                    from workos.catch_up"#
                )
                .fetch_optional(connection)
                .await
            })
            .await?;
        Ok(row.map(|row| CatchUpState {
            revision: row.revision,
            cursor: row.cursor.map(|id| Cursor { id, created_at: row.cursor_created_at.map(Timestamp::from) }),
            range_start: row.range_start.into(),
            earliest_range_start: row.earliest_range_start.into(),
            range_decided_at: row.range_decided_at.into(),
            synced_through: row.synced_through.map(Timestamp::from),
            needs_reconcile: row.needs_reconcile,
            needs_organization_reconcile: row.needs_organization_reconcile,
        }))
    }

    /// Returns whether catch-up has read one of these events before. Events that only webhooks delivered do not count.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn has_read(&self, events: &[String]) -> Result<bool, StoreError> {
        let has_read = self
            .lookup(async |connection| {
                sqlx::query_scalar!(
                    r#"-- catch_up.has_read
                    select exists (
                        select from workos.events
                        where
                            id = any($1)
                            and catch_up_at is not null
                    ) as "has_read!""#,
                    events
                )
                .fetch_one(connection)
                .await
            })
            .await?;
        Ok(has_read)
    }

    /// Returns the progress of the sync.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn progress(&self) -> Result<Progress, StoreError> {
        let row = self
            .lookup(async |connection| {
                sqlx::query!(
                    r#"-- catch_up.progress
                    select
                        (
                            select synced_through
                            from workos.catch_up
                            where exists (
                                select
                                from workos.scans
                                where
                                    kind in ('backfill', 'reconcile')
                                    and completed_at is not null
                            )
                        ) as synced_through,
                        exists (
                            select from workos.scans
                            where kind = 'backfill' and completed_at is not null
                        ) as "backfilled!",
                        (
                            select count(*)
                            from (
                                select
                                from workos.events
                                where
                                    outcome = 'quarantined'
                                    and not exists (select from workos.dismissals where dismissals.event_id = events.id)
                                limit 10000
                            ) as counted
                        ) as "quarantined!""#
                )
                .fetch_one(connection)
                .await
            })
            .await?;
        let [organizations, memberships] = self.kinds_progress().await?;
        Ok(Progress {
            synced_through: row.synced_through.map(Timestamp::from),
            backfilled: row.backfilled,
            quarantined: row.quarantined,
            organizations,
            memberships,
        })
    }

    /// Returns the progress of the backfills of organizations and memberships. Counts organizations only while the second one runs.
    async fn kinds_progress(&self) -> Result<[KindProgress; 2], StoreError> {
        let rows = self
            .lookup(async |connection| {
                sqlx::query!(
                    r#"-- scans.kinds_progress
                    select
                        kind,
                        completed_at is not null as "completed!",
                        created + updated + unchanged + deleted + quarantined as "read!",
                        case when kind = 'backfill_memberships' and started_at is not null then (
                            select count(*)
                            from workos.organization_records as organization
                            where
                                organization.id > coalesce(scans.position, '')
                                and organization.name is not null
                                and not organization.synced_deleted
                        ) end as organizations_left
                    from workos.scans
                    where kind in ('backfill_organizations', 'backfill_memberships')"#
                )
                .fetch_all(connection)
                .await
            })
            .await?;
        let of = |kind: &str| {
            let row = rows.iter().find(|row| row.kind == kind);
            row.map_or_else(KindProgress::default, |row| KindProgress {
                backfill_completed: row.completed,
                read: row.read,
                organizations_left: row.organizations_left,
            })
        };
        Ok([of("backfill_organizations"), of("backfill_memberships")])
    }

    /// Stores the start of catch-up if it has not started yet. `now` is the time of WorkOS's clock.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn begin_catch_up(&self, now: Timestamp) -> Result<(), StoreError> {
        let client_id = self.client_id.clone();
        self.transaction("begin catch-up", &BeginCatchUp { client_id: &client_id, now }).await
    }
}

/// Catch-up starts this many seconds before the time from which no event may be missed.
pub(crate) const OVERLAP: i64 = 3_600;

/// Stores the start of catch-up, unless it has started or the database was bound to another environment meanwhile.
pub(crate) struct BeginCatchUp<'a> {
    pub(crate) client_id: &'a str,
    /// The current time of WorkOS's clock.
    pub(crate) now: Timestamp,
}

impl Work for BeginCatchUp<'_> {
    type Output = ();

    async fn run(&self, connection: &mut DbConnection<'_>) -> Result<(), StoreError> {
        sqlx::query!(
            "-- catch_up.begin
            insert into workos.catch_up (range_start, earliest_range_start, range_decided_at)
            select $2, $2, $3
            from workos.environment
            where client_id = $1
            on conflict do nothing",
            self.client_id,
            OffsetDateTime::from(self.now.plus_seconds(-OVERLAP)),
            OffsetDateTime::from(self.now)
        )
        .execute(connection)
        .await?;
        Ok(())
    }
}

/// Moves the cursor after a page.
pub(crate) struct AdvanceCatchUp<'a> {
    /// The revision at which the page was read.
    pub(crate) revision: i64,
    pub(crate) cursor: Option<&'a Cursor>,
    pub(crate) synced_through: Option<Timestamp>,
}

impl Work for AdvanceCatchUp<'_> {
    type Output = ();

    async fn run(&self, connection: &mut DbConnection<'_>) -> Result<(), StoreError> {
        let moved = sqlx::query!(
            "-- catch_up.advance
            update workos.catch_up
            set
                revision = revision + 1,
                cursor = coalesce($2, cursor),
                cursor_created_at = case when $2 is null then cursor_created_at else $3 end,
                synced_through = greatest(synced_through, $4)
            where revision = $1",
            self.revision,
            self.cursor.map(|cursor| &cursor.id),
            self.cursor.and_then(|cursor| cursor.created_at).map(OffsetDateTime::from),
            self.synced_through.map(OffsetDateTime::from)
        )
        .execute(connection)
        .await?;
        exactly_one(moved.rows_affected())
    }
}

/// Discards the cursor and restarts at a time.
pub(crate) struct RestartCatchUp {
    pub(crate) revision: i64,
    pub(crate) range_start: Timestamp,
    /// The current time of WorkOS's clock.
    pub(crate) now: Timestamp,
    /// Whether events before the new start may have been lost, so that a full reconcile is needed.
    pub(crate) needs_reconcile: bool,
    /// Whether `synced_through` is wrong. It then becomes unknown until catch-up reaches the end of the events again.
    pub(crate) clears_synced_through: bool,
}

impl Work for RestartCatchUp {
    type Output = ();

    async fn run(&self, connection: &mut DbConnection<'_>) -> Result<(), StoreError> {
        let moved = sqlx::query!(
            "-- catch_up.restart
            update workos.catch_up
            set
                revision = revision + 1,
                cursor = null,
                cursor_created_at = null,
                range_start = $2,
                earliest_range_start = least(earliest_range_start, $2),
                range_decided_at = $3,
                needs_reconcile = needs_reconcile or $4,
                needs_organization_reconcile = needs_organization_reconcile or $4,
                synced_through = case when not $5 then synced_through end
            where revision = $1",
            self.revision,
            OffsetDateTime::from(self.range_start),
            OffsetDateTime::from(self.now),
            self.needs_reconcile,
            self.clears_synced_through
        )
        .execute(connection)
        .await?;
        exactly_one(moved.rows_affected())
    }
}

fn exactly_one(rows: u64) -> Result<(), StoreError> {
    if rows == 1 { Ok(()) } else { Err(StoreError::Overtaken) }
}
