//! The service with a WorkOS that answers 404 like WorkOS's emulator, and with a server that is not WorkOS.

use authkit_sync::dev::workos::{ApiFaults, Faults};
use authkit_sync::sync::job::JobError;
use authkit_sync::sync::reconcile::Mode;

use crate::support::binary::{Served, free_address};
use crate::support::lab::Lab;
use crate::support::service::Answer;

/// A service that reads through.
fn serve(lab: &Lab) -> Served {
    let environment = lab.environment();
    let mut environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    environment.push(("AUTHKIT_SYNC_READ_THROUGH", "on"));
    Served::start(&lab.database.url(), free_address(), &environment)
}

async fn lookup(lab: &Lab, served: &Served, user: &str) -> (u16, String) {
    let token = lab.workos.token(user, "session_1", 300).unwrap();
    let client = authkit_sync::workos::http::http_client().unwrap();
    let request = client.get(served.url("/auth/user")).bearer_auth(token);
    let answer = Answer::of(request.send().await.unwrap()).await;
    if answer.status == 200 { (200, String::new()) } else { answer.code() }
}

fn emulator() -> ApiFaults {
    ApiFaults { emulator_not_found: true, ..ApiFaults::default() }
}

/// No user can be read by ID, although WorkOS lists them.
fn without_users_by_id(html: bool) -> ApiFaults {
    let missing_routes = vec!["/user_management/users/".to_owned()];
    ApiFaults { missing_routes, missing_routes_html: html, ..ApiFaults::default() }
}

fn not_found() -> (u16, String) {
    (404, "user_not_found".to_owned())
}

fn not_synced() -> (u16, String) {
    (503, "user_not_synced".to_owned())
}

async fn dead(lab: &Lab) -> i64 {
    lab.count("select count(*) from workos.user_records where synced_deleted").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_through_and_reconcile_work_with_workos_emulator() {
    let lab = Lab::new().await;
    lab.workos.set_faults(Faults { drop: 100, ..Faults::default() });
    lab.workos.set_api_faults(emulator());
    // There are no users here and at WorkOS, so no check is needed.
    assert_eq!(lookup(&lab, &serve(&lab), "user_nobody").await, not_found());
    let ids = lab.create_users(3);
    let served = serve(&lab);
    assert_eq!(lookup(&lab, &served, "user_nobody").await, not_found(), "a listed user is the witness");
    assert_eq!(lookup(&lab, &served, &ids[0]).await.0, 200);
    lab.clock.set(lab.clock.now().plus_seconds(1));
    lab.backfill().await;
    lab.workos.delete_user(&ids[1]).unwrap();
    lab.clock.set(lab.clock.now().plus_seconds(60));
    let report = lab.reconcile(Mode::Repair).await.unwrap();
    assert_eq!((report.counts.tombstoned, dead(&lab).await), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_route_is_no_unknown_user_and_confirms_no_deletion() {
    for html in [false, true] {
        let lab = Lab::new().await;
        lab.workos.set_faults(Faults { drop: 100, ..Faults::default() });
        let ids = lab.create_users(3);
        lab.clock.set(lab.clock.now().plus_seconds(1));
        lab.workos.set_api_faults(without_users_by_id(html));
        let served = serve(&lab);
        assert_eq!(lookup(&lab, &served, &ids[0]).await, not_synced(), "it is alive there; html: {html}");
        // The whole address is wrong.
        let missing_routes = vec!["/".to_owned()];
        let wrong_address = ApiFaults { missing_routes, missing_routes_html: html, ..ApiFaults::default() };
        lab.workos.set_api_faults(wrong_address.clone());
        assert_eq!(lookup(&lab, &served, "user_nobody").await, not_synced());
        lab.workos.set_api_faults(ApiFaults::default());
        lab.backfill().await;
        lab.workos.unlist(&ids[1]);
        lab.clock.set(lab.clock.now().plus_seconds(60));
        lab.free_leases().await;
        lab.workos.set_api_faults(without_users_by_id(html));
        // Even with the operator's permission, no user becomes a tombstone.
        lab.context().store.accept_deletions().await.unwrap();
        for mode in [Mode::Check, Mode::Repair] {
            let outcome = lab.reconcile(mode).await;
            assert!(matches!(outcome, Err(JobError::NotConfirmed | JobError::Api(_))), "html: {html}: {outcome:?}");
            assert!(html || matches!(outcome, Err(JobError::NotConfirmed)), "{outcome:?}");
            lab.free_leases().await;
        }
        assert_eq!(dead(&lab).await, 0);
        lab.workos.set_api_faults(wrong_address);
        assert!(lab.reconcile(Mode::Repair).await.is_err());
        assert_eq!(dead(&lab).await, 0);
    }
}
