//! Roles and permissions are WorkOS's lists, read again after each event about one and on a timer.

use std::net::Ipv4Addr;
use std::time::Duration;

use authkit_sync::domain::clock::Clock;
use authkit_sync::sync::refresh::{Refresh, RefreshStep};
use authkit_sync::workos::api::{Api, ApiKey};
use axum::extract::Path;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::support::lab::{Lab, job_context, object};

/// The changes of roles and permissions in the feed, in order: kind, object ID and changed fields.
async fn changes(lab: &Lab) -> Vec<(String, String, Value)> {
    let sql =
        "select kind, object_id, to_jsonb(changed) from workos.changes where object_id is not null order by position";
    sqlx::query_as(sql).fetch_all(&lab.pool).await.unwrap()
}

async fn roles(lab: &Lab) -> Vec<(String, Vec<String>)> {
    sqlx::query_as("select slug, permissions from workos.roles order by synced_position")
        .fetch_all(&lab.pool)
        .await
        .unwrap()
}

/// Makes the timer due.
async fn age(lab: &Lab) {
    sqlx::query("update workos.role_lists set read_at = now() - interval '1 hour'").execute(&lab.pool).await.unwrap();
    lab.pass(2);
}

fn names(roles: &[(String, Vec<String>)]) -> Vec<&str> {
    roles.iter().map(|(slug, _)| slug.as_str()).collect()
}

#[tokio::test]
async fn roles_and_permissions_follow_their_lists_and_only_differences_enter_the_feed() {
    let lab = Lab::new().await;
    lab.backfill().await;
    lab.workos.create_permission(&object(json!({"slug": "orders:write", "name": "Write"}))).unwrap();
    lab.workos.create_role(&object(json!({"slug": "billing", "permissions": ["orders:write"]}))).unwrap();
    assert_eq!(lab.refresh().await, 1, "the first list is due at once");
    assert_eq!(names(&roles(&lab).await), ["billing", "admin", "member"], "in the order of priority");
    let first = changes(&lab).await;
    assert_eq!(first.len(), 4, "{first:?}");
    assert!(first.contains(&("permission.created".into(), "orders:write".into(), json!([]))), "{first:?}");
    let origin = "select count(*) from workos.changes where object_id is not null and origin <> 'backfill'";
    assert_eq!(lab.count(origin).await, 0, "what the first list has may be years old");
    // Nothing has changed, so nothing is written.
    let written = "select count(*) from workos.role_records where xmin::text::bigint > 0 and synced_at = now()";
    age(&lab).await;
    assert_eq!(lab.refresh().await, 1);
    assert_eq!((changes(&lab).await.len(), lab.count(written).await), (first.len(), 0));
    // A new order is not a change of a role.
    lab.workos.order_roles(&["admin", "billing", "member"]).unwrap();
    age(&lab).await;
    lab.refresh().await;
    assert_eq!(names(&roles(&lab).await), ["admin", "billing", "member"]);
    assert_eq!(changes(&lab).await.len(), first.len());
    // WorkOS sends no event for a new name, and one for new permissions.
    lab.workos.update_role("billing", &object(json!({"name": "Billing", "permissions": []}))).unwrap();
    age(&lab).await;
    lab.refresh().await;
    let last = changes(&lab).await.pop().unwrap();
    assert_eq!((&*last.0, &*last.1), ("role.updated", "billing"));
    assert_eq!(last.2, json!(["name", "permissions", "updated_at"]));
}

