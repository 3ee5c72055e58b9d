//! The library in an application: the example, with a real token over real HTTP.

#[path = "../../examples/notes.rs"]
#[expect(dead_code, reason = "its main is for `cargo run --example notes`")]
mod notes;

use std::time::Duration;

use authkit_sync::authkit::Rejection;
use authkit_sync::store::roles;
use authkit_sync::tokens::Identity;
use authkit_sync::workos::signature::Secret;
use authkit_sync::{ApiKey, AuthKit, Clock, RunError, Unfit};
use authkit_sync::{AuthUser, lookup::LookupError};
use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use notes::App;
use serde_json::json;
use sqlx::postgres::{PgConnectOptions, PgPool};
use sqlx::{AssertSqlSafe, Executor};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::support::database::TestDatabase;
use crate::support::events;
use crate::support::lab::{Lab, another_workos, object};
use crate::support::service::{Answer, until};

async fn serve(routes: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, routes).await });
    url
}

fn authkit(lab: &Lab) -> AuthKit {
    authkit_on(lab.service_pool(), lab)
}

fn authkit_on(pool: PgPool, lab: &Lab) -> AuthKit {
    let builder = AuthKit::builder(pool, lab.workos.client_id()).api_base(lab.workos.base_url());
    builder.clock(lab.clock.clone()).build().unwrap()
}

async fn ask(method: &str, url: String, token: Option<&str>, body: &'static str) -> Answer {
    let client = authkit_sync::workos::http::http_client().unwrap();
    let mut request = client.request(method.parse().unwrap(), url).body(body);
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    Answer::of(request.send().await.unwrap()).await
}

#[tokio::test]
async fn the_example_authenticates_its_callers_and_separates_their_notes() {
    let lab = Lab::new().await;
    let (ada, grace) = (lab.create_user("Ada"), lab.create_user("Grace"));
    lab.backfill().await;
    sqlx::query(notes::TABLE).execute(&lab.pool).await.unwrap();
    let pool = lab.service_pool();
    let url = serve(notes::app(App { authkit: authkit_on(pool.clone(), &lab), pool: lab.pool.clone() })).await;
    let (a, g) = (lab.workos.sign_in(&ada).unwrap(), lab.workos.sign_in(&grace).unwrap());
    assert_eq!(ask("POST", format!("{url}/notes"), Some(&a), "a note").await.status, 201);
    assert_eq!(ask("GET", format!("{url}/notes"), Some(&a), "").await.json(), json!(["a note"]));
    assert_eq!(ask("GET", format!("{url}/notes"), Some(&g), "").await.json(), json!([]));
    assert_eq!(ask("GET", format!("{url}/notes"), None, "").await.code(), (401, "token_missing".to_owned()));
    // A request without a header is a guest. A request with an invalid token is not.
    assert_eq!(ask("GET", format!("{url}/"), None, "").await.text, "hello guest");
    assert!(ask("GET", format!("{url}/"), Some(&a), "").await.text.contains("@example.test"));
    let bad = ask("GET", format!("{url}/"), Some("not.a.token"), "").await;
    assert_eq!(bad.code(), (401, "token_invalid".to_owned()));
    assert!(bad.header("www-authenticate").contains("error_description"));
    // The routes of the service, mounted under a prefix.
    assert_eq!(ask("GET", format!("{url}/sync/auth/user"), Some(&a), "").await.json()["id"], json!(ada));
    pool.close().await;
    assert_eq!(ask("GET", format!("{url}/"), Some(&a), "").await.code(), (503, "database_unavailable".to_owned()));
}

/// A pool of a new role, with its own schema first in its search path.
async fn login(lab: &Lab, name: &str, rights: &str) -> (String, PgPool) {
    let role = format!("{}_{name}", lab.database.name());
    let create = format!(
        "create role {role} login password 'of-no-use-elsewhere'; {}; create schema {name} authorization {role}",
        rights.replace("ROLE", &role)
    );
    lab.pool.execute(AssertSqlSafe(create)).await.unwrap();
    let path = format!("{name}, public");
    let as_role = |options: PgConnectOptions| {
        options.username(&role).password("of-no-use-elsewhere").options([("search_path", path)])
    };
    let pool = lab.database.pool_with(3, as_role).await;
    (role, pool)
}

async fn refused(pool: &PgPool, sql: &str) {
    let error = pool.execute(AssertSqlSafe(sql.to_owned())).await.unwrap_err();
    let code = error.as_database_error().and_then(|error| error.code().map(|code| code.into_owned()));
    assert_eq!(code.as_deref(), Some("42501"), "{sql}: {error}");
}

