//! Lists of roles and permissions. WorkOS keys their entries by slug.

use serde_json::value::RawValue;

use super::by_id::Unknown;
use super::{Api, ApiError, PAGE, Page, list};
use crate::domain::role::{Permission, Role};
use crate::domain::timestamp::Timestamp;
use crate::workos::wire;

/// A complete list of roles. WorkOS does not page it.
#[derive(Debug)]
pub struct RoleList {
    /// The roles in order of priority, the highest first. Entries without a slug are omitted.
    pub roles: Vec<Role>,
    /// When the request was sent, by WorkOS's clock.
    pub observed_at: Timestamp,
}

/// The result of reading a role or a permission by slug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundRole {
    /// It exists.
    Live,
    /// WorkOS does not know the slug. See [`Found::Unknown`](super::Found::Unknown).
    Unknown {
        /// Whether the response contains the requested slug.
        has_slug: bool,
    },
}

impl Api {
    /// Returns the roles of the environment.
    ///
    /// # Errors
    /// [`ApiError`]
    pub async fn environment_roles(&self) -> Result<RoleList, ApiError> {
        self.roles(&["authorization", "roles"]).await
    }

    /// Returns the roles of an organization: those of the environment and its own.
    ///
    /// # Errors
    /// [`ApiError`], also if the organization does not exist.
    pub async fn organization_roles(&self, organization_id: &str) -> Result<RoleList, ApiError> {
        self.roles(&["authorization", "organizations", organization_id, "roles"]).await
    }

    /// Returns a page of permissions after the permission with the ID `after`, oldest first.
    ///
    /// # Errors
    /// [`ApiError`]
    pub async fn permissions(&self, after: Option<&str>) -> Result<Page<Option<Permission>>, ApiError> {
        let mut url = self.url(&["authorization", "permissions"]);
        url.query_pairs_mut().append_pair("order", "asc").append_pair("limit", &PAGE.to_string());
        if let Some(after) = after {
            url.query_pairs_mut().append_pair("after", after);
        }
        list(&self.get(url).await?, wire::permission)
    }

    /// Reads one role of the environment.
    ///
    /// # Errors
    /// [`ApiError`], also for a 404 that does not come from WorkOS.
    pub async fn environment_role(&self, slug: &str) -> Result<FoundRole, ApiError> {
        self.by_slug(&["authorization", "roles", slug], slug).await
    }

    /// Reads one role of an organization.
    ///
    /// # Errors
    /// As [`Api::environment_role`].
    pub async fn organization_role(&self, organization_id: &str, slug: &str) -> Result<FoundRole, ApiError> {
        self.by_slug(&["authorization", "organizations", organization_id, "roles", slug], slug).await
    }

    /// Reads one permission.
    ///
    /// # Errors
    /// As [`Api::environment_role`].
    pub async fn permission(&self, slug: &str) -> Result<FoundRole, ApiError> {
        self.by_slug(&["authorization", "permissions", slug], slug).await
    }

    async fn roles(&self, path: &[&str]) -> Result<RoleList, ApiError> {
        let page = list(&self.get(self.url(path)).await?, |item: &RawValue| wire::role(item))?;
        Ok(RoleList { roles: page.items.into_iter().flatten().collect(), observed_at: page.observed_at })
    }

    async fn by_slug(&self, path: &[&str], slug: &str) -> Result<FoundRole, ApiError> {
        Ok(match self.find(self.url(path), slug).await? {
            Ok(_) => FoundRole::Live,
            Err(Unknown { has_id, .. }) => FoundRole::Unknown { has_slug: has_id },
        })
    }
}
