//! Following the change feed: over HTTP, by long polling, from a list of all users, and as a stream.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use authkit_sync::domain::change::Position;
use authkit_sync::store::{Pool, Store};
use authkit_sync::sync::feed::{Feed, FeedError};
use futures_util::StreamExt;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::changes::take;
use crate::support::database::TestDatabase;
use crate::support::events::{body, observed, unique, user};
use crate::support::service::{Answer, Service, store, until};

const KEY: &str = "a-service-key-of-32-characters-or-more";

async fn service(pool: &PgPool) -> Service {
    Service::start_with(pool, |builder| builder.service_key("follower", KEY)).await
}

#[tokio::test]
async fn followers_read_over_http_with_a_service_key_and_get_errors_with_reasons() {
    let database = TestDatabase::new().await;
    let pool = database.pool(6).await;
    let service = service(&pool).await;
    assert_eq!(service.get("/changes").await.status, 401);
    let now = service.ask("/changes", KEY).await;
    assert_eq!((now.status, now.json()["data"].clone()), (200, json!([])));
    let position = now.json()["position"].as_str().unwrap().to_owned();
    let id = unique("user");
    service.deliver(&body(&unique("event"), "user.created", 0, &user(&id, "Ada", 0))).await;
    let page = service.ask(&format!("/changes?after={position}&limit=1"), KEY).await;
    assert_eq!(page.json()["data"][0]["user"]["id"], json!(id));
    assert_eq!(page.header("cache-control"), "no-store");
    for (query, code) in [
        ("after=x", "invalid_parameter"),
        ("after=", "invalid_parameter"),
        ("limit=0", "invalid_parameter"),
        ("limit=1001", "invalid_parameter"),
        ("wait=21", "invalid_parameter"),
        ("wait=-1", "invalid_parameter"),
        ("since=1", "invalid_parameter"),
    ] {
        assert_eq!(service.ask(&format!("/changes?{query}"), KEY).await.code(), (400, code.to_owned()), "{query}");
    }
    for gone in [format!("00000000-{}", 1), format!("{}9", position)] {
        let answer = service.ask(&format!("/changes?after={gone}"), KEY).await;
        assert_eq!(answer.code(), (410, "position_expired".to_owned()), "{gone}");
    }
    service.stop().await.unwrap();
}

#[tokio::test]
async fn a_long_poll_is_answered_at_the_next_change_and_at_shutdown() {
    let database = TestDatabase::new().await;
    let pool = database.pool(6).await;
    // With our own sessions, the last statement of a lookup is the lookup itself.
    let lookups = Pool::connect(database.options().application_name("lookups"), 4, Duration::from_secs(30));
    let service = Service::start_with(&pool, |builder| builder.service_key("follower", KEY).lookup_pool(lookups)).await;
    let position = service.ask("/changes", KEY).await.json()["position"].as_str().unwrap().to_owned();
    let wait = |position: &str| {
        let request = service.client.get(service.url(&format!("/changes?after={position}&wait=20"))).bearer_auth(KEY);
        tokio::spawn(async move { Answer::of(request.send().await.unwrap()).await })
    };
    let now = async || sqlx::query_scalar("select clock_timestamp()").fetch_one(&pool).await.unwrap();
    // No other code of this service reads the feed with these connections.
    let looked = async |since: time::OffsetDateTime| {
        let looks: i64 = sqlx::query_scalar(
            "select count(*) from pg_stat_activity
            where
                datname = current_database()
                and application_name = 'lookups'
                and query like '-- changes.head%'
                and query_start > $1",
        )
        .bind(since)
        .fetch_one(&pool)
        .await
        .unwrap();
        looks > 0
    };
    let before = now().await;
    let waiting = wait(&position);
    until("a request reads the feed", async || looked(before).await).await;
    service.deliver(&body(&unique("event"), "user.created", 0, &user(&unique("user"), "Ada", 0))).await;
    let page = waiting.await.unwrap().json();
    assert_eq!(page["data"][0]["kind"], "created");
    // At shutdown, long polls are answered at once. Otherwise the drain deadline would cut them off.
    let before = now().await;
    let waiting = wait(page["position"].as_str().unwrap());
    until("a request reads the feed again", async || looked(before).await).await;
    service.stop().await.unwrap();
    let last = waiting.await.unwrap();
    assert_eq!((last.status, last.json()["data"].clone()), (200, json!([])), "answered, not cut off");
}

