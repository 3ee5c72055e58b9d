//! WorkOS's API for reading organizations, answered from the table: tested with WorkOS's SDK, and with plain requests.

use authkit_sync::domain::event::Origin;
use authkit_sync::domain::kinds::Kinds;
use authkit_sync::sync::apply;
use serde_json::{Value, json};
use workos::organizations::ListOrganizationsParams;
use workos::{Client, PaginationOrder};

use crate::support::database::TestDatabase;
use crate::support::events::{at, observed};
use crate::support::service::{Answer, Service, store};

pub(crate) const KEY: &str = "a-service-key-of-at-least-32-characters";

/// An organization object in WorkOS's format, as an event contains it.
pub(crate) fn organization(id: &str, name: &str, domains: &[&str], updated_ms: i64) -> Value {
    let domain = |domain: &&str| {
        json!({
            "object": "organization_domain", "id": format!("org_domain_{domain}"), "organization_id": id, "domain": domain,
            "state": "verified", "verification_strategy": "dns", "verification_token": "secret", "created_at": at(0),
            "updated_at": at(0),
        })
    };
    json!({
        "object": "organization", "id": id, "name": name, "domains": domains.iter().map(domain).collect::<Vec<_>>(),
        "metadata": {"tier": "gold"}, "external_id": null, "created_at": at(0), "updated_at": at(updated_ms),
    })
}

/// A service with a service key.
pub(crate) async fn start(database: &TestDatabase, kinds: Kinds) -> Service {
    let pool = database.pool(4).await;
    Service::start_with(&pool, |builder| builder.service_key("crm", KEY).kinds(kinds)).await
}

/// Applies these objects as events.
pub(crate) async fn store_events(database: &TestDatabase, event_type: &str, created_ms: i64, objects: &[Value]) {
    let observations: Vec<_> = objects.iter().map(|object| observed(event_type, created_ms, object)).collect();
    apply(&store(&database.pool(1).await), Origin::Webhook, &observations).await.unwrap();
}

/// WorkOS's SDK, changed in host and key only.
pub(crate) fn sdk(service: &Service) -> Client {
    Client::builder().api_key(KEY).client_id("client_1").base_url(service.url("")).max_retries(0).build()
}

