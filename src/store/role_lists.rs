//! WorkOS's lists of roles and permissions: `workos.role_records`, `workos.organization_role_records`, `workos.permission_records`,
//! and `workos.role_lists` with the time at which each list was read.
//!
//! A list is replaced in one transaction. The slugs are keys that WorkOS can reuse, so there are no versions: the list that was
//! read last is the truth.

mod permissions;
mod roles;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use time::OffsetDateTime;

use super::DbConnection;
use super::batch::{self, Writes};
use super::changes::NewChange;
use super::refreshes;
use super::{Store, StoreError, Work};
use crate::domain::event::Origin;
use crate::domain::object::Difference;
use crate::domain::role::{ListKind, Permission, Refresh, Role};
use crate::domain::timestamp::Timestamp;

/// The ID under which the lists of the environment are stored.
pub(crate) const ENVIRONMENT: &str = "";

/// A complete list, as WorkOS returned it.
pub(crate) struct NewRoleList<'a> {
    /// The organization, or [`ENVIRONMENT`].
    pub(crate) organization_id: &'a str,
    /// When it was read, by WorkOS's clock.
    pub(crate) observed_at: Timestamp,
    /// The roles in order of priority, each with its place in WorkOS's list.
    pub(crate) roles: &'a [(usize, Role)],
    /// The permissions. Empty for an organization.
    pub(crate) permissions: &'a [Permission],
    /// Slugs of stored roles that WorkOS does not know any more.
    pub(crate) gone_roles: &'a [String],
    /// The same for permissions.
    pub(crate) gone_permissions: &'a [String],
    /// Other slugs may be gone as well: the list has to be read again.
    pub(crate) is_partial: bool,
    /// Why the list was read.
    pub(crate) origin: Origin,
}

/// The result of replacing a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replaced {
    /// The list is stored.
    Done,
    /// A list that was read later is stored. Nothing was written.
    Outdated,
}

/// The slugs of the live roles and permissions.
#[derive(Debug, Default)]
pub(crate) struct LiveSlugs {
    pub(crate) roles: Vec<String>,
    pub(crate) permissions: Vec<String>,
}

/// The stored roles of a list, and its permissions, by slug.
#[derive(Debug, Default)]
pub(crate) struct StoredRoleList {
    pub(crate) roles: BTreeMap<String, Role>,
    pub(crate) permissions: BTreeMap<String, Permission>,
}

/// How an entry changed.
struct Changed {
    kind: ListKind,
    object_id: String,
    difference: Difference,
    fields: Vec<String>,
}

impl Work for NewRoleList<'_> {
    type Output = Replaced;

    async fn run(&self, connection: &mut DbConnection<'_>) -> Result<Replaced, StoreError> {
        if !self.claim(connection).await? {
            return Ok(Replaced::Outdated);
        }
        let mut changed = self.replace_roles(connection).await?;
        if self.organization_id == ENVIRONMENT {
            changed.extend(self.replace_permissions(connection).await?);
        }
        let changes = changed.iter().map(|entry| NewChange {
            kind: entry.kind.event_type(entry.difference),
            user_id: None,
            object_id: Some(&entry.object_id),
            changed: &entry.fields,
            event: None,
            origin: self.origin,
            only_if_new: false,
        });
        let writes = Writes::of_changes(changes.collect());
        if !writes.is_empty() {
            batch::write(connection, &writes).await?;
        }
        if self.is_partial {
            refreshes::request_rest(connection, &self.refresh()).await?;
        }
        Ok(Replaced::Done)
    }
}

