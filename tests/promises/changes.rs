//! The change feed: every difference once, in order, and no change appears before a published position.
#![expect(clippy::disallowed_methods, reason = "slow transactions of other sessions")]

use std::time::Duration;

use authkit_sync::domain::change::{ChangeKind, Difference, Position};
use authkit_sync::domain::event::{Observation, Origin};
use authkit_sync::domain::kinds::Kinds;
use authkit_sync::store::Store;
use authkit_sync::sync::apply;
use authkit_sync::sync::feed::{Feed, FeedError};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Executor};

use crate::support::database::TestDatabase;
use crate::support::events::{body, observed, snapshot, unique, user};
use crate::support::lab::Lab;
use crate::support::service::store;

/// Returns all changes as kind, user and origin.
async fn told(store: &Store) -> Vec<(String, Option<String>, String)> {
    let feed = Feed::new(store.clone());
    let start = Position { number: 0, ..feed.now().await.unwrap() };
    let page = feed.after(&start, 1_000, Duration::ZERO).await.unwrap();
    let told = page.data.iter();
    told.map(|change| (change.kind.as_str().to_owned(), change.user_id.clone(), change.origin.as_str().to_owned()))
        .collect()
}

fn kinds(told: &[(String, Option<String>, String)]) -> Vec<&str> {
    told.iter().map(|(kind, ..)| kind.as_str()).collect()
}

pub(crate) async fn take(store: &Store, observations: &[Observation]) {
    apply(store, Origin::Webhook, observations).await.unwrap();
}

#[tokio::test]
async fn each_committed_difference_is_one_change_and_stale_or_duplicate_events_are_none() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let store = store(&pool);
    let id = unique("user");
    let created = observed("user.created", 0, &user(&id, "Ada", 0));
    let updated = observed("user.updated", 10, &user(&id, "Adaline", 10));
    let mut signed_in = user(&id, "Adaline", 10);
    signed_in["last_sign_in_at"] = json!("2026-09-01T09:00:00.000Z");
    // The update arrives first. It creates the row, and the later create event is stale.
    take(&store, std::slice::from_ref(&updated)).await;
    take(&store, &[created.clone(), updated.clone()]).await;
    assert_eq!(kinds(&told(&store).await), ["created"]);
    // Neither a sign-in alone nor a snapshot that equals the row is a change.
    take(&store, &[snapshot(&signed_in, 20), snapshot(&signed_in, 30)]).await;
    assert_eq!(kinds(&told(&store).await), ["created"]);
    // A later `updated_at` alone is a change.
    take(&store, &[observed("user.updated", 40, &user(&id, "Adaline", 40))]).await;
    assert_eq!(kinds(&told(&store).await), ["created", "updated"]);
    let deleted = observed("user.deleted", 50, &json!({"id": id}));
    take(&store, std::slice::from_ref(&deleted)).await;
    take(&store, &[deleted, observed("user.deleted", 45, &json!({"id": id})), created, updated]).await;
    assert_eq!(kinds(&told(&store).await), ["created", "updated", "deleted"]);
    // Deleted without having been live here.
    take(&store, &[observed("user.deleted", 0, &json!({"id": unique("user")}))]).await;
    assert_eq!(kinds(&told(&store).await), ["created", "updated", "deleted", "deleted"]);
}

#[tokio::test]
async fn a_change_names_fields_event_and_origin_and_holds_nothing_personal() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let store = store(&pool);
    let id = unique("user");
    take(&store, &[observed("user.created", 0, &user(&id, "Ada", 0))]).await;
    let mut renamed = user(&id, "Adaline", 10);
    renamed["plan_of_tomorrow"] = json!(7);
    take(&store, &[observed("user.updated", 10, &renamed)]).await;
    apply(&store, Origin::Reconcile, &[snapshot(&user(&id, "Adele", 20), 20)]).await.unwrap();
    let feed = Feed::new(store.clone());
    let start = Position { number: 0, ..feed.now().await.unwrap() };
    let page = feed.after(&start, 10, Duration::ZERO).await.unwrap();
    let changes: Vec<Value> = page.data.iter().map(|change| json!(change)).collect();
    assert_eq!(changes[0]["changed"], json!([]));
    assert_eq!(changes[1]["changed"], json!(["first_name", "name", "updated_at", "plan_of_tomorrow"]));
    assert_eq!((&changes[1]["event_type"], &changes[1]["origin"]), (&json!("user.updated"), &json!("webhook")));
    assert!(changes[1]["event_id"].as_str().unwrap().starts_with("event_"));
    assert_eq!((&changes[2]["event_id"], &changes[2]["origin"]), (&Value::Null, &json!("reconcile")));
    // Each change contains the current user.
    assert!(changes.iter().all(|change| change["user"]["first_name"] == "Adele"), "{changes:?}");
    assert_eq!(json!(page.position), changes[2]["position"]);
    let names: Vec<&str> = changes[0].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        names,
        ["at", "changed", "event_id", "event_type", "kind", "origin", "position", "user", "user_id"],
        "people script against these"
    );
    let kept: Vec<String> =
        sqlx::query_scalar("select changes::text from workos.changes").fetch_all(&pool).await.unwrap();
    assert!(kept.iter().all(|row| !row.contains("Ad") && !row.contains("example.test")), "{kept:?}");
    // After the deletion the user is null in all changes.
    take(&store, &[observed("user.deleted", 30, &json!({"id": id}))]).await;
    let page = feed.after(&start, 10, Duration::ZERO).await.unwrap();
    assert!(page.data.len() == 4 && page.data.iter().all(|change| change.user.is_none()));
}

