//! The connections of a run of migrations. They work behind a pooler, too.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnection, PgPool};
use sqlx::{AssertSqlSafe, Connection, Executor, SqlStr};

use crate::store::connection::DbConnection;
use crate::store::place::Place;
use crate::store::pooler::Route;
use crate::store::{DatabaseFailure, StoreError};

/// The settings of migrations. Names in constraints, indexes and defaults are resolved when a migration runs, so an unqualified
/// name must only find objects in `pg_catalog`. Timeouts are disabled, because building an index takes long. Migrations set the
/// timeout of their locks themselves.
const SETTINGS: [&str; 4] = [
    "search_path = pg_catalog, pg_temp",
    "statement_timeout = 0",
    "lock_timeout = 0",
    "idle_in_transaction_session_timeout = 0",
];

/// The key of the advisory lock of a run. It is arbitrary, and never changes.
pub(super) const LOCK: i64 = 0x6175_7468_6B69_7401;

/// Number of attempts to get the lock, and the pause between them: one minute in total.
const LOCK_ATTEMPTS: u32 = 600;
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// Returns the statements that apply our settings, with `set` or `set local`.
fn settings(set: &str) -> String {
    SETTINGS.map(|setting| format!("{set} {setting}")).join("; ")
}

pub(super) fn place_of(pool: &PgPool) -> Arc<Place> {
    Arc::new(Place::of(&pool.connect_options()))
}

/// A connection for migrations, outside of the pool.
pub(in crate::store) struct Session {
    connection: PgConnection,
    is_direct: bool,
    begin: String,
}

impl Session {
    /// Opens the connection.
    pub(in crate::store) async fn open(pool: &PgPool) -> Result<Self, StoreError> {
        let opened = async {
            let is_direct = Route::default().is_direct(pool).await?;
            let mut connection = PgConnection::connect_with(&pool.connect_options()).await?;
            if is_direct {
                // For statements outside of a transaction. Behind a pooler, other clients would get these settings.
                connection.execute(AssertSqlSafe(settings("set"))).await?;
            }
            Ok(Self { connection, is_direct, begin: format!("begin; {}", settings("set local")) })
        };
        let opened = tokio::time::timeout(pool.options().get_acquire_timeout(), opened).await;
        opened.map_err(StoreError::late).flatten().map_err(|error| error.at(&place_of(pool)))
    }

    /// Runs `work` in a transaction with our settings.
    pub(in crate::store) async fn transaction<T, E: From<sqlx::Error>>(
        &mut self,
        work: impl AsyncFnOnce(&mut DbConnection<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        // The text consists of constants.
        let mut transaction = self.connection.begin_with(AssertSqlSafe(self.begin.clone())).await?;
        let output = work(&mut DbConnection::new(&mut transaction, self.is_direct)).await?;
        transaction.commit().await?;
        Ok(output)
    }

    /// Runs a statement that must not be in a transaction. Behind a pooler it has the settings of the role.
    pub(super) async fn alone(&mut self, statement: SqlStr) -> Result<(), sqlx::Error> {
        sqlx::raw_sql(statement).execute(&mut self.connection).await?;
        Ok(())
    }

    pub(in crate::store) async fn close(self) -> Result<(), sqlx::Error> {
        self.connection.close().await
    }
}

/// The lock of a run. It belongs to a transaction that stays open, because behind a pooler no other lock stays with its owner.
/// Between two statements the transaction has no snapshot, so `create index concurrently` does not wait for it.
pub(super) struct RunLock {
    connection: PgConnection,
}

impl RunLock {
    /// Takes the lock. `None`: another run has held it for a minute.
    ///
    /// It polls, because a statement that waits for the lock has a snapshot, and `create index concurrently` in the run that holds
    /// the lock would wait for that snapshot.
    pub(super) async fn take(pool: &PgPool) -> Result<Option<Self>, StoreError> {
        let opened = async {
            let mut connection = PgConnection::connect_with(&pool.connect_options()).await?;
            connection.execute(AssertSqlSafe(format!("begin; {}", settings("set local")))).await?;
            Ok(connection)
        };
        let opened = tokio::time::timeout(pool.options().get_acquire_timeout(), opened).await;
        let mut connection = opened.map_err(StoreError::late).flatten()?;
        for _ in 0..LOCK_ATTEMPTS {
            let mut statements = DbConnection::in_transaction(&mut connection);
            let is_taken = sqlx::query_scalar!(
                r#"-- migrations.lock
                select pg_try_advisory_xact_lock($1) as "held!""#,
                LOCK
            )
            .fetch_one(&mut statements)
            .await?;
            if is_taken {
                return Ok(Some(Self { connection }));
            }
            tokio::time::sleep(LOCK_PAUSE).await;
        }
        Ok(None)
    }

    /// Checks that the lock is still held: a pooler or a firewall can end a transaction that was idle for long.
    pub(super) async fn check(&mut self) -> Result<(), StoreError> {
        self.connection.execute("select").await.map_err(|_| {
            StoreError::Unavailable(DatabaseFailure::new(
                "the migration lock was lost, because {at} ended the transaction that holds it".into(),
                "disable idle_transaction_timeout of the pooler, or run `authkit-sync migrate` with the address of \
                 PostgreSQL itself"
                    .into(),
            ))
        })?;
        Ok(())
    }

    pub(super) async fn release(mut self) -> Result<(), sqlx::Error> {
        self.connection.execute("rollback").await?;
        self.connection.close().await
    }
}
