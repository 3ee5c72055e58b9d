//! Handlers in Rust and in SQL: exactly once in effect, in order per user, and no failure blocks another user or handler.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use authkit_sync::domain::event::Origin;
use authkit_sync::domain::handler::{MAX_ATTEMPTS, Types};
use authkit_sync::store::handlers::BoxError;
use authkit_sync::sync::runner::BackgroundLoop;
use authkit_sync::sync::{apply, erasure};
use authkit_sync::{AuthKit, Change, Tx};
use serde_json::json;
use sqlx::Executor;
use tokio::sync::oneshot;

use crate::support::application::{Application, LOG, note};
use crate::support::events::{observed, unique, user};
use crate::support::lab::{Lab, object};
use crate::support::service::{CLIENT_ID, http_ok, until};

#[tokio::test]
async fn a_failing_change_blocks_only_its_user_and_is_dead_lettered_after_the_last_attempt() {
    let app = Application::new().await;
    let poisoned = unique("user");
    let (poison, fixed) = (poisoned.clone(), Arc::new(AtomicUsize::new(0)));
    let is_fixed = fixed.clone();
    let handler = move |change: Change, mut tx: Tx| {
        let (poison, is_fixed) = (poison.clone(), is_fixed.clone());
        async move {
            note("mirror", &change, &mut tx).await?;
            // Its writes before the failure are rolled back.
            let fails = is_fixed.load(Ordering::SeqCst) == 0 && change.kind.as_str() == "created";
            if fails && change.user_id.as_deref() == Some(&poison) {
                return Err::<(), BoxError>("the recipient ada@example.test is refused".into());
            }
            Ok(())
        }
    };
    let process = app.run(|builder| builder.on("mirror", "user.*", handler)).await;
    app.registered("mirror").await;
    let well = unique("user");
    app.create(&poisoned).await;
    app.create(&well).await;
    app.rename(&poisoned, 10).await;
    app.rename(&well, 20).await;
    until("the changes of the other user are processed", async || app.done("mirror").await.len() == 2).await;
    until("two changes wait", async || app.status("mirror").await.unwrap().waiting == 2).await;
    let done = |kinds: [&str; 2]| kinds.map(|kind| (well.clone(), kind.to_owned())).to_vec();
    assert_eq!(app.done("mirror").await, done(["created", "updated"]));
    // It is retried until it is dead-lettered. Then the later change of that user is processed.
    until("it is dead-lettered", async || {
        app.end_backoffs().await;
        app.status("mirror").await.unwrap().dead_lettered == 1
    })
    .await;
    until("the later change is processed", async || app.done("mirror").await.len() == 3).await;
    assert_eq!(app.done("mirror").await[2], (poisoned.clone(), "updated".to_owned()));
    let status = app.status("mirror").await.unwrap();
    let error = status.last_error.unwrap();
    assert_eq!((error.user_id.as_str(), error.sqlstate), (poisoned.as_str(), None));
    assert!(error.message.unwrap().contains("is refused"));
    let attempts: i32 =
        sqlx::query_scalar("select attempts from workos.handler_backlog").fetch_one(&app.pool).await.unwrap();
    assert_eq!(attempts, MAX_ATTEMPTS);
    // The operator has fixed the cause.
    fixed.store(1, Ordering::SeqCst);
    assert_eq!(app.store.redrive_handler("mirror", None).await.unwrap(), Some(1));
    until("the dead-lettered change is processed", async || app.done("mirror").await.len() == 4).await;
    assert_eq!(app.status("mirror").await.unwrap().dead_lettered, 0);
    process.stop().await.unwrap();
}

#[tokio::test]
async fn progress_survives_a_restart_and_a_new_handler_starts_at_the_end_of_the_feed() {
    let app = Application::new().await;
    app.create(&unique("user")).await;
    let log = |name: &'static str| move |change: Change, mut tx: Tx| async move { note(name, &change, &mut tx).await };
    let process = app.run(|builder| builder.on("first", "user.created", log("first"))).await;
    app.registered("first").await;
    let second = unique("user");
    app.create(&second).await;
    until("the handler gets the new user", async || app.done("first").await.len() == 1).await;
    process.stop().await.unwrap();
    // No process runs the handler now, and the second change has a type that the handler does not select.
    let third = unique("user");
    app.create(&third).await;
    app.rename(&third, 5).await;
    let process =
        app.run(|builder| builder.on("first", "user.created", log("first")).on("late", "user.*", log("late"))).await;
    until("the handler gets the missed change", async || app.done("first").await.len() == 2).await;
    app.idle("late").await;
    let created = |id: &str| (id.to_owned(), "created".to_owned());
    assert_eq!(app.done("first").await, [created(&second), created(&third)]);
    assert!(app.done("late").await.is_empty());
    process.stop().await.unwrap();
}

