//! Promises 3 and 4 for every kind together: users, organizations, memberships and ended sessions, in any order, any duplication
//! and any concurrency, end in the same rows, the same views and one end per object in the feed.

use std::collections::{BTreeMap, BTreeSet};

use authkit_sync::domain::event::{Content, Deletion, Event, Observation, Origin, Snapshot};
use authkit_sync::domain::object::Kind;
use authkit_sync::domain::timestamp::Timestamp;
use authkit_sync::domain::version::Version;
use authkit_sync::sync::apply;
use bytes::Bytes;
use futures_util::future::join_all;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};

use crate::auth_session::{membership, organization};
use crate::convergence::shuffle;
use crate::support::database::TestDatabase;
use crate::support::events::{at, body, event, unique, user};
use crate::support::rows::{Columns, TABLES, columns_of, rows_of};
use crate::support::service::{Service, store};

/// The name of organizations that PostgreSQL refuses.
const REFUSED: u8 = 0;

/// One change at WorkOS. Users and organizations are numbers of the case.
#[derive(Clone, Debug)]
enum Act {
    EditUser(u8, u8),
    EditOrganization(u8, u8),
    /// Adds a member, whose membership has a new ID, or edits the membership.
    Member(u8, u8, &'static str, u8),
    /// Removes a member.
    Remove(u8, u8, Told),
    DeleteUser(u8, Told),
    DeleteOrganization(u8, Told),
    /// The object of the last act is read from the REST API.
    Read,
    Revoke(u8),
}

/// How a deletion is observed.
#[derive(Clone, Copy, Debug)]
enum Told {
    Whole,
    OnlyId,
    /// A read by ID answered 404.
    Gone,
    Never,
}

/// A history, with the milliseconds that `updated_at` advances by at each act. 0: two changes in one millisecond.
fn histories() -> impl Strategy<Value = Vec<(Act, i64)>> {
    let told =
        || prop_oneof![3 => Just(Told::Whole), 3 => Just(Told::OnlyId), 1 => Just(Told::Gone), 1 => Just(Told::Never)];
    let status = prop_oneof![4 => Just("active"), 1 => Just("inactive"), 1 => Just("pending")];
    let act = prop_oneof![
        3 => (0_u8..3, any::<u8>()).prop_map(|(user, name)| Act::EditUser(user, name)),
        3 => (0_u8..2, 0_u8..9).prop_map(|(organization, name)| Act::EditOrganization(organization, name)),
        9 => (0_u8..3, 0_u8..2, status, any::<u8>()).prop_map(|(user, of, status, role)| Act::Member(user, of, status, role)),
        3 => (0_u8..3, 0_u8..2, told()).prop_map(|(user, of, told)| Act::Remove(user, of, told)),
        2 => (0_u8..3, told()).prop_map(|(user, told)| Act::DeleteUser(user, told)),
        1 => (0_u8..2, told()).prop_map(|(organization, told)| Act::DeleteOrganization(organization, told)),
        4 => Just(Act::Read),
        1 => (0_u8..3).prop_map(Act::Revoke),
    ];
    prop::collection::vec((act, prop_oneof![2 => Just(0_i64), 3 => 1_i64..5_000]), 3..22)
}

/// An observation, with its body if it is an event.
#[derive(Clone)]
struct Sent(Observation, Option<Bytes>);

/// WorkOS while it creates a history.
#[derive(Default)]
struct Workos {
    updated: i64,
    now: i64,
    users: BTreeMap<u8, String>,
    organizations: BTreeMap<u8, String>,
    members: BTreeMap<(u8, u8), String>,
    current: BTreeMap<String, (Kind, Value)>,
    /// The object of the last act.
    last: String,
    sessions: BTreeMap<String, String>,
    sent: Vec<Sent>,
}

impl Workos {
    fn play(history: &[(Act, i64)]) -> Self {
        let mut workos = Self { now: 10, updated: 10, ..Self::default() };
        for (act, after_ms) in history {
            workos.updated += after_ms;
            workos.now = workos.now.max(workos.updated) + 1;
            workos.act(act);
        }
        workos
    }