#[tokio::test]
async fn events_of_other_types_are_changes_once_with_their_data_until_it_expires() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let store = store(&pool);
    let id = unique("user");
    let session = observed("session.created", 0, &json!({"id": "session_1", "user_id": id, "big": 1}));
    let organization = observed("connection.activated", 1, &json!({"id": "conn_1", "name": "Acme"}));
    take(&store, &[session.clone(), organization.clone(), session.clone()]).await;
    apply(&store, Origin::CatchUp, &[session, organization]).await.unwrap();
    let feed = Feed::new(store.clone());
    let start = Position { number: 0, ..feed.now().await.unwrap() };
    let page = feed.after(&start, 10, Duration::ZERO).await.unwrap();
    let changes: Vec<Value> = page.data.iter().map(|change| json!(change)).collect();
    assert_eq!(changes.len(), 2, "{changes:?}");
    assert_eq!((&changes[0]["kind"], &changes[0]["user_id"]), (&json!("session.created"), &json!(id)));
    assert_eq!((&changes[1]["kind"], &changes[1]["data"]["name"]), (&json!("connection.activated"), &json!("Acme")));
    assert!(changes[0].get("user").is_none() && changes[1]["user_id"].is_null());
    // The deletion of the user erases the data from the inbox, and so from the feed.
    take(&store, &[observed("user.deleted", 2, &json!({"id": id}))]).await;
    let page = feed.after(&start, 10, Duration::ZERO).await.unwrap();
    assert!(page.data[0].data.is_none() && page.data[1].data.is_some());
    assert_eq!(page.data[2].kind, ChangeKind::User(Difference::Deleted));
}

#[tokio::test]
async fn an_event_from_quarantine_is_a_change_once_it_is_applied() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let store = store(&pool);
    let mut spoiled = user(&unique("user"), "Ada", 0);
    spoiled["email"] = json!(7);
    take(&store, &[observed("user.created", 0, &spoiled)]).await;
    assert!(told(&store).await.is_empty());
    spoiled["email"] = json!("ada@example.test");
    let corrected = body("event_x", "user.created", 0, &spoiled);
    sqlx::query("update workos.events set payload = $1").bind(&corrected[..]).execute(&pool).await.unwrap();
    authkit_sync::sync::inbox::retry(&store, Kinds::ALL, None).await.unwrap();
    authkit_sync::sync::inbox::replay(
        &store,
        Kinds::ALL,
        authkit_sync::domain::timestamp::Timestamp::from_unix_micros(0),
    )
    .await
    .unwrap();
    let told = told(&store).await;
    assert_eq!((kinds(&told), told[0].2.as_str()), (vec!["created"], "catch_up"));
}

/// A change with a position that is not committed, and the changes after it.
#[tokio::test]
async fn no_change_appears_before_a_published_position() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let store = store(&pool);
    let feed = Feed::new(store.clone());
    let mut slow = pool.begin().await.unwrap();
    let late = observed("user.created", 0, &user(&unique("user"), "Late", 0));
    authkit_sync::sync::apply_within(&mut slow, Origin::Webhook, &[late]).await.unwrap();
    let before = feed.now().await.unwrap();
    take(&store, &[observed("user.created", 0, &user(&unique("user"), "Early", 0))]).await;
    // The later change is committed, but is not published before the earlier one.
    let page = feed.after(&before, 10, Duration::ZERO).await.unwrap();
    assert!(page.data.is_empty() && page.position == before, "{page:?}");
    slow.commit().await.unwrap();
    let page = feed.after(&before, 10, Duration::ZERO).await.unwrap();
    let names: Vec<String> = page.data.iter().map(|change| change.user.clone().unwrap().first_name.unwrap()).collect();
    assert_eq!(names, ["Late", "Early"]);
}

