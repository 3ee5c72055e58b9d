//! Backfill: reads every user from WorkOS into the table. [`organizations`] does the same for the other kinds.
//!
//! One transaction applies a page and stores the position after it, so an interrupted backfill continues at the next page. It can
//! run together with webhooks and catch-up, because the higher version wins. A second backfill changes nothing.

pub mod organizations;
pub(super) mod walk;

use std::time::Duration;

use super::job::{Job, JobContext, JobError, REQUEST_INTERVAL};
use super::list_scan::{List, ListPosition, ListScan};
use super::runner::Runner;
use super::{Applied, FollowUp, apply_with, drift, key_check};
use crate::domain::decide::Effect;
use crate::domain::event::{Observation, Origin};
use crate::store::DbConnection;
use crate::store::scans::{AdvanceScan, SaveScanResult, ScanCounts, ScanKind, ScanState};
use crate::store::{StoreError, Work};

/// Interval of the check whether the backfill is still completed (`rebind` resets it).
const COMPLETED_CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// Runs the backfill.
pub type Backfill = Runner<BackfillJob>;

/// The backfill as a job.
#[derive(Debug)]
pub struct BackfillJob {
    context: JobContext,
    users: ListBackfill,
}

/// The backfill of a list.
#[derive(Debug)]
struct ListBackfill {
    list: List,
    kind: ScanKind,
    dry_run: bool,
    run: Option<BackfillRun>,
    /// The IDs of the listed objects. Only a dry run collects them.
    listed: Vec<String>,
}

#[derive(Debug)]
struct BackfillRun {
    scan: ListScan,
    /// The position in the database. `None` before the first page.
    position: Option<ListPosition>,
    counts: ScanCounts,
    /// Whether the scan is recorded in the database.
    is_recorded: bool,
}

/// The result of a step.
#[derive(Clone, Debug)]
pub enum BackfillStep {
    /// A page was applied, or must be read again.
    Page {
        /// The counts so far.
        counts: ScanCounts,
        /// The last object of the page.
        position: Option<String>,
    },
    /// The last page was applied.
    Done(ScanCounts),
}

impl Backfill {
    /// Creates a backfill. With `dry_run` it writes nothing and only counts the changes.
    #[must_use]
    pub fn new(context: JobContext, dry_run: bool) -> Self {
        let users = ListBackfill::new(List::Users, ScanKind::Backfill, dry_run);
        Self::of_job(context.clone(), BackfillJob { context, users })
    }
}

impl Job for BackfillJob {
    const NAME: &'static str = "backfill";

    type Output = BackfillStep;

    fn needs_lease(&self) -> bool {
        !self.users.dry_run
    }

    async fn rest_if_idle(&mut self) -> Result<Option<Duration>, JobError> {
        let is_completed = self.context.store.scan_state(ScanKind::Backfill).await?.completed_at.is_some();
        Ok(is_completed.then_some(COMPLETED_CHECK_INTERVAL))
    }

    fn reset(&mut self) {
        self.users.run = None;
    }

    /// Applies one page. Continues an interrupted backfill, or begins one.
    async fn step(&mut self) -> Result<BackfillStep, JobError> {
        self.users.step(&self.context).await
    }

    fn is_last(step: &BackfillStep) -> bool {
        matches!(step, BackfillStep::Done(_))
    }

    fn rest_after(&self, step: BackfillStep) -> Duration {
        let BackfillStep::Done(counts) = step else { return REQUEST_INTERVAL };
        log_completed(Self::NAME, &counts);
        COMPLETED_CHECK_INTERVAL
    }
}

/// Logs the counts of a completed backfill or reconcile.
pub(super) fn log_completed(job: &'static str, counts: &ScanCounts) {
    tracing::info!(
        new = counts.new,
        updated = counts.updated,
        unchanged = counts.unchanged,
        tombstoned = counts.tombstoned,
        quarantined = counts.quarantined,
        "{job} completed"
    );
}

impl ListBackfill {
    fn new(list: List, kind: ScanKind, dry_run: bool) -> Self {
        Self { list, kind, dry_run, run: None, listed: Vec::new() }
    }

