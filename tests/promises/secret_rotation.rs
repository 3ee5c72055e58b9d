//! Secrets are replaced while the service runs, and no request is refused for it.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use authkit_sync::action_endpoint;
use authkit_sync::dev::postgres::PrivatePostgres;
use authkit_sync::dev::workos::SimulatedWorkos;
use authkit_sync::domain::clock::Clock;
use authkit_sync::store::Pool;
use authkit_sync::workos::http::http_client;
use authkit_sync::workos::signature::{Secret, SignatureHeader, WEBHOOK_TOLERANCE};
use authkit_sync::{ApiKey, AuthKit, SecretError};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::{Router, routing};
use bytes::Bytes;
use serde_json::{Value, json};
use sqlx::Executor;
use sqlx::postgres::{PgConnectOptions, PgPool};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::outage::own_server;
use crate::support::actions::{ACTION_SECRET, registration};
use crate::support::binary::{Served, free_address, signal};
use crate::support::database::TestDatabase;
use crate::support::events::{body, unique};
use crate::support::lab::{Lab, another_workos, object};
use crate::support::service::{Answer, CLIENT_ID, SECRET, http_ok, until};

/// A folder with secrets as Kubernetes mounts them: each file is a link into a folder that one link names, and an update replaces
/// that link.
struct Volume {
    folder: tempfile::TempDir,
    versions: Mutex<u32>,
}

