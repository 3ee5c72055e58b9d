//! Reconcile: compares WorkOS's list of users with the table and repairs the table (promise 6).
//!
//! Missing and outdated users are written page by page. After the last page, each live user that WorkOS did not list is read by
//! ID. It becomes a tombstone only if WorkOS does not know the ID, and only if there are not too many such users.

mod organization_run;
pub mod organizations;

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::backfill::{add_counts, log_completed};
use super::drift::{self, Drift};
use super::job::{Job, JobContext, JobError, REQUEST_INTERVAL};
use super::list_scan::{List, ListScan};
use super::runner::Runner;
use super::{apply, apply_scan_page, key_check};
use crate::domain::event::{Deletion, Observation, Origin};
use crate::domain::object::Kind;
use crate::domain::timestamp::Timestamp;
use crate::store::StoreError;
use crate::store::scans::{SaveScanResult, ScanCounts, ScanKind, ScanStart};
use crate::workos::api::{Found, PAGE};

/// Interval of the check whether a reconcile is due.
const DUE_CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// Deletions allowed without the permission of an operator: this number, or this fraction (1/20) of the live users if it is more.
const ALLOWED_DELETIONS: usize = 5;
const ALLOWED_DELETIONS_DIVISOR: usize = 20;

/// Number of rows of the table that are read together.
const BATCH: i64 = 10_000;

/// Whether a reconcile writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It repairs the table.
    Repair,
    /// It only reports differences.
    Check,
}

/// The result of a complete reconcile.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The numbers of users that were changed, or would be changed.
    pub counts: ScanCounts,
    /// All differences. After a repair, only those that it cannot repair: contradicted and unusable users.
    pub drift: Vec<Drift>,
}

/// The result of a step.
#[derive(Debug)]
pub enum ReconcileStep {
    /// The reconcile continues.
    InProgress {
        /// The counts so far.
        counts: ScanCounts,
        /// Number of live users that must still be read by ID. It can grow until the whole table was compared.
        unconfirmed: usize,
    },
    /// The reconcile is complete.
    Done(Report),
}

/// Runs the reconcile.
pub type Reconcile = Runner<ReconcileJob>;

/// The reconcile as a job.
#[derive(Debug)]
pub struct ReconcileJob {
    context: JobContext,
    mode: Mode,
    /// Time from a completed reconcile to the next one. `None`: reconcile only after events may have been lost.
    interval: Option<Duration>,
    run: Option<ReconcileRun>,
}

#[derive(Debug)]
struct ReconcileRun {
    list_scan: ListScan,
    is_list_read: bool,
    /// The start, by WorkOS's clock. Users that were created later may be missing in the list.
    started_at: Option<Timestamp>,
    /// Hashes of the listed IDs. A million of them need about 32 MB.
    seen: HashSet<u128>,
    report: Report,
    /// Users that WorkOS lists, but that are deleted in the table.
    listed_deleted: Vec<String>,
    /// Live users that were not listed, to read by ID.
    to_read: VecDeque<String>,
    /// The rows of the table are compared up to this ID. `None` after the last row.
    table_position: Option<String>,
    /// Number of live users in the compared rows.
    live: usize,
    /// Number of live users that must be in the list and are not.
    unlisted: usize,
    /// The recorded scan, if the table is repaired.
    scan: Option<ScanStart>,
    /// Live users that WorkOS does not know, each with the time of its answer.
    gone: Vec<(String, Timestamp)>,
    /// Whether a 404 for one of the users in `gone` does not contain the ID. Such a 404 is accepted only if a live user can be read
    /// by ID.
    needs_confirmation: bool,
    /// Whether a live user was read by ID.
    has_read_by_id: bool,
    /// Maximum number of deletions. `None` if an operator has accepted all.
    max_deletions: Option<usize>,
}

impl Reconcile {
    /// Creates a reconcile. It is due when `interval` has passed since the last complete scan.
    #[must_use]
    pub fn new(context: JobContext, mode: Mode, interval: Option<Duration>) -> Self {
        // Jittered once, so that environments that started at the same time do not reconcile at the same time.
        let interval = interval.map(|interval| context.jittered(interval));
        Self::of_job(context.clone(), ReconcileJob { context, mode, interval, run: None })
    }
}

impl Job for ReconcileJob {
    const NAME: &'static str = "reconcile";

    type Output = ReconcileStep;

    fn needs_lease(&self) -> bool {
        self.mode == Mode::Repair
    }

    async fn rest_if_idle(&mut self) -> Result<Option<Duration>, JobError> {
        let is_idle = self.run.is_none() && !self.is_due().await?;
        Ok(is_idle.then(|| self.context.jittered(DUE_CHECK_INTERVAL)))
    }

    fn reset(&mut self) {
        self.run = None;
    }