/// After a crash of the server, the number can be used again. A follower that had read it would miss the later change.
#[tokio::test]
async fn the_position_of_a_writer_that_gave_up_is_not_published() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let store = store(&pool);
    let feed = Feed::new(store.clone());
    take(&store, &[observed("user.created", 0, &user(&unique("user"), "Ada", 0))]).await;
    let committed = feed.now().await.unwrap();
    let mut undone = pool.begin().await.unwrap();
    let late = observed("user.created", 0, &user(&unique("user"), "Late", 0));
    authkit_sync::sync::apply_within(&mut undone, Origin::Webhook, &[late]).await.unwrap();
    undone.rollback().await.unwrap();
    assert_eq!(feed.now().await.unwrap(), committed);
    assert!(store.feed_head().await.unwrap().issued > committed.number);
}

/// A role with fewer rights on the server gets the same result.
#[tokio::test]
async fn every_login_reads_the_same_epoch() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let feed = Feed::new(store(&pool));
    let role = unique("narrow");
    for statement in [
        format!("create role {role}"),
        format!("grant usage on schema workos to {role}"),
        format!("grant select, update on all tables in schema workos to {role}"),
        format!("grant select on all sequences in schema workos to {role}"),
        format!("grant execute on all functions in schema workos to {role}"),
        "revoke execute on function pg_control_system() from public".to_owned(),
    ] {
        pool.execute(AssertSqlSafe(statement)).await.unwrap();
    }
    let before = feed.now().await.unwrap();
    let narrow = database.pool(1).await;
    narrow.execute(AssertSqlSafe(format!("set role {role}"))).await.unwrap();
    assert_eq!(Feed::new(store(&narrow)).now().await.unwrap(), before);
    assert_eq!(feed.now().await.unwrap(), before);
    narrow.close().await;
    pool.execute(AssertSqlSafe(format!("drop owned by {role}; drop role {role}"))).await.unwrap();
}

#[tokio::test]
async fn a_long_or_prepared_transaction_of_an_application_does_not_block_the_feed() {
    let database = TestDatabase::new().await;
    let pool = database.pool(6).await;
    let store = store(&pool);
    pool.execute("create table notes (body text)").await.unwrap();
    let mut foreign = pool.begin().await.unwrap();
    foreign.execute("insert into notes values ('long')").await.unwrap();
    // The application's own advisory locks: with the same first number in another key space, and with another number.
    foreign.execute("select pg_advisory_xact_lock(1717921124), pg_advisory_xact_lock(7, 7)").await.unwrap();
    let mut prepared = pool.acquire().await.unwrap();
    let many: i32 = sqlx::query_scalar("select current_setting('max_prepared_transactions')::int")
        .fetch_one(&mut *prepared)
        .await
        .unwrap();
    // A server that is not private may allow no prepared transactions.
    let preparing = many > 0;
    assert!(preparing || std::env::var_os("DATABASE_URL").is_some());
    let name = unique("role");
    for statement in [
        "begin".to_owned(),
        "insert into notes values ('prepared')".to_owned(),
        format!("prepare transaction '{name}'"),
    ] {
        if preparing {
            prepared.execute(AssertSqlSafe(statement)).await.unwrap();
        }
    }
    take(&store, &[observed("user.created", 0, &user(&unique("user"), "Ada", 0))]).await;
    assert_eq!(kinds(&told(&store).await), ["created"]);
    if preparing {
        prepared.execute(AssertSqlSafe(format!("rollback prepared '{name}'"))).await.unwrap();
    }
    foreign.rollback().await.unwrap();
}

/// Concurrent writers, some of which roll back, and a follower that reads continuously. It misses no change and gets none twice.
#[tokio::test]
async fn a_follower_gets_every_change_of_concurrent_writers_once_and_each_user_in_order() {
    let database = TestDatabase::new().await;
    let pool = database.pool(12).await;
    let store = store(&pool);
    let feed = Feed::new(store.clone());
    let start = feed.now().await.unwrap();
    let users: Vec<String> = (0..5).map(|_| unique("user")).collect();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8_i64 {
        let (store, pool, users) = (store.clone(), pool.clone(), users.clone());
        writers.spawn(async move {
            for round in 0..25 {
                let at = round * 8 + writer;
                let id = &users[usize::try_from(at % 5).unwrap()];
                let event = observed("user.updated", at, &user(id, &format!("name {at}"), at));
                if round % 5 == 4 {
                    let mut undone = pool.begin().await.unwrap();
                    authkit_sync::sync::apply_within(&mut undone, Origin::Webhook, &[event]).await.unwrap();
                    undone.rollback().await.unwrap();
                } else {
                    take(&store, &[event]).await;
                }
            }
        });
    }
    let mut heard = Vec::new();
    let mut position = start;
    loop {
        let done = writers.is_empty() || writers.try_join_next().is_some() && writers.is_empty();
        let page = feed.after(&position, 7, Duration::ZERO).await.unwrap();
        position = page.position;
        let quiet = page.data.is_empty();
        heard.extend(page.data.into_iter().map(|change| (change.position.number, change.event.unwrap().id)));
        if done && quiet {
            break;
        }
        tokio::task::yield_now().await;
    }
    let kept: Vec<(i64, String)> = sqlx::query_as("select position, event_id from workos.changes order by position")
        .fetch_all(&pool)
        .await
        .unwrap();
    assert_eq!(heard, kept);
    // The versions of each user ascend in the order of commits.
    let falls: i64 = sqlx::query_scalar(
        "select count(*) from (
            select event.created_at < lag(event.created_at) over (partition by change.user_id order by position) as falls
            from workos.changes as change join workos.events as event on event.id = change.event_id
        ) as steps where falls",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert_eq!(falls, 0);
}

