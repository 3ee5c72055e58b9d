//! The examples of reverse proxies expose exactly what must be public.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::support::binary::{Served, free_address};
use crate::support::database::TestDatabase;
use crate::support::programs::required_program;
use crate::support::service::until;

/// The status of the proxy for every request that it does not forward.
const NOT_PASSED_ON: u16 = 404;

/// A request and its status on the internet and for backends.
const REQUESTS: [(&str, &str, u16, u16); 22] = [
    ("POST", "/workos/webhook", 401, NOT_PASSED_ON),
    ("POST", "/workos/action", 401, NOT_PASSED_ON),
    ("GET", "/auth/user", 401, 401),
    ("GET", "/auth/session", 401, 401),
    ("GET", "/auth/identity", 401, 401),
    ("GET", "/auth/memberships", 401, 401),
    ("GET", "/user_management/users", NOT_PASSED_ON, 401),
    ("GET", "/user_management/users/user_1", NOT_PASSED_ON, 401),
    ("GET", "/organizations", NOT_PASSED_ON, 401),
    ("GET", "/organizations/org_1/roles", NOT_PASSED_ON, 401),
    ("GET", "/authorization/roles", NOT_PASSED_ON, 401),
    ("GET", "/changes", NOT_PASSED_ON, 401),
    ("GET", "/openapi.json", NOT_PASSED_ON, 200),
    ("GET", "/metrics", NOT_PASSED_ON, NOT_PASSED_ON),
    ("GET", "/readyz", NOT_PASSED_ON, NOT_PASSED_ON),
    ("GET", "/healthz", NOT_PASSED_ON, NOT_PASSED_ON),
    ("GET", "/", NOT_PASSED_ON, NOT_PASSED_ON),
    // Attempts to bypass the rules. The paths that the proxy forwards are not routes of the service.
    ("GET", "/auth/../user_management/users", 404, 404),
    ("GET", "/auth/%2e%2e/changes", 404, 404),
    ("GET", "/auth/..%2fchanges", 404, 404),
    ("GET", "//changes", 404, 404),
    ("GET", "/auth//../user_management/users", 404, 404),
];

/// A proxy as a process. Killed when dropped.
struct Proxy {
    child: Child,
    public: SocketAddr,
    internal: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn example(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/proxy").join(name)).unwrap()
}

/// Replaces a text that must be there.
pub(crate) fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "the example has no {from:?}");
    text.replace(from, to)
}

/// The example for HAProxy without TLS.
pub(crate) fn haproxy_example(servers: [SocketAddr; 2], public: SocketAddr, internal: SocketAddr) -> String {
    let text = replaced(&example("haproxy.cfg"), "127.0.0.1:8080", &servers[0].to_string());
    let text = replaced(&text, "127.0.0.1:8081", &servers[1].to_string());
    let text = replaced(&text, "bind :443 ssl crt /etc/haproxy/auth.example.com.pem", &format!("bind {public}"));
    let internally = "bind 10.0.0.1:8443 ssl crt /etc/haproxy/authkit-sync.internal.pem";
    replaced(&text, internally, &format!("bind {internal}"))
}

impl Proxy {
    /// nginx with the example, without TLS, on free ports.
    async fn nginx(service: SocketAddr) -> Option<Self> {
        let nginx = required_program("nginx", "nginx-light")?;
        let (public, internal) = (free_address(), free_address());
        let site = replaced(&example("nginx.conf"), "127.0.0.1:8080", &service.to_string());
        let site = replaced(&site, "listen 443 ssl;", &format!("listen {public};"));
        let site = replaced(&site, "listen 10.0.0.1:8443 ssl;", &format!("listen {internal};"));
        let site: String =
            site.lines().filter(|line| !line.trim().starts_with("ssl_")).map(|line| format!("{line}\n")).collect();
        let folder = tempfile::tempdir().unwrap();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {name};"))
            .concat();
        let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
        let main = format!(
            "daemon off; master_process off; pid nginx.pid; error_log stderr; {user} events {{}}\n\
             http {{ access_log off; {temporary}\n{site}}}"
        );
        std::fs::write(folder.path().join("nginx.conf"), main).unwrap();
        let mut command = Command::new(nginx);
        command.arg("-p").arg(folder.path()).args(["-e", "stderr", "-c", "nginx.conf"]);
        Some(Self::start(command, public, internal, folder).await)
    }

