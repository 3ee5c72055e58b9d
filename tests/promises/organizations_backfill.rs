//! The backfill of organizations, memberships and roles.

use authkit_sync::dev::workos::ApiFaults;
use authkit_sync::domain::kinds::Kinds;
use authkit_sync::store::scans::{ScanCounts, ScanKind};
use authkit_sync::sync::backfill::organizations::{KindCounts, OrganizationsBackfill, OrganizationsStep};
use authkit_sync::sync::job::JobContext;
use authkit_sync::sync::runner::BackgroundLoop;
use serde_json::json;

use crate::support::binary::{Served, free_address};
use crate::support::lab::{Lab, object};
use crate::support::service::until;

const ACTIVE: &str = "select count(*) from workos.active_memberships";
const STORED: &str = "select count(*) from workos.organization_memberships";

/// Runs the backfill to its end.
pub(crate) async fn backfill(context: JobContext) -> KindCounts {
    let backfill = OrganizationsBackfill::new(context, false);
    loop {
        match backfill.step().await.unwrap() {
            Some(OrganizationsStep::Done(counts)) => return counts,
            Some(OrganizationsStep::Page { .. }) => {}
            None => panic!("another process runs the backfill"),
        }
    }
}

/// Creates users, and organizations of which each has all of them as members.
pub(crate) fn populate(lab: &Lab, users: usize, organizations: usize) -> Vec<String> {
    let users = lab.create_users(users);
    let create = |at: usize| {
        let organization = lab.create_organization(&format!("Organization {at}"));
        for user in &users {
            lab.add_member(user, &organization);
        }
        lab.pass(1);
        organization
    };
    (0..organizations).map(create).collect()
}

#[tokio::test]
async fn every_organization_and_every_membership_of_any_status_is_read() {
    let lab = Lab::new().await;
    let organizations = populate(&lab, 3, 4);
    let user = lab.create_user("Grace");
    let given = json!({"user_id": user, "organization_id": organizations[1], "status": "pending"});
    lab.workos.create_membership(&object(given)).unwrap();
    let first = lab.workos.memberships()[0]["id"].as_str().unwrap().to_owned();
    lab.workos.deactivate_membership(&first).unwrap();
    let lead = object(json!({"slug": "org-lead"}));
    lab.workos.create_organization_role(&organizations[2], &lead).unwrap();
    lab.backfill().await;
    let counts = backfill(lab.context()).await;
    let new = |new| ScanCounts { new, ..ScanCounts::default() };
    assert_eq!((counts.organizations, counts.memberships), (new(4), new(13)));
    assert_eq!((lab.count(STORED).await, lab.count(ACTIVE).await), (13, 11));
    assert_eq!(lab.count("select count(*) from workos.organization_roles").await, 1);
    let live = "select count(*) from workos.changes where object_id is not null and origin <> 'backfill'";
    assert_eq!(lab.count(live).await, 0, "what a backfill finds may be years old");
    let again = backfill(lab.context()).await;
    assert_eq!((again.organizations.unchanged, again.memberships.unchanged), (4, 13));
}

#[tokio::test]
async fn an_interrupted_backfill_continues_after_the_last_complete_organization() {
    let lab = Lab::new().await;
    let organizations = populate(&lab, 5, 6);
    lab.workos.set_api_faults(ApiFaults { page_limit: Some(2), ..ApiFaults::default() });
    lab.backfill().await;
    let memberships = "/user_management/organization_memberships";
    let store = lab.context().store;
    let first = OrganizationsBackfill::new(lab.context(), false);
    // The third organization is read in part.
    while lab.workos.requests(memberships) < 8 {
        first.step().await.unwrap();
    }
    drop(first);
    let state = store.scan_state(ScanKind::BackfillMemberships).await.unwrap();
    assert_eq!(state.position.unwrap().0, organizations[1]);
    assert!(store.scan_state(ScanKind::BackfillOrganizations).await.unwrap().completed_at.is_some());
    assert!(!store.progress().await.unwrap().memberships.backfill_completed);
    assert_eq!(store.progress().await.unwrap().memberships.organizations_left, Some(4));
    lab.free_leases().await;
    let second = OrganizationsBackfill::new(lab.context(), false);
    while !store.progress().await.unwrap().memberships.backfill_completed {
        // A tick reads only what is missing.
        second.tick().await;
    }
    assert_eq!(lab.workos.requests(memberships), 8 + 4 * 3, "only what was not complete is read again");
    assert_eq!(lab.count(ACTIVE).await, 30);
    let progress = store.progress().await.unwrap();
    assert_eq!((progress.memberships.organizations_left, progress.organizations.read), (None, 6));
}

