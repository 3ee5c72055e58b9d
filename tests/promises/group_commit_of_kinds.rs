//! Webhooks of several kinds share transactions, and none of them suffers from another.

use std::time::Duration;

use authkit_sync::Kinds;
use authkit_sync::store::Pool;
use authkit_sync::sync::inbox;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::join_all;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use crate::auth_session::{membership, organization};
use crate::convergence_of_kinds::REFUSE;
use crate::support::database::TestDatabase;
use crate::support::events::{body, unique, user};
use crate::support::service::{Service, store};

/// Longer than any test.
const LONG: Duration = Duration::from_secs(120);

fn sent(event_type: &str, at_ms: i64, data: &Value) -> Bytes {
    body(&unique("event"), event_type, at_ms, data)
}

/// Three users with a membership each, two organizations, a session, and three events that request a read.
fn mixed(organization_id: &str) -> Vec<Bytes> {
    let mut group = Vec::new();
    for _ in 0..3 {
        let (member, own) = (unique("user"), unique("org"));
        group.push(sent("user.created", 0, &user(&member, "Ada", 0)));
        group.push(sent("organization.created", 0, &organization(&own, "Quill", 0)));
        let joined = membership(&unique("om"), &member, organization_id, "active", 0);
        group.push(sent("organization_membership.created", 0, &joined));
        let session = json!({"object": "session", "id": unique("session"), "user_id": member});
        group.push(sent("session.revoked", 0, &session));
    }
    let role = json!({"object": "role", "slug": "admin", "permissions": ["a:b"], "updated_at": "2026-09-01T08:00:00Z"});
    group.push(sent("role.updated", 0, &role));
    let own_role = json!({"object": "organization_role", "organization_id": organization_id, "slug": "org-x"});
    group.push(sent("organization_role.updated", 0, &own_role));
    let domain = json!({"object": "organization_domain", "id": "org_domain_1", "organization_id": organization_id});
    group.push(sent("organization_domain.verified", 0, &domain));
    group
}

async fn deliver(service: &Service, group: &[Bytes]) -> Vec<String> {
    let answers = join_all(group.iter().map(|body| service.deliver(body))).await;
    let outcome = |answer: &crate::support::service::Answer| {
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()["outcome"].as_str().unwrap().to_owned()
    };
    answers.iter().map(outcome).collect()
}

#[tokio::test]
async fn a_locked_organization_delays_only_its_own_events() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let writes = Pool::connect(database.service_options().application_name("service"), 2, LONG);
    let service = Service::start_on(writes, |builder| builder.database_timeout(LONG)).await;
    let locked = unique("org");
    let created = sent("organization.created", 0, &organization(&locked, "Quill", 0));
    assert_eq!(deliver(&service, &[created]).await, ["applied"]);
    let mut application = PgConnection::connect_with(&database.options()).await.unwrap();
    let mut transaction = application.begin().await.unwrap();
    sqlx::query("select from workos.organization_records where id = $1 for update")
        .bind(&locked)
        .execute(&mut *transaction)
        .await
        .unwrap();
    let updates: Vec<Bytes> = (1..=4)
        .map(|at| sent("organization.updated", at, &organization(&locked, &format!("Quill {at}"), at)))
        .collect();
    let mut delayed = Box::pin(join_all(updates.iter().map(|update| service.deliver(update))));
    assert!(delayed.as_mut().now_or_never().is_none());
    for _ in 0..3 {
        // Also members of the locked organization.
        let others = mixed(&locked);
        let outcomes = tokio::select! {
            outcomes = deliver(&service, &others) => outcomes,
            answers = &mut delayed => panic!("answered under the lock: {answers:?}"),
        };
        assert!(outcomes.iter().all(|outcome| outcome == "applied"), "{outcomes:?}");
    }
    transaction.commit().await.unwrap();
    let answers = delayed.await;
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    let name: String = sqlx::query_scalar("select name from workos.organizations where id = $1")
        .bind(&locked)
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(name, "Quill 4");
    let members: i64 =
        sqlx::query_scalar("select count(*) from workos.active_memberships").fetch_one(&pool).await.unwrap();
    assert_eq!(members, 9);
    service.stop().await.unwrap();
}

#[tokio::test]
async fn an_event_that_postgres_refuses_in_a_group_of_all_kinds_is_quarantined_alone_and_retried() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let service = Service::start(&pool).await;
    sqlx::raw_sql(REFUSE).execute(&pool).await.unwrap();
    let refused = unique("org");
    let mut group = mixed(&refused);
    group.insert(5, sent("organization.created", 0, &organization(&refused, "refused", 0)));
    let outcomes = deliver(&service, &group).await;
    let quarantined: Vec<usize> =
        outcomes.iter().enumerate().filter(|(_, outcome)| *outcome != "applied").map(|(at, _)| at).collect();
    assert_eq!((quarantined, &*outcomes[5]), (vec![5], "quarantined"));
    let counts: (i64, i64, i64, i64) = sqlx::query_as(
        "select
            (select count(*) from workos.users),
            (select count(*) from workos.organizations),
            (select count(*) from workos.organization_memberships),
            (select count(*) from workos.revoked_sessions)",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert_eq!(counts, (3, 3, 3, 3));
    // A membership is active when its organization is stored.
    let active = "select count(*) from workos.active_memberships";
    assert_eq!(sqlx::query_scalar::<_, i64>(active).fetch_one(&pool).await.unwrap(), 0);
    sqlx::raw_sql("drop trigger refuse on workos.organization_records").execute(&pool).await.unwrap();
    let retried = inbox::retry(&store(&pool), Kinds::ALL, None).await.unwrap();
    assert!(retried.total() == 1 && retried.quarantined.is_empty(), "{retried:?}");
    assert_eq!(sqlx::query_scalar::<_, i64>(active).fetch_one(&pool).await.unwrap(), 3);
    service.stop().await.unwrap();
}

#[tokio::test]
async fn events_that_ask_for_a_read_share_a_group_with_events_of_users() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let service = Service::start(&pool).await;
    let id = unique("org");
    let group: Vec<Bytes> = (0..4).flat_map(|_| mixed(&id)).collect();
    let outcomes = deliver(&service, &group).await;
    assert!(outcomes.iter().all(|outcome| outcome == "applied"), "{outcomes:?}");
    let wanted: Vec<(String, String)> =
        sqlx::query_as("select kind, id from workos.refreshes where id in ('', $1) order by kind")
            .bind(&id)
            .fetch_all(&pool)
            .await
            .unwrap();
    let of = |kind: &str, id: &str| (kind.to_owned(), id.to_owned());
    assert_eq!(wanted, [of("organization", &id), of("organization_roles", &id), of("roles", "")]);
    let again = deliver(&service, &group).await;
    assert!(again.iter().all(|outcome| outcome == "duplicate"), "{again:?}");
    service.stop().await.unwrap();
}
