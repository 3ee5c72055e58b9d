//! WorkOS's API for reading roles and permissions, answered from the tables: tested with WorkOS's SDK, and with plain requests.

use authkit_sync::domain::kinds::Kinds;
use serde_json::{Value, json};

use crate::organizations_api::{KEY, field_error, ids, organization, sdk, start, store_events};
use crate::support::database::TestDatabase;
use crate::support::service::Answer;

/// The lists, as if they had been read from WorkOS.
const LISTS: &str = "
    insert into workos.role_lists (organization_id, observed_at) values ('', now()), ('org_1', now());
    insert into workos.role_records
        (slug, id, name, description, type, resource_type_slug, permissions, synced_position, created_at, updated_at, synced_extra)
    values
        ('member', 'role_2', 'Member', '', 'EnvironmentRole', 'organization', '{}', 1, now(), now(), '{}'),
        ('admin', 'role_1', 'Admin', null, 'EnvironmentRole', 'organization', '{orders:read,orders:write}', 0, now(), now(),
            '{\"added_tomorrow\": 1}');
    insert into workos.role_records (slug, synced_deleted) values ('gone', true);
    insert into workos.organization_role_records
        (organization_id, slug, id, name, type, resource_type_slug, permissions, synced_position, created_at, updated_at, synced_extra)
    values
        ('org_1', 'org-owner', 'role_3', 'Owner', 'OrganizationRole', 'organization', '{orders:read}', 0, now(), now(), '{}'),
        ('org_1', 'org-lead', 'role_4', 'Lead', 'OrganizationRole', 'organization', '{orders:read}', 1, now(), now(), '{}'),
        ('org_1', 'org-guest', 'role_5', 'Guest', 'OrganizationRole', 'organization', '{}', 4, now(), now(), '{}'),
        ('org_2', 'org-owner', 'role_6', 'Other', 'OrganizationRole', 'organization', '{}', 0, now(), now(), '{}');
    insert into workos.organization_role_records (organization_id, slug, synced_deleted) values ('org_1', 'org-gone', true);
    insert into workos.permission_records
        (slug, id, name, description, system, resource_type_slug, created_at, updated_at, synced_extra)
    select
        'orders:' || action, 'perm_' || n, 'Orders', null, false, 'organization', now(), now(), '{}'
    from unnest(array['read', 'write', 'cancel']) with ordinality as listed (action, n);
    insert into workos.permission_records (slug, synced_deleted) values ('gone', true)";

/// Roles and permissions of the environment, and of two organizations.
pub(crate) async fn store_roles(database: &TestDatabase) {
    sqlx::raw_sql(LISTS).execute(&database.pool(1).await).await.unwrap();
}

async fn example() -> TestDatabase {
    let database = TestDatabase::new().await;
    let organizations = ["org_1", "org_2", "org_3", "org_4"].map(|id| organization(id, "Acme", &[], 0));
    store_events(&database, "organization.created", 0, &organizations).await;
    store_events(&database, "organization.deleted", 1, &[json!({"id": "org_4"})]).await;
    store_roles(&database).await;
    database
}

