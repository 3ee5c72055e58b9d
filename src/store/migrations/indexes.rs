//! Indexes that a migration builds outside of a transaction: a build that was interrupted leaves an invalid index.

use sqlx::migrate::{MigrateError, Migration, Migrator};
use sqlx::{AssertSqlSafe, SqlSafeStr};

use super::session::Session;
use crate::store::connection::DbConnection;

/// Returns the index that a migration outside of a transaction creates. A test checks that each one creates exactly one index.
pub(super) fn index_of(migration: &Migration) -> Option<&str> {
    let created = migration.sql.as_str().split_once("create index concurrently if not exists ")?.1;
    migration.no_tx.then_some(created)?.split_whitespace().next()
}

/// Returns the invalid indexes of the schema. Their build was interrupted, or is still running.
///
/// # Errors
/// Any error of sqlx.
pub(in crate::store) async fn invalid(connection: &mut DbConnection<'_>) -> Result<Vec<String>, sqlx::Error> {
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
pub(super) async fn rebuild_invalid(
    session: &mut Session,
    migrator: &Migrator,
    is_pending: impl Fn(&Migration) -> bool,
) -> Result<Vec<String>, MigrateError> {
    let invalid = session.transaction(invalid).await?;
    let mut rebuilt = Vec::new();
    for migration in migrator.iter() {
        let Some(index) = index_of(migration).filter(|index| invalid.iter().any(|it| it == index)) else { continue };
        let failed = |error| MigrateError::ExecuteMigration(error, migration.version);
        // The text is not static, but it comes from our migration.
        let drop = AssertSqlSafe(format!("drop index concurrently if exists workos.{index}"));
        session.alone(drop.into_sql_str()).await.map_err(failed)?;
        if !is_pending(migration) {
            session.alone(migration.sql.clone()).await.map_err(failed)?;
            rebuilt.push(format!("index {index}"));
        }
    }
    Ok(rebuilt)
}

/// Returns an invalid index of our migrations, if there is one.
pub(super) async fn first_invalid(session: &mut Session, migrator: &Migrator) -> Result<Option<String>, MigrateError> {
    let invalid = session.transaction(invalid).await?;
    Ok(invalid.into_iter().find(|name| migrator.iter().filter_map(index_of).any(|index| index == *name)))
}
