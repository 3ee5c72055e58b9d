//! The migrations of the schema: lists pending ones, and runs them safely on several replicas at the same time.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migration, Migrator};
use sqlx::postgres::{PgConnection, PgPool};
use sqlx::{AssertSqlSafe, Connection};

use super::failure::Place;
use super::unfit::Unfit;
use super::{StoreError, pooler};

/// The table of applied migrations. It is in our schema, apart from the application's tables.
const TABLE: &str = "workos.migrations";

/// The key of the advisory lock of a run. It is arbitrary, and never changes.
const LOCK: i64 = 0x6175_7468_6B69_7401;

/// Number of attempts to get the lock, and the pause between them: one minute in total.
const LOCK_ATTEMPTS: u32 = 600;
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// Number of attempts of a migration that could not get a lock, and the pause between them. Between the attempts, the sessions that
/// wait behind the lock continue.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_secs(1);

/// The applied migrations, compared with those of this release.
#[derive(Debug, Default)]
pub struct MigrationStatus {
    /// Applied migrations of this release, for example `0001 users`.
    pub applied: Vec<String>,
    /// Migrations of this release that are not applied.
    pub pending: Vec<String>,
    /// Versions that a newer release applied.
    pub newer: Vec<i64>,
}

/// Why migrations could not be run.
#[derive(Debug, thiserror::Error)]
pub enum MigrationsError {
    /// The database could not be reached.
    #[error(transparent)]
    Database(#[from] StoreError),
    /// A migration failed, or was changed after it was applied.
    #[error("{0}")]
    Migration(String),
    /// Another run holds the lock.
    #[error(
        "another `authkit-sync migrate` has held the migration lock for a minute; wait for it, or, if none is running, find the session that holds the advisory lock in pg_locks and end it"
    )]
    Locked,
}

impl From<sqlx::Error> for MigrationsError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error.into())
    }
}

/// Returns the migrations of this release.
#[must_use]
pub fn migrator() -> Migrator {
    let mut migrator = sqlx::migrate!();
    migrator.dangerous_set_table_name(TABLE);
    // sqlx waits inside its lock statement, and the snapshot of that statement blocks `create index concurrently` in the run
    // that holds the lock. So this module polls the lock instead.
    migrator.set_locking(false);
    // A newer release may have run its migrations already. This release does not check them.
    migrator.set_ignore_missing(true);
    migrator
}

fn title(migration: &Migration) -> String {
    format!("{:04} {}", migration.version, migration.description)
}

/// Returns the latest version that this release knows.
#[must_use]
pub fn newest() -> i64 {
    migrator().iter().map(|migration| migration.version).max().unwrap_or_default()
}

/// Compares the applied migrations with those of this release. Writes nothing.
///
/// # Errors
/// Any error of sqlx.
pub async fn status(connection: &mut PgConnection) -> Result<MigrationStatus, sqlx::Error> {
    status_of(connection, &migrator()).await
}

/// Compares the applied migrations with those of `migrator`; see [`status`].
///
/// # Errors
/// Any error of sqlx.
pub async fn status_of(connection: &mut PgConnection, migrator: &Migrator) -> Result<MigrationStatus, sqlx::Error> {
    let present = sqlx::query_scalar!(
        r#"-- migrations.present
        select pg_catalog.to_regclass('workos.migrations') is not null as "present!""#
    )
    .fetch_one(&mut *connection)
    .await?;
    let applied: HashSet<i64> = if present {
        sqlx::query_scalar!("-- migrations.applied\nselect version from workos.migrations where success")
            .fetch_all(&mut *connection)
            .await?
            .into_iter()
            .collect()
    } else {
        HashSet::new()
    };
    let mut status = MigrationStatus::default();
    for migration in migrator.iter() {
        let list = if applied.contains(&migration.version) { &mut status.applied } else { &mut status.pending };
        list.push(title(migration));
    }
    status.newer = applied.into_iter().filter(|version| !migrator.version_exists(*version)).collect();
    status.newer.sort_unstable();
    Ok(status)
}

/// The settings of a migration session. Names in constraints, indexes and defaults are resolved when a migration runs, so an
/// unqualified name must only find objects in `pg_catalog`. Timeouts are disabled, because building an index takes long. Migrations
/// set the timeout of their locks themselves.
const SESSION: &str = "set search_path = pg_catalog, pg_temp; set statement_timeout = 0; set lock_timeout = 0; \
     set idle_in_transaction_session_timeout = 0";

