//! The adapter to PostgreSQL: the pools, the one transaction runner, and a file per table. The only SQL is below here.

pub mod action_verdicts;
pub(crate) mod batch;
pub mod catch_up;
pub mod changes;
pub mod environment;
pub mod erasure;
pub mod error;
pub mod events;
pub mod fitness;
pub mod handlers;
pub mod leases;
pub mod migrations;
pub mod pool;
mod pooler;
pub mod roles;
pub mod scans;
pub mod sign_ins;
mod transaction;
mod unfit;
pub mod users;

use std::sync::Arc;
use std::time::Duration;

pub use error::StoreError;
use fitness::{ClientVerifier, Fitness};
pub use pool::Pool;
pub use transaction::Work;
pub use unfit::Unfit;

/// How long one transaction or lookup may take by default, waiting for a connection included.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// Access to the database. Cloning is cheap.
///
/// Writes and lookups draw on pools of their own, so that a storm of one starves no other. Nothing is read or written
/// before the database was found [fit](Store::check): migrated, and this environment's own.
#[derive(Clone, Debug)]
pub struct Store {
    writes: Pool,
    lookups: Pool,
    /// Where handlers run.
    handlers: Pool,
    client_id: Arc<str>,
    timeout: Duration,
    begin_write: Arc<str>,
    begin_read: Arc<str>,
    fitness: Arc<Fitness>,
    /// Asked before a database is bound to the client ID.
    verifier: Option<Arc<dyn ClientVerifier>>,
}

impl Store {
    /// Serves the environment of `client_id`; `timeout` bounds each transaction and each lookup.
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
        }
    }

    /// Serves whichever environment the database belongs to, as an operator's commands do: it records no client ID, and
    /// refuses none.
    #[must_use]
    pub fn of_any_client(pool: impl Into<Pool>, timeout: Duration) -> Self {
        let pool = pool.into();
        Self::new(pool.clone(), pool, "", timeout)
    }

    /// The number of connections for writes.
    pub(crate) fn write_connections(&self) -> usize {
        usize::try_from(self.writes.connections().options().get_max_connections()).unwrap_or(usize::MAX)
    }

    /// Bounds each transaction and each lookup.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The same store, which binds a database to its client ID only once `verifier` has confirmed that WorkOS knows it.
    #[must_use]
    pub fn verifying_client(self, verifier: Arc<dyn ClientVerifier>) -> Self {
        Self { verifier: Some(verifier), ..self }
    }

    /// The same store on a pool of its own, so that background work starves neither webhooks nor lookups.
    #[must_use]
    pub fn on_pool(&self, pool: impl Into<Pool>) -> Self {
        let pool = pool.into();
        Self { writes: pool.clone(), lookups: pool, ..self.clone() }
    }

    /// The same store with a pool of its own for handlers' transactions: however slow handlers are, their administration has
    /// a connection.
    #[must_use]
    pub fn handlers_on(&self, pool: impl Into<Pool>) -> Self {
        Self { handlers: pool.into(), ..self.clone() }
    }
}