    fn act(&mut self, act: &Act) {
        let updated = self.updated;
        match *act {
            Act::EditUser(number, name) => {
                let id = self.users.entry(number).or_insert_with(|| unique("user")).clone();
                self.edit(Kind::User, &id, user(&id, &format!("name {name}"), updated));
            }
            Act::EditOrganization(number, name) => {
                let id = self.organizations.entry(number).or_insert_with(|| unique("org")).clone();
                let name = if name == REFUSED { "refused".to_owned() } else { format!("name {name}") };
                let mut now = organization(&id, &name, updated);
                now["domains"] = json!([{"id": "org_domain_1", "domain": format!("{updated}.example.test")}]);
                self.edit(Kind::Organization, &id, now);
            }
            Act::Member(user, of, status, role) => {
                let sides = (user, of);
                let user = self.users.entry(user).or_insert_with(|| unique("user")).clone();
                let of = self.organizations.entry(of).or_insert_with(|| unique("org")).clone();
                let id = self.members.entry(sides).or_insert_with(|| unique("om")).clone();
                let mut now = membership(&id, &user, &of, status, updated);
                now["role"] = json!({"slug": format!("role-{role}")});
                now["custom_attributes"] = json!({"department": format!("Ada {role}")});
                self.edit(Kind::Membership, &id, now);
            }
            Act::Remove(user, of, told) => {
                if let Some(id) = self.members.remove(&(user, of)) {
                    self.delete(Kind::Membership, &id, told);
                }
            }
            Act::DeleteUser(number, told) => {
                let id = self.users.entry(number).or_insert_with(|| unique("user")).clone();
                self.delete(Kind::User, &id, told);
            }
            Act::DeleteOrganization(number, told) => {
                let id = self.organizations.entry(number).or_insert_with(|| unique("org")).clone();
                self.delete(Kind::Organization, &id, told);
            }
            Act::Read => {
                if let Some((kind, object)) = self.current.get(&self.last) {
                    let read = snapshot_of(*kind, object, self.now);
                    self.sent.push(Sent(read, None));
                }
            }
            Act::Revoke(number) => {
                let user = self.users.entry(number).or_insert_with(|| unique("user")).clone();
                let id = unique("session");
                self.send("session.revoked", &json!({"object": "session", "id": id, "user_id": user}));
                self.sessions.insert(id, user);
            }
        }
    }

    fn edit(&mut self, kind: Kind, id: &str, now: Value) {
        let verb = if self.current.contains_key(id) { "updated" } else { "created" };
        self.send(&format!("{}.{verb}", kind.as_str()), &now);
        id.clone_into(&mut self.last);
        self.current.insert(id.to_owned(), (kind, now));
    }

    fn delete(&mut self, kind: Kind, id: &str, told: Told) {
        let last = self.current.remove(id).map(|(_, object)| object);
        let only_id = json!({"object": kind.as_str(), "id": id});
        match told {
            Told::Whole => self.send(&format!("{}.deleted", kind.as_str()), &last.unwrap_or(only_id)),
            Told::OnlyId => self.send(&format!("{}.deleted", kind.as_str()), &only_id),
            Told::Gone => {
                let object = Deletion { kind, id: id.to_owned(), of: None };
                self.sent.push(Sent(Observation::Gone { object, confirmed_at: at(self.now) }, None));
            }
            Told::Never => {}
        }
    }

