//! Concurrent lookups share a statement. No caller gets the row or the failure of another one, or outdated data.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use authkit_sync::User;
use authkit_sync::domain::decide::Stored;
use authkit_sync::store::lookups::GroupedReads;
use authkit_sync::store::{Pool, Store, StoreError};
use futures_util::future::join_all;
use futures_util::poll;
use serde_json::json;
use sqlx::postgres::{PgConnection, PgPool};
use sqlx::{Connection, Executor};

use crate::support::database::TestDatabase;
use crate::support::events::{body, user};
use crate::support::fixture;
use crate::support::service::{CLIENT_ID, Service, until};

/// Number of concurrent statements.
const READERS: i64 = 2;

type Read<'a> = Pin<Box<dyn Future<Output = Result<Stored<User>, StoreError>> + Send + 'a>>;

/// Users 0 to 99, and a lock on their table, so that reads begin and do not end.
struct Locked {
    database: TestDatabase,
    lock: PgConnection,
    reads: GroupedReads,
}

impl Locked {
    /// Reads over a pool with our settings, or one of an application.
    async fn new(own: bool) -> Self {
        let database = TestDatabase::new().await;
        let mut lock = PgConnection::connect_with(&database.options()).await.unwrap();
        lock.execute(
            "insert into workos.user_records
                (id, email, email_verified, metadata, updated_at, synced_extra, synced_observed_at, synced_observation_id, synced_at)
            select 'user_' || n, 'u' || n || '@example.test', true, '{}', now(), '{}', now(), 'event_' || n, now()
            from generate_series(0, 99) as n",
        )
        .await
        .unwrap();
        let timeout = Duration::from_secs(60);
        let lookups =
            if own { Pool::connect(database.options(), 4, timeout) } else { Pool::from(database.pool(4).await) };
        let reads = GroupedReads::new(Store::new(lookups.clone(), lookups, CLIENT_ID, timeout));
        assert!(reads.read("user_0".to_owned()).await.is_ok(), "the database is found fit");
        lock.execute("begin; lock table workos.user_records in access exclusive mode").await.unwrap();
        Self { database, lock, reads }
    }

    /// Begins reads in this order. Each of the first ones has its own statement, and all others wait.
    async fn begin<'a>(&mut self, reads: &'a GroupedReads, ids: impl Iterator<Item = String>) -> Vec<Read<'a>> {
        let mut begun = Vec::new();
        for id in ids {
            let mut read: Read<'a> = Box::pin(reads.read(id));
            assert!(poll!(&mut read).is_pending());
            begun.push(read);
            if i64::try_from(begun.len()).unwrap() <= READERS {
                self.wait_for_statements(i64::try_from(begun.len()).unwrap()).await;
            }
        }
        begun
    }

    /// Waits until `count` statements wait for the lock.
    async fn wait_for_statements(&self, count: i64) {
        let pool = self.database.pool(1).await;
        until("the statements wait for the lock", async || waiting(&pool).await == count).await;
    }
}

async fn waiting(pool: &PgPool) -> i64 {
    let waiting =
        "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    sqlx::query_scalar(waiting).fetch_one(pool).await.unwrap()
}

fn id(number: usize) -> String {
    format!("user_{number}")
}

fn email(outcome: Result<Stored<User>, StoreError>) -> String {
    match outcome {
        Ok(Stored::Live { object: user, .. }) => user.email,
        other => panic!("not live: {other:?}"),
    }
}

#[tokio::test]
async fn reads_that_wait_share_statements_and_each_gets_its_own_row() {
    for own in [true, false] {
        let mut locked = Locked::new(own).await;
        let reads = locked.reads.clone();
        // Some users twice, and one that does not exist.
        let numbers: Vec<usize> = (0..60).map(|at| at % 40).chain([100]).collect();
        let begun = locked.begin(&reads, numbers.iter().map(|number| id(*number))).await;
        locked.wait_for_statements(READERS).await;
        locked.lock.execute("rollback").await.unwrap();
        for (number, outcome) in numbers.into_iter().zip(join_all(begun).await) {
            match number {
                100 => assert!(matches!(outcome, Ok(Stored::Absent)), "{outcome:?}"),
                _ => assert_eq!(email(outcome), format!("u{number}@example.test")),
            }
        }
    }
}

