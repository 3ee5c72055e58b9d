//! The schema's migrations: what is pending, and running them while other replicas try the same.

use std::collections::HashSet;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnection, PgPool};

/// Where applied migrations are recorded: inside our schema, so that nothing of the application's is touched.
const TABLE: &str = "workos.migrations";

/// The advisory lock that a run holds; the number is arbitrary and never changes.
const LOCK: i64 = 0x6175_7468_6B69_7401;

/// How long a run waits for another one, asking this often.
const LOCK_ATTEMPTS: u32 = 600;
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// What the database's migrations table says, beside what this release knows.
#[derive(Debug, Default)]
pub struct Status {
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
    Database(#[from] super::StoreError),
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

fn migrator() -> Migrator {
    let mut migrator = sqlx::migrate!();
    migrator.dangerous_set_table_name(TABLE);
    // sqlx waits inside its lock statement; that statement's snapshot keeps `create index concurrently` of the run that
    // holds the lock waiting for us. We try and sleep instead.
    migrator.set_locking(false);
    // A newer release may have been here already; its migrations are not ours to judge.
    migrator.set_ignore_missing(true);
    migrator
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
pub async fn status(connection: &mut PgConnection) -> Result<Status, sqlx::Error> {
    let present = sqlx::query_scalar!(
        r#"-- migrations.present
        select to_regclass('workos.migrations') is not null as "present!""#
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
    let mut status = Status::default();
    let migrator = migrator();
    for migration in migrator.iter() {
        let name = format!("{:04} {}", migration.version, migration.description);
        if applied.contains(&migration.version) { &mut status.applied } else { &mut status.pending }.push(name);
    }
    status.newer = applied.into_iter().filter(|version| !migrator.version_exists(*version)).collect();
    status.newer.sort_unstable();
    Ok(status)
}

/// Runs what is pending, waiting for any other run, and returns what it applied. Safe from any number of replicas at once.
///
/// # Errors
/// [`MigrationsError`]; what was applied before the failure stays applied.
pub async fn run(pool: &PgPool) -> Result<Vec<String>, MigrationsError> {
    // A session's lock is gone when the session is: detached from the pool, so that a failure cannot leave it held.
    let mut connection = pool.acquire().await?.detach();
    lock(&mut connection).await?;
    create_schema(&mut connection).await?;
    let pending = status(&mut connection).await?.pending;
    // `run` is this behind a trait that makes the future unfit for `tokio::spawn`.
    migrator().run_direct(None, &mut connection, false).await.map_err(explain)?;
    sqlx::Connection::close(connection).await?;
    Ok(pending)
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
            "migration {version:04} was interrupted; drop the index it left invalid, delete its row from {TABLE} and run `authkit-sync migrate` again"
        ),
        MigrateError::ExecuteMigration(sqlx::Error::Database(database), version) => format!(
            "migration {version:04} failed: {} (SQLSTATE {}); nothing of it was kept, run `authkit-sync migrate` again once that is mended",
            database.message(),
            database.code().unwrap_or_default()
        ),
        MigrateError::ExecuteMigration(error, version) => {
            format!("migration {version:04} failed: {}", super::StoreError::from(error))
        }
        MigrateError::Execute(error) => format!("migrations could not be run: {}", super::StoreError::from(error)),
        other => format!("migrations could not be run: {other}"),
    })
}
