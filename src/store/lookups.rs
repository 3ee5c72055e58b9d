//! The statements of lookups: the user of a token, and what the user may do in the token's organization.

use std::collections::{BTreeMap, HashMap, HashSet};

use sqlx::types::Json;
use time::OffsetDateTime;

use super::DbConnection;
use super::grouped::{Grouped, GroupedQuery};
use super::{Store, StoreError, memberships, organizations, users};
use crate::domain::decide::Stored;
use crate::domain::fields::Extra;
use crate::domain::membership::Membership;
use crate::domain::organization::Organization;
use crate::domain::user::User;

/// The user of a token.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The user, live or deleted.
    pub user: Stored<User>,
    /// Whether WorkOS has revoked the token's session. Always false for a user without a row.
    pub is_revoked: bool,
}

/// The user of a token in the organization of the token.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) user: Stored<User>,
    pub(crate) is_revoked: bool,
    pub(crate) organization: Stored<Organization>,
    /// The user's membership in the organization. If there are several, an active one takes precedence over the others, and a
    /// tombstone comes last.
    pub(crate) membership: Stored<Membership>,
    /// The current permissions of the membership's roles, in order.
    pub(crate) permissions: Vec<String>,
}

/// Reads for lookups from one store. Cloning is cheap; clones share their statements.
#[derive(Clone, Debug)]
pub struct GroupedReads {
    callers: Grouped<Callers>,
    members: Grouped<Members>,
}

impl GroupedReads {
    /// Creates a reader of `store`.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { callers: Grouped::new(store.clone()), members: Grouped::new(store) }
    }

    /// Returns the user with this ID, live or deleted, as [`Store::user`] does.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn read(&self, id: String) -> Result<Stored<User>, StoreError> {
        Ok(self.caller(id, None).await?.user)
    }

    /// Returns the user with this ID, and whether this session was revoked.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn caller(&self, id: String, session_id: Option<String>) -> Result<Caller, StoreError> {
        self.callers.read(CallerKey { id, session_id }).await
    }

    /// Returns the user with this ID in this organization.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(crate) async fn member(&self, key: MemberKey) -> Result<Member, StoreError> {
        self.members.read(key).await
    }
}

/// Names a user, and the session if revoked sessions are synced.
struct CallerKey {
    id: String,
    session_id: Option<String>,
}

/// Names a user and an organization, and the session if revoked sessions are synced.
#[derive(Clone, Debug)]
pub(crate) struct MemberKey {
    pub(crate) user_id: String,
    pub(crate) organization_id: String,
    pub(crate) session_id: Option<String>,
}

struct Callers;

impl GroupedQuery for Callers {
    type Key = CallerKey;
    type Answer = Caller;

    fn texts(key: &CallerKey) -> impl Iterator<Item = &str> {
        std::iter::once(&*key.id).chain(key.session_id.as_deref())
    }

