//! `workos.handlers` and `workos.handler_backlog`: handlers, their progress, and the changes that wait for a retry.

mod admin;
mod progress;
mod status;
mod transaction;

use std::collections::HashSet;
use std::time::Duration;

pub use admin::{AddError, NewHandler};
pub(crate) use progress::call;
pub use progress::{HandlerMove, Postponement};
pub use status::{HandlerLag, HandlerStatus, LastError};
pub use transaction::{BoxError, HandlerFailure, Tx};

use super::{Store, StoreError};
use crate::domain::handler::Types;

/// A handler and its progress.
#[derive(Clone, Debug)]
pub struct Handler {
    /// The name under which its progress is stored.
    pub name: String,
    /// The event types that it selects.
    pub types: Types,
    /// The details of a SQL handler; `None` for a Rust handler.
    pub sql: Option<SqlHandler>,
    /// Whether an operator paused it.
    pub paused: bool,
    /// Every change up to this position was processed or is in the backlog.
    pub position: i64,
    /// The position at which it started.
    pub start_position: i64,
    /// While a new handler receives every live user: the ID of the last user that it received.
    pub initial_users_through: Option<String>,
    /// Why the whole handler is blocked.
    pub problem: Option<String>,
}

/// The function of a SQL handler, and how it runs.
#[derive(Clone, Debug)]
pub struct SqlHandler {
    /// The function with its schema and argument type.
    pub function: String,
    /// The role that runs the function.
    pub role: String,
    /// The timeout of one call.
    pub timeout: Duration,
    /// Whether the function exists.
    pub present: bool,
    /// Whether the role exists and the service may set it.
    pub settable: bool,
}

/// A change that a handler processes outside the order of the feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BacklogChange {
    /// The position of the change in the feed.
    pub position: i64,
    /// The user of the change. Empty if the change is not about a user.
    pub user_id: String,
    /// Whether it is a live user that a new handler receives, not a row of the feed.
    pub from_start: bool,
    /// The number of failed attempts.
    pub attempts: i32,
}

struct HandlerRow {
    name: String,
    types: Vec<String>,
    function: Option<String>,
    role: Option<String>,
    timeout_ms: Option<i32>,
    present: bool,
    settable: bool,
    paused: bool,
    position: i64,
    start_position: i64,
    initial_users_through: Option<String>,
    problem: Option<String>,
}

impl From<HandlerRow> for Handler {
    fn from(row: HandlerRow) -> Self {
        let (present, settable) = (row.present, row.settable);
        let sql = row.function.zip(row.role).zip(row.timeout_ms).map(|((function, role), timeout_ms)| {
            let timeout = Duration::from_millis(u64::try_from(timeout_ms).unwrap_or_default());
            SqlHandler { function, role, timeout, present, settable }
        });
        Self {
            name: row.name,
            types: Types::from_names(row.types),
            sql,
            paused: row.paused,
            position: row.position,
            start_position: row.start_position,
            initial_users_through: row.initial_users_through,
            problem: row.problem,
        }
    }
}