/// The IDs of the objects on a page.
pub(crate) fn ids(answer: &Answer) -> Vec<String> {
    assert_eq!(answer.status, 200, "{}", answer.text);
    let json = answer.json();
    json["data"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect()
}

/// The status and the error of a 422.
pub(crate) fn field_error(answer: &Answer) -> (u16, Value) {
    (answer.status, answer.json()["errors"][0].clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workos_own_sdk_reads_organizations() {
    let database = TestDatabase::new().await;
    let mut organizations: Vec<Value> =
        (0..25).map(|n| organization(&format!("org_{n:02}"), &format!("Acme {n}"), &[], 0)).collect();
    organizations[7] = organization("org_07", "Quill & Søn A/S", &["quill.example.test", "quill.example"], 0);
    organizations[7]["external_id"] = json!("crm-7");
    organizations[7]["stripe_customer_id"] = json!("cus_7");
    store_events(&database, "organization.created", 0, &organizations).await;
    store_events(&database, "organization.deleted", 1, &[json!({"id": "org_03"})]).await;
    let service = start(&database, Kinds::ALL).await;
    let client = sdk(&service);
    let mut listed = Vec::new();
    let order = Some(PaginationOrder::Asc);
    let mut params = ListOrganizationsParams { limit: Some(10), order, ..ListOrganizationsParams::default() };
    loop {
        let page = client.organizations().list_organizations(params.clone()).await.unwrap();
        listed.extend(page.data.into_iter().map(|organization| organization.id));
        params.after = page.list_metadata.after;
        if params.after.is_none() {
            break;
        }
    }
    let live = organizations.iter().map(|it| it["id"].as_str().unwrap()).filter(|id| *id != "org_03");
    assert_eq!(listed, live.collect::<Vec<_>>());
    let one = client.organizations().get_organization("org_07").await.unwrap();
    assert_eq!((one.name.as_str(), one.domains.len()), ("Quill & Søn A/S", 2));
    assert!(one.domains[0].verification_token.is_none() && one.stripe_customer_id.as_deref() == Some("cus_7"));
    assert_eq!(client.organizations().get_organization_by_external_id("crm-7").await.unwrap().id, "org_07");
    let domains = Some(vec!["nowhere.example".to_owned(), "Quill.Example".to_owned()]);
    let by_domain = ListOrganizationsParams { domains, ..ListOrganizationsParams::default() };
    let found = client.organizations().list_organizations(by_domain).await.unwrap();
    assert_eq!((found.data.len(), found.data[0].id.as_str()), (1, "org_07"));
    let search = ListOrganizationsParams { search: Some("quill".to_owned()), ..ListOrganizationsParams::default() };
    assert_eq!(client.organizations().list_organizations(search).await.unwrap().data[0].id, "org_07");
    for missing in ["org_03", "org_nobody"] {
        let error = client.organizations().get_organization(missing).await.unwrap_err();
        let workos::Error::Api(error) = error else { panic!("{error}") };
        assert_eq!((error.status, error.code.as_deref()), (404, Some("entity_not_found")));
    }
    service.stop().await.unwrap();
}

#[tokio::test]
async fn organizations_are_found_by_domain_and_by_words_of_the_name_in_pages() {
    let database = TestDatabase::new().await;
    let organizations = [
        organization("org_1", "Acme Print", &["a.example", "shared.example"], 0),
        organization("org_2", "ACME-Paper, Inc.", &["shared.example"], 0),
        organization("org_3", "acme's o'mill \\ (north)", &["b.example"], 0),
        organization("org_4", "Lacme", &[], 0),
    ];
    store_events(&database, "organization.created", 0, &organizations).await;
    let service = start(&database, Kinds::ALL).await;
    for (query, expected) in [
        ("", &["org_4", "org_3", "org_2", "org_1"][..]),
        ("domains=shared.example", &["org_2", "org_1"]),
        ("domains=SHARED.example&order=asc", &["org_1", "org_2"]),
        ("domains=a.example,b.example", &["org_3", "org_1"]),
        ("domains=a.example&domains=b.example", &["org_3", "org_1"]),
        ("domains[]=a.example&domains%5B%5D=b.example", &["org_3", "org_1"]),
        ("domains=shared.example&search=paper", &["org_2"]),
        ("domains=shared.example&search=mill", &[]),
        ("domains=", &["org_4", "org_3", "org_2", "org_1"]),
        ("search=acme", &["org_3", "org_2", "org_1"]),
        ("search=ACM&order=asc", &["org_1", "org_2", "org_3"]),
        ("search=acme&after=org_3", &["org_2", "org_1"]),
        ("search=acme&before=org_1&limit=1", &["org_2"]),
        ("search=acme&limit=1&order=normal&before=org_3", &["org_2"]),
        ("search=paper%20acme", &["org_2"]),
        ("search=o%27mill%20north", &["org_3"]),
        ("search=%27%29%20%7C%20a%3A%2A%5C", &["org_3", "org_2", "org_1"]),
        ("search=%26%20%21", &[]),
        ("search=cme", &[]),
        ("search=", &["org_4", "org_3", "org_2", "org_1"]),
    ] {
        assert_eq!(ids(&service.ask(&format!("/organizations?{query}"), KEY).await), expected, "{query}");
    }
    let page = service.ask("/organizations?search=acme&limit=1&after=org_3", KEY).await;
    assert_eq!(page.json()["list_metadata"], json!({"before": "org_2", "after": "org_2"}));
    assert!(!page.header("authkit-sync-position").is_empty() && !page.header("etag").is_empty());
    let tag = page.header("etag").to_owned();
    let again = service.client.get(service.url("/organizations?search=acme&limit=1&after=org_3"));
    assert_eq!(again.bearer_auth(KEY).header("if-none-match", tag).send().await.unwrap().status(), 304);
    service.stop().await.unwrap();
}

/// If the index could not contain a long name, the event with the name would fail.
#[tokio::test]
async fn the_longest_name_is_stored_and_found() {
    let database = TestDatabase::new().await;
    let name = format!("{} tail", "\u{1F980}".repeat(4_000));
    store_events(&database, "organization.created", 0, &[organization("org_1", &name, &[], 0)]).await;
    let service = start(&database, Kinds::ALL).await;
    assert_eq!(service.ask("/organizations/org_1", KEY).await.json()["name"], json!(name));
    let begins = "%F0%9F%A6%80".repeat(3);
    assert_eq!(ids(&service.ask(&format!("/organizations?search={begins}"), KEY).await), ["org_1"]);
    service.stop().await.unwrap();
}

#[tokio::test]
async fn refused_requests_for_organizations_have_the_format_of_workos() {
    let database = TestDatabase::new().await;
    let service = start(&database, Kinds::ALL).await;
    let many = vec!["a.example"; 101].join(",");
    for (query, code, field) in [
        ("limit=0", "limit_out_of_range", "limit"),
        ("search=a%00b", "invalid", "search"),
        ("domains=%00", "invalid", "domains"),
        ("search=a&search=b", "given_twice", "search"),
        ("email=a", "unsupported_parameter", "email"),
        (&format!("domains={many}"), "too_many_values", "domains"),
    ] {
        let answer = service.ask(&format!("/organizations?{query}"), KEY).await;
        assert_eq!(field_error(&answer), (422, json!({"code": code, "field": field})), "{query}");
    }
    for odd in ["org_nobody", "%00", "%FF", "external_id/%00", "external_id/crm%2F7"] {
        let answer = service.ask(&format!("/organizations/{odd}"), KEY).await;
        assert_eq!(answer.code(), (404, "entity_not_found".to_owned()), "{odd}");
    }
    let missing = service.ask("/organizations/org_nobody", KEY).await.json();
    assert_eq!(missing["message"], "Organization not found: 'org_nobody'.");
    assert_eq!(missing["entity_id"], "org_nobody");
    for path in ["/organizations", "/organizations/org_1"] {
        assert_eq!(service.ask(path, "no-key").await.status, 401);
        let write = service.client.post(service.url(path)).bearer_auth(KEY).send().await.unwrap();
        assert_eq!(Answer::of(write).await.code(), (405, "read_only".to_owned()), "{path}");
    }
    let other = service.ask("/organizations/org_1/feature-flags", KEY).await;
    assert_eq!(other.code(), (404, "not_served".to_owned()));
    service.stop().await.unwrap();
}

#[tokio::test]
async fn without_the_kind_organizations_are_404_and_the_setting_is_named() {
    let database = TestDatabase::new().await;
    let service = start(&database, Kinds::USERS).await;
    for path in ["/organizations", "/organizations/org_1", "/organizations/external_id/crm-1"] {
        let answer = service.ask(path, KEY).await;
        assert_eq!(answer.code(), (404, "kind_disabled".to_owned()), "{path}");
        assert!(answer.text.contains("AUTHKIT_SYNC_KINDS"), "{}", answer.text);
    }
    service.stop().await.unwrap();
}
