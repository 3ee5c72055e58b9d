//! Reads of WorkOS's API from a streaming standby: real servers, with a standby that is paused, behind, killed or promoted.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use authkit_sync::dev::workos::{ApiFaults, SimulatedWorkos};
use authkit_sync::domain::change::Position;
use authkit_sync::domain::clock::Clock;
use authkit_sync::domain::decide::Stored;
use authkit_sync::domain::event::Origin;
use authkit_sync::store::standby::Mark;
use authkit_sync::store::{Pool, Store, StoreError};
use authkit_sync::sync::apply;
use authkit_sync::workos::http::http_client;
use authkit_sync::workos::signature::Secret;
use authkit_sync::{AuthKit, Hosts, SecretError};
use bytes::Bytes;
use serde_json::{Value, json};
use sqlx::postgres::{PgConnectOptions, PgPool};
use sqlx::{AssertSqlSafe, Executor};

use crate::alerts_fire::hasty_rules;
use crate::support::binary::{Served, free_address, run, said};
use crate::support::cluster::{Cluster, pool};
use crate::support::database::TestDatabase;
use crate::support::events::{body, observed, unique, user};
use crate::support::lab::{another_workos, object};
use crate::support::pgbouncer::PgBouncer;
use crate::support::prometheus::{Prometheus, is_installed};
use crate::support::service::{Answer, CLIENT_ID, SECRET, until};

const KEY: &str = "a-service-key-of-the-test-0123456789";

/// Longer than any test, so that the age of the standby's data never matters.
const UNLIMITED: &str = "1h";

/// A primary, its standby, and WorkOS.
struct Scene {
    cluster: Cluster,
    primary: PgPool,
    standby: PgPool,
    workos: SimulatedWorkos,
}

impl Scene {
    async fn new() -> Self {
        let cluster = Cluster::start().await;
        let workos = another_workos(&Clock::system(), fastrand::u64(..), None).await;
        let (primary, standby) = (pool(&cluster.primary).await, pool(&cluster.standby).await);
        let bind = sqlx::query("update workos.environment set client_id = $1").bind(workos.client_id());
        bind.execute(&primary).await.unwrap();
        Self { cluster, primary, standby, workos }
    }

    fn standby_url(&self) -> String {
        self.cluster.standby.url("postgres")
    }

    /// Starts the service, and waits until reads use the standby.
    async fn serve(&self, staleness: &str) -> Service {
        let service = self.serve_with(&self.cluster.primary.url("postgres"), &self.standby_url(), staleness);
        service.uses_standby(true).await;
        service
    }

    fn serve_with(&self, primary: &str, standby: &str, staleness: &str) -> Service {
        self.serve_with_more(primary, standby, staleness, &[])
    }

    fn serve_with_more(&self, primary: &str, standby: &str, staleness: &str, more: &[(&str, &str)]) -> Service {
        let (keys, client_id) = (format!("test:{KEY}"), self.workos.client_id());
        let port = self.workos.base_url().rsplit(':').next().unwrap();
        let mut settings = vec![
            ("AUTHKIT_SYNC_API_KEYS", keys.as_str()),
            ("WORKOS_CLIENT_ID", &client_id),
            ("WORKOS_API_PORT", port),
            ("AUTHKIT_SYNC_READ_DATABASE_URL", standby),
            ("AUTHKIT_SYNC_READ_STALENESS", staleness),
        ];
        settings.extend(more);
        Service { served: Served::start(primary, free_address(), &settings), client: http_client().unwrap() }
    }

    async fn replay(&self, is_paused: bool) {
        let function = if is_paused { "pause" } else { "resume" };
        let sql = format!("select pg_wal_replay_{function}()");
        self.standby.execute(AssertSqlSafe(sql)).await.unwrap();
        let wanted = if is_paused { "paused" } else { "not paused" };
        until(wanted, async || {
            let state = sqlx::query_scalar("select pg_get_wal_replay_pause_state()").fetch_one(&self.standby);
            let state: String = state.await.unwrap();
            state == wanted
        })
        .await;
    }

