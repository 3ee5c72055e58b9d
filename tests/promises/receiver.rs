//! The webhook endpoint over real HTTP: every status that it answers, and every format that WorkOS sends.

use authkit_sync::workos::signature::Secret;
use bytes::Bytes;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::database::TestDatabase;
use crate::support::events::{body, unique, user};
use crate::support::fixture_bytes;
use crate::support::service::{SECRET, Service, until};

const EVENTS: [&str; 13] = [
    "event.authentication.password_failed",
    "event.invitation.created",
    "event.organization.updated",
    "event.organization_membership.created",
    "event.session.created",
    "event.session.created.impersonation_no_org",
    "event.unknown_future_type",
    "event.user.created",
    "event.user.updated",
    "event.user.updated.space_timestamps_no_object",
    "event.user.updated.unicode_metadata_nulls",
    "event.user.deleted.id_only_defensive",
    "event.user.deleted",
];

#[tokio::test]
async fn every_event_workos_sends_is_committed_and_acknowledged() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let service = Service::start(&pool).await;
    for name in EVENTS {
        let body = Bytes::from(fixture_bytes(name));
        let answer = service.deliver(&body).await;
        assert_eq!(answer.status, 200, "{name}: {}", answer.text);
        let id = serde_json::from_slice::<Value>(&body).unwrap()["id"].as_str().unwrap().to_owned();
        let outcome: String = sqlx::query_scalar("select outcome from workos.events where id = $1")
            .bind(id)
            .fetch_one(&pool)
            .await
            .unwrap();
        assert_eq!(answer.json()["outcome"], json!(outcome), "{name}");
        assert_eq!(service.deliver(&body).await.json()["outcome"], json!("duplicate"), "{name}");
    }
    let live: Vec<String> =
        sqlx::query_scalar("select id from workos.users order by id").fetch_all(&pool).await.unwrap();
    assert_eq!(live, ["user_01K181KRKTG8RH5ZP5ABFV57ZX", "user_01M1E0KDG2DAHQRDHQRA25JTQN"]);
    service.stop().await.unwrap();
}

#[tokio::test]
async fn what_workos_did_not_sign_is_refused_with_its_reason_and_never_stored() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let service = Service::start(&pool).await;
    let body = body("event_1", "user.created", 0, &user("user_1", "Ada", 0));
    let now = service.clock.now();
    let old = Secret::new(SECRET).sign(now.plus_seconds(-181), &body);
    let future = Secret::new(SECRET).sign(now.plus_seconds(181), &body);
    let other = Secret::new("whsec_other").sign(now, &body);
    for (header, says) in [
        (None, "missing"),
        (Some("t=1"), "malformed"),
        (Some(old.as_str()), "181 s old"),
        (Some(future.as_str()), "181 s in the future"),
        (Some(other.as_str()), "no configured secret"),
    ] {
        let answer = service.deliver_signed(&body, header).await;
        assert_eq!(answer.code(), (401, "signature_invalid".to_owned()));
        assert!(answer.text.contains(says), "{} does not say {says}", answer.text);
    }
    let rows: i64 = sqlx::query_scalar("select count(*) from workos.events").fetch_one(&pool).await.unwrap();
    assert_eq!(rows, 0);
    service.stop().await.unwrap();
}

#[tokio::test]
async fn a_signed_body_that_is_not_an_event_is_400_so_that_it_shows_at_workos() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let service = Service::start(&pool).await;
    for body in
        ["", "{}", "[]", "null", "{\"id\":1,\"event\":\"x\"}", "{\"id\":\"e\"}", "{\"id\":\"e\",\"event\":\"x\""]
    {
        let answer = service.deliver(&Bytes::from_static(body.as_bytes())).await;
        assert_eq!(answer.code(), (400, "not_an_event".to_owned()), "{body}");
    }
    service.stop().await.unwrap();
}

