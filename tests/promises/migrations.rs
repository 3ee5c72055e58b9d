//! The schema in an application's database: alone, with other releases, and with objects of the application that depend on it.

use std::time::Duration;

use authkit_sync::authkit::RunError;
use authkit_sync::domain::event::Origin;
use authkit_sync::store::Unfit;
use authkit_sync::store::{Store, StoreError, migrations};
use serde_json::json;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{AssertSqlSafe, Executor, PgPool, SqlSafeStr};

use crate::support::binary;
use crate::support::database::TestDatabase;
use crate::support::events::{body, observed, user};
use crate::support::service::{CLIENT_ID, Service, store, until};

async fn tables(pool: &PgPool) -> Vec<String> {
    sqlx::query_scalar(
        "select format('%s.%s', schemaname, tablename) from pg_tables
        where schemaname not in ('pg_catalog', 'information_schema') order by 1",
    )
    .fetch_all(pool)
    .await
    .unwrap()
}

#[tokio::test]
async fn ten_replicas_migrate_an_empty_database_at_once() {
    let database = TestDatabase::empty().await;
    let pool = database.pool(20).await;
    let mut replicas = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let pool = pool.clone();
        replicas.spawn(async move { migrations::run(&pool).await });
    }
    let mut worked = 0;
    while let Some(applied) = replicas.join_next().await {
        let applied = applied.unwrap().unwrap();
        worked += usize::from(!applied.is_empty());
    }
    assert_eq!(worked, 1, "one does the work, the others find it done");
    assert_eq!(
        tables(&pool).await,
        [
            "workos.action_verdicts",
            "workos.catch_up",
            "workos.changes",
            "workos.contract",
            "workos.dismissals",
            "workos.environment",
            "workos.erasures",
            "workos.events",
            "workos.feed",
            "workos.feed_mark",
            "workos.handler_backlog",
            "workos.handlers",
            "workos.leases",
            "workos.migrations",
            "workos.organization_membership_records",
            "workos.organization_records",
            "workos.organization_role_records",
            "workos.permission_records",
            "workos.redaction",
            "workos.refreshes",
            "workos.replicas",
            "workos.revoked_sessions",
            "workos.role_lists",
            "workos.role_records",
            "workos.scans",
            "workos.sign_ins",
            "workos.user_records",
        ]
    );
    let (status, _) = migrations::status(&pool).await.unwrap();
    assert!(
        status.pending.is_empty() && status.newer.is_empty() && status.applied.len() == crate::support::migrations()
    );
}

#[tokio::test]
async fn status_writes_nothing_and_a_service_refuses_what_is_pending() {
    let database = TestDatabase::empty().await;
    let pool = database.pool(4).await;
    let (status, _) = migrations::status(&pool).await.unwrap();
    assert_eq!(status.pending.first().map(String::as_str), Some("0001 users"));
    assert!(tables(&pool).await.is_empty());
    let service = Service::start(&pool).await;
    // Before the migrations nothing is written. A service that has not stopped yet answers 503.
    let early = authkit_sync::sync::apply(
        &store(&pool),
        Origin::Webhook,
        &[observed("user.deleted", 0, &json!({"id": "user_1"}))],
    )
    .await;
    assert!(matches!(early, Err(StoreError::Unfit(Unfit::Pending(_)))), "{early:?}");
    let ended = tokio::time::timeout(Duration::from_secs(30), service.ended()).await.unwrap();
    assert!(matches!(&ended, Err(RunError::Unfit(Unfit::Pending(_)))), "{ended:?}");
    assert!(ended.unwrap_err().to_string().contains("authkit-sync migrate"), "the message names the command to run");
}

#[tokio::test]
async fn one_database_serves_one_environment() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    store(&pool).check().await.unwrap();
    store(&pool).check().await.unwrap();
    let other = Store::new(pool.clone(), pool.clone(), "client_other", Duration::from_secs(5));
    let refused = other.check().await.unwrap_err();
    assert!(
        matches!(&refused, StoreError::Unfit(Unfit::OtherClient { recorded, .. }) if recorded == CLIENT_ID),
        "{refused}"
    );
    assert!(other.user("user_1").await.is_err(), "and nothing is read through it");
}

