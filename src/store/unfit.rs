//! Why a database must not be served.

/// Why this process must not serve this database. Each names the way out.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Unfit {
    /// Migrations are pending.
    #[error("the database has pending migrations ({0}); run `authkit-sync migrate`, or start with `serve --migrate`")]
    Pending(String),
    /// A contract migration took away what this release reads.
    #[error(
        "the database's schema is too new for this release: it asks for version {wanted}, this release knows {known}; install a newer release"
    )]
    TooNew {
        /// The oldest schema version that can still read it.
        wanted: i64,
        /// The newest this release knows.
        known: i64,
    },
    /// Another environment's users live here.
    #[error(
        "this database belongs to WorkOS client {recorded}, but WORKOS_CLIENT_ID is {given}; point DATABASE_URL at this environment's own database, or, if this one was copied from the other environment, run `authkit-sync rebind`"
    )]
    OtherClient {
        /// The client ID recorded at the first start.
        recorded: String,
        /// The one configured now.
        given: String,
    },
    /// A pooler between us and PostgreSQL shares one session among several clients.
    #[error(
        "DATABASE_URL leads to a connection pooler in transaction or statement mode (such as PgBouncer with pool_mode = transaction), which this release does not support: results of statements can be mixed up there; use PostgreSQL's own address, or one with pool_mode = session"
    )]
    TransactionPooler,
    /// WorkOS does not know the client ID.
    #[error(
        "WorkOS publishes no signing keys for the client ID {0}, so nothing was recorded; copy WORKOS_CLIENT_ID from the API Keys page of the WorkOS dashboard"
    )]
    UnknownClient(String),
}
