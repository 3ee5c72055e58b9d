//! The paths of the simulated WorkOS: pages, faults, the actions of the simulation, the state file, and the choice of an
//! organization at a sign-in.

use std::collections::BTreeMap;

use authkit_sync::dev::workos::{ApiFaults, SimulatedWorkos, TokenRequest};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::simulated_organizations::member;
use crate::simulated_workos::{Api, workos};
use crate::support::lab::object;
use crate::support::service::Answer;

const READS: [&str; 9] = [
    "/user_management/users",
    "/organizations",
    "/organizations/{organization}",
    "/user_management/organization_memberships?organization_id={organization}",
    "/user_management/organization_memberships/{membership}",
    "/authorization/roles",
    "/authorization/organizations/{organization}/roles",
    "/authorization/permissions",
    "/user_management/users/{user}/sessions",
];

#[tokio::test]
async fn every_path_of_the_api_has_the_key_check_and_the_faults() {
    let api = Api::start().await;
    let (user, organization, membership) = member(&api.workos, "ada");
    let reads = READS.map(|path| {
        let path = path.replace("{organization}", &organization).replace("{membership}", &membership);
        path.replace("{user}", &user)
    });
    for path in &reads {
        let status = async |faults: ApiFaults| {
            api.workos.set_api_faults(faults);
            api.call("GET", path, None).await.status
        };
        assert_eq!(status(ApiFaults::default()).await, 200, "{path}");
        assert_eq!(status(ApiFaults { rate_limit: 100, ..ApiFaults::default() }).await, 429, "{path}");
        assert_eq!(status(ApiFaults { refuse_key: true, ..ApiFaults::default() }).await, 401, "{path}");
        let failed = ApiFaults { error: 100, retry_after_s: Some(1), ..ApiFaults::default() };
        assert_eq!(status(failed).await, 503, "{path}");
        assert_eq!(api.workos.requests(path.split('?').next().unwrap()), 4, "{path}");
    }
    api.workos.set_api_faults(ApiFaults::default());
    for path in &reads {
        let url = format!("{}{path}", api.workos.base_url());
        let unauthorized = authkit_sync::workos::http::http_client().unwrap().get(url).send().await.unwrap();
        assert_eq!(Answer::of(unauthorized).await.status, 401, "{path}");
    }
}

#[tokio::test]
async fn organizations_and_memberships_page_in_both_directions_also_after_a_removal() {
    let api = Api::start().await;
    let (_, organization, _) = member(&api.workos, "ada");
    let mut organizations = vec![organization];
    for at in 0..11 {
        let given = object(json!({"name": format!("Organization {at}"), "external_id": format!("crm-{at}")}));
        let created = api.workos.create_organization(&given).unwrap();
        organizations.push(created["id"].as_str().unwrap().to_owned());
    }
    let page = async |path: &str| {
        let page = api.call("GET", path, None).await.json();
        let items = page["data"].as_array().unwrap().clone();
        let ids: Vec<String> = items.iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect();
        (ids, page["list_metadata"].clone())
    };
    let (newest, meta) = page("/organizations?limit=3").await;
    assert_eq!(newest, [&organizations[11], &organizations[10], &organizations[9]].map(Clone::clone));
    assert_eq!(meta, json!({"before": null, "after": organizations[9]}));
    let (middle, meta) = page(&format!("/organizations?order=asc&limit=4&after={}", organizations[3])).await;
    assert_eq!(middle, organizations[4..8]);
    assert_eq!(meta, json!({"before": organizations[4], "after": organizations[7]}));
    let (back, meta) = page(&format!("/organizations?order=asc&limit=4&before={}", organizations[4])).await;
    assert_eq!(
        (&back[..], &meta["before"], &meta["after"]),
        (&organizations[..4], &Value::Null, &json!(organizations[3]))
    );
    api.workos.delete_organization(&organizations[3]).unwrap();
    let after_removed = format!("/organizations?order=asc&limit=4&after={}", organizations[3]);
    assert_eq!(page(&after_removed).await.0, organizations[4..8], "a list continues after a removed object");
    api.workos.set_api_faults(ApiFaults { lists_start_over: true, ..ApiFaults::default() });
    assert_eq!(page(&after_removed).await.0[0], organizations[0]);
    api.workos.set_api_faults(ApiFaults { page_limit: Some(2), ..ApiFaults::default() });
    assert_eq!(page("/organizations?limit=100").await.0.len(), 2);
    api.workos.set_api_faults(ApiFaults::default());
    api.workos.unlist(&organizations[0]);
    assert_eq!(page("/organizations?order=asc&limit=1").await.0, organizations[1..2]);
    let mut memberships = Vec::new();
    for at in 0..7 {
        let user = api.workos.create_user(&object(json!({"email": format!("u{at}@example.test")}))).unwrap();
        let added = api.workos.add_membership(user["id"].as_str().unwrap(), &organizations[1], &[]).unwrap();
        memberships.push(added["id"].as_str().unwrap().to_owned());
    }
    let path = format!("/user_management/organization_memberships?organization_id={}&order=asc", organizations[1]);
    let (first, meta) = page(&format!("{path}&limit=3")).await;
    assert_eq!((&first[..], &meta["after"]), (&memberships[..3], &json!(memberships[2])));
    api.workos.remove_membership(&memberships[2]).unwrap();
    let (rest, meta) = page(&format!("{path}&limit=10&after={}", memberships[2])).await;
    assert_eq!((&rest[..], &meta["after"]), (&memberships[3..], &Value::Null));
}

