//! A simulated WorkOS: users, events, webhooks, signing keys, over HTTP on this machine.
//!
//! It answers the real API's paths with the real shapes: create, update, delete, get and list users, `GET /events`, the
//! JWKS, `POST /user_management/authenticate` (grant type `password`, any password). Every change is an event, signed and
//! posted to the endpoints, retried until it is taken. Beside those it can be steered:
//!
//! | path | body | does |
//! |---|---|---|
//! | `POST /_simulate/deliveries` | `{"duplicate":%,"reorder":%,"delay_ms":n,"drop":%}` | makes deliveries unreliable |
//! | `POST /_simulate/users/{id}/token` | | signs the user in and returns an access token |
//! | `POST /_simulate/events` | `{"event":"type","data":{…}}` | makes an event of any type |

mod api;
mod deliveries;
mod fault;
mod ids;
mod pages;
mod state;
mod tokens;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::domain::clock::Clock;
use crate::domain::timestamp::Timestamp;
use deliveries::Deliveries;
pub use deliveries::{Attempt, Faults};
pub use fault::Fault;
use state::State;
use tokens::SigningKey;

/// HTTP's form of a date.
const DATE: &[BorrowedFormatItem<'_>] =
    format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");

/// How long an access token lives, seconds, as by default at WorkOS.
const TOKEN_LIFE: i64 = 300;

/// Why there is no simulated WorkOS.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SimulationError(String);

impl SimulationError {
    fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

/// How to start one.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Tells it the time.
    pub clock: Clock,
    /// Decides faults, and the ids of a state that is not kept from an earlier run.
    pub seed: u64,
    /// The file that keeps users, events, ids, secrets and keys between runs.
    pub state: Option<PathBuf>,
}

/// A running one. Cloning is cheap; it stops with [`SimulatedWorkos::stop`].
#[derive(Clone, Debug)]
pub struct SimulatedWorkos(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    base_url: String,
    clock: Clock,
    file: Option<PathBuf>,
    state: Mutex<State>,
    keys: Mutex<Vec<SigningKey>>,
    deliveries: Deliveries,
    stop: CancellationToken,
    server: TaskTracker,
}

impl SimulatedWorkos {
    /// Starts listening.
    ///
    /// # Errors
    /// [`SimulationError`] when the address is taken or the state file cannot be read.
    pub async fn start(options: Options) -> Result<Self, SimulationError> {
        let listener = TcpListener::bind(options.listen).await;
        let listener =
            listener.map_err(|error| SimulationError::new(format!("cannot listen on {}: {error}", options.listen)))?;
        let address = listener.local_addr().map_err(|error| SimulationError::new(error.to_string()))?;
        let mut state = load(&options)?;
        let mut keys = Vec::new();
        for (kid, pkcs8) in &state.signing_keys {
            keys.push(SigningKey::import(kid, pkcs8)?);
        }
        if keys.is_empty() {
            let key = SigningKey::generate(state.ids.next("sso_oidc_key_pair", options.clock.now()))?;
            state.signing_keys.push((key.kid.clone(), key.export()?));
            keys.push(key);
        }
        let stop = CancellationToken::new();
        let workos = Self(Arc::new(Inner {
            base_url: format!("http://{address}"),
            deliveries: Deliveries::new(options.clock.clone(), options.seed, stop.clone())?,
            clock: options.clock,
            file: options.state,
            state: Mutex::new(state),
            keys: Mutex::new(keys),
            stop: stop.clone(),
            server: TaskTracker::new(),
        }));
        workos.save();
        let server = axum::serve(listener, api::router(workos.clone())).with_graceful_shutdown(stop.cancelled_owned());
        workos.0.server.spawn(async move { server.await });
        workos.0.server.close();
        Ok(workos)
    }

    /// `http://host:port`, without a slash at the end.
    #[must_use]
    pub fn base_url(&self) -> &str {
        &self.0.base_url
    }

    /// The environment's client id.
    #[must_use]
    pub fn client_id(&self) -> String {
        self.state().client_id.clone()
    }

    /// The environment's API key.
    #[must_use]
    pub fn api_key(&self) -> String {
        self.state().api_key.clone()
    }

    /// What deliveries to endpoints without a secret of their own are signed with.
    #[must_use]
    pub fn webhook_secret(&self) -> String {
        self.state().webhook_secret.clone()
    }

    /// Delivers every event from now on to `url`, signed with [`SimulatedWorkos::webhook_secret`].
    pub fn add_endpoint(&self, url: &str) {
        self.0.deliveries.add_endpoint(url, &self.webhook_secret());
    }

    /// How deliveries go wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.0.deliveries.set_faults(faults);
    }

    /// Every attempt to deliver so far.
    #[must_use]
    pub fn attempts(&self) -> Vec<Attempt> {
        self.0.deliveries.attempts()
    }

    /// Waits until every delivery has arrived or was given up.
    pub async fn settle(&self) {
        self.0.deliveries.settle().await;
    }

    /// `POST /user_management/users`
    ///
    /// # Errors
    /// [`Fault`] as WorkOS would answer.
    pub fn create_user(&self, given: &Map<String, Value>) -> Result<Value, Fault> {
        self.change(|state, now| state.create(given, now))
    }

    /// `PUT /user_management/users/{id}`
    ///
    /// # Errors
    /// [`Fault`] as WorkOS would answer.
    pub fn update_user(&self, id: &str, given: &Map<String, Value>) -> Result<Value, Fault> {
        self.change(|state, now| state.update(id, given, now))
    }

    /// `DELETE /user_management/users/{id}`
    ///
    /// # Errors
    /// [`Fault`] as WorkOS would answer.
    pub fn delete_user(&self, id: &str) -> Result<(), Fault> {
        self.change(|state, now| state.delete(id, now))
    }

    /// Makes an event of any type, and returns its data.
    #[must_use]
    pub fn emit(&self, event_type: &str, data: Value) -> Value {
        self.change(|state, now| state.emit(event_type, data.clone(), None, now));
        data
    }

    /// Signs the user in and returns an access token.
    ///
    /// # Errors
    /// [`Fault`] when there is no such user.
    pub fn sign_in(&self, id: &str) -> Result<String, Fault> {
        let session = self.change(|state, now| state.sign_in(id, now))?;
        self.token(id, &session, TOKEN_LIFE).map_err(|_| Fault::bad("internal", "the token could not be signed"))
    }

    /// An access token of a user and a session, known or not, that lives for so many seconds.
    ///
    /// # Errors
    /// [`SimulationError`] when it cannot be signed.
    pub fn token(&self, user: &str, session: &str, life: i64) -> Result<String, SimulationError> {
        let now = self.0.clock.now();
        let (client_id, jti, now) = (self.client_id(), self.state().ids.ulid(now), now.unix_seconds());
        let issuer = format!("{}/user_management/{client_id}", self.0.base_url);
        let claims = json!({
            "iss": issuer, "sub": user, "sid": session, "jti": jti, "client_id": client_id,
            "iat": now, "exp": now + life,
        });
        let keys = self.0.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.last().ok_or_else(|| SimulationError::new("there is no signing key"))?.sign(&claims)
    }

    /// Every user, oldest first.
    #[must_use]
    pub fn users(&self) -> Vec<Value> {
        self.read(|state| state.oldest_first().into_iter().cloned().map(Value::Object).collect())
    }

    /// The published keys.
    #[must_use]
    pub fn jwks(&self) -> Value {
        let keys = self.0.keys.lock().unwrap_or_else(PoisonError::into_inner);
        json!({ "keys": keys.iter().map(SigningKey::jwk).collect::<Vec<_>>() })
    }

    /// Stops listening and delivering, and waits until it has, five seconds at most.
    pub async fn stop(&self) {
        self.0.stop.cancel();
        let stopped = async { tokio::join!(self.settle(), self.0.server.wait()) };
        let _ = tokio::time::timeout(Duration::from_secs(5), stopped).await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.state())
    }

    fn next_id(&self, prefix: &str) -> String {
        let now = self.0.clock.now();
        self.state().ids.next(prefix, now)
    }

    /// The `Date` header's form of now.
    fn date(&self) -> String {
        let now = OffsetDateTime::from(self.0.clock.now());
        now.format(DATE).unwrap_or_default()
    }

    /// Changes the state, keeps it, and delivers the events that came of it.
    fn change<T>(&self, change: impl FnOnce(&mut State, Timestamp) -> T) -> T {
        let now = self.0.clock.now();
        let mut state = self.state();
        let before = state.events.len();
        let outcome = change(&mut state, now);
        let events: Vec<Map<String, Value>> = state.events.get(before..).unwrap_or_default().to_vec();
        drop(state);
        self.save();
        for event in events {
            let id = event.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
            self.0.deliveries.send(&id, &Bytes::from(Value::Object(event).to_string()));
        }
        outcome
    }

    /// Writes the file whole and puts it in place at once, so that a kill leaves the old one or the new one.
    fn save(&self) {
        let Some(file) = &self.0.file else { return };
        let state = self.state();
        let kept = serde_json::to_vec(&*state).map_err(std::io::Error::from).and_then(|bytes| {
            let next = file.with_extension("next");
            std::fs::write(&next, bytes)?;
            std::fs::rename(next, file)
        });
        if let Err(error) = kept {
            tracing::warn!(error = %error, "the simulated WorkOS could not be kept for the next run");
        }
    }
}

