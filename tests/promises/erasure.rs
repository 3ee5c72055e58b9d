//! Promise 4: deleted stays deleted, and erased: whether its data came before, comes after, or is in flight.

use authkit_sync::domain::event::{Observation, Origin};
use authkit_sync::store::Store;
use authkit_sync::sync::{apply, apply_within};
use serde_json::json;
use sqlx::{Connection, PgPool};

use crate::support::database::TestDatabase;
use crate::support::events::{observed, unique, user};
use crate::support::service::{store, until};

struct Scene {
    _database: TestDatabase,
    pool: PgPool,
    store: Store,
    id: String,
}

impl Scene {
    async fn new() -> Self {
        let database = TestDatabase::new().await;
        let pool = database.pool(6).await;
        Self { store: store(&pool), _database: database, pool, id: unique("user") }
    }

    fn update(&self, updated_ms: i64) -> Observation {
        observed("user.updated", updated_ms, &user(&self.id, "Ada", updated_ms))
    }

    fn delete(&self) -> Observation {
        observed("user.deleted", 50, &user(&self.id, "Ada", 50))
    }

    async fn apply(&self, observation: &Observation) {
        apply(&self.store, Origin::Webhook, std::slice::from_ref(observation)).await.unwrap();
    }

    /// Holds `first` in an open transaction, starts `second` beside it, commits only once `second` waits for it.
    async fn race(&self, first: Observation, second: Observation) {
        let mut connection = self.pool.acquire().await.unwrap();
        let mut open = connection.begin().await.unwrap();
        apply_within(&mut open, Origin::Webhook, &[first]).await.unwrap();
        let store = self.store.clone();
        let beside = tokio::spawn(async move { apply(&store, Origin::Webhook, &[second]).await.map(|_| ()) });
        until("the second transaction waits for the first", async || {
            sqlx::query_scalar::<_, bool>("select exists (select from pg_locks where not granted)")
                .fetch_one(&self.pool)
                .await
                .unwrap()
        })
        .await;
        open.commit().await.unwrap();
        beside.await.unwrap().unwrap();
    }

    async fn assert_nothing_is_left(&self) {
        // Whatever table or column may come: no row of the schema mentions the person.
        let tables: Vec<String> = sqlx::query_scalar(
            "select format('%I.%I', schemaname, tablename) from pg_tables where schemaname = 'workos'",
        )
        .fetch_all(&self.pool)
        .await
        .unwrap();
        assert!(tables.len() >= 3, "{tables:?}");
        for table in tables {
            let sql = format!(
                "select count(*) from {table} as row_of_it where row_of_it::text ~* 'Ada|Quill|example\\.test'
                    or row_of_it::text like '%' || encode('Ada', 'hex') || '%'"
            );
            let left: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&self.pool).await.unwrap();
            assert_eq!(left, 0, "{table} still knows the person");
        }
        let tombstone: (bool, Option<String>) =
            sqlx::query_as("select synced_deleted, email from workos.user_records where id = $1")
                .bind(&self.id)
                .fetch_one(&self.pool)
                .await
                .unwrap();
        assert_eq!(tombstone, (true, None));
    }
}

#[tokio::test]
async fn an_update_in_flight_when_the_delete_comes_leaves_nothing() {
    let scene = Scene::new().await;
    scene.apply(&scene.update(10)).await;
    scene.race(scene.update(20), scene.delete()).await;
    scene.assert_nothing_is_left().await;
}

#[tokio::test]
async fn a_delete_in_flight_when_the_update_comes_leaves_nothing() {
    let scene = Scene::new().await;
    scene.apply(&scene.update(10)).await;
    scene.race(scene.delete(), scene.update(90)).await;
    scene.assert_nothing_is_left().await;
}

#[tokio::test]
async fn the_same_holds_for_a_user_never_seen_before() {
    let scene = Scene::new().await;
    scene.race(scene.update(20), scene.delete()).await;
    scene.assert_nothing_is_left().await;
    let scene = Scene::new().await;
    scene.race(scene.delete(), scene.update(20)).await;
    scene.assert_nothing_is_left().await;
}

#[tokio::test]
async fn a_delete_before_the_create_leaves_nothing() {
    let scene = Scene::new().await;
    scene.apply(&scene.delete()).await;
    scene.apply(&observed("user.created", 1, &user(&scene.id, "Ada", 1))).await;
    scene.apply(&scene.update(99)).await;
    scene.assert_nothing_is_left().await;
}

#[tokio::test]
async fn other_events_and_quarantined_ones_of_the_user_are_erased_before_and_after() {
    let scene = Scene::new().await;
    let session =
        || observed("session.created", 5, &json!({"id": "session_1", "user_id": scene.id, "user_agent": "Ada"}));
    let link = || observed("user.linked", 5, &json!({"id": "link_1", "user_id": scene.id, "note": "Ada"}));
    let broken = || observed("user.updated", 5, &json!({"id": scene.id, "email": 7, "first_name": "Ada"}));
    let refused = || {
        // Incompressible and longer than an index entry may be: PostgreSQL refuses it with class 54.
        let mut seed = 1_u64;
        let long: String = std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            char::from_u32(0x4E00 + u32::try_from(seed >> 50).unwrap()).unwrap_or('x')
        })
        .take(6_000)
        .collect();
        let mut data = user(&scene.id, "Ada", 40);
        data["external_id"] = json!(long);
        observed("user.updated", 40, &data)
    };
    for event in [session(), link(), broken(), refused(), scene.update(10)] {
        scene.apply(&event).await;
    }
    let quarantined: i64 = sqlx::query_scalar("select count(*) from workos.events where outcome = 'quarantined'")
        .fetch_one(&scene.pool)
        .await
        .unwrap();
    assert_eq!(quarantined, 2);
    scene.apply(&scene.delete()).await;
    scene.assert_nothing_is_left().await;
    for event in [session(), link(), broken(), refused()] {
        scene.apply(&event).await;
    }
    scene.assert_nothing_is_left().await;
    let events: i64 = sqlx::query_scalar("select count(*) from workos.events").fetch_one(&scene.pool).await.unwrap();
    assert_eq!(events, 10, "envelope, times and outcome stay");
}

#[tokio::test]
async fn a_user_only_named_by_other_events_gets_no_row() {
    let scene = Scene::new().await;
    scene.apply(&observed("session.created", 5, &json!({"id": "session_1", "user_id": scene.id}))).await;
    let rows: i64 =
        sqlx::query_scalar("select count(*) from workos.user_records").fetch_one(&scene.pool).await.unwrap();
    assert_eq!(rows, 0, "the place held for locking was given back");
}
