//! Measures the cost of reacting to changes: handlers in Rust and in SQL, one transaction each, compared with an empty durable
//! transaction. Also measures how fast the feed can be read. Run with `cargo bench --bench changes`.
//!
//! Everything runs in this one process and on this machine, so only the ratios apply to other machines.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on should stop")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use authkit_sync::dev::postgres::{Data, PrivatePostgres, Programs};
use authkit_sync::domain::change::Position;
use authkit_sync::domain::clock::Clock;
use authkit_sync::domain::event::{Observation, Origin};
use authkit_sync::domain::handler::Types;
use authkit_sync::metrics::Metrics;
use authkit_sync::store::handlers::NewHandler;
use authkit_sync::store::{Store, migrations};
use authkit_sync::sync::apply;
use authkit_sync::sync::feed::{Feed, PAGE};
use authkit_sync::sync::handlers::{FeedLoop, HandlerWorker, RustHandler, TIMEOUT};
use authkit_sync::sync::job::JobContext;
use authkit_sync::sync::runner::BackgroundLoop;
use authkit_sync::workos::api::{Api, ApiKey};
use authkit_sync::workos::wire;
use authkit_sync::{Change, Tx};
use serde_json::json;
use sqlx::Executor;
use sqlx::postgres::{PgPool, PgPoolOptions};

const USERS: usize = 3_000;

const TABLES: &str = "
    create table mirror (id text primary key, email text);
    create function on_user(change jsonb) returns void language plpgsql as $$
    begin
        insert into mirror values (change ->> 'user_id', change #>> '{user,email}')
        on conflict (id) do update set email = excluded.email;
    end
    $$";

fn report(name: &str, count: usize, began: Instant) -> f64 {
    let rate = count as f64 / began.elapsed().as_secs_f64();
    println!("{name:<44} {rate:>8.0}/s");
    rate
}

async fn mirror(change: Change, mut tx: Tx) -> Result<(), sqlx::Error> {
    sqlx::query("insert into mirror values ($1, $2) on conflict (id) do update set email = excluded.email")
        .bind(change.user_id)
        .bind(change.user.map(|user| user.email))
        .execute(&mut *tx)
        .await?;
    Ok(())
}

async fn fill(store: &Store, clock: &Clock) {
    let at = clock.now();
    let user = |number: usize| {
        let id = format!("user_{number:06}");
        let user = json!({
            "object": "user", "id": id, "email": format!("{id}@example.test"), "email_verified": true,
            "first_name": "Ada", "metadata": {"plan": "team"}, "created_at": at, "updated_at": at,
        });
        Observation::Snapshot(wire::snapshot(&user.to_string(), at).unwrap())
    };
    let users: Vec<Observation> = (0..USERS).map(user).collect();
    for page in users.chunks(100) {
        apply(store, Origin::Backfill, page).await.unwrap();
    }
}

/// The lower limit: a durable transaction that writes one row.
async fn transactions(pool: &PgPool) -> f64 {
    let began = Instant::now();
    for number in 0..USERS {
        let insert = "insert into mirror values ($1, 'x')";
        sqlx::query(insert).bind(format!("floor_{number}")).execute(pool).await.unwrap();
    }
    report("one row, one commit", USERS, began)
}

async fn handled(context: &JobContext, feed: &Feed, name: &str, rust: Option<RustHandler>) -> f64 {
    let along = FeedLoop(Arc::new(HandlerWorker::new(context.clone(), feed.clone(), name, rust)));
    let began = Instant::now();
    while along.tick().await.is_zero() {}
    let standings = context.store.handler_statuses().await.unwrap();
    assert!(standings.iter().any(|it| it.name == name && it.depth == 0 && it.dead_lettered == 0), "{standings:?}");
    report(&format!("handler in {name}"), USERS, began)
}

#[tokio::main]
async fn main() {
    // `cargo test` runs it without measuring anything.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    // Persistent data is flushed to disk, as in production.
    let folder = std::env::temp_dir().join(format!("authkit-sync-changes-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let data = Data::Persistent(folder.join("postgres"));
    let postgres =
        PrivatePostgres::start(Programs::find_or_fetch(|step| eprintln!("{step}")).unwrap(), &data, &[]).unwrap();
    let pool = PgPoolOptions::new().max_connections(6).connect(&postgres.url("postgres")).await.unwrap();
    migrations::run(&pool).await.unwrap();
    pool.execute(TABLES).await.unwrap();
    let clock = Clock::system();
    let store = Store::new(pool.clone(), pool.clone(), "client_bench", Duration::from_secs(20));
    let types = Types::parse("user.*").unwrap();
    store.register_handler("Rust", &types, false).await.unwrap();
    let sql = NewHandler {
        name: Some("SQL".to_owned()),
        function: "public.on_user".to_owned(),
        role: None,
        types: types.clone(),
        timeout: TIMEOUT,
        from_start: false,
    };
    store.add_handler(&sql).await.unwrap();
    fill(&store, &clock).await;

    let api = Api::new("http://127.0.0.1:9", ApiKey::new(""), clock.clone()).unwrap();
    let context = JobContext::new(store.clone(), api, clock, Arc::new(Metrics::default()), 1);
    let feed = Feed::new(store.clone());
    let floor = transactions(&pool).await;
    let handle = Arc::new(mirror);
    let rust = RustHandler { name: "Rust".into(), types, from_start: false, timeout: TIMEOUT, handle };
    let rust = handled(&context, &feed, "Rust", Some(rust)).await;
    let sql = handled(&context, &feed, "SQL", None).await;
    println!("{:<44} {:>8.2} {:>6.2}", "  ratio to the commit alone", rust / floor, sql / floor);

    let mut position = Position { number: 0, ..feed.now().await.unwrap() };
    let began = Instant::now();
    loop {
        let page = feed.after(&position, PAGE, Duration::ZERO).await.unwrap();
        if page.data.is_empty() {
            break;
        }
        position = page.position;
    }
    report("feed, read a thousand at once", USERS, began);
    let began = Instant::now();
    for _ in 0..USERS {
        store.feed_head().await.unwrap();
    }
    report("how far it can be read", USERS, began);
    pool.close().await;
    drop(postgres);
    std::fs::remove_dir_all(folder).unwrap();
}
