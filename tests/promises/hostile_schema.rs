//! A role that can create objects in `public` cannot make the service run its code: no statement and no function of ours resolves a
//! name there, for any search_path of the session.
//!
//! The test collects the names: every word and operator in our migrations and statements. For each one that is a function, an
//! operator, a type or a relation of PostgreSQL, `public` contains objects that match better.

use std::time::Duration;

use authkit_sync::authkit::Builder;
use authkit_sync::dev::workos::Faults;
use authkit_sync::domain::clock::Clock;
use authkit_sync::domain::event::Origin;
use authkit_sync::sync::apply;
use authkit_sync::sync::housekeeping::Housekeeping;
use authkit_sync::sync::runner::BackgroundLoop;
use authkit_sync::workos::api::ApiKey;
use authkit_sync::{AuthKit, Change, Tx};
use serde_json::{Value, json};
use sqlx::postgres::PgPool;
use sqlx::{AssertSqlSafe, Executor};
use tokio::net::TcpListener;

use crate::support::actions::{authentication, registration, secrets};
use crate::support::binary::{Served, free_address};
use crate::support::database::TestDatabase;
use crate::support::events::{at, body, observed, unique, user};
use crate::support::lab::{Lab, another_workos};
use crate::support::service::{Answer, CLIENT_ID, Service, until};
use crate::support::{fixture, hostile};

const KEY: &str = "a-service-key-of-32-characters-or-more";

/// A database in which another role owns the objects of `public`, and a login whose search_path begins with `public`.
struct HostileLab {
    lab: Lab,
    admin: PgPool,
    login: String,
}

impl HostileLab {
    async fn new() -> Self {
        let database = TestDatabase::empty().await;
        let login = format!("{}_service", database.name());
        let admin = database.pool_with(3, |options| options.options([("search_path", "pg_catalog, pg_temp")])).await;
        hostile::create_objects(&admin).await;
        let prepare = format!(
            "create role {login} login createrole;
            alter role {login} set search_path = public, pg_catalog;
            grant create on database {} to {login}",
            database.name()
        );
        admin.execute(AssertSqlSafe(prepare)).await.unwrap();
        let pool = database.pool_with(12, |options| options.username(&login)).await;
        let clock = Clock::manual(Clock::system().now());
        let workos = another_workos(&clock, fastrand::u64(..), None).await;
        Self { lab: Lab { database, pool, workos, clock }, admin, login }
    }

    fn url(&self) -> String {
        let mut url = reqwest::Url::parse(&self.lab.database.url()).unwrap();
        url.set_username(&self.login).unwrap();
        url.to_string()
    }

    /// A command of the binary, which must succeed.
    async fn run(&self, arguments: &[&str]) -> String {
        self.run_with(arguments, &[]).await
    }

    async fn run_with(&self, arguments: &[&str], more: &[(&'static str, &str)]) -> String {
        let url = self.url();
        let more: Vec<_> = more.iter().copied().chain([("DATABASE_URL", url.as_str())]).collect();
        let (code, out, err) = self.lab.run_with(arguments, &more).await;
        assert_eq!(code, 0, "{arguments:?}: {out}{err}{}", self.called().await);
        out
    }

    /// Which hostile object was called last.
    async fn called(&self) -> String {
        hostile::called(&self.admin).await
    }

    async fn calm(&self, feature: &str) {
        let called = self.called().await;
        assert!(called.is_empty(), "{feature} called public.{called}");
    }

    /// Objects of ours that use a hostile object: a check, a default, an index, a view or a column.
    async fn bound(&self) -> Vec<String> {
        sqlx::query_scalar(
            "select pg_describe_object(refclassid, refobjid, refobjsubid)
            from pg_depend
            where
                (refclassid, refobjid) in (
                    select 'pg_proc'::regclass::oid, oid from pg_proc where pronamespace = 'public'::regnamespace
                    union all
                    select 'pg_operator'::regclass::oid, oid from pg_operator where oprnamespace = 'public'::regnamespace
                    union all
                    select 'pg_type'::regclass::oid, oid from pg_type where typnamespace = 'public'::regnamespace
                )
                and (pg_identify_object(classid, objid, objsubid)).schema = 'workos'",
        )
        .fetch_all(&self.admin)
        .await
        .unwrap()
    }

    async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&self.admin).await.unwrap()
    }

