//! Detects whether a connection pooler is between this process and PostgreSQL, and decides how statements run.
//!
//! A pooler in transaction mode gives each transaction another session. A session setting or a named prepared statement then stays
//! in a session that other clients use: the driver executes a statement of another client, and returns its result. A pooler in
//! session mode can be switched to transaction mode at any time, without closing a connection. So a process relies on a session
//! only after it has proved that the session begins and ends together with its connection. Without this proof every statement runs
//! in a transaction, with its own settings and without a name. That is slower, and correct in any case.
//!
//! The proof uses only the simple protocol, which works with every pooler, and at most one connection at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool};
use sqlx::{AssertSqlSafe, Connection, Executor, Row};
use time::OffsetDateTime;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::StoreError;
use super::unfit::Unfit;

/// How statements run on the connections of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// The sessions are ours and have our settings. A lookup is one statement, and statements are prepared once.
    OwnSessions,
    /// The sessions belong to an application, so each statement runs in a transaction with our settings. Statements are prepared
    /// once.
    SharedPool,
    /// There is a pooler. Each statement runs in a transaction with our settings, and is prepared each time, without a name.
    Pooler,
}

impl Mode {
    /// Returns whether the sessions have our settings.
    pub(super) fn has_settings(self) -> bool {
        self == Self::OwnSessions
    }

    /// Returns whether a connection has the same session for as long as it is open.
    pub(super) fn keeps_statements(self) -> bool {
        self != Self::Pooler
    }
}

/// What is known about the route to PostgreSQL. All pools of [`Pools`](super::pool::Pools) share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Route(Arc<Known>);

#[derive(Debug, Default)]
struct Known {
    is_direct: OnceCell<bool>,
    /// Whether a new connection had an old session, although there was no pooler before.
    has_changed: AtomicBool,
}

impl Route {
    /// Returns whether a connection of this pool is a session of PostgreSQL. The first call finds it out, outside of the pool.
    ///
    /// # Errors
    /// [`StoreError`] if the database cannot be reached, or [`Unfit::StatementPooler`].
    pub(super) async fn is_direct(&self, pool: &PgPool) -> Result<bool, StoreError> {
        // Boxed, because it is large and runs once.
        let test = || Box::pin(async { is_direct(&pool.connect_options()).await });
        let is_direct = *self.0.is_direct.get_or_try_init(test).await?;
        Ok(is_direct && !self.0.has_changed.load(Ordering::Acquire))
    }

    /// Returns whether a connection is known to be a session of PostgreSQL.
    pub(super) fn is_known_direct(&self) -> bool {
        self.0.is_direct.get() == Some(&true) && !self.0.has_changed.load(Ordering::Acquire)
    }

    /// Records that a new connection had an old session: its address leads to a pooler now.
    pub(super) fn has_changed(&self) {
        if !self.0.has_changed.swap(true, Ordering::AcqRel) {
            tracing::warn!(
                "DATABASE_URL leads to a connection pooler now; from now on every statement runs in a separate transaction"
            );
        }
    }
}

/// Number of sessions that must end together with their connection.
const PROOFS: usize = 2;

/// Number of connections for that. Servers behind a load balancer need more than one.
const CONNECTIONS: usize = 8;

/// Timeout for the end of a session after its connection was closed.
const END_OF_SESSION: Duration = Duration::from_secs(1);

/// The pause between two checks.
const PAUSE: Duration = Duration::from_millis(5);

/// A session, as its server describes it.
struct Session {
    server_started: OffsetDateTime,
    process: i32,
    started: OffsetDateTime,
    /// The time of the server's clock when this was read.
    now: OffsetDateTime,
}

impl Session {
    /// Returns the session of a connection. `None`: the server does not show it.
    async fn of(connection: &mut PgConnection) -> Result<Option<Self>, sqlx::Error> {
        let row = connection
            .fetch_optional(
                "-- pooler.session
                select pg_catalog.pg_postmaster_start_time(), pid, backend_start, pg_catalog.clock_timestamp()
                from pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid())",
            )
            .await?;
        Ok(row.and_then(|row| {
            Some(Self {
                server_started: row.try_get_unchecked(0).ok()?,
                process: row.try_get_unchecked(1).ok()?,
                started: row.try_get_unchecked(2).ok()?,
                now: row.try_get_unchecked(3).ok()?,
            })
        }))
    }

    /// Returns whether both are the same session.
    fn is(&self, other: &Self) -> bool {
        self.server_started == other.server_started && self.process == other.process && self.started == other.started
    }

    /// Waits until this session has ended. Returns false if it has not.
    async fn ends(&self, connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
        // The text is not static, but it contains only a number.
        let look = format!(
            "-- pooler.ended\nselect backend_start from pg_catalog.pg_stat_get_activity({}) where backend_start is not null",
            self.process
        );
        let deadline = Instant::now() + END_OF_SESSION;
        loop {
            let row = (&mut *connection).fetch_optional(AssertSqlSafe(look.clone())).await?;
            let started = row.and_then(|row| row.try_get_unchecked::<OffsetDateTime, _>(0).ok());
            if started != Some(self.started) {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Returns whether sessions begin and end together with their connections.
///
/// Every session must be newer than the end of the session before, so a pooler cannot have kept it for reuse. And it must have
/// ended after its connection was closed, so no pooler keeps it for others. Sessions of other servers prove nothing.
async fn is_direct(options: &PgConnectOptions) -> Result<bool, StoreError> {
    let mut proofs = 0;
    let mut before: Option<Session> = None;
    for _ in 0..CONNECTIONS {
        let mut connection = PgConnection::connect_with(options).await?;
        let (first, second) = (Session::of(&mut connection).await?, Session::of(&mut connection).await?);
        let is_pooler = match (&first, &second, &before) {
            (Some(first), Some(second), _) if !first.is(second) => true,
            (Some(session), Some(_), Some(before)) if before.server_started == session.server_started => {
                proofs += 1;
                session.started <= before.now || !before.ends(&mut connection).await?
            }
            (Some(_), Some(_), _) => false,
            _ => true,
        };
        if is_pooler {
            require_transactions(&mut connection).await?;
        }
        // An error when closing does not matter.
        let _ = connection.close().await;
        if is_pooler || proofs == PROOFS {
            return Ok(!is_pooler);
        }
        before = second;
    }
    Ok(false)
}

/// Checks that a pooler allows transactions. PgBouncer in statement mode does not.
async fn require_transactions(connection: &mut PgConnection) -> Result<(), StoreError> {
    match (&mut *connection).execute("begin").await {
        Ok(_) => Ok(connection.execute("rollback").await.map(|_| ())?),
        Err(sqlx::Error::Database(error)) if error.message().contains("statement pooling") => {
            Err(Unfit::StatementPooler.into())
        }
        Err(error) => Err(error.into()),
    }
}
