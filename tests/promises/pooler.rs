//! Everything works behind a real PgBouncer in transaction mode, and no client ever gets the result of another client's statement.

use std::process::{Command, Stdio};
use std::time::Duration;

use authkit_sync::authkit::Builder;
use authkit_sync::domain::decide::Stored;
use authkit_sync::domain::event::Origin;
use authkit_sync::store::handlers::BoxError;
use authkit_sync::store::{Pool, Store, StoreError, Unfit, migrations};
use authkit_sync::sync::apply;
use authkit_sync::{Change, Tx};
use futures_util::future::join_all;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, Executor, Row};

use crate::support::application::{Application, note};
use crate::support::binary::{Served, binary, free_address, run, said};
use crate::support::database::TestDatabase;
use crate::support::events::{body, observed, unique, user};
use crate::support::pgbouncer::PgBouncer;
use crate::support::service::{CLIENT_ID, Service, until};

const TIMEOUT: Duration = Duration::from_secs(30);

/// Fewer sessions than clients, so that the clients always share them.
const TWO_SESSIONS: &str = "default_pool_size = 2";

/// The tests that always run through a pooler, too: beginnings of their names.
const THROUGH_A_POOLER: [&str; 12] = [
    "backfill::",
    "catch_up::",
    "changes::",
    "erasure::",
    "group_commit::",
    "grouped_reads::",
    "handlers::",
    "handlers_in_sql::",
    "inbox::",
    "leases::",
    "lookups::",
    "receiver::",
];

fn store(options: PgConnectOptions, size: u32) -> Store {
    let pool = Pool::connect(options, size, TIMEOUT);
    Store::new(pool.clone(), pool, CLIENT_ID, TIMEOUT)
}

