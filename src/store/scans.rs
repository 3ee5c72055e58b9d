//! `workos.scans`: the progress of scans of WorkOS's list of users.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use time::OffsetDateTime;

use super::catch_up::BeginCatchUp;
use super::{Store, StoreError, Work};
use crate::domain::timestamp::Timestamp;

/// The purpose of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanKind {
    /// Fills the table with users.
    Backfill,
    /// Compares the table with WorkOS and repairs it.
    Reconcile,
}

impl ScanKind {
    /// The word used in the database and in logs; also the name of the job's lease.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Backfill => "backfill",
            Self::Reconcile => "reconcile",
        }
    }
}

/// What a scan has found so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ScanCounts {
    /// Users that were not here.
    pub new: i64,
    /// Users that differed.
    pub updated: i64,
    /// Users that were as WorkOS has them, or newer.
    pub unchanged: i64,
    /// Users that are deleted: for backfill those it passed over, for reconcile those it made tombstones of.
    pub tombstoned: i64,
    /// Users that could not be applied.
    pub quarantined: i64,
}

impl ScanCounts {
    /// Adds another page's.
    pub fn add(&mut self, page: Self) {
        self.new += page.new;
        self.updated += page.updated;
        self.unchanged += page.unchanged;
        self.tombstoned += page.tombstoned;
        self.quarantined += page.quarantined;
    }

    /// All users seen.
    #[must_use]
    pub fn total(&self) -> i64 {
        self.new + self.updated + self.unchanged + self.tombstoned + self.quarantined
    }
}

/// The progress of a scan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanState {
    /// The last user of the last page applied, and when WorkOS created it.
    pub position: Option<(String, Option<Timestamp>)>,
    /// When the one under way began.
    pub started_at: Option<Timestamp>,
    /// When one last came to its end.
    pub completed_at: Option<Timestamp>,
    /// Of the one under way, else of the last one.
    pub counts: ScanCounts,
}

impl Store {
    /// Returns the progress of a scan; empty if there was none.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn scan_state(&self, kind: ScanKind) -> Result<ScanState, StoreError> {
        let row = self
            .lookup(async |connection| {
                sqlx::query!(
                    "-- scans.state
                    select
                        position,
                        position_created_at,
                        started_at,
                        completed_at,
                        created,
                        updated,
                        unchanged,
                        deleted,
                        quarantined
                    from workos.scans
                    where kind = $1",
                    kind.as_str()
                )
                .fetch_optional(connection)
                .await
            })
            .await?;
        Ok(row.map_or_else(ScanState::default, |row| ScanState {
            position: row.position.map(|id| (id, row.position_created_at.map(Timestamp::from))),
            started_at: row.started_at.map(Timestamp::from),
            completed_at: row.completed_at.map(Timestamp::from),
            counts: ScanCounts {
                new: row.created,
                updated: row.updated,
                unchanged: row.unchanged,
                tombstoned: row.deleted,
                quarantined: row.quarantined,
            },
        }))
    }

    /// Records that a scan begins at `now` (WorkOS's clock), and makes catch-up read events from before that instant.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn begin_scan(&self, kind: ScanKind, now: Timestamp) -> Result<ScanStart, StoreError> {
        let client_id = self.client_id.clone();
        let catch_up = BeginCatchUp { client_id: &client_id, now };
        self.transaction("begin scan", &BeginScan { kind, now, catch_up }).await
    }
}

/// A comparison of WorkOS's list with the table. A row that says what WorkOS lists is not written; instead the database
/// records once that the scan confirmed all such rows.
///
/// Every snapshot of a scan counts as observed when the scan began. When all pages are applied, each live row whose version
/// was written before the scan began is confirmed as of that instant: [`Store::confirm_scan`] records it, and
/// `confirmation` is asked where it matters, which is before a version replaces one of the same `updated_at`. What a scan
/// does not confirm is written when its page is applied, and so is told from the rest by the time of its version.
///
/// One case is left: an event older than the scan replaces a confirmed row of the same `updated_at` after the row's page is
/// applied and before the confirmation is recorded. Reconcile finds such rows when it looks through the live users, and reads them by ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanStart {
    /// When it began, by WorkOS's clock.
    pub started_at: Timestamp,
    /// The same by the database's clock.
    pub database_started_at: Timestamp,
}

/// What the last scan confirmed: live rows whose version was written before `before` (the database's clock), as of `at`
/// (WorkOS's clock).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Confirmation {
    pub(crate) at: Timestamp,
    pub(crate) before: Timestamp,
}

/// What the last scan confirmed, as committed by now: the caller holds the locks of the rows that it is about.
pub(crate) async fn confirmation(connection: &mut PgConnection) -> Result<Option<Confirmation>, StoreError> {
    let row = sqlx::query!(
        r#"-- scans.confirmation
        select confirmed_at as "at!", confirmed_before as "before!"
        from workos.scans
        where kind = 'reconcile' and confirmed_at is not null and confirmed_before is not null"#
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| Confirmation { at: row.at.into(), before: row.before.into() }))
}

struct ConfirmScan<'a>(&'a ScanStart);