#[tokio::test]
async fn a_caller_that_stops_waiting_affects_no_other() {
    let mut locked = Locked::new(true).await;
    let reads = locked.reads.clone();
    let begun = locked.begin(&reads, (0..30).map(id)).await;
    // One that is in a statement, and some that wait.
    let kept: Vec<_> = begun.into_iter().enumerate().filter(|(at, _)| *at == 1 || at % 3 == 2).collect();
    locked.lock.execute("rollback").await.unwrap();
    for (number, read) in kept {
        assert_eq!(email(read.await), format!("u{number}@example.test"));
    }
    for round in 0..3 {
        let outcomes = join_all((0..10).map(|number| reads.read(id(number)))).await;
        assert_eq!(outcomes.into_iter().map(email).count(), 10, "round {round}");
    }
}

#[tokio::test]
async fn the_failure_of_a_statement_reaches_every_caller() {
    let mut locked = Locked::new(true).await;
    let reads = locked.reads.clone();
    let begun = locked.begin(&reads, (0..30).map(id)).await;
    let pool = locked.database.pool(1).await;
    let is_done = AtomicBool::new(false);
    let kill = until("every statement has been terminated", async || {
        let kill = "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
        pool.execute(kill).await.unwrap();
        is_done.load(Ordering::SeqCst)
    });
    let outcomes = async {
        let outcomes = join_all(begun).await;
        is_done.store(true, Ordering::SeqCst);
        outcomes
    };
    let (outcomes, ()) = tokio::join!(outcomes, kill);
    assert_eq!(outcomes.len(), 30);
    for outcome in outcomes {
        assert!(matches!(outcome, Err(StoreError::Disconnected(_))), "{outcome:?}");
    }
    locked.lock.execute("rollback").await.unwrap();
    assert_eq!(email(reads.read(id(7)).await), "u7@example.test", "and the next read has a new connection");
}

#[tokio::test]
async fn a_row_that_cannot_be_read_fails_only_its_own_caller() {
    let mut locked = Locked::new(true).await;
    locked.lock.execute("update workos.user_records set metadata = '{\"a\": {}}' where id = 'user_7'").await.unwrap();
    let reads = locked.reads.clone();
    let begun = locked.begin(&reads, (0..20).map(id)).await;
    locked.lock.execute("commit").await.unwrap();
    for (number, outcome) in join_all(begun).await.into_iter().enumerate() {
        match number {
            7 => assert!(matches!(outcome, Err(StoreError::Unavailable(_))), "{outcome:?}"),
            _ => assert_eq!(email(outcome), format!("u{number}@example.test")),
        }
    }
}

#[tokio::test]
async fn an_id_that_postgresql_could_refuse_shares_no_statement() {
    let mut locked = Locked::new(true).await;
    let reads = locked.reads.clone();
    let odd = ["user_\u{e4}".to_owned(), "user 1".to_owned(), "x".repeat(65), "\u{1}".to_owned()];
    let begun: Vec<_> = odd.iter().map(|id| reads.read(id.clone())).collect();
    let begun = tokio::join!(join_all(begun), async {
        locked.wait_for_statements(4).await;
        locked.lock.execute("rollback").await.unwrap();
    });
    assert!(begun.0.into_iter().all(|outcome| matches!(outcome, Ok(Stored::Absent))));
}

/// A user is deleted repeatedly while reads run without a pause.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_request_sees_a_deletion_however_many_reads_are_in_flight() {
    let database = TestDatabase::new().await;
    let pool = database.pool(8).await;
    let service = Service::start(&pool).await;
    let tokens = fixture("access_tokens");
    let token = tokens["vectors"][0]["token"].as_str().unwrap().to_owned();
    let subject = tokens["vectors"][0]["claims"]["sub"].as_str().unwrap().to_owned();
    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicUsize::new(0));
    let load: Vec<_> = (0..24)
        .map(|_| {
            let (client, url, token) = (service.client.clone(), service.url("/auth/user"), token.clone());
            let (stop, answered) = (stop.clone(), answered.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    client.get(&url).bearer_auth(&token).send().await.unwrap();
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    until("reads are in flight", async || answered.load(Ordering::SeqCst) > 100).await;
    for round in 0..20 {
        let mut ada = user(&subject, &format!("Ada {round}"), round);
        ada["email"] = json!(format!("ada{round}@example.test"));
        assert_eq!(service.deliver(&body(&format!("event_{round}"), "user.updated", round, &ada)).await.status, 200);
        let answer = service.ask("/auth/user", &token).await;
        assert_eq!(answer.json()["email"], format!("ada{round}@example.test"), "{round}");
    }
    assert_eq!(service.deliver(&body("event_last", "user.deleted", 99, &json!({"id": subject}))).await.status, 200);
    assert_eq!(service.ask("/auth/user", &token).await.code(), (404, "user_deleted".to_owned()));
    stop.store(true, Ordering::SeqCst);
    for task in load {
        task.await.unwrap();
    }
    service.stop().await.unwrap();
}
