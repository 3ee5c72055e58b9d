//! The user of a token in its organization: the current roles and permissions, and a refusal as soon as the database contains the
//! end of the membership or the revocation of the session.

use std::time::Duration;

use authkit_sync::dev::workos::ApiFaults;
use authkit_sync::sync::housekeeping::Housekeeping;
use authkit_sync::sync::runner::BackgroundLoop;
use authkit_sync::workos::api::ApiKey;
use authkit_sync::{AuthKit, LookupError};
use serde_json::{Value, json};
use sqlx::{Executor, PgPool};

use crate::support::database::TestDatabase;
use crate::support::events::{at, body, unique, user};
use crate::support::fixture;
use crate::support::lab::{Lab, object};
use crate::support::service::{Answer, Service};

/// The claims of the fixture token `per_client_issuer`.
const USER: &str = "user_01M1E0K8KTSGG8REDJXJJNWG5C";
const ORGANIZATION: &str = "org_01M1BE6HKCX1KJMBSNH6QNGVQR";
const SESSION: &str = "session_01M1E0KW4CYV72WGQZWZMM8NDW";

fn token() -> String {
    let tokens = fixture("access_tokens");
    let vector = tokens["vectors"].as_array().unwrap().iter().find(|vector| vector["name"] == "per_client_issuer");
    vector.unwrap()["token"].as_str().unwrap().to_owned()
}

/// An organization as WorkOS sends it in an event.
pub(crate) fn organization(id: &str, name: &str, updated_ms: i64) -> Value {
    json!({
        "object": "organization", "id": id, "name": name, "domains": [], "metadata": {}, "external_id": null,
        "created_at": at(0), "updated_at": at(updated_ms),
    })
}

/// A membership as WorkOS sends it in an event.
pub(crate) fn membership(id: &str, user: &str, organization: &str, status: &str, updated_ms: i64) -> Value {
    json!({
        "object": "organization_membership", "id": id, "user_id": user, "organization_id": organization, "status": status,
        "role": {"slug": "admin"}, "roles": [{"slug": "admin"}, {"slug": "billing"}], "custom_attributes": {},
        "directory_managed": false, "created_at": at(0), "updated_at": at(updated_ms),
    })
}

/// A service with an API key, whose WorkOS cannot be reached.
async fn start(pool: &PgPool) -> Service {
    Service::start_with(pool, |builder| builder.api_key(ApiKey::new("sk_test")).read_through(false)).await
}

async fn deliver(service: &Service, event_type: &str, at_ms: i64, data: &Value) {
    let answer = service.deliver(&body(&unique("event"), event_type, at_ms, data)).await;
    assert_eq!((answer.status, &answer.json()["outcome"]), (200, &json!("applied")), "{event_type}: {}", answer.text);
}

/// A service whose tables contain the token's user, organization and membership `om_1`.
async fn with_member(pool: &PgPool) -> Service {
    let service = start(pool).await;
    deliver(&service, "user.created", 0, &user(USER, "Ada", 0)).await;
    deliver(&service, "organization.created", 0, &organization(ORGANIZATION, "Quill", 0)).await;
    deliver(&service, "organization_membership.created", 0, &membership("om_1", USER, ORGANIZATION, "active", 0)).await;
    service
}

async fn session(service: &Service) -> Answer {
    service.ask("/auth/session", &token()).await
}

async fn is_refused(service: &Service, expected: (u16, &str)) {
    let answer = session(service).await;
    assert_eq!((answer.status, answer.json()["code"].as_str()), (expected.0, Some(expected.1)), "{}", answer.text);
}

