//! Reads WorkOS's lists of roles and permissions, and stores them.
//!
//! A slug that is stored and no longer listed is read by slug. Only WorkOS's 404 deletes it, because a list can be short for other
//! reasons than deletions.

use super::job::{JobContext, JobError};
use crate::domain::event::Origin;
use crate::domain::role::{Permission, Role};
use crate::store::role_lists::{ENVIRONMENT, LiveSlugs, NewRoleList, Replaced};
use crate::workos::api::{ApiError, FoundRole, RoleList};

/// Pages of permissions that are read at most. WorkOS has no limit that needs more.
const PERMISSION_PAGES: usize = 50;

/// The result of reading a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ListOutcome {
    /// The list is stored. Number of entries that changed.
    Stored(usize),
    /// A list that was read later is stored.
    Outdated,
    /// The list has no role of the environment. Every environment has one, so the answer proves nothing.
    Unusable,
    /// WorkOS does not know the organization.
    NoOrganization,
}

/// Reads the roles and permissions of the environment.
pub(super) async fn read_environment(context: &JobContext, origin: Origin) -> Result<ListOutcome, JobError> {
    let RoleList { roles, observed_at } = context.api.environment_roles().await?;
    let Some(known) = roles.iter().find(|role| !role.is_of_organization()).map(|role| role.slug.clone()) else {
        return Ok(ListOutcome::Unusable);
    };
    let stored = context.store.live_slugs(ENVIRONMENT).await?;
    let listed = read_permissions(context).await?;
    let (permissions, missing) = match listed {
        Some(permissions) => {
            let missing = missing(stored.permissions, permissions.iter().map(|permission| &*permission.slug));
            (permissions, missing)
        }
        None => (Vec::new(), Vec::new()),
    };
    let mut reads = ReadsBySlug { context, known: &known, is_trusted: false };
    let mut gone_roles = Vec::new();
    for slug in self::missing(stored.roles, roles.iter().map(|role| &*role.slug)) {
        if reads.is_gone(context.api.environment_role(&slug).await?).await? {
            gone_roles.push(slug);
        }
    }
    let mut gone_permissions = Vec::new();
    for slug in missing {
        if reads.is_gone(context.api.permission(&slug).await?).await? {
            gone_permissions.push(slug);
        }
    }
    let roles: Vec<(usize, Role)> = roles.into_iter().enumerate().collect();
    let list = NewRoleList {
        organization_id: ENVIRONMENT,
        observed_at,
        roles: &roles,
        permissions: &permissions,
        gone_roles: &gone_roles,
        gone_permissions: &gone_permissions,
        origin,
    };
    store(context, &list).await
}

/// Reads the roles of an organization.
pub(super) async fn read_organization(
    context: &JobContext,
    organization_id: &str,
    origin: Origin,
) -> Result<ListOutcome, JobError> {
    let RoleList { roles, observed_at } = match context.api.organization_roles(organization_id).await {
        Err(ApiError::Refused { status: 404, .. }) => return Ok(ListOutcome::NoOrganization),
        other => other?,
    };
    let Some(known) = roles.iter().find(|role| !role.is_of_organization()).map(|role| role.slug.clone()) else {
        return Ok(ListOutcome::Unusable);
    };
    // Each role keeps its place in the whole list, because the list is in the order of priority.
    let own: Vec<(usize, Role)> = roles.into_iter().enumerate().filter(|(_, role)| role.is_of_organization()).collect();
    let LiveSlugs { roles: stored, .. } = context.store.live_slugs(organization_id).await?;
    let mut reads = ReadsBySlug { context, known: &known, is_trusted: false };
    let mut gone_roles = Vec::new();
    for slug in missing(stored, own.iter().map(|(_, role)| &*role.slug)) {
        match context.api.organization_role(organization_id, &slug).await {
            // This 404 is about the organization.
            Err(ApiError::Refused { status: 404, .. }) => return Ok(ListOutcome::NoOrganization),
            found => {
                if reads.is_gone(found?).await? {
                    gone_roles.push(slug);
                }
            }
        }
    }
    let list = NewRoleList {
        organization_id,
        observed_at,
        roles: &own,
        permissions: &[],
        gone_roles: &gone_roles,
        gone_permissions: &[],
        origin,
    };
    store(context, &list).await
}

async fn store(context: &JobContext, list: &NewRoleList<'_>) -> Result<ListOutcome, JobError> {
    Ok(match context.store.replace_role_list(list).await? {
        Replaced::Done(changed) => ListOutcome::Stored(changed),
        Replaced::Outdated => ListOutcome::Outdated,
    })
}

/// Reads every permission. `None` if WorkOS refuses the list: the roles are then stored without it.
async fn read_permissions(context: &JobContext) -> Result<Option<Vec<Permission>>, JobError> {
    let (mut permissions, mut after) = (Vec::new(), None);
    for _ in 0..PERMISSION_PAGES {
        let page = match context.api.permissions(after.as_deref()).await {
            Err(ApiError::Refused { status, code, .. }) => {
                tracing::warn!(status, code, "WorkOS refused the list of permissions; the stored permissions stay");
                return Ok(None);
            }
            other => other?,
        };
        permissions.extend(page.items.into_iter().flatten());
        if !page.more || page.resume == after {
            break;
        }
        after = page.resume;
    }
    Ok(Some(permissions))
}

/// Returns the stored slugs that are not listed.
fn missing<'a>(stored: Vec<String>, listed: impl Iterator<Item = &'a str>) -> Vec<String> {
    let listed: std::collections::BTreeSet<&str> = listed.collect();
    stored.into_iter().filter(|slug| !listed.contains(slug.as_str())).collect()
}

/// Reads by slug, and whether their 404 can be trusted.
struct ReadsBySlug<'a> {
    context: &'a JobContext,
    /// A listed role of the environment.
    known: &'a str,
    /// The known role was read by slug.
    is_trusted: bool,
}

impl ReadsBySlug<'_> {
    /// Returns whether an answer says that WorkOS does not know the slug. An answer without the slug could come from any server, so
    /// it counts only if a listed role can be read by slug.
    async fn is_gone(&mut self, found: FoundRole) -> Result<bool, JobError> {
        let FoundRole::Unknown { has_slug } = found else { return Ok(false) };
        if !has_slug && !self.is_trusted {
            if self.context.api.environment_role(self.known).await? != FoundRole::Live {
                return Err(JobError::NotConfirmed);
            }
            self.is_trusted = true;
        }
        Ok(true)
    }
}
