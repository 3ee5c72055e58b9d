//! The table in SQL: the current caller, the rights of each role, and row-level security of an application.

use authkit_sync::domain::event::Origin;
use authkit_sync::store::roles;
use authkit_sync::sync::apply;
use serde_json::json;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Executor, PgPool};

use crate::support::database::TestDatabase;
use crate::support::events::{observed, unique, user};
use crate::support::service::store;

/// A transaction of a role, with the claims that PostgREST and Supabase would have set.
async fn become_caller(connection: &mut PgConnection, role: &str, claims: Option<&str>) {
    connection.execute("begin").await.unwrap();
    connection.execute(AssertSqlSafe(format!("set local role {role}"))).await.unwrap();
    if let Some(claims) = claims {
        let set = "select set_config('request.jwt.claims', $1, true)";
        sqlx::query(set).bind(claims).execute(&mut *connection).await.unwrap();
    }
}

async fn ids(connection: &mut PgConnection, sql: &'static str) -> Vec<String> {
    sqlx::query_scalar(sql).fetch_all(connection).await.unwrap()
}

/// Asserts that the statement is rejected for lack of a privilege.
async fn refused(connection: &mut PgConnection, sql: &str) {
    connection.execute("savepoint before").await.unwrap();
    let outcome = connection.execute(AssertSqlSafe(sql.to_owned())).await;
    let code = outcome.unwrap_err().as_database_error().and_then(|error| error.code().map(|code| code.into_owned()));
    assert_eq!(code.as_deref(), Some("42501"), "{sql}");
    connection.execute("rollback to savepoint before").await.unwrap();
}

/// Two live users and a deleted one.
async fn three_users(pool: &PgPool) -> [String; 3] {
    let users = [unique("user"), unique("user"), unique("user")];
    let created: Vec<_> = users.iter().map(|id| observed("user.created", 0, &user(id, "Ada", 0))).collect();
    apply(&store(pool), Origin::Webhook, &created).await.unwrap();
    apply(&store(pool), Origin::Webhook, &[observed("user.deleted", 9, &json!({"id": users[2]}))]).await.unwrap();
    users
}

fn claims(subject: &str) -> String {
    json!({"sub": subject, "role": "authenticated", "sid": "session_1"}).to_string()
}

#[tokio::test]
async fn the_caller_is_the_subject_of_its_claims_or_null() {
    let database = TestDatabase::new().await;
    let pool = database.pool(2).await;
    let [ada, _, gone] = three_users(&pool).await;
    roles::assert(&pool).await.unwrap();
    let mut connection = pool.acquire().await.unwrap();
    let deep = format!("{{\"sub\":\"{ada}\",\"x\":{}{}}}", "[".repeat(20_000), "]".repeat(20_000));
    let nul = format!("{{\"sub\":\"{ada}\\u0000\"}}");
    let (good, deleted) = (claims(&ada), claims(&gone));
    for (setting, subject, rows) in [
        (Some(good.as_str()), Some(ada.as_str()), 1),
        (Some(deleted.as_str()), Some(gone.as_str()), 0),
        (Some("{\"sub\":\"user_nobody\"}"), Some("user_nobody"), 0),
        (None, None, 0),
        (Some(""), None, 0),
        (Some("{"), None, 0),
        (Some("null"), None, 0),
        (Some("[1]"), None, 0),
        (Some("\"text\""), None, 0),
        (Some("{}"), None, 0),
        (Some("{\"sub\":\"\"}"), None, 0),
        (Some("{\"sub\":7}"), None, 0),
        (Some("{\"sub\":null}"), None, 0),
        (Some(nul.as_str()), None, 0),
        (Some(deep.as_str()), None, 0),
    ] {
        become_caller(&mut connection, "workos_end_user", setting).await;
        let found: Option<String> =
            sqlx::query_scalar("select workos.current_subject()").fetch_one(&mut *connection).await.unwrap();
        let shown = setting.map(|setting| setting.chars().take(60).collect::<String>());
        assert_eq!(found.as_deref(), subject, "{shown:?}");
        let own = ids(&mut connection, "select id from workos.current_auth_user()").await;
        assert_eq!(own.len(), rows, "{shown:?}");
        connection.execute("rollback").await.unwrap();
    }
}

