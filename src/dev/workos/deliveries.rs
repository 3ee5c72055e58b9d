//! Delivers webhooks: signs, posts and retries them, with faults.

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

/// The pause after the first attempt. It doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// Maximum number of attempts, as published by WorkOS.
const MAX_ATTEMPTS: u32 = 12;

/// Timeout of an endpoint.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(5);

/// Faults of deliveries. Probabilities are percentages of deliveries. The seed of the simulation determines when they occur.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Probability that a delivery is sent twice.
    pub duplicate: u8,
    /// Probability that a delivery is delayed by up to 250 ms, so that later ones arrive first.
    pub reorder: u8,
    /// Delay of every delivery in milliseconds.
    pub delay_ms: u64,
    /// Probability that a delivery is never sent.
    pub drop: u8,
    /// Whether deliveries are held for [`take_held`](super::SimulatedWorkos::take_held) instead of sent.
    pub hold: bool,
}

/// A delivery that was held.
#[derive(Clone, Debug)]
pub struct Held {
    endpoint: Endpoint,
    /// The ID of the event.
    pub event_id: String,
    /// The body of the request.
    pub body: Bytes,
}

impl Held {
    /// Returns the signature header for an attempt at this time. Each attempt has its own.
    #[must_use]
    pub fn sign(&self, now: Timestamp) -> String {
        self.endpoint.secret.sign(now, &self.body)
    }
}

/// An endpoint that receives deliveries.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    pub(super) id: String,
    pub(super) url: String,
    pub(super) secret: Secret,
    /// The text of the secret, for the API.
    pub(super) secret_text: String,
    /// The event types that it receives. Empty means all types.
    pub(super) events: Vec<String>,
    pub(super) is_enabled: bool,
    pub(super) created_at: Timestamp,
}

impl Endpoint {
    fn receives(&self, event_type: &str) -> bool {
        self.is_enabled && (self.events.is_empty() || self.events.iter().any(|wanted| wanted == event_type))
    }
}

/// A delivery attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The ID of the event.
    pub event_id: String,
    /// The status of the response. `None` if the endpoint could not be reached.
    pub status: Option<u16>,
}

/// Sends deliveries. Cloning is cheap.
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
        // WorkOS treats a redirect as a failure. The simulation sends requests only to this machine, so it uses no proxy.
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

    pub(super) fn add_endpoint(&self, endpoint: Endpoint) {
        self.shared().endpoints.push(endpoint);
    }

    /// Returns every endpoint, oldest first.
    pub(super) fn endpoints(&self) -> Vec<Endpoint> {
        self.shared().endpoints.clone()
    }

    /// Changes an endpoint, and returns it. `None` if there is none with this ID.
    pub(super) fn change_endpoint(&self, id: &str, change: impl FnOnce(&mut Endpoint)) -> Option<Endpoint> {
        let mut shared = self.shared();
        let endpoint = shared.endpoints.iter_mut().find(|endpoint| endpoint.id == id)?;
        change(endpoint);
        Some(endpoint.clone())
    }

    /// Removes an endpoint. Returns whether there was one with this ID.
    pub(super) fn remove_endpoint(&self, id: &str) -> bool {
        let mut shared = self.shared();
        let before = shared.endpoints.len();
        shared.endpoints.retain(|endpoint| endpoint.id != id);
        shared.endpoints.len() < before
    }

    pub(super) fn has_endpoints(&self) -> bool {
        !self.shared().endpoints.is_empty()
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

    /// Sends an event to every endpoint for its type, with the current faults.
    pub(super) fn send(&self, event_id: &str, event_type: &str, body: &Bytes) {
        let mut shared = self.shared();
        let faults = shared.faults;
        let endpoints: Vec<Endpoint> =
            shared.endpoints.iter().filter(|endpoint| endpoint.receives(event_type)).cloned().collect();
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
                let is_delayed = shared.random.happens(faults.reorder);
                let held_back = if is_delayed { shared.random.next() % 250 } else { 0 };
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
        for attempt in 0..MAX_ATTEMPTS {
            // Each attempt has a new signature, because a signature is valid only for minutes.
            let signature = endpoint.secret.sign(self.0.clock.now(), body);
            let request = self.0.client.post(&endpoint.url).body(body.clone());
            let request = request.header("content-type", "application/json").header(signature::HEADER, signature);
            let status = request.send().await.ok().map(|answer| answer.status().as_u16());
            self.shared().attempts.push(Attempt { event_id: event_id.to_owned(), status });
            if status.is_some_and(|status| (200..300).contains(&status)) {
                return;
            }
            tokio::time::sleep(FIRST_PAUSE * 2_u32.saturating_pow(attempt.min(8))).await;
        }
    }

    /// Waits until every delivery has succeeded or has failed at the last attempt.
    pub(super) async fn wait_until_delivered(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
        self.0.tasks.reopen();
    }
}