#[tokio::test]
async fn a_session_shows_the_membership_and_its_permissions_as_they_are_now_and_how_the_token_differs() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let service = with_member(&pool).await;
    pool.execute(
        "insert into workos.role_records (slug, permissions) values
            ('admin', '{users:read,users:write}'), ('billing', '{invoices:read,users:read}'), ('other', '{other}')",
    )
    .await
    .unwrap();
    let answer = session(&service).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let shown = answer.json();
    assert_eq!(shown["user"]["id"], json!(USER));
    assert_eq!(shown["organization"]["name"], json!("Quill"));
    assert_eq!(shown["membership"], membership("om_1", USER, ORGANIZATION, "active", 0));
    assert_eq!(shown["roles"], json!(["admin", "billing"]));
    assert_eq!(shown["permissions"], json!(["invoices:read", "users:read", "users:write"]));
    assert_eq!(shown["token_differs"], json!({"permissions": ["users:read"]}), "the role has more permissions by now");
    // The permissions of a role change without an event about the membership.
    pool.execute("update workos.role_records set permissions = '{users:read}'").await.unwrap();
    let shown = session(&service).await.json();
    assert_eq!((&shown["permissions"], &shown["token_differs"]), (&json!(["users:read"]), &json!({})));
    assert_eq!(shown["permissions"], permissions_in_sql(&pool).await);
    // A role of the organization with its own permissions, and a slug that no role has.
    let mut changed = membership("om_1", USER, ORGANIZATION, "active", 10);
    changed["role"] = json!({"slug": "org-print"});
    changed["roles"] = json!([{"slug": "org-print"}, {"slug": "gone"}]);
    deliver(&service, "organization_membership.updated", 10, &changed).await;
    pool.execute(
        "insert into workos.organization_role_records (organization_id, slug, permissions)
        values ('org_other', 'org-print', '{everything}'), ('org_01M1BE6HKCX1KJMBSNH6QNGVQR', 'org-print', '{print}');
        insert into workos.role_records (slug, permissions) values ('org-print', '{environment}')",
    )
    .await
    .unwrap();
    let shown = session(&service).await.json();
    assert_eq!((&shown["roles"], &shown["permissions"]), (&json!(["org-print", "gone"]), &json!(["print"])));
    assert_eq!(shown["permissions"], permissions_in_sql(&pool).await);
    assert_eq!(shown["token_differs"]["role"], json!("admin"));
    service.stop().await.unwrap();
}

/// The permissions of the member according to the function that policies use. The lookup has a separate statement, which must
/// return the same.
async fn permissions_in_sql(pool: &PgPool) -> Value {
    let permissions: Vec<String> =
        sqlx::query_scalar("select workos.role_permissions(organization_id, roles) from workos.active_memberships")
            .fetch_one(pool)
            .await
            .unwrap();
    json!(permissions)
}

#[tokio::test]
async fn a_member_who_is_no_longer_active_is_refused_at_once_and_the_user_alone_is_not() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let service = with_member(&pool).await;
    assert_eq!(session(&service).await.status, 200);
    let changed = "organization_membership.updated";
    for (at_ms, status) in [(10, "inactive"), (20, "pending"), (30, "of_tomorrow")] {
        deliver(&service, changed, at_ms, &membership("om_1", USER, ORGANIZATION, status, at_ms)).await;
        is_refused(&service, (403, "membership_inactive")).await;
        assert_eq!(service.ask("/auth/user", &token()).await.status, 200, "/auth/user asks about the user alone");
    }
    deliver(&service, changed, 40, &membership("om_1", USER, ORGANIZATION, "active", 40)).await;
    assert_eq!(session(&service).await.status, 200);
    deliver(&service, "organization_membership.deleted", 50, &json!({"id": "om_1"})).await;
    is_refused(&service, (403, "membership_inactive")).await;
    // A member that is added again has a membership with a new ID. A late deletion of the old one changes nothing.
    let added = membership("om_2", USER, ORGANIZATION, "active", 60);
    deliver(&service, "organization_membership.created", 60, &added).await;
    let late = body(&unique("event"), "organization_membership.deleted", 55, &json!({"id": "om_1"}));
    assert_eq!(service.deliver(&late).await.status, 200);
    assert_eq!(session(&service).await.json()["membership"]["id"], json!("om_2"));
    deliver(&service, "organization.deleted", 70, &json!({"id": ORGANIZATION})).await;
    is_refused(&service, (403, "organization_deleted")).await;
    deliver(&service, "user.deleted", 80, &json!({"id": USER})).await;
    is_refused(&service, (404, "user_deleted")).await;
    service.stop().await.unwrap();
}

#[tokio::test]
async fn a_membership_that_was_never_seen_is_not_refused_while_it_may_still_arrive() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let service = start(&pool).await;
    deliver(&service, "user.created", 0, &user(USER, "Ada", 0)).await;
    is_refused(&service, (503, "memberships_not_synced")).await;
    // The membership may arrive before its organization.
    deliver(&service, "organization_membership.created", 0, &membership("om_1", USER, ORGANIZATION, "active", 0)).await;
    is_refused(&service, (503, "memberships_not_synced")).await;
    deliver(&service, "organization.created", 0, &organization(ORGANIZATION, "Quill", 0)).await;
    assert_eq!(session(&service).await.status, 200);
    service.stop().await.unwrap();
}

