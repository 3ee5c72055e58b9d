//! Connections to the database, and the settings that every session or transaction of ours runs with.
//!
//! A statement must not depend on the session's `search_path`, and it must end on the server too when its caller gives up.
//! Sessions of a [`Pool::connect`] get these settings once, right after they are opened. A pool that an application hands
//! over is not ours to change: there each lookup runs in a read-only transaction that sets them for itself.

use std::borrow::Cow;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, Executor, Postgres, Transaction};
use tokio::time::Instant as TokioInstant;

use super::StoreError;

/// Where names without a schema are looked up: nowhere that another login can write to.
const SEARCH_PATH: &str = "pg_catalog, pg_temp";

/// A connection that was used less than this ago is not tested before it is used again: that would cost each lookup a round
/// trip.
const TESTED_AFTER: Duration = Duration::from_secs(1);

/// How much longer than its statement timeout a session is waited for before its connection is closed.
const GRACE: Duration = Duration::from_secs(1);

const USED_AFTER_END: StoreError = StoreError::Unavailable(Cow::Borrowed("a connection was used after its end"));

/// A pool of connections to the database. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Pool {
    connections: PgPool,
    /// Set for pools whose sessions carry our settings.
    cutoff: Option<Cutoff>,
}

impl From<PgPool> for Pool {
    /// Takes an application's pool. Each lookup costs two round trips more than in a [`Pool::connect`].
    fn from(connections: PgPool) -> Self {
        Self { connections, cutoff: None }
    }
}

impl Pool {
    /// A pool of at most `size` sessions with our settings; `timeout` bounds each statement on the server. It connects when
    /// it is first used, so that a process can start while the database is down.
    #[must_use]
    pub fn connect(options: PgConnectOptions, size: u32, timeout: Duration) -> Self {
        Self::sharing(Cutoff::default(), options, size, timeout)
    }

    /// The same. It closes its connections together with every pool that shares `cutoff`.
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
                    if meta.idle_for > TESTED_AFTER {
                        // Half of the timeout is left to open another connection.
                        limit.ping(connection, timeout / 2).await?;
                    }
                    Ok(true)
                })
            })
            .connect_lazy_with(options);
        Self { connections, cutoff: Some(cutoff) }
    }

    /// The connections themselves, for migrations.
    #[must_use]
    pub fn connections(&self) -> &PgPool {
        &self.connections
    }

    /// Notes an outcome on one of its connections. After a failure that tells of a server that must no longer be used, every
    /// connection of the process that was opened before now is closed.
    pub(super) fn noting<T>(&self, outcome: Result<T, StoreError>) -> Result<T, StoreError> {
        if let (Err(StoreError::Disconnected(_)), Some(cutoff)) = (&outcome, &self.cutoff) {
            cutoff.set();
        }
        outcome
    }

    /// Sessions carry our settings.
    pub(super) fn has_settings(&self) -> bool {
        self.cutoff.is_some()
    }

    /// A connection, by `deadline`; `statement_timeout` is how long the server lets a statement run on it.
    pub(super) async fn acquire(
        &self,
        deadline: TokioInstant,
        statement_timeout: Duration,
    ) -> Result<Checkout, StoreError> {
        let connection = tokio::time::timeout_at(deadline, self.connections.acquire()).await;
        let connection = Some(connection.map_err(StoreError::late)??);
        let cutoff = self.cutoff.clone();
        Ok(Checkout { connection, cutoff, statement_timeout, is_beginning: false, has_ended: false })
    }
}

/// Returns host, port and name of a database, for messages.
#[must_use]
pub fn address(options: &PgConnectOptions) -> String {
    let host = options.get_socket().map_or_else(|| options.get_host().to_owned(), |path| path.display().to_string());
    let name = options.get_database().unwrap_or_else(|| options.get_username());
    format!("{host}:{}/{name}", options.get_port())
}

/// The smallest number of connections that [`Pools::connect`] accepts: two for each pool. While the server still runs a statement
/// whose caller has given up, the statement's connection counts against its pool, and the other one is left.
pub const MIN_CONNECTIONS: u32 = 4 * MIN_POOL;
const MIN_POOL: u32 = 2;

