//! Concurrent webhooks share transactions, and none of them suffers from another.

use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};
use std::time::Duration;

use authkit_sync::authkit::Builder;
use authkit_sync::store::Pool;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::join_all;
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, Executor, PgConnection, PgPool};

use crate::support::database::TestDatabase;
use crate::support::events::{body, unique, user};
use crate::support::service::{Service, until};

/// Longer than any test.
const LONG: Duration = Duration::from_secs(120);

fn created(id: &str) -> Bytes {
    body(&unique("event"), "user.created", 0, &user(id, "Ada", 0))
}

fn ids(count: usize) -> Vec<String> {
    (0..count).map(|_| unique("user")).collect()
}

/// A service whose sessions have our settings, like those of the binary.
async fn service(database: &TestDatabase, settings: impl FnOnce(Builder) -> Builder) -> Service {
    let pool = Pool::connect(database.service_options().application_name("service"), 6, LONG);
    Service::start_on(pool, |builder| settings(builder.database_timeout(LONG))).await
}

/// A service on a pool of an application, whose callback is called for each use of one of its two connections. No batch begins
/// while another one is stuck.
async fn service_of_application(
    database: &TestDatabase,
    timeout: Duration,
    callback: impl Fn() + Clone + Send + Sync + 'static,
) -> Service {
    let options = PgPoolOptions::new().max_connections(2).before_acquire(move |_, _| {
        callback();
        Box::pin(async { Ok(true) })
    });
    let writes = options.connect_lazy_with(database.options().application_name("service"));
    let others = database.pool(4).await;
    let service = Service::start_on(writes.clone().into(), |builder| {
        builder.lookup_pool(others.clone()).background_pool(others).database_timeout(timeout)
    })
    .await;
    // The callback is not called for new connections.
    drop(join_all((0..2).map(|_| writes.acquire())).await);
    // A busy machine exceeds a short timeout.
    let first = created(&unique("user"));
    until("an event is applied", async || service.deliver(&first).await.status == 200).await;
    nothing_is_queued(&service).await;
    service
}

async fn nothing_is_queued(service: &Service) {
    let is_empty = async || service.metrics().await.contains("authkit_sync_webhook_queue_events 0\n");
    until("nothing is queued", is_empty).await;
}

async fn count(pool: &PgPool, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(pool).await.unwrap()
}

/// Sessions of the service that wait for a lock.
async fn waits_for_lock(pool: &PgPool) -> i64 {
    count(
        pool,
        "select count(*) from pg_stat_activity
        where datname = current_database() and application_name = 'service' and wait_event_type = 'Lock'",
    )
    .await
}

#[tokio::test]
async fn events_that_arrive_during_a_commit_share_the_next_transaction() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let service = service(&database, |builder| builder).await;
    // The first batches wait here, and so do all events that arrive.
    let mut blocker = PgConnection::connect_with(&database.options()).await.unwrap();
    blocker.execute("begin; lock table workos.environment in exclusive mode").await.unwrap();
    let bodies: Vec<Bytes> = ids(60).iter().map(|id| created(id)).collect();
    let deliveries = join_all(bodies.iter().map(|body| service.deliver(body)));
    let release = async {
        until("the first batch waits", async || waits_for_lock(&pool).await > 0).await;
        let all = "authkit_sync_webhook_queue_events 60\n";
        until("every event waits", async || service.metrics().await.contains(all)).await;
        blocker.execute("commit").await.unwrap();
    };
    let (answers, ()) = tokio::join!(deliveries, release);
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert_eq!(count(&pool, "select count(*) from workos.users").await, 60);
    let transactions = count(&pool, "select count(distinct xmin::text) from workos.events").await;
    // One batch with the events that had arrived by then, and one for the rest.
    assert!(transactions <= 2, "{transactions} transactions for 60 events");
    service.stop().await.unwrap();
}

#[tokio::test]
async fn an_event_that_postgres_refuses_is_quarantined_and_its_neighbours_are_applied() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let service = service(&database, |builder| builder).await;
    let users = ids(20);
    let refusal = "create table public.refused (id text);
        create function public.refuse() returns trigger language plpgsql as $$
        begin
            if new.email is not null and exists (select from public.refused where id = new.id) then
                raise exception 'refused' using errcode = '22023';
            end if;
            return new;
        end $$;
        create trigger refuse before insert or update on workos.user_records for each row execute function public.refuse()";
    sqlx::raw_sql(refusal).execute(&pool).await.unwrap();
    sqlx::query("insert into public.refused values ($1)").bind(&users[7]).execute(&pool).await.unwrap();
    let bodies: Vec<Bytes> = users.iter().map(|id| created(id)).collect();
    let answers = join_all(bodies.iter().map(|body| service.deliver(body))).await;
    for (at, answer) in answers.iter().enumerate() {
        let outcome = if at == 7 { "quarantined" } else { "applied" };
        assert_eq!((answer.status, &answer.json()["outcome"]), (200, &outcome.into()), "{at}");
    }
    assert_eq!(count(&pool, "select count(*) from workos.users").await, 19);
    let quarantined = "select count(*) from workos.events where outcome = 'quarantined' and payload is not null";
    assert_eq!(count(&pool, quarantined).await, 1);
    service.stop().await.unwrap();
}

