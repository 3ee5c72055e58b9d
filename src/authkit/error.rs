//! Why an [`AuthKit`](crate::AuthKit) could not be built, or stopped.

use crate::store::Unfit;
use crate::store::migrations::MigrationsError;

/// Why an [`AuthKit`](crate::AuthKit) could not be built.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BuildError(pub(super) String);

/// Why a secret was not replaced. The previous one stays in use. The text does not contain the secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The new secret can never be used.
    #[error("{0}")]
    Invalid(String),
    /// The database or WorkOS does not accept the new secret, or cannot be reached. A retry can succeed.
    #[error("{0}")]
    NotAccepted(String),
}

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