#[tokio::test]
async fn without_memberships_or_without_an_api_key_a_session_is_the_user_and_the_token_alone() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let off =
        Service::start_with(&pool, |builder| builder.api_key(ApiKey::new("sk_test")).kinds(authkit_sync::Kinds::USERS))
            .await;
    let without_key = Service::start(&pool).await;
    deliver(&off, "user.created", 0, &user(USER, "Ada", 0)).await;
    let ignored = body(&unique("event"), "organization.created", 0, &organization(ORGANIZATION, "Quill", 0));
    assert_eq!(off.deliver(&ignored).await.json()["outcome"], json!("ignored"));
    let memberships = off.ask("/auth/memberships", &token()).await;
    assert_eq!(memberships.code(), (404, "kind_disabled".to_owned()), "an empty list would be wrong");
    for service in [off, without_key] {
        let answer = session(&service).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let names: Vec<String> = answer.json().as_object().unwrap().keys().cloned().collect();
        assert_eq!(names, ["identity", "synced_through", "user"]);
        service.stop().await.unwrap();
    }
}

#[tokio::test]
async fn a_revoked_session_is_refused_in_every_process_and_an_unknown_one_is_not() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let (service, other) = (with_member(&pool).await, start(&pool).await);
    assert_eq!(other.ask("/auth/user", &token()).await.status, 200, "its session was never seen");
    let revoked = json!({
        "object": "session", "id": SESSION, "user_id": USER, "status": "revoked", "ip_address": "203.0.113.9",
        "user_agent": "Mozilla/5.0", "created_at": at(0), "updated_at": at(5),
    });
    deliver(&service, "session.revoked", 5, &revoked).await;
    for service in [&service, &other] {
        for path in ["/auth/user", "/auth/session"] {
            let answer = service.ask(path, &token()).await;
            assert_eq!((answer.status, answer.json()["code"].as_str()), (401, Some("session_revoked")), "{path}");
            assert!(answer.header("www-authenticate").starts_with("Bearer error=\"invalid_token\""));
        }
        assert_eq!(service.ask("/auth/identity", &token()).await.status, 200, "it judges the token alone");
    }
    let columns = "select row_to_json(revoked)::text from workos.revoked_sessions as revoked";
    let stored: String = sqlx::query_scalar(columns).fetch_one(&pool).await.unwrap();
    assert!(!stored.contains("203.0.113.9") && !stored.contains("Mozilla"), "{stored}");
    // A later event about the session does not revive it.
    let created = body(&unique("event"), "session.created", 6, &json!({"id": SESSION, "user_id": USER}));
    assert_eq!(service.deliver(&created).await.status, 200);
    assert_eq!(other.ask("/auth/user", &token()).await.status, 401);
    // The deletion of the user takes precedence.
    deliver(&service, "user.deleted", 80, &json!({"id": USER})).await;
    assert_eq!(other.ask("/auth/user", &token()).await.json()["code"], json!("user_deleted"));
    assert!(sqlx::query(columns).fetch_optional(&pool).await.unwrap().is_none(), "no row is left of a deleted user");
    service.stop().await.unwrap();
    other.stop().await.unwrap();
}

/// No access token is valid for longer than 30 days.
#[tokio::test]
async fn a_revoked_session_is_deleted_after_thirty_days_and_never_earlier() {
    let lab = Lab::new().await;
    lab.pool
        .execute(
            "insert into workos.revoked_sessions (id, revoked_at)
            values ('session_old', now() - interval '30 days 1 minute'), ('session_new', now() - interval '29 days 23 hours')",
        )
        .await
        .unwrap();
    Housekeeping::new(lab.context(), Duration::from_secs(86_400), None).tick().await;
    let left: Vec<String> =
        sqlx::query_scalar("select id from workos.revoked_sessions").fetch_all(&lab.pool).await.unwrap();
    assert_eq!(left, ["session_new"]);
}

/// The first request of a new member often arrives before the webhook.
#[tokio::test]
async fn a_member_whose_webhook_has_not_arrived_is_read_from_workos_and_a_stranger_is_refused() {
    let lab = Lab::new().await;
    let id = lab.create_user("Ada");
    let acme =
        lab.workos.create_organization(&object(json!({"name": "Acme"}))).unwrap()["id"].as_str().unwrap().to_owned();
    let other =
        lab.workos.create_organization(&object(json!({"name": "Other"}))).unwrap()["id"].as_str().unwrap().to_owned();
    lab.workos.add_membership(&id, &acme, &["admin"]).unwrap();
    let authkit = AuthKit::builder(lab.service_pool(), lab.workos.client_id())
        .api_base(lab.workos.base_url())
        .api_key(ApiKey::new(lab.workos.api_key()))
        .clock(lab.clock.clone())
        .build()
        .unwrap();
    let token = lab.workos.sign_in_to(&id, &acme).unwrap();
    let session = authkit.get_session(&token).await.unwrap();
    assert_eq!(session.organization.unwrap().name, "Acme");
    assert_eq!((session.roles, session.membership.unwrap().of.user_id), (vec!["admin".to_owned()], id.clone()));
    let requests = lab.workos.all_requests();
    authkit.get_session(&token).await.unwrap();
    assert_eq!(lab.workos.all_requests(), requests, "the second time it is known");
    // WorkOS does not know the membership.
    let claims = json!({"sub": id, "sid": "session_1", "org_id": other});
    let stranger = lab.workos.token_with(claims, 300).unwrap();
    for _ in 0..2 {
        assert!(matches!(authkit.get_session(&stranger).await, Err(LookupError::MembershipInactive)));
    }
    // During an outage of WorkOS no user is refused, and stored results stay valid.
    lab.workos.set_api_faults(ApiFaults { refuse_key: true, ..ApiFaults::default() });
    let claims = json!({"sub": id, "sid": "session_1", "org_id": "org_never_seen"});
    let unknown = lab.workos.token_with(claims, 300).unwrap();
    assert!(matches!(authkit.get_session(&unknown).await, Err(LookupError::MembershipsNotSynced)));
    assert!(authkit.get_session(&token).await.is_ok());
}

