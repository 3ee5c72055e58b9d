//! A simulated WorkOS: users, events, webhooks, signing keys, over HTTP on this machine.
//!
//! It answers the real API's paths with the real shapes: create, update, delete, get and list users, `GET /events`, the
//! JWKS, `POST /user_management/authenticate` (grant type `password`, any password). Every change is an event, signed and
//! posted to the endpoints, retried until it is taken. Beside those it can be steered:
//!
//! | path | body | does |
//! |---|---|---|
//! | `POST /_simulate/deliveries` | `{"duplicate":%,"reorder":%,"delay_ms":n,"drop":%}` | makes deliveries unreliable |
//! | `POST /_simulate/api` | [`ApiFaults`] | makes the API unreliable |
//! | `POST /_simulate/users/{id}/token` | | signs the user in and returns an access token |
//! | `POST /_simulate/actions` | `{"email":…}` or `{"user_id":…}` | asks the application whether somebody may sign up, or in |
//! | `POST /_simulate/events` | `{"event":"type","data":{…}}` | makes an event of any type |

mod actions;
mod api;
mod deliveries;
mod fault;
mod fault_injector;
mod ids;
mod pages;
mod state;
mod tokens;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use bytes::Bytes;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::domain::clock::Clock;
use crate::domain::timestamp::Timestamp;
use crate::workos::http::HTTP_DATE;
use crate::workos::signature::Secret;
pub use actions::{Attempt as ActionAttempt, Judged};
use deliveries::Deliveries;
pub use deliveries::{Attempt, Faults, Held};
pub use fault::{Fault, SimulationError};
pub use fault_injector::ApiFaults;
use fault_injector::FaultInjector;
use state::{State, text};
use tokens::SigningKey;

