//! The private PostgreSQL leaves no process and no file, also if its parent is killed.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use authkit_sync::dev::postgres::{Data, PrivatePostgres};
use sqlx::{Connection, Executor, PgConnection};

use crate::support::database::{TestDatabase, programs};
use crate::support::service::until;

fn alive(pid: &str) -> bool {
    // A zombie counts as ended: it only waits until its parent reads its status.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
        || (!Path::new("/proc/self").exists()
            && Command::new("kill").args(["-0", pid]).status().is_ok_and(|status| status.success()))
}

/// Not a test: the body of the child process that the next test kills.
#[test]
fn child_that_holds_a_server() {
    if std::env::var_os("HOLD_A_SERVER").is_none() {
        return;
    }
    let server = PrivatePostgres::start(programs(), &Data::Temporary, &[]).unwrap();
    println!("\nholding {} {}", server.pid().unwrap(), server.scratch().display());
    std::io::stdout().flush().unwrap();
    let mut forever = String::new();
    let _ = std::io::stdin().read_line(&mut forever);
}

#[tokio::test]
async fn a_killed_process_takes_its_server_and_its_files_along() {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "private_postgres::child_that_holds_a_server", "--nocapture"])
        .env("HOLD_A_SERVER", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let holding = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("holding ").map(str::to_owned));
    let holding = holding.expect("the child holds a server");
    let (pid, scratch) = holding.split_once(' ').unwrap();
    assert!(alive(pid) && Path::new(scratch).exists());
    child.kill().unwrap();
    child.wait().unwrap();
    until("the server has stopped", async || !alive(pid)).await;
    until("its files are gone", async || !Path::new(scratch).exists()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_data_survives_a_restart_and_another_version_is_refused_by_name() {
    // Below a directory that the server's own user can enter, which a root-only home is not.
    let folder = tempfile::Builder::new().prefix("authkit-sync-kept-").tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let data = Data::Persistent(folder.path().join("postgres"));
    let start = || tokio::task::block_in_place(|| PrivatePostgres::start(programs(), &data, &[]));
    let server = start().unwrap();
    let mut connection = PgConnection::connect(&server.url("postgres")).await.unwrap();
    connection.execute("create table kept (id int)").await.unwrap();
    let fsync: String = sqlx::query_scalar("show fsync").fetch_one(&mut connection).await.unwrap();
    assert_eq!(fsync, "on");
    connection.close().await.unwrap();
    let scratch = server.scratch().to_owned();
    drop(server);
    assert!(!scratch.exists());
    let server = start().unwrap();
    let mut connection = PgConnection::connect(&server.url("postgres")).await.unwrap();
    connection.execute("select from kept").await.unwrap();
    connection.close().await.unwrap();
    drop(server);
    std::fs::write(folder.path().join("postgres/PG_VERSION"), "9\n").unwrap();
    let refused = start().unwrap_err().to_string();
    assert!(
        refused.contains("PostgreSQL 9") && refused.contains(&format!("PostgreSQL {}", programs().major())),
        "{refused}"
    );
}

#[tokio::test]
async fn test_databases_do_not_sort_bytewise_so_that_our_ids_must() {
    let database = TestDatabase::new().await;
    let pool = database.pool(1).await;
    if let Err(error) = pool.execute("create collation probe (provider = icu, locale = 'en-US')").await {
        assert!(error.to_string().contains("ICU is not supported"), "{error}");
        let _ = writeln!(std::io::stderr(), "SKIPPED: this PostgreSQL has no ICU");
        return;
    }
    let ordered: bool = sqlx::query_scalar("select 'a' < 'B'").fetch_one(&pool).await.unwrap();
    let ours: bool = sqlx::query_scalar("select 'B' < 'a' collate \"C\"").fetch_one(&pool).await.unwrap();
    assert!(ordered && ours);
}

#[tokio::test]
async fn a_tests_database_is_dropped_with_it() {
    let other = TestDatabase::new().await;
    let pool = other.pool(1).await;
    let database = TestDatabase::new().await;
    let name = database.name().to_owned();
    // An open connection does not prevent the removal.
    let held = database.pool(1).await;
    drop(database);
    let left: i64 = sqlx::query_scalar("select count(*) from pg_database where datname = $1")
        .bind(&name)
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(left, 0);
    drop(held);
}