impl NewRoleList<'_> {
    /// Records when the list was read, and returns false if a list that was read later is stored. The row's lock lasts until the
    /// transaction ends, so no other process replaces the same list meanwhile.
    async fn claim(&self, connection: &mut DbConnection<'_>) -> Result<bool, StoreError> {
        let claimed = sqlx::query!(
            "-- role_lists.claim
            insert into workos.role_lists as list (organization_id, observed_at)
            values ($1, $2)
            on conflict (organization_id) do update
            set
                observed_at = excluded.observed_at,
                read_at = now()
            where list.observed_at < excluded.observed_at",
            self.organization_id,
            OffsetDateTime::from(self.observed_at)
        )
        .execute(connection)
        .await?;
        Ok(claimed.rows_affected() == 1)
    }

    /// The request that reads this list.
    fn refresh(&self) -> Refresh {
        match self.organization_id {
            ENVIRONMENT => Refresh::Roles,
            id => Refresh::OrganizationRoles(id.to_owned()),
        }
    }

    async fn replace_roles(&self, connection: &mut DbConnection<'_>) -> Result<Vec<Changed>, StoreError> {
        let is_environment = self.organization_id == ENVIRONMENT;
        let kind = if is_environment { ListKind::Role } else { ListKind::OrganizationRole };
        let object_id = |slug: &str| {
            if is_environment { slug.to_owned() } else { format!("{}/{slug}", self.organization_id) }
        };
        let stored = if is_environment {
            roles::environment(&mut *connection).await?
        } else {
            roles::of_organization(&mut *connection, self.organization_id).await?
        };
        let (mut written, mut changed) = (Vec::new(), Vec::new());
        for (position, role) in unique(self.roles, |(_, role)| &role.slug) {
            let (difference, fields) = match stored.get(&role.slug) {
                None => (Difference::Created, Vec::new()),
                Some((before, place)) => {
                    let fields = before.differences(role);
                    if fields.is_empty() && *place == position_of(*position) {
                        continue;
                    }
                    (Difference::Updated, fields)
                }
            };
            written.push((*position, role));
            // A new place in the list is not a change of the role itself.
            if difference == Difference::Created || !fields.is_empty() {
                changed.push(Changed { kind, object_id: object_id(&role.slug), difference, fields });
            }
        }
        let gone = gone(self.gone_roles, &stored, self.roles.iter().map(|(_, role)| &*role.slug));
        if is_environment {
            roles::write_environment(&mut *connection, &written).await?;
            roles::delete_environment(&mut *connection, &gone).await?;
        } else {
            roles::write_of_organization(&mut *connection, self.organization_id, &written).await?;
            roles::delete_of_organization(&mut *connection, self.organization_id, &gone).await?;
        }
        changed.extend(gone.iter().map(|slug| Changed {
            kind,
            object_id: object_id(slug),
            difference: Difference::Deleted,
            fields: Vec::new(),
        }));
        Ok(changed)
    }

    async fn replace_permissions(&self, connection: &mut DbConnection<'_>) -> Result<Vec<Changed>, StoreError> {
        let stored = permissions::stored(&mut *connection).await?;
        let (mut written, mut changed) = (Vec::new(), Vec::new());
        let entry = |slug: &str, difference, fields| Changed {
            kind: ListKind::Permission,
            object_id: slug.to_owned(),
            difference,
            fields,
        };
        for permission in unique(self.permissions, |permission| &permission.slug) {
            let (difference, fields) = match stored.get(&permission.slug) {
                None => (Difference::Created, Vec::new()),
                Some(before) => {
                    let fields = before.differences(permission);
                    if fields.is_empty() {
                        continue;
                    }
                    (Difference::Updated, fields)
                }
            };
            written.push(permission);
            changed.push(entry(&permission.slug, difference, fields));
        }
        let gone = gone(self.gone_permissions, &stored, self.permissions.iter().map(|listed| &*listed.slug));
        permissions::write(&mut *connection, &written).await?;
        permissions::delete(&mut *connection, &gone).await?;
        changed.extend(gone.iter().map(|slug| entry(slug, Difference::Deleted, Vec::new())));
        Ok(changed)
    }
}

/// Returns the entries without those whose slug occurred before.
fn unique<T>(entries: &[T], slug: impl Fn(&T) -> &String) -> Vec<&T> {
    let mut seen = BTreeSet::new();
    entries.iter().filter(|entry| seen.insert(slug(entry).clone())).collect()
}

/// Returns the slugs of `gone` that are stored and not listed.
fn gone<'a, T>(gone: &[String], stored: &BTreeMap<String, T>, listed: impl Iterator<Item = &'a str>) -> Vec<String> {
    let listed: BTreeSet<&str> = listed.collect();
    gone.iter().filter(|slug| stored.contains_key(*slug) && !listed.contains(slug.as_str())).cloned().collect()
}

fn position_of(place: usize) -> i32 {
    i32::try_from(place).unwrap_or(i32::MAX)
}

impl Store {
    /// Replaces a list.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(crate) async fn replace_role_list(&self, list: &NewRoleList<'_>) -> Result<Replaced, StoreError> {
        self.transaction("replace role list", list).await
    }

    /// Returns the slugs of the live roles and permissions of a list.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(crate) async fn live_slugs(&self, organization_id: &str) -> Result<LiveSlugs, StoreError> {
        if organization_id == ENVIRONMENT {
            let roles = self.lookup(async |connection| roles::environment_slugs(connection).await).await?;
            let permissions = self.lookup(async |connection| permissions::slugs(connection).await).await?;
            return Ok(LiveSlugs { roles, permissions });
        }
        let roles =
            self.lookup(async |connection| roles::slugs_of_organization(connection, organization_id).await).await?;
        Ok(LiveSlugs { roles, permissions: Vec::new() })
    }

    /// Returns the live roles and permissions of a list.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(crate) async fn stored_role_list(&self, organization_id: &str) -> Result<StoredRoleList, StoreError> {
        let without_places =
            |roles: BTreeMap<String, (Role, i32)>| roles.into_iter().map(|(slug, (role, _))| (slug, role)).collect();
        if organization_id == ENVIRONMENT {
            let roles = self.lookup(async |connection| roles::environment(connection).await).await?;
            let permissions = self.lookup(async |connection| permissions::stored(connection).await).await?;
            return Ok(StoredRoleList { roles: without_places(roles), permissions });
        }
        let roles = self.lookup(async |connection| roles::of_organization(connection, organization_id).await).await?;
        Ok(StoredRoleList { roles: without_places(roles), ..StoredRoleList::default() })
    }

    /// Returns how long ago, by the database's clock, a list was stored. `None` if it never was.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(crate) async fn role_list_age(&self, organization_id: &str) -> Result<Option<Duration>, StoreError> {
        let seconds = self
            .lookup(async |connection| {
                sqlx::query_scalar!(
                    r#"-- role_lists.age
                    select extract(epoch from now() - read_at)::float8 as "seconds!"
                    from workos.role_lists
                    where organization_id = $1"#,
                    organization_id
                )
                .fetch_optional(connection)
                .await
            })
            .await?;
        Ok(seconds.map(|seconds| Duration::from_secs_f64(seconds.max(0.0))))
    }
}
