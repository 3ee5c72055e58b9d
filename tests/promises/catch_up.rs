//! Promise 5: an outage is caught up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use authkit_sync::dev::workos::{ApiFaults, Faults};
use authkit_sync::domain::clock::Clock;
use authkit_sync::domain::decide::Stored;
use authkit_sync::domain::event::Origin;
use authkit_sync::domain::timestamp::Timestamp;
use authkit_sync::metrics::Metrics;

use authkit_sync::sync::apply;
use authkit_sync::sync::catch_up::CatchUp;
use authkit_sync::sync::housekeeping::Housekeeping;
use authkit_sync::sync::job::JobContext;
use authkit_sync::sync::reconcile::Mode;
use authkit_sync::sync::runner::BackgroundLoop;
use authkit_sync::workos::api::{Api, ApiKey};
use axum::extract::RawQuery;
use axum::http::header::DATE;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use tokio::net::TcpListener;

use crate::support::database::TestDatabase;
use crate::support::events::{at, observed, unique, user};
use crate::support::lab::{Lab, another_workos, object};
use crate::support::service::store;

/// Ticks until everything that has happened so far has been read.
pub(crate) async fn to_the_end(lab: &Lab, catch_up: &CatchUp) -> Timestamp {
    let (store, now) = (lab.context().store, lab.clock.now());
    for _ in 0..200 {
        lab.clock.set(lab.clock.now().plus_seconds(1));
        catch_up.tick().await;
        let through = store.catch_up_state().await.unwrap().and_then(|place| place.synced_through);
        if let Some(through) = through.filter(|through| *through >= now) {
            return through;
        }
    }
    panic!("catch-up does not reach the last page");
}

pub(crate) async fn last_error(context: &JobContext) -> String {
    context.jobs.current()["catch_up"].error.clone().unwrap_or_default()
}

#[tokio::test]
async fn a_cursor_workos_no_longer_serves_is_replaced_and_nothing_is_missed() {
    for starts_over in [false, true] {
        let lab = Lab::new().await;
        let catch_up = lab.catch_up();
        lab.create_users(3);
        lab.clock.set(lab.clock.now().plus_seconds(600));
        to_the_end(&lab, &catch_up).await;
        lab.create_users(1);
        let before = to_the_end(&lab, &catch_up).await;
        lab.create_users(2);
        lab.workos.lose_cursors();
        lab.workos.set_api_faults(ApiFaults { lost_cursors_start_over: starts_over, ..ApiFaults::default() });
        assert!(to_the_end(&lab, &catch_up).await >= before, "synced_through never goes back");
        assert_eq!(lab.count("select count(*) from workos.users").await, 6, "starts over: {starts_over}");
        let place = lab.context().store.catch_up_state().await.unwrap().unwrap();
        assert!(!place.needs_reconcile, "nothing can have been lost");
    }
}

/// Found with SEED=145: WorkOS listed its events from the start again, and an event revived a user whose deletion was after that
/// page.
#[tokio::test]
async fn a_list_that_starts_over_revives_no_deleted_user() {
    // A page with the creation only; one that ends with the deletion; one that ends with a known event.
    for page_limit in [Some(1), Some(2), None] {
        let lab = Lab::new().await;
        let gone = lab.create_user("Gone");
        lab.clock.set(lab.clock.now().plus_seconds(10));
        lab.workos.delete_user(&gone).unwrap();
        lab.clock.set(lab.clock.now().plus_seconds(2 * 86_400));
        let catch_up = lab.catch_up();
        to_the_end(&lab, &catch_up).await;
        lab.create_users(2);
        to_the_end(&lab, &catch_up).await;
        lab.workos.lose_cursors();
        lab.workos.set_api_faults(ApiFaults { lost_cursors_start_over: true, page_limit, ..ApiFaults::default() });
        to_the_end(&lab, &catch_up).await;
        assert_eq!(lab.count("select count(*) from workos.user_records").await, 2, "{page_limit:?}");
    }
}