#[tokio::test]
async fn the_root_lists_every_action_and_each_can_be_called() {
    let api = Api::start().await;
    let listed = api.call("GET", "/", None).await.json()["data"].clone();
    let listed = listed.as_array().unwrap();
    assert!(listed.len() > 25, "{listed:?}");
    for action in listed {
        let text = |name: &str| action[name].as_str().unwrap_or_default();
        assert!(!text("effect").is_empty());
        let path: Vec<&str> =
            text("path").split('/').map(|part| if part.starts_with('{') { "unknown" } else { part }).collect();
        let body = action["body"].as_str().map(|body| body.split(" or ").next().unwrap());
        let body = body.map(|body| serde_json::from_str(body).unwrap_or_else(|_| panic!("no example: {action}")));
        let answer = api.call(text("method"), &path.join("/"), body).await;
        assert!(answer.status < 500 && answer.status != 405, "{action}: {}", answer.status);
        assert!(serde_json::from_str::<Value>(&answer.text).is_ok(), "{action} reached no action: {}", answer.text);
    }
}

#[tokio::test]
async fn an_organization_is_managed_by_actions_alone() {
    let api = Api::start().await;
    let call = async |method: &str, path: &str, body: Value| {
        let answer = api.call(method, path, Some(body)).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        answer.json()
    };
    let user = api.workos.create_user(&object(json!({"email": "ada@example.test"}))).unwrap();
    let id = |value: &Value| value["id"].as_str().unwrap().to_owned();
    let organization = id(&call("POST", "/_simulate/organizations", json!({"name": "Quill"})).await);
    let path = format!("/_simulate/organizations/{organization}");
    call("PUT", &path, json!({"name": "Quill Ltd"})).await;
    call("POST", &format!("{path}/domains"), json!({"domain": "quill.test"})).await;
    call("POST", &format!("{path}/domains/quill.test/verify"), json!({})).await;
    call("POST", &format!("{path}/roles"), json!({"slug": "org-lead", "permissions": ["orders:read"]})).await;
    let given = json!({"user_id": user["id"], "organization_id": organization, "role_slugs": ["org-lead"]});
    let membership = id(&call("POST", "/_simulate/memberships", given).await);
    let token = format!("/_simulate/users/{}/token", id(&user));
    let signed = call("POST", &token, json!({"org_id": organization, "claims": {"plan": "team"}})).await;
    assert!(signed["access_token"].is_string());
    assert!(api.call("POST", &token, None).await.json()["access_token"].is_string(), "the body can be absent");
    assert_eq!(api.call("POST", &token, Some(json!({"organization": "x"}))).await.status, 400);
    let session = api.workos.sessions()[0]["id"].as_str().unwrap().to_owned();
    call("POST", &format!("/_simulate/sessions/{session}/revoke"), json!({})).await;
    call("POST", &format!("/_simulate/memberships/{membership}/deactivate"), json!({})).await;
    assert_eq!(api.call("POST", &token, Some(json!({"org_id": organization}))).await.status, 400);
    call("DELETE", &format!("/_simulate/memberships/{membership}"), json!({})).await;
    call("DELETE", &path, json!({})).await;
    assert!(api.workos.organizations().is_empty());
}