#[tokio::test]
async fn a_deleted_role_disappears_and_a_reused_slug_is_live_again() {
    let lab = Lab::new().await;
    lab.backfill().await;
    lab.workos.create_role(&object(json!({"slug": "billing"}))).unwrap();
    lab.workos.create_permission(&object(json!({"slug": "orders:write"}))).unwrap();
    lab.refresh().await;
    lab.workos.delete_role("billing").unwrap();
    lab.workos.delete_permission("orders:write").unwrap();
    age(&lab).await;
    lab.refresh().await;
    assert_eq!(names(&roles(&lab).await), ["admin", "member"]);
    let kept = "select count(*) from workos.role_records where slug = 'billing' and synced_deleted and name is null";
    assert_eq!(lab.count(kept).await, 1, "the row stays for foreign keys");
    assert_eq!(lab.count("select count(*) from workos.permissions").await, 0);
    let kinds: Vec<String> = changes(&lab).await.into_iter().map(|(kind, ..)| kind).collect();
    assert!(kinds.ends_with(&["role.deleted".into(), "permission.deleted".into()]), "{kinds:?}");
    lab.workos.create_role(&object(json!({"slug": "billing"}))).unwrap();
    age(&lab).await;
    lab.refresh().await;
    assert_eq!(names(&roles(&lab).await), ["billing", "admin", "member"]);
}

#[tokio::test]
async fn an_organization_that_deletes_many_roles_does_not_delay_others() {
    let lab = Lab::new().await;
    let (large, small) = (lab.create_organization("Large"), lab.create_organization("Small"));
    lab.backfill().await;
    lab.refresh().await;
    let roles: Vec<String> = (0..120).map(|number| format!("org-{number:03}")).collect();
    for slug in &roles {
        lab.workos.create_organization_role(&large, &object(json!({"slug": slug}))).unwrap();
    }
    let catch_up = lab.catch_up_of_all_kinds();
    let told = async || {
        for _ in 0..5 {
            lab.pass(60);
            catch_up.step().await.unwrap();
        }
    };
    let stored = async |organization: &str| -> i64 {
        let sql = "select count(*) from workos.organization_roles where organization_id = $1";
        sqlx::query_scalar(sql).bind(organization).fetch_one(&lab.pool).await.unwrap()
    };
    told().await;
    lab.refresh().await;
    assert_eq!(stored(&large).await, 120);
    for slug in &roles {
        lab.workos.delete_organization_role(&large, slug).unwrap();
    }
    told().await;
    lab.workos.create_organization_role(&small, &object(json!({"slug": "org-lead"}))).unwrap();
    told().await;
    let mut seen = Vec::new();
    loop {
        lab.pass(2);
        lab.free_leases().await;
        let step = Refresh::new(lab.context()).step().await.unwrap();
        seen.push((stored(&large).await, stored(&small).await));
        if step != Some(RefreshStep::Read) {
            break;
        }
    }
    assert_eq!(seen, [(70, 0), (70, 1), (20, 1), (0, 1), (0, 1)], "after each read");
}

#[tokio::test]
async fn an_event_about_a_role_or_a_domain_is_answered_by_a_read() {
    let lab = Lab::new().await;
    let organization = lab.create_organization("Quill");
    lab.backfill().await;
    lab.refresh().await;
    let catch_up = lab.catch_up_of_all_kinds();
    let lead = object(json!({"slug": "org-lead", "name": "Lead"}));
    lab.workos.create_organization_role(&organization, &lead).unwrap();
    lab.workos.add_domain(&organization, "quill.example.test").unwrap();
    lab.pass(60);
    catch_up.step().await.unwrap();
    let requested = "select count(*) from workos.refreshes";
    assert_eq!(lab.count(requested).await, 2, "one for each list or object");
    assert_eq!(lab.refresh().await, 2);
    assert_eq!(lab.count(requested).await, 0);
    let own = "select count(*) from workos.organization_roles where slug = 'org-lead' and name = 'Lead'";
    assert_eq!(lab.count(own).await, 1);
    assert_eq!(lab.count("select count(*) from workos.organization_roles").await, 1, "its own roles alone");
    assert_eq!(lab.count("select jsonb_array_length(domains)::bigint from workos.organizations").await, 1);
    let expected = format!("{organization}/org-lead");
    assert!(changes(&lab).await.iter().any(|(kind, id, _)| kind == "organization_role.created" && *id == expected));
    lab.workos.delete_organization_role(&organization, "org-lead").unwrap();
    lab.pass(60);
    catch_up.step().await.unwrap();
    lab.refresh().await;
    assert_eq!(lab.count("select count(*) from workos.organization_roles").await, 0);
}