#[tokio::test]
async fn a_handler_from_start_gets_every_live_user_once_and_then_every_change() {
    let app = Application::new().await;
    let users: Vec<String> = (0..250).map(|_| unique("user")).collect();
    let created: Vec<_> = users.iter().map(|id| observed("user.created", 0, &user(id, "Ada", 0))).collect();
    apply(&app.store, Origin::CatchUp, &created).await.unwrap();
    app.delete(&users[0]).await;
    // The handler is registered but has not started: these changes are in the feed and must be processed once.
    app.store.register_handler("mirror", &Types::parse("user.*").unwrap(), true).await.unwrap();
    let late = unique("user");
    app.create(&late).await;
    app.rename(&users[1], 10).await;
    app.delete(&users[2]).await;
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
    let process = app.run(|builder| builder.on_from_start("mirror", "user.*", handler)).await;
    until("all changes are processed", async || {
        app.end_backoffs().await;
        app.status("mirror").await.is_some_and(|it| it.depth == 0 && it.state == "running")
    })
    .await;
    let processed: Vec<(String, String, String)> =
        sqlx::query_as("select user_id, kind, origin from done order by n").fetch_all(&app.pool).await.unwrap();
    let mut by_user: BTreeMap<&str, Vec<(&str, &str)>> = BTreeMap::new();
    for (id, kind, origin) in &processed {
        by_user.entry(id).or_default().push((kind, origin));
    }
    assert_eq!(by_user.get(users[0].as_str()), None, "deleted before the start");
    assert_eq!(by_user[users[1].as_str()], [("created", "backfill"), ("updated", "webhook")]);
    assert_eq!(by_user[users[2].as_str()], [("deleted", "webhook")], "deleted before the handler got it");
    assert_eq!(by_user[late.as_str()], [("created", "webhook")]);
    for id in &users[3..] {
        assert_eq!(by_user[id.as_str()], [("created", "backfill")], "{id}");
    }
    process.stop().await.unwrap();
}

#[tokio::test]
async fn ten_thousand_backfilled_users_are_ten_thousand_changes_of_origin_backfill() {
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
    // Catch-up reads the events of the same users later and adds no change.
    let catch_up = lab.catch_up();
    for _ in 0..110 {
        catch_up.tick().await;
    }
    assert_eq!(lab.count("select count(*) from workos.events").await, 10_000, "it has read them all");
    assert_eq!(lab.count("select count(*) from workos.changes").await, 10_000);
    assert!(!Origin::Backfill.is_live() && Origin::Webhook.is_live());
}

/// An application with its own listener mounts the router, and runs the background jobs itself.
#[tokio::test]
async fn background_jobs_run_without_a_listener() {
    let app = Application::new().await;
    let log = |change: Change, mut tx: Tx| async move { note("mirror", &change, &mut tx).await };
    let authkit = AuthKit::builder(app.pool.clone(), CLIENT_ID).on("mirror", "*", log).build().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(authkit.clone().run_background(async {
        let _ = stopped.await;
    }));
    app.registered("mirror").await;
    app.create(&unique("user")).await;
    until("the handler gets the change", async || app.done("mirror").await.len() == 1).await;
    let _ = stop.send(());
    running.await.unwrap().unwrap();
    let leases: i64 = sqlx::query_scalar("select count(*) from workos.leases").fetch_one(&app.pool).await.unwrap();
    assert_eq!(leases, 0, "the next process need not wait for a lease");
}