impl Volume {
    fn new(secrets: &[(&str, &str)]) -> Self {
        let volume = Self { folder: tempfile::tempdir().unwrap(), versions: Mutex::new(0) };
        volume.publish(secrets);
        for (name, _) in secrets {
            symlink(Path::new("..data").join(name), volume.path(name)).unwrap();
        }
        volume
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn publish(&self, secrets: &[(&str, &str)]) {
        let mut versions = self.versions.lock().unwrap();
        *versions += 1;
        let version = format!("..version_{versions}");
        std::fs::create_dir(self.path(&version)).unwrap();
        for (name, secret) in secrets {
            write(&self.path(&version).join(name), secret);
        }
        symlink(&version, self.path("..next")).unwrap();
        std::fs::rename(self.path("..next"), self.path("..data")).unwrap();
    }

    /// The variables that name the files.
    fn environment(&self, secrets: &[(&str, &str)]) -> Vec<(String, String)> {
        let file = |name: &str| (format!("{name}_FILE"), self.path(name).to_str().unwrap().to_owned());
        secrets.iter().flat_map(|(name, _)| [((*name).to_owned(), String::new()), file(name)]).collect()
    }
}

fn write(path: &Path, secret: &str) {
    std::fs::write(path, format!("{secret}\n")).unwrap();
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
}

/// Starts the service with these settings, which override those of a test.
fn serve(database_url: &str, settings: &[(String, String)]) -> Served {
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    Served::start(database_url, free_address(), &settings)
}

async fn metric(served: &Served, sample: &str) -> u64 {
    let page = http_ok(&format!("http://{}/metrics", served.ops)).await;
    let line = page.lines().find_map(|line| line.strip_prefix(&format!("authkit_sync_{sample} ")).map(str::to_owned));
    line.map_or(0, |value| value.parse().unwrap())
}

async fn until_replaced(served: &Served, names: &[&str], times: u64) {
    for name in names {
        until(&format!("{name} is replaced"), async || {
            metric(served, &format!("secret_replacements_total{{setting=\"{name}\"}}")).await == times
        })
        .await;
    }
}

/// An event about an object of a kind that is not synced.
fn event() -> Bytes {
    body(&unique("event"), "connection.activated", 0, &json!({"id": "conn_1"}))
}

async fn post(served: &Served, path: &str, secret: &str, body: Bytes) -> Answer {
    let signature = Secret::new(secret).sign(Clock::system().now(), &body);
    let request = http_client().unwrap().post(served.url(path)).header("workos-signature", signature).body(body);
    Answer::of(request.send().await.unwrap()).await
}

async fn get(served: &Served, path: &str, key: &str) -> Answer {
    let request = http_client().unwrap().get(served.url(path)).bearer_auth(key);
    Answer::of(request.send().await.unwrap()).await
}

/// Sends requests one after the other until it is stopped. Returns the number of answers with 200, and the other answers.
async fn load(stop: &CancellationToken, request: impl AsyncFn() -> Answer) -> (usize, Vec<String>) {
    let (mut answered, mut refused) = (0, Vec::new());
    while !stop.is_cancelled() {
        let answer = request().await;
        if answer.status == 200 {
            answered += 1;
        } else {
            refused.push(format!("{}: {}", answer.status, answer.text));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    (answered, refused)
}

/// Asks for a verdict, and again while the answer is that the database was too slow. WorkOS waits for a verdict for about two seconds, so
/// the binary has a fixed deadline, which a busy machine exceeds with and without a rotation.
/// `rotating_what_an_action_needs_under_load_refuses_no_action` has more time, and no exemption.
async fn decide(served: &Served, secret: impl Fn() -> &'static str, action: Bytes) -> Answer {
    loop {
        let answer = post(served, "/workos/action", secret(), action.clone()).await;
        if answer.status != 503 || !answer.text.contains("the database did not answer in time") {
            return answer;
        }
    }
}

/// A server where the role `service` needs its password.
async fn server_with_passwords() -> (PrivatePostgres, PgPool) {
    let (server, pool) = own_server().await;
    let hba: String = sqlx::query_scalar("show hba_file").fetch_one(&pool).await.unwrap();
    let rules = std::fs::read_to_string(&hba).unwrap();
    // The newer method costs an unoptimized build much time for each connection.
    std::fs::write(&hba, format!("local all service md5\n{rules}")).unwrap();
    pool.execute("alter system set password_encryption = 'md5'").await.unwrap();
    pool.execute(
        "set password_encryption = 'md5';
         create role service login password 'old-password';
         grant usage on schema workos to service;
         grant select, insert, update, delete on all tables in schema workos to service;
         grant usage, select on all sequences in schema workos to service;
         grant execute on all functions in schema workos to service;
         select pg_reload_conf()",
    )
    .await
    .unwrap();
    let refused = url(&server.url("postgres"), "wrong-password");
    until("passwords are checked", async || PgPool::connect(&refused).await.is_err()).await;
    (server, pool)
}

fn url(url: &str, password: &str) -> String {
    url.replace("postgres://postgres@", &format!("postgres://service:{password}@"))
}

const NAMES: [&str; 5] =
    ["WORKOS_WEBHOOK_SECRET", "WORKOS_ACTION_SECRET", "AUTHKIT_SYNC_API_KEYS", "WORKOS_API_KEY", "DATABASE_URL"];

const OLD_KEY: &str = "old-service-key-of-at-least-32-characters";
const NEW_KEY: &str = "new-service-key-of-at-least-32-characters";

/// A service with every secret in a file, and the clients that send requests to it.
struct Rotating {
    server: PrivatePostgres,
    pool: PgPool,
    workos: SimulatedWorkos,
    volume: Volume,
    served: Served,
    /// The secrets that the clients use: webhook secret, action secret, service key.
    sender: Mutex<[&'static str; 3]>,
}

impl Rotating {
    async fn start() -> Self {
        let (server, pool) = server_with_passwords().await;
        let workos = another_workos(&Clock::system(), fastrand::u64(..), None).await;
        let client_id = workos.client_id();
        sqlx::query("update workos.environment set client_id = $1").bind(&client_id).execute(&pool).await.unwrap();
        let database = url(&server.url("postgres"), "old-password");
        let keys = format!("a:{OLD_KEY}");
        let values = ["old-webhook-secret", "old-action-secret", &keys, &workos.api_key(), &database];
        let secrets: Vec<(&str, &str)> = NAMES.into_iter().zip(values).collect();
        let volume = Volume::new(&secrets);
        let mut settings = volume.environment(&secrets);
        let port = workos.base_url().rsplit(':').next().unwrap();
        for (name, value) in [
            ("WORKOS_CLIENT_ID", client_id.as_str()),
            ("WORKOS_API_PORT", port),
            ("AUTHKIT_SYNC_READ_THROUGH", "on"),
            ("AUTHKIT_SYNC_CATCH_UP", "on"),
            ("AUTHKIT_SYNC_DB_TIMEOUT", "60s"),
        ] {
            settings.push((name.to_owned(), value.to_owned()));
        }
        let served = serve("", &settings);
        let sender = Mutex::new(["old-webhook-secret", "old-action-secret", OLD_KEY]);
        Self { server, pool, workos, volume, served, sender }
    }

    /// Publishes these webhook secrets, action secrets and service keys, and the new values of the others.
    fn publish(&self, [webhook, action, keys]: [&str; 3]) {
        let database = url(&self.server.url("postgres"), "new-password");
        let values = [webhook, action, keys, "sk_new", &database];
        self.volume.publish(&NAMES.into_iter().zip(values).collect::<Vec<_>>());
    }

    fn sender(&self) -> [&'static str; 3] {
        *self.sender.lock().unwrap()
    }

    async fn count(&self, endpoint: &str, secret: u8) -> u64 {
        let sample = format!("verified_signatures_total{{endpoint=\"{endpoint}\",secret=\"{secret}\"}}");
        metric(&self.served, &sample).await
    }

    async fn until_used(&self, endpoint: &str, secret: u8) {
        until(&format!("{endpoint} secret {secret} is used"), async || self.count(endpoint, secret).await > 0).await;
    }

    async fn rotate(&self) {
        let served = &self.served;
        self.until_used("webhook", 1).await;
        // Every receiver of a secret accepts the new one before it is used, except the database.
        self.workos.set_second_api_key(Some("sk_new"));
        let keys = format!("b:{NEW_KEY},a:{OLD_KEY}");
        self.publish(["new-webhook-secret,old-webhook-secret", "new-action-secret,old-action-secret", &keys]);
        until_replaced(served, &NAMES[..4], 1).await;
        let says = "the new value of DATABASE_URL";
        until("the database refuses the new password", async || served.log().contains(says)).await;
        self.until_used("webhook", 2).await;
        self.until_used("action", 2).await;
        self.workos.set_second_api_key(None);
        self.workos.set_api_key("sk_new");
        self.pool.execute("alter role service password 'new-password'").await.unwrap();
        *self.sender.lock().unwrap() = ["new-webhook-secret", "new-action-secret", NEW_KEY];
        until_replaced(served, &["DATABASE_URL"], 1).await;
        let sample = "service_key_requests_total{key=\"b\"}";
        until("the new key is used", async || metric(served, sample).await > 0).await;
        // The old secrets are removed.
        self.publish(["new-webhook-secret", "new-action-secret", &format!("b:{NEW_KEY}")]);
        until_replaced(served, &NAMES[..3], 2).await;
        let answered = self.count("webhook", 1).await;
        until("requests are answered", async || self.count("webhook", 1).await > answered + 20).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotating_every_secret_under_load_refuses_nothing() {
    let rotating = Rotating::start().await;
    let (served, stop) = (&rotating.served, CancellationToken::new());
    let webhooks = load(&stop, async || post(served, "/workos/webhook", rotating.sender()[0], event()).await);
    let actions = load(&stop, async || {
        decide(served, || rotating.sender()[1], registration(&unique("action"), "new@example.test")).await
    });
    let lookups = load(&stop, async || get(served, "/changes", rotating.sender()[2]).await);
    // Each user is only at WorkOS, so the service reads it with its API key.
    let reads = load(&stop, async || {
        let email = format!("{}@example.test", unique("user"));
        let user = rotating.workos.create_user(&object(json!({"email": email}))).unwrap();
        let path = format!("/user_management/users/{}", user["id"].as_str().unwrap());
        get(served, &path, rotating.sender()[2]).await
    });
    let rotation = async {
        rotating.rotate().await;
        stop.cancel();
    };
    let (webhooks, actions, lookups, reads, ()) = tokio::join!(webhooks, actions, lookups, reads, rotation);
    for (name, (answered, refused)) in
        [("webhooks", webhooks), ("actions", actions), ("lookups", lookups), ("reads", reads)]
    {
        assert!(refused.is_empty() && answered > 0, "{name}: {answered} answered, refused: {refused:?}");
        println!("{name}: {answered} answered");
    }
    assert_eq!(post(served, "/workos/webhook", "old-webhook-secret", event()).await.status, 401);
    assert_eq!(get(served, "/changes", OLD_KEY).await.status, 401);
    assert_eq!(metric(served, "secret_rejected{setting=\"DATABASE_URL\"}").await, 0);
    for secret in ["-secret", "service-key", "sk_", "-password"] {
        assert!(!served.log().contains(secret), "{}", served.log());
    }
}

/// The action secret and the login of the database, in a process that may take its time for a verdict.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotating_what_an_action_needs_under_load_refuses_no_action() {
    let (server, pool) = server_with_passwords().await;
    let login = |password: &str| url(&server.url("postgres"), password).parse::<PgConnectOptions>().unwrap();
    let patience = Duration::from_secs(120);
    let authkit = AuthKit::builder(Pool::connect(login("old-password"), 4, patience), CLIENT_ID)
        .action_secrets(vec![Secret::new("old-action-secret")])
        .database_timeout(patience)
        .action_deadline(patience)
        .build()
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/workos/action", listener.local_addr().unwrap());
    let router = authkit.router();
    tokio::spawn(async move { axum::serve(listener, router).await });
    let (stop, client, answered) = (CancellationToken::new(), http_client().unwrap(), AtomicUsize::new(0));
    let sender = Mutex::new("old-action-secret");
    let actions = load(&stop, async || {
        let action = registration(&unique("action"), "new@example.test");
        let secret = Secret::new(*sender.lock().unwrap());
        let request = client.post(&url).header("workos-signature", secret.sign(Clock::system().now(), &action));
        let answer = Answer::of(request.body(action).send().await.unwrap()).await;
        answered.fetch_add(1, Ordering::SeqCst);
        answer
    });
    let more = async || {
        let before = answered.load(Ordering::SeqCst);
        until("more actions are answered", async || answered.load(Ordering::SeqCst) > before + 20).await;
    };
    let rotation = async {
        more().await;
        let secrets = |names: &[&str]| names.iter().map(|name| Secret::new(*name)).collect::<Vec<_>>();
        authkit.set_action_secrets(secrets(&["new-action-secret", "old-action-secret"])).unwrap();
        *sender.lock().unwrap() = "new-action-secret";
        assert!(authkit.set_database_login(login("new-password")).await.is_err(), "the server does not accept it yet");
        more().await;
        pool.execute("alter role service password 'new-password'").await.unwrap();
        authkit.set_database_login(login("new-password")).await.unwrap();
        more().await;
        authkit.set_action_secrets(secrets(&["new-action-secret"])).unwrap();
        more().await;
        stop.cancel();
    };
    let ((answered, refused), ()) = tokio::join!(actions, rotation);
    assert!(refused.is_empty() && answered > 80, "{answered} answered, refused: {refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_password_closes_the_connections_of_the_previous_one() {
    let (server, pool) = server_with_passwords().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("url");
    write(&file, &url(&server.url("postgres"), "old-password"));
    let path = file.to_str().unwrap().to_owned();
    let served = serve("", &[("DATABASE_URL_FILE".to_owned(), path)]);
    until("an event is committed", async || post(&served, "/workos/webhook", SECRET, event()).await.status == 200)
        .await;
    let of_service = "select pid from pg_stat_activity where usename = 'service'";
    let before: Vec<i32> = sqlx::query_scalar(of_service).fetch_all(&pool).await.unwrap();
    assert!(!before.is_empty());
    pool.execute("alter role service password 'new-password'").await.unwrap();
    write(&file, &url(&server.url("postgres"), "new-password"));
    until_replaced(&served, &["DATABASE_URL"], 1).await;
    until("they are closed", async || {
        let now: Vec<i32> = sqlx::query_scalar(of_service).fetch_all(&pool).await.unwrap();
        now.iter().all(|pid| !before.contains(pid))
    })
    .await;
    assert_eq!(post(&served, "/workos/webhook", SECRET, event()).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_was_not_accepted_is_used_as_soon_as_the_previous_one_is_refused() {
    let (server, pool) = server_with_passwords().await;
    let login = |password: &str| url(&server.url("postgres"), password).parse::<PgConnectOptions>().unwrap();
    let connections = Pool::connect(login("old-password"), 2, Duration::from_secs(30));
    let authkit = AuthKit::builder(connections, CLIENT_ID).build().unwrap();
    authkit.position().await.unwrap();
    let refused = authkit.set_database_login(login("new-password")).await;
    assert!(matches!(refused, Err(SecretError::NotAccepted(_))), "{refused:?}");
    assert!(!format!("{refused:?}").contains("new-password"));
    pool.execute(
        "alter role service password 'new-password';
         select pg_terminate_backend(pid, 60000) from pg_stat_activity where usename = 'service'",
    )
    .await
    .unwrap();
    // The first call can get the closed connection. The second call opens another one.
    let _ = authkit.position().await;
    authkit.position().await.unwrap();
    authkit.set_database_login(login("new-password")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_of_another_database_or_of_a_role_without_rights_is_refused() {
    let (server, pool) = server_with_passwords().await;
    pool.execute("create role stranger login").await.unwrap();
    let login = |url: &str| url.parse::<PgConnectOptions>().unwrap();
    let own = server.url("postgres");
    let authkit = AuthKit::builder(Pool::connect(login(&own), 2, Duration::from_secs(30)), CLIENT_ID).build().unwrap();
    let problem = async |url: &str| match authkit.set_database_login(login(url)).await {
        Err(SecretError::Invalid(problem)) => problem,
        other => panic!("{other:?}"),
    };
    let text = problem(&server.url("template1")).await;
    assert!(text.contains("template1") && text.contains("restart the process"), "{text}");
    let text = problem(&own.replace("postgres://postgres@", "postgres://stranger@")).await;
    assert!(text.contains("the role stranger lacks privileges on the tables of the schema workos"), "{text}");
    authkit.position().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_secret_that_cannot_be_used_keeps_the_previous_one_and_is_reported() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("webhook");
    write(&file, "old-webhook-secret");
    let path = file.to_str().unwrap().to_owned();
    let settings = [
        ("WORKOS_WEBHOOK_SECRET".to_owned(), String::new()),
        ("WORKOS_WEBHOOK_SECRET_FILE".to_owned(), path.clone()),
        ("WORKOS_ACTION_SECRET".to_owned(), ACTION_SECRET.to_owned()),
        ("WORKOS_API_KEY".to_owned(), "sk_test".to_owned()),
    ];
    let served = serve(&database.url(), &settings);
    let rejected = async || {
        let page: Value = serde_json::from_str(&http_ok(&format!("http://{}/readyz", served.ops)).await).unwrap();
        page["rejected_secrets"].clone()
    };
    until("it is ready", async || post(&served, "/workos/webhook", "old-webhook-secret", event()).await.status == 200)
        .await;
    assert_eq!(rejected().await, json!({}));
    let gauge = "secret_rejected{setting=\"WORKOS_WEBHOOK_SECRET\"}";
    let is_kept = async |says: &str| {
        until(says, async || rejected().await["WORKOS_WEBHOOK_SECRET"].as_str().unwrap_or_default().contains(says))
            .await;
        assert_eq!(metric(&served, gauge).await, 1);
        assert_eq!(post(&served, "/workos/webhook", "old-webhook-secret", event()).await.status, 200);
        let log = served.log();
        let line = log.lines().rfind(|line| line.contains("so the service keeps the previous one")).unwrap();
        assert!(line.contains("ERROR") && line.contains(says) && line.contains(&path), "{line}");
    };
    write(&file, "sk_hunter2");
    is_kept("it must be the signing secret of the endpoint").await;
    write(&file, ACTION_SECRET);
    is_kept("contain the same secret").await;
    write(&file, "");
    is_kept("is empty; write the secret into it").await;
    std::fs::remove_file(&file).unwrap();
    is_kept("there is no file").await;
    write(&file, "new-webhook-secret");
    until_replaced(&served, &["WORKOS_WEBHOOK_SECRET"], 1).await;
    assert_eq!(rejected().await, json!({}));
    assert_eq!(metric(&served, gauge).await, 0);
    assert_eq!(post(&served, "/workos/webhook", "new-webhook-secret", event()).await.status, 200);
    assert!(!served.log().contains("hunter2") && !served.log().contains(ACTION_SECRET), "{}", served.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sighup_reads_the_secrets_of_the_dotenv_file_and_of_files_again() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    write(&file, "a:old-service-key-of-at-least-32-characters");
    let dotenv = |webhook: &str| {
        let path = file.display();
        let lines = format!("WORKOS_WEBHOOK_SECRET={webhook}\nAUTHKIT_SYNC_API_KEYS_FILE={path}\n");
        std::fs::write(folder.path().join(".env"), lines).unwrap();
    };
    dotenv("old-webhook-secret");
    let settings = [("WORKOS_WEBHOOK_SECRET", "")];
    let served = Served::start_in(folder.path(), &database.url(), free_address(), &settings);
    let status = async |secret: &str| post(&served, "/workos/webhook", secret, event()).await.status;
    until("it is ready", async || status("old-webhook-secret").await == 200).await;
    dotenv("new-webhook-secret,old-webhook-secret");
    write(&file, "b:new-service-key-of-at-least-32-characters");
    signal(&served.child, "HUP");
    until_replaced(&served, &["WORKOS_WEBHOOK_SECRET", "AUTHKIT_SYNC_API_KEYS"], 1).await;
    assert_eq!((status("old-webhook-secret").await, status("new-webhook-secret").await), (200, 200));
    assert_eq!(get(&served, "/changes", "new-service-key-of-at-least-32-characters").await.status, 200);
    until("the result is logged", async || served.log().contains("the secrets were read again")).await;
    // If the secret is missing or the file is malformed, nothing changes.
    for (content, says) in [("", "it is no longer set"), ("WORKOS_WEBHOOK_SECRET='x\n", "a line is malformed")] {
        std::fs::write(folder.path().join(".env"), content).unwrap();
        signal(&served.child, "HUP");
        until(says, async || served.log().contains(says)).await;
        assert_eq!(status("new-webhook-secret").await, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_key_that_workos_refuses_is_not_used() {
    let database = TestDatabase::unbound().await;
    let pool = database.pool(4).await;
    let workos = another_workos(&Clock::system(), fastrand::u64(..), None).await;
    let authkit = AuthKit::builder(pool, workos.client_id())
        .api_base(workos.base_url())
        .api_key(ApiKey::new(workos.api_key()))
        .build()
        .unwrap();
    let refused = authkit.set_api_key(ApiKey::new("sk_hunter2")).await;
    assert!(
        matches!(&refused, Err(SecretError::NotAccepted(why)) if why.contains("rejected the API key")),
        "{refused:?}"
    );
    assert!(!format!("{refused:?}").contains("hunter2"));
    workos.set_second_api_key(Some("sk_new"));
    authkit.set_api_key(ApiKey::new("sk_new")).await.unwrap();
}

#[tokio::test]
async fn a_secret_is_replaced_only_by_one_that_the_builder_would_accept_too() {
    let database = TestDatabase::new().await;
    let builder = |pool: &PgPool| AuthKit::builder(pool.clone(), CLIENT_ID);
    let pool = database.pool(1).await;
    let secrets = |text: &str| vec![Secret::new(text)];
    let key = "a-service-key-of-at-least-32-characters";
    let plain = builder(&pool).build().unwrap();
    let enabled = builder(&pool).webhook_secrets(secrets("one")).action_secrets(secrets("two")).service_key("a", key);
    let enabled = enabled.build().unwrap();
    for (outcome, says) in [
        (plain.set_webhook_secrets(secrets("new")), "was not enabled at the start"),
        (plain.set_action_secrets(secrets("new")), "was not enabled at the start"),
        (plain.set_service_keys([("a", key)]), "was not enabled at the start"),
        (plain.set_api_key(ApiKey::new("sk_new")).await, "was not enabled at the start"),
        (enabled.set_action_endpoint_secret(Secret::new(key)), "was not enabled at the start"),
        (enabled.set_webhook_secrets(Vec::new()), "a secret is empty"),
        (enabled.set_webhook_secrets(secrets("")), "a secret is empty"),
        (enabled.set_webhook_secrets(secrets("two")), "is also a webhook secret"),
        (enabled.set_action_secrets(secrets("one")), "is also a webhook secret"),
        (enabled.set_service_keys([]), "there is no service key"),
        (enabled.set_service_keys([("a", "short")]), "is shorter than 32 bytes"),
    ] {
        assert!(matches!(&outcome, Err(SecretError::Invalid(why)) if why.contains(says)), "{outcome:?}, not: {says}");
    }
    enabled.set_webhook_secrets(secrets("new")).unwrap();
    enabled.set_action_secrets(secrets("one")).unwrap();
    enabled.set_service_keys([("b", key)]).unwrap();
}

const OLD_ENDPOINT_SECRET: &str = "old-endpoint-secret-of-at-least-32-characters";
const NEW_ENDPOINT_SECRET: &str = "new-endpoint-secret-of-at-least-32-characters";

/// A decision endpoint that accepts both secrets, and counts the requests that each one signed.
async fn decision_endpoint(signed: Arc<[AtomicUsize; 2]>) -> String {
    let decide = async move |headers: HeaderMap, body: Bytes| {
        let now = Clock::system().now();
        for (secret, count) in [OLD_ENDPOINT_SECRET, NEW_ENDPOINT_SECRET].into_iter().zip(signed.iter()) {
            let header = headers.get(action_endpoint::HEADER).map(HeaderValue::as_bytes);
            let header = SignatureHeader::parse(header, now, WEBHOOK_TOLERANCE).unwrap();
            if header.verify(&[Secret::new(secret)], body.clone()).is_ok() {
                count.fetch_add(1, Ordering::SeqCst);
                return (StatusCode::OK, json!({"verdict": "allow"}).to_string());
            }
        }
        (StatusCode::UNAUTHORIZED, String::new())
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/decide", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/decide", routing::post(decide))).await });
    url
}

/// While the endpoint accepts both secrets, each action is decided by it, before, during and after the replacement.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_secret_of_the_decision_endpoint_is_replaced_under_load_and_every_action_is_decided_by_it() {
    let database = TestDatabase::new().await;
    let signed = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let url = decision_endpoint(signed.clone()).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    write(&file, OLD_ENDPOINT_SECRET);
    let settings = [
        ("WORKOS_ACTION_SECRET", ACTION_SECRET),
        ("AUTHKIT_SYNC_ACTION_URL", &url),
        ("AUTHKIT_SYNC_ACTION_URL_SECRET_FILE", file.to_str().unwrap()),
        ("AUTHKIT_SYNC_ACTION_URL_FAILURE", "deny"),
        ("AUTHKIT_SYNC_ACTION_URL_PRIVATE", "true"),
        ("AUTHKIT_SYNC_ACTION_URL_TIMEOUT", "1500ms"),
    ];
    let served = serve(&database.url(), &settings.map(|(name, value)| (name.to_owned(), value.to_owned())));
    until("it is ready", async || get(&served, "/readyz", "").await.status == 200).await;
    let stop = CancellationToken::new();
    let is_used = |secret: usize| signed[secret].load(Ordering::SeqCst) > 0;
    let denied = AtomicUsize::new(0);
    let actions = load(&stop, async || {
        let answer = decide(&served, || ACTION_SECRET, registration(&unique("action"), "a@b.test")).await;
        denied.fetch_add(usize::from(answer.status == 200 && !answer.text.contains("Allow")), Ordering::SeqCst);
        answer
    });
    let replacement = async {
        until("the old secret is used", async || is_used(0)).await;
        write(&file, NEW_ENDPOINT_SECRET);
        until_replaced(&served, &["AUTHKIT_SYNC_ACTION_URL_SECRET"], 1).await;
        until("the new secret is used", async || is_used(1)).await;
        let before = signed[0].load(Ordering::SeqCst);
        let after = signed[1].load(Ordering::SeqCst) + 20;
        until("actions are decided", async || signed[1].load(Ordering::SeqCst) > after).await;
        stop.cancel();
        before
    };
    let ((answered, refused), before) = tokio::join!(actions, replacement);
    assert!(refused.is_empty() && answered > 20, "{answered} answered, refused: {refused:?}");
    assert_eq!(denied.load(Ordering::SeqCst), 0, "{}", served.log());
    assert_eq!(signed[0].load(Ordering::SeqCst), before, "the old secret is not used any more");
    assert!(!served.log().contains("endpoint-secret"), "{}", served.log());
}

/// WorkOS accepts the key, but it belongs to another environment, which does not have our users.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_key_of_another_environment_is_reported_by_doctor_and_in_the_log_and_changes_nothing() {
    let lab = Lab::new().await;
    lab.create_users(10);
    lab.backfill().await;
    lab.free_leases().await;
    // Another WorkOS at the same address is another environment behind the same host name.
    let other = another_workos(&Clock::system(), 77, None).await;
    let port = other.base_url().rsplit(':').next().unwrap().to_owned();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("api-key");
    write(&file, &other.api_key());
    let jwks = format!("{}/sso/jwks/{}", lab.workos.base_url(), lab.workos.client_id());
    let settings = [
        ("WORKOS_CLIENT_ID", lab.workos.client_id()),
        ("WORKOS_API_PORT", port),
        ("WORKOS_API_KEY", String::new()),
        ("WORKOS_API_KEY_FILE", file.to_str().unwrap().to_owned()),
        ("WORKOS_JWKS_URL", jwks),
        ("AUTHKIT_SYNC_CATCH_UP", "on".to_owned()),
        ("AUTHKIT_SYNC_RECONCILE_INTERVAL", "1m".to_owned()),
    ];
    let more: Vec<(&'static str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let (code, out, err) = lab.run_with(&["doctor"], &more).await;
    assert_eq!(code, 1, "{out}{err}");
    let line = out.lines().find(|line| line.contains("workos_environment")).unwrap_or_else(|| panic!("{out}"));
    assert!(line.contains("FAIL") || line.contains("fail"), "{line}");
    assert!(out.contains(&format!("write it into the file {}", file.display())), "{out}");
    let owned: Vec<(String, String)> =
        settings.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    let served = serve(&lab.database.url(), &owned);
    until("the log names the key", async || served.log().contains("another environment")).await;
    assert_eq!(lab.count("select count(*) from workos.users").await, 10);
    assert!(!served.log().contains(&other.api_key()), "{}", served.log());
}