#[tokio::test]
async fn an_older_release_serves_a_newer_schema_until_a_contract_forbids_it() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    // As after a newer release: an applied migration that this release does not know.
    pool.execute(
        "insert into workos.migrations (version, description, success, checksum, execution_time)
        values (9001, 'from the future', true, '', 0)",
    )
    .await
    .unwrap();
    pool.execute("alter table workos.user_records add column phone text").await.unwrap();
    let service = Service::start(&pool).await;
    assert_eq!(service.deliver(&body("event_1", "user.created", 0, &user("user_1", "Ada", 0))).await.status, 200);
    service.stop().await.unwrap();
    assert!(migrations::run(&pool).await.unwrap().is_empty(), "an older `migrate` leaves it alone");
    pool.execute("update workos.contract set version = 9001").await.unwrap();
    let refused = store(&pool).check().await.unwrap_err();
    assert!(matches!(refused, StoreError::Unfit(Unfit::TooNew { wanted: 9001, .. })), "{refused}");
}

#[tokio::test]
async fn a_changed_migration_is_refused_by_name() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    pool.execute("update workos.migrations set checksum = 'x' where version = 2").await.unwrap();
    let refused = migrations::run(&pool).await.unwrap_err().to_string();
    assert!(refused.contains("0002 was changed"), "{refused}");
    pool.execute("update workos.migrations set success = false where version = 2").await.unwrap();
    let refused = migrations::run(&pool).await.unwrap_err().to_string();
    assert!(refused.contains("0002 was interrupted"), "{refused}");
}

#[tokio::test]
async fn a_role_that_may_not_create_schemas_migrates_one_that_is_there() {
    let database = TestDatabase::empty().await;
    let admin = database.pool(2).await;
    let role = format!("{}_migrator", database.name());
    for sql in [
        format!("create role {role} login"),
        format!("create schema workos authorization {role}"),
        "create table public.notes (id int)".to_owned(),
    ] {
        admin.execute(AssertSqlSafe(sql)).await.unwrap();
    }
    let outcome = async {
        let pool = database.pool_with(2, |options| options.username(&role)).await;
        migrations::run(&pool).await.unwrap();
        let service = Service::start(&pool).await;
        let delivery = service.deliver(&body("event_1", "user.created", 0, &user("user_1", "Ada", 0))).await;
        service.stop().await.unwrap();
        pool.close().await;
        delivery.status
    }
    .await;
    let granted: bool = sqlx::query_scalar(
        "select has_schema_privilege('public', 'workos', 'usage')
        or has_function_privilege('public', 'workos.get_auth_user(text)', 'execute')",
    )
    .fetch_one(&admin)
    .await
    .unwrap();
    admin.execute(AssertSqlSafe(format!("drop owned by {role} cascade"))).await.unwrap();
    admin.execute(AssertSqlSafe(format!("drop role {role}"))).await.unwrap();
    assert_eq!(outcome, 200);
    assert!(!granted, "nothing is granted to public");
}

/// An application builds on the schema; deletions at WorkOS and migrations of ours must not break what it built.
#[tokio::test]
async fn an_applications_foreign_key_view_and_policy_survive() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    for sql in [
        "create table notes (id int primary key, user_id text collate \"C\" not null references workos.user_records (id), body text)",
        "create view notes_with_authors as select notes.body, users.name from notes join workos.users on users.id = notes.user_id",
        "alter table notes enable row level security",
        "create policy own_notes on notes using (user_id in (select id from workos.get_auth_user(current_setting('app.user', true))))",
    ] {
        pool.execute(sql).await.unwrap();
    }
    let service = Service::start(&pool).await;
    let too_early = pool.execute("insert into notes values (1, 'user_1', 'hello')").await;
    assert!(too_early.is_err(), "a foreign key waits for the user to be synced");
    assert_eq!(service.deliver(&body("event_1", "user.created", 0, &user("user_1", "Ada", 0))).await.status, 200);
    pool.execute("insert into notes values (1, 'user_1', 'hello')").await.unwrap();
    // A foreign-key check and a write of the service at the same time: neither waits for the other.
    let mut open = pool.acquire().await.unwrap();
    let mut open = sqlx::Connection::begin(&mut *open).await.unwrap();
    open.execute("insert into notes values (2, 'user_1', 'held open')").await.unwrap();
    assert_eq!(service.deliver(&body("event_2", "user.updated", 9, &user("user_1", "Grace", 9))).await.status, 200);
    assert_eq!(service.deliver(&body("event_3", "user.deleted", 10, &user("user_1", "Grace", 9))).await.status, 200);
    open.commit().await.unwrap();
    let notes: i64 = sqlx::query_scalar("select count(*) from notes").fetch_one(&pool).await.unwrap();
    let shown: i64 = sqlx::query_scalar("select count(*) from notes_with_authors").fetch_one(&pool).await.unwrap();
    assert_eq!((notes, shown), (2, 0), "the rows stay, the person is gone");
    assert!(migrations::run(&pool).await.unwrap().is_empty());
    service.stop().await.unwrap();
}

