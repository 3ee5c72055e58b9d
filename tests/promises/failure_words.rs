//! Every message about a failure of the database or of WorkOS says what failed, where, and what to do. Logs, commands and the
//! operator's listener contain it, answers to callers never do.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use authkit_sync::dev::postgres::{Data, PrivatePostgres};
use authkit_sync::dev::workos::ApiFaults;
use authkit_sync::domain::clock::Clock;
use authkit_sync::store::{Pool, Store, migrations};
use authkit_sync::workos::api::{Api, ApiKey};
use authkit_sync::workos::http::http_client;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, Executor};
use tokio::net::TcpListener;

use crate::support::binary::{Served, binary, free_address, run, said};
use crate::support::database::{TestDatabase, programs};
use crate::support::lab::Lab;
use crate::support::service::{CLIENT_ID, until};

/// A private server, whose `pg_hba.conf` requires a password from some roles and refuses other roles.
struct Server {
    server: PrivatePostgres,
    admin: PgPool,
}

impl Server {
    async fn start() -> Self {
        let programs = programs();
        let server = PrivatePostgres::start(programs, &Data::Temporary, &[]).unwrap();
        let admin = PgPoolOptions::new().max_connections(2).connect(&server.url("postgres")).await.unwrap();
        migrations::run(&admin).await.unwrap();
        for role in
            ["login password 'right'", "barred login", "crowd login connection limit 0", "reader login", "nologin"]
        {
            let name = role.split(' ').next().unwrap();
            let sql =
                if name == role { "create role sleeper nologin".to_owned() } else { format!("create role {role}") };
            admin.execute(AssertSqlSafe(sql.replace("role login", "role locked login"))).await.unwrap();
        }
        let rules = "local all locked scram-sha-256\nlocal all barred reject\nlocal all all trust\n";
        std::fs::write(server.scratch().join("data/pg_hba.conf"), rules).unwrap();
        admin.execute("select pg_reload_conf()").await.unwrap();
        Self { server, admin }
    }

    fn url(&self, role: &str, database: &str) -> String {
        self.server.url(database).replace("postgres://postgres@", &format!("postgres://{role}:hunter2@"))
    }

    fn folder(&self) -> &Path {
        self.server.scratch()
    }
}

