//! Connections to the database, and the settings of our sessions and transactions.
//!
//! A statement must not depend on the session's `search_path`, and it must end on the server too when its caller gives up.
//! [`Pool::connect`] applies these settings to each new session. The sessions of an application's pool must not be changed, so
//! there each lookup runs in a read-only transaction with its own settings.

mod measured;

use std::borrow::Cow;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use prometheus_client::metrics::histogram::Histogram;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, Executor, Postgres, Transaction};
use tokio::sync::Mutex;
use tokio::time::Instant as TokioInstant;

use measured::InUse;

use super::StoreError;
use super::cutoff::Cutoff;
use super::failure::{self, DatabaseFailure, Place};
use super::offered_login::OfferedLogin;

/// Where PostgreSQL looks up names without a schema: only where no other role can create objects.
const SEARCH_PATH: &str = "pg_catalog, pg_temp";

/// A connection that was idle for longer than this is tested before its use. A test before each use would cost each lookup a round
/// trip.
const TEST_AFTER_IDLE: Duration = Duration::from_secs(1);

/// How long to wait for a session beyond its statement timeout before its connection is closed.
const CLOSE_GRACE: Duration = Duration::from_secs(1);

const USED_AFTER_END: StoreError = StoreError::Unavailable(DatabaseFailure::new(
    Cow::Borrowed("a connection was used after its end"),
    Cow::Borrowed("this is a defect of authkit-sync, please report it"),
));

/// A pool of connections to the database. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Pool {
    connections: PgPool,
    /// Set for pools whose sessions carry our settings.
    cutoff: Option<Cutoff>,
    place: Arc<ArcSwap<Place>>,
    /// The number of connections that callers use.
    in_use: Arc<AtomicU32>,
    /// Why no connection could be opened, and when that was tested. Callers that wait at the same time share a test.
    last_test: Arc<Mutex<Option<(TokioInstant, StoreError)>>>,
    /// A login to use if the server refuses the current one.
    offered: Arc<OfferedLogin>,
    /// Measures the wait for a connection, in seconds.
    waits: Option<Histogram>,
}

impl From<PgPool> for Pool {
    /// Uses an application's pool. Each lookup costs two more round trips than with [`Pool::connect`].
    fn from(connections: PgPool) -> Self {
        Self::of(connections, None)
    }
}

impl Pool {
    /// Creates a pool of at most `size` sessions with our settings. `timeout` limits each statement on the server. The pool connects
    /// at first use, so a process can start while the database is down.
    #[must_use]
    pub fn connect(options: PgConnectOptions, size: u32, timeout: Duration) -> Self {
        Self::sharing(Cutoff::default(), options, size, timeout)
    }

    /// Does the same as [`Pool::connect`]. All pools that share `cutoff` close their connections together.
    fn sharing(cutoff: Cutoff, options: PgConnectOptions, size: u32, timeout: Duration) -> Self {
        let settings: Arc<str> = settings("set", timeout).into();
        let limit = cutoff.clone();
        let connections = PgPoolOptions::new()
            .max_connections(size)
            .acquire_timeout(timeout)
            .test_before_acquire(false)
            .after_connect(move |connection, _| {
                let settings = settings.clone();
                Box::pin(async move {
                    connection.execute(sqlx::raw_sql(AssertSqlSafe(&*settings))).await?;
                    Ok(())
                })
            })
            .before_acquire(move |connection, meta| {
                let limit = limit.clone();
                Box::pin(async move {
                    if limit.excludes(meta.age) {
                        return Ok(false);
                    }
                    if meta.idle_for > TEST_AFTER_IDLE {
                        // Half of the timeout is left to open another connection.
                        limit.ping(connection, timeout / 2).await?;
                    }
                    Ok(true)
                })
            })
            .connect_lazy_with(options);
        Self::of(connections, Some(cutoff))
    }

