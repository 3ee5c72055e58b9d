//! A database administrator runs the migrations manually, because the service's login may not change the schema.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use authkit_sync::store::migrations::{self, script::script as migration_script};
use sqlx::{AssertSqlSafe, Executor};

use crate::migrations::{is_valid, with_index};
use crate::support::binary::{Served, binary, free_address, said};
use crate::support::database::TestDatabase;
use crate::support::programs::required_program;
use crate::support::service::{CLIENT_ID, http_ok, until};

/// Runs a script with psql, which stops at the first error.
async fn psql(psql: &Path, url: &str, script: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("script.sql");
    std::fs::write(&file, script).unwrap();
    let mut command = Command::new(psql);
    command.args(["--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--file"]).arg(&file).arg(url);
    let output = finish(command).await;
    assert!(output.status.success(), "{}", said(&output));
}

async fn finish(mut command: Command) -> Output {
    command.stdin(Stdio::null());
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

/// Runs `migrate` of the real binary. Returns its exit code, stdout and all output.
async fn migrate(url: &str, arguments: &[&str]) -> (i32, String, String) {
    let mut command = binary();
    command.arg("migrate").args(arguments).env("DATABASE_URL", url);
    let output = finish(command).await;
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stdout).into_owned(), said(&output))
}

/// The schema as pg_dump writes it, without owners. `None` if this pg_dump is older than the server: it refuses newer ones.
async fn dump(pg_dump: &Path, database: &TestDatabase) -> Option<String> {
    let mut command = Command::new(pg_dump);
    command.env("LC_ALL", "C");
    command.args(["--schema-only", "--schema=workos", "--no-owner", "--no-privileges"]).arg(database.url());
    let output = finish(command).await;
    if said(&output).contains("server version mismatch") {
        let _ =
            writeln!(std::io::stderr(), "SKIPPED: pg_dump is older than the server, so the schemas are not compared");
        return None;
    }
    assert!(output.status.success(), "{}", said(&output));
    // Newer releases write a random key into these lines.
    let is_random = |line: &&str| line.starts_with("\\restrict") || line.starts_with("\\unrestrict");
    let text = String::from_utf8_lossy(&output.stdout);
    Some(text.lines().filter(|line| !is_random(line)).collect::<Vec<_>>().join("\n"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_was_migrated_with_psql_is_current_and_is_served() {
    let Some(program) = required_program("psql", "postgresql-client") else { return };
    let database = TestDatabase::empty().await;
    let admin = database.pool(2).await;
    let role = format!("{}_service", database.name());
    admin.execute(AssertSqlSafe(format!("create role {role} login"))).await.unwrap();
    let url = database.url().replace("postgres://postgres@", &format!("postgres://{role}@"));
    let (code, _, said) = migrate(&url, &[]).await;
    assert_eq!(code, 69, "{said}");
    assert!(said.contains(&format!("grant create on database {} to {role}", database.name())), "{said}");
    let (code, script, said) = migrate(&url, &["--sql"]).await;
    assert_eq!(code, 0, "{said}");
    assert_eq!(migrate(&url, &["status"]).await.0, 1, "--sql applies nothing");
    psql(&program, &database.url(), &script).await;
    let (code, _, said) = migrate(&url, &["status"]).await;
    assert_eq!((code, said.contains("pending")), (0, false), "{said}");
    let (code, _, said) = migrate(&url, &[]).await;
    assert_eq!((code, said.contains("no pending migrations")), (0, true), "{said}");
    // The next script only repeats roles and grants.
    let (_, script, _) = migrate(&url, &["--sql"]).await;
    assert!(!script.contains("create table workos.user_records"), "{script}");
    psql(&program, &database.url(), &script).await;
    if let Some(pg_dump) = required_program("pg_dump", "postgresql-client") {
        assert_eq!(dump(&pg_dump, &database).await, dump(&pg_dump, &TestDatabase::new().await).await);
    }
    sqlx::query("insert into workos.environment (client_id) values ($1)")
        .bind(CLIENT_ID)
        .execute(&admin)
        .await
        .unwrap();
    let served = Served::start(&url, free_address(), &[]);
    until("it is ready", async || reqwest_status(&served.url("/readyz")).await == 200).await;
    http_ok(&format!("http://{}/metrics", served.ops)).await;
    drop(served);
    admin.execute(AssertSqlSafe(format!("drop owned by {role}; drop role {role}"))).await.unwrap();
}

async fn reqwest_status(url: &str) -> u16 {
    let answer = authkit_sync::workos::http::http_client().unwrap().get(url).send().await;
    answer.map_or(0, |answer| answer.status().as_u16())
}

#[tokio::test]
async fn the_script_builds_an_index_outside_of_a_transaction() {
    let Some(program) = required_program("psql", "postgresql-client") else { return };
    let database = TestDatabase::new().await;
    let pool = database.pool(2).await;
    let script = migration_script(&pool, &with_index()).await.unwrap();
    psql(&program, &database.url(), &script).await;
    assert_eq!(is_valid(&pool, "workos.events_reason").await, Some(true));
    let (status, _) = migrations::status_of(&pool, &with_index()).await.unwrap();
    assert!(status.pending.is_empty(), "{:?}", status.pending);
    assert_eq!(migrations::run_migrator(&pool, &with_index()).await.unwrap(), Vec::<String>::new());
}
