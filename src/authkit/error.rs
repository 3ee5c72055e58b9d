//! Why an [`AuthKit`](crate::AuthKit) could not be built, or stopped.

use crate::store::Unfit;
use crate::store::migrations::MigrationsError;

/// Why an [`AuthKit`](crate::AuthKit) could not be built.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BuildError(pub(super) String);

/// Why [`AuthKit::run`](crate::AuthKit::run) ended before its shutdown was requested.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// This process must not serve the database.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// Pending migrations could not be run.
    #[error(transparent)]
    Migrations(#[from] MigrationsError),
}
