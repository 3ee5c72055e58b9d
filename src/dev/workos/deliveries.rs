//! Webhooks: signed, posted, retried, and as unreliable as told.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use reqwest::redirect::Policy;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::SimulationError;
use super::ids::Random;
use crate::domain::clock::Clock;
use crate::domain::timestamp::Timestamp;
use crate::workos::signature::{self, Secret};

/// The first rest between two attempts; it doubles.
const FIRST_REST: Duration = Duration::from_millis(250);

/// WorkOS's own count, where it has told one.
const ATTEMPTS: u32 = 12;

/// How long an endpoint may take to answer.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(5);

/// How deliveries go wrong. Chances are percentages of deliveries, decided by the simulation's seed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Sent twice.
    pub duplicate: u8,
    /// Overtaken by later ones: held back for up to a quarter of a second.
    pub reorder: u8,
    /// Every delivery is this late, milliseconds.
    pub delay_ms: u64,
    /// Never sent, as if WorkOS had given up.
    pub drop: u8,
    /// None is sent; each waits until it is [taken](super::SimulatedWorkos::take_held) and delivered by hand.
    pub hold: bool,
}

/// A delivery that was held.
#[derive(Clone, Debug)]
pub struct Held {
    endpoint: Endpoint,
    /// The event's id.
    pub event_id: String,
    /// What is posted.
    pub body: Bytes,
}

impl Held {
    /// The signature header of an attempt made now: each attempt has its own.
    #[must_use]
    pub fn sign(&self, now: Timestamp) -> String {
        self.endpoint.secret.sign(now, &self.body)
    }
}

/// Where deliveries go.
#[derive(Clone, Debug)]
struct Endpoint {
    url: String,
    secret: Secret,
    /// The types it asked for; none: all.
    events: Vec<String>,
}

impl Endpoint {
    fn wants(&self, event_type: &str) -> bool {
        self.events.is_empty() || self.events.iter().any(|wanted| wanted == event_type)
    }
}

/// One attempt that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The event's id.
    pub event_id: String,
    /// What the endpoint answered; `None` when it could not be reached.
    pub status: Option<u16>,
}

/// The delivering side.
#[derive(Clone, Debug)]
pub(super) struct Deliveries(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    client: reqwest::Client,
    clock: Clock,
    stop: CancellationToken,
    tasks: TaskTracker,
    shared: Mutex<Shared>,
}

#[derive(Debug)]
struct Shared {
    endpoints: Vec<Endpoint>,
    faults: Faults,
    random: Random,
    attempts: Vec<Attempt>,
    held: Vec<Held>,
}

impl Deliveries {
    pub(super) fn new(clock: Clock, seed: u64, stop: CancellationToken) -> Result<Self, SimulationError> {
        // To WorkOS a redirect is a failure; and what is simulated stays on this machine, whatever proxy is set.
        let client = reqwest::Client::builder().redirect(Policy::none()).no_proxy().timeout(DELIVERY_TIMEOUT).build();
        let client = client.map_err(|error| SimulationError::new(error.to_string()))?;
        let shared = Shared {
            endpoints: Vec::new(),
            faults: Faults::default(),
            random: Random::new(seed),
            attempts: Vec::new(),
            held: Vec::new(),
        };
        Ok(Self(Arc::new(Inner { client, clock, stop, tasks: TaskTracker::new(), shared: Mutex::new(shared) })))
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.0.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add_endpoint(&self, url: &str, secret: Secret, events: &[&str]) {
        let events = events.iter().map(|&event| event.to_owned()).collect();
        self.shared().endpoints.push(Endpoint { url: url.to_owned(), secret, events });
    }

    pub(super) fn set_faults(&self, faults: Faults) {
        self.shared().faults = faults;
    }

    pub(super) fn attempts(&self) -> Vec<Attempt> {
        self.shared().attempts.clone()
    }

    pub(super) fn take_held(&self) -> Vec<Held> {
        std::mem::take(&mut self.shared().held)
    }

    /// Sends an event to every endpoint that wants its type, as the faults have it.
    pub(super) fn send(&self, event_id: &str, event_type: &str, body: &Bytes) {
        let mut shared = self.shared();
        let faults = shared.faults;
        let endpoints: Vec<Endpoint> =
            shared.endpoints.iter().filter(|endpoint| endpoint.wants(event_type)).cloned().collect();
        for endpoint in endpoints {
            if faults.hold {
                shared.held.push(Held { endpoint, event_id: event_id.to_owned(), body: body.clone() });
                continue;
            }
            if shared.random.happens(faults.drop) {
                continue;
            }
            let copies = if shared.random.happens(faults.duplicate) { 2 } else { 1 };
            for _ in 0..copies {
                let overtaken = shared.random.happens(faults.reorder);
                let held_back = if overtaken { shared.random.next() % 250 } else { 0 };
                let delay = Duration::from_millis(faults.delay_ms + held_back);
                let (this, endpoint) = (self.clone(), endpoint.clone());
                let (event_id, body) = (event_id.to_owned(), body.clone());
                self.0.tasks.spawn(async move {
                    let delivered = this.deliver(&endpoint, &event_id, &body, delay);
                    this.0.stop.run_until_cancelled(delivered).await;
                });
            }
        }
    }

    async fn deliver(&self, endpoint: &Endpoint, event_id: &str, body: &Bytes, delay: Duration) {
        tokio::time::sleep(delay).await;
        for attempt in 0..ATTEMPTS {
            // Each attempt is signed anew: the first signature would be stale within minutes.
            let signature = endpoint.secret.sign(self.0.clock.now(), body);
            let request = self.0.client.post(&endpoint.url).body(body.clone());
            let request = request.header("content-type", "application/json").header(signature::HEADER, signature);
            let status = request.send().await.ok().map(|answer| answer.status().as_u16());
            self.shared().attempts.push(Attempt { event_id: event_id.to_owned(), status });
            if status.is_some_and(|status| (200..300).contains(&status)) {
                return;
            }
            tokio::time::sleep(FIRST_REST * 2_u32.saturating_pow(attempt.min(8))).await;
        }
    }

    /// Waits until every delivery has arrived or was given up.
    pub(super) async fn wait_until_delivered(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
        self.0.tasks.reopen();
    }
}
