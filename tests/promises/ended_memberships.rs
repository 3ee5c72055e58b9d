//! The deletion of a user ends the user's memberships: once in the feed, with any concurrent observations, and in bounded batches.

use std::time::Duration;

use authkit_sync::domain::event::{Observation, Origin};
use authkit_sync::store::Store;
use authkit_sync::sync::housekeeping::Housekeeping;
use authkit_sync::sync::runner::BackgroundLoop;
use authkit_sync::sync::{apply, apply_within};
use serde_json::json;
use sqlx::{Connection, PgPool};

use crate::auth_session::{membership, organization};
use crate::support::database::TestDatabase;
use crate::support::events::{observed, unique, user};
use crate::support::lab::Lab;
use crate::support::service::{store, until};

/// A user with the membership `om_1`.
struct Scene {
    _database: Option<TestDatabase>,
    pool: PgPool,
    store: Store,
    user: String,
}

impl Scene {
    async fn new() -> Self {
        let database = TestDatabase::new().await;
        let pool = database.pool(6).await;
        let scene = Self { store: store(&pool), _database: Some(database), pool, user: unique("user") };
        scene.apply(&[scene.created(), scene.member(10)]).await;
        scene
    }

    fn created(&self) -> Observation {
        observed("user.created", 1, &user(&self.user, "Ada", 1))
    }

    fn member(&self, updated_ms: i64) -> Observation {
        let mut member = membership("om_1", &self.user, "org_1", "active", updated_ms);
        member["custom_attributes"] = json!({"department": "Ada's"});
        observed("organization_membership.updated", updated_ms, &member)
    }

    fn user_deleted(&self) -> Observation {
        observed("user.deleted", 50, &json!({"object": "user", "id": self.user}))
    }

    async fn apply(&self, observations: &[Observation]) {
        apply(&self.store, Origin::Webhook, observations).await.unwrap();
    }

    /// Applies `first` in an open transaction, starts `second` concurrently, and commits once `second` waits for `first`.
    async fn race(&self, first: Observation, second: Observation) {
        let mut connection = self.pool.acquire().await.unwrap();
        let mut open = connection.begin().await.unwrap();
        apply_within(&mut open, Origin::Webhook, &[first]).await.unwrap();
        let store = self.store.clone();
        let beside = tokio::spawn(async move { apply(&store, Origin::Webhook, &[second]).await.map(|_| ()) });
        until("the second transaction waits for the first", async || {
            let waits = "select exists (select from pg_locks where not granted)";
            sqlx::query_scalar::<_, bool>(waits).fetch_one(&self.pool).await.unwrap()
        })
        .await;
        open.commit().await.unwrap();
        beside.await.unwrap().unwrap();
    }

    async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&self.pool).await.unwrap()
    }

    async fn ends(&self) -> i64 {
        self.count("select count(*) from workos.changes where kind = 'organization_membership.deleted'").await
    }

    /// Checks that the membership ended once, and that no personal data of it is left.
    async fn has_ended_once(&self) {
        let row: (bool, Option<String>, Option<String>, bool) = sqlx::query_as(
            "select synced_deleted, user_id, organization_id, custom_attributes is null
            from workos.organization_membership_records where id = 'om_1'",
        )
        .fetch_one(&self.pool)
        .await
        .unwrap();
        assert_eq!(row, (true, Some(self.user.clone()), Some("org_1".to_owned()), true));
        assert_eq!(self.ends().await, 1, "changes that end the membership");
        let payloads = "select count(*) from workos.events where user_id is not null and payload is not null";
        assert_eq!(self.count(payloads).await, 0, "payloads about the user");
    }
}

fn member_deleted() -> Observation {
    observed("organization_membership.deleted", 40, &json!({"object": "organization_membership", "id": "om_1"}))
}

#[tokio::test]
async fn a_membership_whose_own_deletion_is_in_flight_ends_once_with_its_user() {
    let scene = Scene::new().await;
    scene.race(member_deleted(), scene.user_deleted()).await;
    scene.has_ended_once().await;
    let scene = Scene::new().await;
    scene.race(scene.user_deleted(), member_deleted()).await;
    scene.has_ended_once().await;
}

#[tokio::test]
async fn a_membership_in_flight_when_its_user_is_deleted_ends_in_any_order() {
    let scene = Scene::new().await;
    scene.race(scene.member(60), scene.user_deleted()).await;
    scene.has_ended_once().await;
    let scene = Scene::new().await;
    scene.race(scene.user_deleted(), scene.member(60)).await;
    scene.has_ended_once().await;
}

