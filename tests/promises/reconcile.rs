//! Promise 6: a deletion is confirmed before it is inferred. Also tests the other parts of the comparison.

use authkit_sync::dev::workos::{ApiFaults, Faults};
use authkit_sync::domain::decide::Stored;
use authkit_sync::domain::event::{Observation, Origin, Outcome};
use authkit_sync::store::{Store, StoreError};
use authkit_sync::sync::apply;
use authkit_sync::sync::job::JobError;
use authkit_sync::sync::reconcile::{Mode, Reconcile, ReconcileStep};
use authkit_sync::sync::runner::BackgroundLoop;
use serde_json::{Value, json};

use crate::support::events::{at, observed};
use crate::support::lab::{Lab, another_workos};

/// A lab with this many users in the table. WorkOS sends no event about them any more.
async fn silent(users: usize) -> (Lab, Vec<String>) {
    let lab = Lab::new().await;
    lab.workos.set_faults(Faults { drop: 100, ..Faults::default() });
    let ids = lab.create_users(users);
    lab.clock.set(lab.clock.now().plus_seconds(1));
    lab.backfill().await;
    lab.clock.set(lab.clock.now().plus_seconds(60));
    lab.free_leases().await;
    (lab, ids)
}

async fn dead(lab: &Lab) -> i64 {
    lab.count("select count(*) from workos.user_records where synced_deleted").await
}

#[tokio::test]
async fn drift_is_shown_by_id_and_field_and_then_repaired() {
    let (lab, ids) = silent(8).await;
    lab.rename(&ids[0], "Renamed");
    lab.workos.sign_in(&ids[1]).unwrap();
    lab.workos.delete_user(&ids[2]).unwrap();
    let missing = lab.create_user("Grace");
    lab.clock.set(lab.clock.now().plus_seconds(1));
    let (code, out, err) = lab.run(&["reconcile", "--check"]).await;
    assert_eq!(code, 1, "{err}");
    for line in [
        format!("{}  outdated: first_name, name, updated_at", ids[0]),
        format!("{}  live here, but WorkOS does not know it", ids[2]),
        format!("{missing}  missing here"),
        "check, nothing changed\nusers: 1 new, 1 updated, 6 unchanged, 1 deleted, 0 quarantined\norganizations: 0 new"
            .to_owned(),
    ] {
        assert!(out.contains(&line), "{line} in {out}");
    }
    assert!(!out.contains(&ids[1]), "a plain sign-in is no difference: {out}");
    assert!(!out.contains("Renamed") && !out.contains("@example.test"), "values are shown: {out}");
    assert_eq!(dead(&lab).await, 0, "a check changes nothing");
    let (code, out, _) = lab.run(&["reconcile", "--json"]).await;
    let summary: Value = serde_json::from_str(&out).unwrap();
    let expected = json!({"new": 1, "updated": 2, "unchanged": 5, "tombstoned": 1, "quarantined": 0});
    assert_eq!((code, &summary["users"]), (0, &expected));
    let (code, out, _) = lab.run(&["reconcile", "--check", "--json"]).await;
    assert_eq!(code, 0, "{out}");
    assert!(matches!(lab.context().store.user(&ids[2]).await.unwrap(), Stored::Tombstone { deleted_at: Some(_), .. }));
    let erased = "select count(*) from workos.events where user_id is not null and payload is not null and user_id in (select id from workos.user_records where synced_deleted)";
    assert_eq!(lab.count(erased).await, 0);
}

#[tokio::test]
async fn too_many_inferred_deletions_stop_until_the_operator_accepts_them() {
    let (lab, ids) = silent(30).await;
    for id in ids.iter().take(6) {
        lab.workos.delete_user(id).unwrap();
    }
    // Their events are lost.
    lab.clock.set(lab.clock.now().plus_seconds(60 * 86_400));
    let (code, _, err) = lab.run(&["reconcile"]).await;
    assert_eq!(code, 1);
    assert!(err.contains("more than 5 users no longer exist") && err.contains("--accept-deletions"), "{err}");
    assert_eq!(dead(&lab).await, 0);
    let (code, out, err) = lab.run(&["reconcile", "--accept-deletions"]).await;
    assert_eq!((code, dead(&lab).await), (0, 6), "{out}{err}");
    // The permission applied to one reconcile only.
    for id in ids.iter().skip(6).take(6) {
        lab.workos.delete_user(id).unwrap();
    }
    assert!(matches!(lab.reconcile(Mode::Repair).await, Err(JobError::TooMany { bound: 5, .. })));
    assert_eq!(dead(&lab).await, 6);
}

