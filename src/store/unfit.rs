//! Why a process must not serve a database.

/// Why this process must not serve the database. Each message says what to do.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Unfit {
    /// Migrations are pending.
    #[error("the database has pending migrations ({0}); run `authkit-sync migrate`, or start with `serve --migrate`")]
    Pending(String),
    /// A later migration removed something that this release reads.
    #[error(
        "the schema of the database is too new for this release: it requires schema version {wanted}, and this \
         release knows version {known}; install a newer release"
    )]
    TooNew {
        /// The schema version that the database requires.
        wanted: i64,
        /// The latest version that this release knows.
        known: i64,
    },
    /// The database belongs to another WorkOS environment.
    #[error(
        "the database belongs to the WorkOS client ID {recorded}, but WORKOS_CLIENT_ID is {given}; set DATABASE_URL \
         to the database of this environment, or, if the database was copied from the other environment, run \
         `authkit-sync rebind`"
    )]
    OtherClient {
        /// The client ID that the database is bound to.
        recorded: String,
        /// The configured client ID.
        given: String,
    },
    /// A connection pooler gives each statement another session.
    #[error(
        "DATABASE_URL is the address of a connection pooler in statement mode (PgBouncer with pool_mode = \
         statement), which allows no transactions; set pool_mode = transaction for this database in the \
         configuration of the pooler, or use the address of PostgreSQL itself"
    )]
    StatementPooler,
    /// WorkOS does not know the client ID.
    #[error(
        "WorkOS publishes no signing keys for the client ID {0}, so the database was not bound to it; copy \
         WORKOS_CLIENT_ID from the page API Keys of the WorkOS dashboard"
    )]
    UnknownClient(String),
}
