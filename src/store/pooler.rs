//! Detects a connection pooler that shares one PostgreSQL session among several clients (transaction and statement mode of
//! PgBouncer).
//!
//! Such a pooler breaks the driver: a prepared statement is parsed in one session and executed in another, which may have a
//! different statement with the same name. The detection uses only the simple protocol, which works with such a pooler.

use std::sync::Arc;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool};
use sqlx::{Connection, Executor, Row};

use super::StoreError;
use super::failure::Place;

/// Number of connections beside the first one. Each uses a session, so a pooler has no other idle session and must share the
/// first one.
const CLIENTS: usize = 3;

/// Returns whether two open connections share one session.
///
/// # Errors
/// [`StoreError`] if the database cannot be reached.
pub(super) async fn shares_sessions(pool: &PgPool) -> Result<bool, StoreError> {
    let options = pool.connect_options();
    shares_sessions_with(&options).await.map_err(|error| error.at(&Arc::new(Place::of(&options))))
}

async fn shares_sessions_with(options: &PgConnectOptions) -> Result<bool, StoreError> {
    let mut first = PgConnection::connect_with(options).await?;
    let idle = session(&mut first).await?;
    let mut others = Vec::with_capacity(CLIENTS);
    let mut shared = false;
    while !shared && others.len() < CLIENTS {
        // The limit of connections may be reached. Then the result is based on the connections so far.
        let Ok(mut other) = PgConnection::connect_with(options).await else { break };
        if other.execute("begin").await.is_err() {
            // Statement mode rejects transactions.
            shared = true;
            break;
        }
        shared = session(&mut other).await? == idle || session(&mut first).await? != idle;
        others.push(other);
    }
    for connection in others.into_iter().chain([first]) {
        // An error when closing does not matter.
        let _ = connection.close().await;
    }
    Ok(shared)
}

/// Returns the process ID of the server process of this connection.
async fn session(connection: &mut PgConnection) -> Result<i32, StoreError> {
    let row = connection.fetch_one("select pg_catalog.pg_backend_pid()").await?;
    Ok(row.try_get_unchecked(0)?)
}