#[tokio::test]
async fn a_few_inferred_deletions_need_no_permission() {
    let (lab, ids) = silent(12).await;
    for id in ids.iter().take(5) {
        lab.workos.delete_user(id).unwrap();
    }
    let report = lab.reconcile(Mode::Repair).await.unwrap();
    assert_eq!((report.counts.tombstoned, dead(&lab).await), (5, 5));
}

#[tokio::test]
async fn an_empty_list_infers_no_deletion_even_with_permission() {
    let (lab, _) = silent(3).await;
    let empty = another_workos(&lab.clock, fastrand::u64(..), None).await;
    let context = lab.context_of(&empty, &empty.api_key());
    context.store.accept_deletions().await.unwrap();
    let outcome = crate::support::lab::reconcile(context, Mode::Repair).await;
    assert!(matches!(outcome, Err(JobError::EmptyList { live: 3, .. })), "{outcome:?}");
    assert_eq!(dead(&lab).await, 0);
}

/// Found by seed 14 of the simulation: such a reconcile stopped, as if WorkOS had lost all users.
#[tokio::test]
async fn a_first_user_who_is_created_after_the_empty_list_was_read_stops_no_reconcile() {
    let (lab, _) = silent(0).await;
    let reconcile = Reconcile::new(lab.context(), Mode::Repair, None);
    assert!(matches!(reconcile.step().await, Ok(Some(ReconcileStep::InProgress { .. }))), "the empty list is read");
    lab.clock.set(lab.clock.now().plus_seconds(5));
    lab.create_user("Born");
    let born = observed("user.created", 0, &lab.workos.users()[0]);
    apply(&lab.context().store, Origin::Webhook, &[born]).await.unwrap();
    while !matches!(reconcile.step().await.unwrap(), Some(ReconcileStep::Done(_))) {}
    assert_eq!(lab.count("select count(*) from workos.users").await, 1);
}

#[tokio::test]
async fn a_user_created_during_the_scan_or_missing_from_the_list_is_not_deleted() {
    let (lab, ids) = silent(6).await;
    lab.workos.set_api_faults(ApiFaults { page_limit: Some(2), ..ApiFaults::default() });
    let reconcile = Reconcile::new(lab.context(), Mode::Repair, None);
    reconcile.step().await.unwrap();
    lab.clock.set(lab.clock.now().plus_seconds(5));
    let born = observed("user.created", 0, &{
        let id = lab.create_user("Born");
        lab.workos.users().into_iter().find(|user| user["id"] == id).unwrap()
    });
    apply(&lab.context().store, Origin::Webhook, std::slice::from_ref(&born)).await.unwrap();
    lab.workos.delete_user(&ids[5]).unwrap();
    lab.workos.unlist(&ids[3]);
    loop {
        if let Some(ReconcileStep::Done(_)) = reconcile.step().await.unwrap() {
            break;
        }
    }
    assert_eq!(dead(&lab).await, 1, "only the user that WorkOS does not know by ID");
    assert!(matches!(lab.context().store.user(born.user_id().unwrap()).await.unwrap(), Stored::Live { .. }));
}

#[tokio::test]
async fn a_tombstone_workos_contradicts_is_reported_and_stays() {
    let (lab, ids) = silent(4).await;
    let word = observed("user.deleted", 0, &json!({"id": ids[1]}));
    apply(&lab.context().store, Origin::Webhook, &[word]).await.unwrap();
    let (code, out, _) = lab.run(&["reconcile", "--check"]).await;
    assert_eq!((code, out.contains(&format!("{}  deleted here, but live at WorkOS", ids[1]))), (1, true), "{out}");
    let (code, out, _) = lab.run(&["reconcile"]).await;
    assert_eq!((code, out.contains("a deleted object is never revived")), (0, true), "{out}");
    assert_eq!(dead(&lab).await, 1);
}

