//! WorkOS's API for reading memberships, answered from the table: tested with WorkOS's SDK, and with plain requests.

use authkit_sync::domain::kinds::Kinds;
use serde_json::{Value, json};
use workos::enums::UserManagementOrganizationMembershipStatuses as Statuses;
use workos::organization_membership::ListOrganizationMembershipsParams;

use crate::organizations_api::{KEY, field_error, ids, organization, sdk, start, store_events};
use crate::support::database::TestDatabase;
use crate::support::events::{at, user};
use crate::support::lab::Lab;
use crate::support::service::{Answer, Service};

const LIST: &str = "/user_management/organization_memberships";

/// A membership object in WorkOS's format, as an event contains it.
pub(crate) fn membership(id: &str, user_id: &str, organization_id: &str, status: &str, updated_ms: i64) -> Value {
    json!({
        "object": "organization_membership", "id": id, "user_id": user_id, "organization_id": organization_id,
        "status": status, "role": {"slug": "admin"}, "roles": [{"slug": "member"}, {"slug": "admin"}],
        "custom_attributes": {"cost": 1.5}, "directory_managed": false, "created_at": at(0), "updated_at": at(updated_ms),
    })
}

/// Two organizations; Ada is a member of both.
async fn example() -> TestDatabase {
    let database = TestDatabase::new().await;
    let users = ["ada", "bob", "cy", "dan"].map(|name| user(&format!("user_{name}"), name, 0));
    store_events(&database, "user.created", 0, &users).await;
    let organizations = [organization("org_1", "Acme", &[], 0), organization("org_2", "Quill & Søn", &[], 0)];
    store_events(&database, "organization.created", 0, &organizations).await;
    let memberships = [
        membership("om_1", "user_ada", "org_1", "active", 0),
        membership("om_2", "user_bob", "org_1", "inactive", 0),
        membership("om_3", "user_cy", "org_1", "pending", 0),
        membership("om_4", "user_dan", "org_1", "active", 0),
        membership("om_5", "user_ada", "org_2", "inactive", 0),
        membership("om_6", "user_ada", "org_2", "active", 0),
    ];
    store_events(&database, "organization_membership.created", 0, &memberships).await;
    database
}

