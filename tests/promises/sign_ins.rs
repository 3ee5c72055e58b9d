//! Sessions that update `last_sign_in_at`, if that is enabled.

use std::time::Duration;

use authkit_sync::AuthKit;
use authkit_sync::domain::decide::Stored;
use authkit_sync::domain::event::{Observation, Origin};
use authkit_sync::domain::kinds::Kinds;
use authkit_sync::store::Store;
use authkit_sync::sync::catch_up::CatchUp;
use authkit_sync::sync::reconcile::Mode;
use authkit_sync::sync::runner::BackgroundLoop;
use authkit_sync::sync::{apply, apply_within};
use authkit_sync::workos::api::ApiKey;
use serde_json::{Value, json};
use sqlx::{Connection, PgPool};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::support::database::TestDatabase;
use crate::support::events::{at, body, observed, snapshot, unique, user};
use crate::support::lab::Lab;
use crate::support::service::{Service, store, until};

fn session(user: &str, at_ms: i64) -> Observation {
    observed("session.created", at_ms + 1, &json!({"id": unique("session"), "user_id": user, "created_at": at(at_ms)}))
}

async fn take(store: &Store, observations: &[Observation]) {
    apply(store, Origin::Webhook, observations).await.unwrap();
}

async fn last_sign_in(store: &Store, id: &str) -> Value {
    match store.user(id).await.unwrap() {
        Stored::Live { object: user, .. } => json!(user.last_sign_in_at),
        other => panic!("{other:?}"),
    }
}

async fn kept(pool: &PgPool) -> i64 {
    sqlx::query_scalar("select count(*) from workos.sign_ins").fetch_one(pool).await.unwrap()
}

#[tokio::test]
async fn the_latest_session_counts_in_any_order_before_and_after_its_user() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let store = store(&pool);
    let id = unique("user");
    take(&store, &[session(&id, 500), session(&id, 300)]).await;
    assert!(matches!(store.user(&id).await.unwrap(), Stored::Absent), "a session makes no user");
    take(&store, &[observed("user.created", 0, &user(&id, "Ada", 0))]).await;
    assert_eq!(last_sign_in(&store, &id).await, json!(at(500)));
    take(&store, &[session(&id, 400)]).await;
    assert_eq!(last_sign_in(&store, &id).await, json!(at(500)));
    // Neither an update without a sign-in nor a snapshot with an earlier one changes it. A later one does.
    let mut read = user(&id, "Adaline", 600);
    take(&store, &[observed("user.updated", 600, &read)]).await;
    read["last_sign_in_at"] = json!(at(450));
    take(&store, &[snapshot(&read, 700)]).await;
    assert_eq!(last_sign_in(&store, &id).await, json!(at(500)));
    read["last_sign_in_at"] = json!(at(800));
    take(&store, &[snapshot(&read, 900)]).await;
    assert_eq!(last_sign_in(&store, &id).await, json!(at(800)));
    // All in one batch, in the reverse order.
    let other = unique("user");
    take(&store, &[observed("user.created", 0, &user(&other, "Eve", 0)), session(&other, 7), session(&other, 5)]).await;
    assert_eq!(last_sign_in(&store, &other).await, json!(at(7)));
}

#[tokio::test]
async fn impersonation_does_not_count_and_a_deletion_erases_the_sign_in() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let store = store(&pool);
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
async fn webhooks_and_catch_up_store_sign_ins_only_where_that_is_enabled() {
    let database = TestDatabase::new().await;
    let pool = database.pool(6).await;
    let id = unique("user");
    let session = |at_ms| json!({"id": unique("session"), "user_id": id, "created_at": at(at_ms)});
    let service = Service::start(&pool).await;
    service.deliver(&body(&unique("event"), "user.created", 0, &user(&id, "Ada", 0))).await;
    assert_eq!(service.deliver(&body(&unique("event"), "session.created", 10, &session(10))).await.status, 200);
    assert_eq!((last_sign_in(&store(&pool), &id).await, kept(&pool).await), (Value::Null, 0));
    service.stop().await.unwrap();
    let service = Service::start_with(&pool, |builder| builder.session_sign_ins(true)).await;
    assert_eq!(service.deliver(&body(&unique("event"), "session.created", 20, &session(20))).await.status, 200);
    assert_eq!((last_sign_in(&store(&pool), &id).await, kept(&pool).await), (json!(at(20)), 1));
    service.stop().await.unwrap();
    // Catch-up reads sessions because of another setting, too.
    let lab = Lab::new().await;
    let types = ["user.created", "session.created"].map(str::to_owned).to_vec();
    lab.workos.sign_in(&lab.create_user("Ada")).unwrap();
    for (sign_ins, expected) in [(false, 0), (true, 1)] {
        let context = lab.context().syncing(Kinds { sign_ins, ..Kinds::ALL });
        let catch_up = CatchUp::new(context, types.clone(), Duration::ZERO);
        sqlx::query("delete from workos.catch_up").execute(&lab.pool).await.unwrap();
        lab.free_leases().await;
        for _ in 0..3 {
            catch_up.tick().await;
        }
        assert_eq!(lab.count("select count(*) from workos.events where type = 'session.created'").await, 1);
        assert_eq!(kept(&lab.pool).await, expected);
    }
}

