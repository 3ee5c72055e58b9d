//! Promises 5 and 10: odd responses of the Events API neither stop catch-up nor make it skip events.

use std::sync::Arc;
use std::time::Duration;

use authkit_sync::dev::workos::ApiFaults;
use authkit_sync::domain::clock::Clock;
use authkit_sync::domain::event::{Observation, Origin};
use authkit_sync::domain::timestamp::Timestamp;
use authkit_sync::metrics::Metrics;
use authkit_sync::store::Store;
use authkit_sync::store::catch_up::CatchUpState;
use authkit_sync::sync::apply;
use authkit_sync::sync::job::JobContext;
use authkit_sync::sync::runner::BackgroundLoop;
use authkit_sync::workos::api::{Api, ApiKey};
use serde_json::Value;

use crate::catch_up::{last_error, to_the_end};
use crate::support::events;
use crate::support::lab::Lab;

const DAY: i64 = 86_400;

async fn state(lab: &Lab) -> CatchUpState {
    lab.context().store.catch_up_state().await.unwrap().unwrap()
}

/// The events of WorkOS from an index on, as webhooks deliver them.
fn delivered(lab: &Lab, from: usize) -> Vec<Observation> {
    let events = lab.workos.events();
    let read = |event: &Value| Observation::Event(events::event(&event.to_string().into()));
    events[from..].iter().map(read).collect()
}

async fn name(lab: &Lab, id: &str) -> String {
    let name = "select first_name from workos.users where id = $1";
    sqlx::query_scalar(name).bind(id).fetch_one(&lab.pool).await.unwrap()
}

#[tokio::test]
async fn a_late_event_is_applied_and_the_cursor_moves_on() {
    for page_limit in [None, Some(1)] {
        let lab = Lab::new().await;
        let (context, ids) = (lab.context(), lab.create_users(3));
        let catch_up = lab.catch_up_of(context.clone());
        to_the_end(&lab, &catch_up).await;
        lab.clock.set(lab.clock.now().plus_seconds(3 * DAY));
        to_the_end(&lab, &catch_up).await;
        for (round, late_by_s) in [90, 600, 7_200, 2 * 86_400].into_iter().enumerate() {
            let known = lab.workos.events().len();
            lab.create_users(1);
            lab.workos.set_api_faults(ApiFaults { late: 100, late_by_s, page_limit, ..ApiFaults::default() });
            lab.rename(&ids[0], &format!("Late {round}"));
            lab.workos.set_api_faults(ApiFaults { page_limit, ..ApiFaults::default() });
            if round % 2 == 1 {
                // An event that a webhook delivered first does not mean that the list starts over.
                apply(&context.store, Origin::Webhook, &delivered(&lab, known)).await.unwrap();
            }
            to_the_end(&lab, &catch_up).await;
            let last = lab.workos.events().pop().unwrap();
            let place = state(&lab).await;
            assert_eq!(place.cursor.map(|cursor| cursor.id).as_deref(), last["id"].as_str(), "{late_by_s} s late");
            assert_eq!(name(&lab, &ids[0]).await, format!("Late {round}"));
            assert_eq!(last_error(&context).await, "");
        }
        lab.workos.set_api_faults(ApiFaults { late: 100, late_by_s: 600, page_limit, ..ApiFaults::default() });
        lab.workos.delete_user(&ids[1]).unwrap();
        lab.create_users(2);
        to_the_end(&lab, &catch_up).await;
        assert_eq!(
            lab.count("select count(*) from workos.users").await,
            8,
            "2 of the first, 4 of the rounds, 2 late ones"
        );
        assert!(!state(&lab).await.needs_reconcile, "nothing was lost");
    }
}

