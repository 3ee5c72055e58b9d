//! The simulated WorkOS has the organizations, memberships, roles, permissions and sessions of the real one, with the same rules.

use std::collections::BTreeMap;

use authkit_sync::dev::workos::{ApiFaults, Cascades, SimulatedWorkos, TokenRequest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::simulated_workos::{Api, keys, workos};
use crate::support::fixture;
use crate::support::lab::object;

/// A user, an organization, and the membership of the user with the role `admin`.
pub(crate) fn member(workos: &SimulatedWorkos, name: &str) -> (String, String, String) {
    let user = workos.create_user(&object(json!({"email": format!("{name}@example.test")}))).unwrap();
    let organization = workos.create_organization(&object(json!({"name": name}))).unwrap();
    let (user, organization) = (id(&user), id(&organization));
    let membership = workos.add_membership(&user, &organization, &["admin"]).unwrap();
    (user, organization, id(&membership))
}

fn id(value: &Value) -> String {
    value["id"].as_str().unwrap().to_owned()
}

fn types(workos: &SimulatedWorkos, since: usize) -> Vec<String> {
    workos.events()[since..].iter().map(|event| event["event"].as_str().unwrap().to_owned()).collect()
}

fn claims(token: &str) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap()).unwrap()
}

fn ids(list: &Value) -> Vec<&str> {
    list["data"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap()).collect()
}

/// Creates at least one event of each type.
fn cause_every_event(workos: &SimulatedWorkos) {
    let (user, organization, membership) = member(workos, "quill");
    let given = json!({"name": "Old Mill Ltd", "domains": ["oldmill.example.test"]});
    let other = id(&workos.create_organization(&object(given)).unwrap());
    workos.update_organization(&organization, &object(json!({"external_id": "crm-1"}))).unwrap();
    let domain = id(&workos.add_domain(&organization, "quill.example.test").unwrap());
    workos.verify_domain(&organization, "quill.example.test").unwrap();
    workos.fail_domain(&organization, &domain).unwrap();
    workos.remove_domain(&organization, &domain).unwrap();
    workos.create_permission(&object(json!({"slug": "orders:write"}))).unwrap();
    workos.update_permission("orders:write", &object(json!({"name": "Write orders"}))).unwrap();
    workos.create_role(&object(json!({"slug": "billing"}))).unwrap();
    workos.set_role_permissions("billing", &["orders:write"]).unwrap();
    let lead = json!({"slug": "org-print-lead", "name": "Print lead"});
    workos.create_organization_role(&organization, &object(lead)).unwrap();
    workos.set_organization_role_permissions(&organization, "org-print-lead", &["orders:write"]).unwrap();
    workos.set_membership_roles(&membership, &["billing", "admin"]).unwrap();
    let session = workos.create_session(&user, &object(json!({"organization_id": organization}))).unwrap();
    workos.revoke_session(&id(&session)).unwrap();
    workos.deactivate_membership(&membership).unwrap();
    workos.remove_membership(&membership).unwrap();
    workos.delete_organization_role(&organization, "org-print-lead").unwrap();
    workos.delete_role("billing").unwrap();
    workos.delete_permission("orders:write").unwrap();
    workos.delete_organization(&other).unwrap();
}

#[tokio::test]
async fn every_event_has_the_fields_of_the_real_one() {
    let api = Api::start().await;
    cause_every_event(&api.workos);
    let events: BTreeMap<String, Value> = api
        .workos
        .events()
        .into_iter()
        .map(|event| (event["event"].as_str().unwrap().to_owned(), event["data"].clone()))
        .collect();
    for name in [
        "organization.created",
        "organization.updated",
        "organization.deleted",
        "organization_domain.created",
        "organization_domain.verified",
        "organization_domain.verification_failed",
        "organization_membership.created",
        "organization_membership.updated",
        "organization_membership.deleted",
        "role.updated",
        "role.deleted",
        "organization_role.created",
        "organization_role.updated",
        "organization_role.deleted",
        "permission.created",
        "session.created",
        "session.revoked",
    ] {
        let (data, real) = (&events[name], &fixture(&format!("event.{name}"))["data"]);
        assert_eq!(keys(data), keys(real), "{name}");
        for (field, inner) in real.as_object().unwrap() {
            match inner {
                Value::Object(_) if field != "metadata" => {
                    assert_eq!(keys(&data[field]), keys(inner), "{name} {field}")
                }
                Value::Array(items) if items.iter().any(Value::is_object) => {
                    let same = |item: &Value| keys(item) == keys(&items[0]);
                    assert!(data[field].as_array().unwrap().iter().all(same), "{name} {field}");
                }
                _ => {}
            }
        }
    }
    for name in ["organization_domain.deleted", "permission.updated", "permission.deleted", "role.created"] {
        assert!(events.contains_key(name), "{name}");
    }
    assert_eq!(events["organization_membership.updated"]["status"], "inactive");
    assert_eq!(events["session.revoked"]["status"], "revoked");
    assert_eq!(keys(&events["role.created"]), keys(&fixture("event.role.updated")["data"]));
}

