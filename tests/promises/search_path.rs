//! Functions of the schema run only PostgreSQL's code and ours, for every search_path of the caller.

use sqlx::{AssertSqlSafe, Executor};

use crate::support::database::TestDatabase;
use crate::support::events::{observed, user};
use crate::support::service::store;

/// Whether a function body qualifies every operator, call and cast, so that it does not depend on the search_path.
fn is_qualified(body: &str) -> bool {
    let mut rest = body.replace("select *", "select all columns");
    while let Some((before, after)) = rest.split_once("operator(pg_catalog.") {
        rest = format!("{before}{}", after.split_once(')').unwrap().1);
    }
    // A parenthesis follows the name of a function of ours, or `any`.
    let mut calls: Vec<&str> = rest.split('(').collect();
    calls.pop();
    calls
        .iter()
        .all(|before| before.ends_with(" any ") || before.split(' ').next_back().unwrap().starts_with("workos."))
        && !rest.contains(|character: char| "=<>+-*/~!@#%^&|`?:".contains(character))
}

#[tokio::test]
async fn every_function_of_the_schema_pins_its_search_path_and_is_closed_to_public() {
    let database = TestDatabase::new().await;
    let pool = database.pool(1).await;
    let functions: Vec<(String, String, bool, bool)> = sqlx::query_as(
        "select oid::regprocedure::text, prosrc, coalesce('search_path=pg_catalog, pg_temp' = any(proconfig), false),
            has_function_privilege('public', oid, 'execute')
        from pg_proc where pronamespace = 'workos'::regnamespace order by 1",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    assert!(functions.len() >= 15);
    for (function, body, is_pinned, is_public) in functions {
        assert!(is_pinned || is_qualified(&body), "{function} depends on its caller's search_path:\n{body}");
        assert!(!is_public, "{function} is executable by public");
    }
    assert!(is_qualified("select * from workos.t where a operator(pg_catalog.=) b"));
    assert!(is_qualified("select a operator(pg_catalog.=) any (workos.f())"));
    assert!(!is_qualified("select * from workos.t where a = b") && !is_qualified("select lower(a) from workos.t"));
    assert!(!is_qualified("select workos.f(lower(a))") && !is_qualified("select a from (select workos.f())"));
}

/// Any role can create temporary types, and an empty path finds these types first.
#[tokio::test]
async fn a_temporary_type_of_the_caller_is_not_used_by_a_function_that_runs_as_its_owner() {
    let database = TestDatabase::new().await;
    let pool = database.pool(1).await;
    let role = format!("{}_caller", database.name());
    let created = observed("user.created", 0, &user("user_1", "Ada", 0));
    authkit_sync::sync::apply(&store(&pool), authkit_sync::domain::event::Origin::Webhook, &[created]).await.unwrap();
    let mut caller = pool.acquire().await.unwrap();
    for sql in [
        format!("create role {role}"),
        format!("grant usage on schema workos to {role}"),
        format!("grant execute on function workos.current_auth_user() to {role}"),
        "begin".to_owned(),
        format!("set local role {role}"),
        "create function pg_temp.spy(text) returns boolean language plpgsql as $$
        begin
            raise exception 'ran as %', current_user;
        end $$"
            .to_owned(),
        "create domain pg_temp.jsonb as pg_catalog.jsonb check (pg_temp.spy(value::text))".to_owned(),
        "create domain pg_temp.text as pg_catalog.text check (pg_temp.spy(value))".to_owned(),
        "select pg_catalog.set_config('request.jwt.claims', '{\"sub\":\"user_1\"}', true)".to_owned(),
    ] {
        caller.execute(AssertSqlSafe(sql)).await.unwrap();
    }
    let own: Vec<String> =
        sqlx::query_scalar("select id from workos.current_auth_user()").fetch_all(&mut *caller).await.unwrap();
    assert_eq!(own, ["user_1"]);
    caller.execute("rollback").await.unwrap();
    caller.execute(AssertSqlSafe(format!("drop owned by {role}; drop role {role}"))).await.unwrap();
}

/// The function runs with the settings of a new session of its role. They do not affect the session that calls it.
#[tokio::test]
async fn a_handlers_function_runs_with_the_search_path_of_its_role() {
    let database = TestDatabase::new().await;
    let pool = database.pool(1).await;
    let (name, role) = (database.name(), format!("{}_owner", database.name()));
    let mut session = pool.acquire().await.unwrap();
    for sql in [
        format!("create role {role}"),
        format!("create schema theirs authorization {role}"),
        "create table theirs.seen (n bigint generated always as identity, who text, path text)".to_owned(),
        "create function theirs.on_user(change jsonb) returns void language plpgsql as $$
        begin
            insert into seen (who, path) values (current_user, current_setting('search_path'));
        end $$"
            .to_owned(),
        format!("alter table theirs.seen owner to {role}; alter function theirs.on_user(jsonb) owner to {role}"),
        // Objects of another role that match better than the functions that build the call.
        "create function public.format(text, regproc) returns text language plpgsql as $$
        begin
            raise exception 'ran as %', current_user;
        end $$;
        create function public.format(text, name, name) returns text language plpgsql as $$
        begin
            raise exception 'ran as %', current_user;
        end $$"
            .to_owned(),
        "set search_path = public, pg_catalog".to_owned(),
    ] {
        session.execute(AssertSqlSafe(sql)).await.unwrap();
    }
    let call = format!("select workos.run_handler('theirs.on_user(jsonb)', '{role}', '{{}}')");
    let missing = session.execute(AssertSqlSafe(call.clone())).await.unwrap_err().to_string();
    assert!(missing.contains("\"seen\" does not exist"), "the default path is \"$user\", public: {missing}");
    for (setting, path) in [
        (format!("alter database {name} set search_path = theirs, pg_temp"), "theirs, pg_temp"),
        (format!("alter role {role} set search_path = theirs"), "theirs"),
        (format!("alter role {role} in database {name} set search_path = theirs, public"), "theirs, public"),
    ] {
        session.execute(AssertSqlSafe(setting)).await.unwrap();
        session.execute(AssertSqlSafe(call.clone())).await.unwrap();
        let seen: (String, String) = sqlx::query_as("select who, path from theirs.seen order by n desc limit 1")
            .fetch_one(&mut *session)
            .await
            .unwrap();
        assert_eq!(seen, (role.clone(), path.to_owned()));
        let after: (String, String) = sqlx::query_as("select current_setting('role'), current_setting('search_path')")
            .fetch_one(&mut *session)
            .await
            .unwrap();
        assert_eq!((after.0.as_str(), after.1.as_str()), ("none", "public, pg_catalog"));
    }
    session.execute("set search_path to default").await.unwrap();
    session.execute(AssertSqlSafe(format!("drop owned by {role} cascade; drop role {role}"))).await.unwrap();
}
