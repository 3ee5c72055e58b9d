//! One process runs a background job at a time, and no process sends requests during a pause that WorkOS requested.

use std::time::Duration;

use authkit_sync::dev::workos::ApiFaults;
use authkit_sync::store::leases::LEASE;
use authkit_sync::sync::job::JobContext;
use authkit_sync::sync::reconcile::Mode;
use authkit_sync::sync::runner::BackgroundLoop;

use crate::catch_up::to_the_end;
use crate::support::binary::{Served, free_address};
use crate::support::lab::Lab;
use crate::support::service::until;

const WISH: Duration = Duration::from_secs(30);

fn pausing() -> ApiFaults {
    ApiFaults { rate_limit: 100, retry_after_s: Some(30), ..ApiFaults::default() }
}

async fn run(lab: &Lab, sql: &'static str) {
    sqlx::query(sql).execute(&lab.pool).await.unwrap();
}

fn state(context: &JobContext) -> &'static str {
    context.jobs.current()["catch_up"].state
}

#[tokio::test]
async fn every_replica_keeps_the_pause_that_workos_asked_one_of_them_for() {
    // The first process is killed, or ends.
    for killed in [true, false] {
        let lab = Lab::new().await;
        let (one, other) = (lab.context(), lab.context());
        let (first, second) = (lab.catch_up_of(one.clone()), lab.catch_up_of(other.clone()));
        to_the_end(&lab, &first).await;
        lab.workos.set_api_faults(pausing());
        assert!(first.tick().await >= WISH);
        assert_eq!(state(&one), "failing");
        lab.workos.set_api_faults(ApiFaults::default());
        let asked = lab.workos.requests("/events");
        assert!(first.tick().await > Duration::from_secs(1), "the pause is not over");
        if killed {
            run(&lab, "update workos.leases set expires_at = now() - interval '1 second'").await;
        } else {
            one.release().await.unwrap();
        }
        let rest = second.tick().await;
        assert!(rest > Duration::from_secs(1) && rest <= WISH, "{rest:?}");
        assert_eq!(lab.workos.requests("/events"), asked, "killed: {killed}");
        assert_eq!(lab.count("select count(distinct holder) from workos.leases").await, 1);
        assert_eq!(first.tick().await, authkit_sync::sync::job::STANDBY, "the other one has it");
        // Half a minute later.
        run(&lab, "update workos.leases set paused_until = now() - interval '1 second'").await;
        lab.create_users(1);
        to_the_end(&lab, &second).await;
        assert_eq!((state(&other), lab.count("select count(*) from workos.users").await), ("working", 1));
    }
}

#[tokio::test]
async fn a_pause_applies_to_one_job_and_an_absurdly_long_one_is_ignored() {
    let lab = Lab::new().await;
    let catch_up = lab.catch_up();
    to_the_end(&lab, &catch_up).await;
    lab.workos.set_api_faults(pausing());
    assert!(catch_up.tick().await >= WISH);
    lab.workos.set_api_faults(ApiFaults::default());
    lab.create_users(1);
    assert_eq!(lab.reconcile(Mode::Repair).await.unwrap().counts.new, 1);
    run(&lab, "update workos.leases set paused_until = now() + interval '20 days'").await;
    to_the_end(&lab, &catch_up).await;
}

#[tokio::test]
async fn a_lease_is_renewed_by_its_holder_alone_and_taken_over_when_it_ends_too_late_or_too_early() {
    let lab = Lab::new().await;
    let (first, second) = (lab.catch_up(), lab.catch_up());
    to_the_end(&lab, &first).await;
    let left = "select extract(epoch from expires_at - now())::bigint from workos.leases where job = 'catch_up'";
    let holder = async || -> String {
        sqlx::query_scalar("select holder from workos.leases").fetch_one(&lab.pool).await.unwrap()
    };
    let firsts = holder().await;
    run(&lab, "update workos.leases set expires_at = now() + interval '2 seconds'").await;
    second.tick().await;
    second.renew().await;
    assert!(holder().await == firsts && lab.count(left).await <= 2, "a process that stands by renews nothing");
    first.renew().await;
    assert!(lab.count(left).await >= 5);
    // A lease that was written with a wrong clock, and whose holder has stopped.
    run(&lab, "update workos.leases set expires_at = now() + interval '15 seconds'").await;
    second.tick().await;
    assert_eq!(holder().await, firsts, "a clock may step back a little");
    run(&lab, "update workos.leases set expires_at = now() + interval '1 year'").await;
    second.tick().await;
    assert_ne!(holder().await, firsts);
    assert!(lab.count(left).await <= i64::try_from(LEASE.as_secs()).unwrap());
    first.renew().await;
    assert_ne!(holder().await, firsts, "what was lost is not renewed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_renews_its_lease_while_it_pauses() {
    let lab = Lab::new().await;
    lab.workos.set_api_faults(pausing());
    let environment = lab.environment();
    let mut environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    environment.extend([
        ("WORKOS_WEBHOOK_SECRET", ""),
        ("AUTHKIT_SYNC_CATCH_UP", "on"),
        ("AUTHKIT_SYNC_BACKFILL", "off"),
        ("AUTHKIT_SYNC_RECONCILE_INTERVAL", "24h"),
    ]);
    let _served = Served::start(&lab.database.url(), free_address(), &environment);
    let paused = "select count(*) from workos.leases where job = 'catch_up' and paused_until > now()";
    until("WorkOS asks for a pause", async || lab.count(paused).await == 1).await;
    let expires = "select extract(epoch from expires_at)::bigint from workos.leases where job = 'catch_up'";
    let (before, asked) = (lab.count(expires).await, lab.workos.requests("/events"));
    until("the lease is renewed twice", async || lab.count(expires).await >= before + 5).await;
    assert_eq!(
        (lab.count(paused).await, lab.workos.requests("/events")),
        (1, asked),
        "no process sent a request meanwhile"
    );
}