#[tokio::test]
async fn verified_but_unusable_events_are_quarantined_whole_and_acknowledged() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let service = Service::start(&pool).await;
    let deep = format!("{}{}", "[".repeat(5_000), "]".repeat(5_000));
    let noise: String =
        (0..9_000_u32).map(|at| char::from_u32(0x4E00 + at.wrapping_mul(2_654_435_761) % 20_000).unwrap()).collect();
    let mut too_long = user("user_long", "Ada", 0);
    too_long["external_id"] = json!(noise);
    let too_big_a_number = user("user_big", "Ada", 0).to_string().replacen('{', &format!("{{\"n\":1e{},", 200_000), 1);
    for (event_type, data, reason) in [
        ("user.created", "7".to_owned(), "data is not an object"),
        ("user.updated", json!({"email": "a@example.test"}).to_string(), "data.id"),
        ("user.updated", json!({"id": "user_1", "email_verified": true}).to_string(), "email is missing"),
        ("user.updated", json!({"id": "user_1", "email": "a@b", "email_verified": 1}).to_string(), "email_verified"),
        ("user.deleted", json!({"id": ["user_1"]}).to_string(), "data.id"),
        ("role.created", deep, "deeper"),
        ("user.created", too_long.to_string(), "SQLSTATE 54000"),
        ("user.created", too_big_a_number, "SQLSTATE 22"),
    ] {
        let id = unique("event");
        let data = if data.starts_with("[[") { format!("{{\"x\":{data}}}") } else { data };
        let body = Bytes::from(format!(
            "{{\"id\":\"{id}\",\"event\":\"{event_type}\",\"created_at\":\"2026-09-01T08:00:00Z\",\"data\":{data}}}"
        ));
        let answer = service.deliver(&body).await;
        assert_eq!(
            (answer.status, answer.json()["outcome"].as_str()),
            (200, Some("quarantined")),
            "{reason}: {}",
            answer.text
        );
        let (kept, why): (Vec<u8>, String) = sqlx::query_as("select payload, reason from workos.events where id = $1")
            .bind(&id)
            .fetch_one(&pool)
            .await
            .unwrap();
        assert_eq!(kept, body, "kept byte for byte");
        assert!(why.contains(reason), "{why} does not say {reason}");
    }
    let users: i64 = sqlx::query_scalar("select count(*) from workos.user_records").fetch_one(&pool).await.unwrap();
    assert_eq!(users, 0);
    service.stop().await.unwrap();
}

#[tokio::test]
async fn names_in_any_script_and_characters_that_postgres_rejects_are_stored_and_returned() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let service = Service::start(&pool).await;
    let names = ["Zoë 🦀", "李小龍", "محمد", "नमस्ते", "e\u{301}", "O'Brien \"x\" \\ / \t", "\u{200D}\u{FEFF}", "𝔘𝔫𝔦"];
    for name in names {
        let id = unique("user");
        assert_eq!(service.deliver(&body(&unique("event"), "user.created", 0, &user(&id, name, 0))).await.status, 200);
        let stored: String = sqlx::query_scalar("select first_name from workos.users where id = $1")
            .bind(&id)
            .fetch_one(&pool)
            .await
            .unwrap();
        assert_eq!(stored, name);
    }
    let data = user("user_nul", "NAME", 0).to_string().replace("NAME", "a\\u0000b\\ud800c");
    let body = format!("{{\"id\":\"event_nul\\u0000\",\"event\":\"user.created\",\"data\":{data}}}");
    assert_eq!(service.deliver(&Bytes::from(body)).await.json()["outcome"], json!("applied"));
    let stored: String =
        sqlx::query_scalar("select first_name from workos.users where id = 'user_nul'").fetch_one(&pool).await.unwrap();
    assert_eq!(stored, "a\u{FFFD}b\u{FFFD}c");
    service.stop().await.unwrap();
}

/// Sends raw bytes and reads until the server has answered or closed the connection.
async fn raw(service: &Service, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(service.address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = vec![0; 4_096];
    let read = stream.read(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer[..read]).into_owned()
}

#[tokio::test]
async fn a_request_with_invalid_headers_is_refused_before_its_body() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let service = Service::start(&pool).await;
    let head = |lines: &str| format!("POST /workos/webhook HTTP/1.1\r\nHost: x\r\n{lines}\r\n");
    // No byte of a body follows.
    let unsigned = raw(&service, head("Content-Length: 1000\r\n").as_bytes()).await;
    assert!(unsigned.starts_with("HTTP/1.1 401 "), "{unsigned}");
    let signature = Secret::new(SECRET).sign(service.clock.now(), b"");
    let long = head(&format!("WorkOS-Signature: {signature}\r\nContent-Length: 1048577\r\n"));
    let long = raw(&service, long.as_bytes()).await;
    assert!(long.starts_with("HTTP/1.1 413 "), "{long}");
    service.stop().await.unwrap();
}

#[tokio::test]
async fn endless_and_slow_bodies_end_in_413_and_408_and_delay_no_other_request() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let service =
        Service::start_with(&pool, |builder| builder.body_limit(10_000).body_timeout(Duration::from_secs(3))).await;
    let signature = Secret::new(SECRET).sign(service.clock.now(), b"");
    let head = format!(
        "POST /workos/webhook HTTP/1.1\r\nHost: x\r\nWorkOS-Signature: {signature}\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    let chunk = format!("1000\r\n{}\r\n", "x".repeat(0x1000));
    let endless = raw(&service, format!("{head}{}", chunk.repeat(4)).as_bytes()).await;
    assert!(endless.starts_with("HTTP/1.1 413 "), "{endless}");
    // While slow senders wait for their 408, a complete delivery is answered.
    let mut slow = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let (head, address) = (head.clone(), service.address);
        slow.spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(format!("{head}5\r\nab").as_bytes()).await.unwrap();
            let mut answer = vec![0; 1_024];
            let read = stream.read(&mut answer).await.unwrap();
            String::from_utf8_lossy(&answer[..read]).into_owned()
        });
    }
    let honest = body("event_honest", "user.created", 0, &user("user_1", "Ada", 0));
    assert_eq!(service.deliver(&honest).await.status, 200);
    while let Some(answer) = slow.join_next().await {
        let answer = answer.unwrap();
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    }
    service.stop().await.unwrap();
}

