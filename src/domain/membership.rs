//! A WorkOS organization membership, with every documented field and all other fields that WorkOS sent.

use std::fmt;

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::fields::{self, Extra};
use super::timestamp::Timestamp;
use super::user::User;

/// The names of the fields that have a column. All other fields of a payload are in [`Membership::extra`].
pub const FIELDS: [&str; 11] = [
    "object",
    "id",
    "user_id",
    "organization_id",
    "status",
    "role",
    "roles",
    "custom_attributes",
    "directory_managed",
    "created_at",
    "updated_at",
];

/// Fields that only the REST API sends: copies of other objects. They are not stored.
pub const REST_ONLY: [&str; 2] = ["organization_name", "user"];

/// The documented statuses.
pub const STATUSES: [&str; 3] = [ACTIVE, "inactive", "pending"];

/// The status of a membership that counts.
pub const ACTIVE: &str = "active";

/// The user and the organization of a membership. They never change. A tombstone keeps them, because a request names a membership
/// by its user and its organization.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sides {
    /// The user's ID.
    pub user_id: String,
    /// The organization's ID.
    pub organization_id: String,
}

/// A membership that was not deleted, as WorkOS describes it (OpenAPI `UserlandUserOrganizationMembership`), in any status.
///
/// It serializes to WorkOS's JSON: all known fields, then [`Membership::extra`]. `Debug` shows only the ID.
#[derive(Clone)]
pub struct Membership {
    /// WorkOS's ID. A re-added member has a new one.
    pub id: String,
    /// The user and the organization.
    pub of: Sides,
    /// `active`, `inactive` or `pending`. WorkOS may add others.
    pub status: String,
    /// The slug of the role of highest priority. `None` in the short form of some answers.
    pub role: Option<String>,
    /// The slugs of all roles, [`Membership::role`] among them. The order has no meaning.
    pub roles: Vec<String>,
    /// Attributes from the identity provider.
    pub custom_attributes: Extra,
    /// A directory manages the membership.
    pub directory_managed: bool,
    /// When WorkOS created the membership.
    pub created_at: Option<Timestamp>,
    /// When WorkOS last updated the membership. If WorkOS did not send it, the time of the event.
    pub updated_at: Timestamp,
    /// Fields without a column.
    pub extra: Extra,
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Membership").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Membership {
    /// Returns the names of the fields that differ.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let known = [
            ("user_id", self.of.user_id == other.of.user_id),
            ("organization_id", self.of.organization_id == other.of.organization_id),
            ("status", self.status == other.status),
            ("role", self.role == other.role),
            ("roles", sorted(&self.roles) == sorted(&other.roles)),
            (
                "custom_attributes",
                fields::differences(&[], &self.custom_attributes, &other.custom_attributes).is_empty(),
            ),
            ("directory_managed", self.directory_managed == other.directory_managed),
            ("created_at", self.created_at == other.created_at),
            ("updated_at", self.updated_at == other.updated_at),
        ];
        fields::differences(&known, &self.extra, &other.extra)
    }
}

fn sorted(slugs: &[String]) -> Vec<&String> {
    let mut slugs: Vec<&String> = slugs.iter().collect();
    slugs.sort_unstable();
    slugs
}

/// A role in a membership's JSON.
#[derive(serde::Serialize)]
struct Slug<'a> {
    slug: &'a str,
}

impl Serialize for Membership {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("object", "organization_membership")?;
        map.serialize_entry("id", &self.id)?;
        map.serialize_entry("user_id", &self.of.user_id)?;
        map.serialize_entry("organization_id", &self.of.organization_id)?;
        map.serialize_entry("status", &self.status)?;
        map.serialize_entry("role", &self.role.as_deref().map(|slug| Slug { slug }))?;
        map.serialize_entry("roles", &self.roles.iter().map(|slug| Slug { slug }).collect::<Vec<_>>())?;
        map.serialize_entry("custom_attributes", &self.custom_attributes)?;
        map.serialize_entry("directory_managed", &self.directory_managed)?;
        map.serialize_entry("created_at", &self.created_at)?;
        map.serialize_entry("updated_at", &self.updated_at)?;
        for (name, value) in &self.extra {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// A membership as WorkOS's REST API describes it: with copies of other objects, which its events do not contain. It serializes to
/// WorkOS's JSON.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ListedMembership {
    /// The membership.
    #[serde(flatten)]
    pub membership: Membership,
    /// The name of the organization. `None` if the organization is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub organization_name: Option<String>,
    /// The user. `None` if the user is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<User>,
}
