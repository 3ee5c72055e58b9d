//! Handlers, in Rust and in SQL: exactly once in effect, in order per user, and nobody held up by somebody else's mistake.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use authkit_sync::authkit::Builder;
use authkit_sync::domain::event::Origin;
use authkit_sync::domain::handler::{TRIES, Types};
use authkit_sync::store::handlers::HandlerStatus;
use authkit_sync::store::{Store, handlers::BoxError};
use authkit_sync::sync::runner::BackgroundLoop;
use authkit_sync::sync::{apply, erasure};
use authkit_sync::{AuthKit, Change, Tx};
use serde_json::json;
use sqlx::{AssertSqlSafe, Executor, PgPool};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::support::binary;
use crate::support::database::TestDatabase;
use crate::support::events::{observed, unique, user};
use crate::support::lab::Lab;
use crate::support::service::{CLIENT_ID, store, until};

/// A database with the application's own tables in it.
struct Bed {
    database: TestDatabase,
    pool: PgPool,
    store: Store,
}

impl Bed {
    async fn new() -> Self {
        let database = TestDatabase::new().await;
        let pool = database.pool(12).await;
        pool.execute(
            "create table done (n bigint generated always as identity, handler text, user_id text, kind text, origin text)",
        )
        .await
        .unwrap();
        Self { database, store: store(&pool), pool }
    }

    async fn create(&self, id: &str) {
        self.happens(Origin::Webhook, "user.created", 0, id, "Ada").await;
    }

    async fn rename(&self, id: &str, at: i64) {
        self.happens(Origin::Webhook, "user.updated", at, id, &format!("name {at}")).await;
    }

    async fn delete(&self, id: &str) {
        apply(&self.store, Origin::Webhook, &[observed("user.deleted", 99, &json!({"id": id}))]).await.unwrap();
    }

    async fn happens(&self, origin: Origin, event_type: &str, at: i64, id: &str, name: &str) {
        apply(&self.store, origin, &[observed(event_type, at, &user(id, name, at))]).await.unwrap();
    }

    /// What handlers have written: user and kind, in the order of their runs.
    async fn done(&self, handler: &str) -> Vec<(String, String)> {
        sqlx::query_as("select user_id, kind from done where handler = $1 order by n")
            .bind(handler)
            .fetch_all(&self.pool)
            .await
            .unwrap()
    }

    async fn standing(&self, handler: &str) -> Option<HandlerStatus> {
        let standings = self.store.handler_statuses().await.unwrap();
        standings.into_iter().find(|standing| standing.name == handler)
    }

    async fn enrolled(&self, handler: &str) {
        until("the handler is known", async || self.standing(handler).await.is_some()).await;
    }

    /// All it was given is done or set aside.
    async fn idle(&self, handler: &str) {
        until("the handler has nothing left to do", async || {
            self.standing(handler).await.is_some_and(|it| it.depth == 0 && it.state == "running")
        })
        .await;
    }

    /// As if the rests after failures were over.
    async fn rests_are_over(&self) {
        self.pool.execute("update workos.handler_backlog set due_at = now() where due_at > now()").await.unwrap();
    }

    async fn run(&self, handlers: impl FnOnce(Builder) -> Builder) -> Process {
        let builder = AuthKit::builder(self.pool.clone(), CLIENT_ID).api_base("http://127.0.0.1:9");
        Process::run(handlers(builder)).await
    }
}

/// A process of an application with handlers.
struct Process {
    stop: oneshot::Sender<()>,
    running: tokio::task::JoinHandle<()>,
}

impl Process {
    async fn run(builder: Builder) -> Self {
        let authkit = builder.build().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async {
            let _ = stopped.await;
        };
        let running = tokio::spawn(async move { authkit.run(listener, None, shutdown).await.unwrap() });
        Self { stop, running }
    }

    async fn stop(self) {
        let _ = self.stop.send(());
        self.running.await.unwrap();
    }
}

async fn note(handler: &str, change: &Change, tx: &mut Tx) -> Result<(), BoxError> {
    sqlx::query("insert into done (handler, user_id, kind, origin) values ($1, $2, $3, $4)")
        .bind(handler)
        .bind(change.user_id.as_deref().unwrap_or_default())
        .bind(change.kind.as_str())
        .bind(change.origin.as_str())
        .execute(&mut **tx)
        .await?;
    Ok(())
}