    async fn end(self) {
        self.lab.pool.close().await;
        let drop = format!("drop owned by {0} cascade; drop role {0}", self.login);
        self.admin.execute(AssertSqlSafe(drop)).await.unwrap();
    }
}

async fn get(url: &str) -> Answer {
    let client = authkit_sync::workos::http::http_client().unwrap();
    Answer::of(client.get(url).bearer_auth(KEY).send().await.unwrap()).await
}

/// Reading WorkOS: backfill, events, reconcile, retention, and what operators do with the inbox.
async fn read_workos(hostile_lab: &HostileLab) {
    let lab = &hostile_lab.lab;
    let ids = lab.create_users(7);
    hostile_lab.run(&["backfill"]).await;
    hostile_lab.calm("backfill").await;
    lab.rename(&ids[0], "Grace");
    lab.workos.delete_user(&ids[1]).unwrap();
    let catch_up = lab.catch_up();
    for _ in 0..3 {
        lab.clock.set(lab.clock.now().plus_seconds(60));
        catch_up.tick().await;
    }
    assert_eq!(
        hostile_lab.count("select count(*) from workos.users where first_name = 'Grace'").await,
        1,
        "{}",
        hostile_lab.called().await
    );
    assert_eq!(hostile_lab.count("select count(*) from workos.user_records where synced_deleted").await, 1);
    hostile_lab.calm("catch-up").await;
    // Only a full read finds changes without an event.
    lab.workos.set_faults(Faults { drop: 100, ..Faults::default() });
    lab.workos.delete_user(&ids[2]).unwrap();
    lab.rename(&ids[3], "Edith");
    lab.clock.set(lab.clock.now().plus_seconds(60));
    lab.free_leases().await;
    hostile_lab.run(&["reconcile"]).await;
    assert_eq!(hostile_lab.count("select count(*) from workos.user_records where synced_deleted").await, 2);
    hostile_lab.calm("reconcile").await;
    // A user without an event is read from WorkOS at its first lookup.
    let unheard = lab.create_user("Hedy");
    let authkit = AuthKit::builder(lab.service_pool(), lab.workos.client_id())
        .api_base(lab.workos.base_url())
        .api_key(ApiKey::new(lab.workos.api_key()))
        .clock(lab.clock.clone())
        .service_key("crm", KEY)
        .read_through(true);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/user_management/users/{unheard}", listener.local_addr().unwrap());
    let routes = authkit.build().unwrap().router();
    let serving = tokio::spawn(async move { axum::serve(listener, routes).await });
    let answer = get(&url).await;
    assert_eq!(answer.status, 200, "{} {}", answer.text, hostile_lab.called().await);
    serving.abort();
    hostile_lab.calm("read-through").await;
}

/// What operators do with the inbox, and retention.
async fn keep_the_inbox(hostile_lab: &HostileLab) {
    let store = hostile_lab.lab.context().store;
    let id = unique("user");
    let unreadable = observed("user.updated", 5, &json!({"id": id, "email_verified": true}));
    apply(&store, Origin::Webhook, &[unreadable, observed("user.created", 0, &user(&id, "Ada", 0))]).await.unwrap();
    let listed = hostile_lab.run(&["events", "list", "--outcome", "quarantined", "--since", "1h", "--json"]).await;
    let event = serde_json::from_str::<Value>(&listed).unwrap()[0]["id"].as_str().unwrap().to_owned();
    hostile_lab.run(&["events", "show", &event]).await;
    let corrected = body(&event, "user.updated", 9, &user(&id, "Grace", 9));
    let correct = "update workos.events set payload = $2 where id = $1";
    sqlx::query(correct).bind(&event).bind(&corrected[..]).execute(&hostile_lab.admin).await.unwrap();
    hostile_lab.run(&["events", "retry"]).await;
    hostile_lab.run(&["events", "replay", "--since", "1h"]).await;
    hostile_lab.run(&["user", &id]).await;
    apply(&store, Origin::Webhook, &[observed("user.deleted", 20, &json!({"id": id}))]).await.unwrap();
    hostile_lab.run(&["user", &id, "--erase"]).await;
    hostile_lab.calm("the inbox").await;
    hostile_lab
        .admin
        .execute("update workos.events set received_at = received_at - interval '100 days'")
        .await
        .unwrap();
    hostile_lab.lab.clock.set(hostile_lab.lab.clock.now().plus_seconds(60));
    hostile_lab.lab.free_leases().await;
    let housekeeping = Housekeeping::new(hostile_lab.lab.context(), Duration::from_secs(90 * 86_400), None);
    for _ in 0..3 {
        housekeeping.tick().await;
    }
    assert_eq!(hostile_lab.count("select count(*) from workos.events").await, 0, "{}", hostile_lab.called().await);
    hostile_lab.calm("retention").await;
}

