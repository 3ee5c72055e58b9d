//! A login that the server has not accepted yet. It is used if the server refuses the current login before the next test.

use arc_swap::ArcSwapOption;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool};
use sqlx::{Connection, Postgres};
use tokio::sync::Mutex;

/// A login to use if the server refuses the current one. `Debug` does not show it.
#[derive(Default)]
pub(super) struct OfferedLogin {
    login: ArcSwapOption<PgConnectOptions>,
    /// Locked during a test, so that only one caller at a time tests the login.
    test: Mutex<()>,
}

impl std::fmt::Debug for OfferedLogin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OfferedLogin")
    }
}

impl OfferedLogin {
    pub(super) fn set(&self, login: Option<&PgConnectOptions>) {
        self.login.store(login.cloned().map(Into::into));
    }

    /// Takes a connection from the pool. If the server refuses the current login and accepts the offered one, the pool uses that
    /// from now on.
    pub(super) async fn acquire(&self, pool: &PgPool) -> Result<PoolConnection<Postgres>, sqlx::Error> {
        let outcome = pool.acquire().await;
        let Some(offered) = self.login.load_full() else { return outcome };
        if !outcome.as_ref().is_err_and(is_login_refused) {
            return outcome;
        }
        let _test = self.test.lock().await;
        // Boxed, because it is large and rare.
        if let Ok(connection) = Box::pin(PgConnection::connect_with(&offered)).await {
            pool.set_connect_options((*offered).clone());
            // An error when closing does not matter.
            let _ = connection.close().await;
        }
        pool.acquire().await
    }

    /// Opens a connection outside of a pool, with the offered login if the server refuses `login`.
    pub(super) async fn open(&self, login: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
        match (PgConnection::connect_with(login).await, self.login.load_full()) {
            (Err(error), Some(offered)) if is_login_refused(&error) => PgConnection::connect_with(&offered).await,
            (outcome, _) => outcome,
        }
    }
}

/// Returns whether the server refused the role or the password (`invalid_authorization_specification`, `invalid_password`).
fn is_login_refused(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| matches!(&*code, "28000" | "28P01"))
}
