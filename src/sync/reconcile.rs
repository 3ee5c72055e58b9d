//! Reconcile: walk WorkOS's users, compare with the table, repair (promise 6).
//!
//! Users that are missing or outdated are applied as they are met. A live user that WorkOS no longer lists is asked about by
//! id after the whole walk, and becomes a tombstone only when WorkOS does not know it, and only when not too many are gone.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::Mutex;

use super::backfill::tally;
use super::drift::{self, Drift};
use super::job::{Job, JobContext, JobError, REQUEST_INTERVAL};
use super::list_scan::ListScan;
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
    /// Another process does it.
    Standby,
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

/// The driver.
#[derive(Debug)]
pub struct Reconcile {
    context: JobContext,
    mode: Mode,
    /// How long after a complete one the next is due; `None`: only when events may be lost.
    interval: Option<Duration>,
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

impl Job for Reconcile {
    const NAME: &'static str = "reconcile";

    async fn tick(&self) -> Duration {
        let outcome = self.when_due().await;
        let mut state = self.state.lock().await;
        self.context.rest(Self::NAME, &mut state.failures, outcome).await
    }

    async fn keep(&self) {
        self.context.keep(Self::NAME).await;
    }
}

impl Reconcile {
    /// Reconciles whenever `interval` has passed since the last one.
    #[must_use]
    pub fn new(context: JobContext, mode: Mode, interval: Option<Duration>) -> Self {
        // Jittered once, so that environments that were started together drift apart.
        let interval = interval.map(|interval| context.about(interval));
        Self { context, mode, interval, state: Mutex::default() }
    }

    async fn when_due(&self) -> Result<Option<Duration>, JobError> {
        if self.state.lock().await.under_way.is_none() && !self.due().await? {
            return Ok(Some(self.context.about(DUE_CHECK_INTERVAL)));
        }
        match self.step().await? {
            ReconcileStep::Standby => Ok(None),
            ReconcileStep::Going { .. } => Ok(Some(REQUEST_INTERVAL)),
            ReconcileStep::Done(Report { counts, drift }) => {
                tracing::info!(
                    new = counts.new,
                    updated = counts.updated,
                    unchanged = counts.unchanged,
                    tombstoned = counts.tombstoned,
                    quarantined = counts.quarantined,
                    "reconcile completed"
                );
                for left in drift {
                    tracing::warn!(drift = %left, "reconcile leaves this as it is");
                }
                Ok(Some(self.context.about(DUE_CHECK_INTERVAL)))
            }
        }
    }

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

    /// One step: a page, or one user asked about. One that was interrupted begins again.
    ///
    /// # Errors
    /// [`JobError`]: [`JobError::TooMany`], [`JobError::NobodyListed`], [`JobError::Endless`] and [`StoreError::Overtaken`] end
    /// it; after any other this step can be retried.
    pub async fn step(&self) -> Result<ReconcileStep, JobError> {
        let mut state = self.state.lock().await;
        if self.mode == Mode::Repair && !self.context.leads(Self::NAME).await? {
            state.under_way = None;
            return Ok(ReconcileStep::Standby);
        }
        let mut under_way = match state.under_way.take() {
            Some(under_way) => under_way,
            None => self.begin().await?,
        };
        match self.advance(&mut under_way).await {
            Ok(false) => {
                let step = ReconcileStep::Going { counts: under_way.report.counts, open: under_way.open.len() };
                state.under_way = Some(under_way);
                Ok(step)
            }
            Ok(true) => {
                self.context.yield_job(Self::NAME).await;
                Ok(ReconcileStep::Done(under_way.report))
            }
            Err(trouble @ (JobError::TooMany { .. } | JobError::NobodyListed { .. } | JobError::Endless)) => {
                Err(trouble)
            }
            // Another process has begun a reconcile since: this one can never be confirmed.
            Err(trouble @ JobError::Store(StoreError::Overtaken)) => Err(trouble),
            Err(trouble) => {
                state.under_way = Some(under_way);
                Err(trouble)
            }
        }
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
        if self.mode == Mode::Repair {
            let scan = match it.scan {
                Some(scan) => scan,
                None => *it.scan.insert(store.begin_scan(ScanKind::Reconcile, page.observed_at).await?),
            };
            let applied = apply_scan_page(store, &scan, &page.observations).await?;
            let (mut counts, listed) = (ScanCounts::default(), page.observations.iter().zip(&applied));
            tally(&mut counts, &applied);
            // For reconcile, those are the ones it makes.
            counts.tombstoned = 0;
            it.report.counts.add(counts);
            it.listed_deleted.extend(listed.filter(|(_, applied)| applied.deleted).filter_map(|(it, _)| id_of(it)));
        } else {
            let mut counts = ScanCounts::default();
            it.report.drift.extend(drift::compare(store, &page.observations, &mut counts).await?);
            counts.tombstoned = 0;
            it.report.counts.add(counts);
            let ids: Vec<String> = page.observations.iter().filter_map(id_of).collect();
            let stored = store.users(&ids).await?;
            let dead = |id: &String| matches!(stored.get(id), Some(crate::domain::decide::Stored::Tombstone { .. }));
            it.listed_deleted.extend(ids.into_iter().filter(dead));
        }
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

fn id_of(observation: &Observation) -> Option<String> {
    observation.user_id().map(str::to_owned)
}

fn hash(id: &str) -> u128 {
    let digest = Sha256::digest(id.as_bytes());
    digest.iter().take(16).fold(0, |hash, byte| hash << 8 | u128::from(*byte))
}