#[tokio::test]
async fn the_deletion_of_a_user_ends_every_membership_also_one_that_arrives_later() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let service = with_member(&pool).await;
    deliver(&service, "user.deleted", 10, &json!({"id": USER})).await;
    let late =
        body(&unique("event"), "organization_membership.created", 5, &membership("om_2", USER, "org_2", "active", 5));
    assert_eq!(service.deliver(&late).await.json()["outcome"], json!("stale"));
    let rows: Vec<(String, bool, Option<String>, Option<String>)> = sqlx::query_as(
        "select id, synced_deleted, user_id, custom_attributes::text from workos.organization_membership_records order by id",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    let ended = |id: &str| (id.to_owned(), true, Some(USER.to_owned()), None);
    assert_eq!(rows, [ended("om_1"), ended("om_2")]);
    let kinds: Vec<String> =
        sqlx::query_scalar("select kind from workos.changes order by position").fetch_all(&pool).await.unwrap();
    assert_eq!(
        kinds,
        [
            "created",
            "organization.created",
            "organization_membership.created",
            "deleted",
            "organization_membership.deleted"
        ]
    );
    let payloads = "select count(*) from workos.events where user_id is not null and payload is not null and type <> 'user.deleted'";
    assert_eq!(
        sqlx::query_scalar::<_, i64>(payloads).fetch_one(&pool).await.unwrap(),
        0,
        "custom attributes are erased"
    );
    service.stop().await.unwrap();
}

#[tokio::test]
async fn a_user_lists_the_memberships_that_have_not_ended_in_pages() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let service = with_member(&pool).await;
    let created = "organization_membership.created";
    for (id, organization, status) in
        [("om_2", "org_2", "pending"), ("om_3", "org_3", "active"), ("om_4", "org_4", "active")]
    {
        deliver(&service, created, 0, &membership(id, USER, organization, status, 0)).await;
    }
    deliver(&service, created, 0, &membership("om_5", "user_other", ORGANIZATION, "active", 0)).await;
    deliver(&service, "organization_membership.deleted", 1, &json!({"id": "om_3"})).await;
    deliver(&service, "organization.deleted", 1, &json!({"id": "org_4"})).await;
    let incomplete = service.ask("/auth/memberships", &token()).await;
    assert_eq!(incomplete.code(), (503, "memberships_not_synced".to_owned()), "the backfill may bring more");
    pool.execute(
        "insert into workos.scans (kind, completed_at)
        values ('backfill_organizations', now()), ('backfill_memberships', now())",
    )
    .await
    .unwrap();
    let page = service.ask("/auth/memberships?limit=1", &token()).await.json();
    assert_eq!(page["data"][0]["id"], json!("om_1"));
    assert_eq!(page["data"][0]["organization_name"], json!("Quill"));
    assert_eq!(page["list_metadata"], json!({"after": "om_1"}));
    let page = service.ask("/auth/memberships?limit=1&after=om_1", &token()).await.json();
    assert_eq!((&page["data"][0]["id"], &page["data"][0]["status"]), (&json!("om_2"), &json!("pending")));
    assert_eq!(
        (&page["data"][0]["organization_name"], &page["list_metadata"]),
        (&Value::Null, &json!({"after": null}))
    );
    for query in ["limit=0", "limit=101", "limit=x", "after=%00"] {
        let answer = service.ask(&format!("/auth/memberships?{query}"), &token()).await;
        assert_eq!((answer.status, answer.json()["code"].as_str()), (400, Some("invalid_parameter")), "{query}");
    }
    service.stop().await.unwrap();
}