    /// Compares one page, or reads one user by ID. An interrupted reconcile starts from the beginning.
    /// [`JobError::TooMany`], [`JobError::EmptyList`], [`JobError::Endless`] and [`StoreError::Overtaken`] end it; after any
    /// other error this step can be retried.
    async fn step(&mut self) -> Result<ReconcileStep, JobError> {
        let mut run = match self.run.take() {
            Some(run) => run,
            None => self.begin().await?,
        };
        match self.advance(&mut run).await {
            Ok(false) => {
                let step = ReconcileStep::InProgress { counts: run.report.counts, unconfirmed: run.to_read.len() };
                self.run = Some(run);
                Ok(step)
            }
            Ok(true) => Ok(ReconcileStep::Done(run.report)),
            Err(error @ (JobError::TooMany { .. } | JobError::EmptyList { .. } | JobError::Endless)) => Err(error),
            // Another process has started a reconcile, so this one can no longer be confirmed.
            Err(error @ JobError::Store(StoreError::Overtaken)) => Err(error),
            Err(error) => {
                self.run = Some(run);
                Err(error)
            }
        }
    }

    fn is_last(step: &ReconcileStep) -> bool {
        matches!(step, ReconcileStep::Done(_))
    }

    fn compared(step: &ReconcileStep) -> Option<i64> {
        match step {
            ReconcileStep::InProgress { counts, .. } => Some(counts.total()),
            ReconcileStep::Done(_) => None,
        }
    }

    fn rest_after(&self, step: ReconcileStep) -> Duration {
        let ReconcileStep::Done(Report { counts, drift }) = step else { return REQUEST_INTERVAL };
        log_completed(Self::NAME, &counts);
        for difference in drift {
            tracing::warn!(drift = %difference, "reconcile cannot repair this difference");
        }
        self.context.jittered(DUE_CHECK_INTERVAL)
    }
}

impl ReconcileJob {
    async fn is_due(&self) -> Result<bool, JobError> {
        let store = &self.context.store;
        let is_needed = store.catch_up_state().await?.is_some_and(|state| state.needs_reconcile);
        // Deletions are accepted for one reconcile. After `rebind`, it deletes the users of the old environment.
        if is_needed || store.deletions_accepted().await? {
            return Ok(true);
        }
        let Some(interval) = self.interval else { return Ok(false) };
        Ok(store.is_scan_due(&[ScanKind::Backfill, ScanKind::Reconcile], interval).await?)
    }

    async fn begin(&self) -> Result<ReconcileRun, JobError> {
        key_check::check(&self.context).await?;
        Ok(ReconcileRun {
            list_scan: ListScan::of(List::Users),
            is_list_read: false,
            started_at: None,
            seen: HashSet::new(),
            report: Report::default(),
            listed_deleted: Vec::new(),
            to_read: VecDeque::new(),
            table_position: Some(String::new()),
            live: 0,
            unlisted: 0,
            scan: None,
            gone: Vec::new(),
            needs_confirmation: false,
            has_read_by_id: false,
            max_deletions: None,
        })
    }

    /// Does the next piece of work. Returns whether the reconcile is complete.
    async fn advance(&self, it: &mut ReconcileRun) -> Result<bool, JobError> {
        if !it.is_list_read {
            self.next_page(it).await?;
            return Ok(false);
        }
        if let (Some(after), Some(started_at)) = (it.table_position.take(), it.started_at) {
            self.compare_rows(it, &after, started_at).await?;
            return Ok(false);
        }
        if let Some(id) = it.to_read.front().cloned() {
            self.read_by_id(it, id).await?;
            it.to_read.pop_front();
            return Ok(false);
        }
        if let Some(id) = it.listed_deleted.last().cloned() {
            if let Found::Live(_) = self.context.api.user(&id).await? {
                it.report.drift.push(Drift { id, kind: drift::DriftKind::Contradicted });
            }
            it.listed_deleted.pop();
            return Ok(false);
        }
        self.finish(it).await?;
        Ok(true)
    }