#[tokio::test]
async fn objects_survive_a_restart_and_an_older_state_file_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("workos.json");
    let first = workos(Some(file.clone())).await;
    let (user, organization, membership) = member(&first, "ada");
    first.create_permission(&object(json!({"slug": "orders:read"}))).unwrap();
    first.create_role(&object(json!({"slug": "billing", "permissions": ["orders:read"]}))).unwrap();
    first.create_organization_role(&organization, &object(json!({"slug": "org-lead"}))).unwrap();
    first.sign_in_to(&user, &organization).unwrap();
    let all = |workos: &SimulatedWorkos| {
        let lists = [workos.users(), workos.organizations(), workos.memberships(), workos.sessions()];
        (lists, [workos.roles(), workos.organization_roles(&organization), workos.permissions()])
    };
    let before = all(&first);
    first.stop().await;
    let second = workos(Some(file.clone())).await;
    assert_eq!(all(&second), before);
    assert!(second.add_membership(&user, &organization, &[]).is_err(), "the pair is indexed again");
    second.remove_membership(&membership).unwrap();
    second.stop().await;
    // Raw values, because the last ID is a number of 128 bits.
    let mut older: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    for kind in ["organizations", "memberships", "sessions", "permissions", "roles", "organization_roles", "removed"] {
        assert!(older.remove(kind).is_some(), "{kind}");
    }
    std::fs::write(&file, serde_json::to_vec(&older).unwrap()).unwrap();
    let third = workos(Some(file)).await;
    assert_eq!((third.users().len(), third.organizations().len(), third.roles().len()), (1, 0, 2));
    third.stop().await;
}

#[tokio::test]
async fn a_user_of_several_organizations_selects_one_at_the_sign_in() {
    let api = Api::start().await;
    let (user, first, _) = member(&api.workos, "ada");
    let authenticate = async |more: Value| {
        let mut given = object(json!({"client_id": api.workos.client_id(), "client_secret": api.workos.api_key()}));
        given.extend(object(more));
        api.call("POST", "/user_management/authenticate", Some(Value::Object(given))).await
    };
    let password = json!({"grant_type": "password", "email": "ada@example.test", "password": "any"});
    assert_eq!(
        authenticate(password.clone()).await.json()["organization_id"],
        first,
        "the only one is chosen silently"
    );
    let second = api.workos.create_organization(&object(json!({"name": "Second"}))).unwrap()["id"].clone();
    api.workos.add_membership(&user, second.as_str().unwrap(), &[]).unwrap();
    let refused = authenticate(password).await;
    assert_eq!((refused.status, &refused.json()["code"]), (403, &json!("organization_selection_required")));
    let selection = json!({
        "grant_type": "urn:workos:oauth:grant-type:organization-selection", "organization_id": second,
        "pending_authentication_token": refused.json()["pending_authentication_token"],
    });
    let selected = authenticate(selection).await.json();
    assert_eq!(selected["organization_id"], second);
    let request = TokenRequest { org_id: Some("org_unknown".to_owned()), ..TokenRequest::default() };
    assert!(api.workos.issue_token(&user, request).is_err());
}
