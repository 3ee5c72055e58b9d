//! What can go wrong with the database, told apart by who must act.

use std::borrow::Cow;

use super::environment::Unfit;

/// A failed transaction or lookup; nothing was written. It shows SQLSTATE and constraint, never a value.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// PostgreSQL refuses this data and always will (SQLSTATE class 22 or 54): quarantine it.
    #[error("PostgreSQL refuses the data: SQLSTATE {sqlstate}")]
    Refused {
        /// PostgreSQL's five-character code.
        sqlstate: String,
    },
    /// Anything else: ours to mend and the caller's to try again.
    #[error("database unavailable: {0}")]
    Unavailable(Cow<'static, str>),
    /// It took longer than its timeout, or waited that long for a lock or a connection.
    #[error("database unavailable: {0}")]
    TimedOut(Cow<'static, str>),
    /// The database answers, and must not be served by this process.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// Another process has moved on since this one looked: what it was about to do is done, or is no longer right.
    #[error("another process has moved on meanwhile")]
    Overtaken,
    /// PostgreSQL asks for another try (40001 serialization failure, 40P01 deadlock).
    #[error("database unavailable: SQLSTATE {sqlstate} after every try")]
    Conflict {
        /// PostgreSQL's five-character code.
        sqlstate: String,
    },
}

impl StoreError {
    pub(super) fn late(_: tokio::time::error::Elapsed) -> Self {
        Self::TimedOut("timed out".into())
    }

    pub(super) fn wants_another_try(&self) -> bool {
        matches!(self, Self::Conflict { .. })
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let Some(database) = error.as_database_error() else {
            return Self::Unavailable(kind(&error).into());
        };
        let sqlstate = database.code().unwrap_or_default().into_owned();
        if sqlstate.starts_with("22") || sqlstate.starts_with("54") {
            Self::Refused { sqlstate }
        } else if sqlstate == "40001" || sqlstate == "40P01" {
            Self::Conflict { sqlstate }
        } else if sqlstate == "57014" || sqlstate == "55P03" {
            Self::TimedOut(format!("SQLSTATE {sqlstate}").into())
        } else {
            let constraint = database.constraint().map(|name| format!(", constraint {name}")).unwrap_or_default();
            Self::Unavailable(format!("SQLSTATE {sqlstate}{constraint}").into())
        }
    }
}

/// The kind of a failure that PostgreSQL did not report itself. The error's own text may quote values.
fn kind(error: &sqlx::Error) -> &'static str {
    match error {
        sqlx::Error::Io(_) => "connection lost or refused",
        sqlx::Error::Tls(_) => "TLS failed",
        sqlx::Error::PoolTimedOut => "no connection free in time",
        sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => "the pool is closed",
        sqlx::Error::Protocol(_) => "protocol error",
        sqlx::Error::Configuration(_) => "the connection's configuration is wrong",
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => "a value could not be decoded",
        _ => "unexpected driver error",
    }
}