#[tokio::test]
async fn a_locked_user_delays_only_its_own_events() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    // Fewer connections than users that are waited for at the same time.
    let writes = Pool::connect(database.service_options().application_name("service"), 2, LONG);
    let service = Service::start_on(writes, |builder| builder.database_timeout(LONG)).await;
    let locked = ids(2);
    for id in &locked {
        assert_eq!(service.deliver(&created(id)).await.status, 200);
    }
    let mut application = PgConnection::connect_with(&database.options()).await.unwrap();
    let mut transaction = application.begin().await.unwrap();
    sqlx::query("select from workos.user_records where id = any($1) for update")
        .bind(&locked)
        .execute(&mut *transaction)
        .await
        .unwrap();
    let updates: Vec<Bytes> = (1..=6)
        .map(|at| body(&unique("event"), "user.updated", at, &user(&locked[at as usize % 2], &format!("Ada {at}"), at)))
        .collect();
    let mut delayed = Box::pin(join_all(updates.iter().map(|update| service.deliver(update))));
    // The events of the locked users arrive first, so that they are in the queue for every later batch.
    assert!(delayed.as_mut().now_or_never().is_none());
    for _ in 0..3 {
        let others: Vec<Bytes> = ids(20).iter().map(|id| created(id)).collect();
        let answers = tokio::select! {
            answers = join_all(others.iter().map(|other| service.deliver(other))) => answers,
            answers = &mut delayed => panic!("answered under the lock: {answers:?}"),
        };
        assert!(answers.iter().all(|answer| answer.status == 200));
    }
    transaction.commit().await.unwrap();
    let answers = delayed.await;
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    let names: Vec<String> = sqlx::query_scalar("select first_name from workos.users where id = any($1) order by 1")
        .bind(&locked)
        .fetch_all(&pool)
        .await
        .unwrap();
    assert_eq!(names, ["Ada 5", "Ada 6"]);
    assert_eq!(count(&pool, "select count(*) from workos.users").await, 62);
    service.stop().await.unwrap();
}

/// Another process may be stopped after it inserted a user and before its commit.
#[tokio::test]
async fn a_batch_that_waits_for_another_transaction_delays_no_later_one() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let service = service(&database, |builder| builder).await;
    let held = unique("user");
    let mut other = PgConnection::connect_with(&database.options()).await.unwrap();
    let mut transaction = other.begin().await.unwrap();
    let insert = "insert into workos.user_records (id) values ($1)";
    sqlx::query(insert).bind(&held).execute(&mut *transaction).await.unwrap();
    let body = created(&held);
    let mut stuck = Box::pin(service.deliver(&body));
    tokio::select! {
        answer = &mut stuck => panic!("answered during the insertion: {answer:?}"),
        () = until("the batch waits", async || waits_for_lock(&pool).await > 0) => {}
    }
    for id in ids(3) {
        let body = created(&id);
        tokio::select! {
            answer = &mut stuck => panic!("answered during the insertion: {answer:?}"),
            answer = service.deliver(&body) => assert_eq!(answer.status, 200),
        }
    }
    transaction.rollback().await.unwrap();
    assert_eq!(stuck.await.status, 200);
    assert_eq!(count(&pool, "select count(*) from workos.users").await, 4);
    service.stop().await.unwrap();
}

#[tokio::test]
async fn a_caller_that_stops_waiting_cancels_no_event_of_the_batch() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let service = service(&database, |builder| builder).await;
    let mut blocker = PgConnection::connect_with(&database.options()).await.unwrap();
    blocker.execute("begin; lock table workos.environment in exclusive mode").await.unwrap();
    let bodies: Vec<Bytes> = ids(10).iter().map(|id| created(id)).collect();
    let mut left = Box::pin(join_all(bodies[..5].iter().map(|body| service.deliver(body))));
    let mut stayed = Box::pin(join_all(bodies[5..].iter().map(|body| service.deliver(body))));
    tokio::select! {
        _ = &mut left => panic!("answered under the lock"),
        _ = &mut stayed => panic!("answered under the lock"),
        () = until("the first batch waits", async || waits_for_lock(&pool).await > 0) => {}
    }
    drop(left);
    blocker.execute("commit").await.unwrap();
    assert!(stayed.await.iter().all(|answer| answer.status == 200));
    until("what was received is applied or was never read", async || waits_for_lock(&pool).await == 0).await;
    let applied = count(&pool, "select count(*) from workos.users").await;
    assert!((5..=10).contains(&applied), "{applied}");
    service.stop().await.unwrap();
}

