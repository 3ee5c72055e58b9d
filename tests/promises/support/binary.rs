//! The real binary, as an operator runs it.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::database::path;
use super::service::{CLIENT_ID, SECRET};

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_authkit-sync");

/// The binary with an empty environment, so that no setting of this machine has an effect.
pub(crate) fn binary() -> Command {
    clean(Command::new(BINARY))
}

/// Removes every variable except `PATH`.
pub(crate) fn clean(mut command: Command) -> Command {
    let home = std::env::var_os("HOME").unwrap_or_default();
    command.env_clear().env("PATH", path()).env("HOME", home).current_dir("/").stdin(Stdio::null());
    command
}

/// Runs the binary to its end.
pub(crate) fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    binary().args(arguments).envs(environment.iter().copied()).output().unwrap()
}

/// Returns stdout and stderr.
pub(crate) fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Returns a free port. The process under test binds it right afterwards.
pub(crate) fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A `serve` of the real binary. Uses only webhooks by default. Killed when dropped.
pub(crate) struct Served {
    pub(crate) child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) ops: SocketAddr,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Served {
    /// Starts it and waits until it listens.
    pub(crate) fn start(database_url: &str, address: SocketAddr, more: &[(&str, &str)]) -> Self {
        Self::start_with(&["serve"], database_url, address, more)
    }

    /// Does the same with more arguments.
    pub(crate) fn start_with(
        arguments: &[&str],
        database_url: &str,
        address: SocketAddr,
        more: &[(&str, &str)],
    ) -> Self {
        let mut command = binary();
        command.args(arguments);
        Self::spawn(command, database_url, address, more)
    }

    /// `serve` in a folder, whose `.env` it reads.
    pub(crate) fn start_in(folder: &Path, database_url: &str, address: SocketAddr, more: &[(&str, &str)]) -> Self {
        let mut command = binary();
        command.arg("serve").current_dir(folder);
        Self::spawn(command, database_url, address, more)
    }

    /// Starts `serve` with a limit of open files.
    pub(crate) fn start_with_files(files: u32, database_url: &str, address: SocketAddr) -> Self {
        let mut command = clean(Command::new("sh"));
        command.args(["-c", &format!("ulimit -n {files} && exec \"$0\" serve"), BINARY]);
        Self::spawn(command, database_url, address, &[])
    }

    /// Starts `serve` through another program, which gets the path of the binary and its arguments from the caller.
    pub(crate) fn start_through(command: Command, database_url: &str, more: &[(&str, &str)]) -> Self {
        Self::spawn(clean(command), database_url, free_address(), more)
    }

    fn spawn(mut command: Command, database_url: &str, address: SocketAddr, more: &[(&str, &str)]) -> Self {
        let ops = free_address();
        let mut child = command
            .env("DATABASE_URL", database_url)
            .env("WORKOS_CLIENT_ID", CLIENT_ID)
            .env("WORKOS_WEBHOOK_SECRET", SECRET)
            .env("AUTHKIT_SYNC_CATCH_UP", "off")
            .env("AUTHKIT_SYNC_BACKFILL", "off")
            .env("AUTHKIT_SYNC_READ_THROUGH", "off")
            .env("AUTHKIT_SYNC_RECONCILE_INTERVAL", "off")
            .env("AUTHKIT_SYNC_DRAIN_DELAY", "off")
            .env("WORKOS_API_HOSTNAME", "127.0.0.1")
            .env("WORKOS_API_PORT", "9")
            .env("WORKOS_API_HTTPS", "false")
            .env("AUTHKIT_SYNC_LISTEN", address.to_string())
            .env("AUTHKIT_SYNC_OPS_LISTEN", ops.to_string())
            .envs(more.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (listening, listens) = std::sync::mpsc::channel();
        let (stderr, kept) = (child.stderr.take().unwrap(), log.clone());
        let reader = std::thread::spawn(move || {
            let mut lines = BufReader::new(stderr);
            let mut line = String::new();
            while lines.read_line(&mut line).is_ok_and(|read| read > 0) {
                if line.contains("authkit-sync is listening") {
                    let _ = listening.send(());
                }
                kept.lock().unwrap().push_str(&line);
                line.clear();
            }
        });
        let listens = listens.recv_timeout(std::time::Duration::from_secs(120));
        assert!(listens.is_ok(), "it does not listen: {}", log.lock().unwrap());
        Self { child, address, ops, log, reader: Some(reader) }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Returns the log so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Sends SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.wait();
    }

    /// Sends SIGTERM and returns the exit status.
    pub(crate) fn terminate(&mut self) -> std::process::ExitStatus {
        signal(&self.child, "TERM");
        self.wait()
    }

    /// Waits until it has ended and its log has been read to the last line.
    fn wait(&mut self) -> std::process::ExitStatus {
        let status = self.child.wait().unwrap();
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        status
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal by its name.
pub(crate) fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args(["-s", name, &child.id().to_string()]).status().unwrap().success());
}

/// Reads one line of a child's output.
pub(crate) fn first_line(output: impl Read) -> String {
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line).unwrap();
    line
}
