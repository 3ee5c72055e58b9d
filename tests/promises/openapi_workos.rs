//! The answers of WorkOS's routes for organizations, for [`super::openapi`].

use authkit_sync::domain::kinds::Kinds;
use serde_json::json;

use crate::openapi::Described;
use crate::organizations_api::{KEY, organization, start, store_events};
use crate::support::database::TestDatabase;
use crate::support::service::{Answer, Service};

/// Routes by their path in the document, with the path of a request that is answered 200, and of one that is answered 404.
const ONE: &[(&str, &str, &str)] = &[
    ("/organizations/{id}", "/organizations/org_1", "/organizations/org_2"),
    (
        "/organizations/external_id/{external_id}",
        "/organizations/external_id/crm-1",
        "/organizations/external_id/crm-2",
    ),
];

/// Lists, with the query of a request that is answered 200.
const LISTS: &[(&str, &str)] = &[("/organizations", "?domains=a.example&search=acme")];

async fn get(service: &Service, path: &str, key: &str, tag: &str) -> Answer {
    let request = service.client.get(service.url(path)).bearer_auth(key).header("if-none-match", tag);
    Answer::of(request.send().await.unwrap()).await
}

/// Requests every answer that is described, from services of its own.
pub(crate) async fn hold_workos_routes(described: &mut Described) {
    let database = TestDatabase::new().await;
    let mut acme = organization("org_1", "Acme", &["a.example"], 0);
    acme["external_id"] = json!("crm-1");
    acme["added_tomorrow"] = json!({"n": 1});
    store_events(&database, "organization.created", 0, &[acme]).await;
    let pool = database.pool(4).await;
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