/// PostgreSQL checks a foreign key as the owner of the referenced table, so a login that may reference one and create types can
/// run code as that owner.
#[tokio::test]
async fn no_role_includes_the_right_to_reference_users() {
    let database = TestDatabase::new().await;
    let pool = database.pool(1).await;
    assert!(roles::assert(&pool).await.unwrap().is_empty());
    let may_reference: bool = sqlx::query_scalar(
        "select has_column_privilege('workos_reader', 'workos.user_records', 'id', 'references')
            or has_column_privilege('workos_end_user', 'workos.user_records', 'id', 'references')",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert!(!may_reference);
}

/// An application's table with a foreign key and a policy, under three roles.
#[tokio::test]
async fn each_role_can_read_and_write_exactly_its_rows() {
    let database = TestDatabase::new().await;
    let pool = database.pool(3).await;
    let [ada, grace, gone] = three_users(&pool).await;
    assert!(roles::assert(&pool).await.unwrap().is_empty());
    let application = format!("{}_app", database.name());
    let make = format!(
        "create role {application} nologin in role workos_reader; create schema app authorization {application};
        grant references (id) on workos.user_records to {application}"
    );
    pool.execute(AssertSqlSafe(make)).await.unwrap();
    let mut connection = pool.acquire().await.unwrap();
    // The application creates its own table, with the rights of workos_reader and the right to reference users.
    become_caller(&mut connection, &application, None).await;
    connection
        .execute(
            "create table app.notes (
                id      bigint generated always as identity primary key,
                user_id text collate \"C\" not null references workos.user_records (id),
                body    text not null
            );
            create index on app.notes (user_id);
            alter table app.notes enable row level security;
            create policy own on app.notes to workos_end_user
                using (user_id = (select workos.current_subject()))
                with check (user_id = (select id from workos.current_auth_user()));
            grant usage on schema app to workos_end_user;
            grant select, insert on app.notes to workos_end_user",
        )
        .await
        .unwrap();
    let live = ids(&mut connection, "select id from workos.users order by id").await;
    assert_eq!(live, [ada.clone(), grace.clone()]);
    let found = format!("select id from workos.get_auth_user('{ada}')");
    assert_eq!(connection.fetch_all(AssertSqlSafe(found)).await.unwrap().len(), 1);
    for sql in ["select id from workos.user_records", "select id from workos.events", "delete from workos.users"] {
        refused(&mut connection, sql).await;
    }
    // A foreign key can reference a deleted user, but not an unknown one.
    for id in [&ada, &grace, &gone] {
        let insert = "insert into app.notes (user_id, body) values ($1, 'a note')";
        sqlx::query(insert).bind(id).execute(&mut *connection).await.unwrap();
    }
    connection.execute("commit").await.unwrap();
    // An end user can read only its own rows.
    become_caller(&mut connection, "workos_end_user", Some(&claims(&ada))).await;
    assert_eq!(ids(&mut connection, "select user_id from app.notes").await, std::slice::from_ref(&ada));
    assert_eq!(ids(&mut connection, "select id from workos.current_auth_user()").await, std::slice::from_ref(&ada));
    let own = format!("insert into app.notes (user_id, body) values ('{ada}', 'mine')");
    connection.execute(AssertSqlSafe(own)).await.unwrap();
    for sql in [
        format!("insert into app.notes (user_id, body) values ('{grace}', 'not mine')"),
        "select id from workos.users".to_owned(),
        "select id from workos.user_records".to_owned(),
        "select id from workos.events".to_owned(),
        "select client_id from workos.environment".to_owned(),
        format!("select id from workos.get_auth_user('{grace}')"),
    ] {
        refused(&mut connection, &sql).await;
    }
    connection.execute("rollback").await.unwrap();
    // Without claims, and with the claims of a deleted user, no row can be read or written.
    for setting in [None, Some(claims(&gone))] {
        become_caller(&mut connection, "workos_end_user", setting.as_deref()).await;
        let seen = ids(&mut connection, "select user_id from app.notes").await;
        assert!(seen.iter().all(|id| setting.is_some() && *id == gone));
        refused(&mut connection, &format!("insert into app.notes (user_id, body) values ('{gone}', 'late')")).await;
        connection.execute("rollback").await.unwrap();
    }
    drop(connection);
    pool.execute(AssertSqlSafe(format!(
        "drop schema app cascade; drop owned by {application}; drop role {application}"
    )))
    .await
    .unwrap();
}

