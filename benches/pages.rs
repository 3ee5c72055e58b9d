//! Measures a page of users compared with the same users one by one, and catch-up. Run with `cargo bench --bench pages`. Backfill
//! is a row of the bench `load`.
//!
//! Everything runs in this one process and on this machine, including the simulated WorkOS, so only the ratios apply to other
//! machines. The service requests about three pages per second. This bench requests them without pauses.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on should stop")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use authkit_sync::dev::postgres::{Data, PrivatePostgres, Programs};
use authkit_sync::dev::workos::{Options, SimulatedWorkos};
use authkit_sync::domain::clock::Clock;
use authkit_sync::domain::event::{Observation, Origin};
use authkit_sync::domain::kinds::Kinds;
use authkit_sync::metrics::Metrics;
use authkit_sync::store::{Store, migrations};
use authkit_sync::sync::apply;
use authkit_sync::sync::catch_up::CatchUp;
use authkit_sync::sync::job::JobContext;
use authkit_sync::sync::runner::BackgroundLoop;
use authkit_sync::workos::api::{Api, ApiKey};
use authkit_sync::workos::wire;
use serde_json::json;
use sqlx::postgres::PgPoolOptions;

const USERS: usize = 3_000;

fn report(name: &str, users: usize, began: Instant) -> f64 {
    let rate = users as f64 / began.elapsed().as_secs_f64();
    println!("{name:<44} {rate:>8.0} users/s");
    rate
}

fn snapshots(run: &str, at: authkit_sync::domain::timestamp::Timestamp) -> Vec<Observation> {
    let user = |number: usize| {
        let id = format!("user_{run}_{number:06}");
        let user = json!({
            "object": "user", "id": id, "email": format!("{id}@example.test"), "email_verified": true,
            "first_name": "Ada", "metadata": {"plan": "team"}, "created_at": at, "updated_at": at,
        });
        Observation::Snapshot(wire::snapshot(&user.to_string(), at).unwrap())
    };
    (0..USERS).map(user).collect()
}

#[tokio::main]
async fn main() {
    // `cargo test` runs it without measuring anything.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let programs = Programs::find_or_fetch(|step| eprintln!("{step}")).unwrap();
    // Persistent data is flushed to disk, as in production.
    let folder = std::env::temp_dir().join(format!("authkit-sync-pages-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let postgres = PrivatePostgres::start(programs, &Data::Persistent(folder.join("postgres")), &[]).unwrap();
    let pool = PgPoolOptions::new().max_connections(4).connect(&postgres.url("postgres")).await.unwrap();
    migrations::run(&pool).await.unwrap();
    let clock = Clock::system();
    let listen = ([127, 0, 0, 1], 0).into();
    let workos = SimulatedWorkos::start(Options { listen, clock: clock.clone(), seed: 7, state: None }).await.unwrap();
    let store = Store::new(pool.clone(), pool.clone(), &workos.client_id(), Duration::from_secs(20));

    let one_by_one = snapshots("single", clock.now());
    let began = Instant::now();
    for alone in one_by_one.chunks(1) {
        apply(&store, Origin::Backfill, alone).await.unwrap();
    }
    let singles = report("apply, one by one", USERS, began);
    let paged = snapshots("paged", clock.now());
    let began = Instant::now();
    for page in paged.chunks(100) {
        apply(&store, Origin::Backfill, page).await.unwrap();
    }
    let pages = report("apply, a hundred at once", USERS, began);
    println!("{:<44} {:>8.1}", "  ratio", pages / singles);

    for number in 0..USERS {
        let user = json!({"email": format!("{number}@example.test"), "first_name": "Ada"});
        workos.create_user(user.as_object().unwrap()).unwrap();
    }
    sqlx::query("truncate workos.user_records, workos.events").execute(&pool).await.unwrap();
    let api = Api::new(workos.base_url(), ApiKey::new(workos.api_key()), clock.clone()).unwrap();
    let context = JobContext::new(store.clone(), api, clock, Arc::new(Metrics::default()), 1);
    let types = Kinds::USERS.event_types().into_iter().map(str::to_owned).collect();
    let catch_up = CatchUp::new(context, types, Duration::from_secs(60));
    let began = Instant::now();
    while catch_up.tick().await < Duration::from_secs(10) {}
    report("catch-up, unpaced", USERS, began);
    pool.close().await;
    workos.stop().await;
    drop(postgres);
    std::fs::remove_dir_all(folder).unwrap();
}