/// The pools of one process of the service. No kind of work can take the connections of another. Once one of them finds that the
/// server must no longer be used, all of them close the connections that were opened before: a write notices that the server has
/// become a standby, and lookups on it, which would return old data, do not.
#[derive(Clone, Debug)]
pub struct Pools {
    /// Webhooks and everything else that writes for a request.
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

/// A connection out of a pool. When it is dropped, it goes back.
///
/// Where it is dropped before its use has [ended](Self::ended), the caller has given up and the server has not. Then the
/// connection goes back when the server's own timeout has ended the statement. Until then it counts against the pool, so that
/// there are never more sessions than the pool has room for.
pub(super) struct Checkout {
    connection: Option<PoolConnection<Postgres>>,
    cutoff: Option<Cutoff>,
    statement_timeout: Duration,
    /// A begin was sent and did not succeed, or is not answered yet: the driver would leave open what was begun of it.
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
        // Begin takes no parameters. Its text holds numbers, our own words and an escaped literal.
        let begun = connection.begin_with(AssertSqlSafe(begin)).await?;
        self.is_beginning = false;
        Ok(begun)
    }

    /// Closes the connection instead of giving it back, because nobody should meet the state it is in.
    pub(super) fn close(&mut self) {
        self.has_ended = true;
        if let Some(connection) = &mut self.connection {
            connection.close_on_drop();
        }
    }

    /// Says how its use ended. After a failure that tells of a server that shuts down or cannot be written to, this
    /// connection is closed, and so is each one that was opened before now, in every pool of [`Pools`].
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
        let patience = self.statement_timeout + GRACE;
        let cutoff = self.cutoff.take().unwrap_or_default();
        tokio::spawn(async move {
            if cutoff.ping(&mut connection, patience).await.is_err() {
                connection.close_on_drop();
            }
        });
    }
}

/// Connections that were opened before this instant lead to a server that must no longer be used.
#[derive(Clone, Debug, Default)]
pub(super) struct Cutoff(Arc<AtomicU64>);

impl Cutoff {
    fn set(&self) {
        self.0.store(millis_up(), Ordering::Relaxed);
    }

    fn excludes(&self, age: Duration) -> bool {
        let opened = millis_up().saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        let cutoff = self.0.load(Ordering::Relaxed);
        cutoff > 0 && opened <= cutoff
    }

    /// Asks the server for a sign of life. Where there is none in time, the path to the server is gone without a word, as
    /// after a failover that closes no connection, and with it every connection that was opened before now.
    async fn ping(&self, connection: &mut PgConnection, limit: Duration) -> Result<(), sqlx::Error> {
        tokio::time::timeout(limit, connection.ping()).await.unwrap_or_else(|_| {
            self.set();
            Err(sqlx::Error::Io(ErrorKind::TimedOut.into()))
        })
    }
}

/// Milliseconds since this process first asked, from 1 on.
fn millis_up() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
}

/// The settings of a session (`set`) or a transaction (`set local`).
///
/// Generic plans: every statement of ours has the same good plan for all values of its parameters (`tests/promises/plans.rs`), and
/// planning costs several times as much as executing.
fn settings(set: &str, timeout: Duration) -> String {
    let bound = timeout.as_millis().max(1);
    format!(
        "{set} search_path = {SEARCH_PATH}; \
         {set} statement_timeout = {bound}; \
         {set} lock_timeout = {bound}; \
         {set} idle_in_transaction_session_timeout = {}; \
         {set} synchronous_commit = on; \
         {set} plan_cache_mode = force_generic_plan",
        bound * 2
    )
}

/// How a write begins: durable, bounded on the server too, and refused when the database belongs to another client ID. A
/// transaction whose client is gone must not keep its locks, nor hold up the change feed.
pub(super) fn begin_write(timeout: Duration, client_id: &str) -> String {
    let begin = format!("begin isolation level read committed; {}", settings("set local", timeout));
    if client_id.is_empty() {
        return begin;
    }
    format!("{begin}; select workos.check_client({})", literal(client_id))
}

/// How a lookup begins in a session without our settings.
pub(super) fn begin_read(timeout: Duration) -> String {
    format!("begin isolation level read committed read only; {}", settings("set local", timeout))
}

/// A text as an SQL literal, whatever the session's `standard_conforming_strings` says.
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

    #[test]
    fn only_connections_opened_before_the_cutoff_are_excluded() {
        let cutoff = Cutoff::default();
        assert!(!cutoff.excludes(Duration::from_secs(5)));
        cutoff.set();
        assert!(cutoff.excludes(Duration::from_secs(5)));
    }
}