/// A handler in SQL is added, runs, fails and is redriven. Its function leaves the hostile search_path in the session.
async fn handle_in_sql(hostile_lab: &HostileLab) {
    let owner = format!("{}_owner", hostile_lab.login);
    let prepare = format!(
        "create role {owner};
        grant {owner} to {};
        create schema theirs;
        grant usage on schema theirs to {owner};
        create table theirs.done (user_id text);
        create table theirs.broken ();
        grant insert on theirs.done to {owner};
        grant select on theirs.broken to {owner};
        create function theirs.on_user(change jsonb) returns void language plpgsql set search_path = pg_catalog as $$
        begin
            if exists (select from theirs.broken) then
                raise exception 'broken';
            end if;
            insert into theirs.done values (change ->> 'user_id');
            perform set_config('search_path', 'public, pg_catalog', false);
        end $$;
        alter function theirs.on_user(jsonb) owner to {owner}",
        hostile_lab.login
    );
    hostile_lab.admin.execute(AssertSqlSafe(prepare)).await.unwrap();
    hostile_lab.run(&["handlers", "add", "theirs.on_user", "--name", "mirror", "--from-start"]).await;
    hostile_lab.calm("handlers add").await;
    let environment = hostile_lab.lab.environment();
    let environment: Vec<_> = environment
        .iter()
        .filter(|(name, _)| *name != "DATABASE_URL")
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let mut served = Served::start(&hostile_lab.url(), free_address(), &environment);
    let live = hostile_lab.count("select count(*) from workos.users").await;
    until("the handler has every live user", async || {
        hostile_lab.count("select count(*) from theirs.done").await == live
    })
    .await;
    hostile_lab.admin.execute("insert into theirs.broken default values").await.unwrap();
    let create = async || {
        let created = observed("user.created", 0, &user(&unique("user"), "Ada", 0));
        apply(&hostile_lab.lab.context().store, Origin::Webhook, &[created]).await.unwrap();
    };
    create().await;
    until("it has failed", async || hostile_lab.count("select count(*) from workos.handler_backlog").await == 1).await;
    hostile_lab.admin.execute("delete from theirs.broken").await.unwrap();
    hostile_lab.run(&["handlers", "redrive", "mirror"]).await;
    create().await;
    until("both are done", async || hostile_lab.count("select count(*) from theirs.done").await == live + 2).await;
    for command in ["pause", "resume", "remove"] {
        hostile_lab.run(&["handlers", "list", "--json"]).await;
        hostile_lab.run(&["handlers", command, "mirror"]).await;
    }
    assert!(served.terminate().success());
    hostile_lab.calm("a handler in SQL").await;
    hostile_lab.admin.execute(AssertSqlSafe(format!("drop owned by {owner}; drop role {owner}"))).await.unwrap();
}

/// Binds the database to another environment.
async fn rebind(hostile_lab: &HostileLab) {
    let other = another_workos(&hostile_lab.lab.clock, fastrand::u64(..), None).await;
    let port = other.base_url().rsplit(':').next().unwrap().to_owned();
    let client_id = other.client_id();
    hostile_lab
        .run_with(&["rebind"], &[("WORKOS_CLIENT_ID", client_id.as_str()), ("WORKOS_API_PORT", port.as_str())])
        .await;
    hostile_lab.calm("rebind").await;
    // The service of the tests has another client ID.
    sqlx::query("update workos.environment set client_id = $1")
        .bind(CLIENT_ID)
        .execute(&hostile_lab.admin)
        .await
        .unwrap();
}

