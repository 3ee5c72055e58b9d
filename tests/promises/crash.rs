//! Promise 1: acknowledged means committed. `kill -9` at any instant loses nothing that was acknowledged.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use authkit_sync::domain::clock::Clock;
use authkit_sync::workos::http::http_client;
use authkit_sync::workos::signature::Secret;

use crate::support::binary::{Served, free_address};
use crate::support::database::TestDatabase;
use crate::support::events::{body, unique, user};
use crate::support::service::{SECRET, until};

/// Posts events until `stop` is set. Returns the IDs that were acknowledged.
async fn deliver_until(stop: Arc<AtomicBool>, url: String) -> HashSet<String> {
    let client = http_client().unwrap();
    let mut acknowledged = HashSet::new();
    while !stop.load(Ordering::SeqCst) {
        let id = unique("event");
        let body = body(&id, "user.created", 0, &user(&unique("user"), "Ada", 0));
        let signature = Secret::new(SECRET).sign(Clock::system().now(), &body);
        let answer = client.post(&url).header("workos-signature", signature).body(body).send().await;
        match answer {
            Ok(answer) if answer.status().as_u16() == 200 => {
                acknowledged.insert(id);
            }
            Ok(answer) => assert_eq!(answer.status().as_u16(), 503),
            // The process is not running. Refused connections return at once, so other tasks must run.
            Err(_) => tokio::task::yield_now().await,
        }
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_to_kill_9() {
    let database = TestDatabase::new().await;
    let pool = database.pool(2).await;
    let address = free_address();
    let stop = Arc::new(AtomicBool::new(false));
    let url = format!("http://{address}/workos/webhook");
    let workers: Vec<_> = (0..8).map(|_| tokio::spawn(deliver_until(stop.clone(), url.clone()))).collect();
    let count =
        async || -> i64 { sqlx::query_scalar("select count(*) from workos.events").fetch_one(&pool).await.unwrap() };
    for _ in 0..4 {
        let mut served = Served::start(&database.url(), address, &[]);
        let before = count().await;
        until("events arrive", async || count().await > before + 50).await;
        // The kill hits a random point of the work.
        served.kill();
    }
    stop.store(true, Ordering::SeqCst);
    let mut acknowledged = HashSet::new();
    for worker in workers {
        acknowledged.extend(worker.await.unwrap());
    }
    // Each kill may hit one event of each worker between its commit and its acknowledgement.
    let least = 4 * (50 - 8);
    assert!(acknowledged.len() >= least, "only {} were acknowledged", acknowledged.len());
    until("the killed process's transactions have ended", async || {
        sqlx::query_scalar::<_, bool>("select not exists (select from pg_stat_activity where application_name = 'authkit-sync' and datname = current_database())")
            .fetch_one(&pool)
            .await
            .unwrap()
    })
    .await;
    let stored: Vec<String> = sqlx::query_scalar("select id from workos.events").fetch_all(&pool).await.unwrap();
    let stored: HashSet<String> = stored.into_iter().collect();
    let lost: Vec<_> = acknowledged.difference(&stored).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    let rows: i64 = sqlx::query_scalar("select count(*) from workos.user_records").fetch_one(&pool).await.unwrap();
    assert_eq!(rows, i64::try_from(stored.len()).unwrap(), "each event's user came with it");
}
