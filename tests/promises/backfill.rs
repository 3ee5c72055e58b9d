//! Backfill reads every existing user. It is resumable and idempotent, and runs concurrently with all other writes.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use authkit_sync::dev::workos::ApiFaults;
use authkit_sync::domain::clock::Clock;
use authkit_sync::domain::decide::Stored;
use authkit_sync::domain::event::Origin;
use authkit_sync::metrics::Metrics;

use authkit_sync::store::scans::ScanCounts;
use authkit_sync::sync::apply;
use authkit_sync::sync::backfill::{Backfill, BackfillStep};
use authkit_sync::sync::job::{JobContext, JobError};
use authkit_sync::sync::runner::BackgroundLoop;
use authkit_sync::workos::api::{Api, ApiKey};
use axum::extract::Query;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::binary::{Served, binary, free_address};
use crate::support::database::TestDatabase;
use crate::support::events::{at, observed, unique, user};
use crate::support::lab::{Lab, another_workos, object};
use crate::support::service::{Answer, store, until};

/// A state file of a WorkOS with this many users, created one second apart.
fn many_users(state: &Path, count: i64) {
    let mut users = serde_json::Map::new();
    for number in 0..count {
        let id = format!("user_{number:06}");
        let at = at(number * 1_000);
        let user = json!({
            "object": "user", "id": id, "email": format!("{number}@example.test"), "email_verified": true,
            "first_name": format!("n{number}"), "last_name": null, "name": null, "profile_picture_url": null,
            "external_id": null, "metadata": {}, "last_sign_in_at": null, "locale": null,
            "created_at": at, "updated_at": at,
        });
        users.insert(id, user);
    }
    // As text, because the state contains numbers that a JSON value cannot represent.
    let kept = std::fs::read_to_string(state).unwrap();
    assert!(kept.contains(r#""users":{}"#));
    let kept = kept.replace(r#""users":{}"#, &format!(r#""users":{}"#, Value::Object(users)));
    std::fs::write(state, kept).unwrap();
}

async fn lab_with(count: i64) -> (Lab, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("workos.json");
    let clock = Clock::system();
    another_workos(&clock, fastrand::u64(..), Some(state.clone())).await.stop().await;
    many_users(&state, count);
    (Lab::with(Some(state)).await, folder)
}

async fn same_as_workos(lab: &Lab) {
    let store = lab.context().store;
    let users = lab.workos.users();
    for chunk in users.chunks(1_000) {
        let ids: Vec<String> = chunk.iter().map(|user| user["id"].as_str().unwrap().to_owned()).collect();
        let stored = store.users(&ids).await.unwrap();
        for user in chunk {
            let Some(Stored::Live { object: here, .. }) = stored.get(user["id"].as_str().unwrap()) else {
                panic!("{} is missing", user["id"])
            };
            assert_eq!(&serde_json::to_value(here).unwrap(), user);
        }
    }
    assert_eq!(lab.count("select count(*) from workos.users").await, i64::try_from(users.len()).unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_backfill_continues_at_its_position() {
    let (lab, _folder) = lab_with(10_000).await;
    let position = async || -> Option<String> {
        let position = "select position from workos.scans where kind = 'backfill'";
        sqlx::query_scalar(position).fetch_optional(&lab.pool).await.unwrap().flatten()
    };
    let mut command = binary();
    let mut child = command.arg("backfill").envs(lab.environment()).stderr(Stdio::null()).spawn().unwrap();
    until("it is some pages on", async || position().await.is_some_and(|at| at.as_str() > "user_000600")).await;
    child.kill().unwrap();
    child.wait().unwrap();
    let left = position().await.unwrap();
    // A killed process holds its lease until it expires. This test does not wait for that.
    lab.free_leases().await;
    let asked = lab.workos.requests("/user_management/users");
    let (code, out, err) = lab.run(&["backfill", "--json"]).await;
    assert_eq!(code, 0, "{err}");
    let summary: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&summary["users"]["new"], &summary["dry_run"]), (&json!(10_000), &json!(false)));
    let pages = lab.workos.requests("/user_management/users") - asked;
    let done: usize = left.trim_start_matches("user_").parse().unwrap();
    assert_eq!(pages, (10_000 - done - 1).div_ceil(100), "it read what was left, and no page twice");
    same_as_workos(&lab).await;
    // A second backfill would change nothing.
    let dry_run = Backfill::new(lab.context(), true);
    let counts = loop {
        if let Some(BackfillStep::Done(counts)) = dry_run.step().await.unwrap() {
            break counts;
        }
    };
    assert_eq!(counts, ScanCounts { unchanged: 10_000, ..ScanCounts::default() });
}

#[tokio::test]
async fn a_scan_does_not_undo_changes_that_happen_during_it() {
    for lists_start_over in [false, true] {
        let lab = Lab::new().await;
        let mut ids = Vec::new();
        for _ in 0..10 {
            ids.push(lab.create_user("Ada"));
            lab.clock.set(lab.clock.now().plus_seconds(1));
        }
        lab.workos.set_api_faults(ApiFaults { page_limit: Some(2), lists_start_over, ..ApiFaults::default() });
        let backfill = Backfill::new(lab.context(), false);
        backfill.step().await.unwrap();
        backfill.step().await.unwrap();
        // The user at the position of the scan is deleted. A user before it is renamed. A user after it is deleted here first.
        lab.workos.delete_user(&ids[3]).unwrap();
        lab.rename(&ids[0], "Renamed");
        lab.rename(&ids[8], "Late");
        let late = lab.create_user("Born late");
        let dead = observed("user.deleted", 0, &json!({"id": ids[9]}));
        apply(&lab.context().store, Origin::Webhook, &[dead]).await.unwrap();
        let counts = loop {
            match backfill.step().await.unwrap() {
                Some(BackfillStep::Done(counts)) => break counts,
                None => panic!("another process has the lease"),
                Some(BackfillStep::Page { .. }) => {}
            }
        };
        assert_eq!((counts.new, counts.tombstoned), (10, 1), "starts over: {lists_start_over}, {counts:?}");
        let store = lab.context().store;
        let name = async |id: &str| match store.user(id).await.unwrap() {
            Stored::Live { object: user, .. } => user.first_name.unwrap(),
            other => format!("{other:?}"),
        };
        assert_eq!((name(&ids[8]).await.as_str(), name(&late).await.as_str()), ("Late", "Born late"));
        assert!(matches!(store.user(&ids[9]).await.unwrap(), Stored::Tombstone { .. }), "the dead stay dead");
    }
}

/// A list that ignores the cursor and always returns the first page.
#[tokio::test]
async fn a_list_that_always_starts_over_ends_the_scan_but_not_the_process() {
    let database = TestDatabase::new().await;
    let pool = database.pool(2).await;
    let ids = [unique("user"), unique("user")];
    let users = [user(&ids[0], "Ada", 0), user(&ids[1], "Grace", 5)];
    let list = json!({"object": "list", "data": users, "list_metadata": {"after": ids[1]}});
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().route("/user_management/users", get(move || async move { Json(list) }));
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    let clock = Clock::manual(at(60_000));
    let store = store(&pool);
    let api = Api::new(&base, ApiKey::new("sk_test"), clock.clone()).unwrap();
    let backfill = Backfill::new(JobContext::new(store.clone(), api, clock, Arc::new(Metrics::default()), 1), false);
    let mut steps = 0;
    let error = loop {
        match backfill.step().await {
            Err(error) => break error,
            Ok(step) => assert!(!matches!(step, Some(BackfillStep::Done(_))), "it never came to an end"),
        }
        steps += 1;
        assert!(steps < 1_000, "it goes round and round");
    };
    assert!(matches!(error, JobError::Endless), "{error}");
    assert!(matches!(store.user(&ids[1]).await.unwrap(), Stored::Live { .. }), "what it met is here");
    server.abort();
}

#[tokio::test]
async fn the_wrong_key_changes_nothing_and_says_why() {
    let lab = Lab::new().await;
    lab.create_users(12);
    lab.backfill().await;
    let rows = "select sum(hashtext(u::text)) from workos.user_records as u";
    let before = lab.count(rows).await;
    let other = another_workos(&lab.clock, fastrand::u64(..), None).await;
    let port = other.base_url().rsplit(':').next().unwrap().to_owned();
    let key = other.api_key();
    let elsewhere = [("WORKOS_API_PORT", port.as_str()), ("WORKOS_API_KEY", key.as_str())];
    // First an empty environment, then one with other users.
    for _ in 0..2 {
        for command in [&["backfill"][..], &["backfill", "--dry-run"], &["reconcile"], &["reconcile", "--check"]] {
            let (code, _, err) = lab.run_with(command, &elsewhere).await;
            assert_eq!(code, 1, "{command:?}: {err}");
            assert!(
                err.contains("WORKOS_API_KEY probably belongs to another environment") && err.contains("rebind"),
                "{command:?}: {err}"
            );
        }
        let stranger = json!({"email": "stranger@example.test"});
        let _ = other.create_user(&object(stranger));
    }
    assert_eq!(lab.count(rows).await, before);
    let (code, _, err) = lab.run_with(&["backfill"], &[("WORKOS_API_KEY", "sk_test_mistyped")]).await;
    assert_eq!(code, 78, "{err}");
    assert!(err.contains("rejected the API key (status 401)"), "{err}");
    let (code, _, err) = lab.run_with(&["backfill"], &[("WORKOS_API_KEY", "")]).await;
    assert_eq!((code, err.contains("WORKOS_API_KEY is not set")), (78, true), "{err}");
    let (code, _, err) = lab.run_with(&["backfill"], &[("WORKOS_CLIENT_ID", "client_other")]).await;
    assert_eq!((code, err.contains("belongs to the WorkOS client ID")), (78, true), "{err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn until_the_first_backfill_is_complete_a_missing_user_is_not_synced_yet() {
    let lab = Lab::new().await;
    let id = lab.create_user("Ada");
    let token = lab.workos.sign_in(&id).unwrap();
    // No process can backfill now.
    lab.workos.set_api_faults(ApiFaults { error: 100, ..ApiFaults::default() });
    let mut environment = lab.environment();
    environment.push(("AUTHKIT_SYNC_BACKFILL", "auto".to_owned()));
    environment.push(("AUTHKIT_SYNC_READ_THROUGH", "off".to_owned()));
    let environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let address = free_address();
    let served = Served::start(&lab.database.url(), address, &environment);
    let client = authkit_sync::workos::http::http_client().unwrap();
    let ask = async || Answer::of(client.get(served.url("/auth/user")).bearer_auth(&token).send().await.unwrap()).await;
    let answer = ask().await;
    assert_eq!(answer.code(), (503, "user_not_synced".to_owned()));
    assert!(!answer.header("retry-after").is_empty());
    lab.workos.set_api_faults(ApiFaults::default());
    until("the backfill brings the user", async || ask().await.status == 200).await;
    lab.workos.delete_user(&id).unwrap();
    let stranger = lab.workos.token("user_nobody", "session_1", 300).unwrap();
    until("and then what is missing is not there", async || {
        let asked = client.get(served.url("/auth/user")).bearer_auth(&stranger).send().await.unwrap();
        Answer::of(asked).await.code() == (404, "user_not_found".to_owned())
    })
    .await;
}

#[tokio::test]
async fn two_processes_share_one_backfill() {
    let lab = Lab::new().await;
    lab.create_users(6);
    lab.workos.set_api_faults(ApiFaults { page_limit: Some(1), ..ApiFaults::default() });
    let (one, other) = (Backfill::new(lab.context(), false), Backfill::new(lab.context(), false));
    let mut pages = 0;
    // The lease changes its holder after every step. The scan continues.
    let counts = 'done: loop {
        for backfill in [&one, &other] {
            match backfill.step().await {
                Ok(Some(BackfillStep::Done(counts))) => break 'done counts,
                Ok(Some(BackfillStep::Page { .. })) => pages += 1,
                Ok(None) | Err(JobError::Store(_)) => {}
                Err(other) => panic!("{other}"),
            }
            lab.free_leases().await;
        }
        assert!(pages < 100);
    };
    assert_eq!(counts, ScanCounts { new: 6, ..ScanCounts::default() });
    lab.free_leases().await;
    let rest = one.tick().await;
    assert!(rest.as_secs() >= 30, "once completed it is not done again: {rest:?}");
}

/// A page without a readable user has a cursor for the next page, and is not the last page.
#[tokio::test]
async fn an_unreadable_page_of_users_is_quarantined_and_skipped() {
    let database = TestDatabase::new().await;
    let pool = database.pool(2).await;
    let id = unique("user");
    let readable = user(&id, "Ada", 0);
    let page = move |Query(query): Query<Vec<(String, String)>>| {
        let behind = query.iter().any(|(name, value)| name == "after" && value == "user_behind");
        let page = if behind {
            json!({"object": "list", "data": [readable], "list_metadata": {"after": null}})
        } else {
            json!({"object": "list", "data": [{"object": "user"}], "list_metadata": {"after": "user_behind"}})
        };
        async move { Json(page) }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().route("/user_management/users", get(page));
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    let clock = Clock::manual(at(0));
    let store = store(&pool);
    let api = Api::new(&base, ApiKey::new("sk_test"), clock.clone()).unwrap();
    let context = JobContext::new(store.clone(), api, clock, Arc::new(Metrics::default()), 1);
    let backfill = Backfill::new(context, false);
    let mut steps = 0;
    let counts = loop {
        if let Some(BackfillStep::Done(counts)) = backfill.step().await.unwrap() {
            break counts;
        }
        steps += 1;
        assert!(steps < 10);
    };
    assert_eq!(counts, ScanCounts { new: 1, quarantined: 1, ..ScanCounts::default() });
    assert!(matches!(store.user(&id).await.unwrap(), Stored::Live { .. }));
    server.abort();
}