/// A `serve` that runs at the same time as the application must not process changes for a handler that only the application has.
#[tokio::test]
async fn a_process_without_a_handler_does_not_process_its_changes() {
    let app = Application::new().await;
    app.store.register_handler("mirror", &Types::parse("*").unwrap(), false).await.unwrap();
    let plain = app.run(|builder| builder).await;
    let log = |change: Change, mut tx: Tx| async move { note("other", &change, &mut tx).await };
    let other = app.run(|builder| builder.on("other", "*", log)).await;
    app.registered("other").await;
    app.create(&unique("user")).await;
    until("the other handler gets the change", async || app.done("other").await.len() == 1).await;
    assert_eq!(app.status("mirror").await.unwrap().depth, 1);
    // It is reported that no process has the handler.
    let (_, said) = app.command(&["list"]).await;
    assert_eq!(said.matches("no running process has this handler").count(), 1, "{said}");
    assert!(said.contains("handlers remove mirror"), "{said}");
    let metrics = http_ok(&format!("http://{}/metrics", plain.ops)).await;
    assert!(metrics.contains("authkit_sync_handler_running{handler=\"mirror\"} 0"), "{metrics}");
    plain.stop().await.unwrap();
    let log = |change: Change, mut tx: Tx| async move { note("mirror", &change, &mut tx).await };
    let application = app.run(|builder| builder.on("mirror", "*", log)).await;
    until("the handler gets the change when its process starts", async || app.done("mirror").await.len() == 1).await;
    assert!(app.status("mirror").await.unwrap().has_process);
    application.stop().await.unwrap();
    other.stop().await.unwrap();
}

#[tokio::test]
async fn two_processes_with_the_same_handler_run_each_change_once() {
    let app = Application::new().await;
    let log = |change: Change, mut tx: Tx| async move { note("mirror", &change, &mut tx).await };
    let one = app.run(|builder| builder.on("mirror", "*", log)).await;
    let other = app.run(|builder| builder.on("mirror", "*", log)).await;
    app.registered("mirror").await;
    for round in 0..4 {
        for _ in 0..10 {
            app.create(&unique("user")).await;
        }
        // The holder loses its lease without noticing.
        if round < 3 {
            app.pool.execute("delete from workos.leases").await.unwrap();
        }
    }
    app.idle("mirror").await;
    assert_eq!(app.done("mirror").await.len(), 40);
    one.stop().await.unwrap();
    other.stop().await.unwrap();
}

#[tokio::test]
async fn a_handler_that_panics_hangs_or_keeps_its_transaction_fails_alone() {
    let app = Application::new().await;
    let kept: Arc<Mutex<Vec<Tx>>> = Arc::default();
    let keeping = kept.clone();
    let panics = |_: Change, _: Tx| async move {
        assert!(std::hint::black_box(false), "a defect of the handler");
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
    let process = app
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
        app.registered(name).await;
    }
    app.create(&unique("user")).await;
    until("the working handler gets the change", async || app.done("well").await.len() == 1).await;
    for (name, why) in
        [("panics", "panicked"), ("hangs", "took longer"), ("keeps", "kept its transaction"), ("swallows", "aborted")]
    {
        until(name, async || app.status(name).await.unwrap().last_error.is_some()).await;
        let error = app.status(name).await.unwrap().last_error.unwrap();
        assert!(error.message.clone().unwrap().contains(why), "{name}: {error:?}");
    }
    kept.lock().unwrap().clear();
    process.stop().await.unwrap();
}