#[tokio::test]
async fn an_outage_beyond_retention_reads_all_remaining_events_and_requires_a_reconcile() {
    // WorkOS can reject an expired cursor, or silently list from the first page.
    for lost_cursors_start_over in [false, true] {
        let lab = Lab::new().await;
        let old = lab.create_users(2);
        to_the_end(&lab, &lab.catch_up()).await;
        lab.rename(&old[0], "Forgotten");
        lab.clock.set(lab.clock.now().plus_seconds(60 * 86_400));
        lab.create_users(1);
        let retention_s = Some(20 * 86_400);
        lab.workos.set_api_faults(ApiFaults { retention_s, lost_cursors_start_over, ..ApiFaults::default() });
        lab.free_leases().await;
        to_the_end(&lab, &lab.catch_up()).await;
        let place = lab.context().store.catch_up_state().await.unwrap().unwrap();
        assert!(place.needs_reconcile, "30 days back is refused, half of it is not, and events are lost");
        assert_eq!(lab.count("select count(*) from workos.users").await, 3);
        let report = lab.reconcile(Mode::Repair).await.unwrap();
        assert_eq!((report.counts.updated, report.counts.unchanged), (1, 2));
        assert!(
            !lab.context().store.catch_up_state().await.unwrap().unwrap().needs_reconcile,
            "a complete reconcile resets it"
        );
    }
}

/// A later start would skip events that WorkOS has not listed yet.
#[tokio::test]
async fn a_rejected_range_start_is_moved_to_at_least_an_hour_ago() {
    let lab = Lab::new().await;
    let catch_up = lab.catch_up();
    catch_up.tick().await;
    lab.clock.set(lab.clock.now().plus_seconds(60 * 86_400));
    lab.workos.set_api_faults(ApiFaults { retention_s: Some(60), ..ApiFaults::default() });
    lab.free_leases().await;
    for _ in 0..20 {
        catch_up.tick().await;
        let place = lab.context().store.catch_up_state().await.unwrap().unwrap();
        assert!(place.range_start <= lab.clock.now().plus_seconds(-3_600), "{}", place.range_start);
    }
}

#[tokio::test]
async fn an_unknown_event_type_is_logged_and_left_out() {
    let lab = Lab::new().await;
    let types = ["user.created", "user.updated", "user.deleted", "no.such_event"].map(str::to_owned).to_vec();
    lab.workos.set_api_faults(ApiFaults { unknown_types: vec!["no.such_event".to_owned()], ..ApiFaults::default() });
    lab.create_users(2);
    let context = lab.context();
    let catch_up = CatchUp::new(context.clone(), types, Duration::ZERO);
    to_the_end(&lab, &catch_up).await;
    assert_eq!(lab.count("select count(*) from workos.users").await, 2);
}

#[tokio::test]
async fn a_refused_key_suspends_and_every_other_failure_backs_off() {
    let lab = Lab::new().await;
    lab.create_users(1);
    let context = lab.context();
    let catch_up = lab.catch_up_of(context.clone());
    for (faults, says) in [
        (ApiFaults { refuse_key: true, ..ApiFaults::default() }, "check WORKOS_API_KEY"),
        (ApiFaults { error: 100, ..ApiFaults::default() }, "it answered 50"),
        (ApiFaults { rate_limit: 100, ..ApiFaults::default() }, "it answered 429"),
        (ApiFaults { cut: 100, ..ApiFaults::default() }, "connection was lost"),
        (ApiFaults { garbage: 100, ..ApiFaults::default() }, "not the expected JSON"),
    ] {
        let key_refused = faults.refuse_key;
        lab.workos.set_api_faults(faults);
        let rest = catch_up.tick().await;
        assert!(last_error(&context).await.contains(says), "{}", last_error(&context).await);
        assert_eq!(rest >= Duration::from_secs(120), key_refused, "{says}: {rest:?}");
        // This also removes the pause that a 429 can request.
        lab.free_leases().await;
    }
    lab.workos.set_api_faults(ApiFaults::default());
    to_the_end(&lab, &catch_up).await;
    assert_eq!(last_error(&context).await, "");
}

