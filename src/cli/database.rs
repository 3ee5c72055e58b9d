//! Opens the database for the commands other than `serve`.

use std::sync::Arc;

use super::{Exit, Failure};
use crate::authkit::binding::PublishedKeys;
use crate::config::{self, Database, Environment, Source};
use crate::domain::clock::Clock;
use crate::store::{Pool, Store};
use crate::tokens::{HttpKeySource, KeyCache};

/// Connections of one command: for its work, and for the lease that it renews at the same time.
const CONNECTIONS: u32 = 4;

/// Creates a pool. It connects at first use.
pub(super) fn pool(database: &Database) -> Pool {
    Pool::connect(database.hosts.clone(), CONNECTIONS, database.timeout)
}

/// Opens the database for a command that works with any WorkOS environment.
pub(super) fn store_of_any_client(source: &Source) -> Result<Store, Failure> {
    let database = config::database(source)?;
    Ok(Store::of_any_client(pool(&database), database.timeout))
}

/// Opens the database of an environment.
pub(super) fn store_of_client(database: &Database, environment: &Environment) -> Store {
    let pool = pool(database);
    Store::new(pool.clone(), pool, &environment.client_id, database.timeout)
}

/// Opens the database of an environment. Before the database is bound to the client ID, WorkOS must know that ID.
pub(super) fn store_of_known_client(source: &Source, environment: &Environment) -> Result<Store, Failure> {
    let keys = HttpKeySource::of_client(&environment.client_id, &environment.api_base);
    let keys = keys.map_err(|error| Failure::new(Exit::Config, error))?;
    let verifier = PublishedKeys(KeyCache::new(Arc::new(keys), Clock::system()));
    Ok(store_of_client(&config::database(source)?, environment).verifying_client(Arc::new(verifier)))
}
