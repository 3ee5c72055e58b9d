//! Roles and permissions. WorkOS keys them by a reusable slug, so they have no tombstones: WorkOS's list is the truth.

use std::collections::{BTreeMap, BTreeSet};

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::fields::{self, Extra};
use super::object::Difference;
use super::timestamp::Timestamp;

/// A kind of list entries that WorkOS keys by a slug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ListKind {
    /// A role of the environment.
    Role,
    /// A role of one organization.
    OrganizationRole,
    /// A permission of the environment.
    Permission,
}

impl ListKind {
    /// Returns the event type of a change of an entry of this kind.
    #[must_use]
    pub fn event_type(self, difference: Difference) -> &'static str {
        match (self, difference) {
            (Self::Role, Difference::Created) => "role.created",
            (Self::Role, Difference::Updated) => "role.updated",
            (Self::Role, Difference::Deleted) => "role.deleted",
            (Self::OrganizationRole, Difference::Created) => "organization_role.created",
            (Self::OrganizationRole, Difference::Updated) => "organization_role.updated",
            (Self::OrganizationRole, Difference::Deleted) => "organization_role.deleted",
            (Self::Permission, Difference::Created) => "permission.created",
            (Self::Permission, Difference::Updated) => "permission.updated",
            (Self::Permission, Difference::Deleted) => "permission.deleted",
        }
    }

    /// Returns the kind of entry that an event of this type is about, and what happened to it. `None` for other types.
    #[must_use]
    pub fn of_event_type(event_type: &str) -> Option<(Self, Difference)> {
        let (word, verb) = event_type.split_once('.')?;
        let kind = match word {
            "role" => Self::Role,
            "organization_role" => Self::OrganizationRole,
            "permission" => Self::Permission,
            _ => return None,
        };
        Some((kind, Difference::read(verb)?))
    }
}

/// A role of the environment or of one organization, as WorkOS lists it (OpenAPI `Role`). It serializes to WorkOS's JSON.
#[derive(Clone, Debug)]
pub struct Role {
    /// Names the role in its environment or organization. It cannot change, but it can be reused.
    pub slug: String,
    /// WorkOS's ID of the role.
    pub id: Option<String>,
    /// Display name.
    pub name: Option<String>,
    /// For people.
    pub description: Option<String>,
    /// `EnvironmentRole` or `OrganizationRole`.
    pub role_type: Option<String>,
    /// The slug of the type of resources that it applies to.
    pub resource_type_slug: Option<String>,
    /// The slugs of its permissions.
    pub permissions: Vec<String>,
    /// When WorkOS created it.
    pub created_at: Option<Timestamp>,
    /// When WorkOS last updated it.
    pub updated_at: Option<Timestamp>,
    /// Fields without a column.
    pub extra: Extra,
}

/// A permission, as WorkOS lists it (OpenAPI `Permission`). It serializes to WorkOS's JSON.
#[derive(Clone, Debug)]
pub struct Permission {
    /// Names the permission. It can be reused.
    pub slug: String,
    /// WorkOS's ID of the permission.
    pub id: Option<String>,
    /// Display name.
    pub name: Option<String>,
    /// For people.
    pub description: Option<String>,
    /// WorkOS itself manages it.
    pub system: bool,
    /// The slug of the type of resources that it applies to.
    pub resource_type_slug: Option<String>,
    /// When WorkOS created it.
    pub created_at: Option<Timestamp>,
    /// When WorkOS last updated it.
    pub updated_at: Option<Timestamp>,
    /// Fields without a column.
    pub extra: Extra,
}

impl Role {
    /// Returns the names of the fields that differ. The order of permissions has no meaning.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let set = |role: &Self| role.permissions.iter().cloned().collect::<BTreeSet<String>>();
        let known = [
            ("id", self.id == other.id),
            ("name", self.name == other.name),
            ("description", self.description == other.description),
            ("type", self.role_type == other.role_type),
            ("resource_type_slug", self.resource_type_slug == other.resource_type_slug),
            ("permissions", set(self) == set(other)),
            ("created_at", self.created_at == other.created_at),
            ("updated_at", self.updated_at == other.updated_at),
        ];
        fields::differences(&known, &self.extra, &other.extra)
    }

    /// Returns whether the role belongs to one organization. WorkOS lists the roles of the environment among those of an
    /// organization.
    #[must_use]
    pub fn is_of_organization(&self) -> bool {
        match &self.role_type {
            Some(role_type) => role_type == "OrganizationRole",
            // WorkOS reserves this prefix for the roles of organizations.
            None => self.slug.starts_with("org-"),
        }
    }
}

