//! A process that stops behind a proxy that polls readiness refuses nothing.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use authkit_sync::domain::clock::Clock;
use authkit_sync::workos::http::http_client;
use authkit_sync::workos::signature::Secret;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::reverse_proxy::{haproxy_example, replaced};
use crate::support::binary::{Served, free_address, signal};
use crate::support::database::TestDatabase;
use crate::support::fixture_bytes;
use crate::support::programs::required_program;
use crate::support::service::{SECRET, Service, http_ok, until};

/// Longer than any test, so a test that ends did not wait for this delay.
const ENDLESS: (&str, &str) = ("AUTHKIT_SYNC_DRAIN_DELAY", "1day");

/// HAProxy with the example, without TLS and without retries, on free ports. Killed when dropped.
struct HaProxy {
    child: Child,
    public: SocketAddr,
    statistics: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl HaProxy {
    fn start(servers: [SocketAddr; 2]) -> Option<Self> {
        let haproxy = required_program("haproxy", "haproxy")?;
        let [public, internal, statistics] = [(); 3].map(|()| free_address());
        let text = haproxy_example(servers, public, internal);
        // A retry could hide a refused connection.
        let text = replaced(&text, "mode http\n", "mode http\n    retries 0\n");
        let text =
            format!("{text}\nfrontend statistics\n    bind {statistics}\n    stats enable\n    stats uri /stats\n");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("haproxy.cfg");
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(haproxy);
        command.arg("-db").arg("-f").arg(file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Some(Self { child: command.spawn().unwrap(), public, statistics, _folder: folder })
    }

    /// Waits until HAProxy has this status for a server.
    async fn until(&self, server: &str, status: &str) {
        let url = format!("http://{}/stats;csv", self.statistics);
        until(&format!("{server} is {status}"), async || {
            let Ok(answer) = http_client().unwrap().get(&url).send().await else { return false };
            let text = answer.text().await.unwrap_or_default();
            let row = text.lines().find(|row| row.starts_with(&format!("authkit_sync,{server},")));
            row.and_then(|row| row.split(',').nth(17)).is_some_and(|found| found.starts_with(status))
        })
        .await;
    }
}

/// Requests without a pause: an unsigned webhook is 401, a signed one 200. Returns what had another result.
async fn load(address: SocketAddr, ended: Arc<AtomicBool>, answered: Arc<AtomicUsize>) -> Vec<String> {
    let (client, url) = (http_client().unwrap(), format!("http://{address}/workos/webhook"));
    let body = fixture_bytes("event.user.created");
    let mut failures = Vec::new();
    while !ended.load(Ordering::SeqCst) {
        for is_signed in [true, false] {
            let mut request = client.post(&url).body(body.clone());
            if is_signed {
                request = request.header("WorkOS-Signature", Secret::new(SECRET).sign(Clock::system().now(), &body));
            }
            match request.send().await {
                Ok(answer) if answer.status() == if is_signed { 200 } else { 401 } => {
                    answered.fetch_add(1, Ordering::SeqCst);
                }
                Ok(answer) => failures.push(answer.status().to_string()),
                Err(error) => failures.push(format!("{error:?}")),
            }
        }
    }
    failures
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replacing_both_processes_behind_a_proxy_that_polls_readiness_refuses_nothing_under_load() {
    let database = TestDatabase::new().await;
    let more = [ENDLESS, ("AUTHKIT_SYNC_DB_TIMEOUT", "60s")];
    let start = |address| Served::start(&database.url(), address, &more);
    let mut processes = [start(free_address()), start(free_address())];
    let Some(proxy) = HaProxy::start([processes[0].address, processes[1].address]) else { return };
    for server in ["one", "two"] {
        proxy.until(server, "UP").await;
    }
    let (ended, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..8).map(|_| tokio::spawn(load(proxy.public, ended.clone(), answered.clone()))).collect();
    let more_answers = async || {
        let before = answered.load(Ordering::SeqCst);
        until("more requests are answered", async || answered.load(Ordering::SeqCst) > before + 100).await;
    };
    for (process, server) in processes.iter_mut().zip(["one", "two"]) {
        more_answers().await;
        signal(&process.child, "TERM");
        proxy.until(server, "DOWN").await;
        let client = http_client().unwrap();
        let ready = client.get(process.url("/readyz")).send().await.unwrap();
        assert_eq!((ready.status().as_u16(), ready.text().await.unwrap().as_str()), (503, r#"{"status":"draining"}"#));
        let answer = client.get(process.url("/auth/user")).send().await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.headers()["connection"].to_str().unwrap()), (401, "close"));
        http_ok(&format!("http://{}/metrics", process.ops)).await;
        assert_eq!(process.terminate().code(), Some(0), "the second signal skips the delay");
        let log = process.log();
        let says = [
            "signal=\"SIGTERM\"",
            "/readyz answers 503 now",
            "received a second signal",
            "every open request was answered",
            "has stopped",
        ];
        let places: Vec<_> = says.iter().map(|text| log.find(text)).collect();
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?}: {log}");
        more_answers().await;
        *process = start(process.address);
        proxy.until(server, "UP").await;
    }
    more_answers().await;
    ended.store(true, Ordering::SeqCst);
    for client in clients {
        assert_eq!(client.await.unwrap(), Vec::<String>::new());
    }
    for process in &processes {
        assert!(process.log().contains("http.route=\"/workos/webhook\""), "both answer again: {}", process.log());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_whose_readiness_nothing_polls_stops_without_the_delay() {
    let database = TestDatabase::new().await;
    let mut served = Served::start(&database.url(), free_address(), &[ENDLESS]);
    http_ok(&served.url("/healthz")).await;
    assert_eq!(served.terminate().code(), Some(0), "{}", served.log());
}

#[tokio::test]
async fn after_the_delay_the_public_listener_closes_and_the_operators_listener_closes_last() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let service = Service::start_with(&pool, |builder| {
        builder.drain_delay(Duration::from_millis(50)).body_timeout(Duration::from_secs(60))
    })
    .await;
    until("it is ready", async || service.get("/readyz").await.status == 200).await;
    let (address, ops) = (service.address, service.ops);
    let mut open = TcpStream::connect(address).await.unwrap();
    let signature = Secret::new(SECRET).sign(service.clock.now(), b"{}");
    let head = format!(
        "POST /workos/webhook HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\
         WorkOS-Signature: {signature}\r\n\r\n"
    );
    open.write_all(head.as_bytes()).await.unwrap();
    let mut continued = [0; "HTTP/1.1 100 Continue\r\n\r\n".len()];
    open.read_exact(&mut continued).await.unwrap();
    let stopped = tokio::spawn(service.stop());
    until("the public listener is closed", async || TcpStream::connect(address).await.is_err()).await;
    let ready = http_client().unwrap().get(format!("http://{ops}/readyz")).send().await.unwrap();
    assert_eq!(ready.status(), 503);
    assert!(ready.text().await.unwrap().contains(r#""status":"draining""#));
    http_ok(&format!("http://{ops}/metrics")).await;
    assert!(!stopped.is_finished());
    open.write_all(b"{}").await.unwrap();
    let mut answer = String::new();
    open.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    stopped.await.unwrap().unwrap();
    assert!(TcpStream::connect(ops).await.is_err());
}
