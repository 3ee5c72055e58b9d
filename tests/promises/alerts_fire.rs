//! The alerts and the dashboard on a real Prometheus that reads a real service: every query returns data under load, and alerts
//! fire when their fault is caused. The waiting times of the rules are scaled.

use std::path::{Path, PathBuf};

use authkit_sync::dev::workos::ApiFaults;
use authkit_sync::domain::clock::Clock;
use authkit_sync::workos::http::http_client;
use authkit_sync::workos::signature::Secret;
use bytes::Bytes;
use serde_json::json;
use sqlx::{AssertSqlSafe, Executor};
use tempfile::TempDir;

use crate::alerts::{RULES, queries};
use crate::guides::file;
use crate::support::actions::{ACTION_SECRET, ENDPOINT_SECRET, fresh, registration};
use crate::support::binary::{Served, free_address};
use crate::support::lab::Lab;
use crate::support::prometheus::{Prometheus, is_installed};
use crate::support::service::until;

/// Returns the rules with waiting times and thresholds of seconds instead of minutes.
pub(crate) fn hasty_rules() -> String {
    let rules = file(RULES);
    let lines = rules.lines().map(|line| match line.trim().split_once(": ") {
        Some(("for", _)) => "        for: 1s".to_owned(),
        _ => ["[5m]", "[10m]", "[15m]"].iter().fold(line.to_owned(), |line, range| line.replace(range, "[10s]")),
    });
    let rules = lines.collect::<Vec<_>>().join("\n") + "\n";
    rules.replace("lag_seconds > 60", "lag_seconds > 2").replace("lag_seconds) > 300", "lag_seconds) > 2")
}

/// Starts a service with everything that has metrics: webhooks, polling, actions and a handler.
async fn served(lab: &Lab, webhook_secret: &Path) -> Served {
    lab.pool
        .execute("create function public.on_user(change jsonb) returns void language sql as 'select'")
        .await
        .unwrap();
    let environment = lab.environment();
    std::fs::write(webhook_secret, lab.workos.webhook_secret()).unwrap();
    let mut environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    environment.extend([
        ("WORKOS_WEBHOOK_SECRET", ""),
        ("WORKOS_WEBHOOK_SECRET_FILE", webhook_secret.to_str().unwrap()),
        ("AUTHKIT_SYNC_CATCH_UP", "on"),
        ("AUTHKIT_SYNC_CATCH_UP_INTERVAL", "200ms"),
        ("AUTHKIT_SYNC_BACKFILL", "auto"),
        ("AUTHKIT_SYNC_RECONCILE_INTERVAL", "1d"),
        ("WORKOS_ACTION_SECRET", ACTION_SECRET),
        ("AUTHKIT_SYNC_ACTION_URL", "http://127.0.0.1:9/decide"),
        ("AUTHKIT_SYNC_ACTION_URL_SECRET", ENDPOINT_SECRET),
        ("AUTHKIT_SYNC_ACTION_URL_FAILURE", "allow"),
        ("AUTHKIT_SYNC_ACTION_URL_PRIVATE", "true"),
    ]);
    let served = Served::start(&lab.database.url(), free_address(), &environment);
    let (code, _, err) = lab.run(&["handlers", "add", "public.on_user"]).await;
    assert_eq!(code, 0, "{err}");
    lab.workos.add_endpoint(&served.url("/workos/webhook"));
    served
}

/// A service with its simulated WorkOS, and a Prometheus that reads it.
struct Scene {
    lab: Lab,
    served: Served,
    prometheus: Prometheus,
    /// The file of the webhook secret.
    webhook_secret: PathBuf,
    _folder: TempDir,
}

impl Scene {
    /// Returns `None` if Prometheus is not installed.
    async fn with(rules: &str) -> Option<Self> {
        if !is_installed() {
            return None;
        }
        let lab = Lab::new().await;
        let folder = tempfile::tempdir().unwrap();
        let webhook_secret = folder.path().join("webhook-secret");
        let served = served(&lab, &webhook_secret).await;
        let prometheus = Prometheus::start(&[served.ops], rules).await;
        Some(Self { lab, served, prometheus, webhook_secret, _folder: folder })
    }
}

/// Returns the selector of every counter of which a rule reads the increase.
fn increasing() -> Vec<String> {
    let rules: Vec<String> = file(RULES).lines().map(|line| line.trim().to_owned()).collect();
    let rules = rules.join(" ");
    let selectors = rules.split("increase(").skip(1).map(|rest| rest.split('[').next().unwrap().to_owned());
    selectors.collect()
}

/// `increase` is 0 for a counter that Prometheus first sees with its first event.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_counter_whose_increase_an_alert_reads_exists_before_its_first_event() {
    let Some(scene) = Scene::with(&file(RULES)).await else { return };
    let prometheus = &scene.prometheus;
    let selectors = increasing();
    assert!(selectors.len() >= 5, "{selectors:?}");
    for selector in selectors {
        // The label of a failure has several values.
        let (begun, wanted) =
            (format!("count({selector})"), if selector.contains("endpoint_failures") { 8 } else { 1 });
        until(&format!("{selector} exists"), async || {
            let found = prometheus.query(&begun).await.unwrap();
            let count = found.first().and_then(|sample| sample["value"][1].as_str()?.parse::<usize>().ok());
            count.is_some_and(|count| count >= wanted)
        })
        .await;
    }
}

