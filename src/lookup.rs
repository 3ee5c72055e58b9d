//! Who is behind a token: the question every backend asks.

use std::sync::Arc;

use crate::domain::decide::Stored;
use crate::domain::user::User;
use crate::store::{Store, StoreError};
use crate::sync::progress::SyncProgress;
use crate::sync::read_through::{NotAsked, ReadThrough};
use crate::tokens::{Identity, TokenError, TokenVerifier};

/// Why there is no user to return.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// The token is refused, or no key to judge it by can be had.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The token is good, and its user has never been heard of.
    #[error("the token is valid, but its user is not here (yet)")]
    NotFound,
    /// The token is good, and whether its user exists cannot be known now: the first backfill has not completed, or WorkOS
    /// cannot be asked.
    #[error("the token is valid, but its user is not here yet; try again")]
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
    awaited: Option<SyncProgress>,
    /// Asks WorkOS about users who are not here.
    read_through: Option<ReadThrough>,
}

impl Lookups {
    /// Looks users up in `store` for the tokens that `tokens` accepts.
    #[must_use]
    pub fn new(store: Store, tokens: Arc<TokenVerifier>) -> Self {
        Self { store, tokens, awaited: None, read_through: None }
    }

    /// Until the backfill that `watch` tells of has completed, a user who is not here may yet come.
    #[must_use]
    pub(crate) fn awaiting_backfill(self, watch: Option<SyncProgress>) -> Self {
        Self { awaited: watch, ..self }
    }

    /// Users who are not here are asked about at WorkOS.
    #[must_use]
    pub(crate) fn reading_through(self, read_through: Option<ReadThrough>) -> Self {
        Self { read_through, ..self }
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
        let user = self.user(&identity.subject).await?;
        Ok((user, identity))
    }

    /// The live user with this id, read through from WorkOS where that is on and the user is not here.
    ///
    /// # Errors
    /// [`LookupError`], but none about a token.
    pub async fn user(&self, id: &str) -> Result<User, LookupError> {
        // PostgreSQL's text holds no NUL, so nobody has such an id.
        if id.contains('\0') {
            return Err(LookupError::NotFound);
        }
        match (self.store.user(id).await?, &self.read_through) {
            (Stored::Live { user, .. }, _) => Ok(*user),
            (Stored::Tombstone { .. }, _) => Err(LookupError::Deleted),
            (Stored::Absent, Some(read_through)) => match &*read_through.read(id).await? {
                Stored::Live { user, .. } => Ok((**user).clone()),
                Stored::Tombstone { .. } => Err(LookupError::Deleted),
                Stored::Absent => Err(LookupError::NotFound),
            },
            (Stored::Absent, None) if self.is_incomplete().await? => Err(LookupError::NotSynced),
            (Stored::Absent, None) => Err(LookupError::NotFound),
        }
    }

    /// A first backfill is to come and has not completed: what is not here may yet come.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn is_incomplete(&self) -> Result<bool, StoreError> {
        match &self.awaited {
            Some(watch) if !watch.progress().backfilled => Ok(!watch.refresh().await?.backfilled),
            _ => Ok(false),
        }
    }
}

impl From<NotAsked> for LookupError {
    fn from(_: NotAsked) -> Self {
        Self::NotSynced
    }
}