#[tokio::test]
async fn a_body_that_breaks_off_stores_nothing() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let service = Service::start(&pool).await;
    let whole = body("event_1", "user.created", 0, &user("user_1", "Ada", 0));
    let signature = Secret::new(SECRET).sign(service.clock.now(), &whole);
    let head = format!(
        "POST /workos/webhook HTTP/1.1\r\nHost: x\r\nWorkOS-Signature: {signature}\r\nContent-Length: {}\r\n\r\n",
        whole.len()
    );
    let mut stream = TcpStream::connect(service.address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&whole[..whole.len() / 2]).await.unwrap();
    drop(stream);
    until("the broken request was counted", async || {
        let page =
            service.client.get(format!("http://{}/metrics", service.ops)).send().await.unwrap().text().await.unwrap();
        page.contains("authkit_sync_connections 1") || page.contains("body_incomplete")
    })
    .await;
    let rows: i64 = sqlx::query_scalar("select count(*) from workos.events").fetch_one(&pool).await.unwrap();
    assert_eq!(rows, 0);
    service.stop().await.unwrap();
}

#[tokio::test]
async fn other_paths_and_methods_are_answered_in_our_shape() {
    let database = TestDatabase::new().await;
    let pool = database.pool(2).await;
    let service = Service::start(&pool).await;
    assert_eq!(service.get("/nothing").await.code(), (404, "route_not_found".to_owned()));
    assert_eq!(service.get("/workos/webhook").await.code(), (405, "method_not_allowed".to_owned()));
    assert_eq!(service.get("/metrics").await.status, 404, "metrics are for operators");
    service.stop().await.unwrap();
}

#[tokio::test]
async fn a_shutdown_commits_and_answers_what_has_begun() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let service = Service::start(&pool).await;
    // The event's user is locked, so that its delivery is in the middle of its transaction when the stop comes.
    assert_eq!(service.deliver(&body("event_1", "user.created", 0, &user("user_1", "Ada", 0))).await.status, 200);
    let mut blocker = pool.acquire().await.unwrap();
    let mut open = sqlx::Connection::begin(&mut *blocker).await.unwrap();
    sqlx::query("select from workos.user_records for update").execute(&mut *open).await.unwrap();
    let update = body("event_2", "user.updated", 9, &user("user_1", "Grace", 9));
    let signature = Secret::new(SECRET).sign(service.clock.now(), &update);
    let (client, url) = (service.client.clone(), service.url("/workos/webhook"));
    let delivery =
        tokio::spawn(async move { client.post(url).header("workos-signature", signature).body(update).send().await });
    until("the delivery waits for the row", async || {
        sqlx::query_scalar::<_, bool>("select exists (select from pg_locks where not granted)")
            .fetch_one(&pool)
            .await
            .unwrap()
    })
    .await;
    let address = service.address;
    let stopping = tokio::spawn(service.stop());
    until("new connections are refused", async || TcpStream::connect(address).await.is_err()).await;
    open.rollback().await.unwrap();
    assert_eq!(delivery.await.unwrap().unwrap().status().as_u16(), 200);
    stopping.await.unwrap().unwrap();
    let name: String = sqlx::query_scalar("select first_name from workos.users").fetch_one(&pool).await.unwrap();
    assert_eq!(name, "Grace");
}

/// Found under load: the connection was reset before the sender received the answer.
#[tokio::test]
async fn the_answer_to_a_refused_body_arrives_although_the_body_was_not_wanted() {
    let database = TestDatabase::new().await;
    let service = Service::start_with(&database.pool(2).await, |builder| builder.body_limit(1_024)).await;
    for (header, status) in [("", "401"), ("workos-signature: t=1, v1=00\r\n", "401")] {
        let mut stream = tokio::net::TcpStream::connect(service.address).await.unwrap();
        let body = vec![b' '; 512 * 1_024];
        let head =
            format!("POST /workos/webhook HTTP/1.1\r\nhost: x\r\n{header}content-length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&body).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answers = String::new();
        stream.read_to_string(&mut answers).await.unwrap();
        assert!(answers.starts_with(&format!("HTTP/1.1 {status}")), "{answers}");
        assert!(answers.contains("HTTP/1.1 200"), "the connection goes on: {answers}");
    }
    service.stop().await.unwrap();
}
