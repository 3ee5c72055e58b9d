//! The adapter to PostgreSQL: the pools, the transaction runner, and a file per table. All SQL is in this module.

pub mod action_verdicts;
pub mod authorization;
pub(crate) mod batch;
pub mod catch_up;
pub mod changes;
mod connection;
mod cutoff;
pub mod environment;
pub mod erasure;
pub mod error;
pub mod events;
mod failure;
mod failure_log;
pub mod fitness;
mod grouped;
pub mod handlers;
pub mod hosts;
pub mod inspection;
pub mod leases;
mod live_rows;
pub(crate) mod login;
pub mod lookups;
pub mod memberships;
pub mod migrations;
pub(crate) mod objects;
mod offered_login;
pub mod organizations;
pub mod pages;
mod place;
pub mod pool;
mod pooler;
pub(crate) mod refreshes;
pub mod replicas;
pub mod resolver;
pub(crate) mod role_lists;
pub mod roles;
pub(crate) mod rows;
pub mod scans;
pub(crate) mod sessions;
pub mod sign_ins;
pub mod sizes;
pub mod standby;
mod transaction;
mod unfit;
pub mod users;

use std::sync::Arc;
use std::time::Duration;

pub use connection::DbConnection;
pub use error::StoreError;
pub use failure::DatabaseFailure;
use failure_log::FailureLog;
use fitness::{ClientVerifier, Fitness};
pub use pool::Pool;
use standby::Mark;
pub use transaction::Work;
pub use unfit::Unfit;

/// Default timeout of a transaction or lookup, including the wait for a connection.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// Access to the database. Cloning is cheap.
///
/// Writes and lookups have separate pools, so that many of one kind do not block the other. Nothing is read or written before the
/// [check](Store::check) of the database has passed.
#[derive(Clone, Debug)]
pub struct Store {
    writes: Pool,
    lookups: Pool,
    /// The pool of handlers' transactions.
    handlers: Pool,
    client_id: Arc<str>,
    timeout: Duration,
    begin_write: Arc<str>,
    begin_read: Arc<str>,
    fitness: Arc<Fitness>,
    /// Called before the database is bound to the client ID.
    verifier: Option<Arc<dyn ClientVerifier>>,
    /// The log of failures in a service. `None` in a command, which reports its failure itself.
    failure_log: Option<Arc<FailureLog>>,
    /// The mark that each read requires. `None` for the primary, and for the store that reads the mark itself.
    required: Option<Arc<Mark>>,
}

impl Store {
    /// Creates a store for the environment of `client_id`. `timeout` limits each transaction and each lookup.
    #[must_use]
    pub fn new(writes: impl Into<Pool>, lookups: impl Into<Pool>, client_id: &str, timeout: Duration) -> Self {
        let writes = writes.into();
        Self {
            handlers: writes.clone(),
            writes,
            lookups: lookups.into(),
            client_id: client_id.into(),
            timeout,
            begin_write: pool::begin_write(timeout, client_id).into(),
            begin_read: pool::begin_read(timeout).into(),
            fitness: Arc::default(),
            verifier: None,
            failure_log: None,
            required: None,
        }
    }

    /// Creates a store for a database of any environment, for an operator's commands. It neither binds the database to a client ID
    /// nor checks it.
    #[must_use]
    pub fn of_any_client(pool: impl Into<Pool>, timeout: Duration) -> Self {
        let pool = pool.into();
        Self::new(pool.clone(), pool, "", timeout)
    }

    /// Returns the store with a log of failures: each cause is logged once, and not again by every caller.
    #[must_use]
    pub fn logging_failures(self) -> Self {
        Self { failure_log: Some(Arc::default()), ..self }
    }

    /// Logs a failure of the database that happened outside of this store.
    pub(crate) fn note_failure(&self, error: &StoreError) {
        self.log_failure(&Err::<(), _>(error.clone()));
    }

    /// Logs a failure of the database, if this store does that.
    fn log_failure<T>(&self, outcome: &Result<T, StoreError>) {
        if let Some(log) = &self.failure_log {
            log.note(outcome);
        }
    }

    /// Returns the maximum number of connections for writes.
    pub(crate) fn write_connections(&self) -> usize {
        usize::try_from(self.writes.connections().options().get_max_connections()).unwrap_or(usize::MAX)
    }

    /// Returns the timeout of each transaction and each lookup.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Returns the store with a verifier. It binds the database to its client ID only if the verifier confirms that WorkOS knows
    /// it.
    #[must_use]
    pub fn verifying_client(self, verifier: Arc<dyn ClientVerifier>) -> Self {
        Self { verifier: Some(verifier), ..self }
    }

    /// Returns the store with another pool, so that background jobs block neither webhooks nor lookups.
    #[must_use]
    pub fn on_pool(&self, pool: impl Into<Pool>) -> Self {
        let pool = pool.into();
        Self { writes: pool.clone(), lookups: pool, ..self.clone() }
    }

    /// Returns the store with a separate pool for handlers' transactions, so that slow handlers do not block their administration.
    #[must_use]
    pub fn handlers_on(&self, pool: impl Into<Pool>) -> Self {
        Self { handlers: pool.into(), ..self.clone() }
    }
}