#[tokio::test]
async fn one_users_failure_waits_in_order_while_everybody_else_goes_on_and_is_set_aside_in_the_end() {
    let bed = Bed::new().await;
    let poisoned = unique("user");
    let (poison, mended) = (poisoned.clone(), Arc::new(AtomicUsize::new(0)));
    let healed = mended.clone();
    let handler = move |change: Change, mut tx: Tx| {
        let (poison, healed) = (poison.clone(), healed.clone());
        async move {
            note("mirror", &change, &mut tx).await?;
            // Its writes before the failure leave no trace.
            let sick = healed.load(Ordering::SeqCst) == 0 && change.kind.as_str() == "created";
            if sick && change.user_id.as_deref() == Some(&poison) {
                return Err::<(), BoxError>("the recipient ada@example.test is refused".into());
            }
            Ok(())
        }
    };
    let process = bed.run(|builder| builder.on("mirror", "user.*", handler)).await;
    bed.enrolled("mirror").await;
    let well = unique("user");
    bed.create(&poisoned).await;
    bed.create(&well).await;
    bed.rename(&poisoned, 10).await;
    bed.rename(&well, 20).await;
    until("the others are done", async || bed.done("mirror").await.len() == 2).await;
    until("two wait", async || bed.standing("mirror").await.unwrap().waiting == 2).await;
    let done = |kinds: [&str; 2]| kinds.map(|kind| (well.clone(), kind.to_owned())).to_vec();
    assert_eq!(bed.done("mirror").await, done(["created", "updated"]));
    // Try after try, until it is set aside; then the later one of that user goes on.
    until("it is set aside", async || {
        bed.rests_are_over().await;
        bed.standing("mirror").await.unwrap().dead_lettered == 1
    })
    .await;
    until("the later one is done", async || bed.done("mirror").await.len() == 3).await;
    assert_eq!(bed.done("mirror").await[2], (poisoned.clone(), "updated".to_owned()));
    let standing = bed.standing("mirror").await.unwrap();
    let error = standing.last_error.unwrap();
    assert_eq!((error.user_id.as_str(), error.sqlstate), (poisoned.as_str(), None));
    assert!(error.message.unwrap().contains("is refused"));
    let tries: i32 =
        sqlx::query_scalar("select attempts from workos.handler_backlog").fetch_one(&bed.pool).await.unwrap();
    assert_eq!(tries, TRIES);
    // The operator has mended the cause.
    mended.store(1, Ordering::SeqCst);
    assert_eq!(bed.store.redrive_handler("mirror", None).await.unwrap(), Some(1));
    until("what was set aside is done", async || bed.done("mirror").await.len() == 4).await;
    assert_eq!(bed.standing("mirror").await.unwrap().dead_lettered, 0);
    process.stop().await;
}

#[tokio::test]
async fn progress_outlives_the_process_and_a_new_name_starts_at_the_end() {
    let bed = Bed::new().await;
    bed.create(&unique("user")).await;
    let log = |name: &'static str| move |change: Change, mut tx: Tx| async move { note(name, &change, &mut tx).await };
    let process = bed.run(|builder| builder.on("first", "user.created", log("first"))).await;
    bed.enrolled("first").await;
    let second = unique("user");
    bed.create(&second).await;
    until("the new one is told", async || bed.done("first").await.len() == 1).await;
    process.stop().await;
    // While nobody listens, and of a type it does not take.
    let third = unique("user");
    bed.create(&third).await;
    bed.rename(&third, 5).await;
    let process =
        bed.run(|builder| builder.on("first", "user.created", log("first")).on("late", "user.*", log("late"))).await;
    until("the one it missed is told", async || bed.done("first").await.len() == 2).await;
    bed.idle("late").await;
    let created = |id: &str| (id.to_owned(), "created".to_owned());
    assert_eq!(bed.done("first").await, [created(&second), created(&third)]);
    assert!(bed.done("late").await.is_empty());
    process.stop().await;
}

