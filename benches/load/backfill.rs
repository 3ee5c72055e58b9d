//! Backfill without pauses, from a source that serves prepared pages.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use authkit_sync::domain::clock::Clock;
use authkit_sync::metrics::Metrics;
use authkit_sync::store::Store;
use authkit_sync::sync::backfill::{Backfill, BackfillStep};
use authkit_sync::sync::job::JobContext;
use authkit_sync::workos::api::{Api, ApiKey, PAGE};
use axum::Router;
use axum::extract::Query;
use axum::routing::get;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::postgres::PgPoolOptions;
use tokio::net::TcpListener;

use super::cpu;
use super::database::Database;
use super::requests::{FIRST, user};

/// The database of the backfill, which is created again for each measurement.
const DATABASE: &str = "backfill";

/// Connections of the command `backfill`.
const CONNECTIONS: u32 = 4;

/// The result of a backfill. Its CPU time is in microseconds.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Backfilled {
    pub(crate) users: u64,
    pub(crate) seconds: f64,
    pub(crate) cpu: f64,
    /// Milliseconds from page to page.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

/// Serves the list of users from memory.
pub(crate) async fn serve_pages(users: u64) -> SocketAddr {
    let ids: Vec<String> = (0..users).map(|number| format!("user_backfill_{}", FIRST + number)).collect();
    let mut pages = HashMap::new();
    let mut after = String::new();
    for page in ids.chunks(PAGE) {
        let last = page.last().cloned().unwrap_or_default();
        let data: Vec<_> = page.iter().map(|id| user(id, "Ada", super::requests::CREATED_AT)).collect();
        let next = (ids.last() != Some(&last)).then_some(&last);
        let list = json!({"object": "list", "data": data, "list_metadata": {"before": null, "after": next}});
        pages.insert(after, Bytes::from(list.to_string()));
        after = last;
    }
    let empty = Bytes::from(json!({"object": "list", "data": [], "list_metadata": {}}).to_string());
    let pages = Arc::new(pages);
    let list = get(move |Query(query): Query<HashMap<String, String>>| {
        let page = pages.get(query.get("after").map_or("", String::as_str));
        std::future::ready(page.cloned().unwrap_or_else(|| empty.clone()))
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/user_management/users", list)).await });
    address
}

/// Creates an empty database.
pub(crate) fn prepare(database: &Database) {
    discard(database);
    database.execute("create database backfill");
    database.migrate(DATABASE);
    database.execute("checkpoint");
}

/// Drops the database.
pub(crate) fn discard(database: &Database) {
    database.execute("drop database if exists backfill");
}

/// Fills the database in a separate process, and compares it with the list.
pub(crate) fn run(database: &Database, source: SocketAddr, users: u64) -> (Backfilled, Option<String>) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.arg("backfill").arg(database.url(DATABASE)).arg(source.to_string()).output().unwrap();
    assert!(output.status.success(), "the backfill failed: {}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    let (backfilled, stored): (Backfilled, u64) = serde_json::from_str(&said).unwrap();
    let difference = format!("backfill: {users} users expected, {stored} found, {} counted", backfilled.users);
    let is_different = stored != users || backfilled.users != users;
    (backfilled, is_different.then_some(difference))
}

/// The process of the backfill. Prints the result, and the number of users in the table.
#[tokio::main]
pub(crate) async fn fill(url: &str, source: &str) {
    let pool = PgPoolOptions::new().max_connections(CONNECTIONS).connect(url).await.unwrap();
    let clock = Clock::system();
    let store = Store::new(pool.clone(), pool.clone(), "client_bench", Duration::from_secs(20));
    let api = Api::new(&format!("http://{source}"), ApiKey::new("key"), clock.clone()).unwrap();
    let context = JobContext::new(store, api, clock, Arc::new(Metrics::default()), 1);
    let backfill = Backfill::new(context, false);
    let (began, cpu) = (Instant::now(), cpu::of_process(std::process::id()));
    let mut pages = Vec::new();
    loop {
        let page = Instant::now();
        let step = backfill.step().await.unwrap();
        pages.push(page.elapsed().as_secs_f64() * 1e3);
        if let Some(BackfillStep::Done(counts)) = step {
            let (seconds, cpu) = (began.elapsed().as_secs_f64(), cpu::of_process(std::process::id()) - cpu);
            pages.sort_by(f64::total_cmp);
            let at = |part: f64| pages.get((pages.len() as f64 * part) as usize).copied().unwrap_or_default();
            let users = u64::try_from(counts.new).unwrap();
            let (cpu, p50, p99) = (cpu.as_secs_f64() * 1e6, at(0.5), at(0.99));
            let stored: i64 = sqlx::query_scalar("select count(*) from workos.users").fetch_one(&pool).await.unwrap();
            let backfilled = Backfilled { users, seconds, cpu, p50, p99 };
            println!("{}", serde_json::to_string(&(backfilled, stored)).unwrap());
            return;
        }
    }
}
