//! Promise 8: our outages are 503, nothing is quarantined by them, and nothing needs a restart afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use authkit_sync::dev::postgres::{Data, PrivatePostgres};
use authkit_sync::domain::clock::Clock;
use authkit_sync::domain::decide::Stored;
use authkit_sync::store::migrations;
use authkit_sync::workos::http::http_client;
use authkit_sync::workos::signature::Secret;
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Executor};

use crate::support::binary::{Served, free_address};
use crate::support::database::{TestDatabase, programs};
use crate::support::events::{body, unique, user};
use crate::support::service::{Answer, CLIENT_ID, SECRET, Service, store, until};

pub(crate) async fn own_server() -> (PrivatePostgres, PgPool) {
    let programs = programs();
    let server = tokio::task::spawn_blocking(move || PrivatePostgres::start(programs, &Data::Temporary, &[]).unwrap())
        .await
        .unwrap();
    let pool = PgPoolOptions::new().max_connections(4).connect(&server.url("postgres")).await.unwrap();
    migrations::run(&pool).await.unwrap();
    // As after a first start that has reached WorkOS.
    sqlx::query("insert into workos.environment (client_id) values ($1)").bind(CLIENT_ID).execute(&pool).await.unwrap();
    (server, pool)
}

async fn post(client: &reqwest::Client, url: &str) -> (String, Answer) {
    let id = unique("event");
    let body = body(&id, "user.created", 0, &user(&unique("user"), "Ada", 0));
    let signature = Secret::new(SECRET).sign(Clock::system().now(), &body);
    let answer = client.post(url).header("workos-signature", signature).body(body).send().await.unwrap();
    (id, Answer::of(answer).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_stopped_under_load_is_503_and_comes_back_without_a_restart() {
    let (mut server, pool) = own_server().await;
    let served = Served::start(&server.url("postgres"), free_address(), &[("AUTHKIT_SYNC_DB_TIMEOUT", "2s")]);
    let client = http_client().unwrap();
    let url = served.url("/workos/webhook");
    let (stop, refused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (client, url, stop, refused) = (client.clone(), url.clone(), stop.clone(), refused.clone());
            tokio::spawn(async move {
                let mut taken = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    let (id, answer) = post(&client, &url).await;
                    match answer.status {
                        200 => taken.push(id),
                        503 => {
                            assert!(!answer.header("retry-after").is_empty());
                            refused.fetch_add(1, Ordering::SeqCst);
                        }
                        other => panic!("{other}: {}", answer.text),
                    }
                }
                taken
            })
        })
        .collect();
    until("events arrive", async || {
        sqlx::query_scalar::<_, i64>("select count(*) from workos.events").fetch_one(&pool).await.unwrap() > 20
    })
    .await;
    pool.close().await;
    tokio::task::block_in_place(|| server.pause().unwrap());
    until("the load is refused", async || refused.load(Ordering::SeqCst) > 0).await;
    let probe = |path: &'static str| async { client.get(served.url(path)).send().await.unwrap().status().as_u16() };
    assert_eq!((probe("/healthz").await, probe("/readyz").await), (200, 503));
    tokio::task::block_in_place(|| server.resume().unwrap());
    until("receipts are taken again", async || post(&client, &url).await.1.status == 200).await;
    until("it is ready again", async || probe("/readyz").await == 200).await;
    stop.store(true, Ordering::SeqCst);
    let mut taken = Vec::new();
    for worker in load {
        taken.extend(worker.await.unwrap());
    }
    let pool = PgPoolOptions::new().max_connections(2).connect(&server.url("postgres")).await.unwrap();
    let stored: Vec<String> = sqlx::query_scalar("select id from workos.events").fetch_all(&pool).await.unwrap();
    assert!(taken.iter().all(|id| stored.contains(id)), "acknowledged and lost");
    let quarantined: i64 = sqlx::query_scalar("select count(*) from workos.events where outcome = 'quarantined'")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(quarantined, 0);
    pool.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serve_waits_for_a_database_that_is_down_at_start() {
    let (mut server, pool) = own_server().await;
    pool.close().await;
    tokio::task::block_in_place(|| server.pause().unwrap());
    let mut served = Served::start(&server.url("postgres"), free_address(), &[("AUTHKIT_SYNC_DB_TIMEOUT", "1s")]);
    let client = http_client().unwrap();
    let url = served.url("/workos/webhook");
    assert_eq!(post(&client, &url).await.1.code(), (503, "database_unavailable".to_owned()));
    tokio::task::block_in_place(|| server.resume().unwrap());
    until("it takes events", async || post(&client, &url).await.1.status == 200).await;
    assert_eq!(served.terminate().code(), Some(0), "and SIGTERM ends it well");
}

#[tokio::test]
async fn idle_connections_leave_files_for_the_database() {
    let database = TestDatabase::new().await;
    let mut served = Served::start_with_files(320, &database.url(), free_address());
    assert!(served.log().contains("the limit of open files is low"), "{}", served.log());
    // As many connections as the kernel's queue accepts. The service has reached its own limit before.
    let mut idle = Vec::new();
    for _ in 0..150 {
        idle.push(tokio::net::TcpStream::connect(served.address).await.unwrap());
    }
    let ready = format!("http://{}/readyz", served.ops);
    let client = http_client().unwrap();
    until("the database is reached", async || {
        client.get(&ready).send().await.is_ok_and(|answer| answer.status().as_u16() == 200)
    })
    .await;
    drop(idle);
    until("callers are answered again", async || {
        client.get(served.url("/healthz")).send().await.is_ok_and(|answer| answer.status().as_u16() == 200)
    })
    .await;
    assert!(served.terminate().success());
}

#[tokio::test]
async fn a_read_only_server_is_503() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let service = Service::start(&pool).await;
    let known = body("event_1", "user.created", 0, &user("user_1", "Ada", 0));
    assert_eq!(service.deliver(&known).await.status, 200);
    database.become_read_only().await;
    let read_only = database.pool(4).await;
    let replica = Service::start(&read_only).await;
    let refused = replica.deliver(&body("event_2", "user.updated", 9, &user("user_1", "Grace", 9))).await;
    assert_eq!(refused.code(), (503, "database_unavailable".to_owned()));
    assert!(!refused.text.contains("25006"), "the caller hears only that it is ours");
    assert_eq!(replica.get("/readyz").await.status, 503, "no writable server is reached");
    assert!(matches!(store(&read_only).user("user_1").await.unwrap(), Stored::Live { .. }), "lookups go on");
    replica.stop().await.unwrap();
    service.stop().await.unwrap();
    let events: i64 = sqlx::query_scalar("select count(*) from workos.events").fetch_one(&pool).await.unwrap();
    assert_eq!(events, 1, "nothing was quarantined");
}

