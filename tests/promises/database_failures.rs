//! Locks of other sessions, servers that are down or become read-only, and rebound databases: every wait ends, on the server too,
//! and nothing stops for good.

use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use authkit_sync::authkit::RunError;
use authkit_sync::dev::postgres::{Data, PrivatePostgres};
use authkit_sync::domain::decide::Stored;
use authkit_sync::domain::event::Origin;
use authkit_sync::store::Unfit;
use authkit_sync::store::handlers::HandlerMove;
use authkit_sync::store::pool::{MIN_CONNECTIONS, Pools};
use authkit_sync::store::{Pool, Store, StoreError, migrations};
use authkit_sync::sync::apply;
use futures_util::future::join_all;
use serde_json::json;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions, PgSslMode};
use sqlx::{Connection, Executor, PgConnection, Row};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::watch;

use crate::support::database::{TestDatabase, programs};
use crate::support::events::{body, observed, unique, user};
use crate::support::service::{CLIENT_ID, Service, store, until};

/// Sessions of the service in this database.
async fn sessions(admin: &PgPool, more: &str) -> Vec<i32> {
    let sql = format!(
        "select pid from pg_stat_activity
        where datname = current_database() and application_name = 'service' and {more}"
    );
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_all(admin).await.unwrap()
}

/// While the table of users is locked, lookups wait. Their sessions never exceed the size of the pool, and the server ends each of
/// them by itself.
async fn lookups_under_a_lock(pool_of: impl Fn(PgConnectOptions, Duration) -> Pool) {
    let database = TestDatabase::new().await;
    let admin = database.pool(2).await;
    let timeout = Duration::from_millis(200);
    let pool = pool_of(database.options().application_name("service"), timeout);
    let store = Store::new(pool.clone(), pool, CLIENT_ID, timeout);
    until("the database is found fit", async || store.check().await.is_ok()).await;
    let mut locker = admin.acquire().await.unwrap();
    let mut lock = locker.begin().await.unwrap();
    lock.execute("lock table workos.user_records in access exclusive mode").await.unwrap();
    for _ in 0..10 {
        let answers = join_all((0..9).map(|_| store.user("user_1"))).await;
        assert!(answers.iter().all(Result::is_err), "{answers:?}");
        let open = sessions(&admin, "true").await;
        assert!(open.len() <= 3, "a pool of three has {} sessions", open.len());
    }
    until("the server has ended every waiting statement", async || {
        sessions(&admin, "wait_event_type = 'Lock'").await.is_empty()
    })
    .await;
    lock.rollback().await.unwrap();
    until("lookups are answered again", async || matches!(store.user("user_1").await, Ok(Stored::Absent))).await;
}

#[tokio::test]
async fn a_lookup_that_times_out_leaves_no_session_behind_in_a_pool_of_ours() {
    lookups_under_a_lock(|options, timeout| Pool::connect(options, 3, timeout)).await;
}

#[tokio::test]
async fn a_lookup_that_times_out_leaves_no_session_behind_in_a_pool_of_an_application() {
    lookups_under_a_lock(|options, _| PgPoolOptions::new().max_connections(3).connect_lazy_with(options).into()).await;
}

#[tokio::test]
async fn statements_of_lookups_depend_on_no_session_setting() {
    let database = TestDatabase::new().await;
    let options = database.options().options([("search_path", "public"), ("statement_timeout", "0")]);
    let timeout = Duration::from_secs(7);
    let application = PgPoolOptions::new().max_connections(1).connect_lazy_with(options.clone());
    for pool in [Pool::connect(options, 1, timeout), application.into()] {
        let store = Store::new(pool.clone(), pool, CLIENT_ID, timeout);
        store.pause_handler("nobody", true).await.unwrap();
        let mut slow = PgConnection::connect_with(&database.options()).await.unwrap();
        let mut lock = slow.begin().await.unwrap();
        lock.execute("lock table workos.user_records in access exclusive mode").await.unwrap();
        let refused = store.user("user_1").await;
        assert!(matches!(refused, Err(StoreError::TimedOut(_))), "{refused:?}");
    }
}