    async fn read(connection: &mut DbConnection<'_>, keys: &[CallerKey]) -> Result<Vec<Caller>, sqlx::Error> {
        let ids: Vec<&str> = keys.iter().map(|key| &*key.id).collect();
        let sessions: Vec<&str> = keys.iter().filter_map(|key| key.session_id.as_deref()).collect();
        let rows = sqlx::query!(
            r#"-- lookups.callers
            select
                id, email, email_verified, first_name, last_name, name, profile_picture_url, external_id,
                metadata as "metadata: Json<BTreeMap<String, Option<String>>>",
                last_sign_in_at, locale, created_at, updated_at,
                synced_extra as "synced_extra: Json<Extra>",
                synced_observed_at, synced_observation_id, synced_deleted, synced_deleted_at,
                -- Executed once per statement.
                array(select revoked.id from workos.revoked_sessions as revoked where revoked.id = any($2)) as "revoked!"
            from workos.user_records
            where id = any($1)"#,
            &ids as _,
            &sessions as _
        )
        .fetch_all(connection)
        .await?;
        let mut revoked = HashSet::new();
        let mut found = HashMap::with_capacity(rows.len());
        for row in rows {
            if revoked.is_empty() {
                revoked.extend(row.revoked);
            }
            let user = users::Row {
                id: row.id.clone(),
                email: row.email,
                email_verified: row.email_verified,
                first_name: row.first_name,
                last_name: row.last_name,
                name: row.name,
                profile_picture_url: row.profile_picture_url,
                external_id: row.external_id,
                metadata: row.metadata,
                last_sign_in_at: row.last_sign_in_at,
                locale: row.locale,
                created_at: row.created_at,
                updated_at: row.updated_at,
                synced_extra: row.synced_extra,
                synced_observed_at: row.synced_observed_at,
                synced_observation_id: row.synced_observation_id,
                synced_deleted: row.synced_deleted,
                synced_deleted_at: row.synced_deleted_at,
            };
            found.insert(row.id, user.into_stored());
        }
        let callers = keys.iter().enumerate().map(|(at, key)| {
            let is_read_again = keys[at + 1..].iter().any(|later| later.id == key.id);
            let user = if is_read_again { found.get(&key.id).cloned() } else { found.remove(&key.id) };
            let is_revoked = key.session_id.as_ref().is_some_and(|id| revoked.contains(id));
            Caller { user: user.unwrap_or(Stored::Absent), is_revoked }
        });
        Ok(callers.collect())
    }
}

struct Members;

impl GroupedQuery for Members {
    type Key = MemberKey;
    type Answer = Member;

    fn texts(key: &MemberKey) -> impl Iterator<Item = &str> {
        [&*key.user_id, &*key.organization_id].into_iter().chain(key.session_id.as_deref())
    }

    async fn read(connection: &mut DbConnection<'_>, keys: &[MemberKey]) -> Result<Vec<Member>, sqlx::Error> {
        let rows = sqlx::query_file_as!(
            MemberRow,
            "src/store/members.sql",
            &keys.iter().map(|key| &*key.user_id).collect::<Vec<_>>() as _,
            &keys.iter().map(|key| &*key.organization_id).collect::<Vec<_>>() as _,
            &keys.iter().filter_map(|key| key.session_id.as_deref()).collect::<Vec<_>>() as _
        )
        .fetch_all(connection)
        .await?;
        let revoked: HashSet<String> =
            rows.first().map_or_else(HashSet::new, |row| row.revoked.iter().cloned().collect());
        let members = rows.into_iter().zip(keys).map(|(row, key)| {
            let is_revoked = key.session_id.as_ref().is_some_and(|id| revoked.contains(id));
            row.into_member(is_revoked)
        });
        Ok(members.collect())
    }
}

/// A row of `members.sql`: the user, the organization and the membership side by side.
struct MemberRow {
    user_id: Option<String>,
    email: Option<String>,
    email_verified: Option<bool>,
    first_name: Option<String>,
    last_name: Option<String>,
    name: Option<String>,
    profile_picture_url: Option<String>,
    external_id: Option<String>,
    metadata: Option<Json<BTreeMap<String, Option<String>>>>,
    last_sign_in_at: Option<OffsetDateTime>,
    locale: Option<String>,
    created_at: Option<OffsetDateTime>,
    updated_at: Option<OffsetDateTime>,
    synced_extra: Option<Json<Extra>>,
    synced_observed_at: Option<OffsetDateTime>,
    synced_observation_id: Option<String>,
    synced_deleted: Option<bool>,
    synced_deleted_at: Option<OffsetDateTime>,
    revoked: Vec<String>,
    organization_id: Option<String>,
    organization_name: Option<String>,
    organization_domains: Option<Json<Box<serde_json::value::RawValue>>>,
    organization_metadata: Option<Json<BTreeMap<String, Option<String>>>>,
    organization_external_id: Option<String>,
    organization_stripe_customer_id: Option<String>,
    organization_created_at: Option<OffsetDateTime>,
    organization_updated_at: Option<OffsetDateTime>,
    organization_extra: Option<Json<Extra>>,
    organization_observed_at: Option<OffsetDateTime>,
    organization_observation_id: Option<String>,
    organization_deleted: Option<bool>,
    membership_id: Option<String>,
    membership_user_id: Option<String>,
    membership_organization_id: Option<String>,
    membership_status: Option<String>,
    membership_role: Option<String>,
    membership_roles: Option<Vec<String>>,
    membership_custom_attributes: Option<Json<Extra>>,
    membership_directory_managed: Option<bool>,
    membership_created_at: Option<OffsetDateTime>,
    membership_updated_at: Option<OffsetDateTime>,
    membership_extra: Option<Json<Extra>>,
    membership_observed_at: Option<OffsetDateTime>,
    membership_observation_id: Option<String>,
    membership_deleted: Option<bool>,
    permissions: Option<Vec<String>>,
}

