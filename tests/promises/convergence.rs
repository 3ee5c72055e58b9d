//! Promise 3: any order, any duplication, same table. And promise 4 with it: deleted stays deleted, and erased.

use authkit_sync::domain::decide::{Stored, decide};
use authkit_sync::domain::event::{Deletion, Observation, Origin, Outcome};
use authkit_sync::domain::object::Kind;
use authkit_sync::store::Store;
use authkit_sync::store::scans::ScanKind;
use authkit_sync::sync::{apply, apply_scan_page};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::database::TestDatabase;
use crate::support::events::{at, observed, snapshot, unique, user};
use crate::support::service::store;

/// One change of a user at WorkOS.
#[derive(Clone, Debug)]
enum Act {
    /// An edit. `updated_at` advances by this many milliseconds (0: two edits in one millisecond).
    Edit { name: u8, after_ms: i64 },
    /// A sign-in. It changes `last_sign_in_at` without an event: only a snapshot shows it.
    SignIn { after_ms: i64 },
    /// The user is read from the REST API.
    Read,
}

/// The history of a user, and how its observations reach us.
#[derive(Clone, Debug)]
struct Life {
    acts: Vec<Act>,
    deleted: bool,
}

fn lives() -> impl Strategy<Value = Vec<Life>> {
    let act = prop_oneof![
        4 => (any::<u8>(), prop_oneof![Just(0_i64), 1_i64..5_000]).prop_map(|(name, after_ms)| Act::Edit { name, after_ms }),
        1 => (1_i64..5_000).prop_map(|after_ms| Act::SignIn { after_ms }),
        2 => Just(Act::Read),
    ];
    let life = (prop::collection::vec(act, 0..6), prop::bool::weighted(0.3))
        .prop_map(|(acts, deleted)| Life { acts, deleted });
    prop::collection::vec(life, 1..4)
}

/// Histories of edits that are often reverted within one millisecond: then the time of observation decides, and a scan counts even
/// if it writes nothing.
fn lives_of_edits() -> impl Strategy<Value = Vec<Life>> {
    let act = prop_oneof![
        6 => (0_u8..2, prop_oneof![4 => Just(0_i64), 1 => 1_i64..50])
            .prop_map(|(name, after_ms)| Act::Edit { name, after_ms }),
        1 => Just(Act::Read),
    ];
    let life = (prop::collection::vec(act, 2..6), prop::bool::weighted(0.1))
        .prop_map(|(acts, deleted)| Life { acts, deleted });
    prop::collection::vec(life, 4..9)
}

/// WorkOS's final state of a user, and all observations before.
struct Told {
    id: String,
    last_word: Option<Value>,
    deleted_at: Option<i64>,
    observations: Vec<Observation>,
    /// The user in WorkOS's list from each instant on.
    listed: Vec<(i64, Option<Value>)>,
}

fn live_through(life: &Life) -> Told {
    let id = unique("user");
    // `updated` is WorkOS's `updated_at`, which two edits may share. `now` distinguishes their events.
    let (mut updated, mut now) = (10, 10);
    let mut current = user(&id, "first", updated);
    let mut observations = vec![observed("user.created", now + 1, &current)];
    let mut listed = vec![(0, None), (now, Some(current.clone()))];
    for act in &life.acts {
        match act {
            Act::Edit { name, after_ms } => {
                updated += after_ms;
                now = now.max(updated) + 1;
                current["first_name"] = json!(format!("name {name}"));
                current["updated_at"] = json!(at(updated));
                observations.push(observed("user.updated", now, &current));
            }
            Act::SignIn { after_ms } => {
                now += after_ms;
                current["last_sign_in_at"] = json!(at(now));
                observations.push(snapshot(&current, now + 1));
            }
            Act::Read => observations.push(snapshot(&current, now + 1)),
        }
        listed.push((now, Some(current.clone())));
        now += 2;
    }
    let deleted_at = life.deleted.then_some(now + 5);
    if let Some(deleted_at) = deleted_at {
        observations.push(observed("user.deleted", deleted_at, &json!({"object": "user", "id": id})));
    }
    listed.extend(deleted_at.map(|at| (at, None)));
    Told { id, last_word: deleted_at.is_none().then_some(current), deleted_at, observations, listed }
}

async fn assert_last_words(store: &Store, pool: &PgPool, told: &[Told]) {
    for told in told {
        match (store.user(&told.id).await.unwrap(), &told.last_word) {
            (Stored::Live { object: user, .. }, Some(word)) => assert_eq!(&serde_json::to_value(&user).unwrap(), word),
            (Stored::Tombstone { deleted_at, .. }, None) => assert_eq!(deleted_at, told.deleted_at.map(at)),
            (stored, word) => panic!("{stored:?} where WorkOS says {word:?}"),
        }
        let kept: i64 =
            sqlx::query_scalar("select count(*) from workos.events where user_id = $1 and payload is not null")
                .bind(&told.id)
                .fetch_one(pool)
                .await
                .unwrap();
        let events = told.observations.iter().filter(|seen| matches!(seen, Observation::Event(_))).count();
        let expected = if told.deleted_at.is_some() { 0 } else { i64::try_from(events).unwrap() };
        assert_eq!(kept, expected, "payloads of {}", told.id);
    }
}