#[tokio::test]
async fn an_installation_that_has_synced_only_users_reads_the_other_kinds_by_itself() {
    let lab = Lab::new().await;
    populate(&lab, 2, 2);
    lab.backfill().await;
    let users = "select completed_at::text from workos.scans where kind = 'backfill'";
    let before: String = sqlx::query_scalar(users).fetch_one(&lab.pool).await.unwrap();
    let backfill = OrganizationsBackfill::new(lab.context(), false);
    let store = lab.context().store;
    let roles = async || store.scan_state(ScanKind::BackfillOrganizationRoles).await.unwrap().completed_at;
    while roles().await.is_none() {
        backfill.tick().await;
    }
    assert_eq!(lab.count(ACTIVE).await, 4);
    let after: String = sqlx::query_scalar(users).fetch_one(&lab.pool).await.unwrap();
    assert_eq!(after, before, "the backfill of users is not repeated");
    let requests = lab.workos.all_requests();
    backfill.tick().await;
    assert_eq!(lab.workos.all_requests(), requests, "a complete backfill is not repeated");
}

#[tokio::test]
async fn an_organization_that_vanishes_during_the_walk_is_no_error() {
    for unknown_lists_empty in [false, true] {
        let lab = Lab::new().await;
        let organizations = populate(&lab, 2, 3);
        lab.backfill().await;
        let job = OrganizationsBackfill::new(lab.context(), false);
        job.step().await.unwrap();
        lab.workos.set_api_faults(ApiFaults { unknown_lists_empty, ..ApiFaults::default() });
        lab.workos.delete_organization(&organizations[1]).unwrap();
        while !matches!(job.step().await.unwrap(), Some(OrganizationsStep::Done(_))) {}
        assert_eq!(lab.count(ACTIVE).await, 4);
        assert_eq!(lab.count("select count(*) from workos.organizations").await, 3, "a backfill deletes nothing");
    }
}

#[tokio::test]
async fn a_disabled_kind_is_not_read() {
    let lab = Lab::new().await;
    populate(&lab, 1, 1);
    lab.backfill().await;
    let before = lab.workos.all_requests();
    assert_eq!(backfill(lab.context().syncing(Kinds::USERS)).await, KindCounts::default());
    assert_eq!(lab.workos.all_requests(), before);
    let kinds = Kinds { memberships: false, ..Kinds::ALL };
    backfill(lab.context().syncing(kinds)).await;
    assert_eq!((lab.count("select count(*) from workos.organizations").await, lab.count(STORED).await), (1, 0));
    assert!(!lab.context().store.progress().await.unwrap().memberships.backfill_completed);
}

#[tokio::test]
async fn a_failed_page_is_read_again_and_a_dry_run_writes_nothing() {
    let lab = Lab::new().await;
    populate(&lab, 2, 2);
    lab.backfill().await;
    let dry = OrganizationsBackfill::new(lab.context(), true);
    let counts = loop {
        if let Some(OrganizationsStep::Done(counts)) = dry.step().await.unwrap() {
            break counts;
        }
    };
    assert_eq!((counts.organizations.new, counts.memberships.new), (2, 4));
    assert_eq!(lab.count("select count(*) from workos.organization_records").await, 0);
    lab.workos.set_api_faults(ApiFaults { error: 40, cut: 10, ..ApiFaults::default() });
    let job = OrganizationsBackfill::new(lab.context(), false);
    let mut failures = 0;
    loop {
        match job.step().await {
            Ok(Some(OrganizationsStep::Done(counts))) => {
                assert_eq!((counts.organizations.new, counts.memberships.new), (2, 4));
                break;
            }
            Ok(_) => {}
            Err(_) => failures += 1,
        }
    }
    assert!(failures > 0 && lab.count(ACTIVE).await == 4, "{failures} failures");
}

/// A measurement: `cargo test --test promises a_thousand_organizations -- --ignored --nocapture`.
#[tokio::test]
#[ignore = "takes minutes"]
async fn a_thousand_organizations_with_a_hundred_thousand_memberships_are_read() {
    let lab = Lab::new().await;
    populate(&lab, 100, 1_000);
    lab.backfill().await;
    let (requests, began) = (lab.workos.all_requests(), std::time::Instant::now());
    let counts = backfill(lab.context()).await;
    let requests = lab.workos.all_requests() - requests;
    println!("{counts:?}: {requests} requests, {:?} without the pauses between requests", began.elapsed());
    assert_eq!((counts.organizations.new, counts.memberships.new), (1_000, 100_000));
    assert_eq!(lab.count(ACTIVE).await, 100_000);
}

/// Every replica and every command would wait for a lease that a process keeps without work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_completed_backfill_releases_its_lease_so_that_the_command_can_run() {
    let lab = Lab::new().await;
    let user = lab.create_user("Ada");
    lab.add_member(&user, &lab.create_organization("Acme"));
    let environment = lab.environment();
    let mut environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    environment.push(("AUTHKIT_SYNC_BACKFILL", "auto"));
    let served = Served::start(&lab.database.url(), free_address(), &environment);
    until("the log says that both are complete", async || {
        let log = served.log();
        log.contains("backfill of organizations") && log.contains("backfill of memberships")
    })
    .await;
    until("no lease is left", async || {
        lab.count("select count(*) from workos.leases where job like 'backfill%'").await == 0
    })
    .await;
    let (code, out, err) = lab.run(&["backfill"]).await;
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("memberships: 0 new, 0 updated, 1 unchanged"), "{out}");
}
