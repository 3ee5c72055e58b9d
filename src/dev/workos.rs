//! A simulated WorkOS on this machine: users, events, webhooks and signing keys over HTTP.
//!
//! It has the paths and JSON formats of the real API: users, organizations, memberships, roles, permissions and sessions,
//! `GET /events`, the JWKS, and `POST /user_management/authenticate` (grant type `password`, any password). Every change creates
//! the events of the real service, which are signed and posted to the endpoints, with retries. The paths under `/_simulate` control
//! the simulation. `GET /` lists them, each with its body and its effect.

mod actions;
mod api;
mod authenticate;
mod cascades;
mod collection;
mod deliveries;
mod domains;
mod fault;
mod fault_injector;
mod ids;
mod memberships;
mod organization_roles;
mod organizations;
mod pages;
mod permissions;
mod roles;
mod routes;
mod sessions;
mod state;
mod state_file;
mod tokens;
mod webhook_endpoints;

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
pub use actions::{ActionResult, Attempt as ActionAttempt};
pub use cascades::Cascades;
use collection::text;
use deliveries::Deliveries;
pub use deliveries::{Attempt, Faults, Held};
pub use fault::{Fault, SimulationError};
pub use fault_injector::ApiFaults;
use fault_injector::FaultInjector;
use state::State;
use tokens::SigningKey;
pub use tokens::TokenRequest;

/// Options of the simulation.
#[derive(Clone, Debug)]
pub struct Options {
    /// The address to listen on. Port 0 means a free port.
    pub listen: SocketAddr,
    /// The clock.
    pub clock: Clock,
    /// The seed of the faults, and of the IDs of a new state.
    pub seed: u64,
    /// The file that stores users, events, IDs, secrets and keys between runs.
    pub state: Option<PathBuf>,
}

/// A running simulation. Cloning is cheap. [`SimulatedWorkos::stop`] stops it.
#[derive(Clone, Debug)]
pub struct SimulatedWorkos(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    base_url: String,
    clock: Clock,
    file: Option<PathBuf>,
    state: Mutex<State>,
    keys: Mutex<Vec<SigningKey>>,
    second_api_key: Mutex<Option<String>>,
    refuse_keys: Mutex<Option<StatusCode>>,
    action_endpoint: Mutex<Option<String>>,
    deliveries: Deliveries,
    fault_injector: FaultInjector,
    stop: CancellationToken,
    server: TaskTracker,
}