fn place_of(pool: &PgPool) -> Arc<Place> {
    Arc::new(Place::of(&pool.connect_options()))
}

/// Opens a session for migrations, with its own settings and outside of the pool.
///
/// # Errors
/// [`StoreError`], also with a pooler that shares sessions, because the settings and the lock would remain in a shared session.
pub async fn session(pool: &PgPool) -> Result<PgConnection, StoreError> {
    let opened = async {
        if pooler::shares_sessions(pool).await? {
            return Err(Unfit::TransactionPooler.into());
        }
        let mut connection = PgConnection::connect_with(&pool.connect_options()).await?;
        sqlx::raw_sql(SESSION).execute(&mut connection).await?;
        Ok(connection)
    };
    let opened = tokio::time::timeout(pool.options().get_acquire_timeout(), opened).await;
    opened.map_err(StoreError::late).flatten().map_err(|error| error.at(&place_of(pool)))
}

/// Runs the pending migrations, and returns the applied migrations and rebuilt indexes. Several replicas can call it at the same
/// time: it waits for other runs.
///
/// # Errors
/// [`MigrationsError`]. Migrations that were applied before the failure stay applied.
pub async fn run(pool: &PgPool) -> Result<Vec<String>, MigrationsError> {
    run_migrator(pool, &migrator()).await
}

/// Runs the pending migrations of `migrator`; see [`run`].
///
/// # Errors
/// [`MigrationsError`]. Migrations that were applied before the failure stay applied.
pub async fn run_migrator(pool: &PgPool, migrator: &Migrator) -> Result<Vec<String>, MigrationsError> {
    run_in_session(pool, migrator).await.map_err(|error| match error {
        MigrationsError::Database(error) => MigrationsError::Database(error.at(&place_of(pool))),
        other => other,
    })
}

async fn run_in_session(pool: &PgPool, migrator: &Migrator) -> Result<Vec<String>, MigrationsError> {
    // The lock belongs to the session, so it is released even after a failure.
    let mut connection = session(pool).await?;
    lock(&mut connection).await?;
    create_schema(&mut connection).await?;
    let pending = status_of(&mut connection, migrator).await?.pending;
    let rebuilt = rebuild_invalid_indexes(&mut connection, migrator, &pending).await?;
    apply(&mut connection, migrator).await?;
    check_indexes(&mut connection, migrator).await?;
    connection.close().await?;
    Ok(rebuilt.into_iter().chain(pending).collect())
}

/// Applies the pending migrations. One in a transaction that waits too long for a lock, or that PostgreSQL ends because of a
/// deadlock, has changed nothing and is attempted again.
async fn apply(connection: &mut PgConnection, migrator: &Migrator) -> Result<(), MigrationsError> {
    for _ in 1..ATTEMPTS {
        // sqlx's `run` does the same behind a trait whose future `tokio::spawn` does not accept.
        match migrator.run_direct(None, &mut *connection, false).await {
            Err(MigrateError::ExecuteMigration(sqlx::Error::Database(error), version))
                if error.code().is_some_and(|code| ["55P03", "40P01"].contains(&&*code))
                    && migrator.iter().any(|it| it.version == version && !it.no_tx) =>
            {
                tracing::warn!(
                    version,
                    "the migration could not get a lock, because other transactions hold it; it is attempted again"
                );
                tokio::time::sleep(PAUSE).await;
            }
            outcome => return outcome.map_err(explain),
        }
    }
    migrator.run_direct(None, connection, false).await.map_err(explain)
}

/// Returns the index that a migration outside of a transaction creates. A test checks that each one creates exactly one index.
fn index_of(migration: &Migration) -> Option<&str> {
    let created = migration.sql.as_str().split_once("create index concurrently if not exists ")?.1;
    migration.no_tx.then_some(created)?.split_whitespace().next()
}

/// Returns the invalid indexes of the schema: their build was interrupted, or has not ended.
///
/// # Errors
/// Any error of sqlx.
pub async fn invalid_indexes(connection: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"-- migrations.invalid_indexes
        select relname::text as "name!"
        from pg_index
        join pg_class on pg_class.oid = indexrelid
        where
            relnamespace = to_regnamespace('workos')
            and not indisvalid
        order by 1"#
    )
    .fetch_all(connection)
    .await
}

