//! Unauthenticated clients that send too little, too slowly, or do not read: none of them blocks other clients.

use std::time::Duration;

use authkit_sync::authkit::ACTION_BODY_LIMIT;
use authkit_sync::workos::signature::Secret;
use bytes::Bytes;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::actions::{ACTION_SECRET, authentication, fresh, registration, secrets};
use crate::support::database::TestDatabase;
use crate::support::events::{body, unique, user};
use crate::support::service::{SECRET, Service, until};

/// The timeout of the tests in this file.
const TIMEOUT: Duration = Duration::from_secs(60);

async fn connect(service: &Service) -> TcpStream {
    TcpStream::connect(service.address).await.unwrap()
}

/// Sends bytes and returns the first bytes of the response. Empty if the service closes the connection.
async fn ask(stream: &mut TcpStream, bytes: &[u8]) -> String {
    stream.write_all(bytes).await.unwrap();
    answer(stream).await
}

async fn answer(stream: &mut TcpStream) -> String {
    let mut answer = vec![0; 4_096];
    let read = tokio::time::timeout(TIMEOUT, stream.read(&mut answer)).await.expect("an answer");
    // A reset is a closed connection, too.
    String::from_utf8_lossy(&answer[..read.unwrap_or(0)]).into_owned()
}

async fn deliver(service: &Service) -> u16 {
    let id = unique("user");
    service.deliver(&body(&unique("event"), "user.created", 0, &user(&id, "Ada", 0))).await.status
}

/// Returns the number of connections that the service closed for this reason.
async fn closed(service: &Service, reason: &str) -> u64 {
    let page = service.metrics().await;
    let name = format!("authkit_sync_connections_closed_total{{reason=\"{reason}\"}} ");
    page.lines().find_map(|line| line.strip_prefix(&name)).map_or(0, |count| count.parse().unwrap())
}

/// 66 unfinished bodies of almost 1 MiB each, which exceed the memory for webhooks of 64 MiB.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_bodies_make_room_oldest_first_and_cost_no_other_route_anything() {
    const BODIES: usize = 66;
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let start = |builder: authkit_sync::authkit::Builder| builder.action_secrets(secrets()).body_timeout(TIMEOUT);
    let service = Service::start_with(&pool, start).await;
    let length = 1024 * 1024;
    let signature = Secret::new(SECRET).sign(service.clock.now(), b"");
    let head = format!(
        "POST /workos/webhook HTTP/1.1\r\nHost: x\r\nWorkOS-Signature: {signature}\r\nContent-Length: {length}\r\n\r\n"
    );
    let almost = [head.as_bytes(), &vec![b'x'; length - 1]].concat();
    let mut unfinished = Vec::new();
    for _ in 0..BODIES {
        let mut stream = connect(&service).await;
        stream.write_all(&almost).await.unwrap();
        unfinished.push(stream);
    }
    // The first body was dropped to free memory for the last ones, so the memory is full from here on.
    let oldest = answer(&mut unfinished[0]).await;
    assert!(oldest.starts_with("HTTP/1.1 503 ") && oldest.contains("\"busy\""), "{oldest}");
    assert_eq!(answer(&mut unfinished[0]).await, "", "its connection is closed");
    assert_eq!(
        service.act(&authentication(&fresh(), "user_1")).await.status,
        200,
        "actions have a memory of their own"
    );
    assert_eq!(deliver(&service).await, 200, "and a webhook that arrives now is received");
    let newest = ask(unfinished.last_mut().unwrap(), b"x").await;
    assert!(newest.starts_with("HTTP/1.1 401 "), "the newest is still being received: {newest}");
    drop(unfinished);
    service.stop().await.unwrap();
}

/// The bodies of all connections fit into the memory for actions, so none of them is dropped.
#[tokio::test]
async fn unfinished_actions_on_every_connection_block_no_other_action() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let start = |builder: authkit_sync::authkit::Builder| {
        builder.action_secrets(secrets()).body_timeout(TIMEOUT).connections(4)
    };
    let service = Service::start_with(&pool, start).await;
    let signature = Secret::new(ACTION_SECRET).sign(service.clock.now(), b"");
    let head = format!(
        "POST /workos/action HTTP/1.1\r\nHost: x\r\nWorkOS-Signature: {signature}\r\nContent-Length: {ACTION_BODY_LIMIT}\r\n\r\n"
    );
    let mut unfinished = Vec::new();
    for _ in 0..3 {
        let mut stream = connect(&service).await;
        stream.write_all(&[head.as_bytes(), &vec![b'x'; ACTION_BODY_LIMIT - 1]].concat()).await.unwrap();
        unfinished.push(stream);
    }
    assert_eq!(service.act(&authentication(&fresh(), "user_1")).await.status, 200);
    for stream in &mut unfinished {
        let finished = ask(stream, b"x").await;
        assert!(finished.starts_with("HTTP/1.1 401 "), "{finished}");
    }
    service.stop().await.unwrap();
}