#[tokio::test]
async fn a_membership_never_seen_before_is_no_member_of_a_deleted_user() {
    let scene = Scene::new().await;
    let gone = unique("user");
    let member = membership("om_2", &gone, "org_1", "active", 5);
    scene
        .race(
            observed("user.deleted", 50, &json!({"id": gone})),
            observed("organization_membership.created", 5, &member),
        )
        .await;
    let other = unique("user");
    let member = membership("om_3", &other, "org_1", "active", 5);
    scene
        .race(
            observed("organization_membership.created", 5, &member),
            observed("user.deleted", 50, &json!({"id": other})),
        )
        .await;
    let ended =
        "select count(*) from workos.organization_membership_records where synced_deleted and id in ('om_2', 'om_3')";
    assert_eq!(scene.count(ended).await, 2);
    // The feed contains the end of the membership whose creation it contains.
    let of = "select count(*) from workos.changes where object_id = 'om_2'";
    assert_eq!(scene.count(of).await, 0);
    let of = "select count(*) from workos.changes where object_id = 'om_3'";
    assert_eq!(scene.count(of).await, 2);
}

/// PostgreSQL refuses a neighbour, so that the batch is applied one observation at a time.
#[tokio::test]
async fn in_a_batch_with_a_refused_neighbour_a_membership_ends_once_with_its_user() {
    for last in ["update", "delete"] {
        let scene = Scene::new().await;
        sqlx::raw_sql(crate::convergence_of_kinds::REFUSE).execute(&scene.pool).await.unwrap();
        let last = if last == "update" { scene.member(60) } else { member_deleted() };
        let refused = observed("organization.created", 5, &organization("org_1", "refused", 5));
        let applied = apply(&scene.store, Origin::Webhook, &[scene.user_deleted(), last, refused]).await.unwrap();
        assert_eq!(applied[2].outcome(), "quarantined");
        scene.has_ended_once().await;
    }
}

#[tokio::test]
async fn a_user_with_many_memberships_ends_in_bounded_batches_and_is_no_member_from_the_start() {
    let lab = Lab::new().await;
    let scene = Scene { store: lab.context().store, pool: lab.pool.clone(), user: unique("user"), _database: None };
    scene
        .apply(&[
            scene.created(),
            scene.member(10),
            observed("organization.created", 1, &organization("org_1", "Quill", 1)),
        ])
        .await;
    let many = "insert into workos.organization_membership_records (
            id, user_id, organization_id, status, roles, custom_attributes, directory_managed, updated_at, synced_extra,
            synced_observed_at, synced_observation_id, synced_at
        )
        select
            'om_many_' || n, user_id, organization_id, status, roles, custom_attributes, directory_managed, updated_at,
            synced_extra, synced_observed_at, synced_observation_id, synced_at
        from workos.organization_membership_records, generate_series(2, 2500) as n
        where id = 'om_1'";
    sqlx::query(many).execute(&scene.pool).await.unwrap();
    assert_eq!(scene.count("select count(*) from workos.active_memberships").await, 2_500);
    scene.apply(&[scene.user_deleted()]).await;
    let left = "select count(*) from workos.organization_membership_records where custom_attributes is not null";
    let views = "select (select count(*) from workos.active_memberships) + (select count(*) from workos.organization_memberships)";
    assert_eq!((scene.count(left).await, scene.ends().await, scene.count(views).await), (1_500, 1_000, 0));
    assert_eq!(scene.store.pending_erasures().await.unwrap().users, 1);
    // An event about a remaining membership ends it, once.
    let open: String =
        sqlx::query_scalar("select min(id) from workos.organization_membership_records where not synced_deleted")
            .fetch_one(&scene.pool)
            .await
            .unwrap();
    let news = membership(&open, &scene.user, "org_1", "active", 70);
    scene.apply(&[observed("organization_membership.updated", 70, &news)]).await;
    assert_eq!((scene.count(left).await, scene.ends().await), (1_499, 1_001));
    let housekeeping = Housekeeping::new(lab.context(), Duration::from_secs(90 * 86_400), None);
    let mut seen = Vec::new();
    while scene.store.pending_erasures().await.unwrap().users > 0 && seen.len() < 10 {
        housekeeping.tick().await;
        seen.push((scene.count(left).await, scene.ends().await));
    }
    assert_eq!(seen, [(499, 2_001), (0, 2_500)]);
    let objects = "select count(distinct object_id) from workos.changes where kind = 'organization_membership.deleted'";
    assert_eq!(scene.count(objects).await, 2_500, "each membership ends once");
}

#[tokio::test]
async fn the_deletion_of_an_organization_ends_its_memberships_in_the_views_and_leaves_their_rows() {
    let scene = Scene::new().await;
    let organization = organization("org_1", "Quill", 1);
    scene.apply(&[observed("organization.created", 1, &organization)]).await;
    let active = "select count(*) from workos.active_memberships";
    assert_eq!(scene.count(active).await, 1);
    scene.apply(&[observed("organization.deleted", 20, &organization)]).await;
    let views = "select (select count(*) from workos.active_memberships) + (select count(*) from workos.organization_memberships)";
    assert_eq!((scene.count(views).await, scene.ends().await), (0, 0));
    let rows = "select count(*) from workos.organization_membership_records where not synced_deleted";
    assert_eq!(scene.count(rows).await, 1, "a reconcile confirms the end");
}