#[tokio::test]
async fn from_start_tells_of_every_live_user_once_and_then_of_what_happens() {
    let bed = Bed::new().await;
    let users: Vec<String> = (0..250).map(|_| unique("user")).collect();
    let created: Vec<_> = users.iter().map(|id| observed("user.created", 0, &user(id, "Ada", 0))).collect();
    apply(&bed.store, Origin::CatchUp, &created).await.unwrap();
    bed.delete(&users[0]).await;
    // Enrolled, and not yet begun: what happens now is in the feed, and must not be told twice.
    bed.store.register_handler("mirror", &Types::parse("user.*").unwrap(), true).await.unwrap();
    let late = unique("user");
    bed.create(&late).await;
    bed.rename(&users[1], 10).await;
    bed.delete(&users[2]).await;
    let failed_once = Arc::new(AtomicUsize::new(0));
    let handler = move |change: Change, mut tx: Tx| {
        let failed_once = failed_once.clone();
        async move {
            if failed_once.fetch_add(1, Ordering::SeqCst) == 7 {
                return Err::<(), BoxError>("now and then".into());
            }
            note("mirror", &change, &mut tx).await
        }
    };
    let process = bed.run(|builder| builder.on_from_start("mirror", "user.*", handler)).await;
    until("all are told", async || {
        bed.rests_are_over().await;
        bed.standing("mirror").await.is_some_and(|it| it.depth == 0 && it.state == "running")
    })
    .await;
    let told: Vec<(String, String, String)> =
        sqlx::query_as("select user_id, kind, origin from done order by n").fetch_all(&bed.pool).await.unwrap();
    let mut by_user: BTreeMap<&str, Vec<(&str, &str)>> = BTreeMap::new();
    for (id, kind, origin) in &told {
        by_user.entry(id).or_default().push((kind, origin));
    }
    assert_eq!(by_user.get(users[0].as_str()), None, "deleted before the start");
    assert_eq!(by_user[users[1].as_str()], [("created", "backfill"), ("updated", "webhook")]);
    assert_eq!(by_user[users[2].as_str()], [("deleted", "webhook")], "gone before it was told of");
    assert_eq!(by_user[late.as_str()], [("created", "webhook")]);
    for id in &users[3..] {
        assert_eq!(by_user[id.as_str()], [("created", "backfill")], "{id}");
    }
    process.stop().await;
}

#[tokio::test]
async fn ten_thousand_backfilled_users_are_ten_thousand_changes_of_origin_backfill_and_no_live_one() {
    let lab = Lab::new().await;
    let users = (0..10_000).map(|at| object(json!({"email": format!("u{at}@example.test"), "first_name": "Ada"})));
    for user in users {
        lab.workos.create_user(&user).unwrap();
    }
    assert_eq!(lab.backfill().await.new, 10_000);
    assert_eq!(
        lab.count("select count(*) from workos.changes where origin = 'backfill' and kind = 'created'").await,
        10_000
    );
    assert_eq!(lab.count("select count(*) from workos.changes").await, 10_000);
    // Catch-up, which reads the same users' events behind it, has no news.
    let catch_up = lab.catch_up();
    for _ in 0..110 {
        catch_up.tick().await;
    }
    assert_eq!(lab.count("select count(*) from workos.events").await, 10_000, "it has read them all");
    assert_eq!(lab.count("select count(*) from workos.changes").await, 10_000);
    assert!(!Origin::Backfill.is_live() && Origin::Webhook.is_live());
}

fn object(value: serde_json::Value) -> serde_json::Map<String, serde_json::Value> {
    crate::support::lab::object(value)
}

/// An application that serves by itself mounts the router, and runs the rest beside it.
#[tokio::test]
async fn without_a_listener_of_its_own_everything_behind_the_requests_runs_all_the_same() {
    let bed = Bed::new().await;
    let log = |change: Change, mut tx: Tx| async move { note("mirror", &change, &mut tx).await };
    let authkit = AuthKit::builder(bed.pool.clone(), CLIENT_ID).on("mirror", "*", log).build().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(authkit.clone().run_background(async {
        let _ = stopped.await;
    }));
    bed.enrolled("mirror").await;
    bed.create(&unique("user")).await;
    until("the handler is told", async || bed.done("mirror").await.len() == 1).await;
    let _ = stop.send(());
    running.await.unwrap().unwrap();
    let leases: i64 = sqlx::query_scalar("select count(*) from workos.leases").fetch_one(&bed.pool).await.unwrap();
    assert_eq!(leases, 0, "whoever takes over need not wait");
}

