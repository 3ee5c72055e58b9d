//! The reconcile of organizations and memberships: only a 404 by ID deletes an object, after all lists were read.

use authkit_sync::dev::workos::{ApiFaults, Cascades};
use authkit_sync::domain::kinds::Kinds;
use authkit_sync::sync::drift::Drift;
use authkit_sync::sync::job::{JobContext, JobError};
use authkit_sync::sync::reconcile::Mode;
use authkit_sync::sync::reconcile::organizations::{
    OrganizationsReconcile, OrganizationsReconcileStep, OrganizationsReport,
};

use serde_json::json;

use crate::organizations_backfill::{backfill, populate};
use crate::support::lab::{Lab, object};

const ACTIVE: &str = "select count(*) from workos.active_memberships";
const LIVE: &str = "select count(*) from workos.organization_membership_records where not synced_deleted";
const ORGANIZATIONS: &str = "select count(*) from workos.organizations";

async fn reconcile(context: JobContext, mode: Mode) -> Result<OrganizationsReport, JobError> {
    let reconcile = OrganizationsReconcile::new(context, mode, None);
    loop {
        match reconcile.step().await? {
            Some(OrganizationsReconcileStep::Done(report)) => return Ok(report),
            Some(OrganizationsReconcileStep::InProgress { .. }) => {}
            None => panic!("another process reconciles"),
        }
    }
}

async fn synced(users: usize, organizations: usize) -> (Lab, Vec<String>) {
    let lab = Lab::new().await;
    let organizations = populate(&lab, users, organizations);
    lab.backfill().await;
    backfill(lab.context()).await;
    lab.refresh().await;
    (lab, organizations)
}

#[tokio::test]
async fn lost_events_are_found_and_reported_by_a_check_before_a_repair() {
    let (lab, organizations) = synced(3, 3).await;
    let memberships = lab.workos.memberships();
    let id = |at: usize| memberships[at]["id"].as_str().unwrap().to_owned();
    lab.workos.deactivate_membership(&id(0)).unwrap();
    lab.workos.remove_membership(&id(1)).unwrap();
    let user = lab.create_user("Grace");
    let new = lab.add_member(&user, &organizations[2]);
    lab.pass(60);
    let check = reconcile(lab.context(), Mode::Check).await.unwrap();
    let mut drifted: Vec<&str> = check.drift.iter().map(|drift| drift.id.as_str()).collect();
    drifted.sort_unstable();
    let (id0, id1) = (id(0), id(1));
    let mut expected = [&*id0, &*id1, &*new];
    expected.sort_unstable();
    assert_eq!(drifted, expected);
    assert_eq!(lab.count(ACTIVE).await, 9, "a check changes nothing");
    lab.backfill().await;
    let report = reconcile(lab.context(), Mode::Repair).await.unwrap();
    let counts = report.counts.memberships;
    assert_eq!((counts.new, counts.updated, counts.unchanged, counts.tombstoned), (1, 1, 7, 1));
    assert_eq!((lab.count(ACTIVE).await, lab.count(LIVE).await), (8, 9));
    let again = reconcile(lab.context(), Mode::Check).await.unwrap();
    assert!(again.drift.is_empty(), "{:?}", again.drift);
}

#[tokio::test]
async fn a_check_compares_roles_with_their_permissions_and_a_repair_reads_them_again() {
    let (lab, organizations) = synced(1, 2).await;
    let organization = &*organizations[0];
    for slug in ["orders:read", "orders:write"] {
        lab.workos.create_permission(&object(json!({"slug": slug}))).unwrap();
    }
    lab.workos.create_role(&object(json!({"slug": "billing", "permissions": ["orders:read"]}))).unwrap();
    let own = json!({"slug": "org-support", "permissions": ["orders:read"]});
    lab.workos.create_organization_role(organization, &object(own)).unwrap();
    lab.pass(60);
    let checked = async || {
        let mut drift: Vec<String> = check(&lab).await.iter().map(ToString::to_string).collect();
        drift.sort_unstable();
        drift
    };
    let missing = [
        "permission orders:read  missing here".to_owned(),
        "permission orders:write  missing here".to_owned(),
        "role billing  missing here".to_owned(),
        format!("role {organization}/org-support  missing here"),
    ];
    assert_eq!(checked().await, missing);
    assert_eq!(checked().await, missing, "a check changes nothing");
    reconcile(lab.context(), Mode::Repair).await.unwrap();
    assert_eq!(checked().await, Vec::<String>::new());
    lab.workos.update_role("billing", &object(json!({"permissions": ["orders:read", "orders:write"]}))).unwrap();
    lab.workos.delete_organization_role(organization, "org-support").unwrap();
    lab.workos.delete_permission("orders:write").unwrap();
    lab.pass(60);
    let drift = checked().await;
    assert!(
        drift.contains(&format!("role {organization}/org-support  live here, but WorkOS does not know it")),
        "{drift:?}"
    );
    assert!(drift.contains(&"permission orders:write  live here, but WorkOS does not know it".to_owned()), "{drift:?}");
    // If roles are not synced, they are not reported as different.
    let kinds = Kinds { roles: false, ..Kinds::ALL };
    let unsynced = reconcile(lab.context().syncing(kinds), Mode::Check).await.unwrap();
    assert!(unsynced.drift.is_empty(), "{:?}", unsynced.drift);
}

