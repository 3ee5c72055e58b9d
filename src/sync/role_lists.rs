//! Reads WorkOS's lists of roles and permissions, and stores them.
//!
//! A slug that is stored and no longer listed is read by slug. Only WorkOS's 404 deletes it, because a list can be short for other
//! reasons than deletions.

use super::drift::{Drift, DriftKind};
use super::job::{JobContext, JobError};
use crate::domain::event::Origin;
use crate::domain::role::{Permission, Role};
use crate::domain::timestamp::Timestamp;
use crate::store::role_lists::{ENVIRONMENT, LiveSlugs, NewRoleList, Replaced};
use crate::workos::api::{ApiError, FoundRole, RoleList};

/// Maximum number of pages of permissions. WorkOS's own limits stay below it.
const PERMISSION_PAGES: usize = 50;

/// Slugs of one kind that are read at most after a list. If more are no longer listed, a refresh reads the rest later, so that one
/// organization that deletes thousands of roles does not delay the others.
const SLUG_READS: usize = 50;

/// The result of reading a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ListOutcome {
    /// The list is stored.
    Stored,
    /// The list is not stored, because a list that was read later is already stored.
    Outdated,
    /// The list contains no role of the environment. Every environment has at least one, so the answer is not used.
    Unusable,
    /// WorkOS does not know the organization.
    NoOrganization,
}

/// A list as WorkOS returned it, and the stored slugs that WorkOS does not know any more.
struct Listed {
    observed_at: Timestamp,
    roles: Vec<(usize, Role)>,
    permissions: Vec<Permission>,
    gone_roles: Vec<String>,
    gone_permissions: Vec<String>,
    /// Slugs were deleted, and others were not read.
    is_partial: bool,
}

/// Reads the roles and permissions of the environment, or the roles of an organization, and stores them.
pub(super) async fn read_list(
    context: &JobContext,
    organization_id: &str,
    origin: Origin,
) -> Result<ListOutcome, JobError> {
    let Listed { observed_at, roles, permissions, gone_roles, gone_permissions, is_partial } =
        match list(context, organization_id, SLUG_READS).await? {
            Ok(listed) => listed,
            Err(outcome) => return Ok(outcome),
        };
    let list = NewRoleList {
        organization_id,
        observed_at,
        roles: &roles,
        permissions: &permissions,
        gone_roles: &gone_roles,
        gone_permissions: &gone_permissions,
        is_partial,
        origin,
    };
    Ok(match context.store.replace_role_list(&list).await? {
        Replaced::Done => ListOutcome::Stored,
        Replaced::Outdated => ListOutcome::Outdated,
    })
}

/// Repairs a list for a reconcile, or returns what differs.
pub(super) async fn reconcile_list(
    context: &JobContext,
    organization_id: &str,
    is_repaired: bool,
) -> Result<Vec<Drift>, JobError> {
    if is_repaired {
        read_list(context, organization_id, Origin::Reconcile).await?;
        Ok(Vec::new())
    } else {
        check_list(context, organization_id).await
    }
}

/// Reads a list, stores nothing, and returns what differs from the stored roles and permissions.
async fn check_list(context: &JobContext, organization_id: &str) -> Result<Vec<Drift>, JobError> {
    let listed = match list(context, organization_id, usize::MAX).await? {
        Ok(listed) => listed,
        // Reconcile reads the organization by ID and decides about it.
        Err(_) => return Ok(Vec::new()),
    };
    let stored = context.store.stored_role_list(organization_id).await?;
    let role_id = |slug: &str| {
        if organization_id == ENVIRONMENT { format!("role {slug}") } else { format!("role {organization_id}/{slug}") }
    };
    let permission_id = |slug: &str| format!("permission {slug}");
    let difference = |id: String, fields: Option<Vec<String>>| match fields {
        None => Some(Drift { id, kind: DriftKind::Missing }),
        Some(fields) => (!fields.is_empty()).then_some(Drift { id, kind: DriftKind::Outdated { fields } }),
    };
    let roles = listed.roles.iter().filter_map(|(_, role)| {
        difference(role_id(&role.slug), stored.roles.get(&role.slug).map(|before| before.differences(role)))
    });
    let permissions = listed.permissions.iter().filter_map(|permission| {
        let before = stored.permissions.get(&permission.slug);
        difference(permission_id(&permission.slug), before.map(|before| before.differences(permission)))
    });
    let gone = listed.gone_roles.iter().map(|slug| role_id(slug));
    let gone = gone.chain(listed.gone_permissions.iter().map(|slug| permission_id(slug)));
    Ok(roles.chain(permissions).chain(gone.map(|id| Drift { id, kind: DriftKind::Gone })).collect())
}