    async fn next_page(&self, it: &mut ReconcileRun) -> Result<(), JobError> {
        let store = &self.context.store;
        let mut list_scan = it.list_scan.clone();
        let page = list_scan.next(&self.context.api).await?;
        let Some(page) = page else {
            it.list_scan = list_scan;
            return Ok(());
        };
        let observations = &page.observations;
        let applied = if self.mode == Mode::Repair {
            let scan = match it.scan {
                Some(scan) => scan,
                None => *it.scan.insert(store.begin_scan(ScanKind::Reconcile, page.observed_at).await?),
            };
            apply_scan_page(store, &scan, observations).await?
        } else {
            let applied = drift::preview(store, observations).await?;
            let listed = observations.iter().zip(&applied);
            it.report.drift.extend(listed.filter_map(|(listed, applied)| Drift::of(listed, &applied.effect)));
            applied
        };
        let mut counts = ScanCounts::default();
        add_counts(&mut counts, &applied);
        // For a reconcile, this is the number of users that it deletes.
        counts.tombstoned = 0;
        it.report.counts.add(counts);
        let deleted = observations.iter().zip(&applied).filter(|(_, applied)| applied.is_user_deleted);
        it.listed_deleted.extend(deleted.filter_map(|(listed, _)| listed.user_id()).map(str::to_owned));
        it.seen.extend(page.observations.iter().filter_map(Observation::user_id).map(hash));
        it.started_at.get_or_insert(page.observed_at);
        it.list_scan = list_scan;
        if page.end {
            // An empty list confirms no row.
            if let Some(scan) = it.scan.filter(|_| !it.seen.is_empty()) {
                store.confirm_scan(&scan).await?;
            }
            it.is_list_read = true;
        }
        Ok(())
    }

    /// Reads the next rows of the table, and collects the users to read by ID.
    async fn compare_rows(&self, it: &mut ReconcileRun, after: &str, started_at: Timestamp) -> Result<(), JobError> {
        let store = &self.context.store;
        let rows = match store.rows_after(after, started_at, it.scan.as_ref(), BATCH).await {
            Ok(rows) => rows,
            Err(error) => {
                it.table_position = Some(after.to_owned());
                return Err(error.into());
            }
        };
        let last = rows.last().map(|row| row.id.clone());
        for row in rows.into_iter().filter(|row| row.is_live) {
            it.live += 1;
            let is_unlisted = row.is_due_in_list && !it.seen.contains(&hash(&row.id));
            it.unlisted += usize::from(is_unlisted);
            if row.is_unconfirmed || is_unlisted {
                it.to_read.push_back(row.id);
            }
        }
        it.table_position = last;
        if it.table_position.is_none() { self.rows_compared(it).await } else { Ok(()) }
    }

    /// Checks the list and sets the limit of deletions. Called after the last row, when the number of live users is known.
    async fn rows_compared(&self, it: &mut ReconcileRun) -> Result<(), JobError> {
        // Users who were created after the list was read may be missing from it.
        if it.seen.is_empty() && it.unlisted > 0 {
            return Err(JobError::EmptyList { live: i64::try_from(it.live).unwrap_or(i64::MAX), kind: Kind::User });
        }
        let accepted = self.mode == Mode::Check || self.context.store.deletions_accepted().await?;
        it.max_deletions = (!accepted).then_some((it.live / ALLOWED_DELETIONS_DIVISOR).max(ALLOWED_DELETIONS));
        Ok(())
    }

    async fn read_by_id(&self, it: &mut ReconcileRun, id: String) -> Result<(), JobError> {
        match self.context.api.user(&id).await? {
            Found::Unknown { at, has_id } => {
                it.needs_confirmation |= !has_id;
                it.gone.push((id, at));
            }
            Found::Live(listed) => {
                it.has_read_by_id = true;
                if self.mode == Mode::Repair {
                    apply(&self.context.store, Origin::Reconcile, &[*listed]).await?;
                }
            }
        }
        match it.max_deletions {
            Some(bound) if it.gone.len() > bound => Err(JobError::TooMany { bound, kind: Kind::User }),
            _ => Ok(()),
        }
    }

    async fn finish(&self, it: &mut ReconcileRun) -> Result<(), JobError> {
        let store = &self.context.store;
        if it.needs_confirmation && !it.has_read_by_id {
            key_check::check_reads_by_id(&self.context).await?;
        }
        it.report.counts.tombstoned = i64::try_from(it.gone.len()).unwrap_or(i64::MAX);
        if self.mode == Mode::Check {
            let gone = it.gone.drain(..).map(|(id, _)| Drift { id, kind: drift::DriftKind::Gone });
            it.report.drift.extend(gone);
            return Ok(());
        }
        for slice in it.gone.chunks(PAGE) {
            let gone: Vec<Observation> =
                slice.iter().map(|(id, at)| Observation::Gone { object: gone_user(id), confirmed_at: *at }).collect();
            apply(store, Origin::Reconcile, &gone).await?;
        }
        store
            .complete_scan(&SaveScanResult { kind: ScanKind::Reconcile, counts: it.report.counts, is_complete: true })
            .await?;
        Ok(())
    }
}

fn hash(id: &str) -> u128 {
    let digest = Sha256::digest(id.as_bytes());
    digest.iter().take(16).fold(0, |hash, byte| hash << 8 | u128::from(*byte))
}

fn gone_user(id: &str) -> Deletion {
    Deletion { kind: Kind::User, id: id.to_owned(), of: None }
}