async fn list(service: &Service, query: &str) -> Answer {
    service.ask(&format!("{LIST}?{query}"), KEY).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workos_own_sdk_reads_memberships_with_the_user_and_the_name_of_the_organization() {
    let database = example().await;
    let service = start(&database, Kinds::ALL).await;
    let client = sdk(&service);
    let one = client.organization_membership().get_organization_membership("om_6").await.unwrap();
    assert_eq!(
        (one.organization_name.as_deref(), one.user.email.as_str()),
        (Some("Quill & Søn"), "user_ada@example.test")
    );
    assert_eq!((one.role.slug.as_str(), one.roles.len()), ("admin", 2));
    let mut params = ListOrganizationMembershipsParams {
        organization_id: Some("org_1".to_owned()),
        statuses: Some(vec![Statuses::Active, Statuses::Inactive]),
        limit: Some(1),
        ..ListOrganizationMembershipsParams::default()
    };
    let mut listed = Vec::new();
    loop {
        let page = client.organization_membership().list_organization_memberships(params.clone()).await.unwrap();
        listed.extend(page.data.into_iter().map(|membership| membership.id));
        params.after = page.list_metadata.after;
        if params.after.is_none() {
            break;
        }
    }
    assert_eq!(listed, ["om_4", "om_2", "om_1"]);
    let missing = client.organization_membership().get_organization_membership("om_nobody").await.unwrap_err();
    let workos::Error::Api(error) = missing else { panic!("{missing}") };
    assert_eq!((error.status, error.code.as_deref()), (404, Some("entity_not_found")));
    service.stop().await.unwrap();
}

#[tokio::test]
async fn a_list_of_memberships_has_the_active_ones_unless_statuses_are_given() {
    let database = example().await;
    let service = start(&database, Kinds::ALL).await;
    for (query, expected) in [
        ("organization_id=org_1", &["om_4", "om_1"][..]),
        ("organization_id=org_1&order=asc", &["om_1", "om_4"]),
        ("organization_id=org_1&statuses=", &["om_4", "om_1"]),
        ("organization_id=org_1&statuses=active,inactive,pending", &["om_4", "om_3", "om_2", "om_1"]),
        ("organization_id=org_1&statuses=pending&statuses=inactive", &["om_3", "om_2"]),
        ("organization_id=org_1&statuses[]=pending&statuses%5B%5D=inactive&order=asc", &["om_2", "om_3"]),
        ("organization_id=org_1&statuses=active,active", &["om_4", "om_1"]),
        ("organization_id=org_1&statuses=active,inactive,pending&limit=2&after=om_4", &["om_3", "om_2"]),
        ("organization_id=org_1&statuses=active,inactive,pending&limit=2&before=om_1", &["om_3", "om_2"]),
        ("organization_id=org_1&statuses=active,inactive,pending&order=asc&limit=2&before=om_3", &["om_1", "om_2"]),
        ("organization_id=org_1&statuses=active,inactive,pending&order=asc&after=om_2", &["om_3", "om_4"]),
        ("organization_id=org_1&statuses=of_tomorrow", &[]),
        ("user_id=user_ada", &["om_6", "om_1"]),
        ("user_id=user_ada&statuses=active,inactive&limit=2", &["om_6", "om_5"]),
        ("user_id=user_ada&statuses=active,inactive&order=asc&after=om_1", &["om_5", "om_6"]),
        ("user_id=user_ada&organization_id=org_2", &["om_6"]),
        ("user_id=user_ada&organization_id=", &["om_6", "om_1"]),
        ("user_id=user_bob", &[]),
        ("organization_id=org_nobody", &[]),
        ("user_id=user_nobody", &[]),
    ] {
        assert_eq!(ids(&list(&service, query).await), expected, "{query}");
    }
    let page = list(&service, "organization_id=org_1&limit=1").await;
    assert_eq!(page.json()["list_metadata"], json!({"before": null, "after": "om_4"}));
    assert!(!page.header("authkit-sync-position").is_empty() && !page.header("etag").is_empty());
    let one = &page.json()["data"][0];
    assert_eq!((&one["organization_name"], &one["user"]["id"]), (&json!("Acme"), &json!("user_dan")));
    assert_eq!(one["roles"], json!([{"slug": "member"}, {"slug": "admin"}]));
    assert_eq!(one["custom_attributes"], json!({"cost": 1.5}));
    service.stop().await.unwrap();
}

#[tokio::test]
async fn a_membership_of_a_deleted_user_or_organization_is_not_listed() {
    let database = example().await;
    // The rows of the memberships stay as they are, as if the deletion had come first.
    let pool = database.pool(1).await;
    for delete in [
        "insert into workos.user_records (id, synced_deleted) values ('user_gone', true)",
        "insert into workos.organization_records (id, synced_deleted) values ('org_gone', true)",
        "update workos.organization_membership_records set user_id = 'user_gone' where id = 'om_4'",
        "update workos.organization_membership_records set organization_id = 'org_gone' where id = 'om_6'",
    ] {
        sqlx::query(delete).execute(&pool).await.unwrap();
    }
    let service = start(&database, Kinds::ALL).await;
    assert_eq!(ids(&list(&service, "organization_id=org_1").await), ["om_1"]);
    assert_eq!(ids(&list(&service, "organization_id=org_gone").await), [""; 0]);
    assert_eq!(ids(&list(&service, "user_id=user_ada").await), ["om_1"]);
    assert_eq!(ids(&list(&service, "user_id=user_gone").await), [""; 0]);
    for id in ["om_4", "om_6"] {
        assert_eq!(service.ask(&format!("{LIST}/{id}"), KEY).await.code(), (404, "entity_not_found".to_owned()));
    }
    service.stop().await.unwrap();
}

/// A membership may arrive before its user, and WorkOS's SDK in Rust requires the user.
#[tokio::test]
async fn a_member_that_is_not_stored_yet_is_read_from_workos() {
    let lab = Lab::new().await;
    let known = lab.create_user("Ada");
    let (code, _, err) = lab.run(&["backfill"]).await;
    assert_eq!(code, 0, "{err}");
    let late = lab.create_user("Grace");
    let authkit = authkit_sync::AuthKit::builder(lab.service_pool(), lab.workos.client_id())
        .api_base(lab.workos.base_url())
        .api_key(authkit_sync::workos::api::ApiKey::new(lab.workos.api_key()))
        .clock(lab.clock.clone())
        .service_key("crm", KEY)
        .build()
        .unwrap();
    let memberships = [
        membership("om_1", &known, "org_1", "active", 0),
        membership("om_2", &late, "org_1", "active", 0),
        membership("om_3", "user_nobody", "org_1", "active", 0),
    ];
    let observations =
        memberships.map(|it| crate::support::events::observed("organization_membership.created", 0, &it));
    let origin = authkit_sync::domain::event::Origin::Webhook;
    authkit_sync::sync::apply(&lab.context().store, origin, &observations).await.unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}{LIST}?organization_id=org_1&order=asc", listener.local_addr().unwrap());
    let app = authkit.router();
    tokio::spawn(async move { axum::serve(listener, app).await });
    let client = authkit_sync::workos::http::http_client().unwrap();
    let page = Answer::of(client.get(url).bearer_auth(KEY).send().await.unwrap()).await.json();
    assert_eq!(page["data"][0]["user"]["first_name"], "Ada");
    assert_eq!(page["data"][1]["user"]["first_name"], "Grace");
    assert!(page["data"][2].get("user").is_none() && page["data"][2].get("organization_name").is_none(), "{page}");
}