    fn of(connections: PgPool, cutoff: Option<Cutoff>) -> Self {
        let place = Arc::new(ArcSwap::from_pointee(Place::of(&connections.connect_options())));
        Self {
            connections,
            cutoff,
            place,
            in_use: Arc::default(),
            last_test: Arc::default(),
            offered: Arc::default(),
            waits: None,
        }
    }

    /// Returns the connections, for migrations.
    #[must_use]
    pub fn connections(&self) -> &PgPool {
        &self.connections
    }

    /// Offers a login to use if the server refuses the current one, or withdraws it.
    pub(super) fn offer(&self, login: Option<&PgConnectOptions>) {
        self.offered.set(login);
    }

    /// Sets the login of new connections. An open connection is closed instead of being used again.
    pub(super) fn set_login(&self, login: &PgConnectOptions) {
        self.offer(None);
        self.connections.set_connect_options(login.clone());
        self.place.store(Arc::new(Place::of(login)));
        if let Some(cutoff) = &self.cutoff {
            cutoff.set();
        }
    }

    /// Records the outcome of a statement on one of its connections. If it shows that the server must no longer be used, every
    /// connection that the process has opened so far is closed. An error then names the place of the database.
    pub(super) fn noting<T>(&self, outcome: Result<T, StoreError>) -> Result<T, StoreError> {
        if let (Err(StoreError::Disconnected(_)), Some(cutoff)) = (&outcome, &self.cutoff) {
            cutoff.set();
        }
        outcome.map_err(|error| error.at(&self.place()))
    }

    /// Returns the place of the database.
    pub(super) fn place(&self) -> Arc<Place> {
        self.place.load_full()
    }

    /// Returns whether the sessions have our settings.
    pub(super) fn has_settings(&self) -> bool {
        self.cutoff.is_some()
    }

    /// Returns a connection, before `deadline`. `statement_timeout` is the server's limit for a statement on it.
    pub(super) async fn acquire(
        &self,
        deadline: TokioInstant,
        statement_timeout: Duration,
    ) -> Result<Checkout, StoreError> {
        let connection = self.diagnosing(deadline, self.offered.acquire(&self.connections)).await?;
        let (connection, cutoff, in_use) = (Some(connection), self.cutoff.clone(), Some(InUse::one_of(&self.in_use)));
        Ok(Checkout { connection, in_use, cutoff, statement_timeout, is_beginning: false, has_ended: false })
    }

