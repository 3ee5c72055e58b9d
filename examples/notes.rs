//! A small application: signed-in users keep notes. Its table references the synced users, and its routes look up the caller.
//!
//! There are two database roles. AuthKit's role owns the schema `workos` and cannot read the notes. The application's role owns the
//! notes and is a member of `workos_reader`: it can read live users. It also has the privilege to reference them in foreign keys,
//! for which the guide `reading` has a warning. It can neither change a user nor read the events from WorkOS.
//!
//! ```sql
//! create role notes login password '…' in role workos_reader;   -- after `authkit-sync migrate`, which creates workos_reader
//! grant references (id) on workos.user_records to notes;
//! create schema notes authorization notes;                      -- the default search path of the role begins with this schema
//! ```
//!
//! ```sh
//! AUTHKIT_DATABASE_URL=… NOTES_DATABASE_URL=… WORKOS_CLIENT_ID=… WORKOS_API_KEY=… cargo run --example notes
//! ```

use authkit_sync::{ApiKey, AuthKit, AuthUser};
use axum::extract::{FromRef, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use sqlx::PgPool;

/// The state of the handlers.
#[derive(Clone)]
pub(crate) struct App {
    /// Looks up the caller.
    pub(crate) authkit: AuthKit,
    /// The application's own role.
    pub(crate) pool: PgPool,
}

impl FromRef<App> for AuthKit {
    fn from_ref(app: &App) -> Self {
        app.authkit.clone()
    }
}

/// The application's own table. A deleted user keeps a row in `workos.user_records`, so a deletion never violates the foreign key.
pub(crate) const TABLE: &str = "
    create table if not exists notes (
        id      bigint generated always as identity primary key,
        user_id text collate \"C\" not null references workos.user_records (id),
        body    text not null
    )";

/// The routes of the application, and those of AuthKit below `/sync`.
pub(crate) fn app(app: App) -> Router {
    let sync = app.authkit.router();
    Router::new().route("/", get(welcome)).route("/notes", get(list).post(add)).with_state(app).nest("/sync", sync)
}

async fn welcome(caller: Option<AuthUser>) -> String {
    caller.map_or_else(|| "hello guest".to_owned(), |caller| format!("hello {}", caller.user.email))
}

async fn list(AuthUser { user, .. }: AuthUser, State(app): State<App>) -> Result<Json<Vec<String>>, StatusCode> {
    let notes = sqlx::query_scalar("select body from notes where user_id = $1 order by id").bind(&user.id);
    notes.fetch_all(&app.pool).await.map(Json).map_err(|_| StatusCode::SERVICE_UNAVAILABLE)
}

async fn add(AuthUser { user, .. }: AuthUser, State(app): State<App>, body: String) -> Result<StatusCode, StatusCode> {
    let insert = sqlx::query("insert into notes (user_id, body) values ($1, $2)").bind(&user.id).bind(body);
    insert.execute(&app.pool).await.map(|_| StatusCode::CREATED).map_err(|_| StatusCode::SERVICE_UNAVAILABLE)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let variable = |name: &str| {
        std::env::var_os(name).and_then(|value| value.into_string().ok()).ok_or(format!("{name} is not set"))
    };
    let authkits = PgPool::connect(&variable("AUTHKIT_DATABASE_URL")?).await?;
    authkit_sync::run_migrations(&authkits).await?;
    for statement in authkit_sync::assert_roles(&authkits).await? {
        eprintln!("this role lacks the privilege for a statement; let a superuser run it: {statement}");
    }
    let builder = AuthKit::builder(authkits, variable("WORKOS_CLIENT_ID")?);
    let authkit = builder.api_key(ApiKey::new(variable("WORKOS_API_KEY")?)).build()?;
    // Reads all users once, then polls WorkOS.
    tokio::spawn(authkit.clone().run_background(std::future::pending()));
    let pool = PgPool::connect(&variable("NOTES_DATABASE_URL")?).await?;
    sqlx::query(TABLE).execute(&pool).await?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    println!("http://{}", listener.local_addr()?);
    axum::serve(listener, app(App { authkit, pool })).await?;
    Ok(())
}