/// Reads a list from WorkOS, and up to `slug_reads` slugs of each kind that are no longer listed. Returns the outcome if there is
/// no list to use.
async fn list(
    context: &JobContext,
    organization_id: &str,
    slug_reads: usize,
) -> Result<Result<Listed, ListOutcome>, JobError> {
    if organization_id == ENVIRONMENT {
        list_environment(context, slug_reads).await
    } else {
        list_organization(context, organization_id, slug_reads).await
    }
}

async fn list_environment(context: &JobContext, slug_reads: usize) -> Result<Result<Listed, ListOutcome>, JobError> {
    let RoleList { roles, observed_at } = context.api.environment_roles().await?;
    let Some(known) = roles.iter().find(|role| !role.is_of_organization()).map(|role| role.slug.clone()) else {
        return Ok(Err(ListOutcome::Unusable));
    };
    let stored = context.store.live_slugs(ENVIRONMENT).await?;
    let listed = read_permissions(context).await?;
    let (permissions, missing_permissions) = match listed {
        Some(permissions) => {
            let missing = missing(stored.permissions, permissions.iter().map(|permission| &*permission.slug));
            (permissions, missing)
        }
        None => (Vec::new(), Vec::new()),
    };
    let missing_roles = missing(stored.roles, roles.iter().map(|role| &*role.slug));
    let is_more = missing_roles.len().max(missing_permissions.len()) > slug_reads;
    let mut reads = ReadsBySlug { context, known: &known, is_trusted: false };
    let mut gone_roles = Vec::new();
    for slug in missing_roles.into_iter().take(slug_reads) {
        if reads.is_gone(context.api.environment_role(&slug).await?).await? {
            gone_roles.push(slug);
        }
    }
    let mut gone_permissions = Vec::new();
    for slug in missing_permissions.into_iter().take(slug_reads) {
        if reads.is_gone(context.api.permission(&slug).await?).await? {
            gone_permissions.push(slug);
        }
    }
    let roles = roles.into_iter().enumerate().collect();
    // If all that were read exist, the list is short for another reason, and reading more would not end.
    let is_partial = is_more && !(gone_roles.is_empty() && gone_permissions.is_empty());
    Ok(Ok(Listed { observed_at, roles, permissions, gone_roles, gone_permissions, is_partial }))
}

async fn list_organization(
    context: &JobContext,
    organization_id: &str,
    slug_reads: usize,
) -> Result<Result<Listed, ListOutcome>, JobError> {
    let RoleList { roles, observed_at } = match context.api.organization_roles(organization_id).await {
        Err(ApiError::Refused { status: 404, .. }) => return Ok(Err(ListOutcome::NoOrganization)),
        other => other?,
    };
    let Some(known) = roles.iter().find(|role| !role.is_of_organization()).map(|role| role.slug.clone()) else {
        return Ok(Err(ListOutcome::Unusable));
    };
    // Each role keeps its place in the whole list, because the list is in the order of priority.
    let roles: Vec<(usize, Role)> =
        roles.into_iter().enumerate().filter(|(_, role)| role.is_of_organization()).collect();
    let LiveSlugs { roles: stored, .. } = context.store.live_slugs(organization_id).await?;
    let missing = missing(stored, roles.iter().map(|(_, role)| &*role.slug));
    let is_more = missing.len() > slug_reads;
    let mut reads = ReadsBySlug { context, known: &known, is_trusted: false };
    let mut gone_roles = Vec::new();
    for slug in missing.into_iter().take(slug_reads) {
        match context.api.organization_role(organization_id, &slug).await {
            // A 404 here means that the organization does not exist.
            Err(ApiError::Refused { status: 404, .. }) => return Ok(Err(ListOutcome::NoOrganization)),
            found => {
                if reads.is_gone(found?).await? {
                    gone_roles.push(slug);
                }
            }
        }
    }
    let is_partial = is_more && !gone_roles.is_empty();
    Ok(Ok(Listed { observed_at, roles, permissions: Vec::new(), gone_roles, gone_permissions: Vec::new(), is_partial }))
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

/// Reads entries by slug, and records whether their 404 can be trusted.
struct ReadsBySlug<'a> {
    context: &'a JobContext,
    /// A listed role of the environment.
    known: &'a str,
    /// Whether the known role was read by slug.
    is_trusted: bool,
}

impl ReadsBySlug<'_> {
    /// Returns whether an answer proves that WorkOS does not know the slug. An answer without the slug could come from any server,
    /// so it counts only if a listed role can be read by slug.
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