#[tokio::test]
async fn a_list_that_was_read_earlier_replaces_none_and_its_request_stays() {
    let lab = Lab::new().await;
    lab.backfill().await;
    lab.refresh().await;
    lab.workos.create_role(&object(json!({"slug": "billing"}))).unwrap();
    sqlx::query("insert into workos.refreshes (kind, id) values ('roles', '')").execute(&lab.pool).await.unwrap();
    lab.pass(-60);
    lab.refresh().await;
    assert_eq!(names(&roles(&lab).await), ["admin", "member"]);
    let postponed = "select count(*) from workos.refreshes where attempts = 1 and due_at > now()";
    assert_eq!(lab.count(postponed).await, 1);
    lab.pass(120);
    sqlx::query("update workos.refreshes set due_at = now()").execute(&lab.pool).await.unwrap();
    lab.refresh().await;
    assert_eq!(names(&roles(&lab).await), ["billing", "admin", "member"]);
}

#[tokio::test]
async fn a_membership_of_an_unknown_organization_has_it_read() {
    let lab = Lab::new().await;
    let (user, organization) = (lab.create_user("Ada"), lab.create_organization("Quill"));
    lab.backfill().await;
    lab.refresh().await;
    // Only the event of the membership arrives.
    lab.pass(7_200);
    sqlx::query("update workos.catch_up set range_start = range_start + interval '2 hours', earliest_range_start = earliest_range_start + interval '2 hours'")
        .execute(&lab.pool)
        .await
        .unwrap();
    lab.add_member(&user, &organization);
    lab.pass(60);
    lab.catch_up_of_all_kinds().step().await.unwrap();
    assert_eq!(lab.count("select count(*) from workos.active_memberships").await, 0);
    assert_eq!(lab.count("select count(*) from workos.refreshes where kind = 'organization'").await, 1);
    lab.refresh().await;
    assert_eq!(lab.count("select count(*) from workos.active_memberships").await, 1);
}

#[tokio::test]
async fn a_wrong_route_or_a_short_list_deletes_no_role() {
    let lab = Lab::new().await;
    lab.backfill().await;
    lab.refresh().await;
    // A server whose list is short, whose role by slug is there, and whose lists of organizations have no role at all.
    let role = json!({"object": "role", "slug": "member", "type": "EnvironmentRole"});
    let list = json!({"object": "list", "data": [role]});
    let empty = json!({"object": "list", "data": []});
    let short = Router::new()
        .route("/authorization/roles", get(async move || Json(list)))
        .route("/authorization/roles/{slug}", get(async |Path(slug): Path<String>| Json(json!({"slug": slug}))))
        .route("/authorization/permissions", get(async move || Json(empty)));
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move { axum::serve(listener, short).await });
    age(&lab).await;
    let clock: Clock = lab.clock.clone();
    let api = Api::new(&base, ApiKey::new("sk_test"), clock.clone()).unwrap();
    let client_id = lab.workos.client_id();
    let context = job_context(lab.pool.clone(), &client_id, Duration::from_secs(20), api, &clock, 1);
    lab.free_leases().await;
    assert_eq!(Refresh::new(context).step().await.unwrap(), Some(RefreshStep::Read));
    server.abort();
    assert_eq!(lab.count("select count(*) from workos.roles").await, 2, "the role was found by slug");
    // Every route answers 404 in the format of WorkOS.
    lab.free_leases().await;
    age(&lab).await;
    let gone = json!({"object": "role", "slug": "admin"});
    lab.workos.set_api_faults(authkit_sync::dev::workos::ApiFaults {
        missing_routes: vec!["/authorization/roles".to_owned()],
        ..Default::default()
    });
    assert!(Refresh::new(lab.context()).step().await.is_err(), "{gone}");
    assert_eq!(lab.count("select count(*) from workos.roles").await, 2);
}
