//! The adapter to PostgreSQL: the pools, the one transaction runner, and a file per table. The only SQL is below here.

pub mod action_verdicts;
pub mod catch_up;
pub mod changes;
pub mod environment;
pub mod erasure;
pub mod error;
pub mod events;
pub mod handler_admin;
pub mod handler_moves;
pub mod handler_standing;
pub mod handlers;
pub mod inbox;
pub mod leases;
pub mod lent;
pub mod migrations;
pub mod pages;
pub mod roles;
pub mod sign_ins;
pub mod users;
pub mod walks;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnection, PgPool};
use sqlx::{AssertSqlSafe, Connection};
use tokio::sync::OnceCell;

pub use error::StoreError;

/// A transaction is tried this often when PostgreSQL asks for another try (40001, 40P01).
const ATTEMPTS: u32 = 5;

/// How long one transaction or lookup may take by default, waiting for a connection included.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// Access to the database. Cloning is cheap.
///
/// Receipts and lookups draw on pools of their own, so that a storm of one starves no other. Nothing is read or written
/// before the database was found [fit](Store::check): migrated, and this environment's own.
#[derive(Clone, Debug)]
pub struct Store {
    receipts: PgPool,
    lookups: PgPool,
    /// Where handlers run.
    handlers: PgPool,
    client_id: Arc<str>,
    timeout: Duration,
    begin: Arc<str>,
    fit: Arc<OnceCell<()>>,
}

/// How a transaction begins: durable, and bounded on the server's side too. One whose client is gone must not keep its locks,
/// nor hold up the change feed.
fn begin(timeout: Duration) -> String {
    let bound = timeout.as_millis().max(1);
    format!(
        "begin isolation level read committed; \
         set local synchronous_commit = on; \
         set local statement_timeout = {bound}; \
         set local lock_timeout = {bound}; \
         set local idle_in_transaction_session_timeout = {}",
        bound * 2
    )
}

/// What runs inside a transaction. It may run more than once, so it takes itself by reference, and it makes no network
/// call other than to the database.
pub trait Work: Sync {
    /// What the transaction yields.
    type Output: Send;

    /// The transaction's body; an error rolls it back.
    fn run(&self, connection: &mut PgConnection) -> impl Future<Output = Result<Self::Output, StoreError>> + Send;
}

impl Store {
    /// Serves the environment of `client_id`; `timeout` bounds each transaction and each lookup.
    #[must_use]
    pub fn new(receipts: PgPool, lookups: PgPool, client_id: &str, timeout: Duration) -> Self {
        Self {
            handlers: receipts.clone(),
            receipts,
            lookups,
            client_id: client_id.into(),
            timeout,
            begin: begin(timeout).into(),
            fit: Arc::new(OnceCell::new()),
        }
    }

    /// Looks after whatever environment the database is given to, as an operator does: it records no client id, and refuses
    /// none.
    #[must_use]
    pub fn of_any_client(pool: PgPool, timeout: Duration) -> Self {
        Self::new(pool.clone(), pool, "", timeout)
    }

    /// The same store on a pool of its own, so that background work starves neither receipts nor lookups.
    #[must_use]
    pub fn on_pool(&self, pool: PgPool) -> Self {
        Self { receipts: pool.clone(), lookups: pool, ..self.clone() }
    }

    /// The same store, which lends handlers transactions from a pool of their own: however slow they are, whoever looks after
    /// them has a connection.
    #[must_use]
    pub fn lending_from(&self, pool: PgPool) -> Self {
        Self { handlers: pool, ..self.clone() }
    }

    /// Runs `work` in a transaction that is durable when this returns `Ok`, and tries again where PostgreSQL asks for it.
    ///
    /// `name` is for the log.
    ///
    /// # Errors
    /// [`StoreError::Refused`] for data that PostgreSQL will never take, [`StoreError::Unavailable`] for everything else,
    /// with nothing written in either case.
    pub async fn transaction<W: Work>(&self, name: &'static str, work: &W) -> Result<W::Output, StoreError> {
        self.check().await?;
        let mut attempt = 1;
        loop {
            match self.durably(work).await {
                Err(error) if error.wants_another_try() && attempt < ATTEMPTS => {
                    tracing::debug!(transaction = name, attempt, error = %error, "transaction tried again");
                    attempt += 1;
                }
                outcome => return outcome,
            }
        }
    }

    /// One try of a transaction.
    async fn durably<W: Work>(&self, work: &W) -> Result<W::Output, StoreError> {
        let deadline = tokio::time::Instant::now() + self.timeout;
        let mut connection =
            tokio::time::timeout_at(deadline, self.receipts.acquire()).await.map_err(StoreError::late)??;
        let body = async {
            // The one statement that is not static: `begin` takes no parameters. It holds a number and nothing else.
            let mut transaction = connection.begin_with(AssertSqlSafe(&*self.begin)).await?;
            let output = work.run(&mut transaction).await?;
            transaction.commit().await?;
            Ok(output)
        };
        match tokio::time::timeout_at(deadline, body).await {
            Ok(outcome) => outcome,
            Err(late) => {
                // Whatever this connection is waiting for, nobody else should.
                connection.close_on_drop();
                Err(StoreError::late(late))
            }
        }
    }

    /// Runs a lookup on its own pool, bounded in time.
    async fn lookup<T>(
        &self,
        query: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        self.check().await?;
        self.ask(query).await
    }

    /// A lookup before the database was found fit: only the check itself may do this.
    async fn ask<T>(
        &self,
        query: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        let deadline = tokio::time::Instant::now() + self.timeout;
        let mut connection =
            tokio::time::timeout_at(deadline, self.lookups.acquire()).await.map_err(StoreError::late)??;
        match tokio::time::timeout_at(deadline, query(&mut connection)).await {
            Ok(outcome) => Ok(outcome?),
            Err(late) => {
                connection.close_on_drop();
                Err(StoreError::late(late))
            }
        }
    }
}