/// Every way to read a user and the changes over HTTP.
async fn look_up(hostile_lab: &HostileLab, service: &Service, id: &str) {
    // The user of the fixtures' tokens.
    let tokens = fixture("access_tokens");
    let vector = tokens["vectors"].as_array().unwrap().iter().find(|vector| vector["name"] == "per_client_issuer");
    let (token, subject) = (&vector.unwrap()["token"], &vector.unwrap()["claims"]["sub"]);
    let caller = user(subject.as_str().unwrap(), "Ada", 0);
    assert_eq!(service.deliver(&body(&unique("event"), "user.created", 0, &caller)).await.status, 200);
    let session = service.ask("/auth/session", token.as_str().unwrap()).await;
    assert_eq!((session.status, &session.json()["user"]["id"]), (200, subject), "{}", session.text);
    let path = format!("/user_management/users/{id}");
    let email = format!("/user_management/users?email={id}%40example.test");
    for path in [
        path.as_str(),
        "/user_management/users/external_id/crm-1",
        &email,
        "/user_management/users?limit=2",
        "/user_management/users?order=asc&limit=2",
    ] {
        let answer = get(&service.url(path)).await;
        assert_eq!(answer.status, 200, "{path}: {} {}", answer.text, hostile_lab.called().await);
    }
    let page = get(&service.url("/user_management/users?limit=2")).await.json();
    let after = page["list_metadata"]["after"].as_str().unwrap();
    assert_eq!(get(&service.url(&format!("/user_management/users?limit=2&after={after}"))).await.status, 200);
    assert_eq!(get(&service.url(&format!("/user_management/users?limit=2&before={after}"))).await.status, 200);
    let changes = get(&service.url("/changes")).await;
    assert_eq!(changes.status, 200, "{}", changes.text);
}

/// A member with a role of the environment and one of the organization, and a revoked session.
const MEMBERSHIP: &str = "
    insert into workos.organization_records
        (id, name, domains, metadata, updated_at, synced_extra, synced_observed_at, synced_observation_id, synced_at)
    values ('org_1', 'Acme', '[]', '{}', now(), '{}', now(), 'event', now());
    insert into workos.organization_membership_records
        (id, user_id, organization_id, status, roles, custom_attributes, directory_managed, updated_at, synced_extra,
        synced_observed_at, synced_observation_id, synced_at)
    values ('om_1', 'USER', 'org_1', 'active', '{clerk,org-clerk}', '{}', false, now(), '{}', now(), 'event', now());
    insert into workos.role_records (slug, permissions) values ('clerk', '{a}');
    insert into workos.organization_role_records (organization_id, slug, permissions) values ('org_1', 'org-clerk', '{b}');
    insert into workos.revoked_sessions (id) values ('revoked')";

/// Callers in SQL, with the same search_path.
async fn call_in_sql(hostile_lab: &HostileLab, id: &str) {
    let found = sqlx::query_scalar::<_, String>("select id from workos.get_auth_user($1)").bind(id);
    assert_eq!(found.fetch_all(&hostile_lab.lab.pool).await.unwrap(), [id]);
    let mut caller = hostile_lab.lab.pool.acquire().await.unwrap();
    let claims = "select pg_catalog.set_config('request.jwt.claims', $1, false)";
    sqlx::query(claims).bind(json!({"sub": id}).to_string()).execute(&mut *caller).await.unwrap();
    let own = sqlx::query_scalar::<_, String>("select id from workos.current_auth_user()");
    assert_eq!(own.fetch_all(&mut *caller).await.unwrap(), [id]);
    hostile_lab.admin.execute(AssertSqlSafe(MEMBERSHIP.replace("USER", id))).await.unwrap();
    let read = "select workos.current_organization_id(), workos.current_roles(), workos.current_permissions(),
        workos.current_organization_ids(), workos.has_permission('b'), workos.is_member_of('org_1'),
        (select id from workos.current_membership())";
    type Read = (Option<String>, Vec<String>, Vec<String>, Vec<String>, bool, bool, Option<String>);
    for (session, is_member) in [("session_1", true), ("revoked", false)] {
        let token = json!({"sub": id, "org_id": "org_1", "sid": session}).to_string();
        sqlx::query(claims).bind(token).execute(&mut *caller).await.unwrap();
        let found: Read = sqlx::query_as(read).fetch_one(&mut *caller).await.unwrap();
        let some = |text: &str| is_member.then(|| text.to_owned());
        let list = |texts: &[&str]| texts.iter().filter_map(|text| some(text)).collect::<Vec<_>>();
        let (roles, permissions) = (list(&["clerk", "org-clerk"]), list(&["a", "b"]));
        let expected: Read = (some("org_1"), roles, permissions, list(&["org_1"]), is_member, is_member, some("om_1"));
        assert_eq!(found, expected);
    }
    hostile_lab.calm("a caller in SQL").await;
}

