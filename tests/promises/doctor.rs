//! `doctor` names the cause and the fix of each injected fault, changes nothing, and checks the rest when a part is down.

use authkit_sync::Kinds;
use authkit_sync::dev::workos::{ApiFaults, Faults, SimulatedWorkos};
use authkit_sync::domain::clock::Clock;
use authkit_sync::workos::api::{Api, ApiKey};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Executor};

use crate::support::binary::{Served, free_address, run};
use crate::support::database::TestDatabase;
use crate::support::lab::{Lab, another_workos};
use crate::support::service::{SECRET, until};

/// A deployment in which every check passes.
struct Deployment {
    lab: Lab,
    served: Served,
}

type More<'a> = &'a [(&'static str, &'a str)];

impl Deployment {
    async fn healthy() -> Self {
        let database = TestDatabase::unbound().await;
        let (pool, clock) = (database.pool(6).await, Clock::system());
        let workos = another_workos(&clock, fastrand::u64(..), None).await;
        let lab = Lab { database, pool, workos, clock };
        lab.create_users(3);
        let address = free_address();
        lab.workos.add_endpoint_for(&format!("http://{address}/workos/webhook"), SECRET, &[]);
        let environment = lab.environment();
        let settings: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let defaults = [
            ("AUTHKIT_SYNC_CATCH_UP", "on"),
            ("AUTHKIT_SYNC_CATCH_UP_INTERVAL", "1s"),
            ("AUTHKIT_SYNC_BACKFILL", "auto"),
            ("AUTHKIT_SYNC_RECONCILE_INTERVAL", "1d"),
        ];
        let served = Served::start(&lab.database.url(), address, &[&settings[..], &defaults].concat());
        let deployment = Self { lab, served };
        until("every check passes", async || deployment.doctor(&[]).await.0 == 0).await;
        // A backfill that runs is only a warning.
        let last = "select count(*) from workos.scans where kind = 'backfill_memberships' and completed_at is not null";
        until("every backfill has completed", async || deployment.lab.count(last).await == 1).await;
        deployment
    }

    /// Returns the exit code and the checks.
    async fn doctor(&self, more: More<'_>) -> (i32, Vec<Value>) {
        self.doctor_with(&["doctor", "--json"], more).await
    }

    async fn doctor_with(&self, arguments: &[&str], more: More<'_>) -> (i32, Vec<Value>) {
        let more = [&[("WORKOS_WEBHOOK_SECRET", SECRET)], more].concat();
        let (code, out, err) = self.lab.run_with(arguments, &more).await;
        (code, serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}")))
    }

    /// Asserts that the check `name` fails with these texts. Returns all checks.
    async fn finds(&self, more: More<'_>, name: &str, parts: &[&str]) -> Vec<Value> {
        let (code, checks) = self.doctor(more).await;
        assert_failure(&checks, name, parts);
        assert_eq!(code, 1);
        checks
    }

    async fn sql(&self, sql: &str) {
        self.lab.pool.execute(AssertSqlSafe(sql)).await.unwrap();
    }
}

fn check<'a>(checks: &'a [Value], name: &str) -> &'a Value {
    checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no check {name}: {checks:#?}"))
}

fn assert_failure(checks: &[Value], name: &str, parts: &[&str]) {
    let check = check(checks, name);
    let text = format!("{} -> {}", check["text"].as_str().unwrap(), check["fix"].as_str().unwrap_or_default());
    println!("FAULT {name}: {text}");
    assert_eq!(check["state"], "failure", "{text}");
    assert!(parts.iter().all(|part| text.contains(part)), "{parts:?} are not all in: {text}");
    assert!(check["fix"].is_string(), "there is a fix: {text}");
}

