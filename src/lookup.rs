//! Looks up who is behind an access token: the user, and what the user may do in the token's organization.

use std::sync::Arc;

use crate::domain::decide::Stored;
use crate::domain::kinds::Kinds;
use crate::domain::membership::{self, Membership};
use crate::domain::organization::Organization;
use crate::domain::user::User;
use crate::store::catch_up::Progress;
use crate::store::lookups::{Caller, GroupedReads, Member, MemberKey};
use crate::store::{Store, StoreError};
use crate::sync::progress::SyncProgress;
use crate::sync::read_through::{Answer, ReadThrough, Wanted, WorkosUnreachable};
use crate::tokens::{Identity, TokenError, TokenVerifier};

/// Why a lookup returned no user.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// The token is rejected, or the keys to verify it are unavailable.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The token is valid, and its user is unknown.
    #[error("the token is valid, but its user is not in the database; retry if the user has just signed up")]
    NotFound,
    /// The token is valid, and the user is not synced yet: the first backfill has not completed, or WorkOS is unreachable.
    #[error("the token is valid, but its user is not synced yet; retry")]
    NotSynced,
    /// The token is valid, and its user was deleted at WorkOS.
    #[error("the token is valid, but its user was deleted at WorkOS")]
    Deleted,
    /// The token is valid, and WorkOS has revoked its session.
    #[error("the token is valid, but its session was revoked at WorkOS; sign in again")]
    SessionRevoked,
    /// The token is valid, and its user is not an active member of its organization.
    #[error("the token is valid, but its user is not an active member of its organization")]
    MembershipInactive,
    /// The token is valid, and its organization was deleted at WorkOS.
    #[error("the token is valid, but its organization was deleted at WorkOS")]
    OrganizationDeleted,
    /// The token is valid, and the membership is not synced yet: the first backfill has not completed, or WorkOS is unreachable.
    #[error("the token is valid, but the membership of its user is not synced yet; retry")]
    MembershipsNotSynced,
    /// The database request failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The user of a token, and what the user may currently do in the token's organization, according to the database.
#[derive(Clone, Debug)]
pub struct Session {
    /// The live user.
    pub user: User,
    /// The claims of the token.
    pub identity: Identity,
    /// The token's organization. `None` if the token has none, or if memberships are not synced.
    pub organization: Option<Organization>,
    /// The active membership of the user in the organization.
    pub membership: Option<Membership>,
    /// The slugs of the membership's roles.
    pub roles: Vec<String>,
    /// The slugs of the permissions of these roles, in order.
    pub permissions: Vec<String>,
}

/// Answers lookups, each with one signature check and one indexed read. Concurrent lookups share a statement.
#[derive(Clone, Debug)]
pub struct Lookups {
    store: Store,
    reads: GroupedReads,
    tokens: Arc<TokenVerifier>,
    kinds: Kinds,
    /// Whether lookups check the membership in the token's organization. This needs an API key: without one, a membership that no
    /// event has delivered yet looks the same as one that does not exist.
    checks_memberships: bool,
    /// The progress of the sync, if a first backfill is enabled.
    awaited: Option<SyncProgress>,
    /// Requests missing objects from WorkOS.
    read_through: Option<ReadThrough>,
}

impl Lookups {
    /// Creates lookups in `store` for the tokens that `tokens` accepts.
    #[must_use]
    pub fn new(store: Store, tokens: Arc<TokenVerifier>, kinds: Kinds) -> Self {
        let reads = GroupedReads::new(store.clone());
        Self { store, reads, tokens, kinds, checks_memberships: false, awaited: None, read_through: None }
    }

    /// Enables the check of the membership in the token's organization.
    #[must_use]
    pub(crate) fn checking_memberships(self, is_possible: bool) -> Self {
        Self { checks_memberships: is_possible && self.kinds.memberships, ..self }
    }

    /// Returns whether a session contains the membership in the token's organization.
    #[must_use]
    pub(crate) fn checks_memberships(&self) -> bool {
        self.checks_memberships
    }