impl SimulatedWorkos {
    /// Starts the simulation.
    ///
    /// # Errors
    /// [`SimulationError`] if the address is in use or the state file cannot be read.
    pub async fn start(options: Options) -> Result<Self, SimulationError> {
        let listener = TcpListener::bind(options.listen).await;
        let listener =
            listener.map_err(|error| SimulationError::new(format!("cannot listen on {}: {error}", options.listen)))?;
        let address = listener.local_addr().map_err(|error| SimulationError::new(error.to_string()))?;
        let mut state = state_file::load(&options)?;
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
            second_api_key: Mutex::new(None),
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

    /// Returns `http://host:port`, without a slash at the end.
    #[must_use]
    pub fn base_url(&self) -> &str {
        &self.0.base_url
    }

    /// Returns the client ID of the environment.
    #[must_use]
    pub fn client_id(&self) -> String {
        self.state().client_id.clone()
    }

    /// Returns the API key of the environment.
    #[must_use]
    pub fn api_key(&self) -> String {
        self.state().api_key.clone()
    }

    /// Sets or removes a second API key, which is accepted in addition to that of the environment.
    pub fn set_second_api_key(&self, key: Option<&str>) {
        *self.0.second_api_key.lock().unwrap_or_else(PoisonError::into_inner) = key.map(str::to_owned);
    }

    /// Replaces the API key of the environment.
    pub fn set_api_key(&self, key: &str) {
        self.state().api_key = key.to_owned();
        self.save();
    }

    fn accepts_api_key(&self, key: &str) -> bool {
        let second = self.0.second_api_key.lock().unwrap_or_else(PoisonError::into_inner);
        key == self.api_key() || second.as_deref() == Some(key)
    }

    /// Returns the secret of endpoints that were added without their own secret.
    #[must_use]
    pub fn webhook_secret(&self) -> String {
        self.state().webhook_secret.clone()
    }

    /// Adds an endpoint: delivers every new event to `url`, signed with [`SimulatedWorkos::webhook_secret`].
    pub fn add_endpoint(&self, url: &str) {
        self.add_endpoint_for(url, &self.webhook_secret(), &[]);
    }

    /// Sets the faults of deliveries.
    pub fn set_faults(&self, faults: Faults) {
        self.0.deliveries.set_faults(faults);
    }

    /// Sets the faults of the API.
    pub fn set_api_faults(&self, faults: ApiFaults) {
        self.0.fault_injector.set(faults);
    }

    /// Makes every cursor of an existing event unknown. The events themselves stay.
    pub fn lose_cursors(&self) {
        self.0.fault_injector.lose_cursors(self.now());
    }

    /// Returns the number of API requests for this path.
    #[must_use]
    pub fn requests(&self, path: &str) -> usize {
        self.0.fault_injector.requests(path)
    }

    /// Returns the number of all API requests.
    #[must_use]
    pub fn all_requests(&self) -> usize {
        self.0.fault_injector.all_requests()
    }

    /// Removes and returns the held deliveries. The caller delivers them.
    #[must_use]
    pub fn take_held(&self) -> Vec<Held> {
        self.0.deliveries.take_held()
    }

    /// Returns every delivery attempt so far.
    #[must_use]
    pub fn attempts(&self) -> Vec<Attempt> {
        self.0.deliveries.attempts()
    }

    /// Waits until every delivery has succeeded or has failed at the last attempt.
    pub async fn wait_until_delivered(&self) {
        self.0.deliveries.wait_until_delivered().await;
    }

    /// `POST /user_management/users`
    ///
    /// # Errors
    /// [`Fault`], the error of WorkOS.
    pub fn create_user(&self, given: &Map<String, Value>) -> Result<Value, Fault> {
        self.change(|state, now| state.create(given, now))
    }

    /// `PUT /user_management/users/{id}`
    ///
    /// # Errors
    /// [`Fault`], the error of WorkOS.
    pub fn update_user(&self, id: &str, given: &Map<String, Value>) -> Result<Value, Fault> {
        self.change(|state, now| state.update(id, given, now))
    }

    /// Sets a field of an object to any value, without an event. The real WorkOS never does this.
    pub fn spoil(&self, id: &str, field: &str, value: Value) {
        let mut state = self.state();
        let state = &mut *state;
        let kinds = [&mut state.users, &mut state.organizations, &mut state.memberships, &mut state.sessions];
        for kind in kinds {
            kind.set(id, field, value.clone());
        }
    }

    /// Removes a live object from every list.
    pub fn unlist(&self, id: &str) {
        self.state().unlisted.insert(id.to_owned());
    }

    /// `DELETE /user_management/users/{id}`
    ///
    /// # Errors
    /// [`Fault`], the error of WorkOS.
    pub fn delete_user(&self, id: &str) -> Result<(), Fault> {
        self.change(|state, now| state.delete(id, now))
    }

    /// Creates an event of any type, and returns its data.
    #[must_use]
    pub fn emit(&self, event_type: &str, data: Value) -> Value {
        self.change(|state, now| state.emit(event_type, data.clone(), None, now));
        data
    }

    /// Returns every user, oldest first.
    #[must_use]
    pub fn users(&self) -> Vec<Value> {
        self.read(|state| state.users.oldest_first().cloned().map(Value::Object).collect())
    }

    /// Returns every event, oldest first.
    #[must_use]
    pub fn events(&self) -> Vec<Value> {
        self.read(|state| state.events.iter().cloned().map(Value::Object).collect())
    }

    /// Stops the server and the deliveries, and waits for them, for at most five seconds.
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

    fn jwks_status(&self) -> Option<StatusCode> {
        *self.0.refuse_keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fault_injector(&self) -> &FaultInjector {
        &self.0.fault_injector
    }

    fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    /// Returns the time in the format of the `Date` header.
    fn http_date(&self, at: Timestamp) -> String {
        OffsetDateTime::from(at).format(HTTP_DATE).unwrap_or_default()
    }

    /// Changes the state, saves it, and delivers the new events.
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
        // Without an endpoint there is nothing to send, so that large environments are created fast.
        for event in events.into_iter().filter(|_| self.0.deliveries.has_endpoints()) {
            let (id, event_type) = (text(&event, "id").to_owned(), text(&event, "event").to_owned());
            self.0.deliveries.send(&id, &event_type, &Bytes::from(Value::Object(event).to_string()));
        }
        outcome
    }

    fn save(&self) {
        let Some(file) = &self.0.file else { return };
        if let Err(error) = state_file::save(file, &self.state()) {
            tracing::warn!(error = %error, "the state of the simulated WorkOS could not be saved for the next run");
        }
    }
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
    use crate::workos::signature::{self, Secret, SignatureHeader};

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
    async fn after_stop_it_answers_no_request_and_its_port_is_free() {
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
    async fn the_date_header_is_the_time_of_its_clock() {
        let workos = SimulatedWorkos::start(options(None)).await.unwrap();
        let answer = http_client().unwrap().get(format!("{}/nowhere", workos.base_url())).send().await.unwrap();
        assert_eq!(answer.headers()["date"], "Tue, 01 Sep 2026 12:00:00 GMT");
        workos.stop().await;
    }

    #[tokio::test]
    async fn a_token_has_the_claims_of_workos() {
        let workos = SimulatedWorkos::start(options(None)).await.unwrap();
        let user = workos.create_user(&ada()).unwrap();
        let claims = claims(&workos.sign_in(user["id"].as_str().unwrap()).unwrap());
        assert_eq!(claims["jti"].as_str().unwrap().len(), 26, "a bare ULID: {claims}");
        assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 300);
        assert_eq!(claims["sub"], user["id"]);
        workos.stop().await;
    }

    #[tokio::test]
    async fn a_redirect_is_a_failed_delivery() {
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

    /// Starts an endpoint that returns the received requests through a channel.
    async fn endpoint() -> (String, mpsc::UnboundedReceiver<(HeaderMap, Bytes)>, JoinHandle<std::io::Result<()>>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let receive = post(async move |headers: HeaderMap, body: Bytes| {
            let _ = sender.send((headers, body));
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let server = axum::serve(listener, Router::new().route("/hook", receive));
        (url, receiver, tokio::spawn(async move { server.await }))
    }

    #[tokio::test]
    async fn an_endpoint_receives_its_event_types_signed_with_its_own_secret() {
        let workos = SimulatedWorkos::start(options(None)).await.unwrap();
        let (url, mut received, server) = endpoint().await;
        let secret = Secret::new("whsec_its_own");
        workos.add_endpoint_for(&url, "whsec_its_own", &["user.deleted"]);
        let user = workos.create_user(&ada()).unwrap();
        workos.delete_user(user["id"].as_str().unwrap()).unwrap();
        workos.wait_until_delivered().await;
        let (headers, body) = received.recv().await.unwrap();
        let header = headers.get(signature::HEADER).map(HeaderValue::as_bytes);
        let header = SignatureHeader::parse(header, noon(), signature::WEBHOOK_TOLERANCE).unwrap();
        header.verify(&[secret], body.clone()).unwrap();
        let event: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(event, workos.events()[1], "the webhook and the Events API contain the same event");
        assert!(received.try_recv().is_err(), "no other type is delivered");
        workos.stop().await;
        server.abort();
    }

    #[tokio::test]
    async fn the_same_seed_causes_the_same_delivery_faults() {
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
    async fn keys_rotate_and_old_keys_stay_published() {
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
    async fn ids_ascend_after_a_restart_even_if_the_clock_stands_still() {
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
