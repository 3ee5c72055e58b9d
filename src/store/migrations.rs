//! The schema's migrations: what is pending, and running them while other replicas try the same.

use std::collections::HashSet;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migration, Migrator};
use sqlx::postgres::{PgConnection, PgPool};
use sqlx::{AssertSqlSafe, Connection};

use super::unfit::Unfit;
use super::{StoreError, pooler};

/// Where applied migrations are recorded: inside our schema, so that nothing of the application's is touched.
const TABLE: &str = "workos.migrations";

/// The advisory lock that a run holds; the number is arbitrary and never changes.
const LOCK: i64 = 0x6175_7468_6B69_7401;

/// How long a run waits for another one, asking this often.
const LOCK_ATTEMPTS: u32 = 600;
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// What the database's migrations table says, beside what this release knows.
#[derive(Debug, Default)]
pub struct MigrationStatus {
    /// Applied and known, as `0001 users`.
    pub applied: Vec<String>,
    /// Known and not applied.
    pub pending: Vec<String>,
    /// Applied by a newer release.
    pub newer: Vec<i64>,
}

/// Why migrations could not be run.
#[derive(Debug, thiserror::Error)]
pub enum MigrationsError {
    /// The database could not be asked.
    #[error(transparent)]
    Database(#[from] StoreError),
    /// A migration failed or was found changed.
    #[error("{0}")]
    Migration(String),
    /// Another run holds the lock.
    #[error("another `migrate` has held the lock for a minute; if none is running, look for its session in pg_locks")]
    Locked,
}

impl From<sqlx::Error> for MigrationsError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error.into())
    }
}

/// The migrations of this release.
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

/// The newest version this release knows.
#[must_use]
pub fn newest() -> i64 {
    migrator().iter().map(|migration| migration.version).max().unwrap_or_default()
}

/// Compares what is applied with what this release knows. Writes nothing.
///
/// # Errors
/// Any of sqlx's.
pub async fn status(connection: &mut PgConnection) -> Result<MigrationStatus, sqlx::Error> {
    status_of(connection, &migrator()).await
}

/// Compares what is applied with the migrations of `migrator`; see [`status`].
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

/// How a session of migrations begins. What a migration binds to a constraint, an index or a default is what every later
/// statement runs, so no unqualified name may reach an object outside `pg_catalog`. Building an index takes longer than the
/// timeouts of other sessions allow; migrations set the timeout of their locks themselves.
const SESSION: &str = "set search_path = pg_catalog, pg_temp; set statement_timeout = 0; set lock_timeout = 0; \
     set idle_in_transaction_session_timeout = 0";

/// Opens a session for migrations: with settings of its own, and no part of the pool.
///
/// # Errors
/// [`StoreError`], also behind a pooler that shares sessions: there the settings and the lock of a run would stay behind in a
/// session of the application's.
pub async fn session(pool: &PgPool) -> Result<PgConnection, StoreError> {
    if pooler::shares_sessions(pool).await? {
        return Err(Unfit::TransactionPooler.into());
    }
    let mut connection = pool.acquire().await?.detach();
    sqlx::raw_sql(SESSION).execute(&mut connection).await?;
    Ok(connection)
}

/// Runs what is pending, waiting for any other run, and returns what it applied or rebuilt. Safe from any number of replicas
/// at once.
///
/// # Errors
/// [`MigrationsError`]; what was applied before the failure stays applied.
pub async fn run(pool: &PgPool) -> Result<Vec<String>, MigrationsError> {
    run_migrator(pool, &migrator()).await
}

/// Runs the pending migrations of `migrator`; see [`run`].
///
/// # Errors
/// [`MigrationsError`]; what was applied before the failure stays applied.
pub async fn run_migrator(pool: &PgPool, migrator: &Migrator) -> Result<Vec<String>, MigrationsError> {
    // A session's lock is released when the session ends: a failure cannot leave it held.
    let mut connection = session(pool).await?;
    lock(&mut connection).await?;
    create_schema(&mut connection).await?;
    let pending = status_of(&mut connection, migrator).await?.pending;
    let rebuilt = rebuild_invalid_indexes(&mut connection, migrator, &pending).await?;
    // sqlx's `run` does the same behind a trait whose future `tokio::spawn` does not accept.
    migrator.run_direct(None, &mut connection, false).await.map_err(explain)?;
    check_indexes(&mut connection, migrator).await?;
    connection.close().await?;
    Ok(rebuilt.into_iter().chain(pending).collect())
}

/// The index that a migration outside a transaction creates. A test checks that each such migration creates exactly one.
fn index_of(migration: &Migration) -> Option<&str> {
    let created = migration.sql.as_str().split_once("create index concurrently if not exists ")?.1;
    migration.no_tx.then_some(created)?.split_whitespace().next()
}

/// The indexes of the schema that PostgreSQL does not use, because their build was interrupted or has not ended.
///
/// # Errors
/// Any of sqlx's.
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

/// Drops what an interrupted `create index concurrently` left behind, because `if not exists` would accept it. sqlx records
/// nothing about a migration that failed outside a transaction, so a pending one builds its index again by itself. The index
/// of an applied one (an earlier release accepted an invalid index) is built here. Returns the rebuilt indexes.
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
        // Not static, but text of our own migration.
        let drop = format!("drop index concurrently if exists workos.{index}");
        sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut *connection).await.map_err(failed)?;
        if !pending.contains(&title(migration)) {
            sqlx::raw_sql(migration.sql.clone()).execute(&mut *connection).await.map_err(failed)?;
            rebuilt.push(format!("index {index}"));
        }
    }
    Ok(rebuilt)
}

/// A run has succeeded only when PostgreSQL uses every index that our migrations create.
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

/// Makes the schema unless it is there: `create schema if not exists` asks for the right to create one even then.
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

/// A migration's failure in our words; PostgreSQL's message is about our own statements and holds no data.
fn explain(error: MigrateError) -> MigrationsError {
    MigrationsError::Migration(match error {
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
