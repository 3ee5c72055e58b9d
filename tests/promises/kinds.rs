//! Organizations and memberships that cannot be applied, and kinds that are disabled and enabled.

use authkit_sync::Kinds;
use authkit_sync::domain::timestamp::Timestamp;
use authkit_sync::sync::inbox;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::auth_session::{membership, organization};
use crate::support::database::TestDatabase;
use crate::support::events::{body, unique, user};
use crate::support::service::{Service, store};

async fn deliver(service: &Service, event_type: &str, at_ms: i64, data: &Value) -> String {
    let answer = service.deliver(&body(&unique("event"), event_type, at_ms, data)).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()["outcome"].as_str().unwrap().to_owned()
}

async fn count(pool: &PgPool, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(pool).await.unwrap()
}

/// The object without a field.
fn without(mut object: Value, field: &str) -> Value {
    object.as_object_mut().unwrap().remove(field);
    object
}

#[tokio::test]
async fn organizations_and_memberships_without_required_fields_are_quarantined_whole_and_retried() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let service = Service::start(&pool).await;
    let (org, om) = (organization("org_1", "Quill", 1), membership("om_1", "user_1", "org_1", "active", 1));
    let member = "organization_membership.created";
    let mut corrected = Vec::new();
    for (event_type, whole, field, why) in [
        ("organization.created", &org, "name", "name is missing"),
        ("organization.updated", &org, "id", "data.id"),
        ("organization.deleted", &org, "id", "data.id"),
        (member, &om, "user_id", "user_id or organization_id"),
        (member, &om, "organization_id", "user_id or organization_id"),
        (member, &om, "status", "status is missing"),
        ("organization_membership.deleted", &om, "id", "data.id"),
    ] {
        let id = unique("event");
        let sent = body(&id, event_type, 1, &without(whole.clone(), field));
        let answer = service.deliver(&sent).await;
        assert_eq!((answer.status, &answer.json()["outcome"]), (200, &json!("quarantined")), "{event_type} {field}");
        let (kept, reason): (Vec<u8>, String) =
            sqlx::query_as("select payload, reason from workos.events where id = $1")
                .bind(&id)
                .fetch_one(&pool)
                .await
                .unwrap();
        assert_eq!(kept, sent, "kept byte for byte");
        assert!(reason.contains(why), "{reason}");
        corrected.push((id.clone(), body(&id, event_type, 1, whole)));
    }
    // Its housekeeping retries the quarantine, too.
    service.stop().await.unwrap();
    let none = "select count(*) from workos.organization_records, workos.organization_membership_records";
    assert_eq!(count(&pool, none).await, 0);
    // Simulates a later release that can apply the events.
    for (id, body) in corrected {
        let correct = "update workos.events set payload = $2 where id = $1";
        sqlx::query(correct).bind(&id).bind(&body[..]).execute(&pool).await.unwrap();
    }
    let retried = inbox::retry(&store(&pool), Kinds::ALL, None).await.unwrap();
    assert!(retried.total() == 7 && retried.quarantined.is_empty(), "{retried:?}");
    // Some of the events are deletions. The objects stay deleted in any order.
    let ended = "select count(*) from workos.organization_records as o, workos.organization_membership_records as m
        where o.synced_deleted and m.synced_deleted and m.user_id = 'user_1'";
    assert_eq!(count(&pool, ended).await, 1);
}

#[tokio::test]
async fn a_kind_that_is_off_changes_no_row_and_what_was_ignored_is_replayed_once_it_is_on() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let service = Service::start_with(&pool, |builder| builder.kinds(Kinds::USERS)).await;
    for id in ["user_1", "user_2"] {
        assert_eq!(deliver(&service, "user.created", 0, &user(id, "Ada", 0)).await, "applied");
        let member = membership(&format!("om_{id}"), id, "org_1", "active", 0);
        assert_eq!(deliver(&service, "organization_membership.created", 0, &member).await, "ignored");
    }
    for (event_type, data) in [
        ("organization.created", organization("org_1", "Quill", 0)),
        // Events of a disabled kind are not quarantined either.
        ("organization.updated", without(organization("org_1", "Quill", 0), "name")),
        ("organization_membership.deleted", json!({"id": "om_9"})),
        ("session.revoked", json!({"object": "session", "id": "session_1", "user_id": "user_1"})),
        ("role.updated", json!({"object": "role", "slug": "admin"})),
    ] {
        assert_eq!(deliver(&service, event_type, 0, &data).await, "ignored", "{event_type}");
    }
    let rows = "select
        (select count(*) from workos.organization_records) + (select count(*) from workos.organization_membership_records)
        + (select count(*) from workos.revoked_sessions) + (select count(*) from workos.refreshes)";
    assert_eq!(count(&pool, rows).await, 0);
    // The personal data in an ignored event is erased with the user.
    assert_eq!(deliver(&service, "user.deleted", 5, &json!({"id": "user_2"})).await, "applied");
    let left = "select count(*) from workos.events where user_id = 'user_2' and payload is not null";
    assert_eq!(count(&pool, left).await, 0);
    service.stop().await.unwrap();

    let service = Service::start(&pool).await;
    inbox::replay(&store(&pool), Kinds::ALL, Timestamp::from_unix_micros(0)).await.unwrap();
    assert_eq!(count(&pool, "select count(*) from workos.active_memberships").await, 1);
    assert_eq!(count(&pool, "select count(*) from workos.revoked_sessions").await, 1);
    let deactivated = membership("om_user_1", "user_1", "org_1", "inactive", 9);
    assert_eq!(deliver(&service, "organization_membership.updated", 9, &deactivated).await, "applied");
    assert_eq!(count(&pool, "select count(*) from workos.active_memberships").await, 0);
    service.stop().await.unwrap();

    // Disabled again: the rows stay as they are, and the deletion of a user still ends the user's memberships.
    let service = Service::start_with(&pool, |builder| builder.kinds(Kinds::USERS)).await;
    let active = membership("om_user_1", "user_1", "org_1", "active", 19);
    assert_eq!(deliver(&service, "organization_membership.updated", 19, &active).await, "ignored");
    let inactive = "select count(*) from workos.organization_memberships where status = 'inactive'";
    assert_eq!(count(&pool, inactive).await, 1);
    assert_eq!(deliver(&service, "user.deleted", 20, &json!({"id": "user_1"})).await, "applied");
    let ended = "select count(*) from workos.organization_membership_records where id = 'om_user_1' and synced_deleted";
    assert_eq!(count(&pool, ended).await, 1);
    service.stop().await.unwrap();
}
