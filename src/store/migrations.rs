//! The migrations of the schema: lists pending ones, and runs them safely on several replicas at the same time.

mod indexes;
pub mod script;
mod session;

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use sqlx::migrate::{MigrateError, Migration, Migrator};
use sqlx::postgres::PgPool;

use super::{DbConnection, StoreError};
pub(super) use indexes::invalid as invalid_indexes;
use session::RunLock;
pub(super) use session::Session;

/// The table of applied migrations. It is in our schema, apart from the application's tables.
const TABLE: &str = "workos.migrations";

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
        "another `authkit-sync migrate` has held the migration lock for a minute; wait for it, or, if none is \
         running, find the session that holds the advisory lock in pg_locks and end it"
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
    sqlx::migrate!()
}

fn title(migration: &Migration) -> String {
    format!("{:04} {}", migration.version, migration.description)
}

/// Returns the latest version that this release knows.
#[must_use]
pub fn newest() -> i64 {
    migrator().iter().map(|migration| migration.version).max().unwrap_or_default()
}

/// Compares the applied migrations with those of this release, and lists the invalid indexes. Writes nothing.
///
/// # Errors
/// [`StoreError`] if the database cannot be reached.
pub async fn status(pool: &PgPool) -> Result<(MigrationStatus, Vec<String>), StoreError> {
    status_of(pool, &migrator()).await
}

/// Compares the applied migrations with those of `migrator`; see [`status`].
///
/// # Errors
/// [`StoreError`] if the database cannot be reached.
pub async fn status_of(pool: &PgPool, migrator: &Migrator) -> Result<(MigrationStatus, Vec<String>), StoreError> {
    let mut session = Session::open(pool).await?;
    let read = session.transaction(async |connection| {
        Ok::<_, sqlx::Error>((read_status(connection, migrator).await?, invalid_indexes(connection).await?))
    });
    let status = read.await?;
    session.close().await?;
    Ok(status)
}

/// Compares the applied migrations with those of this release.
///
/// # Errors
/// Any error of sqlx.
pub(super) async fn current_status(connection: &mut DbConnection<'_>) -> Result<MigrationStatus, sqlx::Error> {
    read_status(connection, &migrator()).await
}

async fn read_status(connection: &mut DbConnection<'_>, migrator: &Migrator) -> Result<MigrationStatus, sqlx::Error> {
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
        MigrationsError::Database(error) => MigrationsError::Database(error.at(&session::place_of(pool))),
        other => other,
    })
}

async fn run_in_session(pool: &PgPool, migrator: &Migrator) -> Result<Vec<String>, MigrationsError> {
    let mut session = Session::open(pool).await?;
    // After a failure its connection is closed, which releases the lock.
    let mut lock = RunLock::take(pool).await?.ok_or(MigrationsError::Locked)?;
    session.transaction(create_schema).await?;
    let pending = pending(&mut session, migrator).await?;
    let is_pending = |migration: &Migration| pending.iter().any(|it| it.version == migration.version);
    let mut done = indexes::rebuild_invalid(&mut session, migrator, is_pending).await.map_err(explain)?;
    for migration in &pending {
        lock.check().await?;
        apply_with_retries(&mut session, migration).await.map_err(explain)?;
        done.push(title(migration));
    }
    if let Some(index) = indexes::first_invalid(&mut session, migrator).await.map_err(explain)? {
        return Err(MigrationsError::Migration(format!(
            "index workos.{index} is invalid although its migration succeeded; run `authkit-sync migrate` again to rebuild it"
        )));
    }
    lock.release().await?;
    session.close().await?;
    Ok(done)
}

/// Returns the migrations of `migrator` that are not applied, in order. Checks that the applied ones have not been changed.
async fn pending<'m>(session: &mut Session, migrator: &'m Migrator) -> Result<Vec<&'m Migration>, MigrationsError> {
    let rows = session.transaction(async |connection| {
        sqlx::query!("-- migrations.recorded\nselect version, checksum, success from workos.migrations")
            .fetch_all(connection)
            .await
    });
    let recorded: BTreeMap<i64, _> = rows.await?.into_iter().map(|row| (row.version, row)).collect();
    if let Some(row) = recorded.values().find(|row| !row.success) {
        return Err(explain(MigrateError::Dirty(row.version)));
    }
    let mut pending = Vec::new();
    for migration in migrator.iter() {
        match recorded.get(&migration.version) {
            None => pending.push(migration),
            Some(row) if row.checksum != *migration.checksum => {
                return Err(explain(MigrateError::VersionMismatch(migration.version)));
            }
            Some(_) => {}
        }
    }
    Ok(pending)
}

/// Applies a migration. Retries a migration that waited too long for a lock, or that PostgreSQL ended because of a deadlock,
/// because such a migration has changed nothing.
async fn apply_with_retries(session: &mut Session, migration: &Migration) -> Result<(), MigrateError> {
    for _ in 1..ATTEMPTS {
        match apply(session, migration).await {
            Err(MigrateError::ExecuteMigration(sqlx::Error::Database(error), version))
                if !migration.no_tx && error.code().is_some_and(|code| ["55P03", "40P01"].contains(&&*code)) =>
            {
                tracing::warn!(
                    version,
                    "the migration could not get a lock, because other transactions hold it; it is retried"
                );
                tokio::time::sleep(PAUSE).await;
            }
            outcome => return outcome,
        }
    }
    apply(session, migration).await
}

/// Applies a migration and records it, in one transaction unless the migration must not be in a transaction.
async fn apply(session: &mut Session, migration: &Migration) -> Result<(), MigrateError> {
    let failed = |error| MigrateError::ExecuteMigration(error, migration.version);
    let started = Instant::now();
    if migration.no_tx {
        session.alone(migration.sql.clone()).await.map_err(failed)?;
    }
    let applied = session.transaction(async |connection| {
        if !migration.no_tx {
            sqlx::raw_sql(migration.sql.clone()).execute(&mut *connection).await?;
        }
        sqlx::query!(
            "-- migrations.record
            insert into workos.migrations (version, description, success, checksum, execution_time)
            values ($1, $2, true, $3, $4)",
            migration.version,
            &*migration.description,
            &*migration.checksum,
            i64::try_from(started.elapsed().as_nanos()).unwrap_or(i64::MAX)
        )
        .execute(connection)
        .await
    });
    applied.await.map_err(failed)?;
    Ok(())
}

/// Creates the schema and the table of applied migrations if they are missing. `if not exists` would need the privilege even if
/// they exist. The login may lack it, because a database administrator can run the migrations.
async fn create_schema(connection: &mut DbConnection<'_>) -> Result<(), sqlx::Error> {
    let present = sqlx::query!(
        r#"-- migrations.schema
        select
            to_regnamespace('workos') is not null as "schema!",
            to_regclass('workos.migrations') is not null as "table!""#
    )
    .fetch_one(&mut *connection)
    .await?;
    if !present.schema {
        sqlx::query!("-- migrations.create_schema\ncreate schema workos").execute(&mut *connection).await?;
    }
    if present.table {
        return Ok(());
    }
    sqlx::query_file!("src/store/migrations/table.sql").execute(connection).await?;
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
