//! Handlers that are SQL functions: they have the guarantees of handlers in Rust, and run as a role.

use std::time::Duration;

use authkit_sync::domain::event::Origin;
use authkit_sync::domain::handler::Types;
use authkit_sync::store::handlers::BoxError;
use authkit_sync::sync::apply;
use authkit_sync::{Change, Tx};
use serde_json::json;
use sqlx::{AssertSqlSafe, Executor};

use crate::support::application::{Application, LOG};
use crate::support::events::{at, observed, unique};
use crate::support::service::{store, until};

#[tokio::test]
async fn a_sql_function_has_the_same_guarantees_and_is_managed_on_the_command_line() {
    let app = Application::new().await;
    app.pool.execute(LOG).await.unwrap();
    let (code, said) = app.command(&["add", "public.on_nobody"]).await;
    assert_eq!((code, said.contains("the function public.on_nobody(jsonb) does not exist")), (78, true), "{said}");
    let (code, said) = app.command(&["add", "on_user"]).await;
    assert_eq!((code, said.contains("has no schema; add it, for example public.on_user")), (78, true), "{said}");
    let (code, said) = app.command(&["add", "public.on_user", "--types", "User"]).await;
    assert_eq!((code, said.contains("user.created, user.* or *")), (64, true), "{said}");
    let (code, said) = app.command(&["add", "public.on_user", "--types", "user.created,user.deleted"]).await;
    assert_eq!((code, said.contains("starts at the end of the feed")), (0, true), "{said}");
    let (code, said) = app.command(&["add", "public.on_user"]).await;
    assert_eq!((code, said.contains("a handler with the name public.on_user already exists")), (78, true), "{said}");
    // Other spellings of the same function.
    for spelled in
        ["public.on_user(jsonb)", "PUBLIC.On_User ( change pg_catalog.jsonb )", "\"public\".\"on_user\"(JSONB)"]
    {
        let (code, said) = app.command(&["add", spelled]).await;
        assert_eq!((code, said.contains("public.on_user already exists")), (78, true), "{spelled}: {said}");
    }
    let (code, said) = app.command(&["add", "public.on_user(text)"]).await;
    assert_eq!((code, said.contains("one argument of type jsonb")), (78, true), "{said}");
    // A second handler that calls the function needs another name.
    let (code, said) =
        app.command(&["add", "public.on_user", "--name", "second", "--types", "user.create,users.*"]).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("no event type user.create") && said.contains("Did you mean user.created?"), "{said}");
    assert!(said.contains("no event type users.*"), "{said}");
    assert_eq!(app.command(&["remove", "public.on_user"]).await.0, 0);
    let (code, said) = app.command(&["add", "public.on_user"]).await;
    assert_eq!((code, said.contains("the handler second already calls public.on_user(jsonb)")), (78, true), "{said}");
    assert_eq!(app.command(&["remove", "second"]).await.0, 0);
    assert_eq!(app.command(&["add", "Public.ON_USER", "--types", "user.created,user.deleted"]).await.0, 0);
    let process = app.run(|builder| builder).await;
    let id = unique("user");
    app.create(&id).await;
    app.rename(&id, 10).await;
    app.delete(&id).await;
    app.idle("public.on_user").await;
    let kinds: Vec<String> = sqlx::query_scalar("select kind from done order by n").fetch_all(&app.pool).await.unwrap();
    assert_eq!(kinds, ["created", "deleted"]);
    // A paused handler processes nothing. After a resume it continues at its position.
    assert_eq!(app.command(&["pause", "public.on_user"]).await.0, 0);
    app.create(&unique("user")).await;
    let (_, said) = app.command(&["list"]).await;
    assert!(said.contains("paused") && said.contains("depth 1"), "{said}");
    assert_eq!(app.command(&["resume", "public.on_user"]).await.0, 0);
    app.idle("public.on_user").await;
    let (_, said) = app.command(&["list", "--json"]).await;
    let listed: serde_json::Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
    assert_eq!((&listed[0]["depth"], &listed[0]["state"]), (&json!(0), &json!("running")), "{listed}");
    assert_eq!(app.command(&["remove", "public.on_user"]).await.0, 0);
    for command in ["pause", "resume", "remove", "redrive"] {
        let (code, said) = app.command(&[command, "public.on_user"]).await;
        assert_eq!((code, said.contains("not found; list handlers")), (1, true), "{said}");
    }
    process.stop().await.unwrap();
}

