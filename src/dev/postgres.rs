//! A PostgreSQL server of our own, from the programs installed on this machine or fetched.
//!
//! It listens on a Unix socket in a directory nobody else may enter, so it needs no port and no password. It runs as an
//! ordinary user even when we are root, which PostgreSQL demands. However we end, a small child that holds a pipe to us
//! stops it when the pipe closes, and removes what was temporary.

mod npm;
mod programs;

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};

pub use programs::Programs;

/// How long a start or a stop may take. A first start on a slow disk takes seconds.
const STATE_CHANGE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a start waits for a predecessor on the same data to end.
const PREDECESSOR_TIMEOUT: Duration = Duration::from_secs(10);

/// Where memory serves as a disk, on Linux.
const MEMORY: &str = "/dev/shm";

/// Stops the server once our end of the pipe closes, and removes what is temporary: arguments are the signal, the server's
/// process id and the directory. A zombie has ended: when we were killed, its new parent may take a long time to reap it.
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

/// Why there is no server; the text says what to do.
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

/// Where the data is, and what becomes of it.
#[derive(Clone, Debug)]
pub enum Data {
    /// Kept between runs, and flushed to disk as production would.
    Kept(PathBuf),
    /// In memory where there is a gigabyte free; gone when the server is.
    Throwaway,
}

/// A running server. It stops when dropped.
#[derive(Debug)]
pub struct PrivatePostgres {
    programs: Programs,
    owner: Option<(u32, u32)>,
    data: PathBuf,
    /// Holds the socket, the log, and throwaway data.
    scratch: PathBuf,
    throwaway: bool,
    settings: Vec<String>,
    server: Option<Running>,
}

#[derive(Debug)]
struct Running {
    postgres: Child,
    watchdog: Child,
    leash: Option<ChildStdin>,
}

impl PrivatePostgres {
    /// Starts a server, with fresh data where there is none. `settings` are `name=value`, as `postgres -c` takes them.
    ///
    /// # Errors
    /// [`PostgresError`], with the last lines of the server's log where it has one.
    pub fn start(programs: Programs, data: &Data, settings: &[&str]) -> Result<Self, PostgresError> {
        let scratch = scratch_directory(matches!(data, Data::Throwaway))?;
        let owner = owner()?;
        give(&scratch, owner)?;
        let (data, throwaway) = match data {
            Data::Kept(path) => (path.clone(), false),
            Data::Throwaway => (scratch.join("data"), true),
        };
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let mut server = Self { programs, owner, data, scratch, throwaway, settings, server: None };
        server.initialise()?;
        server.resume()?;
        Ok(server)
    }