#[tokio::test]
async fn an_action_may_be_as_long_as_workos_can_make_it_and_no_longer() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let service = Service::start_with(&pool, |builder| builder.action_secrets(secrets())).await;
    // Ten pairs of 40 and 600 characters, for the user and for the organization.
    let pairs: serde_json::Map<_, _> = (0..10).map(|n| (format!("{n:040}"), json!("x".repeat(600)))).collect();
    let mut longest: serde_json::Value = serde_json::from_slice(&authentication(&fresh(), "user_1")).unwrap();
    longest["user"]["metadata"] = json!(pairs);
    longest["organization"] = json!({"id": "org_1", "metadata": pairs});
    longest["user_agent"] = json!("x".repeat(8_000));
    assert_eq!(service.act(&Bytes::from(longest.to_string())).await.status, 200);
    let padded = |length: usize| {
        let action = registration(&fresh(), "ada@example.com");
        Bytes::from([&action[..], &vec![b' '; length - action.len()]].concat())
    };
    assert_eq!(service.act(&padded(ACTION_BODY_LIMIT)).await.status, 200);
    assert_eq!(service.act(&padded(ACTION_BODY_LIMIT + 1)).await.code(), (413, "body_too_large".to_owned()));
    service.stop().await.unwrap();
}

#[tokio::test]
async fn at_the_bound_the_connection_that_has_gone_longest_without_a_completed_request_is_closed() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let service = Service::start_with(&pool, |builder| builder.connections(4)).await;
    let request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut active = connect(&service).await;
    assert!(ask(&mut active, request).await.starts_with("HTTP/1.1 200 "));
    let mut silent = connect(&service).await;
    let mut slow = connect(&service).await;
    slow.write_all(b"GET /healthz HTTP/1.1\r\nHos").await.unwrap();
    // This connection was accepted after both, and is answered. So both are accepted, too.
    let mut idle = connect(&service).await;
    assert!(ask(&mut idle, request).await.starts_with("HTTP/1.1 200 "));
    assert!(ask(&mut active, request).await.starts_with("HTTP/1.1 200 "));
    let mut fifth = connect(&service).await;
    assert!(ask(&mut fifth, request).await.starts_with("HTTP/1.1 200 "), "a newcomer is not refused");
    assert_eq!(answer(&mut silent).await, "", "who never asked makes room first");
    assert_eq!(closed(&service, "limit").await, 1);
    let mut sixth = connect(&service).await;
    assert!(ask(&mut sixth, request).await.starts_with("HTTP/1.1 200 "));
    assert_eq!(answer(&mut slow).await, "", "then who never completed a request");
    let mut seventh = connect(&service).await;
    assert!(ask(&mut seventh, request).await.starts_with("HTTP/1.1 200 "));
    assert_eq!(answer(&mut idle).await, "", "then who completed one longest ago");
    assert!(ask(&mut active, request).await.starts_with("HTTP/1.1 200 "), "who keeps asking stays");
    assert_eq!(closed(&service, "limit").await, 3);
    service.stop().await.unwrap();
}

/// Many more idle connections than the limit, with valid requests between them.
#[tokio::test]
async fn idle_connections_in_any_number_block_no_other_client() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let service = Service::start_with(&pool, |builder| builder.connections(8)).await;
    let mut idle = Vec::new();
    for _ in 0..10 {
        for _ in 0..10 {
            idle.push(connect(&service).await);
        }
        assert_eq!((service.get("/readyz").await.status, deliver(&service).await), (200, 200));
    }
    assert!(closed(&service, "limit").await >= 90);
    service.stop().await.unwrap();
}

#[tokio::test]
async fn a_client_that_never_reads_is_cut_off() {
    const REQUESTS: usize = 2_000;
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let service = Service::start_with(&pool, |builder| builder.write_timeout(Duration::from_millis(200))).await;
    let document = service.get("/openapi.json").await.text;
    // The kernel buffers some megabytes of answers. These answers are much larger.
    assert!(document.len() * REQUESTS > 32 * 1024 * 1024, "{}", document.len());
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let mut stream = socket.connect(service.address).await.unwrap();
    let requests = "GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n".repeat(REQUESTS);
    let (mut reads, mut writes) = stream.split();
    // The service also stops reading while it cannot write, so this write may not end before the connection is closed.
    let (sent, ()) = tokio::join!(writes.write_all(requests.as_bytes()), async {
        until("the connection is closed", async || closed(&service, "write_timeout").await == 1).await;
    });
    drop(sent);
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(TIMEOUT, reads.read_to_end(&mut rest)).await.expect("the end of the connection");
    assert!(rest.len() < document.len() * REQUESTS);
    service.stop().await.unwrap();
}