    /// Waits for `acquiring`, which needs a connection, until `deadline`. After half of the time it finds out why there is none,
    /// because the driver retries a refused connection until its own timeout, and then does not say why.
    pub(super) async fn diagnosing<T>(
        &self,
        deadline: TokioInstant,
        acquiring: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, StoreError> {
        let now = TokioInstant::now();
        let half = now + deadline.saturating_duration_since(now) / 2;
        let diagnosis = async {
            tokio::time::sleep_until(half).await;
            self.why_no_connection().await
        };
        let (mut acquiring, mut diagnosis) = (pin!(acquiring), pin!(diagnosis));
        let mut cause = None;
        let acquired = loop {
            tokio::select! {
                biased;
                acquired = tokio::time::timeout_at(deadline, &mut acquiring) => break acquired,
                found = &mut diagnosis, if cause.is_none() => cause = Some(found),
            }
        };
        if let Some(waits) = &self.waits {
            waits.observe(now.elapsed().as_secs_f64());
        }
        let error = match acquired {
            Ok(Ok(acquired)) => return Ok(acquired),
            Ok(Err(sqlx::Error::PoolTimedOut)) => cause.unwrap_or_else(|| sqlx::Error::PoolTimedOut.into()),
            Ok(Err(error)) => error.into(),
            Err(late) => cause.unwrap_or_else(|| StoreError::late(late)),
        };
        Err(error.at(&self.place()))
    }

    /// Returns why the pool has no connection: all are in use, or none can be opened. One caller at a time tests the latter.
    async fn why_no_connection(&self) -> StoreError {
        let size = self.connections.options().get_max_connections();
        if self.in_use.load(Ordering::Relaxed) >= size {
            return StoreError::TimedOut(failure::exhausted(size));
        }
        let mut last_test = self.last_test.lock().await;
        if let Some((at, cause)) = &*last_test
            && at.elapsed() < TEST_INTERVAL
        {
            return cause.clone();
        }
        let cause = match PgConnection::connect_with(&self.connections.connect_options()).await {
            Ok(connection) => {
                let _ = connection.close().await;
                StoreError::TimedOut(failure::exhausted(size))
            }
            Err(error) => error.into(),
        };
        *last_test = Some((TokioInstant::now(), cause.clone()));
        cause
    }
}

/// The result of a test whether a connection can be opened is used for this time.
const TEST_INTERVAL: Duration = Duration::from_secs(1);

/// The smallest number of connections that [`Pools::connect`] accepts: two for each pool. While the server still runs a statement
/// whose caller has given up, the statement's connection counts against its pool, and the other one is left.
pub const MIN_CONNECTIONS: u32 = 4 * MIN_POOL;
const MIN_POOL: u32 = 2;

/// The pools of one process of the service. No kind of work can take the connections of another. If a pool finds that the server
/// must no longer be used, all pools close the connections that they have opened so far. Only a write notices that the server has
/// become a standby. Lookups do not, and would return outdated data.
#[derive(Clone, Debug)]
pub struct Pools {
    /// Webhooks and all other requests that write.
    pub webhooks: Pool,
    /// Lookups.
    pub lookups: Pool,
    /// Background jobs.
    pub background: Pool,
    /// Transactions of handlers.
    pub handlers: Pool,
}

impl Pools {
    /// Divides `total` connections among the four pools. They connect when they are first used. Fewer than [`MIN_CONNECTIONS`]
    /// become that many.
    #[must_use]
    pub fn connect(options: &PgConnectOptions, total: u32, timeout: Duration) -> Self {
        let cutoff = Cutoff::default();
        let pool = |size| Pool::sharing(cutoff.clone(), options.clone(), size, timeout);
        let [webhooks, lookups, background, handlers] = divide(total).map(pool);
        Self { webhooks, lookups, background, handlers }
    }
}

/// Divides connections among webhooks, lookups, background jobs and handlers. Requests get three fifths, because a person waits
/// for them.
fn divide(total: u32) -> [u32; 4] {
    let total = total.max(MIN_CONNECTIONS);
    let fifth = (total / 5).max(MIN_POOL);
    let requests = total - 2 * fifth;
    let webhooks = requests / 2;
    [webhooks, requests - webhooks, fifth, fifth]
}

/// A connection from a pool. Dropping it returns it to the pool.
///
/// If it is dropped before its use has [ended](Self::ended), the caller has given up, but the server may still run the statement.
/// Then the connection returns to the pool after the server's own timeout has ended the statement. Until then it counts against the
/// pool, so the number of sessions never exceeds the size of the pool.
pub(super) struct Checkout {
    connection: Option<PoolConnection<Postgres>>,
    in_use: Option<InUse>,
    cutoff: Option<Cutoff>,
    statement_timeout: Duration,
    /// A BEGIN was sent and has not succeeded yet. sqlx does not roll such a transaction back.
    is_beginning: bool,
    has_ended: bool,
}

impl Checkout {
    pub(super) fn connection(&mut self) -> Result<&mut PgConnection, StoreError> {
        self.connection.as_deref_mut().ok_or(USED_AFTER_END)
    }

    /// Begins a transaction.
    pub(super) async fn begin(&mut self, begin: &str) -> Result<Transaction<'_, Postgres>, StoreError> {
        self.is_beginning = true;
        let connection = self.connection.as_deref_mut().ok_or(USED_AFTER_END)?;
        // BEGIN takes no parameters. The text consists of constants, numbers and an escaped literal.
        let begun = connection.begin_with(AssertSqlSafe(begin)).await?;
        self.is_beginning = false;
        Ok(begun)
    }

