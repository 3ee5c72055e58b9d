//! Replaces the role and the password of pools while they are in use.
//!
//! New connections use the new login. An open connection is closed when it is next idle, so no statement is interrupted. The new
//! login is tested first, because a login that the server refuses would make every later connection fail.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection, Executor, Row};

use super::hosts::Hosts;
use super::place::address;
use super::pool::Pool;
use super::{Store, StoreError};

/// Why a login was not replaced.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoginError {
    /// It is not a login of the same database.
    #[error(
        "it names the database {given}, but this process serves {current}; restart the process to serve another database"
    )]
    OtherDatabase {
        /// Hosts, ports and name of the current database.
        current: String,
        /// Hosts, ports and name of the new one.
        given: String,
    },
    /// The server refused the login, or is unavailable.
    #[error("no connection to the database {database} could be opened with it: {error}")]
    Refused {
        /// Host, port and name of the database.
        database: String,
        /// Why.
        error: StoreError,
    },
    /// The new role cannot use the tables.
    #[error(
        "the role {role} lacks privileges on the tables of the schema workos; grant them as described in deploy/README.md"
    )]
    Privileges {
        /// The role.
        role: String,
    },
}

/// Replaces the login of every pool of these stores.
///
/// # Errors
/// [`LoginError`]. Then the pools keep the previous login. If the server refuses the previous login later, they use the new one.
pub(crate) async fn replace(stores: &[&Store], login: &Hosts, timeout: Duration) -> Result<(), LoginError> {
    let pools: Vec<&Pool> = stores.iter().flat_map(|store| [&store.writes, &store.lookups, &store.handlers]).collect();
    let mut tested = None;
    for pool in &pools {
        let (current, given) = (pool.places(), login.to_string());
        if current != given {
            return Err(LoginError::OtherDatabase { current, given });
        }
        pool.offer(Some(login));
        tested = tested.or(login.options().get(pool.resolver().latest()));
    }
    // There is at least one pool, and its hosts are the given ones.
    let Some(tested) = tested else { return Ok(()) };
    let refused = |error| LoginError::Refused { database: address(tested), error };
    let has_privileges =
        tokio::time::timeout(timeout, has_privileges(tested)).await.map_err(StoreError::late).map_err(refused)?;
    if !has_privileges.map_err(refused)? {
        withdraw(stores);
        return Err(LoginError::Privileges { role: tested.get_username().to_owned() });
    }
    for pool in &pools {
        pool.set_login(login);
    }
    for pool in pools {
        pool.close_idle().await;
    }
    Ok(())
}

/// Discards a login that was not accepted.
pub(crate) fn withdraw(stores: &[&Store]) {
    for pool in stores.iter().flat_map(|store| [&store.writes, &store.lookups, &store.handlers]) {
        pool.offer(None);
    }
}

/// Returns whether the role of a login can read and write every table of our schema.
async fn has_privileges(login: &PgConnectOptions) -> Result<bool, StoreError> {
    let mut connection = PgConnection::connect_with(login).await?;
    let row = connection
        .fetch_one(
            "-- login.has_privileges
             select coalesce(pg_catalog.bool_and(
                 pg_catalog.has_schema_privilege(c.relnamespace, 'usage')
                 and pg_catalog.has_table_privilege(c.oid, 'select')
                 and pg_catalog.has_table_privilege(c.oid, 'insert')
                 and pg_catalog.has_table_privilege(c.oid, 'update')
                 and pg_catalog.has_table_privilege(c.oid, 'delete')
             ), true)
             from pg_catalog.pg_class c
             join pg_catalog.pg_namespace n on n.oid = c.relnamespace
             where n.nspname = 'workos' and c.relkind in ('r', 'p')",
        )
        .await?;
    let has = row.try_get_unchecked(0)?;
    // An error when closing does not matter.
    let _ = connection.close().await;
    Ok(has)
}