    /// A token of a user.
    fn token(&self, user: &str) -> String {
        self.workos.token(user, "session_1", 3_600).unwrap()
    }
}

/// A running service.
struct Service {
    served: Served,
    client: reqwest::Client,
}

impl Service {
    /// Reads the state that contains a position.
    async fn get_at(&self, path: &str, position: &str) -> Answer {
        let request = self.client.get(self.served.url(path)).bearer_auth(KEY);
        Answer::of(request.header("AuthKit-Sync-Position", position).send().await.unwrap()).await
    }

    async fn get(&self, path: &str, token: &str) -> Answer {
        Answer::of(self.client.get(self.served.url(path)).bearer_auth(token).send().await.unwrap()).await
    }

    async fn read(&self, path: &str) -> Answer {
        let answer = self.get(path, KEY).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        answer
    }

    /// The IDs of all users, and the position of the list.
    async fn list(&self) -> (Vec<String>, String) {
        let answer = self.read("/user_management/users?limit=100").await;
        let ids = answer.json()["data"].as_array().unwrap().iter().map(id).collect();
        (ids, answer.header("authkit-sync-position").to_owned())
    }

    /// The changes after a position, until there are no more.
    async fn changes(&self, position: &str) -> Vec<Value> {
        let mut position = position.to_owned();
        let mut changes = Vec::new();
        loop {
            let page = self.read(&format!("/changes?after={position}")).await.json();
            position = page["position"].as_str().unwrap().to_owned();
            let data = page["data"].as_array().unwrap();
            if data.is_empty() {
                return changes;
            }
            changes.extend(data.iter().cloned());
        }
    }

    async fn webhook(&self, event_type: &str, data: &Value, at: i64) {
        let body: Bytes = body(&unique("event"), event_type, at, data);
        let signature = Secret::new(SECRET).sign(Clock::system().now(), &body);
        let request = self.client.post(self.served.url("/workos/webhook")).header("workos-signature", signature);
        let answer = Answer::of(request.body(body).send().await.unwrap()).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }

    async fn create(&self) -> String {
        let id = unique("user");
        self.webhook("user.created", &user(&id, "Ada", 0), 0).await;
        id
    }

    async fn delete(&self, id: &str) {
        self.webhook("user.deleted", &user(id, "Ada", 0), 1).await;
    }

    /// What an operator sees of the standby.
    async fn standby(&self) -> Value {
        let url = format!("http://{}/readyz", self.served.ops);
        Answer::of(self.client.get(url).send().await.unwrap()).await.json()["standby"].clone()
    }

    async fn uses_standby(&self, is_used: bool) {
        until("reads switch between the standby and the primary", async || {
            self.standby().await["used"] == json!(is_used)
        })
        .await;
    }

    async fn metric(&self, name: &str) -> Option<f64> {
        let url = format!("http://{}/metrics", self.served.ops);
        let text = Answer::of(self.client.get(url).send().await.unwrap()).await.text;
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.rsplit(' ').next().unwrap().parse().ok()
    }

    async fn reads(&self, server: &str) -> f64 {
        self.metric(&format!("authkit_sync_reads_total{{server=\"{server}\"}}")).await.unwrap_or_default()
    }
}

fn id(object: &Value) -> String {
    object["id"].as_str().unwrap().to_owned()
}

