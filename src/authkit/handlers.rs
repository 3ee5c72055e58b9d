//! The builder's methods that add handlers.

use std::sync::Arc;
use std::time::Duration;

use super::Builder;
use crate::domain::handler::{self, Types};
use crate::store::Pool;
use crate::sync::handlers::{Handle, RustHandler};

impl Builder {
    /// Adds a handler, which runs for each change of the given types. `types` are event types, separated by commas: complete
    /// (`user.created`), by prefix (`user.*`) or all (`*`).
    ///
    /// For the `user.*` types the handler gets every change of a user, from any origin. For other types it gets every event. Its
    /// writes through [`Tx`](crate::Tx) commit together with its progress, so it takes effect exactly once. The changes of one user
    /// come in order.
    ///
    /// After an error the transaction is rolled back, and the change is retried with growing pauses for about half an hour. Then it
    /// is dead-lettered (see `authkit-sync handlers list`), and later changes of the user continue. The progress belongs to `name`,
    /// so keep the name. A new name starts at the end of the feed.
    ///
    /// Keep a handler short and do not call other systems: only writes to the database are rolled back. Write a row, as in this
    /// example, and let a worker send the mail.
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

    /// Adds a handler as [`Builder::on`] does. A new handler first gets every live user as a change `created` of origin `backfill`.
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
            self.mistakes.push(format!(
                "two handlers have the name {name}; each handler needs its own name, because its progress belongs to it"
            ));
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

    /// Sets the timeout of a handler in Rust for one change, for handlers that are added after this call. Default 30 seconds.
    pub fn handler_timeout(mut self, timeout: Duration) -> Self {
        self.handler_timeout = timeout;
        self
    }

    /// Sets a separate pool for handlers, so that a slow handler blocks nothing else. Two connections per handler are enough.
    pub fn handler_pool(mut self, pool: impl Into<Pool>) -> Self {
        self.handlers = pool.into();
        self
    }
}
