//! Checks that WorkOS knows a client ID before a database is bound to it.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::store::fitness::ClientVerifier;
use crate::tokens::KeyCache;

/// Verifies a client ID: WorkOS knows it if it publishes signing keys for it.
#[derive(Debug)]
pub(crate) struct PublishedKeys(pub(crate) KeyCache);

impl ClientVerifier for PublishedKeys {
    fn is_known(&self) -> BoxFuture<'_, Result<bool, String>> {
        self.0.are_published().map(|known| known.map_err(|error| error.to_string())).boxed()
    }
}