/// Drops the invalid indexes of interrupted migrations, because `if not exists` would accept them. A pending migration then creates
/// its index itself. The invalid index of an applied migration (earlier releases accepted it) is rebuilt here. Returns the rebuilt
/// indexes.
async fn rebuild_invalid_indexes(
    connection: &mut PgConnection,
    migrator: &Migrator,
    pending: &[String],
) -> Result<Vec<String>, MigrationsError> {
    let invalid = invalid_indexes(&mut *connection).await?;
    let mut rebuilt = Vec::new();
    for migration in migrator.iter() {
        let Some(index) = index_of(migration).filter(|index| invalid.iter().any(|it| it == index)) else { continue };
        let failed = |error| explain(MigrateError::ExecuteMigration(error, migration.version));
        // The text is not static, but it comes from our migration.
        let drop = format!("drop index concurrently if exists workos.{index}");
        sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut *connection).await.map_err(failed)?;
        if !pending.contains(&title(migration)) {
            sqlx::raw_sql(migration.sql.clone()).execute(&mut *connection).await.map_err(failed)?;
            rebuilt.push(format!("index {index}"));
        }
    }
    Ok(rebuilt)
}

/// Checks that every index of our migrations is valid.
async fn check_indexes(connection: &mut PgConnection, migrator: &Migrator) -> Result<(), MigrationsError> {
    let invalid = invalid_indexes(connection).await?;
    let ours = invalid.iter().find(|name| migrator.iter().filter_map(index_of).any(|index| index == *name));
    let Some(index) = ours else { return Ok(()) };
    Err(MigrationsError::Migration(format!(
        "index workos.{index} is invalid although its migration succeeded; run `authkit-sync migrate` again to rebuild it"
    )))
}

async fn lock(connection: &mut PgConnection) -> Result<(), MigrationsError> {
    for _ in 0..LOCK_ATTEMPTS {
        let held = sqlx::query_scalar!(
            r#"-- migrations.lock
            select pg_try_advisory_lock($1) as "held!""#,
            LOCK
        )
        .fetch_one(&mut *connection)
        .await?;
        if held {
            return Ok(());
        }
        tokio::time::sleep(LOCK_PAUSE).await;
    }
    Err(MigrationsError::Locked)
}

/// Creates the schema if it is missing. `create schema if not exists` would need the privilege even if the schema exists.
async fn create_schema(connection: &mut PgConnection) -> Result<(), MigrationsError> {
    let present = sqlx::query_scalar!(
        r#"-- migrations.schema
        select to_regnamespace('workos') is not null as "present!""#
    )
    .fetch_one(&mut *connection)
    .await?;
    if !present {
        sqlx::query!("-- migrations.create_schema\ncreate schema workos").execute(connection).await?;
    }
    Ok(())
}

/// Explains the failure of a migration. PostgreSQL's message is about our own statements, so it contains no data.
fn explain(error: MigrateError) -> MigrationsError {
    MigrationsError::Migration(match error {
        MigrateError::ExecuteMigration(sqlx::Error::Database(database), version)
            if database.code().as_deref() == Some("42501") =>
        {
            format!("migration {version:04} failed: {}", StoreError::from(sqlx::Error::Database(database)))
        }
        MigrateError::VersionMismatch(version) => format!(
            "migration {version:04} was changed after this database applied it; install the release that applied it, or a newer one"
        ),
        MigrateError::Dirty(version) => format!(
            "migration {version:04} was interrupted; delete its row from {TABLE} and run `authkit-sync migrate` again"
        ),
        MigrateError::ExecuteMigration(sqlx::Error::Database(database), version) => format!(
            "migration {version:04} failed: {} (SQLSTATE {}); fix the cause and run `authkit-sync migrate` again",
            database.message(),
            database.code().unwrap_or_default()
        ),
        MigrateError::ExecuteMigration(error, version) => {
            format!("migration {version:04} failed: {}", StoreError::from(error))
        }
        MigrateError::Execute(error) => format!("migrations could not be run: {}", StoreError::from(error)),
        other => format!("migrations could not be run: {other}"),
    })
}
