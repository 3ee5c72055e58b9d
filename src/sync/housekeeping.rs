//! Periodic maintenance: erasure that deletions left for later, retention, the audit of both feeds, and a retry of the quarantine
//! by a new release. The database's clock decides what is old.

use std::time::Duration;

use tokio::time::Instant;

use super::job::{Job, JobContext, JobError};
use super::runner::Runner;
use super::{erasure, inbox};
use crate::store::StoreError;
use crate::store::events::MissedEvents;

/// Interval between two rounds, and between two batches of a round.
const ROUND_INTERVAL: Duration = Duration::from_secs(60);
const BATCH_INTERVAL: Duration = Duration::from_millis(100);

/// Number of rows deleted in one transaction.
const BATCH: i64 = 1_000;

/// A row outlives its payload until WorkOS no longer lists the event, so that a re-read event is not new again.
const ROW_RETENTION: Duration = Duration::from_secs(35 * 86_400);

/// An event counts as missed by webhooks after this time.
const LATE_AFTER: Duration = Duration::from_secs(15 * 60);

/// Interval between two audits.
const AUDIT_INTERVAL: Duration = Duration::from_secs(15 * 60);

/// How far the audit looks back: a feed that has worked for so long is well.
const AUDIT_WINDOW: Duration = Duration::from_secs(86_400);

/// The release, which retries the quarantine once.
const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// Runs the housekeeping.
pub type Housekeeping = Runner<HousekeepingJob>;

/// The housekeeping as a job.
#[derive(Debug)]
pub struct HousekeepingJob {
    context: JobContext,
    retention: Duration,
    /// The types that both feeds deliver; `None` unless both feeds are enabled.
    types: Option<Vec<String>>,
    audited_at: Option<Instant>,
    /// MissedEvents events as last logged: by webhooks, by catch-up.
    missed: [i64; 2],
}

/// The results of one round.
#[derive(Default)]
struct Round {
    /// A task reached its limit, and rows may be left.
    more: bool,
    failure: Option<JobError>,
}

impl Round {
    fn note(&mut self, step: &'static str, outcome: Result<bool, JobError>) {
        match outcome {
            Ok(more) => self.more |= more,
            Err(trouble) => {
                tracing::warn!(step, "a task of housekeeping failed: {trouble}");
                self.failure.get_or_insert(trouble);
            }
        }
    }
}

/// Whether a task that deleted so many rows may have left some.
fn more(dropped: Result<u64, StoreError>) -> Result<bool, JobError> {
    Ok(dropped? > 0)
}

impl Housekeeping {
    /// Keeps events for `retention`. Compares the two feeds for `types` if both are enabled.
    #[must_use]
    pub fn new(context: JobContext, retention: Duration, types: Option<Vec<String>>) -> Self {
        let job = HousekeepingJob { context: context.clone(), retention, types, audited_at: None, missed: [0; 2] };
        Self::run(context, job)
    }
}

impl Job for HousekeepingJob {
    const NAME: &'static str = "housekeeping";

    type Output = Duration;

    /// Runs every task that is due, each in a bounded transaction of its own: the failure of one prevents no other. The first
    /// failure is returned.
    async fn step(&mut self) -> Result<Duration, JobError> {
        let store = self.context.store.clone();
        let store = &store;
        let rows_stay = self.retention.max(ROW_RETENTION);
        let mut round = Round::default();
        round.note("erase", erasure::erase_pending(store).await.map_err(JobError::from));
        round.note("expire verdicts", more(store.expire_verdicts(BATCH).await));
        round.note("expire events", more(store.expire_rows(rows_stay, BATCH).await));
        // Otherwise a payload goes with its row.
        if self.retention < ROW_RETENTION {
            round.note("expire payloads", more(store.expire_payloads(self.retention, BATCH).await));
        }
        round.note("expire changes", store.expire_changes(rows_stay, BATCH).await.map_err(JobError::from));
        round.note("audit", self.audit().await.map(|()| false));
        round.note("retry quarantined events", self.retry_after_upgrade().await.map(|()| false));
        let rest = if round.more { BATCH_INTERVAL } else { self.context.about(ROUND_INTERVAL) };
        round.failure.map_or(Ok(rest), Err)
    }

    fn rest_after(&self, rest: Duration) -> Duration {
        rest
    }
}

impl HousekeepingJob {
    /// Another release may be able to apply what this database has in quarantine.
    async fn retry_after_upgrade(&self) -> Result<(), JobError> {
        let store = &self.context.store;
        if store.quarantine_retried_by().await?.as_deref() == Some(RELEASE) {
            return Ok(());
        }
        let retried = inbox::retry(store, self.context.session_sign_ins, None).await?;
        if retried.tried() > 0 {
            tracing::info!(
                tried = retried.tried(),
                left = retried.left.len(),
                "this release tried the quarantine again"
            );
        }
        store.set_quarantine_retried_by(RELEASE).await?;
        Ok(())
    }

    async fn audit(&mut self) -> Result<(), JobError> {
        let Some(types) = &self.types else { return Ok(()) };
        let store = &self.context.store;
        if self.audited_at.is_some_and(|at| at.elapsed() < AUDIT_INTERVAL) {
            return Ok(());
        }
        let webhooks = store.missed_by_webhooks(AUDIT_WINDOW, LATE_AFTER).await?;
        report_missed(
            &self.context,
            "webhook",
            webhooks,
            &mut self.missed[0],
            "webhooks are failing: catch-up brought events that no webhook did; look at the endpoint in WorkOS's dashboard",
        );
        let catch_up = store.missed_by_catch_up(types, AUDIT_WINDOW).await?;
        report_missed(
            &self.context,
            "catch_up",
            catch_up,
            &mut self.missed[1],
            "webhooks brought events that catch-up has read past without seeing them",
        );
        self.audited_at = Some(Instant::now());
        Ok(())
    }
}

fn report_missed(context: &JobContext, feed: &'static str, missed: MissedEvents, told: &mut i64, what: &str) {
    context.metrics.missed(feed, missed.events);
    if missed.events > *told {
        tracing::warn!(events = missed.events, since = ?missed.since.map(|at| at.to_string()), "{what}");
    } else if missed.events == 0 && *told > 0 {
        tracing::info!(feed, "both feeds agree again");
    }
    *told = missed.events;
}
