//! What can go wrong with the database, told apart by who must act.

use std::borrow::Cow;

use sqlx::postgres::PgDatabaseError;

use super::unfit::Unfit;

/// What `workos.check_client` raises: for a database of another client ID, and for one of none yet.
const OTHER_CLIENT: &str = "AK001";
const NO_CLIENT: &str = "AK002";

/// A failed transaction or lookup; nothing was written. It shows SQLSTATE and constraint, never a value.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// PostgreSQL refuses this data and always will (SQLSTATE class 22 or 54): quarantine it.
    #[error("PostgreSQL refuses the data: SQLSTATE {sqlstate}")]
    Refused {
        /// PostgreSQL's five-character code.
        sqlstate: String,
    },
    /// Anything else: ours to mend and the caller's to retry.
    #[error("database unavailable: {0}")]
    Unavailable(Cow<'static, str>),
    /// It took longer than its timeout, or waited that long for a lock or a connection.
    #[error("database unavailable: {0}")]
    TimedOut(Cow<'static, str>),
    /// The connection is lost, or leads to a server that shuts down or cannot be written to (after a failover: the old
    /// primary).
    #[error("database unavailable: {0}")]
    Disconnected(Cow<'static, str>),
    /// The database belongs to no client ID yet: WorkOS has not been reached since the first start.
    #[error("the database is not bound to a WorkOS environment yet: WorkOS has not been reached since the first start")]
    Unbound,
    /// The database answers, and must not be served by this process.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// Another process has moved on since this one looked: what it was about to do is done, or is no longer right.
    #[error("another process has moved on meanwhile")]
    Overtaken,
    /// Too many writes wait already.
    #[error("too many writes wait for the database")]
    Busy,
    /// Our code panicked. Nothing was written.
    #[error("authkit-sync panicked; this is a defect, please report it")]
    Panicked,
    /// PostgreSQL asks for a retry (40001 serialization failure, 40P01 deadlock).
    #[error("database unavailable: SQLSTATE {sqlstate} at every attempt")]
    Conflict {
        /// PostgreSQL's five-character code.
        sqlstate: String,
    },
}

impl StoreError {
    pub(super) fn late(_: tokio::time::error::Elapsed) -> Self {
        Self::TimedOut("timed out".into())
    }

    /// What was read has changed, so that the transaction has to start over.
    pub(super) fn retry() -> Self {
        Self::Conflict { sqlstate: "40001".to_owned() }
    }

    pub(super) fn wants_retry(&self) -> bool {
        matches!(self, Self::Conflict { .. })
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let Some(database) = error.as_database_error() else {
            return match error {
                sqlx::Error::PoolTimedOut => Self::TimedOut(kind(&error).into()),
                sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => {
                    Self::Disconnected(kind(&error).into())
                }
                _ => Self::Unavailable(kind(&error).into()),
            };
        };
        let sqlstate = database.code().unwrap_or_default().into_owned();
        let constraint = database.constraint().map(|name| format!(", constraint {name}")).unwrap_or_default();
        let text = format!("SQLSTATE {sqlstate}{constraint}").into();
        match &*sqlstate {
            "40001" | "40P01" => Self::Conflict { sqlstate },
            "57014" | "55P03" => Self::TimedOut(text),
            // Read-only transaction, shutdown, crash, cannot connect now.
            "25006" | "57P01" | "57P02" | "57P03" => Self::Disconnected(text),
            OTHER_CLIENT => other_client(database),
            NO_CLIENT => Self::Unbound,
            class if class.starts_with("08") => Self::Disconnected(text),
            class if class.starts_with("22") || class.starts_with("54") => Self::Refused { sqlstate },
            _ => Self::Unavailable(text),
        }
    }
}

/// `workos.check_client` puts the recorded client ID into its message and the given one into its detail.
fn other_client(error: &dyn sqlx::error::DatabaseError) -> StoreError {
    let given = error.try_downcast_ref::<PgDatabaseError>().and_then(PgDatabaseError::detail).unwrap_or_default();
    Unfit::OtherClient { recorded: error.message().to_owned(), given: given.to_owned() }.into()
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