#[tokio::test]
async fn the_api_returns_the_objects_of_the_real_one() {
    let api = Api::start().await;
    let (user, organization, membership) = member(&api.workos, "quill");
    let update = json!({"stripe_customer_id": "cus_1", "external_id": "crm/1", "metadata": {"tier": "gold"}});
    api.workos.update_organization(&organization, &object(update)).unwrap();
    api.workos.add_domain(&organization, "quill.example.test").unwrap();
    api.workos.create_permission(&object(json!({"slug": "orders:write"}))).unwrap();
    let lead = json!({"slug": "org-print-lead", "name": "Print lead"});
    api.workos.create_organization_role(&organization, &object(lead)).unwrap();
    api.workos.create_session(&user, &object(json!({"organization_id": organization}))).unwrap();
    let get = async |path: &str| api.call("GET", path, None).await.json();
    let one = get(&format!("/organizations/{organization}")).await;
    assert_eq!(keys(&one), keys(&fixture("organization")));
    assert_eq!(keys(&one["domains"][0]), keys(&fixture("organization")["domains"][0]));
    assert_eq!(get("/organizations/external_id/crm%2F1").await, one);
    assert_eq!(ids(&get("/organizations?domains=other.test,quill.example.test").await), [organization.as_str()]);
    assert!(ids(&get("/organizations?domains=other.test").await).is_empty());
    assert_eq!(ids(&get("/organizations?search=QUI").await), [organization.as_str()]);
    assert!(ids(&get("/organizations?search=mill").await).is_empty());
    let path = "/user_management/organization_memberships";
    let one = get(&format!("{path}/{membership}")).await;
    assert_eq!(keys(&one), keys(&fixture("organization_membership")));
    assert_eq!((&one["organization_name"], &one["user"]["id"]), (&json!("quill"), &json!(user)));
    let list = get(&format!("{path}?user_id={user}")).await;
    assert_eq!((keys(&list), &list["data"][0]), (keys(&fixture("organization_membership.list")), &one));
    let roles = get("/authorization/roles").await;
    assert_eq!(keys(&roles), keys(&fixture("role.list")), "roles have no pages");
    assert_eq!(get("/authorization/roles/admin").await, roles["data"][0]);
    assert_eq!(keys(&roles["data"][0]), keys(&fixture("role")));
    let roles = get(&format!("/authorization/organizations/{organization}/roles")).await;
    let slugs =
        |list: &Value| list["data"].as_array().unwrap().iter().map(|role| role["slug"].clone()).collect::<Vec<_>>();
    assert_eq!(slugs(&roles), slugs(&fixture("role.list.organization")));
    let lead = get(&format!("/authorization/organizations/{organization}/roles/org-print-lead")).await;
    assert_eq!((keys(&lead), &lead["type"]), (keys(&fixture("role.organization")), &json!("OrganizationRole")));
    let permission = get("/authorization/permissions/orders:write").await;
    assert_eq!(keys(&permission), keys(&fixture("permission")));
    assert_eq!(get("/authorization/permissions").await["data"], json!([permission]));
    let sessions = get(&format!("/user_management/users/{user}/sessions")).await;
    assert_eq!(keys(&sessions), keys(&fixture("session.list")));
    assert_eq!(keys(&sessions["data"][0]), keys(&fixture("session")));
    let session = sessions["data"][0]["id"].clone();
    let revoked = api.call("POST", "/user_management/sessions/revoke", Some(json!({"session_id": session}))).await;
    assert_eq!((revoked.status, &revoked.json()["status"]), (200, &json!("revoked")));
    assert!(ids(&get(&format!("/user_management/users/{user}/sessions")).await).is_empty(), "only active ones");
    assert_eq!(ids(&get(&format!("/user_management/users?organization_id={organization}")).await), [user.as_str()]);
}