#[tokio::test]
async fn a_list_that_starts_over_is_not_read_again_from_its_start() {
    let lab = Lab::new().await;
    let catch_up = lab.catch_up();
    to_the_end(&lab, &catch_up).await;
    lab.create_users(80);
    to_the_end(&lab, &catch_up).await;
    lab.clock.set(lab.clock.now().plus_seconds(2 * DAY));
    to_the_end(&lab, &catch_up).await;
    lab.create_users(1);
    lab.workos.lose_cursors();
    let faults = ApiFaults { lost_cursors_start_over: true, page_limit: Some(1), ..ApiFaults::default() };
    lab.workos.set_api_faults(faults);
    let before = lab.workos.requests("/events");
    to_the_end(&lab, &catch_up).await;
    let asked = lab.workos.requests("/events") - before;
    assert!(asked < 40, "{asked} requests");
    assert_eq!(lab.count("select count(*) from workos.users").await, 81);
}

#[tokio::test]
async fn an_unreadable_last_item_is_quarantined_and_never_becomes_the_cursor() {
    let lab = Lab::new().await;
    let catch_up = lab.catch_up();
    to_the_end(&lab, &catch_up).await;
    lab.create_users(3);
    lab.workos.set_api_faults(ApiFaults { unreadable_last: true, ..ApiFaults::default() });
    let before = lab.workos.requests("/events");
    to_the_end(&lab, &catch_up).await;
    let events = lab.workos.events();
    assert_eq!(state(&lab).await.cursor.map(|cursor| cursor.id).as_deref(), events[1]["id"].as_str());
    // It is alone on the next page, which is the last one.
    to_the_end(&lab, &catch_up).await;
    assert_eq!(state(&lab).await.cursor.map(|cursor| cursor.id).as_deref(), events[1]["id"].as_str());
    assert_eq!(lab.count("select count(*) from workos.events where outcome = 'quarantined'").await, 1);
    lab.create_users(2);
    to_the_end(&lab, &catch_up).await;
    assert_eq!(
        lab.count("select count(*) from workos.users").await,
        4,
        "all except the last one, which is unreadable now"
    );
    assert!(lab.workos.requests("/events") - before < 80, "WorkOS refused a cursor");
    lab.workos.set_api_faults(ApiFaults::default());
    to_the_end(&lab, &catch_up).await;
    assert_eq!(lab.count("select count(*) from workos.users").await, 5);
}

#[tokio::test]
async fn unreadable_pages_are_quarantined_and_the_cursor_moves_on() {
    let lab = Lab::new().await;
    let catch_up = lab.catch_up();
    to_the_end(&lab, &catch_up).await;
    lab.create_users(5);
    lab.workos.set_api_faults(ApiFaults { unreadable_page: true, page_limit: Some(2), ..ApiFaults::default() });
    to_the_end(&lab, &catch_up).await;
    assert_eq!(lab.count("select count(*) from workos.events where outcome = 'quarantined'").await, 5);
    lab.workos.set_api_faults(ApiFaults::default());
    lab.create_users(1);
    to_the_end(&lab, &catch_up).await;
    assert_eq!(lab.count("select count(*) from workos.users").await, 2, "the fifth one can be read now");
}

/// Promise 10: no request is repeated without a pause.
#[tokio::test]
async fn repeatedly_rejected_cursors_are_replaced_with_a_long_pause() {
    let lab = Lab::new().await;
    let context = lab.context();
    let catch_up = lab.catch_up_of(context.clone());
    to_the_end(&lab, &catch_up).await;
    lab.create_users(3);
    lab.workos.set_api_faults(ApiFaults { page_limit: Some(1), ..ApiFaults::default() });
    let mut rests = Vec::new();
    for _ in 0..6 {
        catch_up.tick().await;
        lab.workos.lose_cursors();
        lab.clock.set(lab.clock.now().plus_seconds(1));
        rests.push(catch_up.tick().await);
    }
    assert!(rests[0] < Duration::from_secs(1), "no pause after the first rejection: {rests:?}");
    assert!(rests[1..].iter().all(|rest| *rest >= Duration::from_secs(30)), "{rests:?}");
    assert!(last_error(&context).await.contains("rejected a new catch-up cursor"));
    to_the_end(&lab, &catch_up).await;
    assert_eq!(lab.count("select count(*) from workos.users").await, 3);
}