    /// Closes the connection instead of returning it to the pool, because its session has an unknown state.
    pub(super) fn close(&mut self) {
        self.has_ended = true;
        if let Some(connection) = &mut self.connection {
            connection.close_on_drop();
        }
    }

    /// Records that its use has ended. If the outcome shows that the server is shutting down or read-only, this connection is closed,
    /// and so is each connection that the pools of [`Pools`] have opened so far.
    pub(super) fn ended<T>(&mut self, outcome: &Result<T, StoreError>) {
        self.has_ended = true;
        if matches!(outcome, Err(StoreError::Disconnected(_))) {
            self.close();
            if let Some(cutoff) = &self.cutoff {
                cutoff.set();
            }
        }
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        if self.is_beginning {
            connection.close_on_drop();
        }
        if self.has_ended {
            return;
        }
        let limit = self.statement_timeout + CLOSE_GRACE;
        let (cutoff, in_use) = (self.cutoff.take().unwrap_or_default(), self.in_use.take());
        tokio::spawn(async move {
            if cutoff.ping(&mut connection, limit).await.is_err() {
                connection.close_on_drop();
            }
            drop(connection);
            drop(in_use);
        });
    }
}

/// Returns the statements that set our settings for a session (`set`) or a transaction (`set local`).
///
/// Generic plans: every statement of the store has one good plan for all values of its parameters (`tests/promises/plans.rs`), and
/// planning costs several times as much as executing. A session may plan while the tables are still empty and small, and keep that
/// plan while they grow, so a plan that reads a whole table must never be chosen. Its estimated cost would make PostgreSQL compile
/// a statement (`jit`) that must read a sequence.
fn settings(set: &str, timeout: Duration) -> String {
    let bound = timeout.as_millis().max(1);
    format!(
        "{set} search_path = {SEARCH_PATH}; \
         {set} statement_timeout = {bound}; \
         {set} lock_timeout = {bound}; \
         {set} idle_in_transaction_session_timeout = {}; \
         {set} synchronous_commit = on; \
         {set} plan_cache_mode = force_generic_plan; \
         {set} enable_seqscan = off; \
         {set} jit = off",
        bound * 2
    )
}

/// Returns the statements that begin a write: durable, limited in time on the server too, and rejected if the database belongs to
/// another client ID. A transaction whose client is gone must not keep its locks or block the change feed.
pub(super) fn begin_write(timeout: Duration, client_id: &str) -> String {
    let begin = format!("begin isolation level read committed; {}", settings("set local", timeout));
    if client_id.is_empty() {
        return begin;
    }
    format!("{begin}; select workos.check_client({})", literal(client_id))
}

/// Returns the statements that begin a lookup in a session without our settings.
pub(super) fn begin_read(timeout: Duration) -> String {
    format!("begin isolation level read committed read only; {}", settings("set local", timeout))
}

/// Returns the text as an SQL literal, valid for both values of `standard_conforming_strings`.
fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\0', "").replace('\\', "\\\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_literal_ends_where_it_should() {
        assert_eq!(literal("client_01"), "E'client_01'");
        assert_eq!(literal("a'b\\c\0"), "E'a''b\\\\c'");
    }

    #[test]
    fn the_pools_together_have_the_configured_number_of_connections() {
        for total in MIN_CONNECTIONS..=1_000 {
            let sizes = divide(total);
            assert_eq!(sizes.iter().sum::<u32>(), total);
            assert!(sizes.iter().all(|size| *size >= MIN_POOL), "{total}: {sizes:?}");
        }
        assert_eq!(divide(MIN_CONNECTIONS), [2, 2, 2, 2]);
        assert_eq!(divide(20), [6, 6, 4, 4]);
    }
}