/// The example with the logins that its first comment describes: AuthKit's login, and the application's login, which has
/// `workos_reader`, the right to reference users, and no other rights.
#[tokio::test]
async fn the_example_runs_under_a_login_that_may_read_users_and_nothing_else() {
    let lab = Lab::new().await;
    assert!(roles::assert(&lab.pool).await.unwrap().is_empty());
    let id = lab.create_user("Ada");
    lab.backfill().await;
    let (notes_role, notes) = login(
        &lab,
        "notes",
        "grant workos_reader to ROLE;
        grant references (id) on workos.user_records to ROLE",
    )
    .await;
    let service = "grant usage on schema workos to ROLE;
        grant select, insert, update, delete on all tables in schema workos to ROLE;
        grant usage, select on all sequences in schema workos to ROLE;
        grant execute on all functions in schema workos to ROLE";
    let (sync_role, sync) = login(&lab, "sync", service).await;
    sqlx::query(notes::TABLE).execute(&notes).await.unwrap();
    let builder = AuthKit::builder(sync.clone(), lab.workos.client_id()).api_base(lab.workos.base_url());
    let secret = Secret::new("whsec_of_this_test");
    let authkit = builder.clock(lab.clock.clone()).webhook_secrets(vec![secret.clone()]).build().unwrap();
    let url = serve(notes::app(App { authkit, pool: notes.clone() })).await;
    let token = lab.workos.sign_in(&id).unwrap();
    assert_eq!(ask("POST", format!("{url}/notes"), Some(&token), "a note").await.status, 201);
    assert_eq!(ask("GET", format!("{url}/notes"), Some(&token), "").await.json(), json!(["a note"]));
    // AuthKit receives under its login, and the application sees the change under its own.
    let renamed = events::body("event_1", "user.updated", 9_000_000_000, &events::user(&id, "Adaline", 9_000_000_000));
    let signature = secret.sign(lab.clock.now(), &renamed);
    let client = authkit_sync::workos::http::http_client().unwrap();
    let delivery =
        client.post(format!("{url}/sync/workos/webhook")).header("WorkOS-Signature", signature).body(renamed);
    assert_eq!(delivery.send().await.unwrap().status(), 200);
    let joined = "select u.first_name from notes n join workos.users u on u.id = n.user_id";
    assert_eq!(sqlx::query_scalar::<_, String>(joined).fetch_one(&notes).await.unwrap(), "Adaline");
    let one = sqlx::query_scalar::<_, i64>("select count(*) from workos.get_auth_user($1)").bind(&id);
    assert_eq!(one.fetch_one(&notes).await.unwrap(), 1);
    // Each login can read exactly its own tables.
    for sql in [
        "select id from workos.user_records",
        "select id from workos.events",
        "update workos.users set first_name = 'x'",
        "delete from workos.user_records",
        "select 1 from workos.environment",
    ] {
        refused(&notes, sql).await;
    }
    refused(&sync, "select body from notes.notes").await;
    // AuthKit cannot work with the application's rights, and the error names the missing privilege.
    let wrong = AuthKit::builder(notes.clone(), lab.workos.client_id()).api_base(lab.workos.base_url());
    let wrong = wrong.clock(lab.clock.clone()).build().unwrap();
    let error = wrong.get_auth_user(&token).await.unwrap_err();
    assert!(matches!(&error, LookupError::Store(error) if error.to_string().contains("42501")), "{error}");
    for pool in [notes, sync] {
        pool.close().await;
    }
    let gone = format!("drop owned by {notes_role}, {sync_role} cascade; drop role {notes_role}, {sync_role}");
    lab.pool.execute(AssertSqlSafe(gone)).await.unwrap();
}

async fn who(identity: Identity) -> String {
    identity.subject
}

/// The application's own response to a rejection.
async fn worded(caller: Result<AuthUser, Rejection>) -> Response {
    match caller {
        Ok(caller) => caller.user.id.into_response(),
        Err(refusal) if refusal.status() == StatusCode::UNAUTHORIZED => {
            (StatusCode::UNAUTHORIZED, format!("please sign in ({}): {}", refusal.code(), refusal.message()))
                .into_response()
        }
        Err(refusal) => refusal.into_response(),
    }
}

