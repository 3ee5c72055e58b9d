//! A real PgBouncer in front of the test server.
//!
//! With `AUTHKIT_SYNC_TEST_POOLER=transaction` in the environment, every service, store and command that the tests start reaches
//! its database through one. The tests themselves connect to the database directly.

use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use rustix::process::Pid;
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgSslMode};

use super::binary::{first_line, free_address};

const NOBODY: u32 = 65_534;

/// The mode in which the whole run uses a PgBouncer.
const VARIABLE: &str = "AUTHKIT_SYNC_TEST_POOLER";

/// A PgBouncer in front of a server. It ends together with this value, or with this process.
pub(crate) struct PgBouncer {
    /// A shell that ends the program when its standard input is closed.
    child: Child,
    /// The process ID of the program.
    pid: Pid,
    address: SocketAddr,
    server: PgConnectOptions,
    folder: tempfile::TempDir,
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

impl PgBouncer {
    /// Starts it in a mode, with more settings. `None` if the program is not installed. In CI it must be installed.
    pub(crate) fn start(server: &PgConnectOptions, mode: &str, more: &str) -> Option<Self> {
        let found = Command::new("pgbouncer").arg("--version").stdout(Stdio::null()).status();
        if found.is_err() {
            assert!(std::env::var_os("CI").is_none(), "CI installs pgbouncer");
            eprintln!("SKIPPED: pgbouncer is not installed (apt-get install pgbouncer)");
            return None;
        }
        let (folder, address) = (tempfile::tempdir().unwrap(), free_address());
        let file = Self::configure(folder.path(), address, server, mode, more);
        let mut child = Self::spawn(&file, Path::new(&socket(server)));
        let pid = first_line(child.stdout.take().unwrap()).trim().parse().unwrap();
        let pid = Pid::from_raw(pid).unwrap();
        while std::net::TcpStream::connect(address).is_err() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        Some(Self { child, pid, address, server: server.clone(), folder })
    }

    /// Changes its settings while it runs.
    pub(crate) fn switch_to(&self, mode: &str, more: &str) {
        Self::configure(self.folder.path(), self.address, &self.server, mode, more);
        rustix::process::kill_process(self.pid, rustix::process::Signal::HUP).unwrap();
    }

    fn configure(folder: &Path, address: SocketAddr, server: &PgConnectOptions, mode: &str, more: &str) -> PathBuf {
        let socket = socket(server);
        let settings = format!(
            "[databases]\n* = host={socket} port={}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\nunix_socket_dir =\n\
             auth_type = trust\nauth_file = {}\nauth_user = {}\n\
             pool_mode = {mode}\nmax_client_conn = 1000\nserver_idle_timeout = 5\n{more}\n",
            server.get_port(),
            address.port(),
            folder.join("users.txt").display(),
            server.get_username(),
        );
        std::fs::write(folder.join("users.txt"), format!("\"{}\" \"\"\n", server.get_username())).unwrap();
        let file = folder.join("pgbouncer.ini");
        std::fs::write(&file, settings).unwrap();
        file
    }

    /// It refuses to run as root, and only the server's own user may open the server's socket.
    fn spawn(file: &Path, socket: &Path) -> Child {
        let mut user = String::new();
        if rustix::process::geteuid().is_root() {
            let owner = std::fs::metadata(socket).map(|socket| socket.uid());
            user = if owner.is_ok_and(|uid| uid != NOBODY) { "-u postgres" } else { "-u nobody" }.to_owned();
            let readable = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(file.parent().unwrap(), readable).unwrap();
        }
        let script = format!(
            "pgbouncer {user} -q {} >/dev/null & pid=$!; echo $pid; cat >/dev/null; kill $pid; wait $pid",
            file.display()
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        command.spawn().unwrap()
    }

    /// Returns the options of a connection through it.
    pub(crate) fn options(&self, direct: &PgConnectOptions) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(self.address.port())
            .username(direct.get_username())
            .database(direct.get_database().unwrap())
            .application_name(direct.get_application_name().unwrap_or("authkit-sync"))
            .ssl_mode(PgSslMode::Disable)
            .extra_float_digits(None)
    }

    /// Returns the URL of a database through it, for child processes.
    pub(crate) fn url(&self, direct: &PgConnectOptions) -> String {
        let (user, database) = (direct.get_username(), direct.get_database().unwrap());
        format!("postgres://{user}@127.0.0.1:{}/{database}?sslmode=disable", self.address.port())
    }
}

/// Returns the folder of the server's socket, or its host.
fn socket(server: &PgConnectOptions) -> String {
    server.get_socket().map_or_else(|| server.get_host().to_owned(), |socket| socket.display().to_string())
}

/// The PgBouncer of this run, if the run uses one.
pub(crate) fn of_run(server: &PgConnectOptions) -> Option<&'static PgBouncer> {
    static SHARED: OnceLock<Option<PgBouncer>> = OnceLock::new();
    let start = || {
        let mode = std::env::var_os(VARIABLE)?.into_string().ok().filter(|mode| !mode.is_empty())?;
        Some(PgBouncer::start(server, &mode, "default_pool_size = 12").expect("pgbouncer is installed"))
    };
    SHARED.get_or_init(start).as_ref()
}

/// Returns a pool for the database of this pool with the route of the run: directly, or through its PgBouncer. A pool without a
/// reachable server, and one that has this route, stay as they are.
pub(crate) fn as_the_run_wants(pool: &PgPool) -> PgPool {
    let direct = pool.connect_options();
    if direct.get_socket().is_some_and(|socket| !socket.exists()) {
        return pool.clone();
    }
    let Some(pooler) = of_run(&direct) else { return pool.clone() };
    if direct.get_port() == pooler.address.port() {
        return pool.clone();
    }
    let size = pool.options().get_max_connections();
    PgPoolOptions::new().max_connections(size).connect_lazy_with(pooler.options(&direct))
}
