//! Reads of `workos.role_records`, `workos.organization_role_records` and `workos.permission_records`: WorkOS's lists of roles and
//! permissions, as they were last read.

use sqlx::types::Json;
use time::OffsetDateTime;

use super::pages::{Page, PageOf, Range};
use super::{Store, StoreError};
use crate::domain::fields::Extra;
use crate::domain::role::{self, Permission, Role};
use crate::domain::timestamp::Timestamp;

struct RoleRow {
    slug: String,
    id: Option<String>,
    name: Option<String>,
    description: Option<String>,
    role_type: Option<String>,
    resource_type_slug: Option<String>,
    permissions: Option<Vec<String>>,
    synced_position: Option<i32>,
    created_at: Option<OffsetDateTime>,
    updated_at: Option<OffsetDateTime>,
    synced_extra: Option<Json<Extra>>,
}

impl RoleRow {
    /// Returns the role and its place in WorkOS's list.
    fn into_role(self) -> (Option<i32>, Role) {
        let role = Role {
            slug: self.slug,
            id: self.id,
            name: self.name,
            description: self.description,
            role_type: self.role_type,
            resource_type_slug: self.resource_type_slug,
            permissions: self.permissions.unwrap_or_default(),
            created_at: self.created_at.map(Timestamp::from),
            updated_at: self.updated_at.map(Timestamp::from),
            extra: self.synced_extra.map(|json| json.0).unwrap_or_default(),
        };
        (self.synced_position, role)
    }
}

struct PermissionRow {
    slug: String,
    id: Option<String>,
    name: Option<String>,
    description: Option<String>,
    system: Option<bool>,
    resource_type_slug: Option<String>,
    created_at: Option<OffsetDateTime>,
    updated_at: Option<OffsetDateTime>,
    synced_extra: Option<Json<Extra>>,
}

impl PermissionRow {
    fn into_permission(self) -> Permission {
        Permission {
            slug: self.slug,
            id: self.id,
            name: self.name,
            description: self.description,
            system: self.system.unwrap_or_default(),
            resource_type_slug: self.resource_type_slug,
            created_at: self.created_at.map(Timestamp::from),
            updated_at: self.updated_at.map(Timestamp::from),
            extra: self.synced_extra.map(|json| json.0).unwrap_or_default(),
        }
    }
}

/// Selects roles. The columns are the same in both tables.
macro_rules! select_roles {
    ($name:literal, $rest:literal $(, $argument:expr)*) => {
        sqlx::query_as!(
            RoleRow,
            "-- " + $name + r#"
            select
                slug,
                id,
                name,
                description,
                type as "role_type",
                resource_type_slug,
                permissions,
                synced_position,
                created_at,
                updated_at,
                synced_extra as "synced_extra: _"
            from workos."# + $rest
            $(, $argument)*
        )
    };
}

/// Selects permissions.
macro_rules! select_permissions {
    ($name:literal, $rest:literal $(, $argument:expr)*) => {
        sqlx::query_as!(
            PermissionRow,
            "-- " + $name + r#"
            select
                slug,
                id,
                name,
                description,
                system,
                resource_type_slug,
                created_at,
                updated_at,
                synced_extra as "synced_extra: _"
            from workos.permission_records
            where not synced_deleted and "# + $rest
            $(, $argument)*
        )
    };
}

impl Store {
    /// Returns whether the roles and permissions of the environment were read from WorkOS.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn has_roles(&self) -> Result<bool, StoreError> {
        self.lookup(async |connection| {
            sqlx::query_scalar!(
                r#"-- authorization.has_roles
                select exists (select from workos.role_lists where organization_id = '') as "exists!""#
            )
            .fetch_one(connection)
            .await
        })
        .await
    }

    /// Returns the roles of the environment, in order of priority.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn environment_roles(&self) -> Result<Vec<Role>, StoreError> {
        let rows = self
            .lookup(async |connection| {
                select_roles!(
                    "authorization.environment_roles",
                    "role_records
            where not synced_deleted
            order by
                synced_position,
                slug"
                )
                .fetch_all(connection)
                .await
            })
            .await?;
        Ok(rows.into_iter().map(|row| row.into_role().1).collect())
    }

    /// Returns the role of the environment with this slug.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn environment_role(&self, slug: &str) -> Result<Option<Role>, StoreError> {
        let row = self
            .lookup(async |connection| {
                select_roles!(
                    "authorization.environment_role",
                    "role_records
            where
                slug = $1
                and not synced_deleted",
                    slug
                )
                .fetch_optional(connection)
                .await
            })
            .await?;
        Ok(row.map(|row| row.into_role().1))
    }

    /// Returns the roles that can be given to the members of an organization, in order of priority: the roles of the environment
    /// and those of the organization.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn roles_in_organization(&self, organization_id: &str) -> Result<Vec<Role>, StoreError> {
        let own = self
            .lookup(async |connection| {
                select_roles!(
                    "authorization.organization_roles",
                    "organization_role_records
            where
                organization_id = $1
                and not synced_deleted
            order by
                synced_position,
                slug",
                    organization_id
                )
                .fetch_all(connection)
                .await
            })
            .await?;
        let own = own.into_iter().map(RoleRow::into_role).collect();
        Ok(role::merge(self.environment_roles().await?, own))
    }

    /// Returns the role with this slug in an organization: its own, else the one of the environment.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn role_in_organization(&self, organization_id: &str, slug: &str) -> Result<Option<Role>, StoreError> {
        let own = self
            .lookup(async |connection| {
                select_roles!(
                    "authorization.organization_role",
                    "organization_role_records
            where
                organization_id = $1
                and slug = $2
                and not synced_deleted",
                    organization_id,
                    slug
                )
                .fetch_optional(connection)
                .await
            })
            .await?;
        match own {
            Some(row) => Ok(Some(row.into_role().1)),
            None => self.environment_role(slug).await,
        }
    }

    /// Returns a page of permissions.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn permissions_page(&self, of: &PageOf<'_>) -> Result<Page<Permission>, StoreError> {
        let Range { upward, from, limit } = of.range();
        let rows = self
            .lookup(async |connection| {
                if upward {
                    let page = select_permissions!(
                        "authorization.permissions_up",
                        "id > $1
            order by id
            limit $2",
                        from,
                        limit
                    );
                    page.fetch_all(connection).await
                } else {
                    let page = select_permissions!(
                        "authorization.permissions_down",
                        "id < $1
            order by id desc
            limit $2",
                        from,
                        limit
                    );
                    page.fetch_all(connection).await
                }
            })
            .await?;
        let permissions = rows.into_iter().map(PermissionRow::into_permission).collect();
        Ok(of.page(permissions, |permission| permission.id.as_deref().unwrap_or_default()))
    }

    /// Returns the permission with this slug.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn permission(&self, slug: &str) -> Result<Option<Permission>, StoreError> {
        let row = self
            .lookup(async |connection| {
                select_permissions!("authorization.permission", "slug = $1", slug).fetch_optional(connection).await
            })
            .await?;
        Ok(row.map(PermissionRow::into_permission))
    }
}