#[tokio::test]
async fn what_does_not_exist_is_a_404_in_the_selected_format() {
    let api = Api::start().await;
    let errors = fixture("errors.organizations");
    let member = errors["membership_not_found_404_real"]["body"].clone();
    let asked = format!("/user_management/organization_memberships/{}", member["entity_id"].as_str().unwrap());
    assert_eq!(api.call("GET", &asked, None).await.json(), member);
    let organization = errors["organization_not_found_404_with_code_real"]["body"].clone();
    let asked = format!("/organizations/{}", organization["entity_id"].as_str().unwrap());
    assert_eq!(api.call("GET", &asked, None).await.json(), organization);
    api.workos.set_api_faults(ApiFaults { emulator_not_found: true, ..ApiFaults::default() });
    let emulated = &errors["organization_not_found_404_emulator"]["body"];
    assert_eq!(api.call("GET", &asked, None).await.json(), *emulated);
    api.workos.set_api_faults(ApiFaults { bare_not_found: true, ..ApiFaults::default() });
    let bare = api.call("GET", &asked, None).await;
    let real = &errors["organization_not_found_404_bare_real_2021"]["body"];
    assert_eq!((bare.status, &bare.json()), (404, real));
    api.workos.set_api_faults(ApiFaults::default());
    let session = errors["session_not_found_404_real"]["body"].clone();
    let given = json!({"session_id": session["entity_id"]});
    let revoked = api.call("POST", "/user_management/sessions/revoke", Some(given)).await;
    assert_eq!((revoked.status, revoked.json()), (404, session));
    for path in [
        "/organizations/external_id/x",
        "/authorization/roles/x",
        "/authorization/permissions/x",
        "/authorization/organizations/x/roles",
        "/authorization/organizations/x/roles/admin",
        "/user_management/users/x/sessions",
        "/user_management/organization_memberships?organization_id=x",
        "/user_management/organization_memberships?user_id=x",
    ] {
        let missing = api.call("GET", path, None).await;
        assert_eq!((missing.status, &missing.json()["code"]), (404, &json!("entity_not_found")), "{path}");
    }
    api.workos.set_api_faults(ApiFaults { unknown_lists_empty: true, ..ApiFaults::default() });
    let list = api.call("GET", "/user_management/organization_memberships?organization_id=x", None).await;
    assert_eq!((list.status, list.json()["data"].clone()), (200, json!([])));
}

