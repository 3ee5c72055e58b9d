//! A connection that a caller has taken from a pool.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, Connection, Postgres};

use super::measured::InUse;
use crate::store::connection::{DbConnection, DbTransaction};
use crate::store::pooler::Mode;
use crate::store::resolver::Host;
use crate::store::{DatabaseFailure, StoreError};

/// Time after the statement timeout of a session at which its connection is closed.
const CLOSE_GRACE: Duration = Duration::from_secs(1);

const USED_AFTER_END: StoreError = StoreError::Unavailable(DatabaseFailure::new(
    Cow::Borrowed("a connection was used after its end"),
    Cow::Borrowed("this is a defect of authkit-sync, please report it"),
));

/// A connection from a pool. Dropping it returns it to the pool.
///
/// If it is dropped before its use has [ended](Self::ended), the caller has stopped waiting, but the server may still run the
/// statement. Then the connection returns to the pool after the server's own timeout has ended the statement. Until then it counts
/// against the pool, so the number of sessions never exceeds the size of the pool.
pub(in crate::store) struct Checkout {
    connection: Option<PoolConnection<Postgres>>,
    mode: Mode,
    in_use: Option<InUse>,
    host: Arc<Host>,
    statement_timeout: Duration,
    /// Whether a BEGIN was sent and has not succeeded yet. sqlx does not roll such a transaction back.
    is_beginning: bool,
    has_ended: bool,
}

impl Checkout {
    pub(super) fn new(
        connection: PoolConnection<Postgres>,
        mode: Mode,
        in_use: InUse,
        host: Arc<Host>,
        statement_timeout: Duration,
    ) -> Self {
        let (connection, in_use) = (Some(connection), Some(in_use));
        Self { connection, mode, in_use, host, statement_timeout, is_beginning: false, has_ended: false }
    }

    /// Returns how statements run on it.
    pub(in crate::store) fn mode(&self) -> Mode {
        self.mode
    }

    /// Returns the connection for one statement, if its session has our settings.
    pub(in crate::store) fn statement(&mut self) -> Result<DbConnection<'_>, StoreError> {
        let keeps_statements = self.mode.keeps_statements();
        Ok(DbConnection::new(self.connection.as_deref_mut().ok_or(USED_AFTER_END)?, keeps_statements))
    }

    /// Begins a transaction.
    pub(in crate::store) async fn begin(&mut self, begin: &str) -> Result<DbTransaction<'_>, StoreError> {
        self.is_beginning = true;
        let connection = self.connection.as_deref_mut().ok_or(USED_AFTER_END)?;
        // BEGIN takes no parameters. The text consists of constants, numbers and an escaped literal.
        let transaction = connection.begin_with(AssertSqlSafe(begin)).await?;
        self.is_beginning = false;
        Ok(DbTransaction::new(transaction, self.mode.keeps_statements()))
    }

    /// Closes the connection instead of returning it to the pool, because its session has an unknown state.
    pub(in crate::store) fn close(&mut self) {
        self.has_ended = true;
        if let Some(connection) = &mut self.connection {
            connection.close_on_drop();
        }
    }

    /// Records that its use has ended, and adds the place of the database to an error. If the outcome shows that the server is shutting
    /// down or read-only, this connection is closed, and so is each connection to this host that the pools of [`Pools`] have opened so
    /// far.
    pub(in crate::store) fn ended<T>(&mut self, outcome: Result<T, StoreError>) -> Result<T, StoreError> {
        self.has_ended = true;
        if matches!(outcome, Err(StoreError::Disconnected(_))) {
            self.close();
            self.host.cutoff.set();
        }
        outcome.map_err(|error| error.at(&self.host.place()))
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
        let (cutoff, in_use) = (self.host.cutoff.clone(), self.in_use.take());
        tokio::spawn(async move {
            if cutoff.ping(&mut connection, limit).await.is_err() {
                connection.close_on_drop();
            }
            drop(connection);
            drop(in_use);
        });
    }
}
