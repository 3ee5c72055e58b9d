//! Reconcile: walk WorkOS's users, compare with the table, repair (promise 6).
//!
//! Users that are missing or outdated are applied as they are met. A live user that WorkOS no longer lists is asked about by
//! id after the whole walk, and becomes a tombstone only when WorkOS does not know it, and only when not too many are gone.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::backfill::{log_completed, tally};
use super::drift::{self, Drift};
use super::job::{Job, JobContext, JobError, REQUEST_INTERVAL};
use super::list_scan::ListScan;
use super::runner::Runner;
use super::{apply, apply_scan_page, key_check};
use crate::domain::event::{Observation, Origin};
use crate::domain::timestamp::Timestamp;
use crate::store::StoreError;
use crate::store::scans::{SaveScanResult, ScanCounts, ScanKind, ScanStart};
use crate::workos::api::{Found, PAGE};

/// How often a process looks whether one is due.
const DUE_CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// Deletions that go without saying: this many, or this share of the live users if that is more.
const FREE_DELETIONS: usize = 5;
const FREE_DELETIONS_SHARE: usize = 20;

/// Rows of the table looked through at once.
const BATCH: i64 = 10_000;

/// Whether it repairs or only looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Changes the table.
    Repair,
    /// Changes nothing.
    Check,
}

/// What a complete one found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Users by what was, or would be, done with them.
    pub counts: ScanCounts,
    /// Every difference; after a repair only what it leaves: contradicted and unusable ones.
    pub drift: Vec<Drift>,
}

/// What a step did.
#[derive(Debug)]
pub enum ReconcileStep {
    /// It goes on.
    Going {
        /// So far.
        counts: ScanCounts,
        /// Live users still to be asked about, as far as known.
        open: usize,
    },
    /// It is complete.
    Done(Report),
}

/// Runs the reconcile.
pub type Reconcile = Runner<ReconcileJob>;

/// The reconcile as a job.
#[derive(Debug)]
pub struct ReconcileJob {
    context: JobContext,
    mode: Mode,
    /// Time from a completed reconcile to the next one. `None`: only when events may be lost.
    interval: Option<Duration>,
    under_way: Option<UnderWay>,
}

#[derive(Debug)]
struct UnderWay {
    walk: ListScan,
    walked: bool,
    /// WorkOS's clock at the beginning: users created later need not be listed.
    began: Option<Timestamp>,
    /// Hashes of the ids listed; a million of them are some 32 MB.
    seen: HashSet<u128>,
    report: Report,
    /// Tombstones that WorkOS lists.
    listed_deleted: Vec<String>,
    /// Live users that were not listed, to be asked about.
    open: VecDeque<String>,
    /// Live users are looked through up to here; `None` when all are.
    looked_through: Option<String>,
    /// Live users among the ones looked through.
    live: usize,
    /// The scan, where the table is repaired.
    scan: Option<ScanStart>,
    /// Live users WorkOS does not know, and when it said so.
    gone: Vec<(String, Timestamp)>,
    /// For one of them WorkOS gave no ID: that counts once a live user was read by ID.
    to_confirm: bool,
    /// A live user was read by ID.
    reads_by_id: bool,
    /// Deletions that go without saying; none when the operator said that all are meant.
    bound: Option<usize>,
}

impl Reconcile {
    /// A reconcile; it is due when `interval` has passed since the last one.
    #[must_use]
    pub fn new(context: JobContext, mode: Mode, interval: Option<Duration>) -> Self {
        // Jittered once, so that environments that were started together drift apart.
        let interval = interval.map(|interval| context.about(interval));
        Self::run(context.clone(), ReconcileJob { context, mode, interval, under_way: None })
    }
}

impl Job for ReconcileJob {
    const NAME: &'static str = "reconcile";

    type Output = ReconcileStep;

    fn needs_lease(&self) -> bool {
        self.mode == Mode::Repair
    }

    async fn rest_if_idle(&mut self) -> Result<Option<Duration>, JobError> {
        let is_idle = self.under_way.is_none() && !self.due().await?;
        Ok(is_idle.then(|| self.context.about(DUE_CHECK_INTERVAL)))
    }

    fn reset(&mut self) {
        self.under_way = None;
    }

    /// Compares one page, or reads one user by ID. An interrupted reconcile starts from the beginning.
    /// [`JobError::TooMany`], [`JobError::NobodyListed`], [`JobError::Endless`] and [`StoreError::Overtaken`] end it; after any
    /// other error this step can be retried.
    async fn step(&mut self) -> Result<ReconcileStep, JobError> {
        let mut under_way = match self.under_way.take() {
            Some(under_way) => under_way,
            None => self.begin().await?,
        };
        match self.advance(&mut under_way).await {
            Ok(false) => {
                let step = ReconcileStep::Going { counts: under_way.report.counts, open: under_way.open.len() };
                self.under_way = Some(under_way);
                Ok(step)
            }
            Ok(true) => Ok(ReconcileStep::Done(under_way.report)),
            Err(error @ (JobError::TooMany { .. } | JobError::NobodyListed { .. } | JobError::Endless)) => Err(error),
            // Another process has begun a reconcile since: this one can never be confirmed.
            Err(error @ JobError::Store(StoreError::Overtaken)) => Err(error),
            Err(error) => {
                self.under_way = Some(under_way);
                Err(error)
            }
        }
    }

