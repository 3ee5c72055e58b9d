//! Errors of the database, distinguished by who must act.

use std::borrow::Cow;
use std::io::ErrorKind;

use sqlx::postgres::PgDatabaseError;

use super::unfit::Unfit;

/// SQLSTATEs that `workos.check_client` raises: the database is bound to another client ID, or to none yet.
const OTHER_CLIENT: &str = "AK001";
const NO_CLIENT: &str = "AK002";

/// A failed transaction or lookup. Nothing was written. The message contains the SQLSTATE and the constraint, never a value.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// PostgreSQL rejects the data, also on a retry (SQLSTATE class 22 or 54). An event with such data is quarantined.
    #[error("PostgreSQL rejected the data: SQLSTATE {sqlstate}")]
    Refused {
        /// PostgreSQL's five-character code.
        sqlstate: String,
    },
    /// Any other error of the database. The caller can retry.
    #[error("database unavailable: {0}")]
    Unavailable(Cow<'static, str>),
    /// The timeout ended the transaction, or the wait for a lock or a connection.
    #[error("database unavailable: {0}")]
    TimedOut(Cow<'static, str>),
    /// The connection was lost, or the server is shutting down or read-only (for example the old primary after a failover).
    #[error("database unavailable: {0}")]
    Disconnected(Cow<'static, str>),
    /// The database is not bound to a client ID yet, because WorkOS has been unreachable since the first start.
    #[error(
        "the database is not bound to a WorkOS environment yet, because WorkOS has been unreachable since the first start; retry"
    )]
    Unbound,
    /// This process must not serve the database.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// Another process changed the state after this one read it, so nothing was written.
    #[error("another process has changed the same row, so nothing was written; retry")]
    Overtaken,
    /// Too many writes wait already.
    #[error("too many writes wait for the database; retry")]
    Busy,
    /// Our code panicked. Nothing was written.
    #[error("authkit-sync panicked; this is a defect, please report it")]
    Panicked,
    /// A serialization failure (40001) or a deadlock (40P01).
    #[error("database unavailable: every attempt conflicted with another transaction (SQLSTATE {sqlstate})")]
    Conflict {
        /// PostgreSQL's five-character code.
        sqlstate: String,
    },
}

impl StoreError {
    /// The deadline passed.
    pub(crate) fn late(_: tokio::time::error::Elapsed) -> Self {
        Self::TimedOut("the request timed out".into())
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
                sqlx::Error::PoolTimedOut => Self::TimedOut(describe(&error).into()),
                sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => {
                    Self::Disconnected(describe(&error).into())
                }
                _ => Self::Unavailable(describe(&error).into()),
            };
        };
        let sqlstate = database.code().unwrap_or_default().into_owned();
        let constraint = database.constraint().map(|name| format!(", constraint {name}")).unwrap_or_default();
        let meaning = meaning(&sqlstate).map(|meaning| format!(": {meaning}")).unwrap_or_default();
        let text = format!("SQLSTATE {sqlstate}{constraint}{meaning}").into();
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

/// Says what an operator must know about a SQLSTATE. PostgreSQL's own message could contain values.
fn meaning(sqlstate: &str) -> Option<&'static str> {
    Some(match sqlstate {
        "28P01" => "the password is wrong",
        "28000" => "the role does not exist, or the server does not let it connect",
        "3D000" => "the database does not exist",
        "42501" => "the role lacks a privilege",
        "53100" => "the disk of the server is full",
        "53300" => "the server has too many connections",
        "25006" => "the server is read-only",
        "57P01" | "57P02" | "57P03" => "the server is starting or shutting down",
        "57014" => "the statement timed out",
        "55P03" => "the wait for a lock timed out",
        _ => return None,
    })
}

/// Describes an error that PostgreSQL did not report. The error's own message could contain values.
fn describe(error: &sqlx::Error) -> &'static str {
    match error {
        sqlx::Error::Io(error) if error.kind() == ErrorKind::ConnectionRefused => "the server refused the connection",
        sqlx::Error::Io(_) => "the connection was lost, or the server was not found",
        sqlx::Error::Tls(_) => "TLS failed",
        sqlx::Error::PoolTimedOut => "no connection of the pool became free in time",
        sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => "the pool is closed",
        sqlx::Error::Protocol(_) => "the server sent an unexpected message",
        sqlx::Error::Configuration(_) => "the configuration of the connection is wrong; check DATABASE_URL",
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => "a value could not be decoded",
        _ => "unexpected error of the database driver",
    }
}
