//! The connections of a pool to one host.

use std::io::{Error as IoError, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, Executor, Postgres, Row};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::settings;
use crate::store::failure;
use crate::store::hosts::Wanted;
use crate::store::pooler::{Mode, Route};
use crate::store::resolver::{Host, HostState};
use crate::store::{DatabaseFailure, StoreError};

/// A connection that was idle for longer than this is tested before its use. A test before each use would cost each lookup a round
/// trip.
const TEST_AFTER_IDLE: Duration = Duration::from_secs(1);

/// How long the result of a connection test is reused.
const TEST_INTERVAL: Duration = Duration::from_secs(1);

/// Added to the timeout of opening a connection: the maximum age of a connection that was just opened.
const OLDEST_CONNECTION: Duration = Duration::from_secs(5);

/// The connections to one host.
#[derive(Debug)]
pub(in crate::store) struct HostPool {
    pub(super) connections: PgPool,
    pub(super) host: Arc<Host>,
    /// Whether this crate opens the connections and sets their settings. False for the pool of an application.
    is_ours: bool,
    /// The number of connections that callers use.
    pub(super) in_use: Arc<AtomicU32>,
    /// Why no connection could be opened, and when that was tested. Callers that wait at the same time share a test.
    last_test: Mutex<Option<(Instant, StoreError)>>,
}

impl HostPool {
    /// Creates a pool of at most `size` sessions with our settings. A connection to a host that does not match `wanted`
    /// is closed.
    pub(super) fn new(
        host: &Arc<Host>,
        options: PgConnectOptions,
        wanted: Wanted,
        size: u32,
        timeout: Duration,
    ) -> Self {
        let (opening, taking) = (host.clone(), host.clone());
        let connections = PgPoolOptions::new()
            .max_connections(size)
            .acquire_timeout(timeout)
            .test_before_acquire(false)
            .after_connect(move |connection, _| {
                let host = opening.clone();
                Box::pin(async move {
                    check_wanted(connection, &host, wanted).await?;
                    prepare_session(connection, &host.route, timeout).await
                })
            })
            .before_acquire(move |connection, meta| {
                let host = taking.clone();
                Box::pin(async move {
                    if host.cutoff.excludes(meta.age) {
                        return Ok(false);
                    }
                    if meta.idle_for > TEST_AFTER_IDLE {
                        // Half of the timeout is left to open another connection.
                        host.cutoff.ping(connection, timeout / 2).await?;
                    }
                    Ok(true)
                })
            })
            .connect_lazy_with(options);
        Self { is_ours: true, ..Self::of_application(connections, host) }
    }

    /// Uses the connections of an application.
    pub(super) fn of_application(connections: PgPool, host: &Arc<Host>) -> Self {
        Self { connections, host: host.clone(), is_ours: false, in_use: Arc::default(), last_test: Mutex::default() }
    }

    /// Returns the sqlx pool.
    pub(in crate::store) fn connections(&self) -> &PgPool {
        &self.connections
    }

    pub(super) async fn acquire(&self) -> Result<PoolConnection<Postgres>, sqlx::Error> {
        self.host.offered.acquire(&self.connections).await
    }

    /// Returns how statements run on its connections. The first call detects whether there is a pooler, before any connection is
    /// used.
    pub(super) async fn mode(&self) -> Result<Mode, StoreError> {
        let is_direct = self.host.route.is_direct(&self.connections).await;
        Ok(match is_direct.map_err(|error| error.at(&self.host.place()))? {
            true if self.is_ours => Mode::OwnSessions,
            true => Mode::SharedPool,
            false => Mode::Pooler,
        })
    }

    /// Returns why there is no connection: all are in use, or none can be opened. One caller at a time tests whether one can be
    /// opened.
    pub(super) async fn why_no_connection(&self) -> StoreError {
        if let Some(exhausted) = self.exhausted() {
            return StoreError::TimedOut(exhausted);
        }
        let mut last_test = self.last_test.lock().await;
        if let Some((at, cause)) = &*last_test
            && at.elapsed() < TEST_INTERVAL
        {
            return cause.clone();
        }
        // Boxed, because it is large and rare.
        let options = self.connections.connect_options();
        let cause = match Box::pin(PgConnection::connect_with(&options)).await {
            Ok(connection) => {
                let _ = connection.close().await;
                StoreError::TimedOut(failure::exhausted(self.size()))
            }
            Err(error) => error.into(),
        };
        *last_test = Some((Instant::now(), cause.clone()));
        cause
    }

    /// Returns the failure that every connection is in use, if that is so.
    fn exhausted(&self) -> Option<DatabaseFailure> {
        (self.in_use.load(Ordering::Relaxed) >= self.size()).then(|| failure::exhausted(self.size()))
    }

    fn size(&self) -> u32 {
        self.connections.options().get_max_connections()
    }

    /// Closes the connections that are idle now, one after the other, so that the pool stays usable. The pool takes the one that has
    /// been idle for longest first.
    pub(super) async fn close_idle(&self) {
        for _ in 0..self.connections.num_idle() {
            let Some(connection) = self.connections.try_acquire() else { break };
            // An error when closing does not matter.
            let _ = connection.close().await;
        }
    }
}

/// Refuses a new connection to a host that does not match `wanted`, and ends the choice of this host. The pool then closes the
/// connection.
async fn check_wanted(connection: &mut PgConnection, host: &Host, wanted: Wanted) -> Result<(), sqlx::Error> {
    if wanted == Wanted::Any || HostState::of(connection).await?.is(wanted) {
        return Ok(());
    }
    host.cutoff.set();
    let is = if wanted == Wanted::Standby { "not a standby" } else { "read-only" };
    let why = format!(
        "PostgreSQL at {} is {is}, so the service does not use it and tests the hosts again",
        host.place().address()
    );
    Err(sqlx::Error::Io(IoError::new(ErrorKind::Unsupported, why)))
}

/// Sets our settings in the session of a new connection, unless a pooler owns the session.
async fn prepare_session(connection: &mut PgConnection, route: &Route, timeout: Duration) -> Result<(), sqlx::Error> {
    if !route.is_known_direct() {
        return Ok(());
    }
    // The texts consist of constants and numbers.
    let new =
        (&mut *connection).fetch_one(AssertSqlSafe(settings::is_new_session(timeout + OLDEST_CONNECTION))).await?;
    if !new.try_get_unchecked::<bool, _>(0)? {
        route.has_changed();
        return Ok(());
    }
    connection.execute(sqlx::raw_sql(AssertSqlSafe(settings::of_session(timeout)))).await?;
    Ok(())
}