fn slugs(answer: &Answer) -> Vec<String> {
    assert_eq!(answer.status, 200, "{}", answer.text);
    let json = answer.json();
    json["data"].as_array().unwrap().iter().map(|role| role["slug"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workos_own_sdk_reads_roles_and_permissions() {
    let database = example().await;
    let service = start(&database, Kinds::ALL).await;
    let client = sdk(&service);
    let roles = client.authorization().list_environment_roles().await.unwrap();
    assert_eq!(roles.data.iter().map(|role| &*role.slug).collect::<Vec<_>>(), ["admin", "member"]);
    let admin = client.authorization().get_environment_role("admin").await.unwrap();
    assert_eq!((admin.name.as_str(), admin.permissions.len(), admin.description), ("Admin", 2, None));
    let roles = client.authorization().list_organization_roles("org_1").await.unwrap();
    let listed: Vec<&str> = roles.data.iter().map(|role| &*role.slug).collect();
    assert_eq!(listed, ["org-owner", "org-lead", "admin", "member", "org-guest"]);
    let owner = client.authorization().get_organization_role("org_1", "org-owner").await.unwrap();
    assert_eq!(owner.id, "role_3");
    let permission = client.authorization().get_permission("orders:write").await.unwrap();
    assert_eq!(permission.id, "perm_2");
    let permissions = client.authorization().list_permissions(Default::default()).await.unwrap();
    assert_eq!(permissions.data.len(), 3);
    service.stop().await.unwrap();
}

/// The list of WorkOS is in the order of priority, in which an organization's own roles may be anywhere.
#[tokio::test]
async fn roles_of_an_organization_are_listed_by_priority_with_those_of_the_environment() {
    let database = example().await;
    let service = start(&database, Kinds::ALL).await;
    for (path, expected) in [
        ("/authorization/roles", &["admin", "member"][..]),
        ("/authorization/organizations/org_1/roles", &["org-owner", "org-lead", "admin", "member", "org-guest"]),
        ("/organizations/org_1/roles", &["org-owner", "org-lead", "admin", "member", "org-guest"]),
        ("/authorization/organizations/org_2/roles", &["org-owner", "admin", "member"]),
        ("/authorization/organizations/org_3/roles", &["admin", "member"]),
    ] {
        let answer = service.ask(path, KEY).await;
        assert_eq!(slugs(&answer), expected, "{path}");
        assert!(answer.json().get("list_metadata").is_none(), "{path}: the list has no pages");
        assert!(!answer.header("authkit-sync-position").is_empty() && !answer.header("etag").is_empty(), "{path}");
    }
    for (path, id) in [
        ("/authorization/roles/admin", "role_1"),
        ("/authorization/organizations/org_1/roles/org-owner", "role_3"),
        ("/authorization/organizations/org_2/roles/org-owner", "role_6"),
        ("/authorization/organizations/org_3/roles/admin", "role_1"),
        ("/authorization/permissions/orders:cancel", "perm_3"),
    ] {
        assert_eq!(service.ask(path, KEY).await.json()["id"], json!(id), "{path}");
    }
    let role = service.ask("/authorization/roles/admin", KEY).await.json();
    assert_eq!(
        (&role["object"], &role["type"], &role["added_tomorrow"]),
        (&json!("role"), &json!("EnvironmentRole"), &json!(1))
    );
    service.stop().await.unwrap();
}

#[tokio::test]
async fn permissions_are_listed_in_pages() {
    let database = example().await;
    let service = start(&database, Kinds::ALL).await;
    for (query, expected) in [
        ("", &["perm_3", "perm_2", "perm_1"][..]),
        ("order=asc&limit=2", &["perm_1", "perm_2"]),
        ("limit=1&after=perm_3", &["perm_2"]),
        ("before=perm_1", &["perm_3", "perm_2"]),
    ] {
        assert_eq!(ids(&service.ask(&format!("/authorization/permissions?{query}"), KEY).await), expected, "{query}");
    }
    let page = service.ask("/authorization/permissions?limit=1&after=perm_3", KEY).await.json();
    assert_eq!(page["list_metadata"], json!({"before": "perm_2", "after": "perm_2"}));
    service.stop().await.unwrap();
}

#[tokio::test]
async fn refused_requests_for_roles_have_the_format_of_workos() {
    let database = example().await;
    let service = start(&database, Kinds::ALL).await;
    for (path, message) in [
        ("/authorization/roles/gone", "Role not found: 'gone'."),
        ("/authorization/roles/org-owner", "Role not found: 'org-owner'."),
        ("/authorization/organizations/org_1/roles/org-gone", "Role not found: 'org-gone'."),
        ("/authorization/organizations/org_nobody/roles", "Organization not found: 'org_nobody'."),
        ("/authorization/organizations/org_4/roles", "Organization not found: 'org_4'."),
        ("/authorization/organizations/org_4/roles/admin", "Organization not found: 'org_4'."),
        ("/organizations/org_4/roles", "Organization not found: 'org_4'."),
        ("/authorization/permissions/gone", "Permission not found: 'gone'."),
        ("/authorization/organizations/%00/roles/admin", "Role not found: '?'."),
    ] {
        let answer = service.ask(path, KEY).await;
        assert_eq!(answer.code(), (404, "entity_not_found".to_owned()), "{path}");
        assert_eq!(answer.json()["message"], json!(message), "{path}");
    }
    for path in ["/authorization/roles", "/authorization/organizations/org_1/roles", "/authorization/permissions"] {
        let answer = service.ask(&format!("{path}?search=a"), KEY).await;
        assert_eq!(field_error(&answer), (422, json!({"code": "unsupported_parameter", "field": "search"})), "{path}");
        let write = service.client.post(service.url(path)).bearer_auth(KEY).send().await.unwrap();
        assert_eq!(Answer::of(write).await.code(), (405, "read_only".to_owned()), "{path}");
    }
    service.stop().await.unwrap();
    let without = start(&database, Kinds { roles: false, ..Kinds::ALL }).await;
    for path in ["/authorization/roles", "/organizations/org_1/roles", "/authorization/permissions/orders:read"] {
        let answer = without.ask(path, KEY).await;
        assert_eq!(answer.code(), (404, "kind_disabled".to_owned()), "{path}");
        assert!(answer.text.contains("AUTHKIT_SYNC_KINDS"), "{}", answer.text);
    }
    without.stop().await.unwrap();
}

/// A caller cannot distinguish a list that was never read from an empty one.
#[tokio::test]
async fn before_the_lists_were_read_no_empty_list_is_returned() {
    let database = TestDatabase::new().await;
    store_events(&database, "organization.created", 0, &[organization("org_1", "Acme", &[], 0)]).await;
    let service = start(&database, Kinds::ALL).await;
    for path in [
        "/authorization/roles",
        "/authorization/roles/admin",
        "/authorization/organizations/org_1/roles",
        "/authorization/organizations/org_1/roles/admin",
        "/authorization/permissions",
        "/authorization/permissions/orders:read",
    ] {
        assert_eq!(service.ask(path, KEY).await.code(), (503, "roles_not_synced".to_owned()), "{path}");
    }
    let read = "insert into workos.role_lists (organization_id, observed_at) values ('', now())";
    sqlx::query(read).execute(&database.pool(1).await).await.unwrap();
    assert_eq!(service.ask("/authorization/roles", KEY).await.json()["data"], Value::Array(Vec::new()));
    assert_eq!(service.ask("/authorization/roles/admin", KEY).await.status, 404);
    service.stop().await.unwrap();
}
