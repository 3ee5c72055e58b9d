//! SIGHUP: the process rereads its log filter and continues.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::Stdio;

use authkit_sync::workos::http::http_client;
use serde_json::Value;

use crate::support::binary::{Served, binary, first_line, free_address, run, signal};
use crate::support::database::TestDatabase;
use crate::support::service::{CLIENT_ID, SECRET, http_ok, until};

/// Sends SIGHUP and waits for the log line with the result.
async fn hang_up(served: &Served, says: &str) {
    let before = served.log().matches("SIGHUP").count();
    signal(&served.child, "HUP");
    until(says, async || {
        let log = served.log();
        let line = log.lines().filter(|line| line.contains("SIGHUP")).nth(before);
        line.is_some_and(|line| {
            assert!(line.contains(says), "{line} does not say {says}");
            true
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sighup_rereads_the_log_filter_of_the_dotenv_file_and_the_service_continues() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().unwrap();
    let dotenv = |text: &str| std::fs::write(folder.path().join(".env"), text).unwrap();
    dotenv("RUST_LOG=authkit_sync=info\n");
    let mut served = Served::start_in(folder.path(), &database.url(), free_address(), &[]);
    let requests = || served.log().lines().filter(|line| line.contains("http.route")).count();
    hang_up(&served, "the log filter is the same").await;
    dotenv("RUST_LOG=authkit_sync=warn\n");
    hang_up(&served, "to=\"authkit_sync=warn\"").await;
    let quiet = requests();
    http_ok(&served.url("/healthz")).await;
    dotenv("RUST_LOG=authkit_sync=trace\n");
    hang_up(&served, "to=\"authkit_sync=trace\"").await;
    assert_eq!(requests(), quiet, "a request is not logged at that level");
    http_ok(&served.url("/healthz")).await;
    until("requests are logged again", async || requests() > quiet).await;
    dotenv("RUST_LOG=authkit_sync=warn\nWORKOS_API_KEY='hunter2\n");
    hang_up(&served, "a line is malformed").await;
    dotenv("RUST_LOG=authkit_sync=louder\n");
    hang_up(&served, "its RUST_LOG is malformed").await;
    let loud = requests();
    http_ok(&served.url("/healthz")).await;
    until("the filter is the one before", async || requests() > loud).await;
    std::fs::remove_file(folder.path().join(".env")).unwrap();
    hang_up(&served, "to=\"warn,authkit_sync=info\"").await;
    assert!(served.terminate().success());
    assert!(!served.log().contains("hunter2"), "{}", served.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_environments_log_filter_overrides_the_files_at_sighup_as_at_the_start() {
    let database = TestDatabase::new().await;
    let mut served = Served::start(&database.url(), free_address(), &[("RUST_LOG", "authkit_sync=info")]);
    hang_up(&served, "the environment's RUST_LOG overrides").await;
    assert!(served.terminate().success());
}

#[test]
fn sighup_ends_no_command_even_while_it_waits_for_the_database() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://nobody@{}/x?sslmode=disable", silent.local_addr().unwrap());
    for arguments in [&["migrate"][..], &["migrate", "status"]] {
        let mut command = binary();
        command.args(arguments).env("DATABASE_URL", &url).env("AUTHKIT_SYNC_DB_TIMEOUT", "60s");
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let (connection, _) = silent.accept().unwrap();
        signal(&child, "HUP");
        // It is logged, so it was received.
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        log.read_line(&mut line).unwrap();
        assert!(line.contains("SIGHUP"), "{arguments:?}: {line}");
        assert!(child.try_wait().unwrap().is_none(), "{arguments:?}");
        drop(connection);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sighup_does_not_end_dev() {
    let mut command = binary();
    command.args(["dev", "--ephemeral", "--json"]).env("RUST_LOG", "info").stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let line = first_line(child.stdout.take().unwrap());
    let ready: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not a line of JSON: {line}"));
    signal(&child, "HUP");
    let log = BufReader::new(child.stderr.take().unwrap());
    let (said, says) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in log.lines().map_while(Result::ok).filter(|line| line.contains("SIGHUP")) {
            let _ = said.send(line);
        }
    });
    let received = says.recv_timeout(std::time::Duration::from_secs(60));
    assert!(received.is_ok(), "no line about SIGHUP");
    http_ok(&format!("{}/healthz", ready["url"].as_str().unwrap())).await;
    signal(&child, "TERM");
    assert!(child.wait().unwrap().success());
}

/// As after the terminal of the log is closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_log_fails_no_request() {
    let database = TestDatabase::new().await;
    let address = free_address();
    let mut command = binary();
    command.arg("serve").env("DATABASE_URL", database.url()).env("WORKOS_CLIENT_ID", CLIENT_ID);
    command.env("WORKOS_WEBHOOK_SECRET", SECRET).env("WORKOS_API_KEY", "sk_test_key");
    command.env("WORKOS_API_HOSTNAME", "127.0.0.1").env("WORKOS_API_PORT", "9").env("WORKOS_API_HTTPS", "false");
    command.env("AUTHKIT_SYNC_LISTEN", address.to_string()).env("AUTHKIT_SYNC_OPS_LISTEN", free_address().to_string());
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    assert!(first_line(child.stderr.take().unwrap()).contains("is listening"));
    // The log is not read any more, and each request writes a line.
    let client = http_client().unwrap();
    for _ in 0..3 {
        let answer = client.get(format!("http://{address}/auth/user")).send().await;
        assert_eq!(answer.map(|answer| answer.status().as_u16()).ok(), Some(401));
    }
    signal(&child, "HUP");
    let listen = address.to_string();
    assert_eq!(run(&["healthcheck"], &[("AUTHKIT_SYNC_LISTEN", &listen)]).status.code(), Some(0));
    signal(&child, "TERM");
    assert!(child.wait().unwrap().success());
}
