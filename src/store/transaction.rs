//! The transaction runner, which is the only way to write: it begins, sets limits, runs, retries and commits. Reads outside of a
//! transaction are here, too.

use std::future::Future;

use sqlx::postgres::{PgArguments, Postgres};
use sqlx::query::Query;
use tokio::time::Instant;

use super::DbConnection;
use super::pool::Checkout;
use super::{Store, StoreError};

/// Maximum number of attempts of a transaction that fails with a serialization failure (40001) or a deadlock (40P01).
const ATTEMPTS: u32 = 5;

/// The body of a transaction. It can run more than once, so it takes `self` by reference. It must not send any network request
/// except to the database.
pub trait Work: Sync {
    /// The result of the transaction.
    type Output: Send;

    /// Runs in the transaction. An error rolls the transaction back.
    fn run(&self, connection: &mut DbConnection<'_>) -> impl Future<Output = Result<Self::Output, StoreError>> + Send;
}

impl Store {
    /// Runs `work` in a transaction. `Ok` means that it is committed durably. Retries serialization failures and deadlocks.
    ///
    /// `name` is for the log.
    ///
    /// # Errors
    /// [`StoreError::Refused`] if PostgreSQL rejects the data on every attempt, [`StoreError::Unfit`] if the database belongs to
    /// another client ID, any other error if the database is unavailable. Nothing was written.
    pub async fn transaction<W: Work>(&self, name: &'static str, work: &W) -> Result<W::Output, StoreError> {
        self.check_bound().await?;
        let mut attempts = 1;
        loop {
            match self.attempt(&self.begin_write, work).await {
                Err(error) if error.wants_retry() && attempts < ATTEMPTS => {
                    tracing::debug!(transaction = name, attempts, error = %error, "transaction retried");
                    attempts += 1;
                }
                outcome => return self.noting_unfit(outcome),
            }
        }
    }

    /// Runs `work`, which reads and then writes with one statement. If the sessions have our settings, that statement is its own
    /// durable transaction, so a write costs one round trip per statement of `work`. Otherwise `work` runs in a transaction with
    /// our settings.
    ///
    /// `work` gets the client ID, which its statement must check.
    ///
    /// # Errors
    /// As [`Store::transaction`]. Nothing is retried.
    pub(crate) async fn one_statement<T>(
        &self,
        work: impl AsyncFnOnce(&mut DbConnection<'_>, &str) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.check_bound().await?;
        let outcome = self.writes.locating(self.run_one_statement(work).await);
        self.log_failure(&outcome);
        self.noting_unfit(outcome)
    }

    async fn run_one_statement<T>(
        &self,
        work: impl AsyncFnOnce(&mut DbConnection<'_>, &str) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let deadline = Instant::now() + self.timeout;
        let mut held = self.writes.acquire(deadline, self.timeout).await?;
        let run = async {
            if held.mode().has_settings() {
                return work(&mut held.statement()?, &self.client_id).await;
            }
            let mut transaction = held.begin(&self.begin_write).await?;
            let output = work(&mut transaction.connection(), "").await?;
            transaction.commit().await?;
            Ok(output)
        };
        let outcome = tokio::time::timeout_at(deadline, run).await.map_err(StoreError::late)?;
        held.ended(outcome)
    }

    /// Runs one statement in its own transaction, and returns the number of rows that it wrote. See [`Store::transaction`].
    pub(super) async fn write<'q>(
        &self,
        name: &'static str,
        statement: impl Fn() -> Statement<'q> + Sync,
    ) -> Result<u64, StoreError> {
        self.transaction(name, &OneStatement(statement)).await
    }

    /// Attempts a transaction once.
    pub(super) async fn attempt<W: Work>(&self, begin: &str, work: &W) -> Result<W::Output, StoreError> {
        let outcome = self.writes.locating(self.run_once(begin, work).await);
        self.log_failure(&outcome);
        outcome
    }

    async fn run_once<W: Work>(&self, begin: &str, work: &W) -> Result<W::Output, StoreError> {
        let deadline = Instant::now() + self.timeout;
        let mut held = self.writes.acquire(deadline, self.timeout).await?;
        let run = async {
            let mut transaction = held.begin(begin).await?;
            let output = work.run(&mut transaction.connection()).await?;
            transaction.commit().await?;
            Ok(output)
        };
        let outcome = tokio::time::timeout_at(deadline, run).await.map_err(StoreError::late)?;
        held.ended(outcome)
    }

    /// Runs a lookup, with a timeout here and on the server. It must not write.
    pub(super) async fn lookup<T>(
        &self,
        query: impl AsyncFnOnce(&mut DbConnection<'_>) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        self.check().await?;
        self.ask(query).await
    }

    /// Runs a lookup before the check of the database has passed. Only the check itself may call this.
    pub(super) async fn ask<T>(
        &self,
        query: impl AsyncFnOnce(&mut DbConnection<'_>) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        let asked = async {
            let deadline = Instant::now() + self.timeout;
            let mut held = self.lookups.acquire(deadline, self.timeout).await?;
            let outcome = self.ask_on(&mut held, deadline, query).await?;
            held.ended(outcome)
        };
        let outcome = self.lookups.locating(asked.await);
        self.log_failure(&outcome);
        outcome
    }

    /// Runs a lookup on the caller's connection. The outer error is a timeout. Then the server may still use the connection.
    pub(super) async fn ask_on<T>(
        &self,
        held: &mut Checkout,
        deadline: Instant,
        query: impl AsyncFnOnce(&mut DbConnection<'_>) -> Result<T, sqlx::Error>,
    ) -> Result<Result<T, StoreError>, StoreError> {
        let run = async {
            if held.mode().has_settings() {
                let mut connection = held.statement()?;
                self.require_mark(&mut connection).await?;
                return Ok(query(&mut connection).await?);
            }
            let mut transaction = held.begin(&self.begin_read).await?;
            let mut connection = transaction.connection();
            self.require_mark(&mut connection).await?;
            // The end of the transaction is sent with the next statement, or when the connection returns to the pool.
            Ok(query(&mut connection).await?)
        };
        tokio::time::timeout_at(deadline, run).await.map_err(StoreError::late)
    }
}

/// A statement with its arguments.
pub(super) type Statement<'q> = Query<'q, Postgres, PgArguments>;

struct OneStatement<F>(F);

impl<'q, F: Fn() -> Statement<'q> + Sync> Work for OneStatement<F> {
    type Output = u64;

    async fn run(&self, connection: &mut DbConnection<'_>) -> Result<u64, StoreError> {
        let statement = (self.0)();
        Ok(statement.execute(connection).await?.rows_affected())
    }
}
