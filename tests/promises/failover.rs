//! A URL with several hosts leads to the one that accepts writes, before and after a failover. Real servers: a primary and a streaming
//! standby. The figures of this machine:
//! `cargo test --test promises failover -- --nocapture --test-threads 1 | grep FIGURE`

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use authkit_sync::domain::clock::Clock;
use authkit_sync::domain::decide::Stored;
use authkit_sync::domain::event::Origin;
use authkit_sync::store::{Pool, Store, StoreError};
use authkit_sync::sync::apply;
use authkit_sync::workos::http::http_client;
use authkit_sync::workos::signature::Secret;
use authkit_sync::{AuthKit, Hosts, SecretError};
use bytes::Bytes;
use futures_util::future::join_all;
use serde_json::{Value, json};
use sqlx::Executor;
use tokio_util::sync::CancellationToken;

use crate::support::binary::{Served, free_address, run, said};
use crate::support::cluster::{Cluster, Path, pool};
use crate::support::database::TestDatabase;
use crate::support::events::{body, observed, unique, user};
use crate::support::lab::{another_workos, object};
use crate::support::pgbouncer::PgBouncer;
use crate::support::service::{Answer, CLIENT_ID, SECRET, until};

const KEY: &str = "a-service-key-of-the-test-0123456789";
const TIMEOUT: Duration = Duration::from_secs(30);

fn figure(text: &str) {
    println!("FIGURE {text}");
}

/// Requests of backends and of WorkOS, one after the other in each of them. Each records when it began and how it ended.
struct Load {
    served: Served,
    client: reqwest::Client,
    stop: CancellationToken,
    acknowledged: Mutex<Vec<String>>,
    answers: Mutex<Vec<(&'static str, Instant, u16)>>,
}

impl Load {
    fn on(served: Served) -> Self {
        let (client, stop) = (http_client().unwrap(), CancellationToken::new());
        Self { served, client, stop, acknowledged: Mutex::default(), answers: Mutex::default() }
    }

    fn note(&self, kind: &'static str, began: Instant, status: u16) {
        self.answers.lock().unwrap().push((kind, began, status));
    }

    async fn post(&self, body: &Bytes) -> u16 {
        let signature = Secret::new(SECRET).sign(Clock::system().now(), body);
        let request = self.client.post(self.served.url("/workos/webhook")).header("workos-signature", signature);
        let began = Instant::now();
        let status = request.body(body.clone()).send().await.unwrap().status().as_u16();
        self.note("webhook", began, status);
        status
    }

    /// Delivers events, each until it is acknowledged.
    async fn webhooks(&self) {
        while !self.stop.is_cancelled() {
            let id = unique("user");
            let body = body(&unique("event"), "user.created", 0, &user(&id, "Ada", 0));
            loop {
                match self.post(&body).await {
                    200 => break,
                    503 => tokio::time::sleep(Duration::from_millis(20)).await,
                    other => panic!("a webhook was answered {other}"),
                }
            }
            self.acknowledged.lock().unwrap().push(id);
        }
    }

    /// Reads users whose creation was acknowledged.
    async fn lookups(&self) {
        while !self.stop.is_cancelled() {
            let known = fastrand::choice(self.acknowledged.lock().unwrap().iter()).cloned();
            let Some(id) = known else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            let request = self.client.get(self.served.url(&format!("/user_management/users/{id}"))).bearer_auth(KEY);
            let began = Instant::now();
            let answer = Answer::of(request.send().await.unwrap()).await;
            self.note("lookup", began, answer.status);
            match answer.status {
                200 => assert_eq!(answer.json()["id"], json!(id)),
                503 => tokio::time::sleep(Duration::from_millis(20)).await,
                other => panic!("a lookup of an acknowledged user was answered {other}: {}", answer.text),
            }
        }
    }

