//! A database for each test: a clone of a migrated template, on a private temporary server of this test run, or on the server that
//! `DATABASE_URL` names. No database remains after a run, even if the run fails.

use std::ffi::OsString;
use std::io::Write;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use authkit_sync::dev::postgres::{Data, PrivatePostgres, Programs, default_folder};
use authkit_sync::store::migrations;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, Executor};

use super::pgbouncer;
use super::service::CLIENT_ID;

/// On the server of `DATABASE_URL`, only databases with this prefix are created and dropped.
const PREFIX: &str = "authkit_sync_test_";

/// With the value `packaged`, the tests run on the PostgreSQL of the pinned package, whichever version this machine has.
const VARIABLE: &str = "AUTHKIT_SYNC_TEST_POSTGRES";

fn is_packaged() -> bool {
    let value = std::env::var_os(VARIABLE).unwrap_or_default();
    assert!(value.is_empty() || value == "packaged", "{VARIABLE} is {value:?}; set it to packaged, or remove it");
    !value.is_empty()
}

/// Prints a line also if the test passes. The test runner would hide the output of eprintln!.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// PostgreSQL's programs: those of this machine, or downloaded ones.
pub(crate) fn programs() -> Programs {
    static PROGRAMS: OnceLock<Programs> = OnceLock::new();
    let find = || {
        if is_packaged() { Programs::fetch_into(&default_folder()?, say) } else { Programs::find_or_fetch(say) }
    };
    PROGRAMS.get_or_init(|| find().unwrap_or_else(|error| panic!("{error}"))).clone()
}

/// Returns `PATH` for child processes, which may look for PostgreSQL's programs, too.
pub(crate) fn path() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !is_packaged() {
        return path;
    }
    let folders = std::iter::once(programs().bin().to_owned()).chain(std::env::split_paths(&path));
    std::env::join_paths(folders).unwrap()
}

/// The server of this run.
struct Server {
    /// The private server, unless `DATABASE_URL` is set. A watchdog stops it after the run, because statics are not dropped.
    private: Option<PrivatePostgres>,
    options: PgConnectOptions,
    /// Part of the names of this run's databases. A session holds an advisory lock of this number while the run is alive.
    run: u32,
    /// The roles of applications existed before this run, so they stay.
    roles: OnceLock<bool>,
}

/// Roles belong to a server, not to a database.
const ROLES: &str = "select to_regrole('workos_reader') is not null or to_regrole('workos_end_user') is not null";

fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let run = std::process::id();
        let server = if let Some(url) = std::env::var_os("DATABASE_URL").filter(|url| !url.is_empty()) {
            let options =
                PgConnectOptions::from_str(url.to_str().expect("DATABASE_URL is text")).expect("DATABASE_URL is a URL");
            Server { private: None, options, run, roles: OnceLock::new() }
        } else {
            let private = PrivatePostgres::start(programs(), &Data::Temporary, &["max_prepared_transactions=4"])
                .unwrap_or_else(|error| panic!("{error}"));
            let options = PgConnectOptions::from_str(&private.url("postgres")).unwrap();
            Server { private: Some(private), options, run, roles: OnceLock::new() }
        };
        if server.private.is_none() {
            stay_alive(server.options.clone(), run);
            blocking(|| sweep(&server));
        }
        server
    })
}

/// Runs a future to its end on a separate thread and runtime, so that any code can call it.
fn blocking<F: Future<Output = ()>>(work: impl FnOnce() -> F + Send) {
    std::thread::scope(|scope| {
        scope.spawn(|| runtime().block_on(work())).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

async fn admin(server: &Server) -> PgConnection {
    PgConnection::connect_with(&server.options).await.expect("the test server answers")
}

async fn run(connection: &mut PgConnection, sql: String) {
    connection.execute(AssertSqlSafe(sql)).await.unwrap();
}

/// The first half of the key of the advisory locks. The second half is the run.
const ALIVE: i32 = 0x6175_7468;

/// Holds this run's lock for as long as the process lives.
fn stay_alive(options: PgConnectOptions, run: u32) {
    let (held, holding) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        runtime().block_on(async {
            let mut connection = PgConnection::connect_with(&options).await.expect("DATABASE_URL answers");
            let lock = sqlx::query("select pg_advisory_lock($1, $2)").bind(ALIVE).bind(i32::try_from(run).unwrap());
            lock.execute(&mut connection).await.unwrap();
            held.send(()).unwrap();
            std::future::pending::<()>().await;
        });
    });
    holding.recv().expect("this run's lock is held");
}

/// Drops the databases of dead runs.
async fn sweep(server: &Server) {
    let mut connection = admin(server).await;
    let names: Vec<String> = sqlx::query_scalar("select datname::text from pg_database where starts_with(datname, $1)")
        .bind(PREFIX)
        .fetch_all(&mut connection)
        .await
        .unwrap();
    for name in names {
        let run_of = name.strip_prefix(PREFIX).and_then(|rest| rest.split('_').next()?.parse::<i32>().ok());
        let Some(run_of) = run_of else { continue };
        let dead: bool = sqlx::query_scalar("select pg_try_advisory_lock($1, $2)")
            .bind(ALIVE)
            .bind(run_of)
            .fetch_one(&mut connection)
            .await
            .unwrap();
        if dead {
            run(&mut connection, format!("drop database if exists {name} with (force)")).await;
            let unlock = sqlx::query("select pg_advisory_unlock($1, $2)").bind(ALIVE).bind(run_of);
            unlock.execute(&mut connection).await.unwrap();
        }
    }
}

/// Number of test databases. The template is dropped with the last one, because no code runs at the end of a process.
static DATABASES: Mutex<usize> = Mutex::new(0);

fn template(server: &Server) -> String {
    format!("{PREFIX}{}_template", server.run)
}

/// Says once on which version the tests run.
async fn say_version(connection: &mut PgConnection) {
    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, Ordering::Relaxed) {
        let version: String = sqlx::query_scalar("show server_version").fetch_one(connection).await.unwrap();
        say(&format!("The tests run on PostgreSQL {version}."));
    }
}