    /// Enables [`LookupError::NotSynced`]: until the first backfill has completed, a missing user may still be synced.
    #[must_use]
    pub(crate) fn awaiting_backfill(self, progress: Option<SyncProgress>) -> Self {
        Self { awaited: progress, ..self }
    }

    /// Enables read-through: missing objects are requested from WorkOS.
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

    /// Returns who is behind the token, and what the user may do in the token's organization.
    ///
    /// # Errors
    /// [`LookupError`]
    pub async fn session(&self, token: &str) -> Result<Session, LookupError> {
        let identity = self.identity(token).await?;
        match identity.organization_id.clone().filter(|_| self.checks_memberships) {
            Some(organization_id) => self.member(identity, organization_id).await,
            None => {
                let user = self.caller(&identity.subject, Some(&identity.session_id)).await?;
                let (roles, permissions) = (Vec::new(), Vec::new());
                Ok(Session { user, identity, organization: None, membership: None, roles, permissions })
            }
        }
    }

    /// Returns the live user of the token.
    ///
    /// # Errors
    /// [`LookupError`]
    pub async fn auth_user(&self, token: &str) -> Result<User, LookupError> {
        let (subject, session_id) = self.tokens.subject_and_session(token).await?;
        self.caller(&subject, Some(&session_id)).await
    }