fn load(options: &Options) -> Result<State, SimulationError> {
    let now = options.clock.now();
    let Some(file) = options.state.as_ref().filter(|file| file.exists()) else {
        return Ok(State::new(options.seed, now));
    };
    let unreadable = |_| SimulationError::new(format!("{} cannot be read; remove it to start anew", file.display()));
    let bytes = std::fs::read(file).map_err(unreadable)?;
    serde_json::from_slice(&bytes).map_err(std::io::Error::from).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use axum::Router;
    use axum::response::Redirect;
    use axum::routing::post;
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;
    use crate::workos::http::http_client;

    fn noon() -> Timestamp {
        Timestamp::parse("2026-09-01T12:00:00Z").unwrap()
    }

    fn options(state: Option<PathBuf>) -> Options {
        Options { listen: (Ipv4Addr::LOCALHOST, 0).into(), clock: Clock::manual(noon()), seed: 7, state }
    }

    fn ada() -> Map<String, Value> {
        json!({"email": "ada@example.test"}).as_object().unwrap().clone()
    }

    fn claims(token: &str) -> Value {
        let body = token.split('.').nth(1).unwrap();
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(body).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn once_stopped_it_answers_nobody_and_its_port_is_free() {
        let workos = SimulatedWorkos::start(options(None)).await.unwrap();
        let (client, url) = (http_client().unwrap(), workos.base_url().to_owned());
        let jwks = format!("{url}/sso/jwks/{}", workos.client_id());
        assert_eq!(client.get(&jwks).send().await.unwrap().status(), 200);
        workos.stop().await;
        assert!(client.get(&jwks).send().await.is_err(), "a connection kept alive is still answered");
        let listen = url.strip_prefix("http://").unwrap().parse().unwrap();
        let again = SimulatedWorkos::start(Options { listen, ..options(None) }).await.unwrap();
        again.stop().await;
    }

    #[tokio::test]
    async fn its_date_is_its_clocks() {
        let workos = SimulatedWorkos::start(options(None)).await.unwrap();
        let answer = http_client().unwrap().get(format!("{}/nowhere", workos.base_url())).send().await.unwrap();
        assert_eq!(answer.headers()["date"], "Tue, 01 Sep 2026 12:00:00 GMT");
        workos.stop().await;
    }

    #[tokio::test]
    async fn a_token_says_what_workos_says() {
        let workos = SimulatedWorkos::start(options(None)).await.unwrap();
        let user = workos.create_user(&ada()).unwrap();
        let claims = claims(&workos.sign_in(user["id"].as_str().unwrap()).unwrap());
        assert_eq!(claims["jti"].as_str().unwrap().len(), 26, "a bare ULID: {claims}");
        assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 300);
        assert_eq!(claims["sub"], user["id"]);
        workos.stop().await;
    }

    #[tokio::test]
    async fn a_redirect_takes_no_delivery() {
        let endpoint = Router::new()
            .route("/old", post(async || Redirect::temporary("/new")))
            .route("/new", post(async || "taken"));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}/old", listener.local_addr().unwrap());
        let server = tokio::spawn(async move { axum::serve(listener, endpoint).await });
        let workos = SimulatedWorkos::start(options(None)).await.unwrap();
        workos.add_endpoint(&url);
        let _ = workos.create_user(&ada()).unwrap();
        while workos.attempts().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(workos.attempts()[0].status, Some(307));
        workos.stop().await;
        server.abort();
    }

    #[tokio::test]
    async fn ids_go_on_after_a_restart_even_when_the_clock_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = Some(folder.path().join("workos.json"));
        let mut ids = Vec::new();
        for round in 0..3 {
            let workos = SimulatedWorkos::start(options(file.clone())).await.unwrap();
            let _ = workos.emit("user.seen", json!({"round": round}));
            ids = workos.read(|state| state.events.iter().map(|event| event["id"].to_string()).collect());
            workos.stop().await;
        }
        assert_eq!(ids.len(), 3);
        assert!(ids.is_sorted_by(|one, next| one < next), "{ids:?}");
    }
}