/// How long an access token lives, seconds, as by default at WorkOS.
const TOKEN_LIFE: i64 = 300;

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
    refuse_keys: Mutex<Option<StatusCode>>,
    action_endpoint: Mutex<Option<String>>,
    deliveries: Deliveries,
    fault_injector: FaultInjector,
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
            fault_injector: FaultInjector::new(options.seed),
            clock: options.clock,
            file: options.state,
            state: Mutex::new(state),
            keys: Mutex::new(keys),
            refuse_keys: Mutex::new(None),
            action_endpoint: Mutex::new(None),
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
        self.add_endpoint_for(url, Secret::new(self.webhook_secret()), &[]);
    }

    /// Delivers events of these types (none: of every type) to `url`, signed with a secret of the endpoint's own.
    pub fn add_endpoint_for(&self, url: &str, secret: Secret, events: &[&str]) {
        self.0.deliveries.add_endpoint(url, secret, events);
    }

    /// How deliveries go wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.0.deliveries.set_faults(faults);
    }

    /// How the API goes wrong from now on.
    pub fn set_api_faults(&self, faults: ApiFaults) {
        self.0.fault_injector.set(faults);
    }

    /// Forgets every cursor into the events made so far; the events themselves stay.
    pub fn lose_cursors(&self) {
        self.0.fault_injector.lose_cursors(self.now());
    }

    /// How often API clients have asked for this path.
    #[must_use]
    pub fn requests(&self, path: &str) -> usize {
        self.0.fault_injector.requests(path)
    }

    /// How often API clients have asked for anything.
    #[must_use]
    pub fn all_requests(&self) -> usize {
        self.0.fault_injector.all_requests()
    }

    /// The deliveries that are held, which from now on are the caller's to make.
    #[must_use]
    pub fn take_held(&self) -> Vec<Held> {
        self.0.deliveries.take_held()
    }

    /// Every attempt to deliver so far.
    #[must_use]
    pub fn attempts(&self) -> Vec<Attempt> {
        self.0.deliveries.attempts()
    }

    /// Waits until every delivery has arrived or was given up.
    pub async fn wait_until_delivered(&self) {
        self.0.deliveries.wait_until_delivered().await;
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

    /// Makes a field of a user what the real WorkOS never would; no event tells of it.
    pub fn spoil(&self, id: &str, field: &str, value: Value) {
        if let Some(user) = self.state().users.get_mut(id) {
            user.insert(field.to_owned(), value);
        }
    }

    /// Leaves a user out of every list, although it lives.
    pub fn unlist(&self, id: &str) {
        self.state().unlisted.insert(id.to_owned());
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
        self.token_with(json!({"sub": user, "sid": session}), life)
    }

    /// A token with these claims beside, or in place of, those every token has; null takes a claim away.
    ///
    /// # Errors
    /// [`SimulationError`] when it cannot be signed.
    pub fn token_with(&self, more: Value, life: i64) -> Result<String, SimulationError> {
        let now = self.0.clock.now();
        let (client_id, jti, now) = (self.client_id(), self.state().ids.ulid(now), now.unix_seconds());
        let issuer = format!("{}/user_management/{client_id}", self.0.base_url);
        let mut claims = json!({"iss": issuer, "jti": jti, "client_id": client_id, "iat": now, "exp": now + life});
        if let (Value::Object(claims), Value::Object(more)) = (&mut claims, more) {
            claims.extend(more);
            claims.retain(|_, value| !value.is_null());
        }
        let keys = self.0.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.last().ok_or_else(|| SimulationError::new("there is no signing key"))?.sign(&claims)
    }

    /// Every user, oldest first.
    #[must_use]
    pub fn users(&self) -> Vec<Value> {
        self.read(|state| state.oldest_first().into_iter().cloned().map(Value::Object).collect())
    }

    /// Every event, oldest first.
    #[must_use]
    pub fn events(&self) -> Vec<Value> {
        self.read(|state| state.events.iter().cloned().map(Value::Object).collect())
    }

    /// Signs with a new key from now on; the older ones stay published, as while WorkOS rotates.
    ///
    /// # Errors
    /// [`SimulationError`] when no key can be made.
    pub fn rotate_keys(&self) -> Result<(), SimulationError> {
        let key = SigningKey::generate(self.next_id("sso_oidc_key_pair"))?;
        self.state().signing_keys.push((key.kid.clone(), key.export()?));
        self.0.keys.lock().unwrap_or_else(PoisonError::into_inner).push(key);
        self.save();
        Ok(())
    }

    /// Answers requests for the keys with this status; `None` serves them again.
    pub fn refuse_keys(&self, status: Option<StatusCode>) {
        *self.0.refuse_keys.lock().unwrap_or_else(PoisonError::into_inner) = status;
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
        let stopped = async { tokio::join!(self.wait_until_delivered(), self.0.server.wait()) };
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

    fn keys_refused(&self) -> Option<StatusCode> {
        *self.0.refuse_keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fault_injector(&self) -> &FaultInjector {
        &self.0.fault_injector
    }

    fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    /// The `Date` header's form of an instant.
    fn date_of(&self, at: Timestamp) -> String {
        OffsetDateTime::from(at).format(HTTP_DATE).unwrap_or_default()
    }

    /// Changes the state, keeps it, and delivers the events that came of it.
    fn change<T>(&self, change: impl FnOnce(&mut State, Timestamp) -> T) -> T {
        let now = self.0.clock.now();
        let mut state = self.state();
        let before = state.events.len();
        let outcome = change(&mut state, now);
        for event in state.events.iter_mut().skip(before) {
            if let Some(late_by) = self.0.fault_injector.late_by() {
                event.insert("created_at".into(), json!(now.minus(late_by)));
            }
        }
        let events: Vec<Map<String, Value>> = state.events.get(before..).unwrap_or_default().to_vec();
        drop(state);
        self.save();
        for event in events {
            let (id, event_type) = (text(&event, "id").to_owned(), text(&event, "event").to_owned());
            self.0.deliveries.send(&id, &event_type, &Bytes::from(Value::Object(event).to_string()));
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
    use std::collections::BTreeSet;
    use std::net::Ipv4Addr;

    use axum::Router;
    use axum::http::{HeaderMap, HeaderValue};
    use axum::response::Redirect;
    use axum::routing::post;
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use tokio::sync::mpsc;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::workos::http::http_client;
    use crate::workos::signature::{self, SignatureHeader};

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

    /// An endpoint that keeps what is posted to it.
    async fn endpoint() -> (String, mpsc::UnboundedReceiver<(HeaderMap, Bytes)>, JoinHandle<std::io::Result<()>>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let take = post(async move |headers: HeaderMap, body: Bytes| {
            let _ = sender.send((headers, body));
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let server = axum::serve(listener, Router::new().route("/hook", take));
        (url, receiver, tokio::spawn(async move { server.await }))
    }

    #[tokio::test]
    async fn an_endpoint_gets_the_types_it_asked_for_signed_with_its_own_secret() {
        let workos = SimulatedWorkos::start(options(None)).await.unwrap();
        let (url, mut received, server) = endpoint().await;
        let secret = Secret::new("whsec_its_own");
        workos.add_endpoint_for(&url, secret.clone(), &["user.deleted"]);
        let user = workos.create_user(&ada()).unwrap();
        workos.delete_user(user["id"].as_str().unwrap()).unwrap();
        workos.wait_until_delivered().await;
        let (headers, body) = received.recv().await.unwrap();
        let header = headers.get(signature::HEADER).map(HeaderValue::as_bytes);
        let header = SignatureHeader::parse(header, noon(), signature::WEBHOOK_TOLERANCE).unwrap();
        header.verify(&[secret], body.clone()).unwrap();
        let event: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(event, workos.events()[1], "what was posted is what the Events API lists");
        assert!(received.try_recv().is_err(), "it asked for nothing else");
        workos.stop().await;
        server.abort();
    }

    #[tokio::test]
    async fn the_same_seed_makes_the_same_deliveries_go_wrong() {
        let mut runs = Vec::new();
        for _ in 0..2 {
            let workos = SimulatedWorkos::start(options(None)).await.unwrap();
            let (url, _received, server) = endpoint().await;
            workos.add_endpoint(&url);
            workos.set_faults(Faults { drop: 30, duplicate: 30, ..Faults::default() });
            for at in 0..40 {
                let _ = workos.emit("user.seen", json!({"at": at}));
            }
            workos.wait_until_delivered().await;
            let mut delivered: Vec<String> = workos.attempts().into_iter().map(|attempt| attempt.event_id).collect();
            delivered.sort();
            let once: BTreeSet<&String> = delivered.iter().collect();
            assert!(once.len() < 40 && once.len() < delivered.len(), "some dropped, some twice");
            runs.push(delivered);
            workos.stop().await;
            server.abort();
        }
        assert_eq!(runs[0], runs[1]);
    }

    #[tokio::test]
    async fn keys_rotate_and_fail_and_what_signed_stays_published() {
        let folder = tempfile::tempdir().unwrap();
        let file = Some(folder.path().join("workos.json"));
        let workos = SimulatedWorkos::start(options(file.clone())).await.unwrap();
        let before = workos.jwks()["keys"][0]["kid"].clone();
        workos.rotate_keys().unwrap();
        let token =
            workos.token_with(json!({"sub": "user_1", "sid": null, "aud": ["x"], "client_id": null}), 60).unwrap();
        let part = |at: usize| -> Value {
            let part = token.split('.').nth(at).unwrap();
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
        };
        assert_eq!(part(0)["kid"], workos.jwks()["keys"][1]["kid"]);
        assert_eq!(part(1)["aud"], json!(["x"]));
        assert!(part(1).get("sid").is_none() && part(1).get("client_id").is_none());
        let (client, url) = (http_client().unwrap(), format!("{}/sso/jwks/{}", workos.base_url(), workos.client_id()));
        workos.refuse_keys(Some(StatusCode::BAD_GATEWAY));
        assert_eq!(client.get(&url).send().await.unwrap().status(), 502);
        workos.refuse_keys(None);
        let served: Value = client.get(&url).send().await.unwrap().json().await.unwrap();
        assert_eq!((&served, &served["keys"][0]["kid"]), (&workos.jwks(), &before));
        workos.stop().await;
        let again = SimulatedWorkos::start(options(file)).await.unwrap();
        assert_eq!(again.jwks(), served);
        again.stop().await;
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