    fn send(&mut self, event_type: &str, data: &Value) {
        let body = body(&unique("event"), event_type, self.now, data);
        self.sent.push(Sent(Observation::Event(event(&body)), Some(body)));
    }
}

/// A snapshot of an object of any kind.
fn snapshot_of(kind: Kind, object: &Value, observed_ms: i64) -> Observation {
    let Event { content, .. } = event(&body("event", &format!("{}.updated", kind.as_str()), 0, object));
    let Content::Live { object, version } = content else { panic!("{content:?}") };
    let id = format!("snapshot:{}", serde_json::to_string(&*object).unwrap());
    let version = Version { updated_at: version.updated_at, observed_at: at(observed_ms), id };
    Observation::Snapshot(Snapshot { object: *object, version, payload: Bytes::new() })
}

/// The expected state of an object.
#[derive(Default)]
struct Modelled {
    /// The JSON of the highest version, and the version.
    live: Option<(Version, Value)>,
    /// It is deleted. The time is the earliest one.
    deleted: Option<Option<Timestamp>>,
    /// The user and the organization of a membership.
    of: Option<(String, String)>,
}

/// The join of observations, computed from all of them at once.
#[derive(Default)]
struct Model {
    objects: BTreeMap<(Kind, String), Modelled>,
    sessions: BTreeMap<String, Option<String>>,
}

impl Model {
    fn of(sent: &[Sent]) -> Self {
        let mut model = Self::default();
        for Sent(observation, _) in sent {
            model.add(observation);
        }
        let users: BTreeSet<String> = model
            .objects
            .iter()
            .filter(|(_, object)| object.deleted.is_some())
            .map(|((_, id), _)| id.clone())
            .collect();
        for object in model.objects.values_mut() {
            if object.of.as_ref().is_some_and(|(user, _)| users.contains(user)) && object.live.is_some() {
                object.deleted.get_or_insert(None);
            }
        }
        model.sessions.retain(|_, user| user.as_ref().is_none_or(|user| !users.contains(user)));
        model
    }

    fn add(&mut self, observation: &Observation) {
        if let Observation::Event(Event { content: Content::SessionRevoked(id), user_id, .. }) = observation {
            self.sessions.insert(id.clone(), user_id.clone());
        }
        let Some((kind, id)) = observation.object() else { return };
        let (live, deleted) = match observation {
            Observation::Event(Event { content: Content::Live { object, version }, .. }) => {
                (Some((&**object, version)), None)
            }
            Observation::Snapshot(snapshot) => (Some((&snapshot.object, &snapshot.version)), None),
            Observation::Event(Event { content: Content::Deleted(deletion), created_at, .. }) => {
                (None, Some((&**deletion, *created_at)))
            }
            Observation::Gone { object, confirmed_at } => (None, Some((object, Some(*confirmed_at)))),
            Observation::Event(_) => return,
        };
        let live = live.map(|(object, version)| (version, serde_json::to_value(object).unwrap()));
        // PostgreSQL refuses the organization, so it is quarantined and changes nothing.
        if live.as_ref().is_some_and(|(_, object)| object["name"] == "refused") {
            return;
        }
        let modelled = self.objects.entry((kind, id.to_owned())).or_default();
        if let Some((version, object)) = live {
            if kind == Kind::Membership {
                let side = |name: &str| object[name].as_str().unwrap().to_owned();
                modelled.of = Some((side("user_id"), side("organization_id")));
            }
            if modelled.live.as_ref().is_none_or(|(highest, _)| version > highest) {
                modelled.live = Some((version.clone(), object));
            }
        }
        if let Some((deletion, at)) = deleted {
            let earliest = modelled.deleted.flatten().into_iter().chain(at).min();
            modelled.deleted = Some(earliest);
            let of = deletion.of.as_ref().map(|of| (of.user_id.clone(), of.organization_id.clone()));
            modelled.of = modelled.of.take().or(of);
        }
    }

    fn is_deleted(&self, kind: Kind, id: &str) -> bool {
        self.objects.get(&(kind, id.to_owned())).is_some_and(|object| object.deleted.is_some())
    }

    fn is_live(&self, kind: Kind, id: &str) -> bool {
        self.objects.get(&(kind, id.to_owned())).is_some_and(|object| object.deleted.is_none())
    }

    /// The row of an object, without null columns.
    fn row(&self, kind: Kind, id: &str) -> Columns {
        let object = &self.objects[&(kind, id.to_owned())];
        let mut row = BTreeMap::from([
            ("id".to_owned(), json!(id)),
            ("synced_deleted".to_owned(), json!(object.deleted.is_some())),
        ]);
        if let Some(deleted_at) = object.deleted {
            row.insert("synced_deleted_at".to_owned(), json!(deleted_at));
            if let Some((user, organization)) = &object.of {
                row.insert("user_id".to_owned(), json!(user));
                row.insert("organization_id".to_owned(), json!(organization));
            }
        } else {
            let (version, live) = object.live.as_ref().unwrap();
            row.extend(columns_of(live));
            row.insert("synced_extra".to_owned(), json!({}));
            row.insert("synced_observed_at".to_owned(), json!(version.observed_at));
            row.insert("synced_observation_id".to_owned(), json!(version.id));
        }
        row.retain(|_, value| !value.is_null());
        row
    }
}

async fn texts(pool: &PgPool, sql: &str, ids: &[String]) -> Vec<String> {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).bind(ids).fetch_all(pool).await.unwrap()
}