#[tokio::test]
async fn a_page_in_descending_order_is_applied_and_does_not_move_the_cursor() {
    let lab = Lab::new().await;
    let context = lab.context();
    let catch_up = lab.catch_up_of(context.clone());
    lab.create_users(1);
    to_the_end(&lab, &catch_up).await;
    let before = context.store.catch_up_state().await.unwrap().unwrap();
    for _ in 0..3 {
        lab.create_users(1);
        lab.clock.set(lab.clock.now().plus_seconds(300));
    }
    lab.workos.set_api_faults(ApiFaults { backwards: true, ..ApiFaults::default() });
    catch_up.tick().await;
    assert!(last_error(&context).await.contains("newest first"));
    assert_eq!(lab.count("select count(*) from workos.users").await, 4, "the events are applied");
    assert_eq!(context.store.catch_up_state().await.unwrap().unwrap(), before);
    lab.workos.set_api_faults(ApiFaults::default());
    to_the_end(&lab, &catch_up).await;
}

/// The Events API returns the same page each time, and always announces more events.
#[tokio::test]
async fn a_page_that_repeats_is_treated_as_the_last_page() {
    let database = TestDatabase::new().await;
    let pool = database.pool(2).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let (counted, id) = (asked.clone(), unique("user"));
    let event = json!({
        "object": "event", "id": "event_1", "event": "user.created", "created_at": at(0), "data": user(&id, "Ada", 0),
    });
    let unreadable = json!({"object": "event", "event": "user.created"});
    let events = move |_: RawQuery| {
        counted.fetch_add(1, Ordering::SeqCst);
        let page = json!({"object": "list", "data": [unreadable, event], "list_metadata": {"after": "event_1"}});
        async move { ([(DATE, "Tue, 01 Sep 2026 09:00:00 GMT")], Json(page)) }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().route("/events", get(events));
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    let clock = Clock::manual(at(0));
    let store = store(&pool);
    let api = Api::new(&base, ApiKey::new("sk_test"), clock.clone()).unwrap();
    let context = JobContext::new(store.clone(), api, clock, Arc::new(Metrics::default()), 1);
    let catch_up = CatchUp::new(context, vec!["user.created".to_owned()], Duration::from_secs(7));
    let mut rest = Duration::ZERO;
    for _ in 0..4 {
        rest = catch_up.tick().await;
    }
    assert!(rest > Duration::from_secs(5), "it pauses as after the last page: {rest:?}");
    assert!(store.catch_up_state().await.unwrap().unwrap().synced_through.is_some());
    assert!(matches!(store.user(&id).await.unwrap(), Stored::Live { .. }));
    let kept: i64 = sqlx::query_scalar("select count(*) from workos.events where outcome = 'quarantined'")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(
        (kept, asked.load(Ordering::SeqCst)),
        (1, 4),
        "an item that is not an event is quarantined; one request per step"
    );
    server.abort();
}

#[tokio::test]
async fn a_key_of_another_environment_is_detected_before_anything_is_read() {
    let lab = Lab::new().await;
    lab.create_users(12);
    to_the_end(&lab, &lab.catch_up()).await;
    lab.free_leases().await;
    let other = another_workos(&lab.clock, fastrand::u64(..), None).await;
    let stranger = other.create_user(&object(json!({"email": "stranger@example.test"}))).unwrap();
    let context = lab.context_of(&other, &other.api_key());
    let before = context.store.catch_up_state().await.unwrap();
    let rest = lab.catch_up_of(context.clone()).tick().await;
    assert!(
        last_error(&context).await.contains("WORKOS_API_KEY probably belongs to another environment"),
        "{}",
        last_error(&context).await
    );
    assert!(rest >= Duration::from_secs(60), "{rest:?}");
    assert_eq!(context.store.catch_up_state().await.unwrap(), before);
    let stored = context.store.user(stranger["id"].as_str().unwrap()).await.unwrap();
    assert!(matches!(stored, Stored::Absent));
}

/// Many users deleted during one outage would look like a wrong key without their events.
#[tokio::test]
async fn many_deletions_with_events_do_not_look_like_a_wrong_key() {
    let lab = Lab::new().await;
    let ids = lab.create_users(10);
    to_the_end(&lab, &lab.catch_up()).await;
    for id in ids.iter().skip(1) {
        lab.workos.delete_user(id).unwrap();
    }
    lab.clock.set(lab.clock.now().plus_seconds(60));
    lab.free_leases().await;
    to_the_end(&lab, &lab.catch_up()).await;
    assert_eq!(lab.count("select count(*) from workos.users").await, 1);
}

#[tokio::test]
async fn events_missing_from_webhooks_or_catch_up_are_counted() {
    let lab = Lab::new().await;
    let context = lab.context();
    let types = ["user.created", "user.updated", "user.deleted"].map(str::to_owned).to_vec();
    // A process audits right after its start.
    let audit = async |events_age: &'static str| {
        sqlx::query(
            "update workos.events
            set received_at = received_at - $1::text::interval, created_at = received_at - $1::text::interval - '1 second'::interval",
        )
            .bind(events_age)
            .execute(&lab.pool)
            .await
            .unwrap();
        Housekeeping::new(context.clone(), Duration::from_secs(90 * 86_400), Some(types.clone())).tick().await;
    };
    let gauge = |feed: &str| {
        let page = context.metrics.encode().unwrap();
        let line = format!("authkit_sync_events_missed{{feed=\"{feed}\"}} ");
        page.lines().find_map(|it| it.strip_prefix(&line)?.parse::<i64>().ok()).unwrap()
    };
    let here = user(&unique("user"), "Ada", 0);
    // Catch-up reads what no webhook has ever delivered, and an event of a type that this service does not need.
    apply(&context.store, Origin::CatchUp, &[observed("user.created", 0, &here)]).await.unwrap();
    apply(&context.store, Origin::CatchUp, &[observed("dsync.activated", 0, &here)]).await.unwrap();
    audit("0").await;
    assert_eq!(gauge("webhook"), 0, "a webhook can be some minutes late");
    audit("4 minutes").await;
    assert_eq!(gauge("webhook"), 1, "an endpoint that never delivered is noticed");
    // The endpoint is repaired and delivers the next creation, but it still lacks another type.
    apply(&context.store, Origin::Webhook, &[observed("user.created", 1, &here)]).await.unwrap();
    audit("0").await;
    assert_eq!(gauge("webhook"), 0, "the gap is over");
    apply(&context.store, Origin::CatchUp, &[observed("user.updated", 2, &here)]).await.unwrap();
    audit("4 minutes").await;
    assert_eq!(gauge("webhook"), 1);
    // Catch-up was stopped and reads late. Such events are not counted as missed by the endpoint.
    sqlx::query("update workos.events set created_at = created_at - '1 hour'::interval where type = 'user.updated'")
        .execute(&lab.pool)
        .await
        .unwrap();
    Housekeeping::new(context.clone(), Duration::from_secs(90 * 86_400), Some(types.clone())).tick().await;
    assert_eq!(gauge("webhook"), 0);
    // Events that webhooks delivered, and that catch-up should have read.
    sqlx::query(
        "insert into workos.catch_up (range_start, earliest_range_start, range_decided_at, synced_through)
        select at - '10 days'::interval, at - '10 days'::interval, at, at
        from (select now() as at) as now",
    )
    .execute(&lab.pool)
    .await
    .unwrap();
    audit("20 minutes").await;
    assert_eq!(gauge("catch_up"), 1);
    audit("3 days").await;
    assert_eq!((gauge("webhook"), gauge("catch_up")), (0, 0), "a gap of some days ago is no longer an alarm");
}