#[tokio::test]
async fn refused_requests_for_memberships_have_the_format_of_workos() {
    let database = example().await;
    let service = start(&database, Kinds::ALL).await;
    for query in ["", "statuses=active", "user_id=", "limit=5"] {
        let answer = list(&service, query).await;
        assert_eq!(answer.code(), (400, "missing_user_id_or_organization_id".to_owned()), "{query}");
    }
    for (query, code, field) in [
        ("user_id=a&limit=0", "limit_out_of_range", "limit"),
        ("user_id=a%00", "invalid", "user_id"),
        ("user_id=a&user_id=b", "given_twice", "user_id"),
        ("user_id=a&statuses=%00", "invalid", "statuses"),
        ("user_id=a&email=b", "unsupported_parameter", "email"),
    ] {
        assert_eq!(field_error(&list(&service, query).await), (422, json!({"code": code, "field": field})), "{query}");
    }
    let missing = service.ask(&format!("{LIST}/om_nobody"), KEY).await.json();
    assert_eq!(missing["message"], "Organization membership not found: 'om_nobody'.");
    let write = service.client.put(service.url(&format!("{LIST}/om_1/deactivate"))).bearer_auth(KEY).send().await;
    assert_eq!(Answer::of(write.unwrap()).await.code(), (405, "read_only".to_owned()));
    service.stop().await.unwrap();
    let without = start(&database, Kinds { memberships: false, ..Kinds::ALL }).await;
    for path in ["?user_id=user_ada", "/om_1"] {
        let answer = without.ask(&format!("{LIST}{path}"), KEY).await;
        assert_eq!(answer.code(), (404, "kind_disabled".to_owned()), "{path}");
        assert!(answer.text.contains("AUTHKIT_SYNC_KINDS"), "{}", answer.text);
    }
    without.stop().await.unwrap();
}
