//! Connections to the database, and the settings of our sessions and transactions.
//!
//! A statement must not depend on the session's `search_path`, and it must end on the server too when its caller gives up.
//! [`Pool::connect`] applies these settings to each new session. The sessions of an application's pool or of a pooler must not be
//! changed, so there each lookup runs in a read-only transaction with its own settings. `Mode` tells the difference.

mod checkout;
mod measured;
mod settings;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use prometheus_client::metrics::histogram::Histogram;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, Executor, Row};
use tokio::sync::Mutex;
use tokio::time::Instant as TokioInstant;

pub(super) use checkout::Checkout;
use measured::InUse;
pub(super) use settings::{begin_read, begin_write};

use super::StoreError;
use super::cutoff::Cutoff;
use super::failure::{self, Place};
use super::offered_login::OfferedLogin;
use super::pooler::{Mode, Route};

/// A connection that was idle for longer than this is tested before its use. A test before each use would cost each lookup a round
/// trip.
const TEST_AFTER_IDLE: Duration = Duration::from_secs(1);

/// A pool of connections to the database. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Pool {
    connections: PgPool,
    /// Set for pools whose connections are ours.
    cutoff: Option<Cutoff>,
    route: Route,
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
        Self::of(connections, None, Route::default())
    }
}

impl Pool {
    /// Creates a pool of at most `size` sessions with our settings. `timeout` limits each statement on the server. The pool connects
    /// at first use, so a process can start while the database is down.
    #[must_use]
    pub fn connect(options: PgConnectOptions, size: u32, timeout: Duration) -> Self {
        Self::sharing(Cutoff::default(), Route::default(), options, size, timeout)
    }

    /// Does the same as [`Pool::connect`]. All pools that share `cutoff` close their connections together. All pools that share
    /// `route` know the same of the way to PostgreSQL.
    fn sharing(cutoff: Cutoff, route: Route, options: PgConnectOptions, size: u32, timeout: Duration) -> Self {
        // A pooler may refuse the driver's setting for the text of floating-point numbers, which no statement of ours reads.
        let options = options.extra_float_digits(None);
        let (limit, way) = (cutoff.clone(), route.clone());
        let connections = PgPoolOptions::new()
            .max_connections(size)
            .acquire_timeout(timeout)
            .test_before_acquire(false)
            .after_connect(move |connection, _| {
                let route = way.clone();
                Box::pin(async move { prepare_session(connection, &route, timeout).await })
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
        Self::of(connections, Some(cutoff), route)
    }

    fn of(connections: PgPool, cutoff: Option<Cutoff>, route: Route) -> Self {
        let place = Arc::new(ArcSwap::from_pointee(Place::of(&connections.connect_options())));
        Self {
            connections,
            cutoff,
            route,
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

    /// Returns how statements run on its connections. The first call finds it out, before any connection is used.
    ///
    /// # Errors
    /// [`StoreError`] if the database cannot be reached, or [`Unfit::StatementPooler`](super::Unfit::StatementPooler).
    pub(super) async fn mode(&self) -> Result<Mode, StoreError> {
        let is_direct = self.route.is_direct(&self.connections).await;
        Ok(match is_direct.map_err(|error| error.at(&self.place()))? {
            true if self.cutoff.is_some() => Mode::OwnSessions,
            true => Mode::SharedPool,
            false => Mode::Pooler,
        })
    }

    /// Returns a connection, before `deadline`. `statement_timeout` is the server's limit for a statement on it.
    pub(super) async fn acquire(
        &self,
        deadline: TokioInstant,
        statement_timeout: Duration,
    ) -> Result<Checkout, StoreError> {
        tokio::time::timeout_at(deadline, self.mode()).await.map_err(StoreError::late)??;
        let mut connection = self.diagnosing(deadline, self.offered.acquire(&self.connections)).await?;
        // Only now, because a new connection may have found a pooler.
        let mode = self.mode().await?;
        if !mode.keeps_statements() {
            forget_statements(&mut connection).await?;
        }
        let in_use = InUse::one_of(&self.in_use);
        Ok(Checkout::new(connection, mode, in_use, self.cutoff.clone(), statement_timeout))
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

/// A connection that was just opened is not older than this and the timeout for opening it.
const OLDEST_CONNECTION: Duration = Duration::from_secs(5);

/// Removes the prepared statements of a connection from the driver's cache: the next session does not have them.
pub(super) async fn forget_statements(connection: &mut PgConnection) -> Result<(), StoreError> {
    if connection.cached_statements_size() > 0 {
        connection.clear_cached_statements().await?;
    }
    Ok(())
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
        let (cutoff, route) = (Cutoff::default(), Route::default());
        let pool = |size| Pool::sharing(cutoff.clone(), route.clone(), options.clone(), size, timeout);
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

#[cfg(test)]
mod tests {
    use super::*;

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