async fn check(lab: &Lab) -> Vec<Drift> {
    reconcile(lab.context(), Mode::Check).await.unwrap().drift
}

#[tokio::test]
async fn a_deleted_organization_ends_all_its_memberships_by_one_read_and_without_counting() {
    for bare_not_found in [false, true] {
        let (lab, organizations) = synced(8, 3).await;
        lab.workos.set_cascades(Cascades { memberships: false, ..Cascades::default() });
        lab.workos.delete_organization(&organizations[1]).unwrap();
        lab.workos.set_api_faults(ApiFaults { bare_not_found, ..ApiFaults::default() });
        let path = format!("/organizations/{}", organizations[1]);
        let report = reconcile(lab.context(), Mode::Repair).await.unwrap();
        assert_eq!((report.counts.organizations.tombstoned, report.counts.memberships.tombstoned), (1, 8));
        assert_eq!(lab.workos.requests(&path), 1);
        assert_eq!((lab.count(ORGANIZATIONS).await, lab.count(LIVE).await), (2, 16));
        let feed = "select count(*) from workos.changes where kind = 'organization_membership.deleted' and origin = 'reconcile'";
        assert_eq!(lab.count(feed).await, 8);
    }
}

#[tokio::test]
async fn memberships_of_an_organization_that_an_event_deleted_end_too() {
    let (lab, organizations) = synced(8, 2).await;
    lab.workos.set_cascades(Cascades { memberships: false, ..Cascades::default() });
    lab.workos.delete_organization(&organizations[0]).unwrap();
    lab.pass(60);
    lab.catch_up_of_all_kinds().step().await.unwrap();
    assert_eq!((lab.count(ACTIVE).await, lab.count(LIVE).await), (8, 16), "ended at once in the views");
    let report = reconcile(lab.context(), Mode::Repair).await.unwrap();
    assert_eq!((report.counts.organizations.tombstoned, report.counts.memberships.tombstoned), (0, 8));
    assert_eq!(lab.count(LIVE).await, 8);
}

#[tokio::test]
async fn more_deletions_than_the_limit_need_the_permission_of_the_operator() {
    let (lab, _) = synced(4, 4).await;
    for membership in lab.workos.memberships().iter().take(6) {
        lab.workos.remove_membership(membership["id"].as_str().unwrap()).unwrap();
    }
    let outcome = reconcile(lab.context(), Mode::Repair).await;
    assert!(matches!(outcome, Err(JobError::TooMany { bound: 5, .. })), "{outcome:?}");
    assert_eq!(lab.count(LIVE).await, 16, "nothing was deleted");
    let store = lab.context().store;
    store.accept_deletions().await.unwrap();
    lab.free_leases().await;
    reconcile(lab.context(), Mode::Repair).await.unwrap();
    assert_eq!(lab.count(LIVE).await, 10);
    assert!(!store.organization_deletions_accepted().await.unwrap(), "it was for one reconcile");
    assert!(store.deletions_accepted().await.unwrap(), "the reconcile of users has its own");
}

#[tokio::test]
async fn what_is_not_listed_but_live_at_workos_stays() {
    let (lab, organizations) = synced(3, 3).await;
    let membership = lab.workos.memberships()[4]["id"].as_str().unwrap().to_owned();
    lab.workos.unlist(&membership);
    lab.workos.unlist(&organizations[2]);
    let report = reconcile(lab.context(), Mode::Repair).await.unwrap();
    assert_eq!((report.counts.organizations.tombstoned, report.counts.memberships.tombstoned), (0, 0));
    assert_eq!((lab.count(ORGANIZATIONS).await, lab.count(ACTIVE).await), (3, 9));
}

#[tokio::test]
async fn an_empty_list_or_a_missing_route_deletes_nothing() {
    let (lab, organizations) = synced(2, 3).await;
    for organization in &organizations {
        lab.workos.unlist(organization);
    }
    let outcome = reconcile(lab.context(), Mode::Repair).await;
    assert!(matches!(outcome, Err(JobError::EmptyList { live: 3, .. })), "{outcome:?}");
    let (lab, organizations) = synced(2, 3).await;
    lab.workos.unlist(&organizations[0]);
    let missing_routes = vec!["/organizations/".to_owned()];
    lab.workos.set_api_faults(ApiFaults { missing_routes, ..ApiFaults::default() });
    let outcome = reconcile(lab.context(), Mode::Repair).await;
    assert!(matches!(outcome, Err(JobError::NotConfirmed)), "{outcome:?}");
    assert_eq!((lab.count(ORGANIZATIONS).await, lab.count(ACTIVE).await), (3, 6));
}

#[tokio::test]
async fn an_organization_that_is_deleted_during_the_walk_loses_no_other_row() {
    let (lab, organizations) = synced(3, 3).await;
    let job = OrganizationsReconcile::new(lab.context(), Mode::Repair, None);
    job.step().await.unwrap();
    lab.workos.set_cascades(Cascades { memberships: false, ..Cascades::default() });
    lab.workos.delete_organization(&organizations[1]).unwrap();
    while !matches!(job.step().await.unwrap(), Some(OrganizationsReconcileStep::Done(_))) {}
    assert_eq!((lab.count(ORGANIZATIONS).await, lab.count(ACTIVE).await), (3, 9), "the next one finds it");
    reconcile(lab.context(), Mode::Repair).await.unwrap();
    assert_eq!((lab.count(ORGANIZATIONS).await, lab.count(LIVE).await), (2, 6));
}
