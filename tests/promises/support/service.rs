//! The service on port 0, with a test database, a fixed clock and fixed keys.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use authkit_sync::AuthKit;
use authkit_sync::authkit::{Builder, RunError};
use authkit_sync::domain::clock::Clock;
use authkit_sync::domain::timestamp::Timestamp;
use authkit_sync::store::{Pool, Store};
use authkit_sync::tokens::{KeyFetchError, KeySource};
use authkit_sync::workos::http::http_client;
use authkit_sync::workos::signature::Secret;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::Value;
use sqlx::PgPool;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::fixture_bytes;
use super::pgbouncer::as_the_run_wants;

/// The client ID of the fixtures.
pub(crate) const CLIENT_ID: &str = "client_01KT68TJKCC6Y04VR04W05RWPH";

/// The webhook secret of test services.
pub(crate) const SECRET: &str = "whsec_QmFzZTY0TG9va2luZ0J1dE5vdA";

/// The timeouts of a test's service, unless the test is about timeouts.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A store on the database of this pool.
pub(crate) fn store(pool: &PgPool) -> Store {
    let pool = Pool::from(as_the_run_wants(pool));
    Store::new(pool.clone(), pool, CLIENT_ID, Duration::from_secs(20))
}

/// Waits until the condition holds. Panics with `what` after three minutes. A busy machine needs most of that time.
pub(crate) async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(180);
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Signing keys that a test can replace and remove.
#[derive(Debug)]
pub(crate) struct Keys {
    document: std::sync::Mutex<&'static str>,
    pub(crate) away: AtomicBool,
    pub(crate) fetches: AtomicUsize,
}

impl Keys {
    /// Publishes a fixture.
    pub(crate) fn of(fixture: &'static str) -> Arc<Self> {
        let (document, away) = (std::sync::Mutex::new(fixture), AtomicBool::new(false));
        Arc::new(Self { document, away, fetches: AtomicUsize::new(0) })
    }

    pub(crate) fn publish(&self, fixture: &'static str) {
        *self.document.lock().unwrap() = fixture;
    }
}

impl KeySource for Keys {
    fn fetch(&self) -> BoxFuture<'_, Result<Bytes, KeyFetchError>> {
        self.fetches.fetch_add(1, Ordering::SeqCst);
        let document = *self.document.lock().unwrap();
        let away = self.away.load(Ordering::SeqCst);
        async move {
            if away {
                Err(KeyFetchError::new("the test has removed the keys"))
            } else {
                Ok(fixture_bytes(document).into())
            }
        }
        .boxed()
    }
}

/// A running service.
pub(crate) struct Service {
    pub(crate) address: SocketAddr,
    pub(crate) ops: SocketAddr,
    pub(crate) keys: Arc<Keys>,
    pub(crate) clock: Clock,
    pub(crate) client: reqwest::Client,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<Result<(), RunError>>,
}

impl Service {
    /// Starts the service on one pool, as most tests need it.
    pub(crate) async fn start(pool: &PgPool) -> Self {
        Self::start_with(pool, |builder| builder).await
    }

    /// Starts the service while WorkOS is unreachable.
    pub(crate) async fn start_without_keys(pool: &PgPool) -> Self {
        let keys = Keys::of("jwks.document");
        keys.away.store(true, Ordering::SeqCst);
        Self::start_of(as_the_run_wants(pool).into(), keys, |builder| builder).await
    }

    /// Starts the service with the settings of a test. Timeouts are long, so that a busy machine fails no test.
    pub(crate) async fn start_with(pool: &PgPool, settings: impl FnOnce(Builder) -> Builder) -> Self {
        Self::start_on(as_the_run_wants(pool).into(), settings).await
    }

    /// Does the same on a pool whose sessions can have our settings.
    pub(crate) async fn start_on(pool: Pool, settings: impl FnOnce(Builder) -> Builder) -> Self {
        Self::start_of(pool, Keys::of("jwks.document"), settings).await
    }

    async fn start_of(pool: Pool, keys: Arc<Keys>, settings: impl FnOnce(Builder) -> Builder) -> Self {
        let clock = Clock::manual(Timestamp::parse("2026-09-01T08:30:00Z").unwrap());
        let builder = AuthKit::builder(pool, CLIENT_ID)
            .webhook_secrets(vec![Secret::new(SECRET)])
            .key_source(keys.clone())
            .database_timeout(TIMEOUT)
            .action_deadline(TIMEOUT)
            .drain_delay(Duration::ZERO)
            .clock(clock.clone());
        let authkit = settings(builder).build().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ops = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, ops_address) = (listener.local_addr().unwrap(), ops.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel();
        let shutdown = async {
            let _ = stopped.await;
        };
        let running = tokio::spawn(authkit.run(listener, Some(ops), shutdown));
        let client = http_client().unwrap();
        Self { address, ops: ops_address, keys, clock, client, stop: Some(stop), running }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Posts a body as WorkOS would.
    pub(crate) async fn deliver(&self, body: &Bytes) -> Answer {
        self.deliver_signed(body, Some(&Secret::new(SECRET).sign(self.clock.now(), body))).await
    }

    /// Posts a body with the given signature header, or without one.
    pub(crate) async fn deliver_signed(&self, body: &Bytes, header: Option<&str>) -> Answer {
        let mut request = self.client.post(self.url("/workos/webhook")).body(body.clone());
        if let Some(header) = header {
            request = request.header("WorkOS-Signature", header);
        }
        Answer::of(request.send().await.unwrap()).await
    }

    /// Requests a route with an access token.
    pub(crate) async fn ask(&self, path: &str, token: &str) -> Answer {
        Answer::of(self.client.get(self.url(path)).bearer_auth(token).send().await.unwrap()).await
    }

    /// Requests a route without an access token.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        Answer::of(self.client.get(self.url(path)).send().await.unwrap()).await
    }

    /// Stops the service as SIGTERM does, and returns the result.
    pub(crate) async fn stop(mut self) -> Result<(), RunError> {
        let _ = self.stop.take().unwrap().send(());
        self.running.await.unwrap()
    }

    /// Returns the result of a service that ends because of a delivery.
    pub(crate) async fn ended_after_a_delivery(self, body: &Bytes) -> Result<(), RunError> {
        let request = self.client.post(self.url("/workos/webhook")).body(body.clone());
        let signature = Secret::new(SECRET).sign(self.clock.now(), body);
        if let Ok(answer) = request.header("WorkOS-Signature", signature).send().await {
            assert_eq!(answer.status(), 503);
        }
        self.running.await.unwrap()
    }

    /// Returns the result of a service that ends by itself.
    pub(crate) async fn ended(self) -> Result<(), RunError> {
        self.running.await.unwrap()
    }
}

/// A complete response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) async fn of(response: reqwest::Response) -> Self {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Self { status, headers, text: response.text().await.unwrap() }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {}", self.text))
    }

    pub(crate) fn code(&self) -> (u16, String) {
        (self.status, self.json()["code"].as_str().unwrap_or_default().to_owned())
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// Returns the body of a response, which must be 200.
pub(crate) async fn http_ok(url: &str) -> String {
    let answer = http_client().unwrap().get(url).send().await.unwrap();
    assert_eq!(answer.status(), 200, "{url}");
    answer.text().await.unwrap()
}