impl Permission {
    /// Returns the names of the fields that differ.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let known = [
            ("id", self.id == other.id),
            ("name", self.name == other.name),
            ("description", self.description == other.description),
            ("system", self.system == other.system),
            ("resource_type_slug", self.resource_type_slug == other.resource_type_slug),
            ("created_at", self.created_at == other.created_at),
            ("updated_at", self.updated_at == other.updated_at),
        ];
        fields::differences(&known, &self.extra, &other.extra)
    }
}

/// What must be read from WorkOS again, because an event reports a change without the new state.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refresh {
    /// The roles and permissions of the environment.
    Roles,
    /// The roles of an organization.
    OrganizationRoles(String),
    /// An organization: one of its domains has changed, or a membership names it and it is not stored.
    Organization(String),
}

impl Refresh {
    /// Returns the word for the database, metrics and logs.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Roles => "roles",
            Self::OrganizationRoles(_) => "organization_roles",
            Self::Organization(_) => "organization",
        }
    }

    /// Returns the ID of the organization. Empty for the environment.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::Roles => "",
            Self::OrganizationRoles(id) | Self::Organization(id) => id,
        }
    }

    /// Parses the columns of the database.
    #[must_use]
    pub fn read(kind: &str, id: String) -> Option<Self> {
        match kind {
            "roles" => Some(Self::Roles),
            "organization_roles" => Some(Self::OrganizationRoles(id)),
            "organization" => Some(Self::Organization(id)),
            _ => None,
        }
    }
}

/// Merges the roles of the environment with those of an organization, in order of priority. Each role of the organization has its
/// place in WorkOS's list of both; without a place it comes last. It takes precedence over a role of the environment with the same
/// slug.
#[must_use]
pub fn merge(environment: Vec<Role>, mut own: Vec<(Option<i32>, Role)>) -> Vec<Role> {
    own.sort_by_key(|(place, _)| place.unwrap_or(i32::MAX));
    let taken: BTreeSet<String> = own.iter().map(|(_, role)| role.slug.clone()).collect();
    let mut own = own.into_iter().peekable();
    let mut merged: Vec<Role> = Vec::new();
    for role in environment.into_iter().filter(|role| !taken.contains(&role.slug)) {
        let is_next = |place: Option<i32>, next: usize| {
            place.and_then(|place| usize::try_from(place).ok()).is_some_and(|place| place <= next)
        };
        while let Some((_, own)) = own.next_if(|(place, _)| is_next(*place, merged.len())) {
            merged.push(own);
        }
        merged.push(role);
    }
    merged.extend(own.map(|(_, role)| role));
    merged
}

impl Serialize for Role {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("object", "role")?;
        map.serialize_entry("id", &self.id)?;
        map.serialize_entry("slug", &self.slug)?;
        map.serialize_entry("name", &self.name)?;
        map.serialize_entry("description", &self.description)?;
        map.serialize_entry("type", &self.role_type)?;
        map.serialize_entry("resource_type_slug", &self.resource_type_slug)?;
        map.serialize_entry("permissions", &self.permissions)?;
        serialize_rest::<S>(&mut map, self.created_at, self.updated_at, &self.extra)?;
        map.end()
    }
}

impl Serialize for Permission {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("object", "permission")?;
        map.serialize_entry("id", &self.id)?;
        map.serialize_entry("slug", &self.slug)?;
        map.serialize_entry("name", &self.name)?;
        map.serialize_entry("description", &self.description)?;
        map.serialize_entry("system", &self.system)?;
        map.serialize_entry("resource_type_slug", &self.resource_type_slug)?;
        serialize_rest::<S>(&mut map, self.created_at, self.updated_at, &self.extra)?;
        map.end()
    }
}

fn serialize_rest<S: Serializer>(
    map: &mut S::SerializeMap,
    created_at: Option<Timestamp>,
    updated_at: Option<Timestamp>,
    extra: &BTreeMap<String, Box<serde_json::value::RawValue>>,
) -> Result<(), S::Error> {
    map.serialize_entry("created_at", &created_at)?;
    map.serialize_entry("updated_at", &updated_at)?;
    for (name, value) in extra {
        map.serialize_entry(name, value)?;
    }
    Ok(())
}