    fn is_last(step: &ReconcileStep) -> bool {
        matches!(step, ReconcileStep::Done(_))
    }

    fn rest_after(&self, step: ReconcileStep) -> Duration {
        let ReconcileStep::Done(Report { counts, drift }) = step else { return REQUEST_INTERVAL };
        log_completed(Self::NAME, &counts);
        for left in drift {
            tracing::warn!(drift = %left, "reconcile leaves this difference");
        }
        self.context.about(DUE_CHECK_INTERVAL)
    }
}

impl ReconcileJob {
    async fn due(&self) -> Result<bool, JobError> {
        let store = &self.context.store;
        let wanted = store.catch_up_state().await?.is_some_and(|place| place.needs_reconcile);
        // The operator's word is given for a reconcile: after `rebind` the old environment's users should not linger.
        if wanted || store.deletions_accepted().await? {
            return Ok(true);
        }
        let Some(interval) = self.interval else { return Ok(false) };
        Ok(store.is_scan_due(interval).await?)
    }

    async fn begin(&self) -> Result<UnderWay, JobError> {
        key_check::check(&self.context).await?;
        Ok(UnderWay {
            walk: ListScan::default(),
            walked: false,
            began: None,
            seen: HashSet::new(),
            report: Report::default(),
            listed_deleted: Vec::new(),
            open: VecDeque::new(),
            looked_through: Some(String::new()),
            live: 0,
            scan: None,
            gone: Vec::new(),
            to_confirm: false,
            reads_by_id: false,
            bound: None,
        })
    }

    /// `true` when it is complete.
    async fn advance(&self, it: &mut UnderWay) -> Result<bool, JobError> {
        if !it.walked {
            self.next_page(it).await?;
            return Ok(false);
        }
        if let (Some(after), Some(began)) = (it.looked_through.take(), it.began) {
            self.look_through(it, &after, began).await?;
            return Ok(false);
        }
        if let Some(id) = it.open.front().cloned() {
            self.ask_about(it, id).await?;
            it.open.pop_front();
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

    async fn next_page(&self, it: &mut UnderWay) -> Result<(), JobError> {
        let store = &self.context.store;
        let mut walk = it.walk.clone();
        let page = walk.next(&self.context.api).await?;
        let Some(page) = page else {
            it.walk = walk;
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
        tally(&mut counts, &applied);
        // For reconcile, these are the users that it deletes.
        counts.tombstoned = 0;
        it.report.counts.add(counts);
        let deleted = observations.iter().zip(&applied).filter(|(_, applied)| applied.is_user_deleted);
        it.listed_deleted.extend(deleted.filter_map(|(listed, _)| listed.user_id()).map(str::to_owned));
        it.seen.extend(page.observations.iter().filter_map(Observation::user_id).map(hash));
        it.began.get_or_insert(page.observed_at);
        it.walk = walk;
        if page.end {
            // A walk that lists nobody confirms nothing.
            if let Some(scan) = it.scan.filter(|_| !it.seen.is_empty()) {
                store.confirm_scan(&scan).await?;
            }
            it.walked = true;
        }
        Ok(())
    }

    /// Looks through the next rows of the table for users to ask WorkOS about by ID.
    async fn look_through(&self, it: &mut UnderWay, after: &str, began: Timestamp) -> Result<(), JobError> {
        let store = &self.context.store;
        let rows = match store.rows_after(after, began, it.scan.as_ref(), BATCH).await {
            Ok(rows) => rows,
            Err(error) => {
                it.looked_through = Some(after.to_owned());
                return Err(error.into());
            }
        };
        let last = rows.last().map(|row| row.id.clone());
        for row in rows.into_iter().filter(|row| row.is_live) {
            it.live += 1;
            if row.is_unconfirmed || row.is_due_in_list && !it.seen.contains(&hash(&row.id)) {
                it.open.push_back(row.id);
            }
        }
        it.looked_through = last;
        if it.looked_through.is_none() { self.looked_through(it).await } else { Ok(()) }
    }

    /// Every row is looked through, and with them the live users are counted.
    async fn looked_through(&self, it: &mut UnderWay) -> Result<(), JobError> {
        if it.seen.is_empty() && it.live > 0 {
            return Err(JobError::NobodyListed { live: i64::try_from(it.live).unwrap_or(i64::MAX) });
        }
        let accepted = self.mode == Mode::Check || self.context.store.deletions_accepted().await?;
        it.bound = (!accepted).then_some((it.live / FREE_DELETIONS_SHARE).max(FREE_DELETIONS));
        Ok(())
    }

    async fn ask_about(&self, it: &mut UnderWay, id: String) -> Result<(), JobError> {
        match self.context.api.user(&id).await? {
            Found::Unknown { at, names_it } => {
                it.to_confirm |= !names_it;
                it.gone.push((id, at));
            }
            Found::Live(listed) => {
                it.reads_by_id = true;
                if self.mode == Mode::Repair {
                    apply(&self.context.store, Origin::Reconcile, &[*listed]).await?;
                }
            }
        }
        match it.bound {
            Some(bound) if it.gone.len() > bound => Err(JobError::TooMany { bound }),
            _ => Ok(()),
        }
    }

    async fn finish(&self, it: &mut UnderWay) -> Result<(), JobError> {
        let store = &self.context.store;
        if it.to_confirm && !it.reads_by_id {
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
                slice.iter().map(|(id, at)| Observation::Gone { user_id: id.clone(), confirmed_at: *at }).collect();
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