#[tokio::test]
async fn memberships_are_listed_by_status_and_only_of_a_user_or_an_organization() {
    let api = Api::start().await;
    let (_, organization, active) = member(&api.workos, "ada");
    let add = |name: &str, status: &str| {
        let user = api.workos.create_user(&object(json!({"email": format!("{name}@example.test")}))).unwrap();
        let given = json!({"user_id": user["id"], "organization_id": organization, "status": status});
        id(&api.workos.create_membership(&object(given)).unwrap())
    };
    let (inactive, pending) = (add("bo", "active"), add("cy", "pending"));
    api.workos.deactivate_membership(&inactive).unwrap();
    let path = "/user_management/organization_memberships";
    let list = async |query: &str| {
        let list =
            api.call("GET", &format!("{path}?organization_id={organization}&order=asc{query}"), None).await.json();
        ids(&list).into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(list("").await, std::slice::from_ref(&active), "by default only active ones");
    let all = [active, inactive.clone(), pending.clone()];
    for query in [
        "&statuses=active,inactive,pending",
        "&statuses=active&statuses=inactive&statuses=pending",
        "&statuses[]=active&statuses[]=inactive&statuses[]=pending",
    ] {
        assert_eq!(list(query).await, all, "{query}");
    }
    assert_eq!(list("&statuses=inactive").await, std::slice::from_ref(&inactive));
    let unnamed = api.call("GET", path, None).await;
    let error = &fixture("errors.organizations")["membership_list_no_filter_400"];
    assert_eq!((unnamed.status, &unnamed.json()), (400, &error["body"]));
    for (verb, error) in
        [("deactivate", "pending_membership_deactivate_400"), ("reactivate", "pending_membership_reactivate_400")]
    {
        let refused = api.call("POST", &format!("/_simulate/memberships/{pending}/{verb}"), None).await;
        let error = &fixture("errors.organizations")[error];
        assert_eq!((refused.status, &refused.json()["code"]), (400, &error["body"]["code"]));
    }
    api.workos.accept_membership(&pending).unwrap();
    assert_eq!(list("").await, [all[0].clone(), pending]);
}

#[tokio::test]
async fn a_membership_that_is_added_again_has_a_new_id_and_an_inactive_one_is_reactivated() {
    let workos = workos(None).await;
    let (user, organization, first) = member(&workos, "ada");
    assert!(workos.add_membership(&user, &organization, &[]).is_err(), "there is one already");
    workos.deactivate_membership(&first).unwrap();
    let before = workos.events().len();
    workos.deactivate_membership(&first).unwrap();
    assert_eq!(workos.events().len(), before, "nothing changed, so there is no event");
    let again = workos.add_membership(&user, &organization, &["member"]).unwrap();
    assert_eq!(
        (id(&again), &again["status"], &again["role"]["slug"]),
        (first.clone(), &json!("active"), &json!("member"))
    );
    assert_eq!(types(&workos, before), ["organization_membership.updated"]);
    workos.remove_membership(&first).unwrap();
    let second = workos.add_membership(&user, &organization, &[]).unwrap();
    assert!(id(&second) > first);
    assert_eq!(second["role"]["slug"], "member", "without a role it is the default role");
    assert_eq!(types(&workos, before + 1), ["organization_membership.deleted", "organization_membership.created"]);
    let reused = json!({"id": first, "user_id": user, "organization_id": organization});
    workos.remove_membership(&id(&second)).unwrap();
    assert!(workos.create_membership(&object(reused)).is_err(), "an ID is never used again");
}

#[tokio::test]
async fn consequences_have_events_only_if_they_are_selected() {
    for cascades in [Cascades::default(), Cascades { memberships: true, sessions: true }] {
        let workos = workos(None).await;
        workos.set_cascades(cascades);
        let told = |types: &[&'static str], last: &'static str| {
            let selected = |name: &&str| match name.split('.').next().unwrap() {
                "session" => cascades.sessions,
                _ => cascades.memberships,
            };
            types.iter().copied().filter(selected).chain([last]).collect::<Vec<_>>()
        };
        let (user, organization, membership) = member(&workos, "ada");
        workos.create_session(&user, &object(json!({"organization_id": organization}))).unwrap();
        let before = workos.events().len();
        workos.deactivate_membership(&membership).unwrap();
        assert_eq!(types(&workos, before)[0], "organization_membership.updated");
        assert_eq!(workos.events().len() - before, 1 + usize::from(cascades.sessions));
        assert_eq!(workos.sessions()[0]["status"], "revoked");
        workos.reactivate_membership(&membership).unwrap();
        workos.create_session(&user, &object(json!({"organization_id": organization}))).unwrap();
        let before = workos.events().len();
        workos.delete_organization(&organization).unwrap();
        let expected = told(&["session.revoked", "organization_membership.deleted"], "organization.deleted");
        assert_eq!(types(&workos, before), expected);
        assert!(workos.memberships().is_empty() && workos.organizations().is_empty());
        let (user, _, _) = member(&workos, "bo");
        workos.create_session(&user, &object(json!({}))).unwrap();
        let before = workos.events().len();
        workos.delete_user(&user).unwrap();
        let expected = told(&["session.revoked", "organization_membership.deleted"], "user.deleted");
        assert_eq!(types(&workos, before), expected);
        assert!(workos.memberships().is_empty());
        assert!(workos.sessions().iter().all(|session| session["status"] == "revoked"));
    }
}

#[tokio::test]
async fn roles_follow_their_priority_and_a_deleted_role_leaves_its_members_silently() {
    let workos = workos(None).await;
    let (_, organization, membership) = member(&workos, "ada");
    workos.create_role(&object(json!({"slug": "owner", "permissions": ["orders:write"]}))).unwrap();
    workos.create_organization_role(&organization, &object(json!({"slug": "org-lead"}))).unwrap();
    let roles = workos.set_membership_roles(&membership, &["member", "org-lead", "owner"]).unwrap();
    assert_eq!(roles["role"]["slug"], "owner");
    assert_eq!(roles["roles"], json!([{"slug": "member"}, {"slug": "org-lead"}, {"slug": "owner"}]));
    assert!(workos.set_membership_roles(&membership, &["unknown"]).is_err());
    assert!(workos.delete_organization_role(&organization, "org-lead").is_err(), "a member has it");
    assert!(workos.delete_role("member").is_err(), "it is the default role");
    let before = workos.events().len();
    workos.update_role("owner", &object(json!({"name": "Owner"}))).unwrap();
    workos.order_roles(&["admin", "owner", "member"]).unwrap();
    assert_eq!(workos.events().len(), before, "WorkOS documents no event for a name and an order");
    assert_eq!(workos.roles()[1]["name"], "Owner");
    workos.delete_role("owner").unwrap();
    assert_eq!(types(&workos, before), ["role.deleted"]);
    let left = workos.memberships()[0].clone();
    assert_eq!((&left["role"]["slug"], left["roles"].as_array().unwrap().len()), (&json!("org-lead"), 2));
    workos.set_cascades(Cascades { memberships: true, sessions: false });
    workos.set_membership_roles(&membership, &["admin"]).unwrap();
    let before = workos.events().len();
    workos.delete_role("admin").unwrap();
    assert_eq!(types(&workos, before), ["role.deleted", "organization_membership.updated"]);
    assert_eq!(workos.memberships()[0]["role"]["slug"], "member");
}

#[tokio::test]
async fn a_token_has_the_roles_and_permissions_of_the_moment_of_its_issue() {
    let workos = workos(None).await;
    let (user, organization, membership) = member(&workos, "ada");
    workos.create_permission(&object(json!({"slug": "orders:read"}))).unwrap();
    workos.set_role_permissions("admin", &["orders:write", "orders:read"]).unwrap();
    workos.set_role_permissions("member", &["orders:read"]).unwrap();
    workos.set_membership_roles(&membership, &["member", "admin"]).unwrap();
    let plain = claims(&workos.sign_in(&user).unwrap());
    for name in ["org_id", "role", "roles", "permissions"] {
        assert!(plain.get(name).is_none(), "{plain}");
    }
    let first = claims(&workos.sign_in_to(&user, &organization).unwrap());
    assert_eq!((&first["org_id"], &first["role"]), (&json!(organization), &json!("admin")));
    assert_eq!(first["roles"], json!(["member", "admin"]));
    assert_eq!(first["permissions"], json!(["orders:read", "orders:write"]));
    workos.delete_permission("orders:read").unwrap();
    let refresh = TokenRequest {
        org_id: Some(organization.clone()),
        session_id: first["sid"].as_str().map(str::to_owned),
        ..TokenRequest::default()
    };
    let sessions = workos.sessions().len();
    let second = claims(&workos.issue_token(&user, refresh.clone()).unwrap());
    assert_eq!((&second["sid"], &second["permissions"]), (&first["sid"], &json!(["orders:write"])));
    assert_eq!(workos.sessions().len(), sessions, "a refresh creates no session");
    let explicit = TokenRequest {
        role: Some("owner".to_owned()),
        permissions: Some(Vec::new()),
        expires_in_s: Some(60),
        claims: object(json!({"plan": "team", "roles": null})),
        ..refresh.clone()
    };
    let third = claims(&workos.issue_token(&user, explicit).unwrap());
    assert_eq!((&third["role"], &third["permissions"], &third["plan"]), (&json!("owner"), &json!([]), &json!("team")));
    assert!(third.get("roles").is_none() && third["exp"].as_i64().unwrap() - third["iat"].as_i64().unwrap() == 60);
    workos.deactivate_membership(&membership).unwrap();
    assert!(workos.sign_in_to(&user, &organization).is_err() && workos.issue_token(&user, refresh).is_err());
}