impl Work for ConfirmScan<'_> {
    type Output = ();

    async fn run(&self, connection: &mut PgConnection) -> Result<(), StoreError> {
        let confirmed = sqlx::query!(
            "-- scans.confirm
            update workos.scans
            set
                confirmed_at = $1,
                confirmed_before = $2
            where
                kind = 'reconcile'
                and started_at = $1
                and database_started_at = $2",
            OffsetDateTime::from(self.0.started_at),
            OffsetDateTime::from(self.0.database_started_at)
        )
        .execute(connection)
        .await?;
        if confirmed.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Overtaken) }
    }
}

impl Store {
    /// Records that every page of a scan is applied.
    ///
    /// # Errors
    /// [`StoreError`], [`StoreError::Overtaken`] when another scan has begun meanwhile.
    pub async fn confirm_scan(&self, scan: &ScanStart) -> Result<(), StoreError> {
        self.transaction("confirm scan", &ConfirmScan(scan)).await
    }

    /// Records that a scan is complete.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(crate) async fn complete_scan(&self, tally: &SaveScanResult) -> Result<(), StoreError> {
        self.transaction("complete scan", tally).await
    }

    /// Whether `interval` has passed, by the database's clock, since a walk of any kind was completed; before the first, since
    /// the database was given to its environment.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn is_scan_due(&self, interval: Duration) -> Result<bool, StoreError> {
        self.lookup(async |connection| {
            sqlx::query_scalar!(
                r#"-- scans.due
                select coalesce(
                    (select max(completed_at) from workos.scans),
                    (select recorded_at from workos.environment),
                    now()
                ) <= now() - make_interval(secs => $1) as "due!""#,
                interval.as_secs_f64()
            )
            .fetch_one(connection)
            .await
        })
        .await
    }
}

struct BeginScan<'a> {
    kind: ScanKind,
    now: Timestamp,
    catch_up: BeginCatchUp<'a>,
}

impl Work for BeginScan<'_> {
    type Output = ScanStart;

    async fn run(&self, connection: &mut PgConnection) -> Result<ScanStart, StoreError> {
        self.catch_up.run(connection).await?;
        let database_started_at = sqlx::query_scalar!(
            r#"-- scans.begin
            insert into workos.scans as walk (kind, started_at, database_started_at)
            values ($1, $2, clock_timestamp())
            on conflict (kind) do update
            set
                position = null,
                position_created_at = null,
                started_at = excluded.started_at,
                database_started_at = excluded.database_started_at,
                created = 0,
                updated = 0,
                unchanged = 0,
                deleted = 0,
                quarantined = 0
            returning database_started_at as "database_started_at!""#,
            self.kind.as_str(),
            OffsetDateTime::from(self.now)
        )
        .fetch_one(connection)
        .await?;
        Ok(ScanStart { started_at: self.now, database_started_at: database_started_at.into() })
    }
}

/// Moves a scan past a page.
pub(crate) struct AdvanceScan<'a> {
    pub(crate) kind: ScanKind,
    /// Where the page began: a process that lost the walk to another one fails here.
    pub(crate) from: Option<&'a str>,
    pub(crate) position: Option<&'a (String, Option<Timestamp>)>,
}

impl Work for AdvanceScan<'_> {
    type Output = ();

    async fn run(&self, connection: &mut PgConnection) -> Result<(), StoreError> {
        let moved = sqlx::query!(
            "-- scans.advance
            update workos.scans
            set
                position = $3,
                position_created_at = $4
            where
                kind = $1
                and position is not distinct from $2
                and started_at is not null",
            self.kind.as_str(),
            self.from,
            self.position.map(|(id, _)| id),
            self.position.and_then(|(_, at)| *at).map(OffsetDateTime::from)
        )
        .execute(connection)
        .await?;
        if moved.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Overtaken) }
    }
}

/// Saves what a scan has found so far, and whether it is complete.
pub(crate) struct SaveScanResult {
    pub(crate) kind: ScanKind,
    pub(crate) counts: ScanCounts,
    pub(crate) is_complete: bool,
}

impl Work for SaveScanResult {
    type Output = ();

    async fn run(&self, connection: &mut PgConnection) -> Result<(), StoreError> {
        sqlx::query!(
            "-- scans.save_result
            update workos.scans
            set
                created = $2,
                updated = $3,
                unchanged = $4,
                deleted = $5,
                quarantined = $6,
                completed_at = case when $7 then now() else completed_at end,
                started_at = case when not $7 then started_at end,
                position = case when not $7 then position end,
                position_created_at = case when not $7 then position_created_at end
            where kind = $1",
            self.kind.as_str(),
            self.counts.new,
            self.counts.updated,
            self.counts.unchanged,
            self.counts.tombstoned,
            self.counts.quarantined,
            self.is_complete
        )
        .execute(&mut *connection)
        .await?;
        if self.kind == ScanKind::Reconcile && self.is_complete {
            // A complete reconcile makes up for lost events, and uses up the operator's word.
            sqlx::query!("-- scans.reconciled\nupdate workos.catch_up set needs_reconcile = false")
                .execute(&mut *connection)
                .await?;
            sqlx::query!("-- scans.reset_deletions_accepted\nupdate workos.environment set deletions_accepted = false")
                .execute(connection)
                .await?;
        }
        Ok(())
    }
}