#[tokio::test]
async fn sessions_are_polled_where_sign_ins_are_enabled() {
    let lab = Lab::new().await;
    let store = lab.context().store;
    let id = lab.create_user("Ada");
    lab.backfill().await;
    lab.workos.sign_in(&id).unwrap();
    let authkit = AuthKit::builder(lab.service_pool(), lab.workos.client_id())
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

/// Every write of a row includes the stored sign-in. The setting only decides whether new sign-ins are stored.
#[tokio::test]
async fn every_path_that_creates_a_row_shows_the_stored_sign_in() {
    let lab = Lab::new().await;
    let store = lab.context().store;
    let signed_in = json!(at(900));
    let filled = lab.create_user("Filled");
    take(&store, &[session(&filled, 900)]).await;
    lab.backfill().await;
    assert_eq!(last_sign_in(&store, &filled).await, signed_in, "backfill");
    let repaired = lab.create_user("Repaired");
    take(&store, &[session(&repaired, 900)]).await;
    lab.free_leases().await;
    lab.reconcile(Mode::Repair).await.unwrap();
    assert_eq!(last_sign_in(&store, &repaired).await, signed_in, "reconcile");
    // Within a transaction of the caller.
    let within = unique("user");
    let mut connection = lab.pool.acquire().await.unwrap();
    let mut transaction = connection.begin().await.unwrap();
    for observation in [session(&within, 900), observed("user.created", 0, &user(&within, "Ada", 0))] {
        apply_within(&mut transaction, Origin::Webhook, &[observation]).await.unwrap();
    }
    transaction.commit().await.unwrap();
    drop(connection);
    assert_eq!(last_sign_in(&store, &within).await, signed_in, "apply_within");
    // A quarantined user, retried.
    let retried = unique("user");
    let mut spoiled = user(&retried, "Ada", 0);
    spoiled["email"] = json!(7);
    take(&store, &[session(&retried, 900), observed("user.created", 0, &spoiled)]).await;
    let corrected = body("event_x", "user.created", 0, &user(&retried, "Ada", 0));
    let correct = "update workos.events set payload = $1 where outcome = 'quarantined'";
    sqlx::query(correct).bind(&corrected[..]).execute(&lab.pool).await.unwrap();
    let (code, out, err) = lab.run(&["events", "retry"]).await;
    assert_eq!((code, last_sign_in(&store, &retried).await), (0, signed_in.clone()), "{out}{err}");
    // Sessions that arrived while it was disabled: a replay stores them where it is enabled now.
    let replayed = unique("user");
    let late = Kinds::ALL.restrict(session(&replayed, 900));
    take(&store, &[observed("user.created", 0, &user(&replayed, "Ada", 0)), late]).await;
    for (setting, expected) in [("off", Value::Null), ("on", signed_in)] {
        let setting = [("AUTHKIT_SYNC_SESSION_SIGN_INS", setting)];
        let (code, out, err) = lab.run_with(&["events", "replay", "--since", "1h"], &setting).await;
        assert_eq!((code, last_sign_in(&store, &replayed).await), (0, expected), "{out}{err}");
    }
}

/// The insertion waits for the placeholder of the session's transaction. Its snapshot does not contain the sign-in.
#[tokio::test]
async fn a_sign_in_stored_while_its_user_is_inserted_is_shown() {
    let lab = Lab::new().await;
    let store = lab.context().store;
    let id = unique("user");
    let mut connection = lab.pool.acquire().await.unwrap();
    let mut transaction = connection.begin().await.unwrap();
    apply_within(&mut transaction, Origin::Webhook, &[session(&id, 900)]).await.unwrap();
    let created = [observed("user.created", 0, &user(&id, "Ada", 0))];
    let waits = "select count(*) > 0 from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock'";
    let commit = async {
        until("the insertion waits", async || sqlx::query_scalar(waits).fetch_one(&lab.pool).await.unwrap()).await;
        transaction.commit().await.unwrap();
    };
    let (applied, ()) = tokio::join!(apply(&store, Origin::Webhook, &created), commit);
    applied.unwrap();
    assert_eq!(last_sign_in(&store, &id).await, json!(at(900)));
}
