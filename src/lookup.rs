//! Looks up the user of an access token, or a user by ID.

use std::sync::Arc;

use crate::domain::decide::Stored;
use crate::domain::user::User;
use crate::store::users::GroupedReads;
use crate::store::{Store, StoreError};
use crate::sync::progress::SyncProgress;
use crate::sync::read_through::{ReadThrough, WorkosUnreachable};
use crate::tokens::{Identity, TokenError, TokenVerifier};

/// Why a lookup returned no user.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// The token is rejected, or the keys to verify it are unavailable.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The token is valid, and its user is unknown.
    #[error("the token is valid, but its user is not synced (perhaps not yet)")]
    NotFound,
    /// The token is valid, and the user is not synced yet: the first backfill has not completed, or WorkOS is unreachable.
    #[error("the token is valid, but its user is not synced yet; retry")]
    NotSynced,
    /// The token is valid, and its user was deleted at WorkOS.
    #[error("the token is valid, but its user was deleted at WorkOS")]
    Deleted,
    /// The database request failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Answers lookups, each with one signature check and one indexed read. Concurrent lookups share a statement.
#[derive(Clone, Debug)]
pub struct Lookups {
    users: GroupedReads,
    tokens: Arc<TokenVerifier>,
    /// The progress of the sync, if a first backfill is enabled.
    awaited: Option<SyncProgress>,
    /// Requests missing users from WorkOS.
    read_through: Option<ReadThrough>,
}

impl Lookups {
    /// Creates lookups in `store` for the tokens that `tokens` accepts.
    #[must_use]
    pub fn new(store: Store, tokens: Arc<TokenVerifier>) -> Self {
        Self { users: GroupedReads::new(store), tokens, awaited: None, read_through: None }
    }

    /// Enables [`LookupError::NotSynced`]: until the first backfill has completed, a missing user may still be synced.
    #[must_use]
    pub(crate) fn awaiting_backfill(self, progress: Option<SyncProgress>) -> Self {
        Self { awaited: progress, ..self }
    }

    /// Enables read-through: missing users are requested from WorkOS.
    #[must_use]
    pub(crate) fn reading_through(self, read_through: Option<ReadThrough>) -> Self {
        Self { read_through, ..self }
    }

    /// Verifies the token and returns its claims. The database is not used.
    ///
    /// # Errors
    /// [`TokenError`]
    pub async fn identity(&self, token: &str) -> Result<Identity, TokenError> {
        self.tokens.verify(token).await
    }

    /// Returns the user and the claims of the token.
    ///
    /// # Errors
    /// [`LookupError`]
    pub async fn session(&self, token: &str) -> Result<(User, Identity), LookupError> {
        let identity = self.identity(token).await?;
        let user = self.user(&identity.subject).await?;
        Ok((user, identity))
    }

    /// Returns the live user of the token.
    ///
    /// # Errors
    /// [`LookupError`]
    pub async fn auth_user(&self, token: &str) -> Result<User, LookupError> {
        let subject = self.tokens.subject(token).await?;
        self.user(&subject).await
    }

    /// Returns the live user with this ID. If read-through is enabled, a missing user is requested from WorkOS.
    ///
    /// # Errors
    /// [`LookupError`], except [`LookupError::Token`].
    pub async fn user(&self, id: &str) -> Result<User, LookupError> {
        // PostgreSQL cannot store NUL, so no user has such an ID.
        if id.contains('\0') {
            return Err(LookupError::NotFound);
        }
        match (self.users.read(id.to_owned()).await?, &self.read_through) {
            (Stored::Live { object: user, .. }, _) => Ok(*user),
            (Stored::Tombstone { .. }, _) => Err(LookupError::Deleted),
            (Stored::Absent, Some(read_through)) => match &*read_through.read(id).await? {
                Stored::Live { object: user, .. } => Ok((**user).clone()),
                Stored::Tombstone { .. } => Err(LookupError::Deleted),
                Stored::Absent => Err(LookupError::NotFound),
            },
            (Stored::Absent, None) if self.is_incomplete().await? => Err(LookupError::NotSynced),
            (Stored::Absent, None) => Err(LookupError::NotFound),
        }
    }

    /// Returns true if the first backfill has not completed, so that a missing user can still appear.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn is_incomplete(&self) -> Result<bool, StoreError> {
        match &self.awaited {
            Some(progress) if !progress.progress().backfilled => Ok(!progress.refresh().await?.backfilled),
            _ => Ok(false),
        }
    }
}

impl From<WorkosUnreachable> for LookupError {
    fn from(_: WorkosUnreachable) -> Self {
        Self::NotSynced
    }
}