/// A plain `serve` beside the application must not take what only the application can.
#[tokio::test]
async fn a_process_without_a_handler_takes_nothing_of_it() {
    let bed = Bed::new().await;
    bed.store.register_handler("mirror", &Types::parse("*").unwrap(), false).await.unwrap();
    let plain = bed.run(|builder| builder).await;
    let log = |change: Change, mut tx: Tx| async move { note("other", &change, &mut tx).await };
    let other = bed.run(|builder| builder.on("other", "*", log)).await;
    bed.enrolled("other").await;
    bed.create(&unique("user")).await;
    until("the other is told", async || bed.done("other").await.len() == 1).await;
    assert_eq!(bed.standing("mirror").await.unwrap().depth, 1);
    plain.stop().await;
    let log = |change: Change, mut tx: Tx| async move { note("mirror", &change, &mut tx).await };
    let application = bed.run(|builder| builder.on("mirror", "*", log)).await;
    until("it is told when it comes", async || bed.done("mirror").await.len() == 1).await;
    application.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn two_processes_with_the_same_handler_run_each_change_once() {
    let bed = Bed::new().await;
    let log = |change: Change, mut tx: Tx| async move { note("mirror", &change, &mut tx).await };
    let one = bed.run(|builder| builder.on("mirror", "*", log)).await;
    let other = bed.run(|builder| builder.on("mirror", "*", log)).await;
    bed.enrolled("mirror").await;
    for round in 0..4 {
        for _ in 0..10 {
            bed.create(&unique("user")).await;
        }
        // Whoever has it loses it, without knowing.
        if round < 3 {
            bed.pool.execute("delete from workos.leases").await.unwrap();
        }
    }
    bed.idle("mirror").await;
    assert_eq!(bed.done("mirror").await.len(), 40);
    one.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn a_handler_that_panics_hangs_or_keeps_its_transaction_fails_alone() {
    let bed = Bed::new().await;
    let kept: Arc<Mutex<Vec<Tx>>> = Arc::default();
    let keeping = kept.clone();
    let panics = |_: Change, _: Tx| async move {
        assert!(std::hint::black_box(false), "a handler's own defect");
        Ok::<(), BoxError>(())
    };
    let hangs = |_: Change, _: Tx| std::future::pending::<Result<(), BoxError>>();
    let keeps = move |_: Change, tx: Tx| {
        keeping.lock().unwrap().push(tx);
        std::future::ready(Ok::<(), BoxError>(()))
    };
    let swallows = |_: Change, mut tx: Tx| async move {
        let _ = sqlx::query("select 1 / 0").execute(&mut *tx).await;
        Ok::<(), BoxError>(())
    };
    let well = |change: Change, mut tx: Tx| async move { note("well", &change, &mut tx).await };
    let process = bed
        .run(|builder| {
            builder
                .handler_timeout(Duration::from_secs(1))
                .on("panics", "*", panics)
                .on("hangs", "*", hangs)
                .on("keeps", "*", keeps)
                .on("swallows", "*", swallows)
                .on("well", "*", well)
        })
        .await;
    for name in ["panics", "hangs", "keeps", "swallows", "well"] {
        bed.enrolled(name).await;
    }
    bed.create(&unique("user")).await;
    until("the one that is well is told", async || bed.done("well").await.len() == 1).await;
    for (name, why) in
        [("panics", "panicked"), ("hangs", "took longer"), ("keeps", "kept its transaction"), ("swallows", "aborted")]
    {
        until(name, async || bed.standing(name).await.unwrap().last_error.is_some()).await;
        let error = bed.standing(name).await.unwrap().last_error.unwrap();
        assert!(error.message.clone().unwrap().contains(why), "{name}: {error:?}");
    }
    kept.lock().unwrap().clear();
    process.stop().await;
}

#[test]
fn two_handlers_of_one_name_and_names_and_types_that_are_none_are_refused() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _context = runtime.enter();
    let pool = sqlx::postgres::PgPoolOptions::new().connect_lazy("postgres://localhost/nowhere").unwrap();
    let handler = |_: Change, _: Tx| async { Ok::<(), BoxError>(()) };
    let build = |names: [(&str, &str); 2]| {
        let builder = AuthKit::builder(pool.clone(), "client_1");
        let [(first, types), (second, others)] = names;
        builder.on(first, types, handler).on(second, others, handler).build().map_err(|error| error.to_string())
    };
    assert!(build([("a", "user.*"), ("b", "session.created")]).is_ok());
    assert!(build([("a", "user.*"), ("a", "*")]).unwrap_err().contains("two handlers have the name a"));
    assert!(build([("a b", "user.*"), ("a", "*")]).unwrap_err().contains("letters"));
    assert!(build([("a", "user."), ("b", "User")]).unwrap_err().contains("separated by commas"));
}

const LOG: &str = "
    create function on_user(change jsonb) returns void language plpgsql as $$
    begin
        insert into done (handler, user_id, kind, origin)
        values (current_user, change ->> 'user_id', change ->> 'kind', change ->> 'origin');
    end
    $$";

/// `handlers …` of the real binary.
async fn handlers(bed: &Bed, arguments: &[&str]) -> (i32, String) {
    let mut command = binary::binary();
    command.arg("handlers").args(arguments).env("DATABASE_URL", bed.database.url());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    (output.status.code().unwrap(), binary::said(&output))
}

#[tokio::test]
async fn a_function_is_called_with_the_same_guarantees_and_worked_from_the_command_line() {
    let bed = Bed::new().await;
    bed.pool.execute(LOG).await.unwrap();
    let (code, said) = handlers(&bed, &["add", "public.on_nobody"]).await;
    assert_eq!((code, said.contains("there is no function public.on_nobody(jsonb)")), (78, true), "{said}");
    let (code, said) = handlers(&bed, &["add", "on_user"]).await;
    assert_eq!((code, said.contains("without its schema; add it, for example public.on_user")), (78, true), "{said}");
    let (code, said) = handlers(&bed, &["add", "public.on_user", "--types", "User"]).await;
    assert_eq!((code, said.contains("user.created, user.* or *")), (64, true), "{said}");
    let (code, said) = handlers(&bed, &["add", "public.on_user", "--types", "user.created,user.deleted"]).await;
    assert_eq!((code, said.contains("starts at the end of the feed")), (0, true), "{said}");
    let (code, said) = handlers(&bed, &["add", "public.on_user"]).await;
    assert_eq!((code, said.contains("there is a handler public.on_user already")), (78, true), "{said}");
    let process = bed.run(|builder| builder).await;
    let id = unique("user");
    bed.create(&id).await;
    bed.rename(&id, 10).await;
    bed.delete(&id).await;
    bed.idle("public.on_user").await;
    let kinds: Vec<String> = sqlx::query_scalar("select kind from done order by n").fetch_all(&bed.pool).await.unwrap();
    assert_eq!(kinds, ["created", "deleted"]);
    // Paused it takes nothing; resumed it goes on where it was.
    assert_eq!(handlers(&bed, &["pause", "public.on_user"]).await.0, 0);
    bed.create(&unique("user")).await;
    let (_, said) = handlers(&bed, &["list"]).await;
    assert!(said.contains("paused") && said.contains("depth 1"), "{said}");
    assert_eq!(handlers(&bed, &["resume", "public.on_user"]).await.0, 0);
    bed.idle("public.on_user").await;
    let (_, said) = handlers(&bed, &["list", "--json"]).await;
    let listed: serde_json::Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
    assert_eq!((&listed[0]["depth"], &listed[0]["state"]), (&json!(0), &json!("running")), "{listed}");
    assert_eq!(handlers(&bed, &["remove", "public.on_user"]).await.0, 0);
    for command in ["pause", "resume", "remove", "redrive"] {
        let (code, said) = handlers(&bed, &[command, "public.on_user"]).await;
        assert_eq!((code, said.contains("not found; list handlers")), (1, true), "{said}");
    }
    process.stop().await;
}

/// One raises, one loops, one is dropped: each is named with its error, and none holds up another.
#[tokio::test]
async fn a_function_that_raises_loops_or_is_dropped_holds_up_nobody_and_is_named() {
    let bed = Bed::new().await;
    bed.pool.execute(LOG).await.unwrap();
    bed.pool
        .execute(
            "create table strict (id text constraint strict_id primary key);
            create function raises(change jsonb) returns void language plpgsql as $$
            begin
                insert into strict values ('same');
                insert into strict values ('same');
            end $$;
            create function loops(change jsonb) returns void language plpgsql as $$
            begin
                loop
                    perform pg_sleep(0.01);
                end loop;
            end $$;
            create function dropped(change jsonb) returns void language sql as ''",
        )
        .await
        .unwrap();
    for function in ["raises", "loops", "dropped", "on_user"] {
        // Only the one that loops is meant to take too long.
        let timeout = if function == "loops" { "300ms" } else { "30s" };
        let (code, said) =
            handlers(&bed, &["add", &format!("public.{function}"), "--name", function, "--timeout", timeout]).await;
        assert_eq!(code, 0, "{said}");
    }
    bed.pool.execute("drop function dropped").await.unwrap();
    let process = bed.run(|builder| builder).await;
    for _ in 0..3 {
        bed.create(&unique("user")).await;
    }
    bed.idle("on_user").await;
    let error = async |name: &str| {
        until(name, async || bed.standing(name).await.unwrap().last_error.is_some()).await;
        bed.standing(name).await.unwrap().last_error.unwrap()
    };
    let raised = error("raises").await;
    assert_eq!(raised.sqlstate.as_deref(), Some("23505"));
    assert_eq!(raised.constraint.as_deref(), Some("strict_id"));
    assert!(raised.location.as_deref().unwrap().ends_with("raises(jsonb) line 4"), "{raised:?}");
    assert!(!raised.message.unwrap().contains("(same)"), "the detail, which quotes values, is not kept");
    let looped = error("loops").await;
    assert_eq!(looped.sqlstate.as_deref(), Some("57014"), "{looped:?}");
    until("the dropped one is named", async || {
        bed.standing("dropped")
            .await
            .unwrap()
            .problem
            .is_some_and(|it| it.contains("public.dropped(jsonb) does not exist"))
    })
    .await;
    assert_eq!(bed.standing("dropped").await.unwrap().depth, 3, "it stands still, and loses nothing");
    // Created again, it goes on.
    bed.pool.execute("create function dropped(change jsonb) returns void language sql as ''").await.unwrap();
    bed.idle("dropped").await;
    process.stop().await;
}

/// A role of this test's own, and what has to be dropped with it.
async fn role(bed: &Bed, name: &str) -> String {
    let role = format!("{name}_{}", unique("r"));
    bed.pool.execute(AssertSqlSafe(format!("create role {role}"))).await.unwrap();
    role
}

#[tokio::test]
async fn a_function_runs_as_its_owner_or_a_role_that_the_service_may_set() {
    let bed = Bed::new().await;
    let (owner, other, service) = (role(&bed, "owner").await, role(&bed, "other").await, role(&bed, "service").await);
    bed.pool.execute(LOG).await.unwrap();
    let prepare = format!(
        "alter function on_user(jsonb) owner to {owner};
        grant insert on done to {owner};
        create function peeks(change jsonb) returns void language plpgsql as $$
        begin
            perform count(*) from workos.events;
        end $$;
        alter function peeks(jsonb) owner to {owner};
        create table wholes (id int primary key);
        create table parts (whole int references wholes deferrable initially deferred);
        create function defers(change jsonb) returns void language sql as 'insert into parts values (7)';
        alter function defers(jsonb) owner to {owner};
        grant insert on parts to {owner};
        alter role {service} login;
        grant usage on schema workos to {service};
        grant select, insert, update on all tables in schema workos to {service};
        grant select on all sequences in schema workos to {service};
        grant execute on all functions in schema workos to {service};",
    );
    bed.pool.execute(AssertSqlSafe(prepare)).await.unwrap();
    // A service that is no member of the owner's role may not become it.
    let (narrow, set_role) = (bed.database.pool(1).await, format!("set role {service}"));
    narrow.execute(AssertSqlSafe(set_role)).await.unwrap();
    let new = |role: Option<&str>| authkit_sync::store::handlers::NewHandler {
        name: Some("narrow".to_owned()),
        function: "public.on_user".to_owned(),
        role: role.map(str::to_owned),
        types: Types::parse("*").unwrap(),
        timeout: Duration::from_secs(5),
        from_start: false,
    };
    let refused = store(&narrow).add_handler(&new(None)).await.unwrap_err().to_string();
    assert!(refused.contains(&format!("grant {owner} to {service}")), "{refused}");
    let refused = store(&narrow).add_handler(&new(Some("nobody_at_all"))).await.unwrap_err().to_string();
    assert!(refused.contains("there is no role nobody_at_all"), "{refused}");
    narrow.close().await;

    for (name, role) in [("on_user", None), ("peeks", None), ("defers", None), ("as_other", Some(&other))] {
        let function = if role.is_some() { "public.on_user".to_owned() } else { format!("public.{name}") };
        let mut arguments = vec!["add", &function, "--name", name];
        if let Some(role) = role {
            arguments.extend(["--role", role]);
        }
        let (code, said) = handlers(&bed, &arguments).await;
        assert_eq!(code, 0, "{said}");
    }
    let process = bed.run(|builder| builder).await;
    bed.create(&unique("user")).await;
    bed.idle("on_user").await;
    let ran_as: Vec<String> = sqlx::query_scalar("select handler from done").fetch_all(&bed.pool).await.unwrap();
    assert_eq!(ran_as, std::slice::from_ref(&owner));
    let failure = async |name: &str| {
        until(name, async || bed.standing(name).await.unwrap().last_error.is_some()).await;
        bed.standing(name).await.unwrap().last_error.unwrap()
    };
    assert_eq!(failure("peeks").await.sqlstate.as_deref(), Some("42501"), "the inbox is not the owner's");
    assert_eq!(failure("as_other").await.sqlstate.as_deref(), Some("42501"), "it may not write");
    let deferred = failure("defers").await;
    assert_eq!(deferred.constraint.as_deref(), Some("parts_whole_fkey"), "checked before the run counts: {deferred:?}");
    process.stop().await;
    for role in [owner, other, service] {
        bed.pool.execute(AssertSqlSafe(format!("drop owned by {role}; drop role {role}"))).await.unwrap();
    }
}

#[tokio::test]
async fn a_failures_message_goes_with_its_user_whichever_comes_first() {
    let bed = Bed::new().await;
    bed.pool
        .execute(
            "create function tells(change jsonb) returns void language plpgsql as $$
            begin
                raise exception 'cannot welcome %', coalesce(change #>> '{user,email}', 'a user who is gone');
            end $$",
        )
        .await
        .unwrap();
    assert_eq!(handlers(&bed, &["add", "public.tells"]).await.0, 0);
    let process = bed.run(|builder| builder).await;
    let id = unique("user");
    bed.create(&id).await;
    let messages = async || -> Vec<Option<String>> {
        sqlx::query_scalar("select message from workos.handler_backlog order by position")
            .fetch_all(&bed.pool)
            .await
            .unwrap()
    };
    until("it has failed", async || !messages().await.is_empty()).await;
    assert!(messages().await[0].as_deref().unwrap().contains(&id));
    bed.delete(&id).await;
    assert_eq!(messages().await[0], None, "gone with the transaction that deleted the user");
    // And what fails afterwards says nothing either.
    until("it has failed again", async || {
        bed.rests_are_over().await;
        let again: i32 =
            sqlx::query_scalar("select max(attempts) from workos.handler_backlog").fetch_one(&bed.pool).await.unwrap();
        again > 1
    })
    .await;
    assert!(messages().await.iter().all(Option::is_none), "{:?}", messages().await);
    process.stop().await;
    // Should one be there all the same, sweeping behind the user takes it along.
    bed.pool.execute("update workos.handler_backlog set message = 'Ada'").await.unwrap();
    assert!(erasure::erase_user(&bed.store, &id).await.unwrap().is_some());
    assert!(messages().await.iter().all(Option::is_none));
}

/// The guide's own example: an application's table of users, kept in step from the first to the last.
#[tokio::test]
async fn the_guides_function_keeps_an_applications_users_in_step() {
    let bed = Bed::new().await;
    let guide = include_str!("../../src/docs/reacting.md");
    let example = guide.split("<!-- example: run by a test -->\n```sql\n").nth(1).unwrap().split("```").next().unwrap();
    bed.pool.execute(example).await.unwrap();
    let ids: Vec<String> = (0..5).map(|_| unique("user")).collect();
    for id in &ids[..3] {
        bed.create(id).await;
    }
    let (code, said) = handlers(&bed, &["add", "public.on_workos_user", "--types", "user.*", "--from-start"]).await;
    assert_eq!(code, 0, "{said}");
    let process = bed.run(|builder| builder).await;
    for id in &ids[3..] {
        bed.create(id).await;
    }
    bed.rename(&ids[0], 10).await;
    bed.delete(&ids[1]).await;
    apply(&bed.store, Origin::Webhook, &[observed("user.odd", 1, &json!({"id": ids[2]}))]).await.unwrap();
    bed.idle("public.on_workos_user").await;
    let differ: i64 = sqlx::query_scalar(
        "select count(*) from app_users as ours full join workos.users as theirs on theirs.id = ours.id
        where (ours.email, ours.name) is distinct from (theirs.email, theirs.name)",
    )
    .fetch_one(&bed.pool)
    .await
    .unwrap();
    assert_eq!(differ, 0);
    assert_eq!(bed.standing("public.on_workos_user").await.unwrap().dead_lettered, 0);
    process.stop().await;
}

/// What a handler leaves behind meets nobody else: neither its own bookkeeping nor the next one on the connection.
#[tokio::test]
async fn a_handler_that_changes_role_or_settings_harms_neither_itself_for_ever_nor_anybody_else() {
    let bed = Bed::new().await;
    let other = role(&bed, "other").await;
    let functions = format!(
        "{LOG};
        create function becomes(change jsonb) returns void language plpgsql as $$
        begin
            set role {other};
        end $$;
        create function reads_only(change jsonb) returns void language plpgsql as $$
        begin
            perform set_config('transaction_read_only', 'on', true);
        end $$;"
    );
    bed.pool.execute(AssertSqlSafe(functions)).await.unwrap();
    for function in ["on_user", "becomes", "reads_only"] {
        let (code, said) = handlers(&bed, &["add", &format!("public.{function}"), "--name", function]).await;
        assert_eq!(code, 0, "{said}");
    }
    let become_other = format!("set local role {other}");
    let local = move |_: Change, mut tx: Tx| {
        let become_other = become_other.clone();
        async move { tx.execute(AssertSqlSafe(become_other)).await.map(drop) }
    };
    let nul = |_: Change, _: Tx| async move { Err::<(), BoxError>("a NUL: \0".into()) };
    // One connection, which each gets after the others.
    let pool = bed.database.pool(1).await;
    let process =
        bed.run(|builder| builder.handler_pool(pool.clone()).on("local", "*", local).on("nul", "*", nul)).await;
    for name in ["local", "nul"] {
        bed.enrolled(name).await;
    }
    for _ in 0..3 {
        bed.create(&unique("user")).await;
    }
    for name in ["on_user", "becomes", "local"] {
        bed.idle(name).await;
        let standing = bed.standing(name).await.unwrap();
        assert!(standing.last_error.is_none(), "{name}: {standing:?}");
    }
    for (name, why) in [("reads_only", "SQLSTATE 25006"), ("nul", "a NUL: \u{FFFD}")] {
        until(name, async || bed.standing(name).await.unwrap().waiting == 3).await;
        let error = bed.standing(name).await.unwrap().last_error.unwrap();
        assert!(error.message.clone().unwrap().contains(why), "{name}: {error:?}");
    }
    process.stop().await;
    let now: String = sqlx::query_scalar("select current_setting('role')").fetch_one(&pool).await.unwrap();
    assert_eq!(now, "none");
    pool.close().await;
    bed.pool.execute(AssertSqlSafe(format!("drop role {other}"))).await.unwrap();
}

#[tokio::test]
async fn a_name_that_is_taken_holds_up_only_the_handler_that_wants_it() {
    let bed = Bed::new().await;
    bed.pool.execute(LOG).await.unwrap();
    let (code, said) = handlers(&bed, &["add", "public.on_user", "--name", "taken"]).await;
    assert_eq!(code, 0, "{said}");
    let wants = |change: Change, mut tx: Tx| async move { note("wants", &change, &mut tx).await };
    let well = |change: Change, mut tx: Tx| async move { note("well", &change, &mut tx).await };
    let process = bed.run(|builder| builder.on("taken", "*", wants).on("well", "*", well)).await;
    bed.enrolled("well").await;
    bed.create(&unique("user")).await;
    for name in ["taken", "well"] {
        bed.idle(name).await;
    }
    assert_eq!((bed.done("well").await.len(), bed.done("wants").await.len()), (1, 0));
    let by_function: i64 = sqlx::query_scalar("select count(*) from done where handler = current_user")
        .fetch_one(&bed.pool)
        .await
        .unwrap();
    assert_eq!(by_function, 1);
    process.stop().await;
}

/// While releases are exchanged, an older process may start after a newer one.
#[tokio::test]
async fn a_handler_in_rust_takes_the_types_it_was_built_with_whoever_started_last() {
    let bed = Bed::new().await;
    let handler = |change: Change, mut tx: Tx| async move { note("both", &change, &mut tx).await };
    let newer = bed.run(|builder| builder.on("both", "user.created,user.updated", handler)).await;
    bed.enrolled("both").await;
    let id = unique("user");
    bed.create(&id).await;
    bed.idle("both").await;
    let older = bed.run(|builder| builder.on("both", "user.created", handler)).await;
    until("the older one is there", async || bed.standing("both").await.unwrap().types == ["user.created"]).await;
    bed.rename(&id, 10).await;
    until("the newer one hears of the update", async || bed.done("both").await.len() == 2).await;
    newer.stop().await;
    older.stop().await;
}

/// Word of a user may fail before the user is here, at the moment it is deleted: the two meet in no row to lock.
#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the transaction is that of somebody who takes their time")]
async fn a_message_about_a_user_who_is_not_here_does_not_outlive_a_deletion_at_the_same_moment() {
    let bed = Bed::new().await;
    let fails = |_: Change, _: Tx| async move { Err::<(), BoxError>("cannot greet ada@example.test".into()) };
    let process = bed.run(|builder| builder.on("fails", "*", fails)).await;
    bed.enrolled("fails").await;
    // The postponement has looked for the user and waits for its handler.
    let mut held = bed.pool.begin().await.unwrap();
    sqlx::query("select from workos.handlers for update").execute(&mut *held).await.unwrap();
    let id = unique("user");
    let session = observed("session.created", 0, &json!({"id": unique("session"), "user_id": id}));
    apply(&bed.store, Origin::Webhook, &[session]).await.unwrap();
    let waits = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'
        and query like '%handlers.move%'";
    until("it waits", async || sqlx::query_scalar::<_, i64>(waits).fetch_one(&bed.pool).await.unwrap() > 0).await;
    bed.delete(&id).await;
    held.rollback().await.unwrap();
    until("it is noted", async || bed.standing("fails").await.unwrap().waiting > 0).await;
    let messages: i64 =
        sqlx::query_scalar("select count(*) from workos.handler_backlog where user_id = $1 and message is not null")
            .bind(&id)
            .fetch_one(&bed.pool)
            .await
            .unwrap();
    assert_eq!(messages, 0);
    process.stop().await;
}
