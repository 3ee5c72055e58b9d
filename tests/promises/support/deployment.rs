//! Processes behind a proxy that polls their readiness, the load of that proxy, and the steps of a rolling deployment.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use authkit_sync::dev::workos::SimulatedWorkos;
use authkit_sync::domain::clock::Clock;
use authkit_sync::workos::http::http_client;
use authkit_sync::workos::signature::Secret;
use bytes::Bytes;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::binary::{self, Served};
use super::database::TestDatabase;
use super::events::{body, unique, user};
use super::lab::another_workos;
use super::service::{SECRET, until};

/// Number of concurrent senders of webhooks, and the pause of each sender: 200 webhooks per second in total.
const SENDERS: usize = 8;
const PAUSE: Duration = Duration::from_millis(40);

/// Number of concurrent senders of lookups, without pauses.
const READERS: usize = 2;

/// Interval at which the proxy requests the readiness of each process.
const POLL: Duration = Duration::from_millis(50);

/// Number of answers that prove that a process serves.
const ANSWERS: usize = 40;

/// A process as the proxy sees it.
struct Upstream {
    address: SocketAddr,
    is_ready: AtomicBool,
    /// Whether the operator has removed the process from the proxy.
    is_removed: AtomicBool,
    in_flight: AtomicUsize,
    answered: AtomicUsize,
}

/// Sends each request to the next ready process, once.
struct Proxy {
    client: reqwest::Client,
    upstreams: Mutex<Vec<Arc<Upstream>>>,
    turn: AtomicUsize,
    polls: CancellationToken,
}

impl Proxy {
    fn new() -> Arc<Self> {
        let (client, upstreams) = (http_client().unwrap(), Mutex::new(Vec::new()));
        Arc::new(Self { client, upstreams, turn: AtomicUsize::new(0), polls: CancellationToken::new() })
    }

    fn add(&self, address: SocketAddr) -> Arc<Upstream> {
        let upstream = Arc::new(Upstream {
            address,
            is_ready: AtomicBool::new(false),
            is_removed: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            answered: AtomicUsize::new(0),
        });
        self.upstreams.lock().unwrap().push(upstream.clone());
        let (client, polled, end) = (self.client.clone(), upstream.clone(), self.polls.clone());
        tokio::spawn(end.run_until_cancelled_owned(async move {
            loop {
                let answer = client.get(format!("http://{address}/readyz")).send().await;
                polled.is_ready.store(answer.is_ok_and(|it| it.status() == 200), Ordering::SeqCst);
                tokio::time::sleep(POLL).await;
            }
        }));
        upstream
    }

    /// Returns the next process that is ready. It counts as in flight from the choice on.
    fn next(&self) -> Option<Arc<Upstream>> {
        let upstreams = self.upstreams.lock().unwrap();
        let turn = self.turn.fetch_add(1, Ordering::SeqCst);
        let ready = |it: &&Arc<Upstream>| it.is_ready.load(Ordering::SeqCst) && !it.is_removed.load(Ordering::SeqCst);
        let ready: Vec<_> = upstreams.iter().filter(ready).collect();
        let next = ready.get(turn % ready.len().max(1)).map(|it| Arc::clone(it))?;
        next.in_flight.fetch_add(1, Ordering::SeqCst);
        Some(next)
    }

    /// Sends a webhook.
    async fn deliver(&self, body: Bytes) -> Result<(), String> {
        let signature = Secret::new(SECRET).sign(Clock::system().now(), &body);
        self.send(|address| {
            let request = self.client.post(format!("http://{address}/workos/webhook"));
            request.header("workos-signature", signature).body(body)
        })
        .await
    }