/// Webhooks are applied at once. Catch-up reads the same events later. Neither affects the other.
#[tokio::test]
async fn a_webhook_never_moves_the_cursor_and_catch_up_confirms_it() {
    let lab = Lab::new().await;
    lab.workos.set_faults(Faults { hold: true, ..Faults::default() });
    lab.workos.add_endpoint("http://held.invalid/");
    let catch_up = lab.catch_up();
    to_the_end(&lab, &catch_up).await;
    lab.workos.set_api_faults(ApiFaults { hold_back_ms: 10_000, ..ApiFaults::default() });
    let id = lab.create_user("Ada");
    let held = lab.workos.take_held().pop().unwrap();
    let before = lab.context().store.catch_up_state().await.unwrap().unwrap().cursor;
    let event = crate::support::events::event(&held.body);
    apply(&lab.context().store, Origin::Webhook, &[authkit_sync::domain::event::Observation::Event(event)])
        .await
        .unwrap();
    catch_up.tick().await;
    assert_eq!(
        lab.context().store.catch_up_state().await.unwrap().unwrap().cursor,
        before,
        "the event is still held back"
    );
    to_the_end(&lab, &catch_up).await;
    for _ in 0..12 {
        lab.clock.set(lab.clock.now().plus_seconds(1));
        catch_up.tick().await;
    }
    let both = "select count(*) from workos.events where webhook_at is not null and catch_up_at is not null";
    assert_eq!(lab.count(both).await, 1);
    assert!(matches!(lab.context().store.user(&id).await.unwrap(), Stored::Live { .. }));
}

