//! The answers of WorkOS's routes for organizations, memberships, roles and permissions, for [`super::openapi`].

use authkit_sync::domain::kinds::Kinds;
use serde_json::json;

use crate::memberships_api::membership;
use crate::openapi::Described;
use crate::organizations_api::{KEY, organization, start, store_events};
use crate::roles_api::store_roles;
use crate::support::database::TestDatabase;
use crate::support::events::user;
use crate::support::pgbouncer::as_the_run_wants;
use crate::support::service::{Answer, Service};

/// Routes by their path in the document, with the path of a request that is answered 200, and of one that is answered 404.
const ONE: &[(&str, &str, &str)] = &[
    ("/organizations/{id}", "/organizations/org_1", "/organizations/org_2"),
    (
        "/organizations/external_id/{external_id}",
        "/organizations/external_id/crm-1",
        "/organizations/external_id/crm-2",
    ),
    ("/organizations/{id}/roles", "/organizations/org_1/roles", "/organizations/org_9/roles"),
    (
        "/user_management/organization_memberships/{id}",
        "/user_management/organization_memberships/om_1",
        "/user_management/organization_memberships/om_2",
    ),
    ("/authorization/roles/{slug}", "/authorization/roles/admin", "/authorization/roles/nobody"),
    (
        "/authorization/organizations/{organization_id}/roles",
        "/authorization/organizations/org_1/roles",
        "/authorization/organizations/org_9/roles",
    ),
    (
        "/authorization/organizations/{organization_id}/roles/{slug}",
        "/authorization/organizations/org_1/roles/org-lead",
        "/authorization/organizations/org_1/roles/nobody",
    ),
    (
        "/authorization/permissions/{slug}",
        "/authorization/permissions/orders:read",
        "/authorization/permissions/nobody",
    ),
];

/// Lists, with the query of a request that is answered 200.
const LISTS: &[(&str, &str)] = &[
    ("/organizations", "?domains=a.example&search=acme"),
    ("/user_management/organization_memberships", "?organization_id=org_1"),
    ("/authorization/roles", ""),
    ("/authorization/permissions", ""),
];

/// Lists whose path names an organization, with the path of a request.
const OF_ORGANIZATION: &[(&str, &str)] = &[
    ("/organizations/{id}/roles", "/organizations/org_1/roles"),
    ("/authorization/organizations/{organization_id}/roles", "/authorization/organizations/org_1/roles"),
];

async fn get(service: &Service, path: &str, key: &str, tag: &str) -> Answer {
    let request = service.client.get(service.url(path)).bearer_auth(key).header("if-none-match", tag);
    Answer::of(request.send().await.unwrap()).await
}

/// Requests every described answer, from separate services.
pub(crate) async fn hold_workos_routes(described: &mut Described) {
    let database = TestDatabase::new().await;
    let mut acme = organization("org_1", "Acme", &["a.example"], 0);
    acme["external_id"] = json!("crm-1");
    acme["added_tomorrow"] = json!({"n": 1});
    store_events(&database, "organization.created", 0, &[acme]).await;
    store_events(&database, "user.created", 0, &[user("user_ada", "Ada", 0)]).await;
    let mut member = membership("om_1", "user_ada", "org_1", "active", 0);
    member["added_tomorrow"] = json!({"n": 1});
    store_events(&database, "organization_membership.created", 0, &[member]).await;
    store_roles(&database).await;
    let pool = as_the_run_wants(&database.pool(4).await);
    let service = Service::start_with(&pool, |builder| builder.service_key("crm", KEY)).await;
    let one = ONE.iter().map(|(path, asked, _)| (*path, (*asked).to_owned()));
    let lists = LISTS.iter().map(|(path, query)| (*path, format!("{path}{query}")));
    let all: Vec<(&str, String)> = one.chain(lists).collect();
    for (path, asked) in &all {
        let answer = get(&service, asked, KEY, "").await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        described.hold("get", path, &answer);
        described.hold("get", path, &get(&service, asked, KEY, answer.header("etag")).await);
        described.hold("get", path, &get(&service, asked, "no-key", "").await);
    }
    for (path, _, missing) in ONE {
        described.hold("get", path, &get(&service, missing, KEY, "").await);
    }
    for (path, query) in LISTS {
        let separator = if query.is_empty() { "?" } else { "&" };
        for wrong in ["limit=0", "nonsense=1"] {
            described.hold("get", path, &get(&service, &format!("{path}{query}{separator}{wrong}"), KEY, "").await);
        }
    }
    for (path, asked) in OF_ORGANIZATION {
        described.hold("get", path, &get(&service, &format!("{asked}?nonsense=1"), KEY, "").await);
    }
    let neither = "/user_management/organization_memberships";
    described.hold("get", neither, &get(&service, neither, KEY, "").await);
    let without = start(&database, Kinds::USERS).await;
    for (path, asked) in &all {
        let answer = get(&without, asked, KEY, "").await;
        assert_eq!(answer.code(), (404, "kind_disabled".to_owned()), "{path}");
        described.hold("get", path, &answer);
    }
    pool.close().await;
    for (path, asked) in &all {
        let answer = get(&service, asked, KEY, "").await;
        assert_eq!(answer.status, 503, "{path}");
        described.hold("get", path, &answer);
    }
    service.stop().await.unwrap();
    without.stop().await.unwrap();
}