    /// Returns how many requests of this kind that began after `since` were answered with this status.
    fn count(&self, kind: &str, since: Instant, status: u16) -> usize {
        let answers = self.answers.lock().unwrap();
        answers.iter().filter(|answer| answer.0 == kind && answer.1 >= since && answer.2 == status).count()
    }
}

async fn stored(cluster_server: &authkit_sync::dev::postgres::PrivatePostgres) -> Vec<String> {
    let pool = pool(cluster_server).await;
    sqlx::query_scalar("select id from workos.users").fetch_all(&pool).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_synchronous_replication_a_failover_under_load_loses_nothing_that_was_acknowledged() {
    let cluster = Cluster::start().await;
    cluster.replicate_synchronously().await;
    let keys = format!("test:{KEY}");
    let served = Served::start(&cluster.url(), free_address(), &[("AUTHKIT_SYNC_API_KEYS", keys.as_str())]);
    let load = Load::on(served);
    let failover = async {
        let start = Instant::now();
        until("both kinds are answered", async || load.count("lookup", start, 200) > 100).await;
        cluster.crash_primary();
        let crashed = Instant::now();
        cluster.promote_standby().await;
        let promoted = Instant::now();
        let first = async |kind| {
            until(&format!("a {kind} is answered again"), async || load.count(kind, promoted, 200) > 0).await;
            promoted.elapsed()
        };
        let (webhook, lookup) = tokio::join!(first("webhook"), first("lookup"));
        let refused = ["webhook", "lookup"].map(|kind| load.count(kind, start, 503));
        figure(&format!(
            "synchronous: promoted {:?} after the crash; the first webhook {webhook:?} and the first lookup {lookup:?} after the promotion; {} webhooks and {} lookups were answered 503 meanwhile",
            promoted - crashed,
            refused[0],
            refused[1]
        ));
        until("the load continues", async || load.count("webhook", promoted, 200) > 100).await;
        load.stop.cancel();
    };
    tokio::join!(load.webhooks(), load.webhooks(), load.webhooks(), load.lookups(), load.lookups(), failover);
    let (acknowledged, stored) = (load.acknowledged.into_inner().unwrap(), stored(&cluster.standby).await);
    let lost: Vec<_> = acknowledged.iter().filter(|id| !stored.contains(id)).collect();
    figure(&format!("synchronous: {} users were acknowledged, {} are lost", acknowledged.len(), lost.len()));
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    let log = load.served.log();
    assert!(log.contains("new connections use another host"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_asynchronous_replication_what_a_failover_lost_is_read_again_from_workos() {
    let cluster = Cluster::start().await;
    let workos = another_workos(&Clock::system(), fastrand::u64(..), None).await;
    let before = pool(&cluster.primary).await;
    sqlx::query("update workos.environment set client_id = $1")
        .bind(workos.client_id())
        .execute(&before)
        .await
        .unwrap();
    let (port, address) = (workos.base_url().rsplit(':').next().unwrap().to_owned(), free_address());
    workos.add_endpoint_for(&format!("http://{address}/workos/webhook"), SECRET, &[]);
    let (keys, client_id, api_key) = (format!("test:{KEY}"), workos.client_id(), workos.api_key());
    let settings = [
        ("AUTHKIT_SYNC_API_KEYS", keys.as_str()),
        ("WORKOS_CLIENT_ID", &client_id),
        ("WORKOS_API_KEY", &api_key),
        ("WORKOS_API_PORT", &port),
        ("AUTHKIT_SYNC_CATCH_UP", "on"),
        ("AUTHKIT_SYNC_CATCH_UP_INTERVAL", "1s"),
        ("AUTHKIT_SYNC_BACKFILL", "auto"),
    ];
    let served = Served::start(&cluster.url(), address, &settings);
    let create = |count| {
        for _ in 0..count {
            workos.create_user(&object(json!({"email": format!("{}@example.test", unique("user"))}))).unwrap();
        }
    };
    create(40);
    let count = async |pool: &sqlx::PgPool| -> i64 {
        sqlx::query_scalar("select count(*) from workos.users").fetch_one(pool).await.unwrap()
    };
    let after = pool(&cluster.standby).await;
    until("the standby has them", async || count(&after).await == 40).await;
    cluster.stop_replication().await;
    create(60);
    until("the primary has acknowledged them", async || count(&before).await == 100).await;
    let ask = async |path: &str| {
        Answer::of(http_client().unwrap().get(served.url(path)).bearer_auth(KEY).send().await.unwrap()).await
    };
    let position = ask("/changes?limit=1").await.json()["position"].as_str().unwrap().to_owned();
    cluster.crash_primary();
    let crashed = Instant::now();
    cluster.promote_standby().await;
    let promoted = Instant::now();
    let lost = 100 - count(&after).await;
    until("the table is complete again", async || count(&after).await == 100).await;
    figure(&format!(
        "asynchronous: promoted {:?} after the crash; {lost} acknowledged users were lost, and read again from WorkOS within {:?} after the promotion",
        promoted - crashed,
        promoted.elapsed()
    ));
    let mut at_workos: Vec<Value> = workos.users().iter().map(|user| user["id"].clone()).collect();
    let mut stored: Vec<Value> = stored(&cluster.standby).await.into_iter().map(Value::from).collect();
    at_workos.sort_by_key(Value::to_string);
    stored.sort_by_key(Value::to_string);
    assert_eq!(stored, at_workos);
    let follower = ask(&format!("/changes?after={position}")).await;
    assert_eq!(follower.code(), (410, "position_expired".to_owned()), "followers of lost changes start again");
}

fn hosts(url: &str) -> Hosts {
    url.parse::<Hosts>().unwrap().map(|options| options.application_name("service"))
}

fn store(url: &str) -> Store {
    store_within(url, TIMEOUT)
}

fn store_within(url: &str, timeout: Duration) -> Store {
    let pool = Pool::connect(hosts(url), 4, timeout);
    Store::new(pool.clone(), pool, CLIENT_ID, timeout)
}

async fn write(store: &Store) -> Result<String, StoreError> {
    let id = unique("user");
    apply(store, Origin::Webhook, &[observed("user.created", 0, &user(&id, "Ada", 0))]).await.map(|_| id)
}

/// The URL of hosts that are ports on this machine.
fn url(paths: &[&Path], wanted: &str) -> String {
    let hosts: Vec<String> = paths.iter().map(|path| path.address()).collect();
    format!("postgres://postgres:hunter2@{}/postgres?sslmode=disable&target_session_attrs={wanted}", hosts.join(","))
}

/// The network to the primary fails: no connection is closed, and none is answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_answers_nothing_any_more_is_left_for_the_promoted_standby() {
    let cluster = Cluster::start().await;
    let paths = [Path::to_server(&cluster.primary).await, Path::to_server(&cluster.standby).await];
    let store = store_within(&url(&[&paths[0], &paths[1]], "read-write"), Duration::from_secs(6));
    let earlier = write(&store).await.unwrap();
    let known = pool(&cluster.standby).await;
    until("the standby has the user", async || {
        let count: i64 = sqlx::query_scalar("select count(*) from workos.users").fetch_one(&known).await.unwrap();
        count == 1
    })
    .await;
    paths[0].cut();
    let cut = Instant::now();
    let refused = Arc::new(AtomicUsize::new(0));
    cluster.promote_standby().await;
    until("writes are accepted", async || {
        let accepted = write(&store).await.is_ok();
        refused.fetch_add(usize::from(!accepted), Ordering::SeqCst);
        accepted
    })
    .await;
    let refused = refused.load(Ordering::SeqCst);
    figure(&format!(
        "network: a write was accepted {:?} after the cut; {refused} attempts failed before",
        cut.elapsed()
    ));
    // The old primary is reachable again, and still accepts writes. Nothing leads there, also after connections were lost.
    paths[0].repair();
    let sessions = "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'service'";
    let ended: i64 = sqlx::query_scalar(sessions).fetch_one(&known).await.unwrap();
    assert!(ended > 0);
    until("writes are accepted", async || write(&store).await.is_ok()).await;
    let written = join_all((0..20).map(|_| write(&store))).await;
    let promoted = stored(&cluster.standby).await;
    for id in written.into_iter().map(Result::unwrap) {
        assert!(promoted.contains(&id) && matches!(store.user(&id).await, Ok(Stored::Live { .. })), "{id}");
    }
    assert_eq!(stored(&cluster.primary).await, [earlier]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_uses_the_writable_host_and_doctor_says_what_each_host_is() {
    let cluster = Cluster::start().await;
    let paths = [Path::to_server(&cluster.standby).await, Path::to_server(&cluster.primary).await];
    let (standby, primary) = (&paths[0], &paths[1]);
    let nowhere = free_address();
    let both = url(&[standby, primary], "read-write");
    let command = |arguments: &[&str], url: &str| {
        let environment = [("DATABASE_URL", url), ("WORKOS_CLIENT_ID", CLIENT_ID), ("AUTHKIT_SYNC_DB_TIMEOUT", "3s")];
        let output = run(arguments, &environment);
        assert!(!said(&output).contains("hunter2"), "{}", said(&output));
        (output.status.code().unwrap(), said(&output))
    };
    for wanted in ["read-write", "primary"] {
        let url = url(&[standby, primary], wanted);
        assert_eq!(command(&["migrate"], &url).0, 0, "a standby cannot be migrated");
        assert_eq!(command(&["events", "list"], &url).0, 0);
    }
    let check = |url: &str| {
        let (_, out) = command(&["doctor"], url);
        let mut lines = out.lines().skip_while(|line| !line.contains("database_hosts"));
        format!("{}\n{}", lines.next().unwrap(), lines.next().unwrap())
    };
    let (first, second) = (format!("{}/postgres", standby.address()), format!("{}/postgres", primary.address()));
    let said = check(&both);
    assert!(
        said.starts_with("ok ") && said.contains(&format!("{first} is a standby; {second} is the primary")),
        "{said}"
    );
    let said = check(&url(&[standby, primary], "any"));
    assert!(said.starts_with("warning") && said.contains("add target_session_attrs=read-write"), "{said}");
    let with_a_dead_host = both.replace(&standby.address(), &format!("{nowhere},{}", standby.address()));
    let said = check(&with_a_dead_host);
    assert!(said.starts_with("warning") && said.contains(&format!("{nowhere}/postgres cannot be used")), "{said}");
    assert!(said.contains("refused the connection"), "{said}");
    // Without a primary, each host is named with its reason.
    let without = with_a_dead_host.replace(&format!(",{}", primary.address()), "");
    let (code, said) = command(&["migrate"], &without);
    assert_eq!(code, 69, "{said}");
    for part in [
        "none of the hosts can be used",
        &format!("PostgreSQL at {nowhere}/postgres refused the connection"),
        &format!("PostgreSQL at {first} is read-only"),
        "promote a standby",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let (code, said) = command(&["migrate"], &url(&[standby], "read-write"));
    assert!(code == 69 && said.contains(&format!("PostgreSQL at {first} is read-only")), "{said}");
    let said = check(&without);
    assert!(said.starts_with("failure") && said.contains("no host accepts writes"), "{said}");
    cluster.promote_standby().await;
    let said = check(&both);
    assert!(said.starts_with("failure") && said.contains("2 hosts accept writes"), "{said}");
}

/// Each host has its own answer to whether a pooler is in between. With another host's answer, a statement could be executed in a
/// session where its name belongs to another client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whether_there_is_a_pooler_is_known_for_each_host() {
    let database = TestDatabase::new().await;
    let Some(bouncer) = PgBouncer::start(&database.options(), "transaction", "default_pool_size = 2") else { return };
    let direct = Path::to(&database.options()).await;
    let pooler = bouncer.options(&database.options());
    let url = format!(
        "postgres://{}@{},{}:{}/{}?sslmode=disable&target_session_attrs=read-write",
        pooler.get_username(),
        direct.address(),
        pooler.get_host(),
        pooler.get_port(),
        database.name()
    );
    let [one, other] = [(); 2].map(|()| store_within(&url, Duration::from_secs(6)));
    let known = write(&one).await.unwrap();
    assert!(!one.is_behind_pooler().await.unwrap() && !other.is_behind_pooler().await.unwrap());
    direct.cut();
    until("the pooler is used", async || one.user(&known).await.is_ok() && other.user(&known).await.is_ok()).await;
    assert!(one.is_behind_pooler().await.unwrap() && other.is_behind_pooler().await.unwrap());
    // More clients than sessions, and each prepares its own statements.
    let mixed = async |store: &Store| {
        for _ in 0..20 {
            let id = write(store).await.unwrap();
            assert!(matches!(store.user(&id).await.unwrap(), Stored::Live { .. }));
            assert!(matches!(store.user("user_unknown").await.unwrap(), Stored::Absent));
        }
    };
    tokio::join!(mixed(&one), mixed(&other), mixed(&one), mixed(&other), mixed(&one), mixed(&other));
    // Back to the first host: what was found out about the pooler does not apply to it.
    direct.repair();
    drop(bouncer);
    until("PostgreSQL is used", async || one.user(&known).await.is_ok() && other.user(&known).await.is_ok()).await;
    assert!(!one.is_behind_pooler().await.unwrap() && !other.is_behind_pooler().await.unwrap());
}

/// A host that was chosen as the primary becomes read-only, without an error of a connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_one_write_was_refused_no_connection_leads_to_the_demoted_host() {
    let cluster = Cluster::start().await;
    let store = store(&cluster.url());
    write(&store).await.unwrap();
    let old = pool(&cluster.primary).await;
    cluster.promote_standby().await;
    old.execute("alter system set default_transaction_read_only = on").await.unwrap();
    old.execute("select pg_reload_conf()").await.unwrap();
    until("the other host accepts writes", async || write(&store).await.is_ok()).await;
    let written = join_all((0..20).map(|_| write(&store))).await;
    let promoted = stored(&cluster.standby).await;
    assert!(written.into_iter().all(|id| promoted.contains(&id.unwrap())));
    until("no connection to the demoted host is open", async || {
        let open: i64 = sqlx::query_scalar("select count(*) from pg_stat_activity where application_name = 'service'")
            .fetch_one(&old)
            .await
            .unwrap();
        open == 0
    })
    .await;
}

/// The role changes on every host, so the next failover does not bring the previous one back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_login_of_every_host_is_replaced() {
    let cluster = Cluster::start().await;
    cluster.replicate_synchronously().await;
    pool(&cluster.primary)
        .await
        .execute(
            "create role service login; grant usage on schema workos to service;
             grant select, insert, update, delete on all tables in schema workos to service;
             grant usage, select on all sequences in schema workos to service;
             grant execute on all functions in schema workos to service",
        )
        .await
        .unwrap();
    let shared = Pool::connect(hosts(&cluster.url()), 4, TIMEOUT);
    let authkit = AuthKit::builder(shared.clone(), CLIENT_ID).build().unwrap();
    let store = Store::new(shared.clone(), shared, CLIENT_ID, TIMEOUT);
    write(&store).await.unwrap();
    let elsewhere = cluster.url().replace(&format!(",{}", cluster.standby.scratch().display()), "");
    let refused = authkit.set_database_login(hosts(&elsewhere)).await;
    assert!(matches!(&refused, Err(SecretError::Invalid(why)) if why.contains(" or /")), "{refused:?}");
    authkit.set_database_login(hosts(&cluster.url().replace("postgres@", "service@"))).await.unwrap();
    let roles = async |server| -> Vec<String> {
        write(&store).await.unwrap();
        let sql = "select distinct usename::text from pg_stat_activity where application_name = 'service'";
        sqlx::query_scalar(sql).fetch_all(&pool(server).await).await.unwrap()
    };
    until("the new role is used", async || roles(&cluster.primary).await == ["service"]).await;
    cluster.crash_primary();
    cluster.promote_standby().await;
    until("writes are accepted", async || write(&store).await.is_ok()).await;
    assert_eq!(roles(&cluster.standby).await, ["service"]);
}
