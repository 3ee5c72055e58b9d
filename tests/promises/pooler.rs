//! A pooler in transaction mode mixes up the results of prepared statements. The service detects and refuses it.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use authkit_sync::domain::decide::Stored;
use authkit_sync::domain::event::Origin;
use authkit_sync::store::Unfit;
use authkit_sync::store::{Pool, Store, StoreError};
use authkit_sync::sync::apply;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{Connection, Executor, Row};

use crate::support::binary::{binary, free_address, run, said};
use crate::support::database::TestDatabase;
use crate::support::events::{observed, user};
use crate::support::service::{CLIENT_ID, until};

const NOBODY: u32 = 65_534;

/// A PgBouncer in front of a test database.
struct PgBouncer {
    child: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl PgBouncer {
    /// `None` where the program is not installed; CI installs it, and there it must be.
    async fn start(database: &TestDatabase, mode: &str) -> Option<Self> {
        let found = Command::new("pgbouncer").arg("--version").stdout(Stdio::null()).status();
        if found.is_err() {
            assert!(std::env::var_os("CI").is_none(), "CI installs pgbouncer");
            eprintln!("SKIPPED: pgbouncer is not installed (apt-get install pgbouncer)");
            return None;
        }
        let options = database.options();
        let folder = tempfile::tempdir().unwrap();
        let address = free_address();
        let socket = options.get_socket().map_or_else(|| options.get_host().to_owned(), |it| it.display().to_string());
        let settings = format!(
            "[databases]\n* = host={socket} port={} user={}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\nunix_socket_dir =\nauth_type = any\n\
             pool_mode = {mode}\nmax_client_conn = 100\ndefault_pool_size = 10\n",
            options.get_port(),
            options.get_username(),
            address.port()
        );
        let file = folder.path().join("pgbouncer.ini");
        std::fs::write(&file, settings).unwrap();
        let child = Self::spawn(&file, Path::new(&socket));
        let started = Self { child, address, _folder: folder };
        until("pgbouncer listens", async || tokio::net::TcpStream::connect(address).await.is_ok()).await;
        Some(started)
    }

    /// It refuses to run as root, and only the server's own user may open the server's socket.
    fn spawn(file: &Path, socket: &Path) -> Child {
        let mut command = Command::new("pgbouncer");
        let owner = std::fs::metadata(socket).map(|socket| socket.uid());
        if rustix::process::geteuid().is_root() {
            let user = if owner.is_ok_and(|uid| uid != NOBODY) { "postgres" } else { "nobody" };
            command.args(["-u", user]);
            let readable = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(file.parent().unwrap(), readable).unwrap();
        }
        command.arg("-q").arg(file);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn options(&self, database: &TestDatabase) -> PgConnectOptions {
        PgConnectOptions::new()
            .host("127.0.0.1")
            .port(self.address.port())
            .username("anybody")
            .database(database.name())
            .ssl_mode(PgSslMode::Disable)
            .extra_float_digits(None)
    }

    fn url(&self, database: &TestDatabase) -> String {
        format!("postgres://anybody@127.0.0.1:{}/{}?sslmode=disable", self.address.port(), database.name())
    }
}

#[tokio::test]
async fn a_pooler_in_transaction_or_statement_mode_is_refused_with_the_fix() {
    let database = TestDatabase::new().await;
    for mode in ["transaction", "statement"] {
        let Some(pooler) = PgBouncer::start(&database, mode).await else { return };
        let timeout = Duration::from_secs(20);
        let pool = Pool::connect(pooler.options(&database), 4, timeout);
        let store = Store::new(pool.clone(), pool, CLIENT_ID, timeout);
        let refused = store.check().await;
        assert!(matches!(refused, Err(StoreError::Unfit(Unfit::TransactionPooler))), "{mode}: {refused:?}");
        let url = pooler.url(&database);
        let out = run(&["events", "list"], &[("DATABASE_URL", &url)]);
        assert!(out.status.code() == Some(78) && said(&out).contains("pool_mode = session"), "{}", said(&out));
        let out = said(&run(&["doctor"], &[("DATABASE_URL", &url)]));
        assert!(out.contains("failure  database_pooler") && out.contains("pool_mode = session"), "{out}");
    }
}

/// The settings and the lock of a run would stay behind in sessions that the application uses.
#[tokio::test]
async fn migrations_are_refused_through_a_pooler_in_transaction_mode() {
    let database = TestDatabase::empty().await;
    let Some(pooler) = PgBouncer::start(&database, "transaction").await else { return };
    let url = pooler.url(&database);
    let environment = [
        ("DATABASE_URL", url.as_str()),
        ("WORKOS_CLIENT_ID", CLIENT_ID),
        ("WORKOS_API_KEY", "sk_test_1"),
        ("AUTHKIT_SYNC_LISTEN", "127.0.0.1:0"),
        ("AUTHKIT_SYNC_OPS_LISTEN", "127.0.0.1:0"),
    ];
    for command in [&["migrate"][..], &["migrate", "status"]] {
        let out = run(command, &environment);
        assert_eq!(out.status.code(), Some(78), "{command:?}: {}", said(&out));
        assert!(said(&out).contains("pool_mode = session"), "{command:?}: {}", said(&out));
    }
    let serve = binary().args(["serve", "--migrate"]).envs(environment).stderr(Stdio::null()).spawn().unwrap();
    let serve = RefCell::new(serve);
    until("serve ends", async || serve.borrow_mut().try_wait().unwrap().is_some()).await;
    assert_eq!(serve.borrow_mut().wait().unwrap().code(), Some(78));
    let admin = database.pool(1).await;
    let locks = "select count(*), to_regnamespace('workos')::text from pg_locks where locktype = 'advisory'
        and database = (select oid from pg_database where datname = current_database())";
    let (held, schema): (i64, Option<String>) = sqlx::query_as(locks).fetch_one(&admin).await.unwrap();
    assert_eq!((held, schema), (0, None));
    let mut client = sqlx::PgConnection::connect_with(&pooler.options(&database)).await.unwrap();
    let path: String = client.fetch_one("show search_path").await.unwrap().get_unchecked(0);
    assert!(path.contains("public"), "{path}");
}

#[tokio::test]
async fn a_pooler_in_session_mode_is_served() {
    let database = TestDatabase::new().await;
    let Some(pooler) = PgBouncer::start(&database, "session").await else { return };
    let timeout = Duration::from_secs(20);
    let pool = Pool::connect(pooler.options(&database), 4, timeout);
    let store = Store::new(pool.clone(), pool, CLIENT_ID, timeout);
    apply(&store, Origin::Webhook, &[observed("user.created", 0, &user("user_1", "Ada", 0))]).await.unwrap();
    assert!(matches!(store.user("user_1").await.unwrap(), Stored::Live { .. }));
}