    /// Applies one page.
    async fn step(&mut self, context: &JobContext) -> Result<BackfillStep, JobError> {
        let mut run = match self.run.take() {
            Some(run) => run,
            None => self.begin(context).await?,
        };
        match self.advance(context, &mut run).await {
            Ok(false) => {
                let position = run.position.as_ref().map(|(id, _)| id.clone());
                let step = BackfillStep::Page { counts: run.counts, position };
                self.run = Some(run);
                Ok(step)
            }
            Ok(true) => Ok(BackfillStep::Done(run.counts)),
            // Another process made progress, which must be read from the database.
            Err(error @ (JobError::Store(StoreError::Overtaken) | JobError::Endless)) => Err(error),
            Err(error) => {
                self.run = Some(run);
                Err(error)
            }
        }
    }

    async fn begin(&mut self, context: &JobContext) -> Result<BackfillRun, JobError> {
        key_check::check(context).await?;
        self.listed.clear();
        let ScanState { position, started_at, counts, .. } = context.store.scan_state(self.kind).await?;
        if started_at.is_some() && !self.dry_run {
            tracing::info!(
                scan = self.kind.as_str(),
                position = position.as_ref().map(|(id, _)| id.as_str()),
                "continuing an interrupted backfill"
            );
            let scan = ListScan::from(self.list.clone(), position.clone());
            return Ok(BackfillRun { scan, position, counts, is_recorded: true });
        }
        let scan = ListScan::of(self.list.clone());
        Ok(BackfillRun { scan, position: None, counts: ScanCounts::default(), is_recorded: false })
    }

    /// Applies the next page. Returns whether it was the last one.
    async fn advance(&mut self, context: &JobContext, run: &mut BackfillRun) -> Result<bool, JobError> {
        let store = &context.store;
        // The scan moves only after the commit, so that a page that could not be applied is requested again.
        let mut scan = run.scan.clone();
        let page = scan.next(&context.api).await?;
        let Some(page) = page else {
            run.scan = scan;
            return Ok(false);
        };
        if self.dry_run {
            let applied = drift::preview(store, &page.observations).await?;
            add_counts(&mut run.counts, &applied);
            let ids = page.observations.iter().filter_map(Observation::object).map(|(_, id)| id.to_owned());
            self.listed.extend(ids.filter(|_| self.list == List::Organizations));
        } else {
            if !run.is_recorded {
                store.begin_scan(self.kind, page.observed_at).await?;
                run.is_recorded = true;
            }
            let store_position = StorePosition {
                kind: self.kind,
                before: run.counts,
                from: run.position.as_ref(),
                to: page.position.as_ref(),
                is_complete: page.end,
            };
            let applied = apply_with(store, Origin::Backfill, &page.observations, &store_position).await?;
            add_counts(&mut run.counts, &applied);
        }
        run.scan = scan;
        run.position = page.position;
        Ok(page.end)
    }
}

/// Adds the results of a page to the counts.
pub(super) fn add_counts(counts: &mut ScanCounts, applied: &[Applied]) {
    for applied in applied {
        match applied.effect {
            Effect::Quarantined(_) => counts.quarantined += 1,
            Effect::Created => counts.new += 1,
            Effect::Updated { .. } => counts.updated += 1,
            Effect::AlreadyDeleted { .. } => counts.tombstoned += 1,
            _ if applied.is_user_deleted => counts.tombstoned += 1,
            _ => counts.unchanged += 1,
        }
    }
}

/// Stores the position after a page, in the transaction that applies the page.
struct StorePosition<'a> {
    kind: ScanKind,
    before: ScanCounts,
    from: Option<&'a ListPosition>,
    to: Option<&'a ListPosition>,
    /// The scan ends with this page.
    is_complete: bool,
}

impl FollowUp for StorePosition<'_> {
    async fn after(&self, connection: &mut DbConnection<'_>, applied: &[Applied]) -> Result<(), StoreError> {
        let mut counts = self.before;
        add_counts(&mut counts, applied);
        let (kind, from) = (self.kind, self.from.map(|(id, _)| id.as_str()));
        AdvanceScan { kind, from, position: self.to }.run(connection).await?;
        SaveScanResult { kind, counts, is_complete: self.is_complete }.run(connection).await
    }
}