/// Random creations, renames and deletions, until `stop` is set.
async fn write_until(store: Store, users: Vec<String>, stop: Arc<AtomicBool>) {
    let mut random = fastrand::Rng::with_seed(7);
    for at in 0.. {
        let id = &users[random.usize(..users.len())];
        let event = match random.u8(..10) {
            0 => observed("user.deleted", at, &json!({"id": id})),
            _ => observed("user.updated", at, &user(id, &format!("name {at}"), at)),
        };
        take(&store, &[event]).await;
        if at > 200 && stop.load(Ordering::SeqCst) {
            return;
        }
    }
}

#[tokio::test]
async fn a_follower_that_starts_from_the_list_ends_with_the_same_users_while_writes_go_on() {
    let database = TestDatabase::new().await;
    let pool = database.pool(10).await;
    let service = service(&pool).await;
    let users: Vec<String> = (0..60).map(|_| unique("user")).collect();
    for id in &users[..40] {
        take(&store(&pool), &[observed("user.created", 0, &user(id, "Ada", 0))]).await;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let writing = tokio::spawn(write_until(store(&pool), users, stop.clone()));
    // The list, page by page, and the position in the answer of the first page.
    let mut mirror: BTreeMap<String, Value> = BTreeMap::new();
    let (mut position, mut after) = (None, String::new());
    loop {
        let page = service.ask(&format!("/user_management/users?order=asc&limit=7{after}"), KEY).await;
        position.get_or_insert_with(|| page.header("authkit-sync-position").to_owned());
        let page = page.json();
        for user in page["data"].as_array().unwrap() {
            mirror.insert(user["id"].as_str().unwrap().to_owned(), user.clone());
        }
        match page["list_metadata"]["after"].as_str() {
            Some(id) => after = format!("&after={id}"),
            None => break,
        }
    }
    let mut position = position.unwrap();
    for round in 0.. {
        // This is read before the page, because more changes can be written after the page.
        let over = writing.is_finished();
        let page = service.ask(&format!("/changes?after={position}&limit=5"), KEY).await.json();
        let changes = page["data"].as_array().unwrap();
        for change in changes {
            let id = change["user_id"].as_str().unwrap().to_owned();
            match &change["user"] {
                Value::Null => drop(mirror.remove(&id)),
                user => drop(mirror.insert(id, user.clone())),
            }
        }
        position = page["position"].as_str().unwrap().to_owned();
        stop.store(round > 50, Ordering::SeqCst);
        if changes.is_empty() && over {
            break;
        }
    }
    writing.await.unwrap();
    let mut table = BTreeMap::new();
    for id in sqlx::query_scalar::<_, String>("select id from workos.users").fetch_all(&pool).await.unwrap() {
        let user = service.ask(&format!("/user_management/users/{id}"), KEY).await.json();
        table.insert(id, user);
    }
    assert!(table.len() > 10);
    assert_eq!(mirror, table);
    service.stop().await.unwrap();
}

#[tokio::test]
async fn the_library_returns_changes_as_a_stream() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let store = store(&pool);
    let authkit = authkit_sync::AuthKit::builder(pool.clone(), crate::support::service::CLIENT_ID).build().unwrap();
    let mut changes = Box::pin(authkit.changes(authkit.position().await.unwrap()));
    for name in ["one", "two", "three"] {
        take(&store, &[observed("user.created", 0, &user(&unique("user"), name, 0))]).await;
        let change = changes.next().await.unwrap().unwrap();
        assert_eq!(change.user.unwrap().first_name.as_deref(), Some(name));
    }
    drop(changes);
    let mut lost = Box::pin(authkit.changes(Position { epoch: "00000000".into(), number: 0 }));
    assert!(matches!(lost.next().await, Some(Err(FeedError::Expired))));
    assert!(lost.next().await.is_none());
}

/// Waiting requests share their reads. A read from before a request must not make its newer position look expired.
#[tokio::test]
async fn a_short_wait_beside_a_long_one_does_not_expire_a_new_position() {
    let database = TestDatabase::new().await;
    let store = store(&database.pool(4).await);
    let feed = Feed::new(store.clone());
    let waiting = feed.clone();
    let long = tokio::spawn(async move {
        let mut at = waiting.now().await.unwrap();
        loop {
            at = waiting.after(&at, 10, Duration::from_secs(20)).await.unwrap().position;
        }
    });
    for _ in 0..30 {
        take(&store, &[observed("user.created", 0, &user(&unique("user"), "Ada", 0))]).await;
        let now = feed.now().await.unwrap();
        let page = feed.after(&now, 10, Duration::from_millis(30)).await.unwrap();
        assert_eq!(page.position, now);
    }
    long.abort();
}
