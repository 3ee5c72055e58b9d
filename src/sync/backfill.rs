//! Backfill: every user WorkOS has, into the table.
//!
//! Each page is applied and the position behind it stored in one transaction, so that an interrupted backfill goes on where
//! it was. It is safe beside webhooks and catch-up, because versions decide; and running it again changes nothing.

use std::time::Duration;

use sqlx::postgres::PgConnection;

use super::job::{Job, JobContext, JobError, REQUEST_INTERVAL};
use super::list_scan::{ListPosition, ListScan, ScannedPage};
use super::runner::Runner;
use super::{Applied, FollowUp, apply_with, drift, key_check};
use crate::domain::decide::Effect;
use crate::domain::event::Origin;
use crate::store::scans::{AdvanceScan, SaveScanResult, ScanCounts, ScanKind, ScanState};
use crate::store::{StoreError, Work};

/// How often a process looks whether a completed backfill is still the truth (`rebind` undoes it).
const COMPLETED: Duration = Duration::from_secs(60);

/// Runs the backfill.
pub type Backfill = Runner<BackfillJob>;

/// The backfill as a job.
#[derive(Debug)]
pub struct BackfillJob {
    context: JobContext,
    dry_run: bool,
    under_way: Option<UnderWay>,
}

#[derive(Debug)]
struct UnderWay {
    walk: ListScan,
    /// The position in the database; `None` at the beginning.
    position: Option<ListPosition>,
    counts: ScanCounts,
    /// The walk is in the database.
    recorded: bool,
}

/// What a step did.
#[derive(Clone, Debug)]
pub enum BackfillStep {
    /// A page was applied, or has to be read again.
    Page {
        /// So far.
        counts: ScanCounts,
        /// The last user of the page.
        position: Option<String>,
    },
    /// The last page was.
    Done(ScanCounts),
}

impl Backfill {
    /// A backfill; with `dry_run` it writes nothing and only counts what it would do.
    #[must_use]
    pub fn new(context: JobContext, dry_run: bool) -> Self {
        Self::run(context.clone(), BackfillJob { context, dry_run, under_way: None })
    }
}

impl Job for BackfillJob {
    const NAME: &'static str = "backfill";

    type Output = BackfillStep;

    fn needs_lease(&self) -> bool {
        !self.dry_run
    }

    async fn rest_if_idle(&mut self) -> Result<Option<Duration>, JobError> {
        let is_completed = self.context.store.scan_state(ScanKind::Backfill).await?.completed_at.is_some();
        Ok(is_completed.then_some(COMPLETED))
    }

    fn reset(&mut self) {
        self.under_way = None;
    }

    /// Applies one page. Continues an interrupted backfill, or begins one.
    async fn step(&mut self) -> Result<BackfillStep, JobError> {
        let mut under_way = match self.under_way.take() {
            Some(under_way) => under_way,
            None => self.begin().await?,
        };
        match self.advance(&mut under_way).await {
            Ok(false) => {
                let position = under_way.position.as_ref().map(|(id, _)| id.clone());
                let step = BackfillStep::Page { counts: under_way.counts, position };
                self.under_way = Some(under_way);
                Ok(step)
            }
            Ok(true) => Ok(BackfillStep::Done(under_way.counts)),
            // What another process did meanwhile has to be read from the database.
            Err(error @ (JobError::Store(StoreError::Overtaken) | JobError::Endless)) => Err(error),
            Err(error) => {
                self.under_way = Some(under_way);
                Err(error)
            }
        }
    }

    fn is_last(step: &BackfillStep) -> bool {
        matches!(step, BackfillStep::Done(_))
    }

    fn rest_after(&self, step: BackfillStep) -> Duration {
        let BackfillStep::Done(counts) = step else { return REQUEST_INTERVAL };
        log_completed(Self::NAME, &counts);
        COMPLETED
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

impl BackfillJob {
    async fn begin(&self) -> Result<UnderWay, JobError> {
        key_check::check(&self.context).await?;
        let ScanState { position, started_at, counts, .. } = self.context.store.scan_state(ScanKind::Backfill).await?;
        if started_at.is_some() && !self.dry_run {
            tracing::info!(position = position.as_ref().map(|(id, _)| id.as_str()), "an interrupted backfill goes on");
            return Ok(UnderWay { walk: ListScan::from(position.clone()), position, counts, recorded: true });
        }
        Ok(UnderWay { walk: ListScan::default(), position: None, counts: ScanCounts::default(), recorded: false })
    }

    /// Takes the next page; `true` when it was the last.
    async fn advance(&self, under_way: &mut UnderWay) -> Result<bool, JobError> {
        let store = &self.context.store;
        // The walk moves with the database: a page that could not be applied is asked for again.
        let mut walk = under_way.walk.clone();
        let page = walk.next(&self.context.api).await?;
        let Some(page) = page else {
            under_way.walk = walk;
            return Ok(false);
        };
        if self.dry_run {
            let applied = drift::preview(store, &page.observations).await?;
            tally(&mut under_way.counts, &applied);
        } else {
            if !under_way.recorded {
                store.begin_scan(ScanKind::Backfill, page.observed_at).await?;
                under_way.recorded = true;
            }
            let from = under_way.position.as_ref().map(|(id, _)| id.as_str());
            let page_done = PageDone { before: under_way.counts, from, page: &page };
            let applied = apply_with(store, Origin::Backfill, &page.observations, &page_done).await?;
            tally(&mut under_way.counts, &applied);
        }
        under_way.walk = walk;
        under_way.position = page.position;
        Ok(page.end)
    }
}

/// ScanCounts what became of a page.
pub(super) fn tally(counts: &mut ScanCounts, applied: &[Applied]) {
    for applied in applied {
        match applied.effect {
            Effect::Quarantined(_) => counts.quarantined += 1,
            Effect::Created => counts.new += 1,
            Effect::Updated { .. } => counts.updated += 1,
            _ if applied.is_user_deleted => counts.tombstoned += 1,
            _ => counts.unchanged += 1,
        }
    }
}

/// Moves the backfill behind a page, in the page's own transaction.
struct PageDone<'a> {
    before: ScanCounts,
    from: Option<&'a str>,
    page: &'a ScannedPage,
}

impl FollowUp for PageDone<'_> {
    async fn after(&self, connection: &mut PgConnection, applied: &[Applied]) -> Result<(), StoreError> {
        let mut counts = self.before;
        tally(&mut counts, applied);
        let position = self.page.position.as_ref();
        AdvanceScan { kind: ScanKind::Backfill, from: self.from, position }.run(connection).await?;
        SaveScanResult { kind: ScanKind::Backfill, counts, is_complete: self.page.end }.run(connection).await
    }
}
