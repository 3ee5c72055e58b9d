//! Before a database is bound to a client ID, WorkOS must have shown that it knows that ID.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::store::fitness::ClientVerifier;
use crate::tokens::KeyCache;

/// WorkOS knows a client ID when it publishes signing keys for it.
#[derive(Debug)]
pub(crate) struct PublishedKeys(pub(crate) KeyCache);

impl ClientVerifier for PublishedKeys {
    fn is_known(&self) -> BoxFuture<'_, Result<bool, String>> {
        self.0.are_published().map(|known| known.map_err(|error| error.to_string())).boxed()
    }
}