    /// Where to connect for this database.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        // The port is written out, because drivers fall back to PGPORT.
        format!("postgres://postgres@localhost:5432/{database}?host={}", self.scratch.display())
    }

    /// The server's process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(|running| running.postgres.id())
    }

    /// The directory with everything temporary.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// Stops the server as an orderly shutdown would; the data stays until this is dropped.
    ///
    /// # Errors
    /// [`PostgresError`] when it does not end.
    pub fn pause(&mut self) -> Result<(), PostgresError> {
        self.end(Signal::INT)
    }

    /// Starts it again on the same data, at the same URL.
    ///
    /// # Errors
    /// [`PostgresError`]
    pub fn resume(&mut self) -> Result<(), PostgresError> {
        let deadline = Instant::now() + PREDECESSOR_TIMEOUT;
        loop {
            match self.spawn() {
                Err(error) if error.0.contains("postmaster.pid") && Instant::now() < deadline => {
                    // A predecessor that was killed is still being stopped by its watchdog.
                    std::thread::sleep(Duration::from_millis(200));
                }
                Err(error) if error.0.contains("postmaster.pid") => {
                    return Err(PostgresError::new(format!(
                        "another server uses {}; is another `authkit-sync dev` running?",
                        self.data.display()
                    )));
                }
                outcome => return outcome,
            }
        }
    }

    fn initialise(&self) -> Result<(), PostgresError> {
        let version = self.data.join("PG_VERSION");
        if let Ok(found) = fs::read_to_string(&version) {
            let found = found.trim();
            return if found == self.programs.major().to_string() {
                Ok(())
            } else {
                Err(PostgresError::new(format!(
                    "{} was made by PostgreSQL {found}, and the programs here are PostgreSQL {}; install PostgreSQL {found}, or remove that directory to start anew",
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
        give(&self.data, self.owner)?;
        let common = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-instructions"];
        // Tests must not pass only because the database sorts bytewise.
        let locale: &[&str] = if self.throwaway {
            &["--locale=C", "--locale-provider=icu", "--icu-locale=en-US"]
        } else {
            &["--no-locale"]
        };
        let mut initdb = self.command("initdb");
        initdb.arg("-D").arg(&self.data).args(common).args(locale);
        if self.throwaway {
            initdb.arg("--no-sync");
        }
        let output = initdb.output().map_err(|error| PostgresError::new(format!("initdb cannot be run: {error}")))?;
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
        postgres.args(["-c", "listen_addresses=", "-c", "port=5432"]);
        // A POSIX segment would stay behind when the server is killed; a file goes with its data.
        postgres.args(["-c", "dynamic_shared_memory_type=mmap"]);
        if self.throwaway {
            postgres.args(["-c", "fsync=off", "-c", "max_connections=300"]);
        }
        for setting in &self.settings {
            postgres.arg("-c").arg(setting);
        }
        let postgres = postgres.stdout(log).stderr(log_too).spawn();
        let postgres = postgres.map_err(|error| PostgresError::new(format!("postgres cannot be run: {error}")))?;
        let mut watchdog = Command::new("sh")
            .args([
                "-c",
                WATCHDOG,
                "watchdog",
                if self.throwaway { "-QUIT" } else { "-INT" },
                &postgres.id().to_string(),
            ])
            .arg(&self.scratch)
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| PostgresError::new(format!("sh cannot be run: {error}")))?;
        let leash = watchdog.stdin.take();
        self.server = Some(Running { postgres, watchdog, leash });
        self.wait_until_ready(&log_path)
    }

    /// The eighth line of `postmaster.pid` says `ready`, or `standby` on a standby, once connections are taken.
    fn wait_until_ready(&mut self, log: &Path) -> Result<(), PostgresError> {
        let deadline = Instant::now() + STATE_CHANGE_TIMEOUT;
        let state = self.data.join("postmaster.pid");
        while Instant::now() < deadline {
            let Some(running) = &mut self.server else { break };
            if running.postgres.try_wait().ok().flatten().is_some() {
                let text = fs::read_to_string(log).unwrap_or_default();
                let lines: Vec<&str> = text.lines().rev().take(5).collect();
                let tail: Vec<&str> = lines.into_iter().rev().collect();
                self.forget();
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
        Err(PostgresError::new("the private PostgreSQL did not get ready within a minute"))
    }

    /// Data that nobody will read need not be flushed.
    fn last_signal(&self) -> Signal {
        if self.throwaway { Signal::QUIT } else { Signal::INT }
    }

    /// Signals the server and waits for it.
    fn end(&mut self, signal: Signal) -> Result<(), PostgresError> {
        let Some(running) = &mut self.server else { return Ok(()) };
        let _ = kill_process(Pid::from_child(&running.postgres), signal);
        let deadline = Instant::now() + STATE_CHANGE_TIMEOUT;
        while running.postgres.try_wait().ok().flatten().is_none() {
            if Instant::now() > deadline {
                let _ = running.postgres.kill();
                let _ = running.postgres.wait();
                self.forget();
                return Err(PostgresError::new("the private PostgreSQL did not stop within a minute, and was killed"));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.forget();
        Ok(())
    }

    /// The server has ended: ends the watchdog without letting it do its work, so that a pause keeps the data.
    fn forget(&mut self) {
        let Some(mut running) = self.server.take() else { return };
        let _ = running.watchdog.kill();
        let _ = running.watchdog.wait();
        drop(running.leash.take());
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        let _ = self.end(self.last_signal());
        let _ = fs::remove_dir_all(&self.scratch);
    }
}

/// A new directory, short enough for a socket's path, entered by nobody else.
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

/// Whom PostgreSQL must run as: ourselves (`None`), or, when we are root, `postgres`, else `nobody`.
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
            "PostgreSQL refuses to run as root, and there is neither a user postgres nor nobody to run it as",
        )
    })
}

fn give(path: &Path, owner: Option<(u32, u32)>) -> Result<(), PostgresError> {
    let Some((uid, gid)) = owner else { return Ok(()) };
    chown(path, Some(uid), Some(gid)).map_err(|error| PostgresError::io("give away", path, &error))
}
