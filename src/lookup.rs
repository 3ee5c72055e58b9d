//! Who is behind a token: the question every backend asks.

use std::sync::Arc;

use crate::auth::{Identity, TokenError, TokenVerifier};
use crate::domain::decide::Stored;
use crate::domain::user::User;
use crate::store::{Store, StoreError};
use crate::sync::progress::Watch;

/// Why there is no user to return.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// The token is refused, or no key to judge it by can be had.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The token is good, and its user has never been heard of.
    #[error("the token is valid, but its user is not here (yet)")]
    NotFound,
    /// The token is good, and whether its user exists is not known before the first backfill has completed.
    #[error("the token is valid, but its user is not here yet: the first backfill has not completed")]
    NotSynced,
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
    /// Where a first backfill is to come: whether it has.
    awaited: Option<Watch>,
}

impl Lookups {
    /// Looks users up in `store` for the tokens that `tokens` accepts.
    #[must_use]
    pub fn new(store: Store, tokens: Arc<TokenVerifier>) -> Self {
        Self { store, tokens, awaited: None }
    }

    /// Until the backfill that `watch` tells of has completed, a user who is not here may yet come.
    #[must_use]
    pub(crate) fn awaiting_backfill(self, watch: Option<Watch>) -> Self {
        Self { awaited: watch, ..self }
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
            Stored::Absent if self.backfill_is_awaited().await? => Err(LookupError::NotSynced),
            Stored::Absent => Err(LookupError::NotFound),
        }
    }

    async fn backfill_is_awaited(&self) -> Result<bool, StoreError> {
        match &self.awaited {
            Some(watch) if !watch.progress().backfilled => Ok(!watch.refresh().await?.backfilled),
            _ => Ok(false),
        }
    }
}