#[tokio::test]
async fn extractors_and_lookups_of_the_library() {
    let lab = Lab::new().await;
    let id = lab.create_user("Ada");
    lab.backfill().await;
    let authkit = authkit(&lab);
    let url =
        serve(Router::new().route("/who", get(who)).route("/worded", get(worded)).with_state(authkit.clone())).await;
    let token = lab.workos.sign_in(&id).unwrap();
    let stranger = lab.workos.token("user_nobody", "session_1", 300).unwrap();
    assert_eq!(ask("GET", format!("{url}/who"), Some(&stranger), "").await.text, "user_nobody");
    assert_eq!(ask("GET", format!("{url}/worded"), Some(&token), "").await.text, id);
    assert!(ask("GET", format!("{url}/worded"), None, "").await.text.starts_with("please sign in (token_missing)"));
    assert_eq!(ask("GET", format!("{url}/worded"), Some(&stranger), "").await.code().1, "user_not_found");
    assert_eq!(authkit.get_auth_user(&token).await.unwrap().id, id);
    assert_eq!(authkit.get_user(&id).await.unwrap().id, id);
    assert!(matches!(authkit.get_user("user_nobody").await, Err(LookupError::NotFound)));
    assert!(authkit.get_user_by_external_id("crm-none").await.unwrap().is_none());
    assert_eq!(authkit.identity(&token).await.unwrap().subject, id);
}

async fn hello(AuthUser { user, .. }: AuthUser) -> String {
    format!("hello {}", user.email)
}

/// The example of the README, with a simulated WorkOS: on an empty database, it reads all users.
#[tokio::test]
async fn the_example_of_the_readme_migrates_the_database_and_reads_all_users() {
    let database = TestDatabase::empty().await;
    let pool = database.pool(12).await;
    let workos = another_workos(&Clock::system(), 1, None).await;
    let id =
        workos.create_user(&object(json!({"email": "ada@example.test"}))).unwrap()["id"].as_str().unwrap().to_owned();
    let builder = AuthKit::builder(pool.clone(), workos.client_id()).api_base(workos.base_url());
    let authkit = builder.api_key(ApiKey::new(workos.api_key())).migrate(true).build().unwrap();
    let app: Router =
        Router::new().route("/hello", get(hello)).with_state(authkit.clone()).nest("/sync", authkit.router());
    let url = serve(app).await;
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(authkit.run_background(async {
        let _ = stopped.await;
    }));
    let token = workos.sign_in(&id).unwrap();
    until("the user is here", async || {
        ask("GET", format!("{url}/hello"), Some(&token), "").await.text == "hello ada@example.test"
    })
    .await;
    let _ = stop.send(());
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn background_jobs_name_a_database_without_migrations_and_begin_when_it_is_migrated() {
    let database = TestDatabase::empty().await;
    let pool = database.pool(12).await;
    let workos = another_workos(&Clock::system(), 2, None).await;
    workos.create_user(&object(json!({"email": "ada@example.test"}))).unwrap();
    let builder = AuthKit::builder(pool.clone(), workos.client_id()).api_base(workos.base_url());
    let authkit = builder.api_key(ApiKey::new(workos.api_key())).build().unwrap();
    let (url, ops) = (serve(authkit.router()).await, serve(authkit.ops_router()).await);
    until("its future says why", async || {
        let ended = authkit.clone().run_background(tokio::time::sleep(Duration::from_millis(100))).await;
        matches!(ended, Err(RunError::Unfit(Unfit::Pending(_))))
    })
    .await;
    assert_eq!(ask("GET", format!("{url}/readyz"), None, "").await.text, r#"{"status":"not_ready"}"#);
    let ready = ask("GET", format!("{ops}/readyz"), None, "").await;
    assert_eq!(ready.status, 503);
    assert!(ready.text.contains("run `authkit-sync migrate`"), "{}", ready.text);
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(authkit.run_background(async {
        let _ = stopped.await;
    }));
    authkit_sync::run_migrations(&pool).await.unwrap();
    let users = "select count(*) from workos.users";
    until("the users are here", async || sqlx::query_scalar::<_, i64>(users).fetch_one(&pool).await.unwrap() == 1)
        .await;
    assert_eq!(ask("GET", format!("{url}/readyz"), None, "").await.status, 200);
    // The database is bound to another environment.
    let elsewhere = "update workos.environment set client_id = 'client_of_another_environment'";
    pool.execute(elsewhere).await.unwrap();
    let ended = running.await.unwrap();
    assert!(matches!(ended, Err(RunError::Unfit(Unfit::OtherClient { .. }))), "{ended:?}");
    assert_eq!(ask("GET", format!("{url}/readyz"), None, "").await.status, 503);
    drop(stop);
}