/// Runs `build` until its `create index concurrently` waits for a writer, and cancels it there: the index remains, invalid.
async fn interrupt<F>(pool: &PgPool, build: F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut writer = pool.acquire().await.unwrap();
    writer.execute("begin").await.unwrap();
    writer.execute("update workos.events set reason = null").await.unwrap();
    let building = tokio::spawn(build);
    until("the build waits for the writer", async || {
        let cancelled: Option<bool> = sqlx::query_scalar(
            "select pg_cancel_backend(pid) from pg_stat_activity
            where datname = current_database() and pid <> pg_backend_pid() and wait_event_type = 'Lock'
                and query ~ 'create index concurrently'",
        )
        .fetch_optional(pool)
        .await
        .unwrap();
        cancelled == Some(true)
    })
    .await;
    building.await.unwrap();
    writer.execute("rollback").await.unwrap();
}

pub(crate) async fn is_valid(pool: &PgPool, index: &str) -> Option<bool> {
    sqlx::query_scalar("select indisvalid from pg_index where indexrelid = to_regclass($1)")
        .bind(index)
        .fetch_optional(pool)
        .await
        .unwrap()
}

/// Our migrations, and one that builds an index outside a transaction.
pub(crate) fn with_index() -> Migrator {
    let sql = "-- no-transaction\n-- A test's index.\ncreate index concurrently if not exists events_reason on workos.events (reason)";
    let (kind, text) = (MigrationType::Simple, sql.into_sql_str());
    let mut migrator = migrations::migrator();
    migrator.migrations.to_mut().push(Migration::new(9000, "events reason".into(), kind, text, true));
    migrator
}