#[tokio::test]
async fn a_full_queue_is_answered_503_at_once_and_the_rest_is_applied() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let service = service(&database, |builder| builder.webhook_queue(8)).await;
    let mut blocker = PgConnection::connect_with(&database.options()).await.unwrap();
    blocker.execute("begin; lock table workos.environment in exclusive mode").await.unwrap();
    let bodies: Vec<Bytes> = ids(20).iter().map(|id| created(id)).collect();
    let mut deliveries: futures_util::stream::FuturesUnordered<_> =
        bodies.iter().map(|body| service.deliver(body)).collect();
    let mut refused = 0;
    while refused < 12 {
        let answer = futures_util::StreamExt::next(&mut deliveries).await.unwrap();
        assert_eq!(answer.code(), (503, "busy".to_owned()));
        assert!(!answer.header("retry-after").is_empty());
        refused += 1;
    }
    blocker.execute("commit").await.unwrap();
    let answers: Vec<_> = futures_util::StreamExt::collect::<Vec<_>>(deliveries).await;
    assert!(answers.len() == 8 && answers.iter().all(|answer| answer.status == 200));
    assert_eq!(count(&pool, "select count(*) from workos.users").await, 8);
    service.stop().await.unwrap();
}

/// A callback of the application's pool panics. It represents any defect of the service in a batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_in_a_batch_fails_no_other_event_and_leaves_nothing_counted() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let panics = Arc::new(AtomicIsize::new(0));
    let left = panics.clone();
    let callback = move || assert!(left.fetch_sub(1, Ordering::SeqCst) <= 0, "the application's callback panics");
    let service = service_of_application(&database, LONG, callback).await;
    // More panics than tasks that may commit at the same time: the first fails the batch, each other one an event.
    for failed in [0, 1, 2] {
        let mut blocker = PgConnection::connect_with(&database.options()).await.unwrap();
        blocker.execute("begin; lock table workos.environment in exclusive mode").await.unwrap();
        let (first, bodies) = (created(&unique("user")), ids(10).iter().map(|id| created(id)).collect::<Vec<_>>());
        let release = async {
            until("the first event waits", async || waits_for_lock(&pool).await > 0).await;
            let deliveries = join_all(bodies.iter().map(|body| service.deliver(body)));
            let release = async {
                let all = "authkit_sync_webhook_queue_events 11\n";
                until("every event waits", async || service.metrics().await.contains(all)).await;
                panics.store(failed + 1, Ordering::SeqCst);
                blocker.execute("commit").await.unwrap();
            };
            tokio::join!(deliveries, release).0
        };
        let (first, answers) = tokio::join!(service.deliver(&first), release);
        assert_eq!(first.status, 200);
        let (applied, others): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 200);
        assert_eq!(others.len() as isize, failed, "{others:?}");
        assert!(applied.len() == 10 - others.len() && others.iter().all(|answer| answer.status == 503));
        assert!(service.metrics().await.contains("authkit_sync_webhook_queue_events 0\n"));
    }
    assert_eq!(service.deliver(&created(&unique("user"))).await.status, 200);
    service.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_of_the_task_that_waits_for_a_locked_user_does_not_leave_the_user_locked() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let uses = Arc::new(AtomicIsize::new(isize::MAX));
    let left = uses.clone();
    let callback = move || assert_ne!(left.fetch_sub(1, Ordering::SeqCst), 1, "the application's callback panics");
    let service = service_of_application(&database, LONG, callback).await;
    let id = unique("user");
    assert_eq!(service.deliver(&created(&id)).await.status, 200);
    let mut application = PgConnection::connect_with(&database.options()).await.unwrap();
    let mut lock = application.begin().await.unwrap();
    sqlx::query("select from workos.user_records where id = $1 for update")
        .bind(&id)
        .execute(&mut *lock)
        .await
        .unwrap();
    // One statement, the check for locks, and the transaction that waits.
    uses.store(3, Ordering::SeqCst);
    let update = |at| body(&unique("event"), "user.updated", at, &user(&id, "Ada", at));
    assert_eq!(service.deliver(&update(1)).await.status, 503);
    assert!(service.metrics().await.contains("authkit_sync_webhook_queue_events 0\n"));
    let update = update(2);
    let released = async {
        until("the next event waits for the lock", async || waits_for_lock(&pool).await > 0).await;
        lock.commit().await.unwrap();
    };
    let (answer, ()) = tokio::join!(service.deliver(&update), released);
    assert_eq!(answer.status, 200);
    service.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_whose_deadline_has_passed_is_not_attempted_again() {
    let database = TestDatabase::new().await;
    let uses = Arc::new(AtomicUsize::new(0));
    let counted = uses.clone();
    let callback = move || _ = counted.fetch_add(1, Ordering::SeqCst);
    let service = service_of_application(&database, Duration::from_millis(500), callback).await;
    let mut blocker = PgConnection::connect_with(&database.options()).await.unwrap();
    blocker.execute("begin; lock table workos.user_records in access exclusive mode").await.unwrap();
    uses.store(0, Ordering::SeqCst);
    let created = created(&unique("user"));
    assert_eq!(service.deliver(&created).await.code(), (503, "database_unavailable".to_owned()));
    nothing_is_queued(&service).await;
    let uses = uses.load(Ordering::SeqCst);
    assert!(uses <= 1, "{uses} uses; at most one statement, no check for locks and no transaction");
    blocker.execute("commit").await.unwrap();
    until("the next delivery is applied", async || service.deliver(&created).await.status == 200).await;
    service.stop().await.unwrap();
}
