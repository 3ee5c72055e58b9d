//! Starts a private PostgreSQL server with the programs on this machine, or with downloaded ones.
//!
//! It listens on a Unix socket in a directory that other users cannot enter, so it needs no port and no password.
//! [`PrivatePostgres::start_on`] also listens on a port of 127.0.0.1, which requires a password. If the process is root, the server
//! runs as another user, because PostgreSQL requires that. A watchdog process holds a pipe to this process. When the pipe closes,
//! it stops the server and removes temporary files, even after `kill -9`.

mod packages;
mod programs;
mod standby;

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};

pub use programs::{Programs, default_folder};

/// Timeout of a start or a stop. A first start on a slow disk takes seconds.
const STATE_CHANGE_TIMEOUT: Duration = Duration::from_secs(60);

/// Timeout of a start for an earlier server on the same data to stop.
const PREDECESSOR_TIMEOUT: Duration = Duration::from_secs(10);

/// The file system in memory, on Linux.
const MEMORY: &str = "/dev/shm";

/// Stops the server when this process closes the pipe, and removes temporary files. Arguments: the signal, the server's process
/// ID, and the directory. A zombie counts as stopped: if this process was killed, the server's new parent may take a long time to
/// reap it.
const WATCHDOG: &str = r#"
cat >/dev/null
kill "$1" "$2" 2>/dev/null
tries=0
while kill -0 "$2" 2>/dev/null && ! grep -q ') Z ' "/proc/$2/stat" 2>/dev/null && [ "$tries" -lt 600 ]; do
    sleep 0.05
    tries=$((tries + 1))
done
rm -rf "$3"
"#;

/// The server could not be started or stopped. The message says what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct PostgresError(String);

impl PostgresError {
    fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }

    fn io(doing: &str, path: &Path, error: &std::io::Error) -> Self {
        Self(format!("cannot {doing} {}: {error}", path.display()))
    }
}

/// Where the data is stored.
#[derive(Clone, Debug)]
pub enum Data {
    /// In this directory, between runs, with `fsync` as in production.
    Persistent(PathBuf),
    /// In a temporary directory, in memory if 1 GiB is free. It is removed when the server stops.
    Temporary,
}

/// A running server. It stops when dropped.
#[derive(Debug)]
pub struct PrivatePostgres {
    programs: Programs,
    owner: Option<(u32, u32)>,
    data: PathBuf,
    /// The directory with the socket, the log, and temporary data.
    scratch: PathBuf,
    is_temporary: bool,
    settings: Vec<String>,
    /// The port on 127.0.0.1, if it listens there, too.
    port: Option<u16>,
    server: Option<Running>,
}

#[derive(Debug)]
struct Running {
    postgres: Child,
    watchdog: Child,
    pipe: Option<ChildStdin>,
}

impl PrivatePostgres {
    /// Starts a server, and initializes the data directory if it is empty. `settings` are `name=value`, as for `postgres -c`.
    ///
    /// # Errors
    /// [`PostgresError`], with the last lines of the server's log if there is one.
    pub fn start(programs: Programs, data: &Data, settings: &[&str]) -> Result<Self, PostgresError> {
        Self::start_on(programs, data, settings, None)
    }

    /// Starts a server that also listens on a port of 127.0.0.1, which requires a password.
    ///
    /// # Errors
    /// As [`PrivatePostgres::start`].
    pub fn start_on(
        programs: Programs,
        data: &Data,
        settings: &[&str],
        port: Option<u16>,
    ) -> Result<Self, PostgresError> {
        let scratch = scratch_directory(matches!(data, Data::Temporary))?;
        let owner = owner()?;
        change_owner(&scratch, owner)?;
        let (data, is_temporary) = match data {
            Data::Persistent(path) => (path.clone(), false),
            Data::Temporary => (scratch.join("data"), true),
        };
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let mut server = Self { programs, owner, data, scratch, is_temporary, settings, port, server: None };
        server.initialize()?;
        server.resume()?;
        Ok(server)
    }