    /// Caddy with the example, without TLS, on free ports.
    async fn caddy(service: SocketAddr) -> Option<Self> {
        let caddy = required_program("caddy", "caddy")?;
        let (public, internal) = (free_address(), free_address());
        let site = replaced(&example("Caddyfile"), "127.0.0.1:8080", &service.to_string());
        let site = replaced(
            &site,
            "\nauth.example.com {",
            &format!("\nhttp://auth.example.com:{} {{\n\tbind 127.0.0.1", public.port()),
        );
        let site = replaced(
            &site,
            "https://authkit-sync.internal:8443",
            &format!("http://authkit-sync.internal:{}", internal.port()),
        );
        let site = replaced(&replaced(&site, "\ttls internal\n", ""), "bind 10.0.0.1", "bind 127.0.0.1");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("Caddyfile");
        std::fs::write(&file, format!("{{\n\tadmin off\n\tauto_https off\n}}\n{site}")).unwrap();
        let mut command = Command::new(caddy);
        command.args(["run", "--adapter", "caddyfile", "--config"]).arg(&file);
        command.env("HOME", folder.path()).env("XDG_DATA_HOME", folder.path()).env("XDG_CONFIG_HOME", folder.path());
        Some(Self::start(command, public, internal, folder).await)
    }

    /// HAProxy with the example, without TLS, on free ports. Both servers are the same process.
    async fn haproxy(service: SocketAddr) -> Option<Self> {
        let haproxy = required_program("haproxy", "haproxy")?;
        let (public, internal) = (free_address(), free_address());
        let site = haproxy_example([service, service], public, internal);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("haproxy.cfg");
        std::fs::write(&file, site).unwrap();
        let mut command = Command::new(haproxy);
        command.arg("-db").arg("-f").arg(file);
        Some(Self::start(command, public, internal, folder).await)
    }

    async fn start(mut command: Command, public: SocketAddr, internal: SocketAddr, folder: tempfile::TempDir) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let proxy = Self { child, public, internal, _folder: folder };
        for address in [public, internal] {
            until("the proxy listens", async || tokio::net::TcpStream::connect(address).await.is_ok()).await;
        }
        proxy
    }
}

/// The status of a request whose path is sent as it is: an HTTP client would normalize it.
fn status(address: SocketAddr, host: &str, method: &str, path: &str) -> u16 {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{path}: {answer}"))
}

fn serve(database: &TestDatabase) -> Served {
    let more = [
        ("WORKOS_ACTION_SECRET", "an-action-secret-of-the-test"),
        ("AUTHKIT_SYNC_API_KEYS", "crm:a-service-key-of-the-test-0123456789"),
    ];
    Served::start(&database.url(), free_address(), &more)
}

async fn exposes_only_what_must_be_public(proxy: &Proxy) {
    let (public, internal) = (proxy.public, proxy.internal);
    let judged = tokio::task::spawn_blocking(move || {
        REQUESTS.map(|(method, path, _, _)| {
            let on_the_internet = status(public, "auth.example.com", method, path);
            (method, path, on_the_internet, status(internal, "authkit-sync.internal", method, path))
        })
    });
    assert_eq!(judged.await.unwrap(), REQUESTS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_exposes_only_what_must_be_public() {
    let database = TestDatabase::new().await;
    let served = serve(&database);
    let Some(proxy) = Proxy::nginx(served.address).await else { return };
    exposes_only_what_must_be_public(&proxy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caddy_exposes_only_what_must_be_public() {
    let database = TestDatabase::new().await;
    let served = serve(&database);
    let Some(proxy) = Proxy::caddy(served.address).await else { return };
    exposes_only_what_must_be_public(&proxy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn haproxy_exposes_only_what_must_be_public() {
    let database = TestDatabase::new().await;
    let served = serve(&database);
    let Some(proxy) = Proxy::haproxy(served.address).await else { return };
    exposes_only_what_must_be_public(&proxy).await;
}
