//! The proxy of the environment: only requests to WorkOS use it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{Output, Stdio};

use crate::support::binary::{binary, run, said};
use crate::support::database::TestDatabase;
use crate::support::events::{body, user};
use crate::support::fixture;
use crate::support::service::{CLIENT_ID, SECRET, Service};

/// Every variable that names a proxy, with a port on which no process listens.
pub(crate) const DEAD_PROXY: [(&str, &str); 4] = [
    ("HTTP_PROXY", "http://127.0.0.1:9"),
    ("http_proxy", "http://127.0.0.1:9"),
    ("HTTPS_PROXY", "http://127.0.0.1:9"),
    ("ALL_PROXY", "http://127.0.0.1:9"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_to_ourselves_never_use_a_proxy() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let service = Service::start(&pool).await;
    let listen = format!("0.0.0.0:{}", service.address.port());
    for arguments in [&["healthcheck"][..], &["healthcheck", "--ready"]] {
        let asked = run(arguments, &[&DEAD_PROXY[..], &[("AUTHKIT_SYNC_LISTEN", &listen)]].concat());
        assert_eq!(asked.status.code(), Some(0), "{arguments:?}: {}", said(&asked));
    }
    let clock = authkit_sync::domain::clock::Clock::system();
    service.clock.set(clock.now());
    let event = body("event_1", "user.created", 0, &user("user_1", "Ada", 0));
    let url = service.url("/workos/webhook");
    let environment = [&DEAD_PROXY[..], &[("WORKOS_WEBHOOK_SECRET", SECRET)]].concat();
    let sent = run_with(&["webhook", "sign", "--send", &url], &environment, &event);
    assert_eq!(sent.status.code(), Some(0), "{}", said(&sent));
    service.stop().await.unwrap();
}

#[test]
fn requests_to_workos_use_the_proxy_of_the_environment() {
    let (proxy, requests) = proxy();
    let environment = [("WORKOS_CLIENT_ID", CLIENT_ID), ("WORKOS_API_HOSTNAME", "workos.invalid")];
    let token = fixture("access_tokens")["vectors"][0]["token"].as_str().unwrap().to_owned();
    let explain = |more: &[(&str, &str)]| {
        let explained = run_with(&["token", "explain"], &[&environment[..], more].concat(), token.as_bytes());
        assert_eq!(explained.status.code(), Some(69), "{}", said(&explained));
        requests.try_iter().collect::<Vec<_>>()
    };
    let asked = explain(&[("HTTPS_PROXY", &proxy)]);
    assert!(asked.iter().any(|line| line.starts_with("CONNECT workos.invalid:443 ")), "{asked:?}");
    let asked = explain(&[("HTTP_PROXY", &proxy), ("WORKOS_API_HTTPS", "false")]);
    let keys = format!("GET http://workos.invalid/sso/jwks/{CLIENT_ID} ");
    assert!(asked.iter().any(|line| line.starts_with(&keys)), "{asked:?}");
    let asked = explain(&[("HTTPS_PROXY", &proxy), ("NO_PROXY", "workos.invalid")]);
    assert!(asked.is_empty(), "{asked:?}");
    let asked = explain(&[("HTTPS_PROXY", &proxy), ("WORKOS_API_HOSTNAME", "127.0.0.1"), ("WORKOS_API_PORT", "9")]);
    assert!(asked.is_empty(), "an emulator on this machine is dialled directly: {asked:?}");
}

/// A proxy that rejects every request and records its first line.
fn proxy() -> (String, std::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (seen, requests) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut line = String::new();
            let _ = BufReader::new(&stream).read_line(&mut line);
            let _ = seen.send(line);
            let _ = stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    (url, requests)
}

fn run_with(arguments: &[&str], environment: &[(&str, &str)], stdin: &[u8]) -> Output {
    let mut command = binary();
    command.args(arguments).envs(environment.iter().copied());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin).unwrap();
    child.wait_with_output().unwrap()
}