#[test]
fn duplicate_handler_names_and_invalid_names_and_types_are_refused() {
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

#[tokio::test]
async fn the_message_of_a_failure_is_erased_with_its_user_in_any_order() {
    let app = Application::new().await;
    app.pool
        .execute(
            "create function tells(change jsonb) returns void language plpgsql as $$
            begin
                raise exception 'cannot welcome %', coalesce(change #>> '{user,email}', 'a deleted user');
            end $$",
        )
        .await
        .unwrap();
    assert_eq!(app.command(&["add", "public.tells"]).await.0, 0);
    let process = app.run(|builder| builder).await;
    let id = unique("user");
    app.create(&id).await;
    let messages = async || -> Vec<Option<String>> {
        sqlx::query_scalar("select message from workos.handler_backlog order by position")
            .fetch_all(&app.pool)
            .await
            .unwrap()
    };
    until("it has failed", async || !messages().await.is_empty()).await;
    assert!(messages().await[0].as_deref().unwrap().contains(&id));
    app.delete(&id).await;
    assert_eq!(messages().await[0], None, "erased by the transaction that deleted the user");
    // Later failures store no message either.
    until("it has failed again", async || {
        app.end_backoffs().await;
        let again: i32 =
            sqlx::query_scalar("select max(attempts) from workos.handler_backlog").fetch_one(&app.pool).await.unwrap();
        again > 1
    })
    .await;
    assert!(messages().await.iter().all(Option::is_none), "{:?}", messages().await);
    process.stop().await.unwrap();
    // If a message exists nevertheless, `erase_user` erases it.
    app.pool.execute("update workos.handler_backlog set message = 'Ada'").await.unwrap();
    assert!(erasure::erase_user(&app.store, &id).await.unwrap().is_some());
    assert!(messages().await.iter().all(Option::is_none));
}

#[tokio::test]
async fn a_name_that_is_taken_blocks_only_its_handler() {
    let app = Application::new().await;
    app.pool.execute(LOG).await.unwrap();
    let (code, said) = app.command(&["add", "public.on_user", "--name", "taken"]).await;
    assert_eq!(code, 0, "{said}");
    let wants = |change: Change, mut tx: Tx| async move { note("wants", &change, &mut tx).await };
    let well = |change: Change, mut tx: Tx| async move { note("well", &change, &mut tx).await };
    let process = app.run(|builder| builder.on("taken", "*", wants).on("well", "*", well)).await;
    app.registered("well").await;
    app.create(&unique("user")).await;
    for name in ["taken", "well"] {
        app.idle(name).await;
    }
    assert_eq!((app.done("well").await.len(), app.done("wants").await.len()), (1, 0));
    let by_function: i64 = sqlx::query_scalar("select count(*) from done where handler = current_user")
        .fetch_one(&app.pool)
        .await
        .unwrap();
    assert_eq!(by_function, 1);
    process.stop().await.unwrap();
}

/// During an upgrade, an older process can start after a newer one.
#[tokio::test]
async fn a_rust_handler_gets_its_own_types_whichever_process_started_last() {
    let app = Application::new().await;
    let handler = |change: Change, mut tx: Tx| async move { note("both", &change, &mut tx).await };
    let newer = app.run(|builder| builder.on("both", "user.created,user.updated", handler)).await;
    app.registered("both").await;
    let id = unique("user");
    app.create(&id).await;
    app.idle("both").await;
    let older = app.run(|builder| builder.on("both", "user.created", handler)).await;
    until("the older process has registered", async || app.status("both").await.unwrap().types == ["user.created"])
        .await;
    app.rename(&id, 10).await;
    until("the newer process handles the update", async || app.done("both").await.len() == 2).await;
    newer.stop().await.unwrap();
    older.stop().await.unwrap();
}

/// A change of a user without a row can fail while the user is deleted. The two transactions have no common row to lock.
#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "a slow transaction of another session")]
async fn a_concurrent_deletion_erases_the_message_about_a_user_without_a_row() {
    let app = Application::new().await;
    let fails = |_: Change, _: Tx| async move { Err::<(), BoxError>("cannot greet ada@example.test".into()) };
    let process = app.run(|builder| builder.on("fails", "*", fails)).await;
    app.registered("fails").await;
    // The transaction that stores the failure has looked for the user and waits for the handler's row.
    let mut held = app.pool.begin().await.unwrap();
    sqlx::query("select from workos.handlers for update").execute(&mut *held).await.unwrap();
    let id = unique("user");
    let session = observed("session.created", 0, &json!({"id": unique("session"), "user_id": id}));
    apply(&app.store, Origin::Webhook, &[session]).await.unwrap();
    let waits = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'
        and query like '%handlers.move%'";
    until("the transaction waits", async || {
        sqlx::query_scalar::<_, i64>(waits).fetch_one(&app.pool).await.unwrap() > 0
    })
    .await;
    app.delete(&id).await;
    held.rollback().await.unwrap();
    until("the failure is stored", async || app.status("fails").await.unwrap().waiting > 0).await;
    let messages: i64 =
        sqlx::query_scalar("select count(*) from workos.handler_backlog where user_id = $1 and message is not null")
            .bind(&id)
            .fetch_one(&app.pool)
            .await
            .unwrap();
    assert_eq!(messages, 0);
    process.stop().await.unwrap();
}
