//! The service: the binary, as an operator runs it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use authkit_sync::dev::workos::SimulatedWorkos;

use super::cpu;
use super::options::Options;

/// A first start reads all users that WorkOS has, which are none.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// The processes of the service. They are killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Service {
    processes: Vec<Child>,
    pub(crate) addresses: Vec<SocketAddr>,
    /// From starting a process until it is ready, milliseconds: the longest.
    pub(crate) start_ms: f64,
}

/// Returns an address with a free port. The process under test binds it right afterwards.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Service {
    pub(crate) fn start(options: &Options, folder: &Path, database_url: &str, workos: &SimulatedWorkos) -> Self {
        let mut service = Self { processes: Vec::new(), addresses: Vec::new(), start_ms: 0.0 };
        for number in 0..options.processes {
            let (address, log) = (free_address(), folder.join(format!("serve-{number}.log")));
            let workos_address = workos.base_url().strip_prefix("http://").unwrap();
            let (host, port) = workos_address.split_once(':').unwrap();
            let mut command = Command::new(&options.binary);
            command
                .arg("serve")
                .env_clear()
                .env("DATABASE_URL", database_url)
                .env("WORKOS_CLIENT_ID", workos.client_id())
                .env("WORKOS_API_KEY", workos.api_key())
                .env("WORKOS_WEBHOOK_SECRET", workos.webhook_secret())
                .env("WORKOS_API_HOSTNAME", host)
                .env("WORKOS_API_PORT", port)
                .env("WORKOS_API_HTTPS", "false")
                .env("AUTHKIT_SYNC_LISTEN", address.to_string())
                .env("AUTHKIT_SYNC_OPS_LISTEN", free_address().to_string())
                .envs(options.settings.iter().map(|setting| setting.split_once('=').unwrap()))
                .current_dir("/")
                .stdin(Stdio::null())
                .stderr(File::create(&log).unwrap());
            let began = Instant::now();
            service.processes.push(command.spawn().unwrap());
            while !is_ready(address) {
                let log = || fs::read_to_string(&log).unwrap_or_default();
                assert!(began.elapsed() < START_TIMEOUT, "the service does not get ready:\n{}", log());
                std::thread::sleep(Duration::from_millis(1));
            }
            service.start_ms = service.start_ms.max(began.elapsed().as_secs_f64() * 1e3);
            service.addresses.push(address);
        }
        service
    }

    /// CPU time of all its processes, microseconds.
    pub(crate) fn cpu(&self) -> f64 {
        self.processes.iter().map(|child| cpu::of_process(child.id()).as_secs_f64() * 1e6).sum()
    }

    /// Resident memory of the largest process in MiB: now, and at most.
    pub(crate) fn memory(&self) -> (f64, f64) {
        let all = self.processes.iter().map(|child| cpu::memory(child.id()));
        all.fold((0.0, 0.0), |(now, most): (f64, f64), (next, peak)| (now.max(next), most.max(peak)))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        for child in &mut self.processes {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn is_ready(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    let mut answer = String::new();
    let asked = stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: b\r\nconnection: close\r\n\r\n");
    asked.and_then(|()| stream.read_to_string(&mut answer)).is_ok() && answer.starts_with("HTTP/1.1 200")
}

/// The empty handler's process. It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct EmptyHandler {
    process: Child,
    pub(crate) address: SocketAddr,
}

impl EmptyHandler {
    pub(crate) fn start() -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let mut process = command.arg("empty").stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { process, address: line.trim().parse().unwrap() }
    }

    /// CPU time, microseconds.
    pub(crate) fn cpu(&self) -> f64 {
        cpu::of_process(self.process.id()).as_secs_f64() * 1e6
    }
}

impl Drop for EmptyHandler {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