/// Waits until the standby shows this user.
async fn replicated(scene: &Scene, id: &str) {
    until("the standby has the user", async || {
        let found = sqlx::query_scalar("select exists (select from workos.users where id = $1)").bind(id);
        found.fetch_one(&scene.standby).await.unwrap()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_from_a_paused_standby_is_complete_up_to_its_position_and_lookups_use_the_primary() {
    let scene = Scene::new().await;
    let service = scene.serve(UNLIMITED).await;
    let (kept, deleted) = (service.create().await, service.create().await);
    replicated(&scene, &deleted).await;
    let before = service.list().await;
    until("the position of the list contains them", async || service.changes(&service.list().await.1).await.is_empty())
        .await;
    scene.replay(true).await;
    let new = service.create().await;
    service.delete(&deleted).await;
    // A deletion holds from its commit where a token is judged, and in the feed.
    let (status, code) = service.get("/auth/user", &scene.token(&deleted)).await.code();
    assert_eq!((status, &*code), (404, "user_deleted"));
    assert_eq!(service.get("/auth/user", &scene.token(&new)).await.status, 200);
    let primary_reads = service.reads("primary").await;
    let (mut listed, position) = service.list().await;
    listed.sort();
    assert_eq!(listed, [kept.clone(), deleted.clone()], "the list is from the standby: {before:?}");
    assert_eq!(service.reads("primary").await, primary_reads);
    let changes = service.changes(&position).await;
    let of = |kind: &str| changes.iter().filter(|change| change["kind"] == kind).count();
    assert_eq!((of("created"), of("deleted"), changes.len()), (1, 1, 2), "{changes:?}");
    // A user that the standby does not have may be new.
    let path = format!("/user_management/users/{new}");
    assert_eq!(service.read(&path).await.json()["id"], json!(new));
    assert_eq!(service.reads("primary").await, primary_reads + 1.0);
    assert_eq!(service.get("/user_management/users/user_unknown", KEY).await.status, 404);
    scene.replay(false).await;
    until("the list is as new as the primary", async || {
        let mut listed = service.list().await.0;
        listed.sort();
        listed == [kept.clone(), new.clone()]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_is_too_far_behind_is_not_read_until_it_has_caught_up() {
    let scene = Scene::new().await;
    let service = scene.serve("3s").await;
    let known = service.create().await;
    replicated(&scene, &known).await;
    scene.replay(true).await;
    let new = service.create().await;
    until("the primary answers", async || service.list().await.0.contains(&new)).await;
    service.uses_standby(false).await;
    let state = service.standby().await;
    assert_eq!(state["age_seconds"], Value::Null);
    until("the reason is known", async || {
        service.standby().await["problem"].as_str().is_some_and(|why| why.starts_with("its data is more than"))
    })
    .await;
    assert_eq!(service.metric("authkit_sync_standby_age_seconds").await, None);
    assert_eq!(service.metric("authkit_sync_standby_used").await, Some(0.0));
    let page =
        Answer::of(service.client.get(format!("http://{}/", service.served.ops)).send().await.unwrap()).await.text;
    assert!(page.contains("its data is more than"), "{page}");
    // It stays there: the standby has the older content.
    for _ in 0..20 {
        assert!(service.list().await.0.contains(&new));
    }
    until("it is logged", async || {
        service.served.log().contains("because the standby cannot be used: its data is more than")
    })
    .await;
    scene.replay(false).await;
    service.uses_standby(true).await;
    assert!(service.list().await.0.contains(&new));
    assert!(service.metric("authkit_sync_standby_age_seconds").await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_is_not_used_fires_its_alert() {
    if !is_installed() {
        return;
    }
    let scene = Scene::new().await;
    let service = scene.serve("3s").await;
    let prometheus = Prometheus::start(&[service.served.ops], &hasty_rules()).await;
    let used = "authkit_sync_standby_used == 1";
    until("Prometheus knows that it is used", async || !prometheus.query(used).await.unwrap().is_empty()).await;
    scene.replay(true).await;
    prometheus.fires("AuthkitSyncStandbyUnused").await;
}

/// Random writes and pauses of the replication. Each list, with the changes after its position, is the final table.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_starts_from_a_list_of_the_standby_ends_with_the_table_of_the_primary() {
    let scene = Scene::new().await;
    let service = scene.serve(UNLIMITED).await;
    let writes = async {
        let mut live: Vec<String> = Vec::new();
        for round in 0..150 {
            match fastrand::u32(0..10) {
                0..5 => live.push(service.create().await),
                5..7 if live.len() > 5 => service.delete(&live.swap_remove(fastrand::usize(..live.len()))).await,
                7 => scene.replay(fastrand::bool()).await,
                _ if !live.is_empty() => {
                    let id = &live[fastrand::usize(..live.len())];
                    service.webhook("user.updated", &user(id, "Grace", round + 10), round + 10).await;
                }
                _ => {}
            }
        }
        scene.replay(false).await;
        live
    };
    let lists = async {
        let mut lists = Vec::new();
        for _ in 0..60 {
            lists.push(service.read("/user_management/users?limit=100").await);
        }
        lists
    };
    let (mut live, lists) = tokio::join!(writes, lists);
    live.sort();
    assert!(service.reads("standby").await > 30.0, "the standby has answered");
    let users: BTreeMap<String, Value> = sqlx::query_as("select id, first_name from workos.users")
        .fetch_all(&scene.primary)
        .await
        .unwrap()
        .into_iter()
        .map(|(id, name): (String, String)| (id, Value::from(name)))
        .collect();
    assert_eq!(users.keys().cloned().collect::<Vec<_>>(), live);
    for list in lists {
        let position = list.header("authkit-sync-position").to_owned();
        let data = list.json()["data"].as_array().unwrap().clone();
        let mut followed: BTreeMap<String, Value> =
            data.iter().map(|user| (id(user), user["first_name"].clone())).collect();
        for change in service.changes(&position).await {
            let id = change["user_id"].as_str().unwrap().to_owned();
            match &change["user"] {
                Value::Null => followed.remove(&id),
                user => followed.insert(id, user["first_name"].clone()),
            };
        }
        assert_eq!(followed, users, "from {position}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_continue_while_the_standby_is_killed_and_use_it_again_after_its_restart() {
    let mut scene = Scene::new().await;
    let service = scene.serve(UNLIMITED).await;
    let known = service.create().await;
    replicated(&scene, &known).await;
    let paths = ["/user_management/users".to_owned(), format!("/user_management/users/{known}")];
    let reads = async |times: u32| {
        for _ in 0..times {
            for path in &paths {
                service.read(path).await;
            }
        }
    };
    let from_standby = service.reads("standby").await;
    reads(10).await;
    assert_eq!(service.reads("standby").await, from_standby + 20.0);
    let pid = rustix::process::Pid::from_raw(scene.cluster.standby.pid().unwrap().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::QUIT).unwrap();
    reads(50).await;
    service.uses_standby(false).await;
    let why = service.standby().await["problem"].as_str().unwrap_or_default().to_owned();
    assert!(why.contains("a read has failed") || why.contains("PostgreSQL at"), "{why}");
    assert!(!why.contains("DATABASE_URL"), "{why}");
    assert_eq!(service.list().await.0, [known]);
    tokio::task::block_in_place(|| {
        scene.cluster.standby.pause().unwrap();
        scene.cluster.standby.resume().unwrap();
    });
    service.uses_standby(true).await;
    let from_standby = service.reads("standby").await;
    reads(1).await;
    assert_eq!(service.reads("standby").await, from_standby + 2.0);
}

/// Both URLs name both servers. After the failover there is no standby any more, and the positions of the old primary have expired.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_promotion_of_the_standby_the_new_primary_answers() {
    let scene = Scene::new().await;
    scene.cluster.replicate_synchronously().await;
    let both = scene.cluster.url();
    let service = scene.serve_with(&both, &both.replace("read-write", "standby"), UNLIMITED);
    service.uses_standby(true).await;
    let known = service.create().await;
    replicated(&scene, &known).await;
    let (_, before) = service.list().await;
    scene.cluster.crash_primary();
    scene.cluster.promote_standby().await;
    until("the new primary answers", async || {
        let answer = service.get("/user_management/users", KEY).await;
        answer.status == 200 && !answer.header("authkit-sync-position").starts_with(before.split('-').next().unwrap())
    })
    .await;
    let new = service.create().await;
    let (listed, _) = service.list().await;
    assert!(listed.contains(&known) && listed.contains(&new), "{listed:?}");
    service.uses_standby(false).await;
    assert_eq!(service.get(&format!("/changes?after={before}"), KEY).await.status, 410);
}

/// If the setting names another database by mistake, the service never reads it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_does_not_replicate_the_primary_is_never_read() {
    let (scene, other) = (Scene::new().await, TestDatabase::new().await);
    let url = other.url();
    let service = scene.serve_with(&scene.cluster.primary.url("postgres"), &url, UNLIMITED);
    let known = service.create().await;
    until("the mistake is noticed", async || {
        let why = service.standby().await["problem"].as_str().unwrap_or_default().to_owned();
        why.starts_with("it does not replicate the server of DATABASE_URL")
    })
    .await;
    assert_eq!(service.list().await.0, [known]);
    assert_eq!(service.reads("standby").await, 0.0);
    let checked = doctor(&scene, &url);
    assert!(
        checked.starts_with("failure") && checked.contains("it does not replicate the server of DATABASE_URL"),
        "{checked}"
    );
}

/// The check of the standby, with the line of what to do.
fn doctor(scene: &Scene, standby: &str) -> String {
    let (primary, client_id) = (scene.cluster.primary.url("postgres"), scene.workos.client_id());
    let environment = [
        ("DATABASE_URL", primary.as_str()),
        ("WORKOS_CLIENT_ID", &client_id),
        ("AUTHKIT_SYNC_READ_DATABASE_URL", standby),
        ("AUTHKIT_SYNC_READ_STALENESS", "3s"),
        ("AUTHKIT_SYNC_DB_TIMEOUT", "3s"),
    ];
    let text = said(&run(&["doctor"], &environment));
    let mut lines = text.lines().skip_while(|line| !line.split_whitespace().any(|word| word == "standby"));
    format!("{}\n{}", lines.next().unwrap_or_else(|| panic!("{text}")), lines.next().unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_says_what_the_standby_is_and_how_far_it_is_behind() {
    let scene = Scene::new().await;
    let standby = scene.standby_url();
    let checked = doctor(&scene, &standby);
    assert!(checked.contains("no process of `serve` has written a mark"), "{checked}");
    let service = scene.serve(UNLIMITED).await;
    let checked = doctor(&scene, &standby);
    assert!(checked.starts_with("ok ") && checked.contains("is a standby; its data is about"), "{checked}");
    let checked = doctor(&scene, &scene.cluster.primary.url("postgres"));
    assert!(checked.starts_with("warning") && checked.contains("so the primary still answers every read"), "{checked}");
    scene.replay(true).await;
    until("it is too far behind", async || {
        doctor(&scene, &standby).contains("s old, so the primary answers every read")
    })
    .await;
    assert!(service.standby().await["used"].as_bool().unwrap(), "its own bound is larger");
    let nowhere = format!("postgres://postgres@{}/postgres", free_address());
    let checked = doctor(&scene, &nowhere);
    assert!(checked.starts_with("warning") && checked.contains("cannot be used"), "{checked}");
    assert!(checked.contains("the primary answers every read"), "{checked}");
}

/// The pages of a list, or a user and a change of it, can come from different servers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_contains_every_change_up_to_the_position_in_its_request() {
    let scene = Scene::new().await;
    let service = scene.serve(UNLIMITED).await;
    let known = service.create().await;
    replicated(&scene, &known).await;
    until("the standby has the position", async || service.changes(&service.list().await.1).await.is_empty()).await;
    scene.replay(true).await;
    let old = service.list().await.1;
    let new = service.create().await;
    let current = service.read("/changes").await.json()["position"].as_str().unwrap().to_owned();
    assert_eq!(service.list().await, (vec![known.clone()], old.clone()));
    let (from_standby, path) = (service.reads("standby").await, "/user_management/users");
    let answer = service.get_at(path, &current).await;
    assert!(answer.text.contains(&new) && answer.header("authkit-sync-position") == current, "{}", answer.text);
    assert!(service.get_at(path, "not a position").await.text.contains(&new), "the primary has every position");
    assert!(service.get_at(path, "another-1").await.text.contains(&new));
    assert_eq!(service.reads("standby").await, from_standby);
    let answer = service.get_at(path, &old).await;
    assert!(!answer.text.contains(&new) && answer.header("authkit-sync-position") == old, "{}", answer.text);
    let path = format!("/user_management/users/{known}");
    service.webhook("user.updated", &user(&known, "Grace", 9), 9).await;
    let change = service.changes(&current).await.pop().unwrap();
    assert_eq!(service.read(&path).await.json()["first_name"], "Ada");
    let answer = service.get_at(&path, change["position"].as_str().unwrap()).await;
    assert_eq!(answer.json()["first_name"], "Grace", "{}", answer.text);
}

/// A request waits between its decision for a standby and its read, and the standby is lost meanwhile. The other standby is behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_moves_to_a_standby_that_is_behind_does_not_keep_the_position_of_the_other_one() {
    let mut scene = Scene::new().await;
    let second = tokio::task::block_in_place(|| scene.cluster.primary.start_standby()).unwrap();
    let behind = pool(&second).await;
    let folders = [&scene.cluster.standby, &second].map(|server| server.scratch().display().to_string());
    let standbys =
        format!("postgres://postgres@localhost/postgres?host={}&target_session_attrs=standby", folders.join(","));
    let service = scene.serve_with(&scene.cluster.primary.url("postgres"), &standbys, UNLIMITED);
    service.uses_standby(true).await;
    let organization = json!({
        "object": "organization", "id": "org_1", "name": "Quill", "domains": [], "metadata": {}, "external_id": null,
        "created_at": "2026-09-01T08:00:00.000Z", "updated_at": "2026-09-01T08:00:00.000Z",
    });
    service.webhook("organization.created", &organization, 0).await;
    let role = "insert into workos.role_records (slug, id, name, type) values ('member', 'role_1', 'Member', 'EnvironmentRole')";
    scene.primary.execute(role).await.unwrap();
    let first = service.create().await;
    for standby in [&scene.standby, &behind] {
        until("both standbys have it", async || {
            let found = sqlx::query_scalar("select exists (select from workos.users where id = $1)").bind(&first);
            found.fetch_one(standby).await.unwrap()
        })
        .await;
    }
    behind.execute("select pg_wal_replay_pause()").await.unwrap();
    scene.primary.execute("insert into workos.role_records (slug, id, name, type) values ('boss', 'role_2', 'Boss', 'EnvironmentRole')").await.unwrap();
    let last = service.create().await;
    until("the first standby has it", async || service.list().await.0.contains(&last)).await;
    until("the mark has its position", async || service.changes(&service.list().await.1).await.is_empty()).await;
    let newest = service.list().await.1;
    // The request has decided for the first standby, and waits for the primary, which checks the organization.
    let mut locking = scene.primary.acquire().await.unwrap();
    locking.execute("begin; lock table workos.organization_records in access exclusive mode").await.unwrap();
    let roles = service.read("/authorization/organizations/org_1/roles");
    let lose_the_first = async {
        until("the request waits", async || {
            let waiting = "select exists (select from pg_stat_activity where wait_event_type = 'Lock' and query like '%organization%')";
            sqlx::query_scalar(waiting).fetch_one(&scene.primary).await.unwrap()
        })
        .await;
        let pid = rustix::process::Pid::from_raw(scene.cluster.standby.pid().unwrap().try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::QUIT).unwrap();
        until("the second standby is read", async || {
            let (listed, position) = service.list().await;
            !listed.contains(&last) && position != newest
        })
        .await;
        locking.execute("rollback").await.unwrap();
    };
    let (answer, ()) = tokio::join!(roles, lose_the_first);
    let position = answer.header("authkit-sync-position").to_owned();
    assert_eq!(position, newest, "{}", answer.text);
    assert!(answer.text.contains("boss"), "{}", answer.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_without_the_complete_first_backfill_is_not_read() {
    let scene = Scene::new().await;
    for _ in 0..3 {
        let given = json!({"email": format!("{}@example.test", unique("user"))});
        scene.workos.create_user(&object(given)).unwrap();
    }
    scene.workos.set_api_faults(ApiFaults { error: 100, ..ApiFaults::default() });
    let (primary, standby) = (scene.cluster.primary.url("postgres"), scene.standby_url());
    let api_key = scene.workos.api_key();
    let more = [("AUTHKIT_SYNC_BACKFILL", "auto"), ("WORKOS_API_KEY", &*api_key)];
    let service = scene.serve_with_more(&primary, &standby, UNLIMITED, &more);
    until("the reason is known", async || {
        service.standby().await["problem"] == "the first backfill is not complete yet in its data"
    })
    .await;
    scene.replay(true).await;
    scene.workos.set_api_faults(ApiFaults::default());
    until("the list is complete", async || {
        let answer = service.get("/user_management/users", KEY).await;
        let listed = answer.json()["data"].as_array().map(Vec::len);
        assert!(answer.status == 503 || listed == Some(3), "an incomplete list: {}", answer.text);
        answer.status == 200
    })
    .await;
    scene.replay(false).await;
    service.uses_standby(true).await;
    assert_eq!(service.list().await.0.len(), 3);
}

/// The role of the standby's URL lacks one privilege.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_that_always_fail_on_the_standby_are_reported_and_answered_by_the_primary() {
    let scene = Scene::new().await;
    let role = "create role reader login; grant usage on schema workos to reader;
        grant select on all tables in schema workos to reader; revoke select on workos.organization_records from reader";
    scene.primary.execute(role).await.unwrap();
    until("the standby has the role", async || {
        let found = sqlx::query_scalar("select exists (select from pg_roles where rolname = 'reader')");
        found.fetch_one(&scene.standby).await.unwrap()
    })
    .await;
    let url = scene.standby_url().replace("postgres@", "reader@");
    let service = scene.serve_with(&scene.cluster.primary.url("postgres"), &url, UNLIMITED);
    service.uses_standby(true).await;
    service.read("/user_management/users").await;
    assert_eq!(service.reads("standby").await, 1.0);
    until("the failure is reported", async || {
        service.read("/organizations").await;
        let problem = service.standby().await["problem"].as_str().unwrap_or_default().to_owned();
        problem.starts_with("a read has failed: ") && service.metric("authkit_sync_standby_used").await == Some(0.0)
    })
    .await;
    until("it is logged", async || {
        service.read("/organizations").await;
        service.served.log().contains("because the standby cannot be used: a read has failed")
    })
    .await;
}

/// Another session holds a lock on the mark.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mark_that_cannot_be_written_fails_no_read() {
    let scene = Scene::new().await;
    let service = scene.serve("3s").await;
    let mut locking = scene.primary.acquire().await.unwrap();
    locking.execute("begin; lock table workos.feed_mark in share row exclusive mode").await.unwrap();
    let new = service.create().await;
    until("the primary answers", async || {
        let listed = service.list().await.0;
        let why = service.standby().await["problem"].as_str().unwrap_or_default().to_owned();
        listed.contains(&new) && why.contains("s old; the mark could not be written on the primary")
    })
    .await;
    locking.execute("rollback").await.unwrap();
    service.uses_standby(true).await;
}

/// A pooler in transaction mode in front of the standby gives each statement another session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_behind_a_pooler_is_read() {
    let scene = Scene::new().await;
    let direct = PgConnectOptions::from_str(&scene.standby_url()).unwrap();
    let Some(bouncer) = PgBouncer::start(&direct, "transaction", "default_pool_size = 2") else { return };
    let service = scene.serve_with(&scene.cluster.primary.url("postgres"), &bouncer.url(&direct), UNLIMITED);
    service.uses_standby(true).await;
    let known = service.create().await;
    replicated(&scene, &known).await;
    let from_standby = service.reads("standby").await;
    let (lists, users) = tokio::join!(
        async {
            for _ in 0..20 {
                assert_eq!(service.list().await.0, std::slice::from_ref(&known));
            }
        },
        async {
            for _ in 0..20 {
                service.read(&format!("/user_management/users/{known}")).await;
            }
        }
    );
    let ((), ()) = (lists, users);
    assert_eq!(service.reads("standby").await, from_standby + 40.0);
}

fn hosts(url: &str) -> Hosts {
    url.parse().unwrap()
}

/// An address can lead to several servers, and a server that restarts can return to an earlier state. So what another connection has
/// seen is not enough.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_read_requires_that_its_own_connection_shows_the_mark() {
    let cluster = Cluster::start().await;
    let timeout = Duration::from_secs(30);
    let connect = |server: &authkit_sync::dev::postgres::PrivatePostgres| {
        Pool::connect(hosts(&server.url("postgres")), 2, timeout)
    };
    let primary = Store::new(connect(&cluster.primary), connect(&cluster.primary), CLIENT_ID, timeout);
    let id = unique("user");
    apply(&primary, Origin::Webhook, &[observed("user.created", 0, &user(&id, "Ada", 0))]).await.unwrap();
    primary.write_mark(Duration::ZERO).await.unwrap();
    let mark = primary.mark().await.unwrap().mark;
    let standby = primary.on_standby(connect(&cluster.standby), timeout);
    let read = async |mark: &Mark| standby.requiring(Arc::new(mark.clone())).user(&id).await;
    until("the standby has replayed the mark", async || read(&mark).await.is_ok()).await;
    assert!(matches!(read(&mark).await, Ok(Stored::Live { .. })));
    let later = Mark { number: mark.number + 1, ..mark.clone() };
    assert!(matches!(read(&later).await, Err(StoreError::Behind)));
    let other = Mark { position: Position { epoch: "other".to_owned(), number: 0 }, ..mark };
    assert!(matches!(read(&other).await, Err(StoreError::Behind)), "a mark of another history");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_login_of_the_standby_is_replaced() {
    let cluster = Cluster::start().await;
    let primary = pool(&cluster.primary).await;
    primary.execute("create role service login superuser").await.unwrap();
    let standby = pool(&cluster.standby).await;
    let url = cluster.standby.url("postgres");
    let timeout = Duration::from_secs(30);
    let main = Pool::connect(hosts(&cluster.primary.url("postgres")), 4, timeout);
    let without = AuthKit::builder(main.clone(), CLIENT_ID).build().unwrap();
    let refused = without.set_standby_login(hosts(&url)).await;
    assert!(
        matches!(&refused, Err(SecretError::Invalid(why)) if why.contains("the standby was not enabled")),
        "{refused:?}"
    );
    let reads = Pool::connect(hosts(&url), 4, timeout);
    let authkit = AuthKit::builder(main, CLIENT_ID).standby(reads.clone(), Duration::from_secs(10)).build().unwrap();
    until("the standby has the role", async || {
        let found = sqlx::query_scalar("select exists (select from pg_roles where rolname = 'service')");
        found.fetch_one(&standby).await.unwrap()
    })
    .await;
    let elsewhere = authkit.set_standby_login(hosts(&cluster.primary.url("postgres"))).await;
    assert!(matches!(elsewhere, Err(SecretError::Invalid(_))), "{elsewhere:?}");
    authkit.set_standby_login(hosts(&url.replace("postgres@", "service@"))).await.unwrap();
    let role: String = sqlx::query_scalar("select current_user::text").fetch_one(reads.connections()).await.unwrap();
    assert_eq!(role, "service");
}

#[tokio::test]
async fn the_settings_of_the_standby_are_checked() {
    let check = |more: &[(&str, &str)]| {
        let mut environment = vec![("DATABASE_URL", "postgres://a@127.0.0.1/b"), ("WORKOS_CLIENT_ID", CLIENT_ID)];
        environment.extend(more);
        let output = run(&["serve"], &environment);
        assert_eq!(output.status.code(), Some(78));
        said(&output)
    };
    let said = check(&[("AUTHKIT_SYNC_READ_STALENESS", "2s"), ("AUTHKIT_SYNC_READ_DATABASE_URL", "hunter2")]);
    assert!(said.contains("AUTHKIT_SYNC_READ_STALENESS") && said.contains("from 3s to 1day"), "{said}");
    assert!(said.contains("AUTHKIT_SYNC_READ_DATABASE_URL") && !said.contains("hunter2"), "{said}");
    let said = check(&[("DATABASE_URL", "postgres://a@b,c/d?target_session_attrs=standby")]);
    assert!(said.contains("because the service must write"), "{said}");
    let pool = Pool::connect(hosts("postgres://a@127.0.0.1/b"), 2, Duration::from_secs(1));
    let built = AuthKit::builder(pool.clone(), CLIENT_ID).standby(pool, Duration::from_secs(2)).build();
    assert!(built.unwrap_err().to_string().contains("at least 3 s"));
}
