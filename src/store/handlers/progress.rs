//! The progress of handlers. One transaction runs or postpones a change and moves the handler to the next one.

use std::time::Duration;

use super::transaction::{BoxError, HandlerFailure, Tx};
use super::{BacklogChange, SqlHandler};
use crate::store::DbConnection;
use crate::store::{Store, StoreError, Work};

/// How the progress of a handler changes after it has processed a change. This fails if the position is no longer the one that was
/// read. So if two processes run the same change, one of them is rolled back.
#[derive(Clone, Copy, Debug)]
pub enum HandlerMove<'a> {
    /// To the next change of the feed.
    Feed {
        /// The previous position.
        from: i64,
        /// The new position.
        to: i64,
    },
    /// To the next of the live users that a new handler receives.
    InitialUsers {
        /// The previous position.
        from: &'a str,
        /// The new position.
        to: &'a str,
    },
    /// Removes a change from the backlog.
    Backlog(&'a BacklogChange),
}

/// How a change waits in the backlog.
#[derive(Clone, Debug)]
pub struct Postponement {
    /// The number of failed attempts.
    pub attempts: i32,
    /// The delay before the next attempt. `None` dead-letters the change.
    pub delay: Option<Duration>,
    /// Why it failed. `None` if it only waits for an earlier change of its user.
    pub failure: Option<HandlerFailure>,
}

impl Store {
    /// Runs a handler, and moves it in the same transaction.
    ///
    /// # Errors
    /// [`StoreError`]: nothing was written. [`StoreError::Overtaken`] if another process has moved the handler.
    pub async fn run_handler<F: Future<Output = Result<(), BoxError>>>(
        &self,
        name: &str,
        timeout: Duration,
        handler: impl FnOnce(Tx) -> F,
        moved: HandlerMove<'_>,
    ) -> Result<Result<(), HandlerFailure>, StoreError> {
        self.run_in_transaction(timeout, handler, &MoveHandler { name, moved }).await
    }

    /// Moves a handler without running it, for changes that it does not select.
    ///
    /// # Errors
    /// As [`Store::run_handler`].
    pub async fn move_handler(&self, name: &str, moved: HandlerMove<'_>) -> Result<(), StoreError> {
        self.transaction("move handler", &MoveHandler { name, moved }).await
    }

    /// Ends the phase in which a new handler receives every live user. `initial_users_through` is the last of them. The handler
    /// continues with the feed.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn end_initial_users(&self, name: &str, initial_users_through: &str) -> Result<(), StoreError> {
        self.write("end initial users", || {
            sqlx::query!(
                "-- handlers.end_initial_users
                update workos.handlers
                set initial_users_through = null
                where
                    name = $1
                    and initial_users_through = $2",
                name,
                initial_users_through
            )
        })
        .await?;
        Ok(())
    }

    /// Adds a change to the backlog, and moves the handler to the next one.
    ///
    /// # Errors
    /// As [`Store::run_handler`].
    pub async fn postpone(
        &self,
        name: &str,
        moved: HandlerMove<'_>,
        change: &BacklogChange,
        waiting: &Postponement,
    ) -> Result<(), StoreError> {
        self.transaction("postpone", &PostponeChange { moved: MoveHandler { name, moved }, change, waiting }).await
    }
}

/// Calls the function of a SQL handler with its role, in the handler's transaction. The change is passed as JSON text, so that
/// numbers keep their digits.
///
/// # Errors
/// Any error of sqlx.
pub(crate) async fn call(mut tx: Tx, handler: SqlHandler, change: String) -> Result<(), BoxError> {
    sqlx::query!(
        "-- handlers.call\nselect workos.run_handler($1, $2, $3::pg_catalog.text::pg_catalog.jsonb)",
        &handler.function,
        &handler.role,
        change
    )
    .execute(&mut *tx)
    .await?;
    Ok(())
}

struct MoveHandler<'a> {
    name: &'a str,
    moved: HandlerMove<'a>,
}

impl Work for MoveHandler<'_> {
    type Output = ();

    async fn run(&self, connection: &mut DbConnection<'_>) -> Result<(), StoreError> {
        let done = match self.moved {
            HandlerMove::Feed { from, to } => {
                sqlx::query!(
                    "-- handlers.move
                    update workos.handlers
                    set position = $3
                    where
                        name = $1
                        and position = $2
                        and initial_users_through is null
                        and not paused",
                    self.name,
                    from,
                    to
                )
                .execute(connection)
                .await?
            }
            HandlerMove::InitialUsers { from, to } => {
                sqlx::query!(
                    "-- handlers.move_initial_users
                    update workos.handlers
                    set initial_users_through = $3
                    where
                        name = $1
                        and initial_users_through = $2
                        and not paused",
                    self.name,
                    from,
                    to
                )
                .execute(connection)
                .await?
            }
            HandlerMove::Backlog(BacklogChange { position, user_id, attempts, .. }) => {
                sqlx::query!(
                    "-- handlers.finish_backlog_change
                    delete from workos.handler_backlog
                    where
                        handler = $1
                        and position = $2
                        and user_id = $3
                        and attempts = $4
                        and due_at is not null
                        and exists (select from workos.handlers where name = handler and not paused)",
                    self.name,
                    position,
                    user_id,
                    attempts
                )
                .execute(connection)
                .await?
            }
        };
        if done.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Overtaken) }
    }
}

struct PostponeChange<'a> {
    moved: MoveHandler<'a>,
    change: &'a BacklogChange,
    waiting: &'a Postponement,
}

impl Work for PostponeChange<'_> {
    type Output = ();

    async fn run(&self, connection: &mut DbConnection<'_>) -> Result<(), StoreError> {
        // Locks the user first, as a deletion does. So a deletion erases the message in any order of the two transactions.
        let deleted = sqlx::query_scalar!(
            "-- handlers.lock_user
            select synced_deleted
            from workos.user_records
            where id = $1
            for share",
            &self.change.user_id
        )
        .fetch_optional(&mut *connection)
        .await?;
        self.moved.run(&mut *connection).await?;
        let failure = self.waiting.failure.as_ref();
        // No message is stored for a missing user either, because there is no row to lock against a concurrent deletion.
        let may_store_message = deleted == Some(false) || self.change.user_id.is_empty();
        let message = failure.map(|failure| &*failure.message).filter(|_| may_store_message);
        sqlx::query!(
            "-- handlers.postpone
            insert into workos.handler_backlog (
                handler, position, user_id, from_start, attempts, due_at, failed_at, sqlstate, constraint_name, location, message
            )
            values (
                $1, $2, $3, $4, $5, now() + make_interval(secs => $6), case when $7 then now() end, $8, $9, $10, $11
            )",
            self.moved.name,
            self.change.position,
            &self.change.user_id,
            self.change.from_start,
            self.waiting.attempts,
            self.waiting.delay.map(|delay| delay.as_secs_f64()) as _,
            failure.is_some(),
            failure.and_then(|failure| failure.sqlstate.as_deref()),
            failure.and_then(|failure| failure.constraint.as_deref()),
            failure.and_then(|failure| failure.location.as_deref()),
            message
        )
        .execute(connection)
        .await?;
        Ok(())
    }
}
