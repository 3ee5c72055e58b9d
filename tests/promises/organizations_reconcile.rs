//! The reconcile of organizations and memberships: only a 404 by ID deletes, after a complete walk.

use authkit_sync::dev::workos::{ApiFaults, Cascades};
use authkit_sync::sync::job::{JobContext, JobError};
use authkit_sync::sync::reconcile::Mode;
use authkit_sync::sync::reconcile::organizations::{
    OrganizationsReconcile, OrganizationsReconcileStep, OrganizationsReport,
};

use crate::organizations_backfill::{backfill, populate};
use crate::support::lab::Lab;

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