#[tokio::test]
async fn positions_are_void_after_a_rebind_and_in_another_database() {
    let lab = Lab::new().await;
    let store = lab.context().store;
    let feed = Feed::new(store.clone());
    // This database is a copy of another one, and has a new epoch.
    let copied: String = sqlx::query_scalar("select epoch from workos.feed").fetch_one(&lab.pool).await.unwrap();
    let before = feed.now().await.unwrap();
    assert_ne!(before.epoch, copied);
    // With the current client ID, `rebind` only invalidates feed positions.
    lab.create_users(1);
    lab.backfill().await;
    let (code, out, _) = lab.run(&["rebind"]).await;
    assert_eq!((code, out.contains("all positions of the change feed are invalid")), (0, true), "{out}");
    let after = feed.now().await.unwrap();
    assert!(after.epoch != before.epoch && after.number >= before.number);
    assert!(matches!(feed.after(&before, 1, Duration::ZERO).await, Err(FeedError::Expired)));
    assert_eq!(lab.count("select count(*) from workos.scans where completed_at is not null").await, 1);
    // A dump that was restored, or a replica that was promoted, has another table or timeline.
    lab.pool.execute("update workos.feed set identity = 'another'").await.unwrap();
    let elsewhere = feed.now().await.unwrap();
    assert_ne!(elsewhere.epoch, after.epoch);
    assert_eq!(feed.now().await.unwrap(), elsewhere, "it is renewed once");
    assert!(matches!(feed.after(&after, 1, Duration::ZERO).await, Err(FeedError::Expired)));
}

#[tokio::test]
async fn old_changes_expire_except_those_that_a_handler_has_not_processed() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let store = store(&pool);
    let feed = Feed::new(store.clone());
    let start = feed.now().await.unwrap();
    for _ in 0..6 {
        take(&store, &[observed("user.created", 0, &user(&unique("user"), "Ada", 0))]).await;
    }
    let page = feed.after(&start, 10, Duration::ZERO).await.unwrap();
    let number = |at: usize| page.data[at].position.number;
    sqlx::query("insert into workos.handlers (name, types, position, start_position) values ('slow', '{*}', $1, 0)")
        .bind(number(3))
        .execute(&pool)
        .await
        .unwrap();
    sqlx::query(
        "insert into workos.handler_backlog (handler, position, user_id, from_start, attempts) values ('slow', $1, '', false, 9)",
    )
    .bind(number(1))
    .execute(&pool)
    .await
    .unwrap();
    while store.expire_changes(Duration::ZERO, 2).await.unwrap() {}
    let kept: Vec<i64> =
        sqlx::query_scalar("select position from workos.changes order by position").fetch_all(&pool).await.unwrap();
    assert_eq!(kept, [number(1), number(4), number(5)]);
    assert!(matches!(feed.after(&start, 10, Duration::ZERO).await, Err(FeedError::Expired)));
    assert!(matches!(feed.after(&page.data[2].position, 10, Duration::ZERO).await, Err(FeedError::Expired)));
    let rest = feed.after(&page.data[3].position, 10, Duration::ZERO).await.unwrap();
    assert_eq!(rest.data.len(), 2);
    // A removed handler does not prevent the deletion of changes.
    pool.execute("delete from workos.handlers").await.unwrap();
    while store.expire_changes(Duration::ZERO, 2).await.unwrap() {}
    let left: i64 = sqlx::query_scalar("select count(*) from workos.changes").fetch_one(&pool).await.unwrap();
    assert_eq!(left, 0);
    assert!(feed.after(&page.position, 10, Duration::ZERO).await.unwrap().data.is_empty());
}