/// Checks every row of the case, with all columns.
async fn check_rows(pool: &PgPool, model: &Model, ids: &[String]) {
    for (kind, table) in TABLES {
        let mut found = rows_of(pool, table, Some(ids)).await.unwrap();
        for row in found.values_mut() {
            row.retain(|name, _| !["synced_at", "synced_version_at"].contains(&name.as_str()));
        }
        for id in model.objects.keys().filter(|(of, _)| *of == kind).map(|(_, id)| id) {
            assert_eq!(found.remove(id), Some(model.row(kind, id)), "{id}");
        }
        assert!(found.is_empty(), "rows of nothing: {found:?}");
    }
}

/// Checks the views, the ended sessions and the payloads.
async fn check_views(pool: &PgPool, model: &Model, ids: &[String]) {
    let check = async |view: &str, expected: Vec<&str>| {
        let sql = format!("select id from workos.{view} where id = any($1) order by id collate \"C\"");
        assert_eq!(texts(pool, &sql, ids).await, expected, "{view}");
    };
    let live =
        |kind: Kind| model.objects.iter().filter(move |((of, _), object)| *of == kind && object.deleted.is_none());
    check("users", live(Kind::User).map(|((_, id), _)| &**id).collect()).await;
    check("organizations", live(Kind::Organization).map(|((_, id), _)| &**id).collect()).await;
    let memberships = || live(Kind::Membership).map(|((_, id), object)| (&**id, object, object.of.as_ref().unwrap()));
    let not_ended = memberships()
        .filter(|(_, _, (user, of))| !model.is_deleted(Kind::User, user) && !model.is_deleted(Kind::Organization, of));
    check("organization_memberships", not_ended.map(|(id, ..)| id).collect()).await;
    let active = memberships().filter(|(_, object, (user, of))| {
        let is_active = object.live.as_ref().is_some_and(|(_, membership)| membership["status"] == "active");
        is_active && model.is_live(Kind::User, user) && model.is_live(Kind::Organization, of)
    });
    check("active_memberships", active.map(|(id, ..)| id).collect()).await;
    check("revoked_sessions", model.sessions.keys().map(|id| &**id).collect()).await;
    let wrong = "
        select events.id
        from workos.events
        left join workos.user_records as member on member.id = events.user_id
        where
            events.user_id = any($1)
            and (payload is null) <> coalesce(member.synced_deleted, false)";
    assert_eq!(texts(pool, wrong, ids).await, Vec::<String>::new(), "payloads");
}

/// Checks the feed: the last change of each object agrees with its row, and no object ends twice or changes after its end.
async fn check_feed(pool: &PgPool, model: &Model, ids: &[String]) {
    let changes: Vec<(String, String)> = sqlx::query_as(
        "select coalesce(object_id, user_id), kind
        from workos.changes
        where
            coalesce(object_id, user_id) = any($1)
            and (object_id is not null or kind in ('created', 'updated', 'deleted'))
        order by position",
    )
    .bind(ids)
    .fetch_all(pool)
    .await
    .unwrap();
    let mut by_object: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (id, kind) in &changes {
        by_object.entry(id).or_default().push(kind.rsplit('.').next().unwrap());
    }
    for ((kind, id), object) in &model.objects {
        let verbs = by_object.remove(&**id).unwrap_or_default();
        let ends = verbs.iter().filter(|verb| **verb == "deleted").count();
        let creations = verbs.iter().filter(|verb| **verb == "created").count();
        if object.deleted.is_none() {
            assert!(verbs.first() == Some(&"created") && creations == 1 && ends == 0, "{id} is live: {verbs:?}");
        } else if verbs.is_empty() {
            // The membership was never live here: its user was deleted before it was observed.
            assert_eq!(*kind, Kind::Membership, "{id} is deleted: {verbs:?}");
        } else {
            assert!(ends == 1 && verbs.last() == Some(&"deleted") && creations <= 1, "{id} is deleted: {verbs:?}");
            assert!(verbs.len() == 1 || verbs.first() == Some(&"created"), "{id} is deleted: {verbs:?}");
        }
    }
    assert!(by_object.is_empty(), "{by_object:?}");
}

