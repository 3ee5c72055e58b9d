//! Why an [`AuthKit`](crate::AuthKit) could not be built, or stopped.

use crate::store::fitness::Unfit;
use crate::store::migrations::MigrationsError;

/// Why an [`AuthKit`](crate::AuthKit) could not be built.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BuildError(pub(super) String);

/// Why [`AuthKit::run`](crate::AuthKit::run) ended before it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The database answered, and must not be served by this process.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// Pending migrations were to be run first, and could not be.
    #[error(transparent)]
    Migrations(#[from] MigrationsError),
}
