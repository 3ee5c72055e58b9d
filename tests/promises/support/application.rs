//! An application that reacts to changes: its own table, and processes with handlers.

use authkit_sync::authkit::Builder;
use authkit_sync::domain::event::Origin;
use authkit_sync::store::Store;
use authkit_sync::store::handlers::{BoxError, HandlerStatus};
use authkit_sync::sync::apply;
use authkit_sync::{Change, Tx};
use serde_json::json;
use sqlx::{Executor, PgPool};

use super::binary;
use super::database::TestDatabase;
use super::events::{observed, user};
use super::service::{Service, store, until};

/// A database with the application's own table.
pub(crate) struct Application {
    pub(crate) database: TestDatabase,
    pub(crate) pool: PgPool,
    pub(crate) store: Store,
}

impl Application {
    pub(crate) async fn new() -> Self {
        let database = TestDatabase::new().await;
        let pool = database.pool(12).await;
        pool.execute(
            "create table done (n bigint generated always as identity, handler text, user_id text, kind text, origin text)",
        )
        .await
        .unwrap();
        Self { database, store: store(&pool), pool }
    }

    pub(crate) async fn create(&self, id: &str) {
        self.happens(Origin::Webhook, "user.created", 0, id, "Ada").await;
    }

    pub(crate) async fn rename(&self, id: &str, at: i64) {
        self.happens(Origin::Webhook, "user.updated", at, id, &format!("name {at}")).await;
    }

    pub(crate) async fn delete(&self, id: &str) {
        apply(&self.store, Origin::Webhook, &[observed("user.deleted", 99, &json!({"id": id}))]).await.unwrap();
    }

    pub(crate) async fn happens(&self, origin: Origin, event_type: &str, at: i64, id: &str, name: &str) {
        apply(&self.store, origin, &[observed(event_type, at, &user(id, name, at))]).await.unwrap();
    }

    /// Returns what a handler has written: user and kind, in order.
    pub(crate) async fn done(&self, handler: &str) -> Vec<(String, String)> {
        sqlx::query_as("select user_id, kind from done where handler = $1 order by n")
            .bind(handler)
            .fetch_all(&self.pool)
            .await
            .unwrap()
    }

    pub(crate) async fn status(&self, handler: &str) -> Option<HandlerStatus> {
        let statuses = self.store.handler_statuses().await.unwrap();
        statuses.into_iter().find(|status| status.name == handler)
    }

    pub(crate) async fn registered(&self, handler: &str) {
        until("the handler is registered", async || self.status(handler).await.is_some()).await;
    }

    /// Waits until every change is processed or dead-lettered.
    pub(crate) async fn idle(&self, handler: &str) {
        until("the handler has nothing left to do", async || {
            self.status(handler).await.is_some_and(|it| it.depth == 0 && it.state == "running")
        })
        .await;
    }

    /// Ends the pauses before the next attempts.
    pub(crate) async fn end_backoffs(&self) {
        self.pool.execute("update workos.handler_backlog set due_at = now() where due_at > now()").await.unwrap();
    }

    /// Starts a process of the application with these handlers.
    pub(crate) async fn run(&self, handlers: impl FnOnce(Builder) -> Builder) -> Service {
        Service::start_with(&self.pool, handlers).await
    }

    /// Runs `handlers …` of the real binary. Returns its exit code and output.
    pub(crate) async fn command(&self, arguments: &[&str]) -> (i32, String) {
        let mut command = binary::binary();
        command.arg("handlers").args(arguments).env("DATABASE_URL", self.database.url());
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        (output.status.code().unwrap(), binary::said(&output))
    }
}

/// A handler in Rust that writes the change to the application's table.
pub(crate) async fn note(handler: &str, change: &Change, tx: &mut Tx) -> Result<(), BoxError> {
    sqlx::query("insert into done (handler, user_id, kind, origin) values ($1, $2, $3, $4)")
        .bind(handler)
        .bind(change.user_id.as_deref().unwrap_or_default())
        .bind(change.kind.as_str())
        .bind(change.origin.as_str())
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// A handler in SQL, `public.on_user`, which does the same.
pub(crate) const LOG: &str = "
    create function on_user(change jsonb) returns void language plpgsql as $$
    begin
        insert into done (handler, user_id, kind, origin)
        values (current_user, change ->> 'user_id', change ->> 'kind', change ->> 'origin');
    end
    $$";
