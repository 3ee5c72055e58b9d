//! Connections to the database, and the settings of our sessions and transactions.
//!
//! A statement must not depend on the session's `search_path`, and it must also end on the server when its caller stops waiting.
//! [`Pool::connect`] applies these settings to each new session. The sessions of an application's pool or of a pooler must not be
//! changed, so there each lookup runs in a read-only transaction with its own settings. `Mode` distinguishes these cases.

mod checkout;
mod host_pool;
mod measured;
mod settings;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use prometheus_client::metrics::histogram::Histogram;
use sqlx::Connection;
use sqlx::postgres::{PgConnection, PgPool};
use tokio::time::Instant as TokioInstant;

pub(super) use checkout::Checkout;
use host_pool::HostPool;
use measured::InUse;
pub(super) use settings::{begin_read, begin_write};

use super::StoreError;
use super::hosts::Hosts;
use super::place::Place;
use super::pooler::Mode;
use super::resolver::{Choice, Resolver};

/// The pause before another attempt after a host has failed that was just chosen.
const PAUSE: Duration = Duration::from_millis(100);

/// A pool of connections to the database. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Pool {
    /// In the order of the resolver.
    hosts: Arc<[HostPool]>,
    resolver: Resolver,
    /// The host that was used last.
    used: Arc<AtomicUsize>,
    /// Measures the wait for a connection, in seconds.
    waits: Option<Histogram>,
}

/// The host for the next connection, and how statements run on it.
pub(super) struct Current<'a> {
    pub(super) pool: &'a HostPool,
    pub(super) mode: Mode,
    choice: Choice,
}

impl From<PgPool> for Pool {
    /// Uses an application's pool. Each lookup costs two more round trips than with [`Pool::connect`].
    fn from(connections: PgPool) -> Self {
        let hosts = Hosts::from((*connections.connect_options()).clone());
        let resolver = Resolver::new(&hosts, connections.options().get_acquire_timeout());
        let host = resolver.hosts()[0].clone();
        Self::of(vec![HostPool::of_application(connections, &host)], resolver)
    }
}

impl Pool {
    /// Creates a pool of at most `size` sessions with our settings. `timeout` limits each statement on the server. The pool
    /// connects at first use, so a process can start while the database is down. With several hosts it connects to the first one
    /// that is what their URL wants.
    #[must_use]
    pub fn connect(hosts: impl Into<Hosts>, size: u32, timeout: Duration) -> Self {
        let hosts = ours(hosts.into());
        Self::sharing(&Resolver::new(&hosts, timeout), &hosts, size, timeout)
    }

    /// Does the same as [`Pool::connect`]. All pools that share `resolver` use the same host, know the same of it, and close their
    /// connections together.
    fn sharing(resolver: &Resolver, hosts: &Hosts, size: u32, timeout: Duration) -> Self {
        let pools = resolver.hosts().iter().zip(hosts.options());
        let pools = pools.map(|(host, options)| HostPool::new(host, options.clone(), hosts.wanted(), size, timeout));
        Self::of(pools.collect(), resolver.clone())
    }

    fn of(hosts: Vec<HostPool>, resolver: Resolver) -> Self {
        Self { hosts: hosts.into(), resolver, used: Arc::default(), waits: None }
    }

    /// Returns the connections to the host that was chosen last.
    #[must_use]
    pub fn connections(&self) -> &PgPool {
        &self.latest().connections
    }

    /// Chooses a host, if there is a choice, and returns the connections to it, for migrations.
    ///
    /// # Errors
    /// [`StoreError`] if no host can be used.
    pub async fn current_connections(&self) -> Result<PgPool, StoreError> {
        let timeout = self.connections().options().get_acquire_timeout();
        let choice = self.resolver.choice(TokioInstant::now() + timeout).await?;
        Ok(self.hosts[choice.index].connections.clone())
    }

    fn latest(&self) -> &HostPool {
        &self.hosts[self.resolver.latest()]
    }

    /// Returns what chooses the host.
    pub(super) fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    /// Returns the hosts, as messages name them.
    pub(super) fn places(&self) -> String {
        let logins = self.hosts.iter().map(|pool| (*pool.connections.connect_options()).clone()).collect();
        Hosts::new(logins, self.resolver.wanted()).to_string()
    }

    /// Sets or removes a login to use if a server refuses the current one.
    pub(super) fn offer(&self, login: Option<&Hosts>) {
        for (index, host) in self.resolver.hosts().iter().enumerate() {
            host.offered.set(login.and_then(|login| login.options().get(index)));
        }
    }

    /// Sets the login of new connections. An open connection is closed instead of being used again.
    pub(super) fn set_login(&self, login: &Hosts) {
        for (pool, options) in self.hosts.iter().zip(login.options()) {
            pool.connections.set_connect_options(options.clone());
            pool.host.set_login(options);
        }
    }

    /// Closes the connections that are idle now.
    pub(super) async fn close_idle(&self) {
        for pool in self.hosts.iter() {
            pool.close_idle().await;
        }
    }

    /// Adds the place of the database to an error that does not name it yet.
    pub(super) fn locating<T>(&self, outcome: Result<T, StoreError>) -> Result<T, StoreError> {
        outcome.map_err(|error| error.at(&self.place()))
    }

    /// Returns the place of the database.
    pub(super) fn place(&self) -> Arc<Place> {
        self.latest().host.place()
    }

    /// Returns how statements run on its connections.
    ///
    /// # Errors
    /// As [`Pool::current`].
    pub(super) async fn mode(&self, deadline: TokioInstant) -> Result<Mode, StoreError> {
        Ok(self.current(deadline).await?.mode)
    }