#[tokio::test]
async fn a_wrong_date_of_workos_moves_nothing_into_the_future_and_skips_nothing() {
    for date_offset_s in [20 * DAY, 40 * DAY, 7_200, -20 * DAY] {
        let lab = Lab::new().await;
        let catch_up = lab.catch_up();
        lab.workos.set_api_faults(ApiFaults { date_offset_s, ..ApiFaults::default() });
        catch_up.tick().await;
        let begun = state(&lab).await;
        assert!(begun.range_start <= lab.clock.now().plus_seconds(-3_600), "{date_offset_s} s: {begun:?}");
        lab.workos.set_api_faults(ApiFaults::default());
        lab.create_users(1);
        to_the_end(&lab, &catch_up).await;
        lab.workos.set_api_faults(ApiFaults { date_offset_s, ..ApiFaults::default() });
        catch_up.tick().await;
        let through = state(&lab).await.synced_through.unwrap();
        assert!(through <= lab.clock.now(), "{date_offset_s} s: {through}");
        // Events that were not read before the cursor was lost are read.
        lab.create_users(2);
        lab.workos.lose_cursors();
        lab.clock.set(lab.clock.now().plus_seconds(1));
        lab.workos.set_api_faults(ApiFaults::default());
        to_the_end(&lab, &catch_up).await;
        assert_eq!(lab.count("select count(*) from workos.users").await, 3, "{date_offset_s} s");
        assert!(!state(&lab).await.needs_reconcile, "{date_offset_s} s");
    }
}

#[tokio::test]
async fn a_wrong_local_clock_is_outvoted_by_workos_and_the_database() {
    for off in [20 * DAY, -20 * DAY] {
        let lab = Lab::new().await;
        let clock = Clock::manual(lab.clock.now().plus_seconds(off));
        let store = Store::new(lab.pool.clone(), lab.pool.clone(), &lab.workos.client_id(), Duration::from_secs(20));
        let api = Api::new(lab.workos.base_url(), ApiKey::new(lab.workos.api_key()), clock.clone()).unwrap();
        let context = JobContext::new(store, api, clock, Arc::new(Metrics::default()), 1);
        lab.create_users(2);
        let catch_up = lab.catch_up_of(context);
        for _ in 0..5 {
            catch_up.tick().await;
        }
        let CatchUpState { synced_through, range_start, .. } = state(&lab).await;
        let near = |at: Timestamp| (lab.clock.now().unix_seconds() - at.unix_seconds()).abs() < 2 * 3_600;
        assert!(near(synced_through.unwrap()) && near(range_start), "{off} s: {synced_through:?} {range_start}");
        assert_eq!(lab.count("select count(*) from workos.users").await, 2);
    }
}

/// An earlier release accepted every date.
#[tokio::test]
async fn a_catch_up_state_stored_with_a_wrong_date_is_replaced_and_a_reconcile_follows() {
    for column in ["synced_through", "range_decided_at", "range_start"] {
        let lab = Lab::new().await;
        to_the_end(&lab, &lab.catch_up()).await;
        lab.create_users(2);
        let poison = match column {
            "synced_through" => "update workos.catch_up set synced_through = now() + interval '20 days'",
            "range_decided_at" => "update workos.catch_up set range_decided_at = now() + interval '20 days'",
            _ => "update workos.catch_up set cursor = null, range_start = now() + interval '20 days'",
        };
        sqlx::query(poison).execute(&lab.pool).await.unwrap();
        lab.workos.lose_cursors();
        lab.free_leases().await;
        let catch_up = lab.catch_up();
        for _ in 0..5 {
            lab.clock.set(lab.clock.now().plus_seconds(1));
            catch_up.tick().await;
        }
        assert_eq!(lab.count("select count(*) from workos.users").await, 2, "{column}");
        let CatchUpState { synced_through, range_start, range_decided_at, needs_reconcile, .. } = state(&lab).await;
        let now = lab.clock.now();
        assert!(
            needs_reconcile && range_start < now && range_decided_at <= now,
            "{column}: {range_start} {range_decided_at}"
        );
        assert!(synced_through.is_some_and(|through| through <= now), "{column}: {synced_through:?}");
    }
}
