//! Polling without webhooks: one process polls at a time, another one takes over when it ends, and the log contains no names.

use authkit_sync::dev::workos::ApiFaults;
use authkit_sync::sync::runner::BackgroundLoop;
use serde_json::{Value, json};

use crate::catch_up::to_the_end;
use crate::support::binary::{Served, free_address};
use crate::support::lab::{Lab, object};
use crate::support::service::{http_ok, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_webhooks_a_service_follows_by_polling_and_says_so() {
    let lab = Lab::new().await;
    lab.create_users(3);
    let mut served = serve(&lab, &[]);
    until("the users of before are here", async || lab.count("select count(*) from workos.users").await == 3).await;
    let later = lab.create_user("Grace");
    until("and one of later", async || lab.count("select count(*) from workos.users").await == 4).await;
    assert!(served.log().contains("polling only"), "{}", served.log());
    let detail: Value = serde_json::from_str(&http_ok(&format!("http://{}/readyz", served.ops)).await).unwrap();
    assert_eq!((&detail["feeds"], &detail["jobs"]["catch_up"]["state"]), (&json!("polling only"), &json!("working")));
    let token = lab.workos.sign_in(&later).unwrap();
    let client = authkit_sync::workos::http::http_client().unwrap();
    let ask = async || client.get(served.url("/auth/user")).bearer_auth(&token).send().await.unwrap();
    assert_eq!(ask().await.status(), 200);
    until("answers say how far the table is complete", async || {
        ask().await.headers().contains_key("authkit-sync-synced-through")
    })
    .await;
    assert_eq!(client.post(served.url("/workos/webhook")).send().await.unwrap().status(), 404, "there is no receiver");
    // WorkOS becomes unreachable. Lookups and readiness do not change.
    lab.workos.set_api_faults(ApiFaults { error: 100, ..ApiFaults::default() });
    until("catch-up fails", async || {
        http_ok(&format!("http://{}/readyz", served.ops)).await.contains("the request to WorkOS at")
    })
    .await;
    assert_eq!(ask().await.status(), 200);
    http_ok(&served.url("/readyz")).await;
    let metrics = http_ok(&format!("http://{}/metrics", served.ops)).await;
    assert!(metrics.contains("authkit_sync_job_failing{background_job=\"catch_up\"} 1"), "{metrics}");
    assert_eq!(served.terminate().code(), Some(0));
    assert_eq!(lab.count("select count(*) from workos.leases").await, 0, "leases are given back");
}

#[tokio::test]
async fn exactly_one_process_polls_and_a_stale_one_cannot_move_the_cursor() {
    let lab = Lab::new().await;
    let (one, other) = (lab.context(), lab.context());
    let (first, second) = (lab.catch_up_of(one.clone()), lab.catch_up_of(other.clone()));
    lab.create_users(2);
    to_the_end(&lab, &first).await;
    second.tick().await;
    assert_eq!(other.jobs.current()["catch_up"].state, "standby");
    // The first process stalls after reading its page, and the other one takes over.
    lab.create_users(2);
    lab.workos.set_api_faults(ApiFaults { page_limit: Some(1), ..ApiFaults::default() });
    let stalled = lab.context().store.catch_up_state().await.unwrap().unwrap();
    lab.free_leases().await;
    to_the_end(&lab, &second).await;
    let place = lab.context().store.catch_up_state().await.unwrap().unwrap();
    assert!(place.revision > stalled.revision);
    first.tick().await;
    assert_eq!(one.jobs.current()["catch_up"].state, "standby");
    assert_eq!(lab.context().store.catch_up_state().await.unwrap().unwrap().cursor, place.cursor);
    // A graceful shutdown releases the lease at once.
    other.release().await.unwrap();
    first.tick().await;
    assert_eq!(one.jobs.current()["catch_up"].state, "working");
}

/// The settings of a `serve` that polls the simulated WorkOS of a lab.
fn polling(lab: &Lab) -> Vec<(&'static str, String)> {
    let mut environment = lab.environment();
    for (name, value) in [
        ("WORKOS_WEBHOOK_SECRET", ""),
        ("AUTHKIT_SYNC_CATCH_UP", "on"),
        ("AUTHKIT_SYNC_CATCH_UP_INTERVAL", "50ms"),
        ("AUTHKIT_SYNC_BACKFILL", "auto"),
        ("AUTHKIT_SYNC_RECONCILE_INTERVAL", "24h"),
    ] {
        environment.push((name, value.to_owned()));
    }
    environment
}

fn serve(lab: &Lab, more: &[(&str, &str)]) -> Served {
    let environment = polling(lab);
    let mut environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    environment.extend_from_slice(more);
    Served::start(&lab.database.url(), free_address(), &environment)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_polling_process_is_killed_another_takes_over() {
    let lab = Lab::new().await;
    let mut first = serve(&lab, &[]);
    lab.create_users(1);
    until("the first one polls", async || lab.count("select count(*) from workos.users").await == 1).await;
    let _second = serve(&lab, &[]);
    first.kill();
    lab.create_users(1);
    until("the second one does", async || lab.count("select count(*) from workos.users").await == 2).await;
}

/// Promise 9, for polled events and users.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_of_everything_that_is_read_contains_no_personal_data() {
    let lab = Lab::new().await;
    let personal = json!({"email": "Ada.Personal@example.test", "first_name": "Adalovelace", "last_name": "Quill"});
    let id = lab.workos.create_user(&object(personal)).unwrap()["id"].as_str().unwrap().to_owned();
    let mut served = serve(&lab, &[("RUST_LOG", "trace")]);
    until("it is here", async || lab.count("select count(*) from workos.users").await == 1).await;
    lab.rename(&id, "Adalovelace II");
    until("renamed", async || lab.count("select count(*) from workos.users where first_name like '%II'").await == 1)
        .await;
    lab.workos.set_api_faults(ApiFaults { cut: 40, error: 40, ..ApiFaults::default() });
    until("it meets failures", async || served.log().contains("the request to WorkOS at")).await;
    lab.workos.set_api_faults(ApiFaults::default());
    served.terminate();
    let mut log = served.log();
    lab.free_leases().await;
    lab.rename(&id, "Adalovelace III");
    lab.workos.spoil(&lab.create_user("Adalovelace"), "email", Value::Null);
    for command in
        [&["reconcile", "--check"][..], &["backfill"], &["reconcile"], &["events", "list"], &["events", "retry"]]
    {
        let (_, out, err) = lab.run_with(command, &[("RUST_LOG", "trace")]).await;
        log.push_str(&out);
        log.push_str(&err);
    }
    assert!(log.contains("TRACE") && log.contains("first_name") && log.contains("cannot be applied"));
    let key = lab.workos.api_key();
    for word in ["Adalovelace", "Ada.Personal", "Quill", "example.test", key.as_str()] {
        let line = log.lines().find(|line| line.contains(word));
        assert!(line.is_none(), "the log holds {word}: {line:?}");
    }
}