/// Cases share one database and use new IDs, so that thousands of cases are cheap.
#[test]
fn any_order_any_duplication_any_concurrency_same_table() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (database, pool, store) = runtime.block_on(async {
        let database = TestDatabase::new().await;
        let pool = database.pool(8).await;
        let store = store(&pool);
        (database, pool, store)
    });
    let cases = std::env::var_os("CASES").and_then(|cases| cases.to_str()?.parse().ok()).unwrap_or(2_000);
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let strategy = (lives(), any::<prop::sample::Index>(), any::<u64>(), 1_usize..4, 1_usize..6);
    let outcome = runner.run(&strategy, |(lives, again, seed, lanes, slice)| {
        let told: Vec<Told> = lives.iter().map(live_through).collect();
        let mut deliveries: Vec<Observation> = told.iter().flat_map(|told| told.observations.clone()).collect();
        // Some are delivered twice.
        let twice = again.index(deliveries.len() + 1);
        deliveries.extend_from_within(..twice);
        shuffle(&mut deliveries, seed);
        runtime.block_on(async {
            let mut workers = tokio::task::JoinSet::new();
            for lane in deliveries.chunks(deliveries.len().div_ceil(lanes)) {
                let (lane, store) = (lane.to_vec(), store.clone());
                workers.spawn(async move {
                    for (at, slice) in lane.chunks(slice).enumerate() {
                        let origin = if at % 2 == 0 { Origin::Webhook } else { Origin::CatchUp };
                        apply(&store, origin, slice).await.unwrap();
                    }
                });
            }
            while let Some(worker) = workers.join_next().await {
                worker.unwrap();
            }
            assert_last_words(&store, &pool, &told).await;
        });
        Ok(())
    });
    runtime.block_on(async {
        pool.close().await;
        drop(database);
    });
    outcome.unwrap();
}

/// A scan of WorkOS's list while observations arrive in any order: before its page, between its page and its confirmation, and
/// afterwards. The table ends as the join of all of them, including the scan's snapshots as of its start.
#[test]
fn a_scan_that_writes_only_what_differs_joins_like_any_other_observation() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (database, pool, store) = runtime.block_on(async {
        let database = TestDatabase::new().await;
        let pool = database.pool(4).await;
        let store = store(&pool);
        (database, pool, store)
    });
    let mut runner = TestRunner::new(Config { cases: 300, failure_persistence: None, ..Config::default() });
    let moment = || 0_i64..150;
    let strategy = (lives_of_edits(), any::<u64>(), moment(), moment(), any::<[prop::sample::Index; 3]>());
    let outcome = runner.run(&strategy, |(lives, seed, began, read_after, cuts)| {
        let told: Vec<Told> = lives.iter().map(live_through).collect();
        let mut deliveries: Vec<Observation> = told.iter().flat_map(|told| told.observations.clone()).collect();
        shuffle(&mut deliveries, seed);
        let mut cuts = cuts.map(|cut| cut.index(deliveries.len() + 1));
        cuts.sort_unstable();
        // The other observations are lost, so that only the scan finds their changes.
        deliveries.truncate(cuts[2]);
        runtime.block_on(scan_among(&store, &told, &deliveries, cuts, (began, began + read_after)));
        Ok(())
    });
    runtime.block_on(async {
        pool.close().await;
        drop(database);
    });
    outcome.unwrap();
}