/// How the observations of a case reach us.
#[derive(Clone, Debug)]
struct Delivery {
    again: prop::sample::Index,
    lost: prop::sample::Index,
    seed: u64,
    lanes: usize,
    slice: usize,
}

/// Three ways: webhooks in groups, events in pages, everything else in pages. The lanes are concurrent, on two stores.
async fn deliver(pool: &PgPool, other: &PgPool, service: &Service, sent: &[Sent], delivery: &Delivery) {
    let lanes = sent.chunks(sent.len().div_ceil(delivery.lanes)).enumerate().map(|(lane, sent)| async move {
        let store = store(if lane % 2 == 0 { pool } else { other });
        for (at, slice) in sent.chunks(delivery.slice).enumerate() {
            let bodies: Option<Vec<&Bytes>> = slice.iter().map(|Sent(_, body)| body.as_ref()).collect();
            if let Some(bodies) = bodies.filter(|_| (at + lane) % 3 == 0) {
                let answers = join_all(bodies.into_iter().map(|body| service.deliver(body))).await;
                assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
                continue;
            }
            let observations: Vec<Observation> = slice.iter().map(|Sent(observation, _)| observation.clone()).collect();
            let has_event = slice.iter().any(|Sent(_, body)| body.is_some());
            let origin = if has_event { Origin::CatchUp } else { Origin::Backfill };
            apply(&store, origin, &observations).await.unwrap();
        }
    });
    join_all(lanes).await;
}

/// PostgreSQL refuses organizations of this name, so that batches are applied one observation at a time.
pub(crate) const REFUSE: &str = "
    create function public.refuse() returns trigger language plpgsql as $$
    begin
        raise exception 'refused' using errcode = '22023';
    end $$;
    create trigger refuse before insert or update on workos.organization_records
    for each row when (new.name = 'refused') execute function public.refuse()";

#[test]
fn users_organizations_and_memberships_converge_in_any_order_any_duplication_any_concurrency() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (database, pool, other, service) = runtime.block_on(async {
        let database = TestDatabase::new().await;
        let (pool, other) = (database.pool(6).await, database.pool(4).await);
        sqlx::raw_sql(REFUSE).execute(&pool).await.unwrap();
        let service = Service::start(&pool).await;
        (database, pool, other, service)
    });
    let cases = std::env::var_os("CASES").and_then(|cases| cases.to_str()?.parse().ok()).unwrap_or(200);
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let delivery = (any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u64>(), 1_usize..4, 1_usize..9)
        .prop_map(|(again, lost, seed, lanes, slice)| Delivery { again, lost, seed, lanes, slice });
    let outcome = runner.run(&(histories(), delivery), |(history, delivery)| {
        let workos = Workos::play(&history);
        let mut sent = workos.sent;
        // A few are lost, and some are delivered twice.
        shuffle(&mut sent, delivery.seed);
        sent.truncate(sent.len() - delivery.lost.index(1 + sent.len() / 4));
        if sent.is_empty() {
            return Ok(());
        }
        let model = Model::of(&sent);
        sent.extend_from_within(..delivery.again.index(sent.len() + 1));
        shuffle(&mut sent, delivery.seed.wrapping_add(1));
        let named = workos.users.values().chain(workos.organizations.values()).chain(workos.sessions.keys());
        let mut ids: Vec<String> = named.cloned().collect();
        ids.extend(model.objects.keys().map(|(_, id)| id.clone()));
        runtime.block_on(async {
            deliver(&pool, &other, &service, &sent, &delivery).await;
            check_rows(&pool, &model, &ids).await;
            check_views(&pool, &model, &ids).await;
            check_feed(&pool, &model, &ids).await;
        });
        Ok(())
    });
    runtime.block_on(async {
        service.stop().await.unwrap();
        pool.close().await;
        other.close().await;
        drop(database);
    });
    outcome.unwrap();
}