    /// Returns the host for the next connection, before `deadline`. The first call for a host finds out how statements run on it,
    /// before any connection is used.
    ///
    /// # Errors
    /// [`StoreError`] if the database cannot be reached, or [`Unfit::StatementPooler`](super::Unfit::StatementPooler).
    pub(super) async fn current(&self, deadline: TokioInstant) -> Result<Current<'_>, StoreError> {
        loop {
            let choice = self.resolver.choice(deadline).await?;
            let pool = &self.hosts[choice.index];
            self.leave_others(choice.index);
            let mode = tokio::time::timeout_at(deadline, pool.mode()).await.map_err(|late| {
                // The next caller looks for another host.
                pool.host.cutoff.set();
                StoreError::late(late)
            });
            match mode.flatten() {
                Ok(mode) => return Ok(Current { pool, mode, choice }),
                Err(error) if self.tries_again(pool, &error, deadline).await => {}
                Err(error) => return Err(error.at(&pool.host.place())),
            }
        }
    }

    /// Ends the choice of a host that lost a connection, and closes the others. Waits and returns true if another attempt makes
    /// sense.
    async fn tries_again(&self, pool: &HostPool, error: &StoreError, deadline: TokioInstant) -> bool {
        if !matches!(error, StoreError::Disconnected(_)) {
            return false;
        }
        pool.host.cutoff.set();
        if self.resolver.is_fixed() || TokioInstant::now() + PAUSE >= deadline {
            return false;
        }
        tokio::time::sleep(PAUSE).await;
        true
    }

    /// Closes the connections to the host that was used before. Those in use close when their server ends them, and are never taken
    /// again: they are older than the cutoff.
    fn leave_others(&self, index: usize) {
        let previous = self.used.swap(index, Ordering::Relaxed);
        if previous != index {
            let hosts = self.hosts.clone();
            tokio::spawn(async move { hosts[previous].close_idle().await });
        }
    }

    /// Returns a connection, before `deadline`. `statement_timeout` is the server's limit for a statement on it.
    pub(super) async fn acquire(
        &self,
        deadline: TokioInstant,
        statement_timeout: Duration,
    ) -> Result<Checkout, StoreError> {
        loop {
            let current = self.current(deadline).await?;
            let pool = current.pool;
            let acquired = self.diagnosing(&current, deadline, pool.acquire()).await?;
            let Some(mut connection) = acquired else { continue };
            // Only now, because a new connection may have found a pooler.
            let mode = pool.mode().await?;
            if !mode.keeps_statements() {
                forget_statements(&mut connection).await?;
            }
            let in_use = InUse::one_of(&pool.in_use);
            return Ok(Checkout::new(connection, mode, in_use, pool.host.clone(), statement_timeout));
        }
    }

    /// Waits for `acquiring`, which needs a connection to the current host, until `deadline`. After half of the time it finds out
    /// why there is none, because the driver retries a refused connection until its own timeout, and then does not say why. `None`:
    /// another host was chosen, or has to be.
    pub(super) async fn diagnosing<T>(
        &self,
        current: &Current<'_>,
        deadline: TokioInstant,
        acquiring: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<Option<T>, StoreError> {
        let now = TokioInstant::now();
        let half = now + deadline.saturating_duration_since(now) / 2;
        let diagnosis = async {
            tokio::time::sleep_until(half).await;
            current.pool.why_no_connection().await
        };
        let (mut acquiring, mut diagnosis) = (pin!(acquiring), pin!(diagnosis));
        let mut outdated = pin!(self.resolver.is_outdated(current.choice));
        let mut cause = None;
        let acquired = loop {
            tokio::select! {
                biased;
                acquired = tokio::time::timeout_at(deadline, &mut acquiring) => break acquired,
                found = &mut diagnosis, if cause.is_none() => cause = Some(found),
                () = &mut outdated => return Ok(None),
            }
        };
        if let Some(waits) = &self.waits {
            waits.observe(now.elapsed().as_secs_f64());
        }
        let cause = self.resolver.problem().or(cause);
        let error = match acquired {
            Ok(Ok(acquired)) => return Ok(Some(acquired)),
            Ok(Err(sqlx::Error::PoolTimedOut)) => cause.unwrap_or_else(|| sqlx::Error::PoolTimedOut.into()),
            Ok(Err(error)) => error.into(),
            Err(late) => cause.unwrap_or_else(|| StoreError::late(late)),
        };
        if self.tries_again(current.pool, &error, deadline).await {
            return Ok(None);
        }
        Err(error.at(&current.pool.host.place()))
    }
}

/// Returns the hosts without the driver's setting for the text of floating-point numbers: a pooler may refuse it, and no statement
/// of ours reads such a text.
fn ours(hosts: Hosts) -> Hosts {
    hosts.map(|options| options.extra_float_digits(None))
}

/// Removes the prepared statements of a connection from the driver's cache, because the next session does not have them.
pub(super) async fn forget_statements(connection: &mut PgConnection) -> Result<(), StoreError> {
    if connection.cached_statements_size() > 0 {
        connection.clear_cached_statements().await?;
    }
    Ok(())
}

/// The smallest number of connections that [`Pools::connect`] accepts: two for each pool. While the server still runs a statement
/// whose caller has stopped waiting, the statement's connection counts against its pool, and the pool has one more connection.
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
    pub fn connect(hosts: impl Into<Hosts>, total: u32, timeout: Duration) -> Self {
        let hosts = ours(hosts.into());
        let resolver = Resolver::new(&hosts, timeout);
        let pool = |size| Pool::sharing(&resolver, &hosts, size, timeout);
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