/// No value of PostgreSQL that the service writes is infinite, so it panics when it reads one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_background_job_that_panics_fires_its_alert_is_shown_and_recovers() {
    let Some(scene) = Scene::with(&hasty_rules()).await else { return };
    let Scene { lab, served, prometheus, .. } = &scene;
    let catch_up = async || {
        let answer = http_client().unwrap().get(format!("http://{}/readyz", served.ops)).send().await.unwrap();
        answer.json::<serde_json::Value>().await.unwrap()["jobs"]["catch_up"].clone()
    };
    until("catch-up works", async || catch_up().await["state"] == "working").await;
    let counted = "authkit_sync_job_restarts_total{background_job=\"catch_up\"} == 0";
    until("Prometheus knows that it has not panicked", async || !prometheus.query(counted).await.unwrap().is_empty())
        .await;
    let range_start = "update workos.catch_up set range_start = ";
    lab.pool.execute(AssertSqlSafe(format!("{range_start} 'infinity'"))).await.unwrap();
    prometheus.fires("AuthkitSyncJobPanicked").await;
    let status = catch_up().await;
    assert_eq!(status["state"], "failing", "{status}");
    assert!(status["error"].as_str().unwrap().contains("panicked, which is a defect of authkit-sync"), "{status}");
    lab.pool.execute(AssertSqlSafe(format!("{range_start} now()"))).await.unwrap();
    until("it has recovered", async || catch_up().await["state"] == "working").await;
    assert!(served.log().contains("the background job panicked"), "{}", served.log());
}

/// Sends a few requests of every kind, and lets WorkOS's clock follow ours.
async fn load(lab: &Lab, served: &Served) {
    lab.clock.set(Clock::system().now());
    let id = lab.create_user("Ada");
    lab.rename(&id, "Grace");
    let client = http_client().unwrap();
    if let Ok(token) = lab.workos.sign_in(&id) {
        let _ = client.get(served.url("/auth/user")).bearer_auth(token).send().await;
    }
    let body = Bytes::from(json!({"id": "event_1", "event": "user.created"}).to_string());
    let header = Secret::new("whsec_another").sign(Clock::system().now(), &body);
    let _ = client.post(served.url("/workos/webhook")).header("WorkOS-Signature", header).body(body).send().await;
    let action = registration(&fresh(), "somebody@example.test");
    let header = Secret::new(ACTION_SECRET).sign(Clock::system().now(), &action);
    let _ = client.post(served.url("/workos/action")).header("WorkOS-Signature", header).body(action).send().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_query_of_the_dashboard_returns_data_under_load() {
    let Some(scene) = Scene::with(&file(RULES)).await else { return };
    let Scene { lab, served, prometheus, .. } = &scene;
    let queries = queries();
    assert!(queries.len() > 40, "only {} queries were found", queries.len());
    let empty = std::cell::RefCell::new(queries);
    until("every query returns data", async || {
        load(lab, served).await;
        let mut left = Vec::new();
        for (panel, query) in empty.take() {
            if prometheus.query(&query).await.unwrap_or_else(|error| panic!("{panel}: {query}: {error}")).is_empty() {
                left.push((panel, query));
            }
        }
        eprintln!("without data yet: {left:?}");
        *empty.borrow_mut() = left;
        empty.borrow().is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alerts_fire_when_their_fault_is_caused() {
    let Some(mut scene) = Scene::with(&hasty_rules()).await else { return };
    let Scene { lab, served, prometheus, webhook_secret, .. } = &mut scene;
    let complete = "max(authkit_sync_lag_seconds) == 0";
    until("the service is in sync", async || {
        load(lab, served).await;
        !prometheus.query(complete).await.unwrap().is_empty()
    })
    .await;
    // WorkOS fails, so polling stops.
    lab.workos.set_api_faults(ApiFaults { error: 100, ..ApiFaults::default() });
    for alert in ["AuthkitSyncWorkosFailing", "AuthkitSyncJobFailing", "AuthkitSyncBehind"] {
        prometheus.fires(alert).await;
    }
    lab.workos.set_api_faults(ApiFaults { refuse_key: true, ..ApiFaults::default() });
    prometheus.fires("AuthkitSyncKeyRefused").await;
    // A handler fails, then it cannot run, then an operator pauses it.
    lab.pool
        .execute("create or replace function public.on_user(change jsonb) returns void language sql as 'select 1 / 0'")
        .await
        .unwrap();
    load(lab, served).await;
    prometheus.fires("AuthkitSyncHandlerBehind").await;
    // The same update as after the last attempt, half an hour later.
    lab.pool.execute("update workos.handler_backlog set due_at = null").await.unwrap();
    prometheus.fires("AuthkitSyncHandlerDeadLettered").await;
    lab.pool.execute("drop function public.on_user").await.unwrap();
    prometheus.fires("AuthkitSyncHandlerBlocked").await;
    assert_eq!(lab.run(&["handlers", "pause", "public.on_user"]).await.0, 0);
    prometheus.fires("AuthkitSyncHandlerPaused").await;
    // A new secret is malformed.
    std::fs::write(&*webhook_secret, "sk_an_api_key").unwrap();
    prometheus.fires("AuthkitSyncSecretRejected").await;
    std::fs::write(&*webhook_secret, lab.workos.webhook_secret()).unwrap();
    // WorkOS sends an event that cannot be applied.
    let _ = lab.workos.emit("user.updated", json!({"id": "user_unusable"}));
    prometheus.fires("AuthkitSyncQuarantine").await;
    // Another process holds the leases.
    lab.pool
        .execute("update workos.leases set holder = 'another', expires_at = now() + '19 seconds'::interval")
        .await
        .unwrap();
    prometheus.fires("AuthkitSyncJobStopped").await;
    // The process ends.
    served.kill();
    prometheus.fires("AuthkitSyncDown").await;
}
