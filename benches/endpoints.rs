//! What a webhook and a lookup cost, beside the same handler without a database. Run with `cargo bench`.
//!
//! Everything is in this one process and on this machine, load included, so only the ratios mean anything elsewhere.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on should stop")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use authkit_sync::AuthKit;
use authkit_sync::dev::postgres::{Data, PrivatePostgres, Programs};
use authkit_sync::dev::workos::{Options, SimulatedWorkos};
use authkit_sync::domain::clock::Clock;
use authkit_sync::store::migrations;
use authkit_sync::workos::signature::{self, Secret, SignatureHeader, WEBHOOK_TOLERANCE};
use authkit_sync::workos::wire;
use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use bytes::Bytes;
use serde_json::json;
use sqlx::postgres::PgPoolOptions;
use tokio::net::TcpListener;

const CLIENTS: usize = 16;

/// Sends `count` requests over a few connections and prints how it went; returns the requests per second.
async fn measure(
    name: &str,
    count: usize,
    request: impl Fn(usize) -> reqwest::RequestBuilder + Send + Sync + 'static,
) -> f64 {
    let request = Arc::new(request);
    let started = Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let request = request.clone();
        clients.spawn(async move {
            let mut times = Vec::with_capacity(count / CLIENTS);
            for at in (client..count).step_by(CLIENTS) {
                let sent = Instant::now();
                let answer = request(at).send().await.unwrap();
                assert_eq!(answer.status(), 200);
                answer.bytes().await.unwrap();
                times.push(sent.elapsed());
            }
            times
        });
    }
    let mut times: Vec<Duration> = clients.join_all().await.into_iter().flatten().collect();
    let rate = times.len() as f64 / started.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)].as_secs_f64() * 1_000.0;
    println!("{name:<44} {rate:>8.0}/s   p50 {:>7.3} ms   p99 {:>7.3} ms", at(50), at(99));
    rate
}

/// The receiver's work without its database: signature and parsing.
async fn receive_without_database(secret: Secret) -> SocketAddr {
    let handler = move |headers: HeaderMap, body: Bytes| {
        let secret = secret.clone();
        async move {
            let header = headers.get(signature::HEADER).map(|value| value.as_bytes());
            let header = SignatureHeader::parse(header, Clock::system().now(), WEBHOOK_TOLERANCE).unwrap();
            let body = header.verify(std::slice::from_ref(&secret), body).unwrap();
            wire::event(&body).map_or(StatusCode::BAD_REQUEST, |_| StatusCode::OK)
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/", post(handler))).await });
    address
}

fn event(at: usize, run: &str) -> Bytes {
    let id = format!("user_{run}_{at}");
    let user = json!({
        "object": "user", "id": id, "email": format!("{id}@example.test"), "email_verified": true, "first_name": "Ada",
        "last_name": "Quill", "name": "Ada Quill", "profile_picture_url": null, "external_id": format!("crm-{run}-{at}"),
        "metadata": {"plan": "team"}, "last_sign_in_at": null, "locale": "en-GB",
        "created_at": "2026-09-01T08:15:30.412Z", "updated_at": "2026-09-01T08:15:30.412Z",
    });
    let event = json!({
        "object": "event", "id": format!("event_{run}_{at}"), "event": "user.created", "data": user,
        "created_at": "2026-09-01T08:15:30.456Z", "context": {"client_id": "client_bench"},
    });
    Bytes::from(event.to_string())
}

#[tokio::main]
async fn main() {
    // Data on disk with fsync on, as in production: the commit is what a receipt waits for.
    let folder = std::env::temp_dir().join(format!("authkit-sync-bench-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let postgres =
        PrivatePostgres::start(Programs::find().unwrap(), &Data::Kept(folder.join("postgres")), &[]).unwrap();
    let pool = || {
        PgPoolOptions::new()
            .max_connections(10)
            .test_before_acquire(false)
            .connect_lazy(&postgres.url("postgres"))
            .unwrap()
    };
    let receipts = pool();
    migrations::run(&receipts).await.unwrap();
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let workos =
        SimulatedWorkos::start(Options { listen, clock: Clock::system(), seed: 1, state: None }).await.unwrap();
    let secret = Secret::new(workos.webhook_secret());
    let authkit = AuthKit::builder(receipts.clone(), workos.client_id())
        .lookup_pool(pool())
        .api_base(workos.base_url())
        .webhook_secrets(vec![secret.clone()])
        .build()
        .unwrap();
    let listener = TcpListener::bind(listen).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(authkit.run(listener, None, std::future::pending()));
    let bare = format!("http://{}/", receive_without_database(secret.clone()).await);

    let client = authkit_sync::workos::http::http_client().unwrap();
    let deliver = |url: String, run: &'static str| {
        let (client, secret) = (client.clone(), secret.clone());
        move |at| {
            let body = event(at, run);
            let signed = secret.sign(Clock::system().now(), &body);
            client.post(&url).header(signature::HEADER, signed).body(body)
        }
    };
    measure("(warm-up)", 1_000, deliver(format!("{url}/workos/webhook"), "warm")).await;
    let with = measure("POST /workos/webhook", 8_000, deliver(format!("{url}/workos/webhook"), "with")).await;
    let again =
        measure("POST /workos/webhook, duplicates", 8_000, deliver(format!("{url}/workos/webhook"), "with")).await;
    let without = measure("the same without a database", 40_000, deliver(bare, "bare")).await;

    let tokens: Vec<String> =
        (0..64).map(|at| workos.token(&format!("user_with_{at}"), "session_1", 3_600).unwrap()).collect();
    let tokens = Arc::new(tokens);
    let ask = |path: &str| {
        let (client, url, tokens) = (client.clone(), format!("{url}{path}"), tokens.clone());
        move |at: usize| client.get(&url).bearer_auth(&tokens[at % tokens.len()])
    };
    measure("(warm-up)", 2_000, ask("/auth/user")).await;
    let user = measure("GET /auth/user", 40_000, ask("/auth/user")).await;
    let identity = measure("GET /auth/identity (no database)", 40_000, ask("/auth/identity")).await;
    println!(
        "\nratio, webhook to the same without a database:   {:.3} (duplicates {:.3})",
        with / without,
        again / without
    );
    println!("ratio, /auth/user to /auth/identity:             {:.3}", user / identity);

    workos.stop().await;
    receipts.close().await;
    drop(postgres);
    std::fs::remove_dir_all(&folder).unwrap();
}