/// A separate server, because the test makes the whole server read-only.
async fn private_server() -> (PrivatePostgres, PgPool, PgConnectOptions) {
    let programs = programs();
    let server = PrivatePostgres::start(programs, &Data::Temporary, &[]).unwrap();
    let options = PgConnectOptions::from_str(&server.url("postgres")).unwrap();
    let admin = PgPoolOptions::new().max_connections(2).connect_with(options.clone()).await.unwrap();
    migrations::run(&admin).await.unwrap();
    (server, admin, options.application_name("service"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_to_a_server_that_turned_read_only_are_closed_and_readiness_fails_meanwhile() {
    let (_server, admin, options) = private_server().await;
    let timeout = Duration::from_secs(20);
    let pool = Pool::connect(options, 4, timeout);
    let store = Store::new(pool.clone(), pool, CLIENT_ID, timeout);
    let write =
        async || apply(&store, Origin::Webhook, &[observed("user.created", 0, &user(&unique("user"), "Ada", 0))]).await;
    join_all((0..4).map(|_| write())).await.into_iter().for_each(|outcome| drop(outcome.unwrap()));
    let old = sessions(&admin, "true").await;
    assert!(old.len() > 1, "{old:?}");
    admin.execute("alter system set default_transaction_read_only = on").await.unwrap();
    admin.execute("select pg_reload_conf()").await.unwrap();
    until("a write is refused", async || matches!(write().await, Err(StoreError::Disconnected(_)))).await;
    assert!(matches!(store.ping().await, Err(StoreError::Disconnected(_))), "readiness looks for a writable server");
    let (handler, moved) = (async |_| Ok(()), HandlerMove::Feed { from: 0, to: 1 });
    let run = store.run_handler("nobody", timeout, handler, moved).await;
    assert!(matches!(run, Err(StoreError::Disconnected(_))), "this is no failure of the handler: {run:?}");
    let mut on_admin = admin.acquire().await.unwrap();
    on_admin.execute("set default_transaction_read_only = off").await.unwrap();
    on_admin.execute("alter system reset default_transaction_read_only").await.unwrap();
    on_admin.execute("select pg_reload_conf()").await.unwrap();
    drop(on_admin);
    until("the server can be written to again", async || store.ping().await.is_ok()).await;
    join_all((0..4).map(|_| write())).await.into_iter().for_each(|outcome| drop(outcome.unwrap()));
    until("no connection from before is left", async || {
        sessions(&admin, "true").await.iter().all(|pid| !old.contains(pid))
    })
    .await;
}

/// A proxy that can be cut. Open connections then get no response, and are not closed either.
async fn path_that_can_be_cut(database: &TestDatabase) -> (PgConnectOptions, watch::Sender<u32>) {
    let server = database.options();
    let socket = server.get_socket().expect("the test server listens on a socket");
    let socket = socket.join(format!(".s.PGSQL.{}", server.get_port()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let cuts = watch::Sender::new(0);
    let watched = cuts.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (mut cut, socket) = (watched.subscribe(), socket.clone());
            tokio::spawn(async move {
                let mut server = UnixStream::connect(socket).await.unwrap();
                let is_cut = tokio::select! {
                    is_cut = cut.changed() => is_cut.is_ok(),
                    _ = tokio::io::copy_bidirectional(&mut client, &mut server) => false,
                };
                if is_cut {
                    std::future::pending::<()>().await;
                }
            });
        }
    });
    let options = PgConnectOptions::new().host("127.0.0.1").port(port).ssl_mode(PgSslMode::Disable);
    (options.username(server.get_username()).database(database.name()), cuts)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_to_an_unreachable_server_are_closed_together() {
    let database = TestDatabase::new().await;
    let (options, cuts) = path_that_can_be_cut(&database).await;
    let timeout = Duration::from_secs(8);
    let pool = Pool::connect(options, 4, timeout);
    let store = Store::new(pool.clone(), pool.clone(), CLIENT_ID, timeout);
    store.check().await.unwrap();
    drop(join_all((0..4).map(|_| pool.connections().acquire())).await);
    until("four connections are idle", async || pool.connections().num_idle() == 4).await;
    cuts.send_modify(|cuts| *cuts += 1);
    // A connection that was used less than a second ago is not tested before it is used.
    let idle = Instant::now();
    until("they have been idle for longer", async || idle.elapsed() > Duration::from_millis(1_100)).await;
    let found = store.user("user_1").await;
    assert!(matches!(found, Ok(Stored::Absent)), "{found:?}");
}

/// Only a write notices that the server has become a standby. Lookups would return outdated data.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_one_pool_finds_unusable_is_unusable_for_all_pools_of_the_process() {
    let database = TestDatabase::new().await;
    let admin = database.pool(1).await;
    let timeout = Duration::from_secs(20);
    let pools = Pools::connect(database.options().application_name("service"), MIN_CONNECTIONS, timeout);
    let all = [&pools.webhooks, &pools.lookups, &pools.background, &pools.handlers];
    let connect = async || drop(join_all(all.map(|pool| pool.connections().acquire())).await);
    connect().await;
    let store = Store::new(pools.webhooks.clone(), pools.lookups.clone(), CLIENT_ID, timeout);
    store.check().await.unwrap();
    let old = sessions(&admin, "true").await;
    assert!(old.len() >= all.len(), "{old:?}");
    // A session on a server that has become read-only.
    pools.webhooks.connections().execute("set default_transaction_read_only = on").await.unwrap();
    until("a write is refused", async || matches!(store.ping().await, Err(StoreError::Disconnected(_)))).await;
    // A connection is closed when it would be used next.
    until("no connection from before is left in any pool", async || {
        connect().await;
        sessions(&admin, "true").await.iter().all(|pid| !old.contains(pid))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_database_is_down_concurrent_requests_share_one_check() {
    // Accepts connections and sends nothing, like a server that is being replaced.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let taken = Arc::new(AtomicUsize::new(0));
    let counted = taken.clone();
    let accepting = tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((stream, _)) = silent.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            open.push(stream);
        }
    });
    let options = PgConnectOptions::new().host("127.0.0.1").port(port).username("postgres").database("app");
    let timeout = Duration::from_millis(500);
    let pool = Pool::connect(options, 10, timeout);
    let store = Store::new(pool.clone(), pool, CLIENT_ID, timeout);
    let answers = join_all((0..50).map(|_| store.user("user_1"))).await;
    assert!(answers.iter().all(Result::is_err));
    assert_eq!(taken.load(Ordering::SeqCst), 1, "fifty callers, one check");
    accepting.abort();
}

/// Requests for `/readyz` need no signature. In any number, they leave connections for webhooks and actions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_readiness_requests_use_one_connection() {
    let database = TestDatabase::new().await;
    let admin = database.pool(2).await;
    let timeout = Duration::from_secs(20);
    let pool = Pool::connect(database.options().application_name("service"), 5, timeout);
    let store = Store::new(pool.clone(), pool.clone(), CLIENT_ID, timeout);
    store.ping().await.unwrap();
    drop(join_all((0..5).map(|_| pool.connections().acquire())).await);
    until("five connections are idle", async || pool.connections().num_idle() == 5).await;
    let since: String = sqlx::query_scalar("select clock_timestamp()::text").fetch_one(&admin).await.unwrap();
    let mut locker = admin.acquire().await.unwrap();
    let mut lock = locker.begin().await.unwrap();
    lock.execute("lock table workos.environment in access exclusive mode").await.unwrap();
    let asking = tokio::spawn(async move { join_all((0..50).map(|_| store.ping())).await });
    until("the server is asked", async || !sessions(&admin, "wait_event_type = 'Lock'").await.is_empty()).await;
    lock.rollback().await.unwrap();
    assert!(asking.await.unwrap().iter().all(Result::is_ok));
    assert_eq!(sessions(&admin, &format!("state_change > '{since}'")).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_of_the_old_client_id_changes_nothing_after_a_rebind_and_ends() {
    let database = TestDatabase::new().await;
    let pool = database.pool(8).await;
    let service = Service::start(&pool).await;
    assert_eq!(service.deliver(&body("event_1", "user.created", 0, &user("user_1", "Ada", 0))).await.status, 200);
    let old = store(&pool);
    assert!(old.hold_lease("backfill", "old").await.unwrap().held);
    let new = Store::new(pool.clone(), pool.clone(), "client_new", Duration::from_secs(20));
    assert_eq!(new.rebind().await.unwrap().as_deref(), Some(CLIENT_ID));
    let refused = |outcome: Result<(), StoreError>| {
        assert!(matches!(outcome, Err(StoreError::Unfit(Unfit::OtherClient { .. }))), "{outcome:?}");
    };
    refused(old.hold_lease("backfill", "old").await.map(drop));
    refused(old.accept_deletions().await);
    refused(apply(&old, Origin::Backfill, &[observed("user.created", 9, &user("user_2", "Eve", 9))]).await.map(drop));
    let ended = service.ended_after_a_delivery(&body("event_2", "user.created", 1, &user("user_3", "Bob", 1))).await;
    assert!(matches!(ended, Err(RunError::Unfit(Unfit::OtherClient { .. }))), "{ended:?}");
    assert!(new.deletions_accepted().await.unwrap(), "the permission is still there for the new environment");
    let users: Vec<String> =
        sqlx::query_scalar("select id from workos.user_records order by id").fetch_all(&pool).await.unwrap();
    assert_eq!(users, ["user_1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_write_of_the_old_client_id_commits_after_the_rebind() {
    let database = TestDatabase::new().await;
    let pool = database.pool(8).await;
    let old = store(&pool);
    // A write of the old client ID waits for this user, inside its transaction.
    let mut holding = pool.acquire().await.unwrap();
    let mut holder = holding.begin().await.unwrap();
    holder.execute("insert into workos.user_records (id) values ('user_1')").await.unwrap();
    let writing = tokio::spawn(async move {
        apply(&old, Origin::Webhook, &[observed("user.created", 0, &user("user_1", "Ada", 0))]).await
    });
    let waiting = async |what: &str| {
        let sql = "select count(*) from pg_locks where not granted and locktype = $1 and database is not distinct from
            (case when $1 = 'relation' then (select oid from pg_database where datname = current_database()) end)";
        sqlx::query_scalar::<_, i64>(sql).bind(what).fetch_one(&pool).await.unwrap() > 0
    };
    until("the write waits", async || waiting("transactionid").await).await;
    let new = Store::new(pool.clone(), pool.clone(), "client_new", Duration::from_secs(20));
    let rebinding = tokio::spawn(async move { new.rebind().await });
    until("the rebind waits for it", async || waiting("relation").await).await;
    holder.rollback().await.unwrap();
    assert!(writing.await.unwrap().is_ok(), "it began before the rebind");
    rebinding.await.unwrap().unwrap();
}

/// Any role that can connect to the database can take an advisory lock and keep it.
#[tokio::test]
async fn no_other_role_can_take_the_lock_of_the_client_id() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let mut stranger = PgConnection::connect_with(&database.options()).await.unwrap();
    stranger.execute("select pg_advisory_lock(1717921125, 0)").await.unwrap();
    store(&pool).hold_lease("backfill", "another process").await.unwrap();
    let locks = "select count(*) from pg_locks where locktype = 'advisory' and pid <> pg_backend_pid()
        and database = (select oid from pg_database where datname = current_database())";
    let held: i64 = sqlx::query_scalar(locks).fetch_one(&pool).await.unwrap();
    assert_eq!(held, 1, "only the stranger's");
}

#[tokio::test]
async fn until_workos_was_reached_once_nothing_is_recorded_and_webhooks_are_answered_503() {
    let database = TestDatabase::unbound().await;
    let pool = database.pool(6).await;
    let service = Service::start_without_keys(&pool).await;
    let event = body("event_1", "user.created", 0, &user("user_1", "Ada", 0));
    until("the database is found fit", async || service.get("/readyz").await.status == 200).await;
    let answer = service.deliver(&event).await;
    assert_eq!((answer.status, answer.header("retry-after").is_empty()), (503, false));
    let recorded = async || -> Option<String> {
        sqlx::query_scalar("select client_id from workos.environment").fetch_optional(&pool).await.unwrap()
    };
    assert_eq!(recorded().await, None);
    service.keys.away.store(false, Ordering::SeqCst);
    service.clock.set(service.clock.now().plus_seconds(60));
    until("the database is bound", async || recorded().await.as_deref() == Some(CLIENT_ID)).await;
    until("webhooks are taken", async || service.deliver(&event).await.status == 200).await;
    service.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_id_that_workos_does_not_know_is_not_recorded_and_ends_the_process() {
    let lab = crate::support::lab::Lab::new().await;
    let wrong = [("WORKOS_CLIENT_ID", "client_mistyped")];
    for command in [&["serve"][..], &["backfill"], &["rebind"]] {
        let (code, out, err) = lab.run_with(command, &wrong).await;
        assert!(code == 78 && err.contains("client_mistyped"), "{command:?}: {code} {out}{err}");
    }
    let recorded: Option<String> =
        sqlx::query_scalar("select client_id from workos.environment").fetch_optional(&lab.pool).await.unwrap();
    assert_eq!(recorded, None);
    let (code, out, err) = lab.run(&["backfill"]).await;
    assert_eq!(code, 0, "{out}{err}");
}

#[tokio::test]
async fn an_unbound_database_rejects_every_write() {
    let database = TestDatabase::new().await;
    let pool = database.pool(2).await;
    let store = store(&pool);
    store.check_bound().await.unwrap();
    pool.execute("delete from workos.environment").await.unwrap();
    let outcome = apply(&store, Origin::Webhook, &[observed("user.deleted", 0, &json!({"id": "user_1"}))]).await;
    assert!(matches!(outcome, Err(StoreError::Unbound)), "{outcome:?}");
}

/// sqlx does not roll a transaction back if its caller gives up between sending BEGIN and the response.
#[tokio::test]
async fn a_caller_that_gives_up_at_any_moment_leaves_no_transaction_open() {
    let database = TestDatabase::new().await;
    let pool = database.pool(1).await;
    let store = store(&pool);
    // In one simple query, because a prepared statement uses two different times.
    let is_outside = async || -> bool {
        let asked = sqlx::raw_sql("select transaction_timestamp() = statement_timestamp()").fetch_one(&pool);
        asked.await.unwrap().get(0)
    };
    let give_up = async |polls: usize, mut work: Pin<Box<dyn Future<Output = ()> + '_>>| {
        for _ in 0..polls {
            if futures_util::poll!(&mut work).is_ready() {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    // Also during the first check, for which other callers would wait.
    give_up(1, Box::pin(async { drop(store.user("user_1").await) })).await;
    assert!(is_outside().await);
    give_up(1, Box::pin(async { drop(store.pause_handler("nobody", true).await) })).await;
    assert!(is_outside().await);
    for polls in (1..600).step_by(7) {
        give_up(polls, Box::pin(async { drop(store.user("user_1").await) })).await;
        assert!(is_outside().await, "a lookup after {polls} polls");
        give_up(polls, Box::pin(async { drop(store.pause_handler("nobody", true).await) })).await;
        assert!(is_outside().await, "a write after {polls} polls");
        let handler = |_| std::future::ready(Ok(()));
        let moved = HandlerMove::Feed { from: 0, to: 1 };
        let run = async { drop(store.run_handler("nobody", Duration::from_secs(5), handler, moved).await) };
        give_up(polls, Box::pin(run)).await;
        assert!(is_outside().await, "a handler after {polls} polls");
    }
}