impl MemberRow {
    fn into_member(mut self, is_revoked: bool) -> Member {
        let mut permissions = self.permissions.take().unwrap_or_default();
        permissions.sort_unstable();
        permissions.dedup();
        let membership = self.membership();
        let organization = self.organization();
        Member { is_revoked, permissions, membership, organization, user: self.user() }
    }

    fn membership(&mut self) -> Stored<Membership> {
        let Some(id) = self.membership_id.take() else { return Stored::Absent };
        let row = memberships::Row {
            id,
            user_id: self.membership_user_id.take(),
            organization_id: self.membership_organization_id.take(),
            status: self.membership_status.take(),
            role: self.membership_role.take(),
            roles: self.membership_roles.take(),
            custom_attributes: self.membership_custom_attributes.take(),
            directory_managed: self.membership_directory_managed,
            created_at: self.membership_created_at,
            updated_at: self.membership_updated_at,
            synced_extra: self.membership_extra.take(),
            synced_observed_at: self.membership_observed_at,
            synced_observation_id: self.membership_observation_id.take(),
            synced_deleted: self.membership_deleted.unwrap_or_default(),
            synced_deleted_at: None,
            synced_version_at: None,
            revision: None,
        };
        row.into_stored()
    }

    fn organization(&mut self) -> Stored<Organization> {
        let Some(id) = self.organization_id.take() else { return Stored::Absent };
        let row = organizations::Row {
            id,
            name: self.organization_name.take(),
            domains: self.organization_domains.take(),
            metadata: self.organization_metadata.take(),
            external_id: self.organization_external_id.take(),
            stripe_customer_id: self.organization_stripe_customer_id.take(),
            created_at: self.organization_created_at,
            updated_at: self.organization_updated_at,
            synced_extra: self.organization_extra.take(),
            synced_observed_at: self.organization_observed_at,
            synced_observation_id: self.organization_observation_id.take(),
            synced_deleted: self.organization_deleted.unwrap_or_default(),
            synced_deleted_at: None,
            synced_version_at: None,
            revision: None,
        };
        row.into_stored()
    }

    fn user(self) -> Stored<User> {
        let Some(id) = self.user_id else { return Stored::Absent };
        let row = users::Row {
            id,
            email: self.email,
            email_verified: self.email_verified,
            first_name: self.first_name,
            last_name: self.last_name,
            name: self.name,
            profile_picture_url: self.profile_picture_url,
            external_id: self.external_id,
            metadata: self.metadata,
            last_sign_in_at: self.last_sign_in_at,
            locale: self.locale,
            created_at: self.created_at,
            updated_at: self.updated_at,
            synced_extra: self.synced_extra,
            synced_observed_at: self.synced_observed_at,
            synced_observation_id: self.synced_observation_id,
            synced_deleted: self.synced_deleted.unwrap_or_default(),
            synced_deleted_at: self.synced_deleted_at,
        };
        row.into_stored()
    }
}