    /// Returns the connection URL of a database.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        // The port is explicit, because drivers would use PGPORT. It is a part of the socket's name.
        format!("postgres://postgres@localhost:{}/{database}?host={}", self.socket_port(), self.scratch.display())
    }

    fn socket_port(&self) -> u16 {
        self.port.unwrap_or(5432)
    }

    /// Returns the server's process ID while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(|running| running.postgres.id())
    }

    /// Returns the directory with the temporary files.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// Stops the server in an orderly way. The data stays until this value is dropped.
    ///
    /// # Errors
    /// [`PostgresError`] if it does not stop.
    pub fn pause(&mut self) -> Result<(), PostgresError> {
        self.end(Signal::INT)
    }

    /// Starts the server again with the same data and URL.
    ///
    /// # Errors
    /// [`PostgresError`]
    pub fn resume(&mut self) -> Result<(), PostgresError> {
        let deadline = Instant::now() + PREDECESSOR_TIMEOUT;
        loop {
            match self.spawn() {
                Err(error) if error.0.contains("postmaster.pid") && Instant::now() < deadline => {
                    // The watchdog of a killed process is still stopping its server.
                    std::thread::sleep(Duration::from_millis(200));
                }
                Err(error) if error.0.contains("postmaster.pid") => {
                    return Err(PostgresError::new(format!(
                        "another server uses the data in {}; stop the other `authkit-sync dev`, or choose another folder with --data",
                        self.data.display()
                    )));
                }
                outcome => return outcome,
            }
        }
    }

    fn initialize(&self) -> Result<(), PostgresError> {
        let version = self.data.join("PG_VERSION");
        if let Ok(found) = fs::read_to_string(&version) {
            let found = found.trim();
            return if found == self.programs.major().to_string() {
                Ok(())
            } else {
                Err(PostgresError::new(format!(
                    "the data in {} was created by PostgreSQL {found}, but this machine has PostgreSQL {}; install PostgreSQL {found}, or remove that directory to start with empty data",
                    self.data.display(),
                    self.programs.major()
                )))
            };
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.data)
            .map_err(|error| PostgresError::io("create", &self.data, &error))?;
        change_owner(&self.data, self.owner)?;
        // Tests must pass with a database that does not sort bytewise. Some downloaded programs lack ICU.
        let icu = ["--locale=C", "--locale-provider=icu", "--icu-locale=en-US"];
        match self.initdb(if self.is_temporary { &icu } else { &["--no-locale"] }) {
            Err(error) if self.is_temporary && error.0.contains("ICU is not supported") => {
                self.initdb(&["--no-locale"])
            }
            outcome => outcome,
        }
    }

    fn initdb(&self, locale: &[&str]) -> Result<(), PostgresError> {
        let common = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-instructions"];
        let mut initdb = self.command("initdb");
        initdb.arg("-D").arg(&self.data).args(common).args(locale);
        if self.is_temporary {
            initdb.arg("--no-sync");
        }
        let output = initdb.output().map_err(|error| PostgresError::new(format!("cannot run initdb: {error}")))?;
        if output.status.success() {
            return Ok(());
        }
        let why = String::from_utf8_lossy(&output.stderr);
        Err(PostgresError::new(format!("initdb failed in {}:\n{}", self.data.display(), why.trim())))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = self.programs.command(program);
        command.current_dir("/").stdin(Stdio::null()).process_group(0);
        if let Some((uid, gid)) = self.owner {
            command.uid(uid).gid(gid);
        }
        command
    }

    fn spawn(&mut self) -> Result<(), PostgresError> {
        let log_path = self.scratch.join("log");
        let log = File::create(&log_path).map_err(|error| PostgresError::io("write", &log_path, &error))?;
        let log_too = log.try_clone().map_err(|error| PostgresError::io("write", &log_path, &error))?;
        let mut postgres = self.command("postgres");
        postgres.arg("-D").arg(&self.data).arg("-k").arg(&self.scratch);
        let address = if self.port.is_some() { "127.0.0.1" } else { "" };
        postgres.args(["-c", &format!("listen_addresses={address}"), "-c", &format!("port={}", self.socket_port())]);
        if self.port.is_some() {
            postgres.arg("-c").arg(format!("hba_file={}", self.write_access_rules()?.display()));
        }
        // A POSIX shared memory segment would remain if the server is killed. A file is removed with the data.
        postgres.args(["-c", "dynamic_shared_memory_type=mmap"]);
        if self.is_temporary {
            postgres.args(["-c", "fsync=off", "-c", "max_connections=300"]);
        }
        for setting in &self.settings {
            postgres.arg("-c").arg(setting);
        }
        let postgres = postgres.stdout(log).stderr(log_too).spawn();
        let postgres = postgres.map_err(|error| PostgresError::new(format!("cannot run postgres: {error}")))?;
        let mut watchdog = Command::new("sh")
            .args([
                "-c",
                WATCHDOG,
                "watchdog",
                if self.is_temporary { "-QUIT" } else { "-INT" },
                &postgres.id().to_string(),
            ])
            .arg(&self.scratch)
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| PostgresError::new(format!("cannot run sh: {error}")))?;
        let pipe = watchdog.stdin.take();
        self.server = Some(Running { postgres, watchdog, pipe });
        self.wait_until_ready(&log_path)
    }

    /// Writes the access rules: every user who can enter the directory of the socket may connect, and with a password every user of
    /// this machine.
    fn write_access_rules(&self) -> Result<PathBuf, PostgresError> {
        let path = self.scratch.join("pg_hba.conf");
        let rules = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
        fs::write(&path, rules).map_err(|error| PostgresError::io("write", &path, &error))?;
        change_owner(&path, self.owner)?;
        Ok(path)
    }

    /// Waits until the eighth line of `postmaster.pid` is `ready`, or `standby` on a standby: then the server accepts connections.
    fn wait_until_ready(&mut self, log: &Path) -> Result<(), PostgresError> {
        let deadline = Instant::now() + STATE_CHANGE_TIMEOUT;
        let state = self.data.join("postmaster.pid");
        while Instant::now() < deadline {
            let Some(running) = &mut self.server else { break };
            if running.postgres.try_wait().ok().flatten().is_some() {
                let text = fs::read_to_string(log).unwrap_or_default();
                let lines: Vec<&str> = text.lines().rev().take(5).collect();
                let tail: Vec<&str> = lines.into_iter().rev().collect();
                self.end_watchdog();
                return Err(PostgresError::new(format!("the private PostgreSQL did not start:\n{}", tail.join("\n"))));
            }
            let own = running.postgres.id().to_string();
            let text = fs::read_to_string(&state).unwrap_or_default();
            let mut lines = text.lines();
            if lines.next() == Some(own.as_str())
                && lines.nth(6).is_some_and(|line| ["ready", "standby"].contains(&line.trim()))
            {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.end(Signal::QUIT);
        Err(PostgresError::new("the private PostgreSQL did not become ready within a minute"))
    }

    /// Returns the signal for the last stop. Temporary data needs no flush to disk.
    fn last_signal(&self) -> Signal {
        if self.is_temporary { Signal::QUIT } else { Signal::INT }
    }

    /// Sends a signal to the server and waits until it stops.
    fn end(&mut self, signal: Signal) -> Result<(), PostgresError> {
        let Some(running) = &mut self.server else { return Ok(()) };
        let _ = kill_process(Pid::from_child(&running.postgres), signal);
        let deadline = Instant::now() + STATE_CHANGE_TIMEOUT;
        while running.postgres.try_wait().ok().flatten().is_none() {
            if Instant::now() > deadline {
                let _ = running.postgres.kill();
                let _ = running.postgres.wait();
                self.end_watchdog();
                return Err(PostgresError::new(
                    "the private PostgreSQL did not stop within a minute, so it was killed",
                ));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.end_watchdog();
        Ok(())
    }

    /// Ends the watchdog after the server has stopped, so that it does not remove the data.
    fn end_watchdog(&mut self) {
        let Some(mut running) = self.server.take() else { return };
        let _ = running.watchdog.kill();
        let _ = running.watchdog.wait();
        drop(running.pipe.take());
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        let _ = self.end(self.last_signal());
        let _ = fs::remove_dir_all(&self.scratch);
    }
}

/// Creates a directory that other users cannot enter. Its path is short enough for a socket.
fn scratch_directory(large: bool) -> Result<PathBuf, PostgresError> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let memory = Path::new(MEMORY);
    let base = if large && has_a_gigabyte(memory) { memory.to_owned() } else { PathBuf::from("/tmp") };
    loop {
        let name = format!("authkit-sync-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = base.join(name);
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(PostgresError::io("create", &path, &error)),
        }
    }
}

fn has_a_gigabyte(path: &Path) -> bool {
    rustix::fs::statvfs(path).is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) >= 1 << 30)
}

/// Returns the user that runs PostgreSQL: the current user (`None`), or, if it is root, `postgres` or else `nobody`.
fn owner() -> Result<Option<(u32, u32)>, PostgresError> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let find = |name: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    find("postgres").or_else(|| find("nobody")).map(Some).ok_or_else(|| {
        PostgresError::new(
            "PostgreSQL cannot run as root, and this machine has neither the user postgres nor the user nobody; create the user postgres",
        )
    })
}

fn change_owner(path: &Path, owner: Option<(u32, u32)>) -> Result<(), PostgresError> {
    let Some((uid, gid)) = owner else { return Ok(()) };
    chown(path, Some(uid), Some(gid)).map_err(|error| PostgresError::io("change the owner of", path, &error))
}