async fn scan_among(
    store: &Store,
    told: &[Told],
    deliveries: &[Observation],
    cuts: [usize; 3],
    (began, read): (i64, i64),
) {
    let deliver = async |deliveries: &[Observation]| {
        for slice in deliveries.chunks(2) {
            apply(store, Origin::Webhook, slice).await.unwrap();
        }
    };
    let mut all = deliveries.to_vec();
    let first = cuts[0] / 2;
    deliver(&deliveries[..first]).await;
    let scan = store.begin_scan(ScanKind::Reconcile, at(began)).await.unwrap();
    deliver(&deliveries[first..cuts[0]]).await;
    let listed = |told: &Told| told.listed.iter().rfind(|(since, _)| *since <= read).and_then(|(_, user)| user.clone());
    let page: Vec<Observation> = told.iter().filter_map(listed).map(|user| snapshot(&user, read)).collect();
    apply_scan_page(store, &scan, &page).await.unwrap();
    all.extend(told.iter().filter_map(listed).map(|user| snapshot(&user, began)));
    deliver(&deliveries[cuts[0]..cuts[1]]).await;
    store.confirm_scan(&scan).await.unwrap();
    let rows = store.rows_after("", at(began), Some(&scan), i64::MAX).await.unwrap();
    for told in told {
        let unconfirmed = rows.iter().any(|row| row.id == told.id && row.is_live && row.is_unconfirmed);
        let missing = listed(told).is_none() && told.deleted_at.is_some_and(|at| at <= read);
        let by_id = match &told.last_word {
            Some(user) if unconfirmed => Some(snapshot(user, 1_000_000)),
            None if unconfirmed || missing => Some(Observation::Gone {
                object: Deletion { kind: Kind::User, id: told.id.clone(), of: None },
                confirmed_at: at(1_000_000),
            }),
            _ => None,
        };
        if let Some(by_id) = by_id {
            apply(store, Origin::Reconcile, std::slice::from_ref(&by_id)).await.unwrap();
            all.push(by_id);
        }
    }
    deliver(&deliveries[cuts[1]..]).await;
    for told in told {
        let mut joined = Stored::Absent;
        for observation in all.iter().filter(|observation| observation.user_id() == Some(&told.id)) {
            decide(Some(&mut joined), false, observation);
        }
        match (store.user(&told.id).await.unwrap(), joined) {
            (Stored::Live { object: here, .. }, Stored::Live { object: joined, .. }) => {
                assert_eq!(serde_json::to_value(&here).unwrap(), serde_json::to_value(&joined).unwrap());
            }
            (Stored::Tombstone { deleted_at: here, .. }, Stored::Tombstone { deleted_at, .. }) => {
                assert_eq!(here, deleted_at)
            }
            // Everything about this user was lost, and the scan did not list it.
            (Stored::Absent, Stored::Absent) => {}
            (here, joined) => panic!("{here:?} where the join is {joined:?}"),
        }
    }
}

/// A seeded Fisher-Yates over splitmix64.
pub(crate) fn shuffle<T>(items: &mut [T], mut seed: u64) {
    for at in (1..items.len()).rev() {
        seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = seed;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let pick = (word ^ (word >> 31)) % (at as u64 + 1);
        items.swap(at, usize::try_from(pick).unwrap());
    }
}

#[tokio::test]
async fn the_first_outcome_stays_and_a_duplicate_only_fills_in_its_feed() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let store = store(&pool);
    let id = unique("user");
    let created = observed("user.created", 1, &user(&id, "Ada", 1));
    let Observation::Event(event) = &created else { unreachable!() };
    let slice = [created.clone()];
    let first = apply(&store, Origin::Webhook, &slice).await.unwrap();
    assert_eq!((first[0].effect.outcome(), first[0].is_duplicate), (Outcome::Applied, false));
    let row = || async {
        sqlx::query_as::<_, (String, bool, bool, Option<String>)>(
            "select outcome, webhook_at is not null, catch_up_at is not null, webhook_at::text from workos.events where id = $1",
        )
        .bind(&event.id)
        .fetch_one(&pool)
        .await
        .unwrap()
    };
    let before = row().await;
    assert_eq!((before.0.as_str(), before.1, before.2), ("applied", true, false));
    assert!(apply(&store, Origin::Webhook, &slice).await.unwrap()[0].is_duplicate);
    assert_eq!(row().await, before, "a webhook's duplicate changes nothing");
    assert!(apply(&store, Origin::CatchUp, &slice).await.unwrap()[0].is_duplicate);
    let after = row().await;
    assert_eq!((after.0.as_str(), after.1, after.2, after.3), ("applied", true, true, before.3));
}

#[tokio::test]
async fn an_event_twice_in_one_slice_is_one_row() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let store = store(&pool);
    let created = observed("user.created", 1, &user(&unique("user"), "Ada", 1));
    let applied = apply(&store, Origin::Webhook, &[created.clone(), created]).await.unwrap();
    assert_eq!(applied.iter().map(|applied| applied.is_duplicate).collect::<Vec<_>>(), [false, true]);
}

/// Slices over the same users in opposite orders would deadlock if rows were locked in slice order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_batches_over_the_same_users_never_deadlock() {
    let database = TestDatabase::new().await;
    let pool = database.pool(8).await;
    let store = store(&pool);
    let ids: Vec<String> = (0..20).map(|_| unique("user")).collect();
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0_i64..8 {
        let (store, mut ids) = (store.clone(), ids.clone());
        workers.spawn(async move {
            for round in 0..15 {
                let version = round * 8 + worker;
                shuffle(&mut ids, u64::try_from(version).unwrap());
                let slice: Vec<Observation> = ids
                    .iter()
                    .map(|id| observed("user.updated", version, &user(id, &format!("v{version}"), version)))
                    .collect();
                apply(&store, Origin::Webhook, &slice).await.unwrap();
            }
        });
    }
    while let Some(worker) = workers.join_next().await {
        worker.unwrap();
    }
    let deadlocks: i64 =
        sqlx::query_scalar("select deadlocks from pg_stat_database where datname = current_database()")
            .fetch_one(&pool)
            .await
            .unwrap();
    assert_eq!(deadlocks, 0);
    for id in &ids {
        let Stored::Live { object: user, .. } = store.user(id).await.unwrap() else { panic!("{id} is not alive") };
        assert_eq!(user.first_name.as_deref(), Some("v119"));
    }
}