#[tokio::test]
async fn a_policy_is_evaluated_once_and_uses_an_index() {
    let database = TestDatabase::new().await;
    let pool = database.pool(2).await;
    three_users(&pool).await;
    roles::assert(&pool).await.unwrap();
    pool.execute(
        "create table public.notes (id bigint primary key, user_id text collate \"C\" not null);
        insert into public.notes select n, 'user_' || n % 5000 from generate_series(1, 50000) as n;
        create index notes_user on public.notes (user_id);
        analyze public.notes;
        alter table public.notes enable row level security;
        create policy own on public.notes to workos_end_user using (user_id = (select workos.current_subject()));
        grant select on public.notes to workos_end_user",
    )
    .await
    .unwrap();
    let mut connection = pool.acquire().await.unwrap();
    become_caller(&mut connection, "workos_end_user", Some(&claims("user_7"))).await;
    let explain = "explain (analyze, timing off) select id from public.notes";
    let plan: Vec<String> = sqlx::query_scalar(explain).fetch_all(&mut *connection).await.unwrap();
    let plan = plan.join("\n");
    assert!(plan.contains("InitPlan") && plan.contains("notes_user") && !plan.contains("Seq Scan"), "{plan}");
    connection.execute("rollback").await.unwrap();
}

/// Ten replicas migrate and assert the roles concurrently. A role without the privilege gets the statements to run.
#[tokio::test]
async fn concurrent_replicas_assert_the_roles_and_report_missing_privileges() {
    let database = TestDatabase::new().await;
    let pool = database.pool(10).await;
    let mut replicas = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let pool = pool.clone();
        replicas.spawn(async move { roles::assert(&pool).await.unwrap() });
    }
    while let Some(refused) = replicas.join_next().await {
        assert!(refused.unwrap().is_empty());
    }
    let stranger = format!("{}_nobody", database.name());
    pool.execute(AssertSqlSafe(format!("create role {stranger} login"))).await.unwrap();
    let role = stranger.clone();
    let theirs = database.pool_with(1, move |options| options.options([("role", role)])).await;
    let refused = roles::assert(&theirs).await.unwrap();
    assert!(refused.contains(&"grant select on workos.users to workos_reader"), "{refused:?}");
    assert!(!refused.iter().any(|statement| statement.starts_with("create role")), "they are there: {refused:?}");
    theirs.close().await;
    pool.execute(AssertSqlSafe(format!("drop role {stranger}"))).await.unwrap();
    let mut connection = PgConnection::connect_with(&database.options()).await.unwrap();
    connection.execute("select 1").await.unwrap();
}

/// Prisma drops tables that it does not know, so the list in the guide must be complete.
#[tokio::test]
async fn the_guide_names_every_table_that_prisma_must_leave_alone() {
    let database = TestDatabase::new().await;
    let pool = database.pool(1).await;
    let tables = "select table_name::text from information_schema.tables
        where table_schema = 'workos' and table_type = 'BASE TABLE' order by 1";
    let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(&pool).await.unwrap();
    let guide = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/docs/reading.md")).unwrap();
    let list = guide.split("external: [").nth(1).unwrap().split(']').next().unwrap();
    let named = list.split('"').skip(1).step_by(2).map(|name| name.strip_prefix("workos.").unwrap().to_owned());
    assert_eq!(named.collect::<Vec<_>>(), tables);
    let guide = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/docs/architecture.md")).unwrap();
    for table in tables {
        assert!(guide.contains(&format!("`{table}`")), "the guide architecture lacks the table {table}");
    }
}
