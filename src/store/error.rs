//! Errors of the database, distinguished by who must act.

use std::sync::Arc;

use sqlx::postgres::PgDatabaseError;

use super::failure::{self, DatabaseFailure};
use super::hosts::Wanted;
use super::place::Place;
use super::unfit::Unfit;

/// SQLSTATEs that `workos.check_client` raises: the database is bound to another client ID, or to none yet.
const OTHER_CLIENT: &str = "AK001";
const NO_CLIENT: &str = "AK002";

/// A failed transaction or lookup. Nothing was written. The message contains the address of the database, the SQLSTATE and names of
/// objects, never a value. It is for operators, not for callers.
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
    Unavailable(DatabaseFailure),
    /// The timeout ended the transaction, or the wait for a lock or a connection.
    #[error("database unavailable: {0}")]
    TimedOut(DatabaseFailure),
    /// The connection was lost, or the server is shutting down or read-only (for example the old primary after a failover).
    #[error("database unavailable: {0}")]
    Disconnected(DatabaseFailure),
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
    /// The standby has not replayed the mark that a read requires. Read the primary instead.
    #[error("the standby has not replayed the required changes; read the primary instead")]
    Behind,
    /// Too many writes wait for the database.
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
        Self::TimedOut(failure::late())
    }

    /// Adds the address of the database, if the error has none yet.
    pub(super) fn at(self, place: &Arc<Place>) -> Self {
        match self {
            Self::Unavailable(failure) => Self::Unavailable(failure.at(place)),
            Self::TimedOut(failure) => Self::TimedOut(failure.at(place)),
            Self::Disconnected(failure) => Self::Disconnected(failure.at(place)),
            other => other,
        }
    }

    /// Returns the failure of the database, if it is one.
    #[must_use]
    pub fn failure(&self) -> Option<&DatabaseFailure> {
        match self {
            Self::Unavailable(failure) | Self::TimedOut(failure) | Self::Disconnected(failure) => Some(failure),
            _ => None,
        }
    }

    /// Returns the error for a server that is a standby or was set to read-only.
    pub(super) fn read_only() -> Self {
        Self::Disconnected(failure::of_sqlstate("25006"))
    }

    /// Returns the error for a host that does not match `target_session_attrs`.
    pub(super) fn unwanted_host(wanted: Wanted) -> Self {
        if wanted == Wanted::Standby { Self::Disconnected(failure::no_standby()) } else { Self::read_only() }
    }

    /// The server did not answer a connection in time.
    pub(super) fn unanswered() -> Self {
        sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()).into()
    }

    /// None of the hosts can be used, each for its own reason.
    pub(super) fn of_hosts(mut reasons: Vec<Self>) -> Self {
        if reasons.len() == 1 {
            return reasons.remove(0);
        }
        let failure = failure::of_hosts(reasons.iter().filter_map(Self::failure));
        let is_lasting = reasons.iter().all(|reason| matches!(reason, Self::Unavailable(_)));
        if is_lasting { Self::Unavailable(failure) } else { Self::Disconnected(failure) }
    }

    /// Returns the error for a row that has changed since it was read, so that the transaction must be retried.
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
            let failure = failure::of_driver(&error);
            return match error {
                sqlx::Error::PoolTimedOut => Self::TimedOut(failure),
                sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => {
                    Self::Disconnected(failure)
                }
                _ => Self::Unavailable(failure),
            };
        };
        let sqlstate = database.code().unwrap_or_default().into_owned();
        let failure = failure::of_server(database, &sqlstate);
        match &*sqlstate {
            "40001" | "40P01" => Self::Conflict { sqlstate },
            "57014" | "55P03" => Self::TimedOut(failure),
            // Read-only transaction, shutdown, crash, cannot connect now.
            "25006" | "57P01" | "57P02" | "57P03" => Self::Disconnected(failure),
            OTHER_CLIENT => other_client(database),
            NO_CLIENT => Self::Unbound,
            class if class.starts_with("08") => Self::Disconnected(failure),
            class if class.starts_with("22") || class.starts_with("54") => Self::Refused { sqlstate },
            _ => Self::Unavailable(failure),
        }
    }
}

/// `workos.check_client` puts the recorded client ID into its message and the given one into its detail.
fn other_client(error: &dyn sqlx::error::DatabaseError) -> StoreError {
    let given = error.try_downcast_ref::<PgDatabaseError>().and_then(PgDatabaseError::detail).unwrap_or_default();
    Unfit::OtherClient { recorded: error.message().to_owned(), given: given.to_owned() }.into()
}
