//! `workos.scans`: the progress of scans of WorkOS's lists.

use std::time::Duration;

use time::OffsetDateTime;

use super::DbConnection;
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
    /// Fills the table of organizations.
    BackfillOrganizations,
    /// Fills the table of memberships.
    BackfillMemberships,
    /// Fills the table of the roles of organizations.
    BackfillOrganizationRoles,
    /// Compares the table of organizations with WorkOS and repairs it.
    ReconcileOrganizations,
    /// Compares the table of memberships with WorkOS and repairs it.
    ReconcileMemberships,
}

impl ScanKind {
    /// Returns the word for the database and logs. It is also the name of the job's lease.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Backfill => "backfill",
            Self::Reconcile => "reconcile",
            Self::BackfillOrganizations => "backfill_organizations",
            Self::BackfillMemberships => "backfill_memberships",
            Self::BackfillOrganizationRoles => "backfill_organization_roles",
            Self::ReconcileOrganizations => "reconcile_organizations",
            Self::ReconcileMemberships => "reconcile_memberships",
        }
    }
}

/// The numbers of objects that a scan has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ScanCounts {
    /// Objects that were not stored before.
    pub new: i64,
    /// Objects that differed from WorkOS.
    pub updated: i64,
    /// Objects that were equal to WorkOS's, or newer.
    pub unchanged: i64,
    /// Deleted objects: for a backfill those that it skipped, for a reconcile those that it deleted.
    pub tombstoned: i64,
    /// Objects that could not be applied.
    pub quarantined: i64,
}

impl ScanCounts {
    /// Adds the counts of a page.
    pub fn add(&mut self, page: Self) {
        self.new += page.new;
        self.updated += page.updated;
        self.unchanged += page.unchanged;
        self.tombstoned += page.tombstoned;
        self.quarantined += page.quarantined;
    }

    /// Returns the number of all objects.
    #[must_use]
    pub fn total(&self) -> i64 {
        self.new + self.updated + self.unchanged + self.tombstoned + self.quarantined
    }
}

/// The progress of a scan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanState {
    /// The last object of the last page applied, and when WorkOS created it.
    pub position: Option<(String, Option<Timestamp>)>,
    /// When the current scan started. `None` if none is running.
    pub started_at: Option<Timestamp>,
    /// When a scan was last completed.
    pub completed_at: Option<Timestamp>,
    /// The counts of the current scan, or else of the last one.
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

    /// Starts a scan at `now` (WorkOS's clock). If catch-up has not started yet, it will start before this time.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn begin_scan(&self, kind: ScanKind, now: Timestamp) -> Result<ScanStart, StoreError> {
        let client_id = self.client_id.clone();
        let catch_up = BeginCatchUp { client_id: &client_id, now };
        self.transaction("begin scan", &BeginScan { kind, now, catch_up }).await
    }
}

/// The start of a scan that compares WorkOS's list with the table. A row that equals the listed user is not written. Instead, one
/// record confirms all such rows.
///
/// The observation time of every snapshot of a scan is the start of the scan. After the last page, [`Store::confirm_scan`] confirms
/// all live rows whose version was written before the scan started: they were observed at this time. `confirmation` is read only
/// before a version replaces one with the same `updated_at`. In all other cases it changes nothing. A row that the scan does not
/// confirm is written when its page is applied, so the time of its version distinguishes it.
///
/// There is one exception: an event that is older than the scan replaces a confirmed row with the same `updated_at`, after the page
/// is applied and before the confirmation is stored. Reconcile finds such rows in the table and reads them by ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanStart {
    /// When it started, by WorkOS's clock.
    pub started_at: Timestamp,
    /// When it started, by the database's clock.
    pub database_started_at: Timestamp,
}

/// The confirmation of the last scan: live rows whose version was written before `before` (the database's clock) were observed at
/// `at` (WorkOS's clock).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Confirmation {
    pub(crate) at: Timestamp,
    pub(crate) before: Timestamp,
}

/// Returns the confirmation of the last scan. The caller holds locks on the rows, so that it cannot be outdated for them.
pub(crate) async fn confirmation(connection: &mut DbConnection<'_>) -> Result<Option<Confirmation>, StoreError> {
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

    async fn run(&self, connection: &mut DbConnection<'_>) -> Result<(), StoreError> {
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
    /// Confirms the unchanged rows of a scan after its last page.
    ///
    /// # Errors
    /// [`StoreError`], and [`StoreError::Overtaken`] if another scan has started meanwhile.
    pub async fn confirm_scan(&self, scan: &ScanStart) -> Result<(), StoreError> {
        self.transaction("confirm scan", &ConfirmScan(scan)).await
    }

    /// Stores the result of a complete scan.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(crate) async fn complete_scan(&self, result: &SaveScanResult) -> Result<(), StoreError> {
        self.transaction("complete scan", result).await
    }

    /// Returns whether `interval` has passed, by the database's clock, since the last completed scan of these kinds. Before the
    /// first scan, since the database was bound to its environment.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn is_scan_due(&self, kinds: &[ScanKind], interval: Duration) -> Result<bool, StoreError> {
        let kinds: Vec<&str> = kinds.iter().map(|kind| kind.as_str()).collect();
        self.lookup(async |connection| {
            sqlx::query_scalar!(
                r#"-- scans.due
                select coalesce(
                    (select max(completed_at) from workos.scans where kind = any($2)),
                    (select recorded_at from workos.environment),
                    now()
                ) <= now() - make_interval(secs => $1) as "due!""#,
                interval.as_secs_f64(),
                &kinds as _
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

    async fn run(&self, connection: &mut DbConnection<'_>) -> Result<ScanStart, StoreError> {
        self.catch_up.run(connection).await?;
        let database_started_at = sqlx::query_scalar!(
            r#"-- scans.begin
            insert into workos.scans as scan (kind, started_at, database_started_at)
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

/// Stores the position after a page.
pub(crate) struct AdvanceScan<'a> {
    pub(crate) kind: ScanKind,
    /// The position before the page. If another process has moved it, this fails.
    pub(crate) from: Option<&'a str>,
    pub(crate) position: Option<&'a (String, Option<Timestamp>)>,
}

impl Work for AdvanceScan<'_> {
    type Output = ();

    async fn run(&self, connection: &mut DbConnection<'_>) -> Result<(), StoreError> {
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

/// Stores the counts of a scan, and whether it is complete.
pub(crate) struct SaveScanResult {
    pub(crate) kind: ScanKind,
    pub(crate) counts: ScanCounts,
    pub(crate) is_complete: bool,
}

impl Work for SaveScanResult {
    type Output = ();

    async fn run(&self, connection: &mut DbConnection<'_>) -> Result<(), StoreError> {
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
            // A complete reconcile repairs the effects of lost events. The permission of the operator applies to one reconcile
            // only.
            sqlx::query!("-- scans.reconciled\nupdate workos.catch_up set needs_reconcile = false")
                .execute(&mut *connection)
                .await?;
            sqlx::query!("-- scans.reset_deletions_accepted\nupdate workos.environment set deletions_accepted = false")
                .execute(&mut *connection)
                .await?;
        }
        if self.kind == ScanKind::ReconcileOrganizations && self.is_complete {
            sqlx::query!(
                "-- scans.reconciled_organizations\nupdate workos.catch_up set needs_organization_reconcile = false"
            )
            .execute(&mut *connection)
            .await?;
            sqlx::query!(
                "-- scans.reset_organization_deletions_accepted
                update workos.environment
                set organization_deletions_accepted = false"
            )
            .execute(connection)
            .await?;
        }
        Ok(())
    }
}
