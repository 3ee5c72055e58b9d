//! Sessions that move `last_sign_in_at`, where that is asked for.

use std::time::Duration;

use authkit_sync::AuthKit;
use authkit_sync::domain::decide::Stored;
use authkit_sync::domain::event::{Observation, Origin};
use authkit_sync::store::Store;
use authkit_sync::sync::apply;
use authkit_sync::workos::api::ApiKey;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::support::database::TestDatabase;
use crate::support::events::{at, observed, snapshot, unique, user};
use crate::support::lab::Lab;
use crate::support::service::{store, until};

fn session(user: &str, at_ms: i64) -> Observation {
    observed("session.created", at_ms + 1, &json!({"id": unique("session"), "user_id": user, "created_at": at(at_ms)}))
}

async fn take(store: &Store, observations: &[Observation]) {
    apply(store, Origin::Webhook, observations).await.unwrap();
}

async fn last_sign_in(store: &Store, id: &str) -> Value {
    match store.user(id).await.unwrap() {
        Stored::Live { user, .. } => json!(user.last_sign_in_at),
        other => panic!("{other:?}"),
    }
}

async fn kept(pool: &PgPool) -> i64 {
    sqlx::query_scalar("select count(*) from workos.sign_ins").fetch_one(pool).await.unwrap()
}

#[tokio::test]
async fn the_latest_session_counts_in_any_order_before_its_user_and_behind_it() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let store = store(&pool).counting_sessions(true);
    let id = unique("user");
    take(&store, &[session(&id, 500), session(&id, 300)]).await;
    assert!(matches!(store.user(&id).await.unwrap(), Stored::Absent), "a session makes no user");
    take(&store, &[observed("user.created", 0, &user(&id, "Ada", 0))]).await;
    assert_eq!(last_sign_in(&store, &id).await, json!(at(500)));
    take(&store, &[session(&id, 400)]).await;
    assert_eq!(last_sign_in(&store, &id).await, json!(at(500)));
    // Neither an update without one nor a snapshot with an earlier one takes it back; a later one counts.
    let mut read = user(&id, "Adaline", 600);
    take(&store, &[observed("user.updated", 600, &read)]).await;
    read["last_sign_in_at"] = json!(at(450));
    take(&store, &[snapshot(&read, 700)]).await;
    assert_eq!(last_sign_in(&store, &id).await, json!(at(500)));
    read["last_sign_in_at"] = json!(at(800));
    take(&store, &[snapshot(&read, 900)]).await;
    assert_eq!(last_sign_in(&store, &id).await, json!(at(800)));
    // All in one slice, the other way round.
    let other = unique("user");
    take(&store, &[observed("user.created", 0, &user(&other, "Eve", 0)), session(&other, 7), session(&other, 5)]).await;
    assert_eq!(last_sign_in(&store, &other).await, json!(at(7)));
}

#[tokio::test]
async fn impersonation_does_not_count_and_a_deletion_takes_it_away_for_good() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let store = store(&pool).counting_sessions(true);
    let id = unique("user");
    let mut impersonated = json!({"id": "session_1", "user_id": id, "created_at": at(5), "auth_method": "password"});
    impersonated["impersonator"] = json!({"email": "support@example.test", "reason": null});
    let by_method = json!({"id": "session_2", "user_id": id, "created_at": at(5), "auth_method": "impersonation"});
    take(&store, &[observed("user.created", 0, &user(&id, "Ada", 0))]).await;
    take(&store, &[observed("session.created", 5, &impersonated), observed("session.created", 5, &by_method)]).await;
    assert_eq!((last_sign_in(&store, &id).await, kept(&pool).await), (Value::Null, 0));
    take(&store, &[session(&id, 10)]).await;
    let deleted = observed("user.deleted", 20, &json!({"id": id}));
    take(&store, &[session(&id, 15), deleted]).await;
    take(&store, &[session(&id, 30)]).await;
    assert_eq!(kept(&pool).await, 0);
    assert!(matches!(store.user(&id).await.unwrap(), Stored::Tombstone { .. }));
}

#[tokio::test]
async fn it_is_off_unless_asked_for_and_then_polled() {
    let lab = Lab::new().await;
    let store = lab.context().store;
    let id = lab.create_user("Ada");
    lab.backfill().await;
    take(&store, &[session(&id, 10)]).await;
    assert_eq!(kept(&lab.pool).await, 0);
    lab.workos.sign_in(&id).unwrap();
    let authkit = AuthKit::builder(lab.pool.clone(), lab.workos.client_id())
        .api_base(lab.workos.base_url())
        .api_key(ApiKey::new(lab.workos.api_key()))
        .clock(lab.clock.clone())
        .catch_up_interval(Duration::from_millis(10))
        .session_sign_ins(true)
        .build()
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(authkit.run(listener, None, async {
        let _ = stopped.await;
    }));
    until("the session is read and counted", async || kept(&lab.pool).await == 1).await;
    assert_ne!(last_sign_in(&store, &id).await, Value::Null);
    let _ = stop.send(());
    running.await.unwrap().unwrap();
}