/// Another environment of WorkOS, and the settings that point to it.
async fn other_environment() -> (SimulatedWorkos, String) {
    let workos = another_workos(&Clock::system(), fastrand::u64(..), None).await;
    let port = workos.base_url().rsplit(':').next().unwrap().to_owned();
    (workos, port)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_of_the_database_and_of_the_settings_is_named_with_its_fix() {
    let it = Deployment::healthy().await;
    let refused = it
        .finds(
            &[("DATABASE_URL", "postgres://u:hunter2@127.0.0.1:1/app")],
            "database",
            &["127.0.0.1:1/app refused", "start PostgreSQL"],
        )
        .await;
    assert_eq!(check(&refused, "workos_api_key")["state"], "ok", "WorkOS is checked while the database is down");
    assert_eq!(check(&refused, "webhook_probe")["state"], "ok");
    assert!(!format!("{refused:?}").contains("hunter2"));
    it.finds(&[("DATABASE_URL", "postgres://u@db.invalid/app")], "database", &["cannot be resolved", "DNS"]).await;
    it.finds(&[("DATABASE_URL", "")], "database", &["DATABASE_URL is not set"]).await;
    let missing = it.lab.database.url().replace(it.lab.database.name(), "missing");
    it.finds(&[("DATABASE_URL", &missing)], "database", &["has no database missing", "create database missing"]).await;
    let empty = TestDatabase::empty().await;
    it.finds(&[("DATABASE_URL", &empty.url())], "database_schema", &["pending", "authkit-sync migrate"]).await;
    let standby = TestDatabase::new().await;
    standby.become_read_only().await;
    it.finds(&[("DATABASE_URL", &standby.url())], "database", &["read-only", "primary"]).await;
    it.finds(
        &[("WORKOS_CLIENT_ID", "client_mistyped")],
        "database_environment",
        &["client_mistyped", "authkit-sync rebind"],
    )
    .await;
    it.finds(&[("AUTHKIT_SYNC_CATCH_UP", "perhaps")], "settings", &["AUTHKIT_SYNC_CATCH_UP is malformed"]).await;
    it.finds(
        &[("WORKOS_ACTION_SECRET", SECRET)],
        "secrets",
        &["WORKOS_WEBHOOK_SECRET and WORKOS_ACTION_SECRET", "separate secret"],
    )
    .await;
    let (_, checks) = it.doctor_with(&["doctor", "--json", "--replicas", "90"], &[]).await;
    assert_failure(&checks, "database_connections", &["90 replicas need up to 1804", "AUTHKIT_SYNC_DB_POOL"]);
    it.sql("update workos.contract set version = 99999").await;
    it.finds(&[], "database_schema", &["requires version 99999", "newer release"]).await;
    it.sql("update workos.contract set version = 0").await;
    it.sql("update pg_index set indisvalid = false where indexrelid = 'workos.events_received_at'::regclass").await;
    it.finds(&[], "database_indexes", &["events_received_at", "authkit-sync migrate"]).await;
    it.sql("update pg_index set indisvalid = true where indexrelid = 'workos.events_received_at'::regclass").await;
}

/// A role that may only read: it proves that no check writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_privileges_are_listed_as_grants_and_no_check_writes() {
    let it = Deployment::healthy().await;
    let role = format!("{}_reader", it.lab.database.name());
    it.sql(&format!("create role {role} login; grant usage on schema workos to {role}; grant select on all tables in schema workos to {role}; grant execute on all functions in schema workos to {role}")).await;
    let url = it.lab.database.url().replace("postgres://postgres@", &format!("postgres://{role}@"));
    let grant = format!("grant select, insert, update, delete on workos.events to {role}");
    let checks = it
        .finds(
            &[("DATABASE_URL", &url)],
            "database_access",
            &[&grant, "usage, select on sequence workos.changes_position"],
        )
        .await;
    for check in checks.iter().filter(|check| check["name"] != "database_access") {
        assert_ne!(check["state"], "failure", "{check}");
        assert!(!check["text"].as_str().unwrap().contains("not checked"), "{check}");
    }
    it.sql(&format!("revoke all on schema workos from {role}; drop owned by {role}; drop role {role}")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_of_workos_and_of_webhooks_is_named_with_its_fix() {
    let it = Deployment::healthy().await;
    it.finds(
        &[("WORKOS_API_KEY", "sk_wrong")],
        "workos_api_key",
        &["rejected the API key (status 401)", "WORKOS_API_KEY"],
    )
    .await;
    it.finds(
        &[("WORKOS_CLIENT_ID", "client_mistyped")],
        "workos_signing_keys",
        &["no signing keys", "WORKOS_CLIENT_ID"],
    )
    .await;
    let away =
        it.finds(&[("WORKOS_API_HOSTNAME", "workos.invalid")], "workos", &["WorkOS at workos.invalid:", "DNS"]).await;
    assert_eq!(check(&away, "quarantine")["state"], "ok", "the database is checked while WorkOS is unreachable");
    assert!(check(&away, "workos_api_key")["text"].as_str().unwrap().starts_with("not checked"));
    it.finds(&[("WORKOS_API_PORT", "1")], "workos", &["127.0.0.1:1", "refused"]).await;
    let unknown = ApiFaults { unknown_types: vec!["nonsense.created".to_owned()], ..ApiFaults::default() };
    it.lab.workos.set_api_faults(unknown);
    it.finds(
        &[("AUTHKIT_SYNC_EVENT_TYPES", "nonsense.created")],
        "workos_events",
        &["rejects the event types nonsense.created"],
    )
    .await;
    it.lab.workos.set_api_faults(ApiFaults::default());
    let (other, port) = other_environment().await;
    let key = other.api_key();
    let there: More<'_> = &[("WORKOS_API_PORT", &port), ("WORKOS_API_KEY", &key)];
    it.finds(there, "workos_environment", &["does not know 3 of 3", "WORKOS_API_KEY"]).await;
    it.finds(there, "webhook_endpoint", &["no webhook endpoint is registered", "webhook register --url"]).await;
    let url = it.served.url("/workos/webhook");
    other.add_endpoint_for(&url, SECRET, &["user.created"]);
    it.finds(there, "webhook_endpoint", &["does not receive user.updated", &format!("webhook register --url {url}")])
        .await;
    other.set_api_faults(ApiFaults { error: 100, ..ApiFaults::default() });
    it.finds(there, "workos", &["it answered 5"]).await;
    // A limit of the rate is no failure of the key.
    other.set_api_faults(ApiFaults { rate_limit: 100, ..ApiFaults::default() });
    let (_, limited) = it.doctor(there).await;
    let text = check(&limited, "workos").to_string();
    assert!(text.contains("warning") && text.contains("429, because too many requests were sent"), "{text}");
    let of_workos = ["workos", "workos_api_key", "workos_environment", "workos_events", "webhook_endpoint"];
    for check in limited.iter().filter(|check| of_workos.contains(&check["name"].as_str().unwrap())) {
        assert_ne!(check["state"], "failure", "{check}");
    }
    let (_, out, _) = it.lab.run_with(&["status"], &[there, &[("WORKOS_WEBHOOK_SECRET", SECRET)]].concat()).await;
    assert!(out.contains("warning        workos: ") && !out.contains("workos_api_key"), "{out}");
    let clock = Clock::manual(Clock::system().now().plus_seconds(-60));
    let slow = another_workos(&clock, 7, None).await;
    let (port, client) = (slow.base_url().rsplit(':').next().unwrap().to_owned(), slow.client_id());
    it.finds(&[("WORKOS_API_PORT", &port), ("WORKOS_CLIENT_ID", &client)], "clocks", &["ahead of WorkOS", "NTP"]).await;
    it.lab.workos.disable_endpoints();
    it.finds(&[], "webhook_endpoint", &["is disabled", "webhook register"]).await;
    let api = Api::new(it.lab.workos.base_url(), ApiKey::new(it.lab.workos.api_key()), Clock::system()).unwrap();
    let id = api.webhook_endpoints().await.unwrap()[0].id.clone();
    api.update_webhook_endpoint(&id, &Kinds::ALL.event_types()).await.unwrap();
    let wrong = it
        .finds(
            &[("WORKOS_WEBHOOK_SECRET", "whsec_of_another_endpoint")],
            "webhook_endpoint",
            &["does not contain the signing secret"],
        )
        .await;
    assert_failure(
        &wrong,
        "webhook_probe",
        &["401 signature_invalid", "the same signing secret: set WORKOS_WEBHOOK_SECRET"],
    );
    assert_eq!(it.doctor(&[]).await.0, 0, "every fault was removed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_url_that_does_not_reach_the_service_is_named_with_its_fix() {
    let it = Deployment::healthy().await;
    for (url, parts) in [
        ("http://127.0.0.1:1/workos/webhook".to_owned(), &["does not answer", "refused"][..]),
        (it.served.url("/elsewhere"), &["404 route_not_found", "AUTHKIT_SYNC_WEBHOOK_PATH"]),
        (it.lab.workos.base_url().to_owned(), &["answered a signed probe with", "another server answers"]),
        ("https://workos.invalid/workos/webhook".to_owned(), &["cannot be resolved", "DNS"]),
    ] {
        let (other, port) = other_environment().await;
        other.add_endpoint_for(&url, SECRET, &[]);
        let key = other.api_key();
        it.finds(&[("WORKOS_API_PORT", &port), ("WORKOS_API_KEY", &key)], "webhook_probe", parts).await;
    }
    it.lab.workos.set_faults(Faults { drop: 100, ..Faults::default() });
    it.lab.create_user("Lost");
    until("polling delivers the event", async || it.lab.count("select count(*) from workos.users").await == 4).await;
    it.sql("update workos.events set received_at = received_at - interval '5 minutes' where webhook_at is null").await;
    it.finds(&[], "webhooks_received", &["only polling delivered 1 event since", "webhook_probe"]).await;
    it.lab.workos.set_faults(Faults::default());
    it.lab.create_user("Found");
    until("webhooks arrive again", async || check(&it.doctor(&[]).await.1, "webhooks_received")["state"] == "warning")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_of_the_sync_is_named_with_its_fix() {
    let mut it = Deployment::healthy().await;
    let _ = it.lab.workos.emit("user.created", json!("no object"));
    until("it is quarantined", async || {
        it.lab.count("select count(*) from workos.events where outcome = 'quarantined'").await > 0
    })
    .await;
    it.finds(&[], "quarantine", &["the quarantine has 1 event,", "events retry"]).await;
    it.sql("delete from workos.events where outcome = 'quarantined'").await;
    it.sql("create function public.gone(change jsonb) returns void language sql as 'select'; create function public.failing(change jsonb) returns void language plpgsql as $$ begin raise exception using errcode = '23514'; end $$; create function public.idle(change jsonb) returns void language sql as 'select'").await;
    for name in ["gone", "failing", "idle"] {
        let (code, out, err) = it.lab.run(&["handlers", "add", &format!("public.{name}"), "--name", name]).await;
        assert_eq!(code, 0, "{out}{err}");
    }
    it.sql("drop function public.gone(jsonb)").await;
    assert_eq!(it.lab.run(&["handlers", "pause", "idle"]).await.0, 0);
    it.lab.create_user("Ada");
    until("the handler has failed", async || {
        it.lab.count("select count(*) from workos.handler_backlog where failed_at is not null").await > 0
    })
    .await;
    let checks = it
        .finds(&[], "handler:gone", &["the function public.gone(jsonb) does not exist", "handlers remove gone"])
        .await;
    assert_failure(&checks, "handler:failing", &["fails (SQLSTATE 23514)", "handlers list"]);
    assert_eq!(check(&checks, "handler:idle")["state"], "warning");
    it.sql("update workos.handler_backlog set due_at = null").await;
    it.finds(&[], "handler:failing", &["dead-lettered", "handlers redrive failing"]).await;
    it.sql("update workos.changes set at = now() - interval '8 days'").await;
    it.finds(&[], "feed", &["the paused handler idle", "handlers resume idle"]).await;
    it.sql("update workos.scans set completed_at = now() - interval '5 days'").await;
    it.finds(&[], "reconcile", &["5 days ago", "authkit-sync reconcile"]).await;
    it.served.kill();
    it.lab.free_leases().await;
    it.finds(&[], "jobs", &["no process runs any background job", "authkit-sync serve"]).await;
    it.sql("update workos.catch_up set synced_through = now() - interval '1 hour'").await;
    it.finds(&[], "sync_lag", &["59 min behind WorkOS", "/readyz"]).await;
    it.sql("insert into workos.erasures (user_id, requested_at) values ('user_1', now() - interval '3 hours')").await;
    it.finds(&[], "erasure", &["1 deleted user is", "3 h"]).await;
    it.sql("update workos.events set received_at = now() - interval '200 days'").await;
    it.finds(&[], "retention", &["200 days old", "AUTHKIT_SYNC_RETENTION"]).await;
    it.sql("update workos.scans set completed_at = null where kind = 'backfill_memberships'").await;
    it.finds(&[], "organizations", &["has not completed, and no process runs it", "authkit-sync backfill"]).await;
    it.sql("delete from workos.scans").await;
    it.finds(&[], "sync_lag", &["no backfill has completed", "authkit-sync backfill"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_is_the_summary_on_one_screen() {
    let mut it = Deployment::healthy().await;
    let secret = ("WORKOS_WEBHOOK_SECRET", SECRET);
    let status = async |more: More<'_>| it.lab.run_with(&["status"], &[&[secret], more].concat()).await;
    let (code, out, err) = status(&[]).await;
    assert_eq!(code, 0, "{out}{err}");
    for line in [
        "verdict        ",
        "lag            0 s",
        "users          3 live, backfill completed 20",
        "organizations  0 live, backfill completed 20",
        "memberships    0 live, backfill completed 20",
        "jobs           ",
        "catch_up",
        "quarantine     0 events",
    ] {
        assert!(out.contains(line), "{line}: {out}");
    }
    assert!(out.lines().count() <= 12, "{out}");
    let (_, out, _) = status(&[("AUTHKIT_SYNC_KINDS", "users,organizations")]).await;
    assert!(out.contains("memberships    not synced") && out.contains("organizations  0 live"), "{out}");
    let (code, out, _) = it.lab.run_with(&["status", "--json"], &[secret, ("WORKOS_API_KEY", "sk_wrong")]).await;
    let summary: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &summary["verdict"], &summary["quarantined"]), (1, &json!("failure"), &json!(0)));
    assert!(
        summary["reasons"].as_array().unwrap().iter().any(|reason| reason["name"] == "workos_api_key"),
        "{summary}"
    );
    let (code, out, err) = it.lab.run_with(&["doctor"], &[secret]).await;
    assert!(code == 0 && out.contains("ok       quarantine"), "{out}{err}");
    // The service would complete the backfill.
    it.served.kill();
    it.sql("update workos.scans set started_at = now(), completed_at = null, created = 1 where kind = 'backfill_memberships'").await;
    let (_, out, _) = it.lab.run_with(&["status"], &[secret]).await;
    assert!(out.contains("memberships    0 live, a backfill runs and has read 1 object, no reconcile yet"), "{out}");
    let (_, out, _) = it.lab.run_with(&["status", "--json"], &[secret]).await;
    let summary: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(summary["objects"]["users"]["live"], 3, "{summary}");
    assert_eq!(summary["objects"]["memberships"]["backfill_completed_at"], Value::Null, "{summary}");
}

#[test]
fn without_any_setting_every_check_is_listed_and_nothing_else_happens() {
    let output = run(&["doctor", "--json"], &[]);
    let checks: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_failure(&checks, "settings", &["DATABASE_URL is not set", "WORKOS_CLIENT_ID is not set"]);
    for check in &checks {
        assert!(["ok", "warning", "failure"].contains(&check["state"].as_str().unwrap()), "{check}");
    }
    assert!(checks.len() > 20, "{}", checks.len());
}