    /// Returns up to `limit` memberships of the token's user, in ID order after the membership ID `after`. It returns those that
    /// have not ended, in any status. Each has the name of its organization, unless the organization is not synced yet.
    ///
    /// # Errors
    /// [`LookupError`]
    pub async fn memberships(
        &self,
        token: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<(Membership, Option<String>)>, LookupError> {
        let user = self.auth_user(token).await?;
        if self.are_organizations_incomplete(true).await? {
            return Err(LookupError::MembershipsNotSynced);
        }
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        Ok(self.store.memberships_of_user(&user.id, after, limit).await?)
    }

    /// Returns the live user with this ID. If read-through is enabled, a missing user is requested from WorkOS.
    ///
    /// # Errors
    /// [`LookupError`], except [`LookupError::Token`].
    pub async fn user(&self, id: &str) -> Result<User, LookupError> {
        self.caller(id, None).await
    }

    /// Returns the live user with this ID, unless the session was revoked.
    async fn caller(&self, id: &str, session_id: Option<&str>) -> Result<User, LookupError> {
        // PostgreSQL cannot store NUL, so no user has such an ID.
        if id.contains('\0') {
            return Err(LookupError::NotFound);
        }
        let session_id = session_id.filter(|id| self.kinds.sessions && !id.contains('\0'));
        let read = || self.reads.caller(id.to_owned(), session_id.map(str::to_owned));
        let mut caller = read().await?;
        if matches!(caller.user, Stored::Absent) {
            self.read_user_through(id).await?;
            caller = read().await?;
        }
        let Caller { user, is_revoked } = caller;
        live(user, is_revoked)
    }

    /// Requests a user that the table does not contain from WorkOS.
    async fn read_user_through(&self, id: &str) -> Result<(), LookupError> {
        match &self.read_through {
            Some(read_through) => match read_through.read(Wanted::User(id.to_owned())).await {
                Ok(Answer::Stored) => Ok(()),
                Ok(Answer::Unknown) => Err(LookupError::NotFound),
                Err(WorkosUnreachable) => Err(LookupError::NotSynced),
            },
            None if self.is_incomplete().await? => Err(LookupError::NotSynced),
            None => Err(LookupError::NotFound),
        }
    }

    /// Returns the user of the token as a member of the token's organization.
    async fn member(&self, identity: Identity, organization_id: String) -> Result<Session, LookupError> {
        if [&identity.subject, &identity.session_id, &organization_id].iter().any(|id| id.contains('\0')) {
            return Err(LookupError::NotFound);
        }
        let key = MemberKey {
            user_id: identity.subject.clone(),
            organization_id,
            session_id: self.kinds.sessions.then(|| identity.session_id.clone()),
        };
        let mut member = self.reads.member(key.clone()).await?;
        if matches!(member.user, Stored::Absent) {
            self.read_user_through(&identity.subject).await?;
            member = self.reads.member(key.clone()).await?;
        }
        if let Some(wanted) = missing(&member, &key) {
            // Neither a revoked session nor a deleted user or organization needs WorkOS.
            self.read_membership_through(wanted).await?;
            member = self.reads.member(key).await?;
        }
        let Member { user, is_revoked, organization, membership, permissions } = member;
        let user = live(user, is_revoked)?;
        if organization.is_tombstone() {
            return Err(LookupError::OrganizationDeleted);
        }
        let membership = membership.into_live().filter(|membership| membership.status == membership::ACTIVE);
        let (Some(membership), Some(organization)) = (membership, organization.into_live()) else {
            return Err(LookupError::MembershipInactive);
        };
        let roles = membership.roles.clone();
        let permissions = if self.kinds.roles { permissions } else { Vec::new() };
        Ok(Session {
            user,
            identity,
            organization: Some(organization),
            membership: Some(membership),
            roles,
            permissions,
        })
    }

    /// Requests a membership, or its organization, that the tables do not contain from WorkOS.
    async fn read_membership_through(&self, wanted: Vec<Wanted>) -> Result<(), LookupError> {
        for wanted in wanted {
            match &self.read_through {
                Some(read_through) => match read_through.read(wanted).await {
                    Ok(Answer::Stored) => {}
                    Ok(Answer::Unknown) => return Ok(()),
                    Err(WorkosUnreachable) => return Err(LookupError::MembershipsNotSynced),
                },
                None if self.awaited.is_none() || self.are_organizations_incomplete(true).await? => {
                    return Err(LookupError::MembershipsNotSynced);
                }
                None => return Ok(()),
            }
        }
        Ok(())
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

    /// Returns true if the first backfill of organizations, and of memberships if `with_memberships` is true, has not completed, so
    /// that a missing object can still appear.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(crate) async fn are_organizations_incomplete(&self, with_memberships: bool) -> Result<bool, StoreError> {
        let Some(progress) = &self.awaited else { return Ok(false) };
        let is_incomplete = |progress: &Progress| {
            let memberships = with_memberships && !progress.memberships.backfill_completed;
            !progress.organizations.backfill_completed || memberships
        };
        Ok(is_incomplete(&progress.progress()) && is_incomplete(&progress.refresh().await?))
    }
}

/// Returns a live user whose session was not revoked. A deletion takes precedence.
fn live(user: Stored<User>, is_revoked: bool) -> Result<User, LookupError> {
    match user {
        Stored::Live { object, .. } if !is_revoked => Ok(*object),
        Stored::Live { .. } => Err(LookupError::SessionRevoked),
        Stored::Tombstone { .. } => Err(LookupError::Deleted),
        Stored::Absent => Err(LookupError::NotFound),
    }
}

/// Returns the objects that read-through must request from WorkOS: a membership or an organization without a row. `None`: the rows
/// decide the lookup.
fn missing(member: &Member, key: &MemberKey) -> Option<Vec<Wanted>> {
    let is_known =
        member.is_revoked || !matches!(member.user, Stored::Live { .. }) || member.organization.is_tombstone();
    let membership = matches!(member.membership, Stored::Absent);
    let organization = matches!(member.organization, Stored::Absent);
    // An inactive membership is refused in any case, so its organization is not needed.
    let is_active = matches!(&member.membership, Stored::Live { object, .. } if object.status == membership::ACTIVE);
    if is_known || !(membership || organization && is_active) {
        return None;
    }
    let (user_id, organization_id) = (key.user_id.clone(), key.organization_id.clone());
    let membership = membership.then(|| Wanted::Memberships { user_id, organization_id: organization_id.clone() });
    Some(membership.into_iter().chain(organization.then_some(Wanted::Organization(organization_id))).collect())
}
