//! Exit codes (after BSD's sysexits), and how errors map to them.

use std::fmt::Display;

use crate::authkit::RunError;
use crate::config::Problems;
use crate::store::StoreError;
use crate::store::migrations::MigrationsError;
use crate::sync::job::JobError;
use crate::workos::api::ApiError;

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Success, or a check passed.
    Yes = 0,
    /// A check failed, or the object was not found.
    No = 1,
    /// The command line is wrong.
    Usage = 64,
    /// The database, WorkOS or a port is unavailable.
    Unavailable = 69,
    /// A defect of authkit-sync.
    Defect = 70,
    /// The configuration is wrong.
    Config = 78,
}

/// A failed command: the message for the operator and the exit code.
#[derive(Debug)]
pub struct Failure {
    /// What failed, why, and what to do.
    pub message: String,
    /// The exit code.
    pub exit: Exit,
}

impl Failure {
    pub(super) fn new(exit: Exit, message: impl Display) -> Self {
        Self { message: message.to_string(), exit }
    }

    pub(super) fn unavailable(message: impl Display) -> Self {
        Self::new(Exit::Unavailable, message)
    }

    pub(super) fn defect(message: impl Display) -> Self {
        Self::new(Exit::Defect, message)
    }
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        Self::new(Exit::Config, format!("the configuration is wrong; correct these settings:\n{problems}"))
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unfit(_) => Self::new(Exit::Config, error),
            _ => Self::unavailable(error),
        }
    }
}

impl From<JobError> for Failure {
    fn from(error: JobError) -> Self {
        let exit = match error {
            JobError::Store(error) => return error.into(),
            JobError::Api(ApiError::KeyRefused { .. }) | JobError::NameTaken(_) => Exit::Config,
            JobError::WrongKey { .. }
            | JobError::NotConfirmed
            | JobError::TooMany { .. }
            | JobError::EmptyList { .. } => Exit::No,
            JobError::Api(_)
            | JobError::Paused { .. }
            | JobError::Endless
            | JobError::CursorRejected
            | JobError::NewestFirst => Exit::Unavailable,
        };
        Self::new(exit, error)
    }
}

impl From<MigrationsError> for Failure {
    fn from(error: MigrationsError) -> Self {
        match error {
            MigrationsError::Database(error) => error.into(),
            // A missing privilege or a changed schema: a retry cannot succeed.
            MigrationsError::Migration(_) => Self::new(Exit::Config, error),
            MigrationsError::Locked => Self::new(Exit::Unavailable, error),
        }
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Unfit(_) => Self::new(Exit::Config, error),
            RunError::Migrations(error) => error.into(),
        }
    }
}
