//! The progress of handlers: running or postponing a change and moving the handler past it, in one transaction.

use std::time::Duration;

use sqlx::postgres::PgConnection;

use super::transaction::{BoxError, HandlerFailure, Tx};
use super::{BacklogChange, SqlHandler};
use crate::store::{Store, StoreError, Work};

/// How a handler moves by having dealt with a change. A move is made from where the handler was read, or not at all: of two
/// processes that do the same, one loses everything it did.
#[derive(Clone, Copy, Debug)]
pub enum HandlerMove<'a> {
    /// Past a change of the feed.
    Feed {
        /// The previous position.
        from: i64,
        /// The new position.
        to: i64,
    },
    /// Past one of the live users that it receives first.
    InitialUsers {
        /// The previous position.
        from: &'a str,
        /// The new position.
        to: &'a str,
    },
    /// Out of the backlog.
    Backlog(&'a BacklogChange),
}

/// How a change that is not done waits in the backlog.
#[derive(Clone, Debug)]
pub struct Postponement {
    /// The number of attempts.
    pub attempts: i32,
    /// The time until the next attempt; `None` dead-letters the change.
    pub delay: Option<Duration>,
    /// Why it failed; `None` where it only stands behind another of its user.
    pub failure: Option<HandlerFailure>,
}

impl Store {
    /// Runs a handler, and moves it in the same transaction.
    ///
    /// # Errors
    /// [`StoreError`]: nothing was written; [`StoreError::Overtaken`] when another process has moved it.
    pub async fn run_handler<F: Future<Output = Result<(), BoxError>>>(
        &self,
        name: &str,
        timeout: Duration,
        handler: impl FnOnce(Tx) -> F,
        moved: HandlerMove<'_>,
    ) -> Result<Result<(), HandlerFailure>, StoreError> {
        self.run_in_transaction(timeout, handler, &MoveHandler { name, moved }).await
    }

    /// Moves a handler without running it: past changes it does not take, or past the end of its walk.
    ///
    /// # Errors
    /// As [`Store::run_handler`].
    pub async fn move_handler(&self, name: &str, moved: HandlerMove<'_>) -> Result<(), StoreError> {
        self.transaction("move handler", &MoveHandler { name, moved }).await
    }

    /// The handler has been told of every live user up to `initial_users_through`, the last, and goes on with the feed.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn end_initial_users(&self, name: &str, initial_users_through: &str) -> Result<(), StoreError> {
        self.write("end walk", || {
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

    /// Moves a handler past a change that waits in its backlog.
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

/// Calls the function of a handler in SQL, as its role, inside the handler's transaction. The change is JSON text: numbers keep
/// their digits.
///
/// # Errors
/// Any of sqlx's.
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

    async fn run(&self, connection: &mut PgConnection) -> Result<(), StoreError> {
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

    async fn run(&self, connection: &mut PgConnection) -> Result<(), StoreError> {
        // First, as a deletion does: it takes what is kept here of its user, and the message must go, whoever comes first.
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
        // Nor does it stay of one who is not here: there is no row to meet a deletion at.
        let may_stay = deleted == Some(false) || self.change.user_id.is_empty();
        let message = failure.map(|failure| &*failure.message).filter(|_| may_stay);
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