/// Runs a command that needs the database. It must fail with 69, name every part, and not show the password.
fn fails(arguments: &[&str], url: &str, parts: &[&str]) {
    let output = run(arguments, &[("DATABASE_URL", url), ("AUTHKIT_SYNC_DB_TIMEOUT", "2s"), ("RUST_LOG", "trace")]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(69), "{parts:?}: {text}");
    let fatal = text.lines().find(|line| line.starts_with("authkit-sync ")).unwrap_or_else(|| panic!("{text}"));
    assert!(parts.iter().all(|part| fatal.contains(part)), "{parts:?} are not all in: {fatal}");
    assert!(!text.contains("hunter2"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_cannot_be_reached_is_described_with_its_address_and_the_fix() {
    let list = &["events", "list"][..];
    fails(
        list,
        "postgres://u:hunter2@127.0.0.1:1/app",
        &["PostgreSQL at 127.0.0.1:1/app refused the connection", "start PostgreSQL"],
    );
    fails(
        list,
        "postgres://u:hunter2@db.invalid:5432/app",
        &["host name of PostgreSQL at db.invalid:5432/app cannot be resolved", "DNS"],
    );
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    fails(
        list,
        &format!("postgres://u:hunter2@{address}/app?sslmode=disable"),
        &["did not complete the request in time", &address.to_string()],
    );
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = plain.local_addr().unwrap();
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        while let Ok((mut client, _)) = plain.accept().await {
            let mut request = [0; 8];
            let _ = client.read_exact(&mut request).await;
            // The answer of a server without TLS to a request for TLS.
            let _ = client.write_all(b"N").await;
        }
    });
    let url = format!("postgres://u:hunter2@{address}/app?sslmode=require");
    tokio::task::spawn_blocking(move || {
        fails(
            &["migrate"],
            &url,
            &["TLS with PostgreSQL at", &address.to_string(), "does not support TLS", "enable ssl"],
        );
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_refuses_the_role_is_described_with_the_role_and_the_fix() {
    let server = Server::start().await;
    let place = format!("{}:5432", server.folder().display());
    let list = &["events", "list"][..];
    for (role, database, parts) in [
        ("locked", "postgres", &["rejected the password of role locked", "correct the password in DATABASE_URL"][..]),
        ("nobody", "postgres", &["has no role nobody", "create role nobody login"]),
        ("sleeper", "postgres", &["role sleeper", "may not log in", "alter role sleeper login"]),
        ("barred", "postgres", &["pg_hba.conf of", "does not let role barred connect"]),
        ("postgres", "missing", &["has no database missing", "create database missing"]),
        ("crowd", "postgres", &["no free connection slot", "lower AUTHKIT_SYNC_DB_POOL"]),
        ("reader", "postgres", &["lacks a privilege on schema workos", "grant usage on schema workos to reader"]),
    ] {
        fails(list, &server.url(role, database), &[parts, &[&place]].concat());
    }
    server
        .admin
        .execute("grant usage on schema workos to reader; grant select on workos.migrations to reader")
        .await
        .unwrap();
    fails(
        list,
        &server.url("reader", "postgres"),
        &["on table contract", "grant select, insert, update, delete on workos.contract to reader"],
    );
    server.admin.execute("create database empty").await.unwrap();
    fails(
        &["migrate"],
        &server.url("reader", "empty"),
        &["on database empty", "create schema workos authorization reader"],
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_server_a_lock_and_a_full_disk_are_described_with_the_fix() {
    let database = TestDatabase::new().await;
    let admin = database.pool(2).await;
    let pause = &["handlers", "pause", "nobody"][..];
    let mut locker = admin.acquire().await.unwrap();
    let mut lock = locker.begin().await.unwrap();
    lock.execute("lock table workos.handlers in access exclusive mode").await.unwrap();
    let timed_out = run(pause, &[("DATABASE_URL", &database.url()), ("AUTHKIT_SYNC_DB_TIMEOUT", "1s")]);
    let text = said(&timed_out);
    assert!(timed_out.status.code() == Some(69) && text.contains("in time") | text.contains("timeout"), "{text}");
    assert!(text.contains("pg_stat_activity"), "{text}");
    lock.rollback().await.unwrap();
    drop(locker);
    admin
        .execute(
            "create function fail() returns trigger language plpgsql as $$ begin raise sqlstate '53100'; end $$;
            create trigger fail before update on workos.handlers for each statement execute function fail()",
        )
        .await
        .unwrap();
    fails(pause, &database.url(), &["the disk of PostgreSQL at", "is full", "free or add disk space"]);
    database.become_read_only().await;
    fails(pause, &database.url(), &["is read-only", "set DATABASE_URL to the primary"]);
}

/// The driver retries a refused connection until its timeout and then reports an exhausted pool.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exhausted_pool_and_a_stopped_server_are_distinguished() {
    let mut server = PrivatePostgres::start(programs(), &Data::Temporary, &[]).unwrap();
    let options = PgConnectOptions::from_str(&server.url("postgres")).unwrap();
    let admin = PgPoolOptions::new().max_connections(1).connect_with(options.clone()).await.unwrap();
    migrations::run(&admin).await.unwrap();
    let timeout = Duration::from_secs(2);
    let pool = Pool::connect(options, 2, timeout);
    let store = Store::new(pool.clone(), pool.clone(), CLIENT_ID, timeout);
    store.check().await.unwrap();
    let mut lock = admin.acquire().await.unwrap();
    lock.execute("begin; lock table workos.user_records in access exclusive mode").await.unwrap();
    let reads = futures_util::future::join_all((0..6).map(|_| store.user("user_1"))).await;
    let texts: Vec<String> = reads.into_iter().map(|read| read.unwrap_err().to_string()).collect();
    assert!(texts.iter().any(|text| text.contains("all 2 connections of the pool are in use")), "{texts:?}");
    lock.execute("rollback").await.unwrap();
    drop(lock);
    admin.close().await;
    until("a lookup works again", async || store.user("user_1").await.is_ok()).await;
    tokio::task::block_in_place(|| server.pause().unwrap());
    let mut texts = Vec::new();
    for _ in 0..3 {
        texts.push(store.user("user_1").await.unwrap_err().to_string());
    }
    assert!(texts.iter().any(|text| text.contains("start PostgreSQL")), "{texts:?}");
    assert!(texts.iter().all(|text| !text.contains("in use")), "{texts:?}");
}

/// The warnings and errors of the service in the log. The driver warns about slow statements on a busy machine.
fn complaints(log: &str) -> Vec<&str> {
    let is_complaint = |line: &&str| line.contains("ERROR authkit_sync") || line.contains("WARN authkit_sync");
    log.lines().filter(is_complaint).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unmigrated_database_is_reported_once_and_migrating_at_start_logs_no_error() {
    let lab = Lab::new().await;
    let empty = TestDatabase::empty().await;
    let url = empty.url();
    let (code, _, err) = lab.run_with(&["serve"], &[("DATABASE_URL", &url)]).await;
    assert_eq!((code, err.matches("pending migrations").count()), (78, 1), "{err}");
    assert!(complaints(&err).is_empty(), "{err}");
    let environment = lab.environment();
    let settings: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let defaults =
        [("AUTHKIT_SYNC_CATCH_UP", "on"), ("AUTHKIT_SYNC_BACKFILL", "auto"), ("AUTHKIT_SYNC_RECONCILE_INTERVAL", "1d")];
    let settings =
        [&settings[..], &defaults, &[("DATABASE_URL", &url), ("AUTHKIT_SYNC_LISTEN", "127.0.0.1:0")]].concat();
    let mut served = Served::start_with(&["serve", "--migrate"], &url, free_address(), &settings);
    until("the backfill has completed", async || {
        let pool = empty.pool(1).await;
        let done = sqlx::query_scalar("select exists (select from workos.scans where completed_at is not null)");
        done.fetch_one(&pool).await.unwrap_or(false)
    })
    .await;
    assert!(served.terminate().success());
    let log = served.log();
    assert!(complaints(&log).is_empty(), "{log}");
    let listening = log.lines().find(|line| line.contains("is listening")).unwrap();
    assert!(!listening.contains(" listen=127.0.0.1:0"), "the real port is logged: {listening}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_is_logged_once_with_its_address_which_no_caller_gets() {
    let url = "postgres://app:hunter2@127.0.0.1:1/customers";
    let key = "a-service-key-of-at-least-32-characters";
    let keys = format!("test:{key}");
    let settings = [("RUST_LOG", "trace"), ("AUTHKIT_SYNC_API_KEYS", &keys), ("AUTHKIT_SYNC_DB_TIMEOUT", "1s")];
    let mut served = Served::start(url, free_address(), &settings);
    let client = http_client().unwrap();
    for path in ["/changes", "/user_management/users", "/user_management/users/user_1", "/readyz", "/auth/user"] {
        for _ in 0..3 {
            let answer = client.get(served.url(path)).bearer_auth(key).send().await.unwrap();
            let text = answer.text().await.unwrap();
            assert!(!text.contains("127.0.0.1") && !text.contains("customers") && !text.contains("hunter2"), "{text}");
        }
    }
    let detail = client.get(format!("http://{}/readyz", served.ops)).send().await.unwrap().text().await.unwrap();
    assert!(detail.contains("127.0.0.1:1/customers refused the connection") && !detail.contains("hunter2"), "{detail}");
    assert!(served.terminate().success());
    let log = served.log();
    let errors: Vec<&str> = log.lines().filter(|line| line.contains("ERROR")).collect();
    assert!(errors.len() == 1 && errors[0].contains("refused the connection"), "{errors:?}");
    assert!(!log.contains("hunter2"), "the password is in the log");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_json_mode_every_line_of_every_command_is_json() {
    let lab = Lab::new().await;
    lab.create_users(3);
    let json = ("AUTHKIT_SYNC_LOG_FORMAT", "json");
    for (arguments, more, code) in [
        (&["backfill"][..], &[][..], 0),
        (&["backfill"], &[("WORKOS_API_KEY", "sk_wrong")][..], 78),
        (&["events", "list"], &[("DATABASE_URL", "postgres://u@127.0.0.1:1/app")], 69),
        (&["serve"], &[("WORKOS_CLIENT_ID", "sk_x")], 78),
        (&["serve", "--nonsense"], &[], 64),
        (&["user", "user_1"], &[], 1),
        (&["events", "show", "event_1"], &[("AUTHKIT_SYNC_CATCHUP", "1")], 1),
        (&["healthcheck", "--listen", "127.0.0.1:1"], &[("RUST_LOG", "off")], 1),
    ] {
        let (found, _, err) = lab.run_with(arguments, &[&[json][..], more].concat()).await;
        assert_eq!(found, code, "{arguments:?}: {err}");
        for line in err.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"));
            assert!(
                line["level"].is_string() && line["message"].is_string() && line["timestamp"].is_string(),
                "{line}"
            );
        }
        assert!(code == 0 || !err.is_empty(), "{arguments:?} says why it failed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_of_workos_names_the_host_and_the_cause() {
    let lab = Lab::new().await;
    let plain = lab.workos.base_url().replace("http://", "https://").replace("127.0.0.1", "localhost");
    let port = lab.workos.base_url().rsplit(':').next().unwrap().to_owned();
    let failed = async |base: &str| {
        let api = Api::new(base, ApiKey::new("sk_test"), Clock::system()).unwrap();
        api.users(None).await.unwrap_err().to_string()
    };
    for (base, parts) in [
        ("http://workos.invalid", &["WorkOS at workos.invalid failed", "host name cannot be resolved"][..]),
        ("http://127.0.0.1:1", &["WorkOS at 127.0.0.1:1 failed", "connection was refused"]),
        (plain.as_str(), &["WorkOS at localhost:", &port, "TLS"]),
        (
            lab.workos.base_url(),
            &["WorkOS at 127.0.0.1:", &port, "rejected the API key (status 401)", "WORKOS_API_KEY"],
        ),
    ] {
        let text = failed(base).await;
        assert!(parts.iter().all(|part| text.contains(part)), "{parts:?} are not all in: {text}");
    }
    lab.workos.set_api_faults(ApiFaults { error: 100, retry_after_s: Some(1), ..ApiFaults::default() });
    let text = failed(lab.workos.base_url()).await;
    assert!(text.contains(&port) && text.contains("it answered 503"), "{text}");
}

/// After one 429 no operator must act. After persistent failures an operator must.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_failure_of_workos_is_a_warning_and_a_persistent_one_an_error() {
    let lab = Lab::new().await;
    lab.workos.set_api_faults(ApiFaults { error: 100, ..ApiFaults::default() });
    let environment = lab.environment();
    let settings: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut served = Served::start(
        &lab.database.url(),
        free_address(),
        &[&settings[..], &[("AUTHKIT_SYNC_CATCH_UP", "on")]].concat(),
    );
    let lines = |level: &str| {
        let log = served.log();
        log.lines()
            .filter(|line| line.contains(level) && line.contains("catch_up"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    until("the job has failed three times", async || !lines("ERROR").is_empty()).await;
    assert_eq!((lines("WARN").len(), lines("ERROR").len()), (1, 1), "{}", served.log());
    lab.workos.set_api_faults(ApiFaults::default());
    until("the job has recovered", async || served.log().contains("a background job has recovered")).await;
    assert!(served.terminate().success());
}

#[test]
fn the_help_of_a_command_is_no_json() {
    let help = binary().args(["--help"]).env("AUTHKIT_SYNC_LOG_FORMAT", "json").output().unwrap();
    assert!(String::from_utf8_lossy(&help.stdout).contains("Exit codes"), "{help:?}");
}
