//! Backfill: every user WorkOS has, into the table.
//!
//! Each page is applied and the position behind it stored in one transaction, so that an interrupted backfill goes on where
//! it was. It is safe beside webhooks and catch-up, because versions decide; and running it again changes nothing.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use tokio::sync::Mutex;

use super::job::{Job, JobContext, JobError, REQUEST_INTERVAL};
use super::list_scan::{ListPosition, ListScan, ScannedPage};
use super::{Applied, FollowUp, apply_with, drift, key_check};
use crate::domain::change::Difference;
use crate::domain::event::{Origin, Outcome};
use crate::store::scans::{AdvanceScan, SaveScanResult, ScanCounts, ScanKind, ScanState};
use crate::store::{StoreError, Work};

/// How often a process looks whether a completed backfill is still the truth (`rebind` undoes it).
const COMPLETED: Duration = Duration::from_secs(60);

/// The driver.
#[derive(Debug)]
pub struct Backfill {
    context: JobContext,
    dry_run: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    under_way: Option<UnderWay>,
    failures: u32,
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
    /// Another process does it.
    Standby,
    /// A page was applied, or is to be asked for again.
    Page {
        /// So far.
        counts: ScanCounts,
        /// The last user of the page.
        position: Option<String>,
    },
    /// The last page was.
    Done(ScanCounts),
}

impl Job for Backfill {
    const NAME: &'static str = "backfill";

    async fn tick(&self) -> Duration {
        let outcome = self.unless_completed().await;
        let mut state = self.state.lock().await;
        self.context.rest(Self::NAME, &mut state.failures, outcome).await
    }

    async fn keep(&self) {
        self.context.keep(Self::NAME).await;
    }
}

impl Backfill {
    /// With `dry_run` nothing is written: it only counts what it would do.
    #[must_use]
    pub fn new(context: JobContext, dry_run: bool) -> Self {
        Self { context, dry_run, state: Mutex::default() }
    }

    async fn unless_completed(&self) -> Result<Option<Duration>, JobError> {
        if self.context.store.scan_state(ScanKind::Backfill).await?.completed_at.is_some() {
            return Ok(Some(COMPLETED));
        }
        match self.step().await? {
            BackfillStep::Standby => Ok(None),
            BackfillStep::Page { .. } => Ok(Some(REQUEST_INTERVAL)),
            BackfillStep::Done(counts) => {
                tracing::info!(
                    new = counts.new,
                    updated = counts.updated,
                    unchanged = counts.unchanged,
                    tombstoned = counts.tombstoned,
                    quarantined = counts.quarantined,
                    "backfill completed"
                );
                Ok(Some(COMPLETED))
            }
        }
    }

    /// One step: a page. A backfill that was interrupted goes on; else one begins.
    ///
    /// # Errors
    /// [`JobError`]: this step can be tried again.
    pub async fn step(&self) -> Result<BackfillStep, JobError> {
        let mut state = self.state.lock().await;
        if !self.dry_run && !self.context.leads(Self::NAME).await? {
            state.under_way = None;
            return Ok(BackfillStep::Standby);
        }
        let mut under_way = match state.under_way.take() {
            Some(under_way) => under_way,
            None => self.begin().await?,
        };
        match self.advance(&mut under_way).await {
            Ok(false) => {
                let step = BackfillStep::Page {
                    counts: under_way.counts,
                    position: under_way.position.as_ref().map(|(id, _)| id.clone()),
                };
                state.under_way = Some(under_way);
                Ok(step)
            }
            Ok(true) => {
                self.context.yield_job(Self::NAME).await;
                Ok(BackfillStep::Done(under_way.counts))
            }
            // What another process did meanwhile has to be read anew.
            Err(trouble @ (JobError::Store(StoreError::Overtaken) | JobError::Endless)) => Err(trouble),
            Err(trouble) => {
                state.under_way = Some(under_way);
                Err(trouble)
            }
        }
    }

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
            drift::compare(store, &page.observations, &mut under_way.counts).await?;
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

/// Counts what became of a page.
pub(super) fn tally(counts: &mut ScanCounts, applied: &[Applied]) {
    for applied in applied {
        match (applied.outcome, applied.difference) {
            (Outcome::Quarantined, _) => counts.quarantined += 1,
            (_, Some(Difference::Created)) => counts.new += 1,
            (_, Some(Difference::Updated)) => counts.updated += 1,
            _ if applied.deleted => counts.tombstoned += 1,
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
