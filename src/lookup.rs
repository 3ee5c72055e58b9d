//! Who is behind a token: the question every backend asks.

use std::sync::Arc;

use crate::auth::{Identity, TokenError, TokenVerifier};
use crate::domain::decide::Stored;
use crate::domain::user::User;
use crate::store::{Store, StoreError};

/// Why there is no user to return.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// The token is refused, or no key to judge it by can be had.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The token is good, and its user has never been heard of.
    #[error("the token is valid, but its user is not here (yet)")]
    NotFound,
    /// The token is good, and its user was deleted at WorkOS.
    #[error("the token is valid, but its user was deleted at WorkOS")]
    Deleted,
    /// The database could not be asked.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Answers lookups: one signature check and one indexed statement each.
#[derive(Clone, Debug)]
pub struct Lookups {
    store: Store,
    tokens: Arc<TokenVerifier>,
}

impl Lookups {
    /// Looks users up in `store` for the tokens that `tokens` accepts.
    #[must_use]
    pub fn new(store: Store, tokens: Arc<TokenVerifier>) -> Self {
        Self { store, tokens }
    }

    /// The token's own claims, checked; no database is asked.
    ///
    /// # Errors
    /// [`TokenError`]
    pub async fn identity(&self, token: &str) -> Result<Identity, TokenError> {
        self.tokens.verify(token).await
    }

    /// The user behind the token, and the token's claims.
    ///
    /// # Errors
    /// [`LookupError`]
    pub async fn session(&self, token: &str) -> Result<(User, Identity), LookupError> {
        let identity = self.identity(token).await?;
        match self.store.user(&identity.subject).await? {
            Stored::Live { user, .. } => Ok((*user, identity)),
            Stored::Tombstone { .. } => Err(LookupError::Deleted),
            Stored::Absent => Err(LookupError::NotFound),
        }
    }
}