impl Store {
    /// Returns every handler, or the one with this name.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn handlers(&self, name: Option<&str>) -> Result<Vec<Handler>, StoreError> {
        let rows = self
            .lookup(async |connection| {
                sqlx::query_as!(
                    HandlerRow,
                    r#"-- handlers.all
                    select
                        name,
                        types,
                        function,
                        role,
                        timeout_ms,
                        to_regprocedure(function) is not null as "present!",
                        coalesce(pg_has_role(to_regrole(quote_ident(role)), 'member'), false) as "settable!",
                        paused,
                        position,
                        start_position,
                        initial_users_through,
                        problem
                    from workos.handlers
                    where
                        $1::text is null
                        or name = $1
                    order by name"#,
                    name
                )
                .fetch_all(connection)
                .await
            })
            .await?;
        Ok(rows.into_iter().map(Handler::from).collect())
    }

    /// Registers a Rust handler. A new handler starts at the end of the feed. Returns false if a SQL handler has this name.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn register_handler(&self, name: &str, types: &Types, from_start: bool) -> Result<bool, StoreError> {
        let start = self.feed_head().await?.horizon;
        let registered = self
            .write("register handler", || {
                sqlx::query!(
                    "-- handlers.register
                    insert into workos.handlers as known (name, types, position, start_position, initial_users_through)
                    values ($1, $2, $3, $3, case when $4 then '' end)
                    on conflict (name) do update
                    set types = excluded.types
                    where known.function is null",
                    name,
                    types.names(),
                    start,
                    from_start
                )
            })
            .await?;
        Ok(registered > 0)
    }

    /// Returns the users among these whose changes wait in the backlog. Later changes of these users must wait too.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn waiting_users(&self, handler: &str, among: &[&str]) -> Result<HashSet<String>, StoreError> {
        let users = self
            .lookup(async |connection| {
                sqlx::query_scalar!(
                    "-- handlers.waiting_users
                    select distinct user_id
                    from workos.handler_backlog
                    where
                        handler = $1
                        and due_at is not null
                        and user_id <> ''
                        and user_id = any($2::text[])",
                    handler,
                    among as _
                )
                .fetch_all(connection)
                .await
            })
            .await?;
        Ok(users.into_iter().collect())
    }

    /// Returns the changes of the backlog that are due by the database's clock: for each user only the first one.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn due_changes(&self, handler: &str, limit: i64) -> Result<Vec<BacklogChange>, StoreError> {
        self.lookup(async |connection| {
            sqlx::query_as!(
                BacklogChange,
                r#"-- handlers.due
                select
                    position as "position!",
                    user_id as "user_id!",
                    from_start as "from_start!",
                    attempts as "attempts!"
                from (
                    (
                        select distinct on (user_id) position, user_id, from_start, attempts, due_at
                        from workos.handler_backlog
                        where
                            handler = $1
                            and due_at is not null
                            and user_id <> ''
                        order by user_id, position
                    )
                    union all
                    select position, user_id, from_start, attempts, due_at
                    from workos.handler_backlog
                    where
                        handler = $1
                        and due_at is not null
                        and user_id = ''
                ) as first
                where due_at <= now()
                order by due_at, position
                limit $2"#,
                handler,
                limit
            )
            .fetch_all(connection)
            .await
        })
        .await
    }

    /// Returns live users after the ID `after`, ordered by ID, and for each whether the feed contains its creation after position
    /// `start`.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn initial_users(&self, after: &str, start: i64, limit: i64) -> Result<Vec<(String, bool)>, StoreError> {
        let rows = self
            .lookup(async |connection| {
                sqlx::query!(
                    r#"-- handlers.initial_users
                    select id, coalesce(is_later, false) as "later!"
                    from (
                        select id
                        from workos.user_records
                        where
                            id > $1
                            and not synced_deleted
                            and email is not null
                        order by id
                        limit $3
                    ) as live
                    -- With the limit, PostgreSQL probes an index once for each user.
                    left join lateral (
                        select true as is_later
                        from workos.changes
                        where
                            user_id = live.id
                            and position > $2
                            and kind = 'created'
                            and event_type is distinct from kind
                        limit 1
                    ) as later on true
                    order by id"#,
                    after,
                    start,
                    limit
                )
                .fetch_all(connection)
                .await
            })
            .await?;
        Ok(rows.into_iter().map(|row| (row.id, row.later)).collect())
    }

    /// Stores why a handler is blocked, or `None` if it is no longer blocked.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn set_handler_problem(&self, name: &str, problem: Option<&str>) -> Result<(), StoreError> {
        self.write("set handler problem", || {
            sqlx::query!(
                "-- handlers.set_problem
                update workos.handlers
                set problem = $2
                where
                    name = $1
                    and problem is distinct from $2",
                name,
                problem
            )
        })
        .await?;
        Ok(())
    }
}
