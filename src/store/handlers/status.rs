//! The status of handlers, for operators and metrics.

use serde::Serialize;
use time::OffsetDateTime;

use crate::domain::timestamp::Timestamp;
use crate::store::{Store, StoreError};

/// The status of a handler.
#[derive(Clone, Debug, Serialize)]
pub struct HandlerStatus {
    /// The name under which its progress is stored.
    pub name: String,
    /// The types of changes that it handles.
    pub types: Vec<String>,
    /// The function of a SQL handler.
    pub function: Option<String>,
    /// The role that runs the function.
    pub role: Option<String>,
    /// `running`, `paused`, `starting` (it receives every live user first) or `blocked`.
    pub state: String,
    /// Why it is blocked.
    pub problem: Option<String>,
    /// Whether a live process runs it. A handler in Rust needs a process that registers it.
    pub has_process: bool,
    /// Changes that it has not completed, including those that wait for a retry.
    pub depth: i64,
    /// When the oldest of them was committed.
    pub oldest_at: Option<Timestamp>,
    /// Changes that wait for a retry, and later changes of the same users.
    pub waiting: i64,
    /// Changes whose last attempt failed.
    pub dead_lettered: i64,
    /// The last failure of a change that is still in the backlog.
    pub last_error: Option<LastError>,
}

/// A stored failure.
#[derive(Clone, Debug, Serialize)]
pub struct LastError {
    /// When the attempt failed.
    pub at: Option<Timestamp>,
    /// The position of the change.
    pub position: i64,
    /// The user of the change.
    pub user_id: String,
    /// PostgreSQL's five-character code.
    pub sqlstate: Option<String>,
    /// The constraint that was violated.
    pub constraint: Option<String>,
    /// The function and the line in it.
    pub location: Option<String>,
    /// The message. The deletion of the user erases it.
    pub message: Option<String>,
}

/// The values of a handler's metrics.
#[derive(Clone, Debug)]
pub struct HandlerLag {
    /// The name under which its progress is stored.
    pub name: String,
    /// Age of the oldest change that it has not completed, in seconds. Dead-lettered changes do not count.
    pub lag: i64,
    /// Changes that wait for a retry, and later changes of the same users.
    pub waiting: i64,
    /// Changes whose last attempt failed.
    pub dead_lettered: i64,
    /// Whether it cannot run at all.
    pub blocked: bool,
    /// Whether an operator paused it.
    pub paused: bool,
    /// Whether a live process runs it.
    pub has_process: bool,
}

struct StatusRow {
    name: String,
    types: Vec<String>,
    function: Option<String>,
    role: Option<String>,
    state: String,
    problem: Option<String>,
    has_process: bool,
    depth: i64,
    oldest_at: Option<OffsetDateTime>,
    waiting: i64,
    dead_lettered: i64,
    failed_at: Option<OffsetDateTime>,
    failed_position: Option<i64>,
    failed_user: Option<String>,
    sqlstate: Option<String>,
    constraint_name: Option<String>,
    location: Option<String>,
    message: Option<String>,
}

impl From<StatusRow> for HandlerStatus {
    fn from(row: StatusRow) -> Self {
        Self {
            last_error: row.failed_position.map(|position| LastError {
                at: row.failed_at.map(Timestamp::from),
                position,
                user_id: row.failed_user.unwrap_or_default(),
                sqlstate: row.sqlstate,
                constraint: row.constraint_name,
                location: row.location,
                message: row.message,
            }),
            name: row.name,
            types: row.types,
            function: row.function,
            role: row.role,
            state: row.state,
            problem: row.problem,
            has_process: row.has_process,
            depth: row.depth,
            oldest_at: row.oldest_at.map(Timestamp::from),
            waiting: row.waiting,
            dead_lettered: row.dead_lettered,
        }
    }
}

impl Store {
    /// Returns the status of every handler.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn handler_statuses(&self) -> Result<Vec<HandlerStatus>, StoreError> {
        let rows = self.lookup(async |connection| {
                sqlx::query_as!(
                    StatusRow,
                    r#"-- handlers.statuses
                    select
                        handlers.name,
                        handlers.types,
                        handlers.function,
                        handlers.role,
                        case
                            when paused then 'paused'
                            when problem is not null then 'blocked'
                            when initial_users_through is not null then 'starting'
                            else 'running'
                        end as "state!",
                        problem,
                        exists (
                            select from workos.leases
                            where job = 'handler:' || handlers.name and expires_at > now()
                        ) as "has_process!",
                        ahead.count + backlog.waiting as "depth!",
                        least(ahead.oldest_at, backlog.oldest_at) as oldest_at,
                        backlog.waiting as "waiting!",
                        backlog.dead_lettered as "dead_lettered!",
                        last.failed_at as "failed_at?",
                        last.position as "failed_position?",
                        last.user_id as "failed_user?",
                        last.sqlstate as "sqlstate?",
                        last.constraint_name as "constraint_name?",
                        last.location as "location?",
                        last.message as "message?"
                    from workos.handlers
                    cross join lateral (
                        select count(*) as count, min(at) as oldest_at
                        from
                            workos.changes,
                            lateral (select case when kind = event_type then kind else 'user.' || kind end) as typed (type)
                        where
                            position > handlers.position
                            and exists (
                                select from unnest(handlers.types) as selected
                                where
                                    type = selected
                                    or (selected like '%*' and starts_with(type, left(selected, -1)))
                            )
                    ) as ahead
                    cross join lateral (
                        select
                            count(*) filter (where due_at is not null) as waiting,
                            count(*) filter (where due_at is null) as dead_lettered,
                            min(changes.at) filter (where due_at is not null) as oldest_at
                        from workos.handler_backlog
                        left join workos.changes using (position)
                        where handler = handlers.name
                    ) as backlog
                    left join lateral (
                        select *
                        from workos.handler_backlog
                        where handler = handlers.name and failed_at is not null
                        order by failed_at desc
                        limit 1
                    ) as last on true
                    order by handlers.name"#
                )
                .fetch_all(connection)
                .await
            });
        Ok(rows.await?.into_iter().map(HandlerStatus::from).collect())
    }

    /// Returns the values of every handler's metrics.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn handler_lags(&self) -> Result<Vec<HandlerLag>, StoreError> {
        self.lookup(async |connection| {
            sqlx::query_as!(
                HandlerLag,
                r#"-- handlers.lags
                select
                    name,
                    coalesce(
                        extract(
                            epoch from now() - least(
                                (
                                    select at
                                    from workos.changes
                                    where position > handlers.position
                                    order by position
                                    limit 1
                                ),
                                -- Positions grow with time, so the first one is the oldest.
                                (
                                    select coalesce(at, failed_at)
                                    from workos.handler_backlog
                                    left join workos.changes using (position)
                                    where handler = name and due_at is not null
                                    order by position
                                    limit 1
                                ),
                                now()
                            )
                        )::bigint,
                        0
                    ) as "lag!",
                    (
                        select count(*) from workos.handler_backlog
                        where handler = name and due_at is not null
                    ) as "waiting!",
                    (
                        select count(*) from workos.handler_backlog
                        where handler = name and due_at is null
                    ) as "dead_lettered!",
                    problem is not null as "blocked!",
                    paused,
                    exists (
                        select from workos.leases
                        where
                            job = 'handler:' || name
                            and expires_at > now()
                    ) as "has_process!"
                from workos.handlers"#
            )
            .fetch_all(connection)
            .await
        })
        .await
    }
}