#[tokio::test]
async fn an_interrupted_index_build_is_reported_and_built_again() {
    let database = TestDatabase::new().await;
    let pool = database.pool(6).await;
    let index = "workos.events_reason";
    pool.execute("insert into workos.events (id, type, outcome) values ('event_1', 'user.created', 'applied')")
        .await
        .unwrap();
    let status = async || {
        let url = database.url();
        let run = move || binary::run(&["migrate", "status"], &[("DATABASE_URL", &url)]);
        let output = tokio::task::spawn_blocking(run).await.unwrap();
        (output.status.code().unwrap(), binary::said(&output))
    };
    let (code, said) = status().await;
    assert_eq!((code, said.contains("invalid")), (0, false), "{said}");

    // `migrate` is interrupted: nothing is recorded, and the invalid index is there.
    let other = pool.clone();
    interrupt(&pool, async move {
        let failed = migrations::run_migrator(&other, &with_index()).await.unwrap_err().to_string();
        assert!(failed.contains("9000 failed") && failed.contains("57014"), "{failed}");
    })
    .await;
    assert_eq!(is_valid(&pool, index).await, Some(false));
    let (code, said) = status().await;
    assert!(code == 1 && said.contains("invalid index workos.events_reason"), "{said}");
    let pending = migrations::status_of(&pool, &with_index()).await.unwrap().0.pending;
    assert_eq!(pending, ["9000 events reason"]);
    assert_eq!(migrations::run_migrator(&pool, &with_index()).await.unwrap(), ["9000 events reason"]);
    assert_eq!(is_valid(&pool, index).await, Some(true));

    // An earlier release accepted the invalid index, and recorded the migration.
    pool.execute("drop index workos.events_reason").await.unwrap();
    let other = pool.clone();
    interrupt(&pool, async move {
        let build = "create index concurrently events_reason on workos.events (reason)";
        other.execute(build).await.unwrap_err();
    })
    .await;
    assert_eq!(is_valid(&pool, index).await, Some(false));
    let (code, said) = status().await;
    assert!(code == 1 && !said.contains("pending") && said.contains("invalid index workos.events_reason"));
    assert_eq!(migrations::run_migrator(&pool, &with_index()).await.unwrap(), ["index events_reason"]);
    assert_eq!(is_valid(&pool, index).await, Some(true));
    assert_eq!(status().await.0, 0);

    // An invalid index of the application is reported, and not changed.
    let other = pool.clone();
    interrupt(&pool, async move {
        other.execute("create index concurrently theirs on workos.events (type)").await.unwrap_err();
    })
    .await;
    assert!(migrations::run_migrator(&pool, &with_index()).await.unwrap().is_empty());
    assert_eq!(is_valid(&pool, "workos.theirs").await, Some(false));
    let (code, said) = status().await;
    assert!(code == 1 && said.contains("invalid index workos.theirs"), "{said}");
}

/// An index that becomes invalid after its migration was recorded is not accepted either.
#[tokio::test]
async fn a_run_fails_when_an_index_of_its_migrations_is_invalid_in_the_end() {
    let database = TestDatabase::new().await;
    let pool = database.pool(2).await;
    for sql in [
        "create function spoil() returns trigger language plpgsql as $$
        begin
            update pg_index set indisvalid = false where indexrelid = 'workos.events_reason'::regclass;
            return null;
        end $$",
        "create trigger spoil after insert on workos.migrations execute function spoil()",
    ] {
        pool.execute(sql).await.unwrap();
    }
    let failed = migrations::run_migrator(&pool, &with_index()).await.unwrap_err().to_string();
    assert!(failed.contains("index workos.events_reason is invalid"), "{failed}");
    pool.execute("drop trigger spoil on workos.migrations").await.unwrap();
    assert_eq!(migrations::run_migrator(&pool, &with_index()).await.unwrap(), ["index events_reason"]);
}

#[tokio::test]
async fn a_migration_that_gets_no_lock_lets_others_continue_and_is_retried() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let sql = "set local lock_timeout = '500ms'; alter table workos.events add column more text";
    let (kind, text) = (MigrationType::Simple, sql.into_sql_str());
    let mut migrator = migrations::migrator();
    migrator.migrations.to_mut().push(Migration::new(9000, "more".into(), kind, text, false));
    let mut writer = pool.acquire().await.unwrap();
    writer.execute("begin; lock table workos.events in row exclusive mode").await.unwrap();
    let waits = async || -> bool {
        sqlx::query_scalar(
            "select exists (select from pg_locks where relation = 'workos.events'::regclass and not granted)",
        )
        .fetch_one(&pool)
        .await
        .unwrap()
    };
    let release = async {
        until("the migration waits for the writer", &waits).await;
        until("the migration gives way", async || !waits().await).await;
        writer.execute("rollback").await.unwrap();
    };
    let (applied, ()) = tokio::join!(migrations::run_migrator(&pool, &migrator), release);
    assert_eq!(applied.unwrap(), ["9000 more"]);
}

/// The runner drops and rebuilds an index by the name in its file.
#[test]
fn a_migration_outside_a_transaction_creates_exactly_one_index_of_our_schema() {
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let concurrently = text.matches("concurrently").count();
        let expected = usize::from(text.starts_with("-- no-transaction"));
        let shape = text.matches("\ncreate index concurrently if not exists ").count();
        assert!(path.ends_with("README.md") || (concurrently, shape) == (expected, expected), "{}", path.display());
        assert!(shape == 0 || text.contains(" on workos."), "{}", path.display());
    }
}
