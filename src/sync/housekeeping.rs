//! Periodic maintenance: pending erasures, secrets that an earlier release stored, retention, the comparison of both feeds, and a
//! retry of quarantined events by a new release. The database's clock decides what is old.

use std::time::Duration;

use super::job::{Job, JobContext, JobError};
use super::runner::Runner;
use super::{erasure, inbox, redaction};
use crate::store::StoreError;
use crate::store::events::{MissedEvents, WebhookAudit};

/// Interval between two rounds, and between two batches of a round.
const ROUND_INTERVAL: Duration = Duration::from_secs(60);
const BATCH_INTERVAL: Duration = Duration::from_millis(100);

/// Number of rows deleted in one transaction.
const BATCH: i64 = 1_000;

/// Minimum retention of rows. A row stays until WorkOS no longer lists the event, so that an event that is read again is
/// recognized as a duplicate.
const ROW_RETENTION: Duration = Duration::from_secs(35 * 86_400);

/// An event counts as missed by webhooks after this time. WorkOS delivers within seconds.
pub(crate) const LATE_AFTER: Duration = Duration::from_secs(3 * 60);

/// The audit compares the events of this period.
pub(crate) const AUDIT_WINDOW: Duration = Duration::from_secs(86_400);

/// Each release retries the quarantine once.
const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// Runs the housekeeping.
pub type Housekeeping = Runner<HousekeepingJob>;

/// The housekeeping as a job.
#[derive(Debug)]
pub struct HousekeepingJob {
    context: JobContext,
    retention: Duration,
    /// The types that both feeds deliver. `None` unless both feeds are enabled.
    types: Option<Vec<String>>,
    /// The numbers of missed events that were last logged: by webhooks, by catch-up.
    missed: [i64; 2],
}

/// The results of one round.
#[derive(Default)]
struct Round {
    /// Whether a task reached its limit, so that rows may be left.
    more: bool,
    failure: Option<JobError>,
}

impl Round {
    fn record(&mut self, task: &'static str, outcome: Result<bool, JobError>) {
        match outcome {
            Ok(more) => self.more |= more,
            Err(error) => {
                if error.is_reported_elsewhere() {
                    tracing::debug!(task, "a housekeeping task failed and is retried later: {error}");
                } else {
                    tracing::warn!(task, "a housekeeping task failed and is retried later: {error}");
                }
                self.failure.get_or_insert(error);
            }
        }
    }
}

/// Returns whether more rows may be left after a task deleted this many.
fn more(deleted: Result<u64, StoreError>) -> Result<bool, JobError> {
    Ok(deleted? > 0)
}

impl Housekeeping {
    /// Keeps events for `retention`. Compares the two feeds for `types` if both are enabled.
    #[must_use]
    pub fn new(context: JobContext, retention: Duration, types: Option<Vec<String>>) -> Self {
        let job = HousekeepingJob { context: context.clone(), retention, types, missed: [0; 2] };
        Self::of_job(context, job)
    }
}

impl Job for HousekeepingJob {
    const NAME: &'static str = "housekeeping";

    type Output = Duration;

    /// Runs every task that is due, each in its own bounded transaction. If one fails, the others still run. Returns the first
    /// failure.
    async fn step(&mut self) -> Result<Duration, JobError> {
        let store = self.context.store.clone();
        let store = &store;
        let rows_stay = self.retention.max(ROW_RETENTION);
        let mut round = Round::default();
        round.record("erase", erasure::erase_pending(store).await.map_err(JobError::from));
        round.record("redact payloads", redaction::redact_stored(store).await.map_err(JobError::from));
        round.record("expire verdicts", more(store.expire_verdicts(BATCH).await));
        round.record("expire events", more(store.expire_rows(rows_stay, BATCH).await));
        round.record("expire dismissed events", more(store.expire_dismissed(self.retention, BATCH).await));
        // With a longer retention, a payload is deleted together with its row.
        if self.retention < ROW_RETENTION {
            round.record("expire payloads", more(store.expire_payloads(self.retention, BATCH).await));
        }
        round.record("expire sessions", store.expire_revoked_sessions(BATCH).await.map_err(JobError::from));
        round.record("expire changes", store.expire_changes(rows_stay, BATCH).await.map_err(JobError::from));
        if round.failure.is_none() && !round.more {
            self.record_completion("retention");
        }
        round.record("audit", self.audit().await.map(|()| false));
        round.record("retry quarantined events", self.retry_after_upgrade().await.map(|()| false));
        let rest = if round.more { BATCH_INTERVAL } else { self.context.jittered(ROUND_INTERVAL) };
        round.failure.map_or(Ok(rest), Err)
    }

    fn rest_after(&self, rest: Duration) -> Duration {
        rest
    }
}

impl HousekeepingJob {
    /// Retries quarantined events once per release, because a new release may be able to apply them.
    async fn retry_after_upgrade(&self) -> Result<(), JobError> {
        let store = &self.context.store;
        if store.quarantine_retried_by().await?.as_deref() == Some(RELEASE) {
            return Ok(());
        }
        let retried = inbox::retry(store, self.context.kinds, None).await?;
        if retried.total() > 0 {
            tracing::info!(
                retried = retried.total(),
                quarantined = retried.quarantined.len(),
                "this release retried the quarantined events"
            );
        }
        store.set_quarantine_retried_by(RELEASE).await?;
        Ok(())
    }

    async fn audit(&mut self) -> Result<(), JobError> {
        let Some(types) = &self.types else { return Ok(()) };
        let store = &self.context.store;
        let expected: Vec<String> = self.context.kinds.event_types().into_iter().map(str::to_owned).collect();
        let audit = WebhookAudit { expected: &expected, recent: AUDIT_WINDOW, late: LATE_AFTER };
        let webhooks = store.missed_by_webhooks(&audit).await?;
        report_missed(
            &self.context,
            "webhook",
            webhooks,
            &mut self.missed[0],
            "webhooks are failing: catch-up read events that no webhook delivered; check the endpoint in the WorkOS dashboard",
        );
        let catch_up = store.missed_by_catch_up(types, AUDIT_WINDOW).await?;
        report_missed(
            &self.context,
            "catch_up",
            catch_up,
            &mut self.missed[1],
            "webhooks delivered events that the Events API did not list to catch-up",
        );
        self.record_completion("audit");
        Ok(())
    }

    fn record_completion(&self, task: &str) {
        self.context.metrics.completed(task, self.context.clock.now().unix_seconds());
    }
}

fn report_missed(context: &JobContext, feed: &'static str, missed: MissedEvents, logged: &mut i64, message: &str) {
    context.metrics.missed(feed, missed.events);
    if missed.events > *logged {
        tracing::warn!(events = missed.events, since = ?missed.since.map(|at| at.to_string()), "{message}");
    } else if missed.events == 0 && *logged > 0 {
        tracing::info!(feed, "this feed no longer misses events");
    }
    *logged = missed.events;
}