/// PostgreSQL raises SQLSTATE 53100 if the disk is full. Here a trigger raises it, because the test has no disk to fill.
#[tokio::test]
async fn a_full_disk_and_a_lost_privilege_are_503() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let service = Service::start(&pool).await;
    for (sqlstate, name) in [
        ("53100", "disk_full"),
        ("42501", "insufficient_privilege"),
        ("57014", "query_canceled"),
        ("XX000", "internal_error"),
    ] {
        let sql = format!(
            "create or replace function fail() returns trigger language plpgsql as $$ begin raise sqlstate '{sqlstate}' using message = 'Ada Quill'; end $$;
            create or replace trigger fail before insert on workos.events for each row execute function fail()"
        );
        pool.execute(AssertSqlSafe(sql)).await.unwrap();
        let answer =
            service.deliver(&body(&unique("event"), "user.created", 0, &user(&unique("user"), "Ada", 0))).await;
        assert_eq!(answer.code(), (503, "database_unavailable".to_owned()), "{name}");
        assert!(!answer.text.contains("Ada"), "{name}: {}", answer.text);
    }
    pool.execute("drop trigger fail on workos.events").await.unwrap();
    assert_eq!(service.deliver(&body("event_1", "user.created", 0, &user("user_1", "Ada", 0))).await.status, 200);
    let rows: (i64, i64) =
        sqlx::query_as("select (select count(*) from workos.events), (select count(*) from workos.user_records)")
            .fetch_one(&pool)
            .await
            .unwrap();
    assert_eq!(rows, (1, 1), "what failed left nothing");
    service.stop().await.unwrap();
}

/// A serialization failure is retried.
#[tokio::test]
async fn a_serialization_failure_is_retried() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let service = Service::start(&pool).await;
    pool.execute(
        "create sequence public.tries;
        create function fail_once() returns trigger language plpgsql as
        $$ begin if nextval('public.tries') < 3 then raise sqlstate '40001'; end if; return new; end $$;
        create trigger fail_once before insert on workos.events for each row execute function fail_once()",
    )
    .await
    .unwrap();
    assert_eq!(service.deliver(&body("event_1", "user.created", 0, &user("user_1", "Ada", 0))).await.status, 200);
    let tries: i64 = sqlx::query_scalar("select last_value from tries").fetch_one(&pool).await.unwrap();
    assert_eq!(tries, 3);
    service.stop().await.unwrap();
}
