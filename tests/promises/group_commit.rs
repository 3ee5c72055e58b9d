//! Concurrent webhooks share transactions, and none of them suffers from another.

use std::time::Duration;

use authkit_sync::authkit::Builder;
use authkit_sync::store::Pool;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::join_all;
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

/// A service whose sessions carry its settings, as those of the binary do.
async fn service(database: &TestDatabase, settings: impl FnOnce(Builder) -> Builder) -> Service {
    let pool = Pool::connect(database.options().application_name("service"), 6, LONG);
    Service::start_on(pool, |builder| settings(builder.database_timeout(LONG))).await
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
    // The first batches wait here, and with them everything that arrives.
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
    // One that waited with what had arrived by then, and one for the rest.
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
    let writes = Pool::connect(database.options().application_name("service"), 2, LONG);
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
    // The events of the locked users go first, so that every later batch meets them.
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
async fn a_caller_that_goes_away_cancels_no_event_of_the_batch() {
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
