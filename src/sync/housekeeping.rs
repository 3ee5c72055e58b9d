//! What has to be done now and then: retention of events and verdicts, the audit of both feeds, another try of the quarantine
//! by a new release.

use std::time::Duration;

use tokio::sync::Mutex;

use super::driver::{Context, Driver, Trouble};
use super::inbox;
use crate::domain::timestamp::Timestamp;
use crate::store::inbox::Missed;

/// Between two rounds, and between two batches of one.
const ROUND: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(100);

/// Rows dropped in one transaction.
const BATCH: i64 = 1_000;

/// A row outlives its payload until WorkOS no longer lists the event, so that a re-read event is not new again.
const ROWS_STAY: Duration = Duration::from_secs(35 * 86_400);

/// A feed may be this late.
const LATE: Duration = Duration::from_secs(15 * 60);

/// Between two audits: where a type never comes by webhook, one reads the whole inbox to know that.
const AUDIT: Duration = Duration::from_secs(15 * 60);

/// How far the audit looks back: a feed that has worked for so long is well.
const RECENT: Duration = Duration::from_secs(86_400);

/// The release that tries the quarantine again.
const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// The driver.
#[derive(Debug)]
pub struct Housekeeping {
    context: Context,
    retention: Duration,
    /// Both feeds run, so that they can be held against each other.
    types: Option<Vec<String>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failures: u32,
    audited_at: Option<Timestamp>,
    /// As last told: by webhooks, by catch-up.
    missed: [i64; 2],
}

impl Driver for Housekeeping {
    const JOB: &'static str = "housekeeping";

    async fn tick(&self) -> Duration {
        let mut state = self.state.lock().await;
        let outcome = self.step(&mut state).await;
        self.context.rest(Self::JOB, &mut state.failures, outcome).await
    }

    async fn keep(&self) {
        self.context.keep(Self::JOB).await;
    }
}

impl Housekeeping {
    /// Keeps events for `retention`; audits the feeds for `types` where both run.
    #[must_use]
    pub fn new(context: Context, retention: Duration, types: Option<Vec<String>>) -> Self {
        Self { context, retention, types, state: Mutex::default() }
    }

    async fn step(&self, state: &mut State) -> Result<Option<Duration>, Trouble> {
        if !self.context.leads(Self::JOB).await? {
            return Ok(None);
        }
        self.retry_after_upgrade().await?;
        if let Some(types) = &self.types {
            self.audit(types, state).await?;
        }
        let verdicts = self.context.store.expire_verdicts(BATCH).await?;
        let now = self.context.clock.now();
        let store = &self.context.store;
        let rows_before = now.minus(self.retention.max(ROWS_STAY));
        let dropped = store.expire_events(now.minus(self.retention), rows_before, BATCH).await?;
        let forgotten = store.expire_changes(rows_before, BATCH).await?;
        Ok(Some(if dropped > 0 || forgotten || verdicts > 0 { PAUSE } else { self.context.about(ROUND) }))
    }

    /// Another release may be able to apply what this database has in quarantine.
    async fn retry_after_upgrade(&self) -> Result<(), Trouble> {
        let store = &self.context.store;
        if store.retried_by().await?.as_deref() == Some(RELEASE) {
            return Ok(());
        }
        let retried = inbox::retry(store, None).await?;
        if retried.tried() > 0 {
            tracing::info!(
                tried = retried.tried(),
                left = retried.left.len(),
                "this release tried the quarantine again"
            );
        }
        store.note_retried(RELEASE).await?;
        Ok(())
    }

    async fn audit(&self, types: &[String], state: &mut State) -> Result<(), Trouble> {
        let (store, now) = (&self.context.store, self.context.clock.now());
        // A clock that was set back is no reason to wait.
        if state.audited_at.is_some_and(|at| at > now.minus(AUDIT) && at <= now) {
            return Ok(());
        }
        let since = now.minus(RECENT);
        let webhooks = store.missed_by_webhooks(since, now.minus(LATE)).await?;
        self.tell(
            "webhook",
            webhooks,
            &mut state.missed[0],
            "webhooks are failing: catch-up brought events that no webhook did; look at the endpoint in WorkOS's dashboard",
        );
        let catch_up = store.missed_by_catch_up(types, since).await?;
        self.tell(
            "catch_up",
            catch_up,
            &mut state.missed[1],
            "webhooks brought events that catch-up has read past without seeing them",
        );
        state.audited_at = Some(now);
        Ok(())
    }

    fn tell(&self, feed: &'static str, missed: Missed, told: &mut i64, what: &str) {
        self.context.metrics.missed(feed, missed.events);
        if missed.events > *told {
            tracing::warn!(events = missed.events, since = ?missed.since.map(|at| at.to_string()), "{what}");
        } else if missed.events == 0 && *told > 0 {
            tracing::info!(feed, "both feeds agree again");
        }
        *told = missed.events;
    }
}
