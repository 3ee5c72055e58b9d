//! What the application does when something changes.

use std::sync::Arc;
use std::time::Duration;

use super::Builder;
use crate::domain::handler::{self, Types};
use crate::store::Pool;
use crate::sync::handlers::{Handle, RustHandler};

impl Builder {
    /// Does something when something changes: `types` are event types, whole (`user.created`), by their first words
    /// (`user.*`) or any (`*`), separated by commas.
    ///
    /// Of `user.*` the handler gets every change of that kind, whichever way it came to light; of any other type every event.
    /// Its writes through [`Tx`](crate::Tx) commit together with the fact that it has run: exactly once in effect, one user's
    /// changes in order. An error rolls back and is tried again, with growing rests, for about half an hour; then the change
    /// is set aside (`authkit-sync handlers list`), and its user's later ones go on. Progress is kept under `name`: keep it. A
    /// new name starts at the end of the feed.
    ///
    /// Keep it short, and call no other system from it: only what is in the database is rolled back. Write a row, as here, and
    /// let a worker of yours send it.
    ///
    /// ```
    /// use authkit_sync::{AuthKit, Change, Tx};
    ///
    /// async fn welcome(change: Change, mut tx: Tx) -> Result<(), sqlx::Error> {
    ///     if let Some(user) = change.user.filter(|_| change.origin.is_live()) {
    ///         sqlx::query("insert into mails (recipient, template) values ($1, 'welcome')")
    ///             .bind(user.email)
    ///             .execute(&mut *tx)
    ///             .await?;
    ///     }
    ///     Ok(())
    /// }
    ///
    /// # fn example(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
    /// let authkit = AuthKit::builder(pool, "client_…").on("welcome", "user.created", welcome).build()?;
    /// # Ok(()) }
    /// ```
    pub fn on(self, name: &str, types: &str, handler: impl Handle) -> Self {
        self.handle(name, types, false, handler)
    }

    /// As [`Builder::on`], but while it is new the handler is first told of every live user: one `created` of origin
    /// `backfill` each.
    pub fn on_from_start(self, name: &str, types: &str, handler: impl Handle) -> Self {
        self.handle(name, types, true, handler)
    }

    fn handle(mut self, name: &str, types: &str, from_start: bool, handler: impl Handle) -> Self {
        let types = match Types::parse(types) {
            Ok(types) => types,
            Err(error) => {
                self.mistakes.push(format!("handler {name}: {error}"));
                return self;
            }
        };
        if !handler::is_name(name) {
            self.mistakes.push(format!("handler {name:?}: {}", handler::NAME));
        }
        if self.jobs.handlers.iter().any(|other| *other.name == *name) {
            self.mistakes.push(format!("there are two handlers of the name {name}: progress is kept under it"));
        }
        let handle = Arc::new(handler);
        self.jobs.handlers.push(RustHandler {
            name: name.into(),
            types,
            from_start,
            timeout: self.handler_timeout,
            handle,
        });
        self
    }

    /// How long a handler in Rust may take with one change; those added before keep theirs. Default
    /// [`TIMEOUT`](crate::sync::handlers::TIMEOUT).
    pub fn handler_timeout(mut self, timeout: Duration) -> Self {
        self.handler_timeout = timeout;
        self
    }

    /// Handlers run on a pool of their own, so that a slow one starves nothing else. Two connections for each handler are enough.
    pub fn handler_pool(mut self, pool: impl Into<Pool>) -> Self {
        self.handlers = pool.into();
        self
    }
}
