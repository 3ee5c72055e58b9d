//! How the service reports to callers and operators until when the table is complete.

use authkit_sync::domain::clock::Clock;
use serde_json::Value;

use crate::support::binary::{Served, free_address};
use crate::support::lab::Lab;
use crate::support::service::{Answer, http_ok, until};

/// Otherwise a reader would assume that missing users are deleted. Without `AUTHKIT_SYNC_BACKFILL`, a command of the operator or a
/// scheduled reconcile completes the table.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn synced_through_is_absent_before_the_first_backfill_or_reconcile() {
    for command in ["backfill", "reconcile"] {
        let lab = Lab::new().await;
        let id = lab.create_user("Ada");
        let environment = lab.environment();
        let mut environment: Vec<(&str, &str)> =
            environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
        environment.extend([
            ("WORKOS_WEBHOOK_SECRET", ""),
            ("AUTHKIT_SYNC_CATCH_UP", "on"),
            ("AUTHKIT_SYNC_CATCH_UP_INTERVAL", "50ms"),
            ("AUTHKIT_SYNC_BACKFILL", "off"),
            ("AUTHKIT_SYNC_RECONCILE_INTERVAL", "24h"),
        ]);
        let served = Served::start(&lab.database.url(), free_address(), &environment);
        let ready = async || -> Value {
            serde_json::from_str(&http_ok(&format!("http://{}/readyz", served.ops)).await).unwrap()
        };
        until("catch-up has read to the end", async || {
            lab.count("select count(*) from workos.catch_up where synced_through is not null").await == 1
        })
        .await;
        // The service reads both values together, so it has read the first one when it has read the second one.
        let _ = lab.workos.emit("user.updated", serde_json::json!({"id": "user_unusable"}));
        until("the service reads its progress", async || ready().await["quarantined"] == 1).await;
        let token = lab.workos.sign_in(&id).unwrap();
        let client = authkit_sync::workos::http::http_client().unwrap();
        let session = async || {
            let request = client.get(served.url("/auth/session")).bearer_auth(&token);
            Answer::of(request.send().await.unwrap()).await
        };
        let metrics = async || http_ok(&format!("http://{}/metrics", served.ops)).await;
        let (gauge, header) = ("\nauthkit_sync_synced_through_timestamp_seconds{} ", "authkit-sync-synced-through");
        let detail = ready().await;
        assert_eq!((&detail["synced_through"], &detail["lag_seconds"]), (&Value::Null, &Value::Null), "{command}");
        let answer = session().await;
        assert_eq!((answer.status, answer.header(header), &answer.json()["synced_through"]), (200, "", &Value::Null));
        let lag = "\nauthkit_sync_lag_seconds{} ";
        for gauge in [gauge, lag] {
            assert!(!metrics().await.contains(gauge), "{command}");
        }
        let (code, _, err) = lab.run(&[command]).await;
        assert_eq!(code, 0, "{err}");
        until("it is known", async || ready().await["lag_seconds"].is_number()).await;
        let answer = session().await;
        assert!(!answer.header(header).is_empty() && answer.json()["synced_through"].is_string());
        assert!(metrics().await.contains(gauge));
        // The age is at least the hold-back of catch-up, which does not count as lag. WorkOS's clock changes only if the test sets
        // it.
        until("it is not behind", async || {
            lab.clock.set(Clock::system().now());
            ready().await["lag_seconds"] == 0
        })
        .await;
        until("the metric says so, too", async || {
            lab.clock.set(Clock::system().now());
            metrics().await.contains(&format!("{lag}0\n"))
        })
        .await;
    }
}

/// A kind that is not synced has no job and no progress.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_jobs_of_synced_kinds_are_shown() {
    let lab = Lab::new().await;
    let environment = lab.environment();
    let environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let jobs_of = async |kinds: &str, job: &str| {
        let more = [
            ("AUTHKIT_SYNC_CATCH_UP", "on"),
            ("AUTHKIT_SYNC_BACKFILL", "auto"),
            ("AUTHKIT_SYNC_RECONCILE_INTERVAL", "1d"),
            ("AUTHKIT_SYNC_KINDS", kinds),
        ];
        let served = Served::start(&lab.database.url(), free_address(), &[&environment[..], &more].concat());
        let page = std::sync::Mutex::new(Value::Null);
        until(&format!("{job} has run"), async || {
            *page.lock().unwrap() =
                serde_json::from_str(&http_ok(&format!("http://{}/readyz", served.ops)).await).unwrap();
            !page.lock().unwrap()["jobs"][job].is_null()
        })
        .await;
        (page.into_inner().unwrap(), http_ok(&format!("http://{}/metrics", served.ops)).await)
    };
    let (all, _) = jobs_of("users,organizations,memberships", "reconcile_organizations").await;
    assert!(all["memberships"].is_object(), "{all}");
    let (users, metrics) = jobs_of("users", "reconcile").await;
    for job in ["backfill_organizations", "reconcile_organizations", "refresh"] {
        // A job that was started has this metric at once.
        assert!(!metrics.contains(&format!("job_restarts_total{{background_job=\"{job}\"}}")), "{job}: {metrics}");
        assert!(users["jobs"][job].is_null(), "{job}: {users}");
    }
    assert!(users["organizations"].is_null() && users["memberships"].is_null(), "{users}");
}