/// One raises, one loops, one is dropped: each error is reported, and none blocks another handler.
#[tokio::test]
async fn a_function_that_raises_loops_or_is_dropped_blocks_no_other_handler_and_is_reported() {
    let app = Application::new().await;
    app.pool.execute(LOG).await.unwrap();
    app.pool
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
        // Only the function that loops must time out.
        let timeout = if function == "loops" { "300ms" } else { "30s" };
        let (code, said) =
            app.command(&["add", &format!("public.{function}"), "--name", function, "--timeout", timeout]).await;
        assert_eq!(code, 0, "{said}");
    }
    app.pool.execute("drop function dropped").await.unwrap();
    let process = app.run(|builder| builder).await;
    for _ in 0..3 {
        app.create(&unique("user")).await;
    }
    app.idle("on_user").await;
    let error = async |name: &str| {
        until(name, async || app.status(name).await.unwrap().last_error.is_some()).await;
        app.status(name).await.unwrap().last_error.unwrap()
    };
    let raised = error("raises").await;
    assert_eq!(raised.sqlstate.as_deref(), Some("23505"));
    assert_eq!(raised.constraint.as_deref(), Some("strict_id"));
    assert!(raised.location.as_deref().unwrap().ends_with("raises(jsonb) line 4"), "{raised:?}");
    assert!(!raised.message.unwrap().contains("(same)"), "the detail, which quotes values, is not kept");
    let looped = error("loops").await;
    assert_eq!(looped.sqlstate.as_deref(), Some("57014"), "{looped:?}");
    until("the dropped one is named", async || {
        app.status("dropped")
            .await
            .unwrap()
            .problem
            .is_some_and(|it| it.contains("public.dropped(jsonb) does not exist"))
    })
    .await;
    assert_eq!(app.status("dropped").await.unwrap().depth, 3, "it stands still, and loses nothing");
    // After the function is created again, the handler continues.
    app.pool.execute("create function dropped(change jsonb) returns void language sql as ''").await.unwrap();
    app.idle("dropped").await;
    process.stop().await.unwrap();
}

/// Creates a role for this test.
async fn role(app: &Application, name: &str) -> String {
    let role = format!("{name}_{}", unique("r"));
    app.pool.execute(AssertSqlSafe(format!("create role {role}"))).await.unwrap();
    role
}

#[tokio::test]
async fn a_function_runs_as_its_owner_or_a_role_that_the_service_may_set() {
    let app = Application::new().await;
    let (owner, other, service) = (role(&app, "owner").await, role(&app, "other").await, role(&app, "service").await);
    app.pool.execute(LOG).await.unwrap();
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
    app.pool.execute(AssertSqlSafe(prepare)).await.unwrap();
    // The service must be a member of the owner's role.
    let narrow = app.database.pool_with(1, |options| options.username(&service)).await;
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
    assert!(refused.contains("the role nobody_at_all does not exist"), "{refused}");
    narrow.close().await;

    for (name, role) in [("on_user", None), ("peeks", None), ("defers", None), ("as_other", Some(&other))] {
        let function = if role.is_some() { "public.on_user".to_owned() } else { format!("public.{name}") };
        let mut arguments = vec!["add", &function, "--name", name];
        if let Some(role) = role {
            arguments.extend(["--role", role]);
        }
        let (code, said) = app.command(&arguments).await;
        assert_eq!(code, 0, "{said}");
    }
    let process = app.run(|builder| builder).await;
    app.create(&unique("user")).await;
    app.idle("on_user").await;
    let ran_as: Vec<String> = sqlx::query_scalar("select handler from done").fetch_all(&app.pool).await.unwrap();
    assert_eq!(ran_as, std::slice::from_ref(&owner));
    let failure = async |name: &str| {
        until(name, async || app.status(name).await.unwrap().last_error.is_some()).await;
        app.status(name).await.unwrap().last_error.unwrap()
    };
    assert_eq!(failure("peeks").await.sqlstate.as_deref(), Some("42501"), "the inbox is not the owner's");
    assert_eq!(failure("as_other").await.sqlstate.as_deref(), Some("42501"), "it may not write");
    let deferred = failure("defers").await;
    assert_eq!(deferred.constraint.as_deref(), Some("parts_whole_fkey"), "checked before the run counts: {deferred:?}");
    process.stop().await.unwrap();
    for role in [owner, other, service] {
        app.pool.execute(AssertSqlSafe(format!("drop owned by {role}; drop role {role}"))).await.unwrap();
    }
}

/// Returns an SQL example of the guide.
fn example_of_the_guide(index: usize) -> &'static str {
    let guide = include_str!("../../src/docs/reacting.md");
    let mut examples = guide.split("<!-- example: run by a test -->\n```sql\n").skip(1);
    examples.nth(index).unwrap().split("```").next().unwrap()
}