/// Returns the value that this statement selects, over a direct connection.
async fn direct<T>(database: &TestDatabase, sql: &'static str) -> T
where
    T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
{
    let mut connection = PgConnection::connect_with(&database.options()).await.unwrap();
    sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap()
}

#[tokio::test]
async fn the_tests_of_the_promises_pass_through_a_pooler_in_transaction_mode() {
    const VARIABLE: &str = "AUTHKIT_SYNC_TEST_POOLER";
    let database = TestDatabase::new().await;
    if std::env::var_os(VARIABLE).is_some() || PgBouncer::start(&database.options(), "transaction", "").is_none() {
        return;
    }
    let mut tests = Command::new(std::env::current_exe().unwrap());
    tests.args(THROUGH_A_POOLER).args(["--test-threads", "2"]).env(VARIABLE, "transaction").env_remove("DATABASE_URL");
    let output = tokio::task::spawn_blocking(move || tests.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let passed = said(&output).lines().filter(|line| line.starts_with("test ") && line.ends_with(" ... ok")).count();
    assert!(passed > 80, "only {passed} tests ran: {}", said(&output));
}

#[tokio::test]
async fn a_pooler_in_statement_mode_is_refused_with_the_setting_to_use() {
    let database = TestDatabase::new().await;
    let Some(pooler) = PgBouncer::start(&database.options(), "statement", "") else { return };
    let refused = store(pooler.options(&database.options()), 4).check().await;
    assert!(matches!(refused, Err(StoreError::Unfit(Unfit::StatementPooler))), "{refused:?}");
    let url = pooler.url(&database.options());
    let commands: [(&[&str], i32); 4] =
        [(&["events", "list"], 78), (&["migrate"], 78), (&["migrate", "status"], 78), (&["status"], 1)];
    for (command, code) in commands {
        let out = run(command, &[("DATABASE_URL", &url), ("WORKOS_CLIENT_ID", CLIENT_ID)]);
        let said = said(&out);
        assert!(out.status.code() == Some(code) && said.contains("pool_mode = transaction"), "{command:?}: {said}");
    }
    let out = said(&run(&["doctor"], &[("DATABASE_URL", &url)]));
    assert!(out.contains("failure  database_pooler") && out.contains("pool_mode = transaction"), "{out}");
    let environment = [
        ("DATABASE_URL", url.as_str()),
        ("WORKOS_CLIENT_ID", CLIENT_ID),
        ("WORKOS_API_KEY", "sk_test_1"),
        ("AUTHKIT_SYNC_LISTEN", "127.0.0.1:0"),
        ("AUTHKIT_SYNC_OPS_LISTEN", "127.0.0.1:0"),
    ];
    let serve = binary().arg("serve").envs(environment).stderr(Stdio::null()).status();
    assert_eq!(serve.unwrap().code(), Some(78));
}

/// Each mode of a pooler, and no pooler.
#[tokio::test]
async fn doctor_says_whether_there_is_a_pooler() {
    let database = TestDatabase::new().await;
    let found = |url: String| said(&run(&["doctor"], &[("DATABASE_URL", &url)]));
    let out = found(database.direct_url());
    assert!(out.contains("without a pooler"), "{out}");
    for mode in ["transaction", "session"] {
        let Some(pooler) = PgBouncer::start(&database.options(), mode, TWO_SESSIONS) else { return };
        let out = found(pooler.url(&database.options()));
        assert!(
            out.contains("ok       database_pooler") && out.contains("every statement runs in a tran"),
            "{mode}: {out}"
        );
        let missing = found(pooler.url(&database.options().database("missing")));
        assert!(missing.contains("create database missing"), "{mode}: {missing}");
    }
}

#[tokio::test]
async fn no_client_ever_sees_the_result_of_another_ones_statement() {
    let database = TestDatabase::new().await;
    let Some(pooler) = PgBouncer::start(&database.options(), "transaction", TWO_SESSIONS) else { return };
    let through = pooler.options(&database.options());
    let users: Vec<String> = (0..40).map(|_| unique("user")).collect();
    // Each store acts as a separate process. An application's pool keeps prepared statements, and the application may keep some,
    // too.
    let application = PgPoolOptions::new().max_connections(4).connect_lazy_with(through.clone());
    let stores: Vec<Store> = vec![
        store(through.clone(), 4),
        store(through.clone(), 4),
        Store::new(application.clone(), application, CLIENT_ID, TIMEOUT),
    ];
    let rounds = 10;
    let work = users.iter().enumerate().map(|(at, id)| {
        let store = &stores[at % stores.len()];
        async move {
            for round in 0..rounds {
                // Statements in another order on each connection.
                if (at + round) % 3 == 0 {
                    let changes = store.changes(0, 1_000, 5).await;
                    assert!(changes.is_ok(), "{changes:?}");
                }
                let now = i64::try_from(round).unwrap() + 1;
                let name = format!("{id} {round}");
                let seen = observed("user.updated", now, &user(id, &name, now));
                assert!(
                    apply(store, Origin::Webhook, &[seen]).await.unwrap()[0].effect.outcome().as_str() == "applied"
                );
                match store.user(id).await.unwrap() {
                    Stored::Live { object, .. } => {
                        assert_eq!((&object.id, object.first_name.as_deref()), (id, Some(&*name)));
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    });
    join_all(work).await;
    // The written rows are correct, too, and no setting or statement of the service remains in a session.
    assert_eq!(direct::<i64>(&database, "select count(*) from workos.users where first_name = id || ' 9'").await, 40);
    let mut client = PgConnection::connect_with(&through).await.unwrap();
    for session in 0..6 {
        client.execute("begin").await.unwrap();
        let left = "select (select count(*) from pg_prepared_statements), current_setting('plan_cache_mode'),
            current_setting('enable_seqscan'), current_setting('search_path') like '%public%',
            (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid())";
        let row = client.fetch_one(left).await.unwrap();
        let left: (&str, &str, &str, &str, &str) = (
            row.try_get_unchecked(0).unwrap(),
            row.try_get_unchecked(1).unwrap(),
            row.try_get_unchecked(2).unwrap(),
            row.try_get_unchecked(3).unwrap(),
            row.try_get_unchecked(4).unwrap(),
        );
        assert_eq!(left, ("0", "auto", "on", "t", "0"), "session {session}");
        client.execute("rollback").await.unwrap();
    }
}

/// A pooler can be reconfigured while clients are connected.
#[tokio::test]
async fn a_pooler_may_switch_from_session_to_transaction_mode_at_any_time() {
    let database = TestDatabase::new().await;
    let Some(pooler) = PgBouncer::start(&database.options(), "session", "default_pool_size = 8") else { return };
    let store = store(pooler.options(&database.options()), 6);
    let users: Vec<String> = (0..12).map(|_| unique("user")).collect();
    let check = async |round: i64| {
        let one = async |id: &String| {
            let seen = observed("user.updated", round, &user(id, &format!("{id} {round}"), round));
            apply(&store, Origin::Webhook, &[seen]).await.unwrap();
            let found = store.user(id).await.unwrap();
            let Stored::Live { object, .. } = found else { panic!("{found:?}") };
            assert_eq!(object.first_name, Some(format!("{id} {round}")));
        };
        join_all(users.iter().map(one)).await;
    };
    for round in 1..5 {
        check(round).await;
    }
    pooler.switch_to("transaction", TWO_SESSIONS);
    for round in 5..20 {
        check(round).await;
    }
}

/// A direct address that leads to a pooler later: a new connection has a session that another connection has marked as its own.
#[tokio::test]
async fn a_new_connection_with_a_used_session_ends_the_use_of_sessions() {
    let database = TestDatabase::new().await;
    let Some(pooler) = PgBouncer::start(&database.options(), "transaction", "default_pool_size = 1") else { return };
    let mut other = PgConnection::connect_with(&pooler.options(&database.options())).await.unwrap();
    other.execute("set authkit_sync.session = 'own'").await.unwrap();
    let pool = Pool::connect(database.options(), 4, TIMEOUT);
    let store = Store::new(pool.clone(), pool.clone(), CLIENT_ID, TIMEOUT);
    store.check().await.unwrap();
    pool.connections().set_connect_options(pooler.options(&database.options()));
    let users: Vec<String> = (0..8).map(|_| unique("user")).collect();
    let create = async |id: &String| {
        let created = observed("user.created", 0, &user(id, "Ada", 0));
        apply(&store, Origin::Webhook, &[created]).await.unwrap();
    };
    join_all(users.iter().map(create)).await;
    let path: String = other.fetch_one("show search_path").await.unwrap().try_get_unchecked(0).unwrap();
    assert!(path.contains("public"), "{path}");
}

#[tokio::test]
async fn migrations_run_through_a_pooler_in_transaction_mode_one_at_a_time() {
    let database = TestDatabase::empty().await;
    let Some(pooler) = PgBouncer::start(&database.options(), "transaction", "default_pool_size = 8") else { return };
    let through = pooler.options(&database.options());
    let runs = join_all((0..3).map(|_| async {
        let pool = PgPoolOptions::new().max_connections(2).connect_lazy_with(through.clone());
        migrations::run(&pool).await.unwrap().len()
    }));
    let mut applied = runs.await;
    applied.sort_unstable();
    assert_eq!(applied, [0, 0, crate::support::migrations()]);
    let url = pooler.url(&database.options());
    for command in [&["migrate"][..], &["migrate", "status"]] {
        let out = run(command, &[("DATABASE_URL", &url)]);
        assert!(out.status.success(), "{command:?}: {}", said(&out));
    }
    let locks = "select count(*) from pg_locks where locktype = 'advisory'
        and database = (select oid from pg_database where datname = current_database())";
    assert_eq!(direct::<i64>(&database, locks).await, 0);
    let mut client = PgConnection::connect_with(&through).await.unwrap();
    let path: String = client.fetch_one("show search_path").await.unwrap().try_get_unchecked(0).unwrap();
    assert!(path.contains("public"), "{path}");
}

/// Writes created users, and fails for updates after its statements were prepared.
async fn fails_on_update(change: Change, mut tx: Tx) -> Result<(), BoxError> {
    sqlx::query("select $1::text").bind("first").execute(&mut *tx).await?;
    note("mirror", &change, &mut tx).await?;
    if change.kind.as_str() == "updated" {
        return Err("after its statements were prepared".into());
    }
    Ok(())
}

/// A handler's own statements are prepared with names, and each connection counts from the same number.
#[tokio::test]
async fn handlers_in_rust_run_through_a_pooler_in_transaction_mode() {
    let app = Application::new().await;
    let Some(pooler) = PgBouncer::start(&app.database.options(), "transaction", TWO_SESSIONS) else { return };
    let through = pooler.options(&app.database.options());
    let start =
        |pool: Pool| Service::start_on(pool, |builder: Builder| builder.on("mirror", "user.*", fails_on_update));
    let own = start(Pool::connect(through.clone(), 4, TIMEOUT)).await;
    let shared = start(PgPoolOptions::new().max_connections(4).connect_lazy_with(through).into()).await;
    app.registered("mirror").await;
    let users: Vec<String> = (0..10).map(|_| unique("user")).collect();
    for id in &users {
        app.create(id).await;
        app.rename(id, 10).await;
    }
    until("each user is created once", async || app.done("mirror").await.len() == users.len()).await;
    let failure = "select bool_and(message = 'after its statements were prepared') from workos.handler_backlog";
    until("each update has failed", async || app.status("mirror").await.unwrap().waiting >= 10).await;
    assert_eq!(direct::<Option<bool>>(&app.database, failure).await, Some(true));
    own.stop().await.unwrap();
    shared.stop().await.unwrap();
}

#[tokio::test]
async fn the_binary_serves_and_every_command_answers_behind_a_pooler_in_transaction_mode() {
    let database = TestDatabase::empty().await;
    let Some(pooler) = PgBouncer::start(&database.options(), "transaction", "default_pool_size = 3") else { return };
    let url = pooler.url(&database.options());
    let address = free_address();
    let served = Served::start_with(&["serve", "--migrate"], &url, address, &[]);
    let ready = format!("http://{}/readyz", served.address);
    let client = authkit_sync::workos::http::http_client().unwrap();
    until("the schema is migrated", async || {
        direct::<bool>(&database, "select to_regclass('workos.environment') is not null").await
    })
    .await;
    let bind = format!("insert into workos.environment (client_id) values ('{CLIENT_ID}') on conflict do nothing");
    let mut admin = PgConnection::connect_with(&database.options()).await.unwrap();
    until("migrations are complete", async || {
        direct::<i64>(&database, "select count(*) from workos.migrations").await
            == i64::try_from(crate::support::migrations()).unwrap()
    })
    .await;
    admin.execute(AssertSqlSafe(bind)).await.unwrap();
    until("it is ready", async || client.get(&ready).send().await.is_ok_and(|it| it.status() == 200)).await;
    let (event, id) = (unique("event"), unique("user"));
    let created = body(&event, "user.created", 0, &user(&id, "Ada", 0));
    let secret = authkit_sync::workos::signature::Secret::new(crate::support::service::SECRET);
    let now = authkit_sync::domain::clock::Clock::system().now();
    let request = client.post(format!("http://{address}/workos/webhook")).body(created.clone());
    let answer = request.header("WorkOS-Signature", secret.sign(now, &created)).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let listen = address.to_string();
    let environment =
        [("DATABASE_URL", url.as_str()), ("WORKOS_CLIENT_ID", CLIENT_ID), ("AUTHKIT_SYNC_LISTEN", listen.as_str())];
    for command in [
        &["migrate", "status"][..],
        &["events", "list"],
        &["events", "show", &event],
        &["events", "retry"],
        &["user", &id],
        &["handlers", "list"],
        &["healthcheck", "--ready"],
    ] {
        let out = run(command, &environment);
        assert_eq!(out.status.code(), Some(0), "{command:?}: {}", said(&out));
    }
    // The verdict of `status` covers more than the database.
    let out = said(&run(&["status"], &environment));
    assert!(!out.contains("unavailable"), "{out}");
}

/// A pooler in session mode, and one with the settings of the guide.
#[tokio::test]
async fn the_configuration_of_the_guide_and_session_mode_are_served() {
    let guide = include_str!("../../src/docs/operating.md");
    let block = guide.split("```ini").nth(1).unwrap().split("```").next().unwrap();
    // The test has another server and other credentials.
    let settings = block.split_once("[pgbouncer]").unwrap().1.lines();
    let settings: Vec<&str> =
        settings.filter(|line| !line.starts_with("listen_") && !line.starts_with("auth_")).collect();
    assert!(settings.contains(&"pool_mode = transaction"), "{settings:?}");
    let database = TestDatabase::new().await;
    for (mode, more) in [("transaction", &*settings.join("\n")), ("session", "default_pool_size = 10")] {
        let Some(pooler) = PgBouncer::start(&database.options(), mode, more) else { return };
        let (store, id) = (store(pooler.options(&database.options()), 4), unique("user"));
        apply(&store, Origin::Webhook, &[observed("user.created", 0, &user(&id, "Ada", 0))]).await.unwrap();
        assert!(matches!(store.user(&id).await.unwrap(), Stored::Live { .. }));
    }
}