/// A page that takes longer than the timeout is applied in parts. The last part moves the cursor.
#[tokio::test]
async fn a_page_that_times_out_is_applied_in_parts() {
    let lab = Lab::new().await;
    lab.create_users(40);
    let catch_up = lab.catch_up();
    // A statement that writes more users than this fails like one that times out.
    let slow = "create function public.slow() returns trigger language plpgsql as $$
        begin
            if (select count(*) from changed where email is not null) > (select most from public.bound) then
                raise exception 'too slow' using errcode = '57014';
            end if;
            return null;
        end
        $$;
        create table public.bound (most integer not null);
        insert into public.bound values (0);
        create trigger slow_insert after insert on workos.user_records referencing new table as changed
        for each statement execute function public.slow();
        create trigger slow_update after update on workos.user_records referencing new table as changed
        for each statement execute function public.slow()";
    sqlx::raw_sql(slow).execute(&lab.pool).await.unwrap();
    lab.clock.set(lab.clock.now().plus_seconds(60));
    for _ in 0..3 {
        catch_up.tick().await;
    }
    let cursor = "select count(*) from workos.catch_up where cursor is not null";
    assert_eq!(lab.count(cursor).await, 0, "not a single user can be written");
    sqlx::query("update public.bound set most = 7").execute(&lab.pool).await.unwrap();
    to_the_end(&lab, &catch_up).await;
    assert_eq!((lab.count("select count(*) from workos.users").await, lab.count(cursor).await), (40, 1));
    // The same holds for the pages of a scan. Each user is counted once.
    sqlx::query("delete from workos.user_records").execute(&lab.pool).await.unwrap();
    lab.free_leases().await;
    assert_eq!(lab.backfill().await.new, 40);
    sqlx::query("update workos.user_records set synced_observation_id = ' ', updated_at = 'epoch', email = 'x' where id in (select id from workos.users limit 7)")
        .execute(&lab.pool)
        .await
        .unwrap();
    lab.free_leases().await;
    let counts = lab.reconcile(Mode::Repair).await.unwrap().counts;
    assert_eq!((counts.updated, counts.unchanged), (7, 33));
}
