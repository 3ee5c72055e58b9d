//! Reads the page's values from the database: a fixed number of statements, at most every few seconds, with a deadline.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::domain::timestamp::Timestamp;
use crate::store::StoreError;
use crate::store::catch_up::CatchUpState;
use crate::store::events::{EventFilter, EventSummary, MissedEvents, WebhookAudit};
use crate::store::handlers::{Handler, HandlerStatus};
use crate::store::inspection::{ServerFacts, WebhookFacts};
use crate::store::replicas::Replica;
use crate::sync::health::{Check, Expected, Facts, count};
use crate::sync::housekeeping::{AUDIT_WINDOW, LATE_AFTER};
use crate::sync::job::JobContext;

/// Pause between two readings, for all viewers together.
const PAUSE: Duration = Duration::from_secs(4);

/// The pause after a long reading is this many times as long as the reading, so that the page never puts much load on the database.
const PAUSE_FACTOR: u32 = 10;

/// Deadline of a reading. The page is shown without it then.
const DEADLINE: Duration = Duration::from_secs(3);

/// Number of quarantined events that the page lists.
pub(super) const QUARANTINE_LIMIT: i64 = 10;

/// One reading of the database.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) facts: Facts,
    pub(super) server: ServerFacts,
    pub(super) handlers: Vec<HandlerStatus>,
    pub(super) definitions: Vec<Handler>,
    pub(super) catch_up: Option<CatchUpState>,
    pub(super) webhooks: WebhookFacts,
    /// Events that polling delivered and no webhook.
    pub(super) missed: MissedEvents,
    pub(super) quarantined: Vec<EventSummary>,
    pub(super) replicas: Vec<Replica>,
    pub(super) read_at: Timestamp,
    pub(super) took: Duration,
}

impl Snapshot {
    async fn read(context: &JobContext, expected: &Expected) -> Result<Self, StoreError> {
        let (store, began) = (&context.store, Instant::now());
        store.ping().await?;
        let took = began.elapsed();
        let types: Vec<String> = context.kinds.event_types().into_iter().map(str::to_owned).collect();
        let audit = WebhookAudit { expected: &types, recent: AUDIT_WINDOW, late: LATE_AFTER };
        let quarantine = EventFilter { outcome: Some("quarantined".to_owned()), ..EventFilter::default() };
        Ok(Self {
            facts: Facts::read(expected, store).await?,
            server: store.server_facts().await?,
            handlers: store.handler_statuses().await?,
            definitions: store.handlers(None).await?,
            catch_up: store.catch_up_state().await?,
            webhooks: store.webhook_facts(&types, Timestamp::from_unix_micros(0)).await?,
            missed: store.missed_by_webhooks(&audit).await?,
            quarantined: store.event_summaries(&quarantine, QUARANTINE_LIMIT).await?,
            replicas: store.replicas().await?,
            read_at: context.clock.now(),
            took,
        })
    }

    /// Returns a check that fails if there are events that no webhook delivered: the table contains them, but an operator must
    /// repair the endpoint.
    pub(super) fn webhook_check(&self) -> Option<Check> {
        let events = count(self.missed.events, "event");
        let text = format!("only polling delivered {events} of the last day, and no webhook did");
        let fix = "check the endpoint in the WorkOS dashboard, page Webhooks, or run `authkit-sync doctor`";
        (self.missed.events > 0).then(|| Check::failure("webhooks_received", text, fix))
    }
}

/// The values that were read from the database.
#[derive(Clone, Debug, Default)]
pub(super) struct Reading {
    /// The last successful reading.
    pub(super) snapshot: Option<Arc<Snapshot>>,
    /// Why the last reading failed. It contains no personal data.
    pub(super) failure: Option<String>,
}

/// Returns what failed and what to do. The page says elsewhere that it is the database.
fn text(error: &StoreError) -> String {
    error.failure().map_or_else(|| error.to_string(), |failure| format!("{}; {}", failure.what(), failure.fix()))
}

/// The last reading, shared by all viewers.
#[derive(Debug, Default)]
pub(super) struct Cache(Arc<Mutex<Cached>>);

#[derive(Debug, Default)]
struct Cached {
    reading: Reading,
    /// The next reading is due at this time.
    next: Option<Instant>,
}

impl Cache {
    /// Returns the last reading. If a new one is due, reads first. Viewers that arrive meanwhile wait for it.
    pub(super) async fn current(&self, context: &JobContext, expected: &Expected) -> Reading {
        let mut cached = self.0.clone().lock_owned().await;
        let last = cached.reading.clone();
        if cached.next.is_some_and(|next| Instant::now() < next) {
            return last;
        }
        let (context, expected) = (context.clone(), *expected);
        // In its own task, so that a viewer that closes the connection does not cancel the reading for the others.
        let renewed = tokio::spawn(async move {
            cached.renew(&context, &expected).await;
            cached.reading.clone()
        });
        let defect = "the status page could not be read, which is a defect of authkit-sync; report it with the log";
        renewed.await.unwrap_or(Reading { failure: Some(defect.to_owned()), ..last })
    }
}

impl Cached {
    async fn renew(&mut self, context: &JobContext, expected: &Expected) {
        let began = Instant::now();
        match tokio::time::timeout(DEADLINE, Snapshot::read(context, expected)).await {
            Ok(Ok(snapshot)) => self.reading = Reading { snapshot: Some(Arc::new(snapshot)), failure: None },
            Ok(Err(error)) => self.reading.failure = Some(text(&error)),
            Err(_late) => {
                let failure =
                    "the database did not answer the status page within 3 seconds; check its load and its locks";
                self.reading.failure = Some(failure.to_owned());
            }
        }
        self.next = Some(Instant::now() + PAUSE.max(began.elapsed() * PAUSE_FACTOR));
    }
}
