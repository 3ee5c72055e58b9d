//! The pending migrations as one SQL script, for a database administrator who runs them manually.

use sqlx::migrate::{Migration, Migrator};
use sqlx::postgres::PgPool;

use super::indexes::index_of;
use super::session::{LOCK, Session};
use super::{MigrationsError, status_of, title};
use crate::store::roles::{GRANTS, ROLES};

/// The statement that creates the table of applied migrations.
const TABLE: &str = include_str!("table.sql");

/// The privileges that a login of the service needs if another role owns the schema.
const SERVICE_GRANTS: [&str; 4] = [
    "grant usage on schema workos to",
    "grant select, insert, update, delete on all tables in schema workos to",
    "grant usage, select on all sequences in schema workos to",
    "grant execute on all functions in schema workos to",
];

/// Returns the script that brings the database to the state of `migrator`: pending migrations with their records, roles and grants.
/// The login of `pool` gets the rights of the service. Writes nothing.
///
/// # Errors
/// [`MigrationsError`]
pub async fn script(pool: &PgPool, migrator: &Migrator) -> Result<String, MigrationsError> {
    let (status, invalid) = status_of(pool, migrator).await?;
    let mut session = Session::open(pool).await?;
    let login = session.transaction(async |connection| {
        sqlx::query_scalar!("-- migrations.login\nselect quote_ident(current_user) as \"login!\"")
            .fetch_one(connection)
            .await
    });
    let login = login.await?;
    session.close().await?;
    Ok(text(migrator, &status.pending, &invalid, &login))
}

fn text(migrator: &Migrator, pending: &[String], invalid: &[String], login: &str) -> String {
    let mut text = format!(
        "-- Brings the schema `workos` to authkit-sync {}.\n\
         -- Run it with psql --set ON_ERROR_STOP=1 on PostgreSQL itself, not through a connection pooler, as a role that may create\n\
         -- the schema and roles. Always use the same role: it owns the objects.\n\
         -- Do not run it in one transaction: each migration has its own, and waits at most 2 seconds for a lock.\n\
         -- If it fails, earlier migrations stay applied. Then print a new script and run it.\n\
         set search_path = pg_catalog, pg_temp;\n\
         set statement_timeout = 0;\n\
         set lock_timeout = 0;\n\n\
         -- Refuses to run while another migration runs.\n\
         do $$ begin if not pg_try_advisory_lock({LOCK}) then raise exception 'another migration is running'; end if; end $$;\n\n\
         do $$ begin if to_regnamespace('workos') is null then create schema workos; end if; end $$;\n\
         {};\n",
        env!("CARGO_PKG_VERSION"),
        TABLE.trim_end()
    );
    for migration in migrator.iter() {
        let index = index_of(migration).filter(|index| invalid.iter().any(|it| it == index));
        let is_pending = pending.contains(&title(migration));
        if let Some(index) = index {
            text.push_str(&format!(
                "\n-- Its build was interrupted.\ndrop index concurrently if exists workos.{index};\n"
            ));
        }
        if is_pending || index.is_some() {
            text.push_str(&format!("\n-- Migration {}\n{}", title(migration), statements(migration, is_pending)));
        }
    }
    text.push_str("\n-- Roles of applications.\n");
    for (role, create) in ROLES {
        text.push_str(&format!("do $$ begin if to_regrole('{role}') is null then {create}; end if; end $$;\n"));
    }
    for grant in GRANTS {
        text.push_str(&format!("{grant};\n"));
    }
    text.push_str("\n-- The login of the service.\n");
    for grant in SERVICE_GRANTS {
        text.push_str(&format!("{grant} {login};\n"));
    }
    text.push_str(&format!(
        "\nselect pg_advisory_unlock({LOCK});\nreset search_path;\nreset statement_timeout;\nreset lock_timeout;\n"
    ));
    text
}

/// Returns the statements of a migration, and that of its record if it is pending. An index is built outside of a transaction.
fn statements(migration: &Migration, is_pending: bool) -> String {
    let sql = migration.sql.as_str().trim_end().trim_end_matches(';');
    let record = if is_pending { record(migration) } else { String::new() };
    if migration.no_tx { format!("{sql};\n{record}") } else { format!("begin;\n{sql};\n{record}commit;\n") }
}

fn record(migration: &Migration) -> String {
    format!(
        "insert into workos.migrations (version, description, success, checksum, execution_time)\n\
         values ({}, '{}', true, '\\x{}', 0);\n",
        migration.version,
        migration.description.replace('\'', "''"),
        hex::encode(&migration.checksum)
    )
}