#[tokio::test]
async fn a_copied_database_is_rebound_and_the_users_of_the_old_environment_are_deleted() {
    let (lab, ids) = silent(9).await;
    let staging = another_workos(&lab.clock, fastrand::u64(..), None).await;
    staging.create_user(&crate::support::lab::object(json!({"email": "s@example.test"}))).unwrap();
    lab.clock.set(lab.clock.now().plus_seconds(5));
    let port = staging.base_url().rsplit(':').next().unwrap().to_owned();
    let (client_id, key) = (staging.client_id(), staging.api_key());
    let to = [
        ("WORKOS_API_PORT", port.as_str()),
        ("WORKOS_API_KEY", key.as_str()),
        ("WORKOS_CLIENT_ID", client_id.as_str()),
    ];
    let (code, _, err) = lab.run_with(&["backfill"], &to).await;
    assert_eq!((code, err.contains("authkit-sync rebind")), (78, true), "{err}");
    let (code, out, err) = lab.run_with(&["rebind"], &to).await;
    assert_eq!((code, out.contains(&client_id)), (0, true), "{out}{err}");
    let (code, _, err) = lab.run_with(&["backfill"], &to).await;
    assert_eq!(code, 0, "{err}");
    let (code, _, err) = lab.run_with(&["reconcile"], &to).await;
    assert_eq!(code, 0, "{err}");
    assert_eq!((dead(&lab).await, lab.count("select count(*) from workos.users").await), (9, 1));
    let context = lab.context_of(&staging, &key);
    let store = Store::of_any_client(lab.pool.clone(), std::time::Duration::from_secs(5));
    assert!(!store.deletions_accepted().await.unwrap(), "the permission is valid for one reconcile");
    drop((context, ids));
}

