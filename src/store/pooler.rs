//! Is there a pooler that gives one session of PostgreSQL to several clients? (PgBouncer's transaction and statement modes.)
//!
//! Such a pooler breaks the driver: a prepared statement is parsed in one session and executed in another, which may know
//! another statement under its name. Only the simple protocol is used here, which such a pooler carries faithfully.

use sqlx::postgres::{PgConnection, PgPool};
use sqlx::{Connection, Executor, Row};

use super::StoreError;

/// Clients opened beside the first one. Each holds a session of its own, so that a pooler runs out of idle ones to offer and
/// has to give the first client's away.
const CLIENTS: usize = 3;

/// Whether two clients are served by one session while both are connected.
///
/// # Errors
/// [`StoreError`] when the database cannot be reached.
pub(super) async fn shares_sessions(pool: &PgPool) -> Result<bool, StoreError> {
    let options = pool.connect_options();
    let mut first = PgConnection::connect_with(&options).await?;
    let idle = session(&mut first).await?;
    let mut others = Vec::with_capacity(CLIENTS);
    let mut shared = false;
    while !shared && others.len() < CLIENTS {
        // A limit on connections is no reason to refuse: what could be asked was asked.
        let Ok(mut other) = PgConnection::connect_with(&options).await else { break };
        if other.execute("begin").await.is_err() {
            // Statement mode refuses transactions.
            shared = true;
            break;
        }
        shared = session(&mut other).await? == idle || session(&mut first).await? != idle;
        others.push(other);
    }
    for connection in others.into_iter().chain([first]) {
        // Nobody minds how they end.
        let _ = connection.close().await;
    }
    Ok(shared)
}

/// The process that serves this connection.
async fn session(connection: &mut PgConnection) -> Result<i32, StoreError> {
    let row = connection.fetch_one("select pg_catalog.pg_backend_pid()").await?;
    Ok(row.try_get_unchecked(0)?)
}