async fn prepare_template(server: &Server) {
    let template = template(server);
    let mut connection = admin(server).await;
    say_version(&mut connection).await;
    let roles = sqlx::query_scalar(ROLES).fetch_one(&mut connection).await.unwrap();
    server.roles.get_or_init(|| roles);
    run(&mut connection, format!("create database {template}")).await;
    let pool =
        PgPoolOptions::new().max_connections(1).connect_with(server.options.clone().database(&template)).await.unwrap();
    migrations::run(&pool).await.unwrap();
    // As after a first start with WorkOS reachable.
    sqlx::query("insert into workos.environment (client_id) values ($1)").bind(CLIENT_ID).execute(&pool).await.unwrap();
    pool.close().await;
}

/// The database of one test. Dropped together with this value.
pub(crate) struct TestDatabase {
    name: String,
}

impl TestDatabase {
    /// Migrated, empty, and bound to no client ID yet.
    pub(crate) async fn unbound() -> Self {
        let database = Self::new().await;
        let mut connection = PgConnection::connect_with(&database.options()).await.unwrap();
        run(&mut connection, "delete from workos.environment".to_owned()).await;
        database
    }

    /// Migrated, empty, and bound to the client ID of the fixtures.
    pub(crate) async fn new() -> Self {
        Self::create(&format!("template {}", template(server()))).await
    }

    /// Not migrated.
    pub(crate) async fn empty() -> Self {
        Self::create("template template0").await
    }

    async fn create(how: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let server = server();
        {
            let mut databases = DATABASES.lock().unwrap_or_else(PoisonError::into_inner);
            if *databases == 0 {
                blocking(|| prepare_template(server));
            }
            *databases += 1;
        }
        let name = format!("{PREFIX}{}_{}", server.run, NEXT.fetch_add(1, Ordering::Relaxed));
        let mut connection = admin(server).await;
        // Copying files is faster than the default, which writes every block to the log, because the template is small.
        run(&mut connection, format!("create database {name} {how} strategy file_copy")).await;
        Self { name }
    }

    /// Returns how to connect.
    pub(crate) fn options(&self) -> PgConnectOptions {
        server().options.clone().database(&self.name)
    }

    /// Returns how a service connects: as [`options`](Self::options), or through the PgBouncer of the run.
    pub(crate) fn service_options(&self) -> PgConnectOptions {
        let direct = self.options();
        pgbouncer::of_run(&direct).map_or(direct.clone(), |pooler| pooler.options(&direct))
    }

    /// Returns the URL, for child processes.
    pub(crate) fn url(&self) -> String {
        pgbouncer::of_run(&self.options()).map_or_else(|| self.direct_url(), |pooler| pooler.url(&self.options()))
    }

    /// Returns the URL of the server itself.
    pub(crate) fn direct_url(&self) -> String {
        match &server().private {
            Some(private) => private.url(&self.name),
            None => {
                let mut url = reqwest::Url::parse(std::env::var_os("DATABASE_URL").unwrap().to_str().unwrap()).unwrap();
                url.set_path(&self.name);
                url.to_string()
            }
        }
    }

    /// Returns its name. Roles of a test begin with it, so that they are unique.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Makes every new session read-only, and ends the current ones, which a pooler would keep.
    pub(crate) async fn become_read_only(&self) {
        let (mut connection, name) = (admin(server()).await, &self.name);
        run(&mut connection, format!("alter database {name} set default_transaction_read_only = on")).await;
        let end = "select pg_terminate_backend(pid, 60000) from pg_stat_activity where datname =";
        run(&mut connection, format!("{end} '{name}'")).await;
    }

    /// Creates a pool with these options.
    pub(crate) async fn pool_with(
        &self,
        connections: u32,
        change: impl FnOnce(PgConnectOptions) -> PgConnectOptions,
    ) -> PgPool {
        PgPoolOptions::new().max_connections(connections).connect_with(change(self.options())).await.unwrap()
    }

    /// Creates a pool of at most this many connections.
    pub(crate) async fn pool(&self, connections: u32) -> PgPool {
        self.pool_with(connections, |options| options).await
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let sql = format!("drop database if exists {} with (force)", self.name);
        let mut databases = DATABASES.lock().unwrap_or_else(PoisonError::into_inner);
        *databases -= 1;
        let last = (*databases == 0).then(|| format!("drop database {}", template(server())));
        blocking(|| async {
            let mut connection = admin(server()).await;
            run(&mut connection, sql).await;
            if let Some(last) = last {
                run(&mut connection, last).await;
                if server().roles.get() == Some(&false) {
                    // Another run on this server may be using them.
                    let _ = connection.execute("drop role if exists workos_reader, workos_end_user").await;
                }
            }
        });
    }
}