/// The service on a pool of the application, with the search_path of that pool.
async fn serve(hostile_lab: &HostileLab) {
    let handler = |change: Change, mut tx: Tx| async move {
        let note = sqlx::query("insert into theirs.done values ($1)").bind(change.user_id);
        note.execute(&mut *tx).await.map(|_| ())
    };
    hostile_lab
        .admin
        .execute(AssertSqlSafe(format!(
            "grant usage on schema theirs to {0}; grant insert on theirs.done to {0}",
            hostile_lab.login
        )))
        .await
        .unwrap();
    let told = hostile_lab.count("select count(*) from theirs.done").await;
    let service = Service::start_with(&hostile_lab.lab.pool, |builder: Builder| {
        builder.service_key("crm", KEY).action_secrets(secrets()).session_sign_ins(true).on("rust", "user.*", handler)
    })
    .await;
    let handlers = "select count(*) from workos.handlers where name = 'rust'";
    until("the handler is known", async || hostile_lab.count(handlers).await == 1).await;
    let (id, gone) = (unique("user"), unique("user"));
    let mut known = user(&id, "Ada", 0);
    known["external_id"] = json!("crm-1");
    for (event_type, at, data) in [
        ("user.created", 0, known.clone()),
        ("user.updated", 10, {
            known["updated_at"] = json!(at(10));
            known.clone()
        }),
        ("user.updated", 5, user(&id, "stale", 5)),
        (
            "session.created",
            11,
            json!({"id": "session_1", "user_id": id, "created_at": at(11), "auth_method": "password"}),
        ),
        ("user.updated", 12, json!({"id": id})),
        ("user.created", 0, user(&gone, "Eve", 0)),
        ("user.deleted", 20, json!({"id": gone})),
    ] {
        let answer = service.deliver(&body(&unique("event"), event_type, at, &data)).await;
        assert_eq!(answer.status, 200, "{event_type}: {} {}", answer.text, hostile_lab.called().await);
    }
    look_up(hostile_lab, &service, &id).await;
    assert_eq!(service.get("/readyz").await.status, 200);
    service.metrics().await;
    for action in [registration("action_1", "eve@example.com"), authentication("action_2", &id)] {
        for _ in 0..2 {
            assert_eq!(service.verdict(&action).await.0, "Allow");
        }
    }
    until("the handler in Rust has run", async || {
        hostile_lab.count("select count(*) from theirs.done").await == told + 5
    })
    .await;
    service.stop().await.unwrap();
    hostile_lab.calm("the service").await;
    call_in_sql(hostile_lab, &id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_feature_runs_what_a_stranger_put_into_public() {
    let hostile_lab = HostileLab::new().await;
    assert!(hostile_lab.count("select count(*) from hostile.objects").await > 1_000);
    let proof = hostile_lab.lab.pool.execute("select 1 = 1").await;
    assert!(proof.is_err() && hostile_lab.called().await.contains("operator ="), "the plants work: {proof:?}");
    hostile_lab.admin.execute("alter sequence public.hostile_call restart").await.unwrap();
    hostile_lab.run(&["migrate"]).await;
    hostile_lab.run(&["migrate", "status"]).await;
    hostile_lab.calm("migrate").await;
    assert_eq!(hostile_lab.bound().await, Vec::<String>::new());
    read_workos(&hostile_lab).await;
    keep_the_inbox(&hostile_lab).await;
    handle_in_sql(&hostile_lab).await;
    rebind(&hostile_lab).await;
    serve(&hostile_lab).await;
    hostile_lab.end().await;
}