#[tokio::test]
async fn a_reconcile_is_due_after_its_interval_or_when_events_may_be_lost() {
    let (lab, ids) = silent(3).await;
    let day = std::time::Duration::from_secs(86_400);
    let reconcile = Reconcile::new(lab.context(), Mode::Repair, Some(day));
    let completed = async || {
        lab.count("select coalesce(extract(epoch from max(completed_at)), 0)::bigint from workos.scans where kind = 'reconcile'").await
    };
    reconcile.tick().await;
    assert_eq!(completed().await, 0, "the backfill of a minute ago counts");
    let age = "update workos.scans set completed_at = completed_at - interval '2 days'";
    sqlx::query(age).execute(&lab.pool).await.unwrap();
    lab.workos.delete_user(&ids[0]).unwrap();
    for _ in 0..10 {
        reconcile.tick().await;
    }
    let first = completed().await;
    assert!(first > 0);
    assert_eq!(dead(&lab).await, 1);
    let age = "update workos.scans set completed_at = completed_at - interval '1 hour'";
    sqlx::query(age).execute(&lab.pool).await.unwrap();
    let first = first - 3_600;
    sqlx::query("update workos.catch_up set needs_reconcile = true").execute(&lab.pool).await.unwrap();
    for _ in 0..10 {
        reconcile.tick().await;
    }
    assert!(completed().await > first);
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_applied_is_quarantined_once_and_shown() {
    let (lab, ids) = silent(3).await;
    lab.workos.spoil(&ids[0], "email", Value::Null);
    for _ in 0..2 {
        let report = lab.reconcile(Mode::Repair).await.unwrap();
        assert_eq!((report.counts.quarantined, report.counts.unchanged), (1, 2));
        lab.free_leases().await;
    }
    let kept = "select count(*) from workos.events where type = 'snapshot' and outcome = 'quarantined'";
    assert_eq!(lab.count(kept).await, 1, "the same snapshot is one row");
    let (code, out, _) = lab.run(&["reconcile", "--check"]).await;
    assert_eq!((code, out.contains("cannot be applied")), (1, true), "{out}");
    let observed: Observation = observed("user.deleted", 0, &json!({"id": ids[0]}));
    apply(&lab.context().store, Origin::Webhook, &[observed]).await.unwrap();
    let left = "select count(*) from workos.events where type = 'snapshot' and payload is not null";
    assert_eq!(lab.count(left).await, 0, "and it is erased with its user");
}

/// A reconcile writes only rows that differ. It creates no other row version and no row lock.
#[tokio::test]
async fn a_reconcile_over_an_unchanged_table_writes_no_row() {
    let (lab, ids) = silent(7).await;
    let rows = async || {
        let rows =
            "select id, xmin::text || ' ' || xmax::text || ' ' || ctid::text from workos.user_records order by id";
        sqlx::query_as::<_, (String, String)>(rows).fetch_all(&lab.pool).await.unwrap()
    };
    let before = rows().await;
    let report = lab.reconcile(Mode::Repair).await.unwrap();
    assert_eq!((report.counts.unchanged, rows().await), (7, before.clone()));
    lab.free_leases().await;
    lab.rename(&ids[2], "Renamed");
    lab.clock.set(lab.clock.now().plus_seconds(60));
    assert_eq!(lab.reconcile(Mode::Repair).await.unwrap().counts.updated, 1);
    let after = rows().await;
    let written: Vec<&String> = before.iter().zip(&after).filter(|(a, b)| a != b).map(|(row, _)| &row.0).collect();
    assert_eq!(written, [&ids[2]]);
}

/// Nothing is written, but an older event with the same `updated_at` does not replace the row, whether it arrives after the scan or
/// during it.
#[tokio::test]
async fn a_row_confirmed_by_a_scan_does_not_lose_to_an_older_event() {
    let (lab, ids) = silent(3).await;
    let store = lab.context().store;
    let events: Vec<Observation> = ids
        .iter()
        .map(|id| {
            let mut other = lab.workos.users().into_iter().find(|user| user["id"] == **id).unwrap();
            other["first_name"] = json!("Older");
            let seconds = (lab.clock.now().unix_micros() - at(0).unix_micros()) / 1_000_000 - 30;
            observed("user.updated", seconds * 1_000, &other)
        })
        .collect();
    let names = async || lab.count("select count(*) from workos.users where first_name = 'Older'").await;
    // Without a scan, the event is the later observation.
    apply(&store, Origin::Webhook, &events[..1]).await.unwrap();
    assert_eq!(names().await, 1);
    let reconcile = Reconcile::new(lab.context(), Mode::Repair, None);
    lab.workos.set_api_faults(ApiFaults { page_limit: Some(2), ..ApiFaults::default() });
    reconcile.step().await.unwrap();
    assert_eq!(names().await, 0, "the scan repairs it");
    apply(&store, Origin::Webhook, &events[1..2]).await.unwrap();
    assert_eq!(names().await, 1, "its page is applied, but nothing is confirmed yet");
    while !matches!(reconcile.step().await.unwrap(), Some(ReconcileStep::Done(_))) {}
    assert_eq!(names().await, 0, "it is read by ID before the scan is complete");
    let applied = apply(&store, Origin::Webhook, &events).await.unwrap();
    assert!(applied.iter().all(|applied| applied.effect.outcome() == Outcome::Stale), "{applied:?}");
    assert_eq!(names().await, 0);
}

/// A process that paused for longer than its lease finds that another one has reconciled meanwhile. It starts over.
#[tokio::test]
async fn a_reconcile_that_another_process_overtook_starts_over() {
    let (lab, _) = silent(250).await;
    let slow = Reconcile::new(lab.context(), Mode::Repair, None);
    assert!(matches!(slow.step().await.unwrap(), Some(ReconcileStep::InProgress { .. })));
    lab.free_leases().await;
    lab.clock.set(lab.clock.now().plus_seconds(60));
    lab.reconcile(Mode::Repair).await.unwrap();
    lab.free_leases().await;
    let mut was_overtaken = false;
    for _ in 0..20 {
        match slow.step().await {
            Ok(Some(ReconcileStep::Done(_))) => return assert!(was_overtaken),
            Ok(_) => {}
            Err(error) => was_overtaken |= matches!(error, JobError::Store(StoreError::Overtaken)),
        }
    }
    panic!("it never ends");
}