    /// Sends a request without a retry. Returns an error, unless the answer is 200.
    async fn send(&self, request: impl FnOnce(SocketAddr) -> reqwest::RequestBuilder) -> Result<(), String> {
        let upstream = self.next().ok_or("no process is ready")?;
        let answer = request(upstream.address).send().await;
        upstream.in_flight.fetch_sub(1, Ordering::SeqCst);
        let answer = answer.map_err(|error| format!("{}: {error:?}", upstream.address))?;
        if answer.status() != 200 {
            let status = answer.status();
            return Err(format!("{}: {status}: {}", upstream.address, answer.text().await.unwrap_or_default()));
        }
        upstream.answered.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// The results of the load.
#[derive(Default)]
struct Seen {
    acknowledged: Vec<String>,
    /// The name in the last acknowledged event of each user.
    names: HashMap<String, String>,
    lookups: usize,
    refused: Vec<String>,
}

/// The load of the proxy: webhooks at a bounded rate, and lookups without pauses.
pub(crate) struct Load {
    stop: CancellationToken,
    workers: JoinSet<()>,
    seen: Arc<Mutex<Seen>>,
}

/// Sends events of users until the load stops. The events of a user follow each other.
async fn send_webhooks(proxy: Arc<Proxy>, seen: Arc<Mutex<Seen>>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(PAUSE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let users: Vec<String> = (0..5).map(|_| unique("user")).collect();
    for event in 0_i64.. {
        ticks.tick().await;
        if stop.is_cancelled() {
            return;
        }
        let id = unique("event");
        let user_id = &users[usize::try_from(event).unwrap() % users.len()];
        let name = format!("Name {event}");
        let event_type = if event < 5 { "user.created" } else { "user.updated" };
        let sent = proxy.deliver(body(&id, event_type, event, &user(user_id, &name, event))).await;
        let mut seen = seen.lock().unwrap();
        match sent {
            Ok(()) => {
                seen.acknowledged.push(id);
                seen.names.insert(user_id.clone(), name);
            }
            Err(error) => seen.refused.push(format!("webhook: {error}")),
        }
    }
}

async fn send_lookups(proxy: Arc<Proxy>, seen: Arc<Mutex<Seen>>, stop: CancellationToken, token: String) {
    while !stop.is_cancelled() {
        let sent = proxy.send(|address| proxy.client.get(format!("http://{address}/auth/user")).bearer_auth(&token));
        let sent = sent.await;
        let mut seen = seen.lock().unwrap();
        match sent {
            Ok(()) => seen.lookups += 1,
            Err(error) => seen.refused.push(format!("lookup: {error}")),
        }
    }
}

struct Process {
    served: Served,
    upstream: Arc<Upstream>,
}

/// Three processes on one database behind a proxy.
pub(crate) struct Deployment {
    // Ended before their database.
    processes: Vec<Process>,
    proxy: Arc<Proxy>,
    workos: SimulatedWorkos,
    pub(crate) pool: PgPool,
    database: TestDatabase,
}

impl Deployment {
    /// Migrates with this binary, and starts three processes of it.
    pub(crate) async fn start(binary: &Path) -> Self {
        let database = TestDatabase::empty().await;
        let workos = another_workos(&Clock::system(), fastrand::u64(..), None).await;
        let pool = database.pool(2).await;
        let mut deployment = Self { processes: Vec::new(), proxy: Proxy::new(), workos, pool, database };
        deployment.migrate(binary).await;
        let bind = sqlx::query("insert into workos.environment (client_id) values ($1)");
        bind.bind(deployment.workos.client_id()).execute(&deployment.pool).await.unwrap();
        for _ in 0..3 {
            deployment.add(binary).await;
        }
        deployment
    }

    /// Runs `migrate`, which must succeed.
    pub(crate) async fn migrate(&self, binary: &Path) {
        let mut command = binary::clean(Command::new(binary));
        command.args(["migrate", "run"]).env("DATABASE_URL", self.database.url());
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        assert!(output.status.success(), "{}", binary::said(&output));
    }

    /// Starts a process, and waits until the proxy uses it.
    pub(crate) async fn add(&mut self, binary: &Path) {
        let port = self.workos.base_url().rsplit(':').next().unwrap().to_owned();
        let client_id = self.workos.client_id();
        // The timeout is long, so that a busy machine refuses no request.
        let settings =
            [("WORKOS_CLIENT_ID", client_id.as_str()), ("WORKOS_API_PORT", &port), ("AUTHKIT_SYNC_DB_TIMEOUT", "20s")];
        let mut command = Command::new(binary);
        command.arg("serve");
        let url = self.database.url();
        let served = tokio::task::block_in_place(|| Served::start_through(command, &url, &settings));
        let upstream = self.proxy.add(served.address);
        until("the new process is ready", async || upstream.is_ready.load(Ordering::SeqCst)).await;
        self.processes.push(Process { served, upstream });
    }

    /// Starts a process of this binary, takes the oldest process out of the proxy, and ends it after its open requests.
    pub(crate) async fn replace_oldest(&mut self, binary: &Path) {
        self.add(binary).await;
        let Process { mut served, upstream } = self.processes.remove(0);
        upstream.is_removed.store(true, Ordering::SeqCst);
        until("its requests are answered", async || upstream.in_flight.load(Ordering::SeqCst) == 0).await;
        let status = tokio::task::spawn_blocking(move || served.terminate()).await.unwrap();
        assert_eq!(status.code(), Some(0), "SIGTERM ends it well");
    }

    /// Waits until each process has answered more requests.
    pub(crate) async fn serves(&self) {
        for process in &self.processes {
            let answered = || process.upstream.answered.load(Ordering::SeqCst);
            let before = answered();
            until("every process answers", async || answered() >= before + ANSWERS).await;
        }
    }

    /// Sends an event, which must be acknowledged.
    pub(crate) async fn deliver(&self, event_type: &str, data: &Value) {
        let body = body(&unique("event"), event_type, 0, data);
        self.proxy.deliver(body).await.unwrap();
    }

    /// Runs a command of this release, which must succeed.
    pub(crate) async fn run(&self, arguments: &[&str]) {
        let mut command = binary::binary();
        command.args(arguments).env("DATABASE_URL", self.database.url());
        command.env("WORKOS_CLIENT_ID", self.workos.client_id());
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        assert!(output.status.success(), "{}", binary::said(&output));
    }

    /// Stores the user of the lookups, and starts the load.
    pub(crate) async fn load(&self) -> Load {
        let (seen, stop) = (Arc::new(Mutex::new(Seen::default())), CancellationToken::new());
        let id = unique("user");
        self.deliver("user.created", &user(&id, "Ada", 0)).await;
        let token = self.workos.token_with(json!({"sub": id, "sid": "session_1"}), 3_600).unwrap();
        let mut workers = JoinSet::new();
        for _ in 0..SENDERS {
            workers.spawn(send_webhooks(self.proxy.clone(), seen.clone(), stop.clone()));
        }
        for _ in 0..READERS {
            workers.spawn(send_lookups(self.proxy.clone(), seen.clone(), stop.clone(), token.clone()));
        }
        Load { stop, workers, seen }
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        self.proxy.polls.cancel();
    }
}

impl Load {
    /// Stops the load. Checks that no request was refused, and that every acknowledged event is stored and applied.
    pub(crate) async fn check(mut self, pool: &PgPool) {
        self.stop.cancel();
        while let Some(ended) = self.workers.join_next().await {
            ended.unwrap();
        }
        let seen = std::mem::take(&mut *self.seen.lock().unwrap());
        assert!(
            seen.refused.is_empty(),
            "refused {}: {:#?}",
            seen.refused.len(),
            &seen.refused[..seen.refused.len().min(5)]
        );
        let lost: i64 = sqlx::query_scalar(
            "select count(*) from unnest($1::text[]) as sent (id) where not exists
            (select from workos.events where events.id = sent.id and outcome in ('applied', 'stale'))",
        )
        .bind(&seen.acknowledged)
        .fetch_one(pool)
        .await
        .unwrap();
        assert_eq!(lost, 0, "acknowledged and not stored, of {}", seen.acknowledged.len());
        let stored: HashMap<String, String> =
            sqlx::query_as("select id, first_name from workos.users where starts_with(first_name, 'Name')")
                .fetch_all(pool)
                .await
                .unwrap()
                .into_iter()
                .collect();
        assert_eq!(stored, seen.names, "each user has the name of the last acknowledged event");
        println!("webhooks {}, lookups {}, refused 0, lost 0", seen.acknowledged.len(), seen.lookups);
    }
}