/// The example of the guide: an application's table of users, in sync from the first user on.
#[tokio::test]
async fn the_function_of_the_guide_keeps_an_applications_users_in_sync() {
    let app = Application::new().await;
    app.pool.execute(example_of_the_guide(0)).await.unwrap();
    let ids: Vec<String> = (0..5).map(|_| unique("user")).collect();
    for id in &ids[..3] {
        app.create(id).await;
    }
    let members = ["add", "public.on_workos_user", "--types", "organization_membership.*", "--from-start"];
    let (code, said) = app.command(&members).await;
    assert!(code == 64 && said.contains("existing users only"), "{code} {said}");
    let (code, said) = app.command(&["add", "public.on_workos_user", "--types", "user.*", "--from-start"]).await;
    assert_eq!(code, 0, "{said}");
    let process = app.run(|builder| builder).await;
    for id in &ids[3..] {
        app.create(id).await;
    }
    app.rename(&ids[0], 10).await;
    app.delete(&ids[1]).await;
    apply(&app.store, Origin::Webhook, &[observed("user.odd", 1, &json!({"id": ids[2]}))]).await.unwrap();
    app.idle("public.on_workos_user").await;
    let differ: i64 = sqlx::query_scalar(
        "select count(*) from app_users as ours full join workos.users as theirs on theirs.id = ours.id
        where (ours.email, ours.name) is distinct from (theirs.email, theirs.name)",
    )
    .fetch_one(&app.pool)
    .await
    .unwrap();
    assert_eq!(differ, 0);
    assert_eq!(app.status("public.on_workos_user").await.unwrap().dead_lettered, 0);
    process.stop().await.unwrap();
}

/// The example of the guide: the seats of organizations, with the memberships that existed before the handler.
#[tokio::test]
async fn the_function_of_the_guide_counts_the_seats_of_organizations() {
    let app = Application::new().await;
    app.pool.execute(example_of_the_guide(1)).await.unwrap();
    let (user, organization) = (unique("user"), unique("org"));
    let ids: Vec<String> = (0..4).map(|_| unique("om")).collect();
    app.create(&user).await;
    let object = json!({"id": organization, "name": "Quill", "domains": [], "metadata": {}, "updated_at": at(0)});
    let created = observed("organization.created", 0, &object);
    apply(&app.store, Origin::Webhook, &[created]).await.unwrap();
    let set = async |id: &str, status: &str, millis: i64| {
        let object = json!({
            "id": id, "user_id": user, "organization_id": organization, "status": status, "updated_at": at(millis),
        });
        let event = observed("organization_membership.updated", millis, &object);
        apply(&app.store, Origin::Webhook, &[event]).await.unwrap();
    };
    for (id, status) in ids.iter().zip(["active", "active", "pending", "active"]) {
        set(id, status, 1).await;
    }
    let add = ["add", "public.on_workos_membership", "--types", "organization_membership.*"];
    assert_eq!(app.command(&add).await.0, 0);
    app.pool.execute(example_of_the_guide(2)).await.unwrap();
    let process = app.run(|builder| builder).await;
    set(&ids[1], "inactive", 2).await;
    set(&ids[2], "active", 2).await;
    let deleted = observed("organization_membership.deleted", 3, &json!({"id": ids[3]}));
    apply(&app.store, Origin::Webhook, &[deleted]).await.unwrap();
    app.idle("public.on_workos_membership").await;
    let seats: Vec<String> = sqlx::query_scalar("select membership_id from seats order by membership_id")
        .fetch_all(&app.pool)
        .await
        .unwrap();
    assert_eq!(seats, [ids[0].clone(), ids[2].clone()]);
    process.stop().await.unwrap();
}

/// A role or setting that a handler leaves affects neither the storing of its progress nor the next handler on the connection.
#[tokio::test]
async fn a_handler_that_changes_role_or_settings_affects_no_later_call() {
    let app = Application::new().await;
    let other = role(&app, "other").await;
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
    app.pool.execute(AssertSqlSafe(functions)).await.unwrap();
    for function in ["on_user", "becomes", "reads_only"] {
        let (code, said) = app.command(&["add", &format!("public.{function}"), "--name", function]).await;
        assert_eq!(code, 0, "{said}");
    }
    let become_other = format!("set local role {other}");
    let local = move |_: Change, mut tx: Tx| {
        let become_other = become_other.clone();
        async move { tx.execute(AssertSqlSafe(become_other)).await.map(drop) }
    };
    let nul = |_: Change, _: Tx| async move { Err::<(), BoxError>("a NUL: \0".into()) };
    // One connection, which all handlers use in turn.
    let pool = app.database.pool(1).await;
    let process =
        app.run(|builder| builder.handler_pool(pool.clone()).on("local", "*", local).on("nul", "*", nul)).await;
    for name in ["local", "nul"] {
        app.registered(name).await;
    }
    for _ in 0..3 {
        app.create(&unique("user")).await;
    }
    for name in ["on_user", "becomes", "local"] {
        app.idle(name).await;
        let status = app.status(name).await.unwrap();
        assert!(status.last_error.is_none(), "{name}: {status:?}");
    }
    for (name, why) in [("reads_only", "SQLSTATE 25006"), ("nul", "a NUL: \u{FFFD}")] {
        until(name, async || app.status(name).await.unwrap().waiting == 3).await;
        let error = app.status(name).await.unwrap().last_error.unwrap();
        assert!(error.message.clone().unwrap().contains(why), "{name}: {error:?}");
    }
    process.stop().await.unwrap();
    let now: String = sqlx::query_scalar("select current_setting('role')").fetch_one(&pool).await.unwrap();
    assert_eq!(now, "none");
    pool.close().await;
    app.pool.execute(AssertSqlSafe(format!("drop role {other}"))).await.unwrap();
}
