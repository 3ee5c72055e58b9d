//! A WorkOS organization, with every documented field and all other fields that WorkOS sent.

use std::collections::BTreeMap;
use std::fmt;

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::value::RawValue;

use super::fields::{self, Extra};
use super::timestamp::Timestamp;

/// The names of the fields that have a column. All other fields of a payload are in [`Organization::extra`].
pub const FIELDS: [&str; 9] =
    ["object", "id", "name", "domains", "metadata", "external_id", "stripe_customer_id", "created_at", "updated_at"];

/// Fields that only the REST API sends. They are not stored: an event would erase them, and the next read would restore them.
pub const REST_ONLY: [&str; 1] = ["allow_profiles_outside_organization"];

/// A live organization as WorkOS describes it (OpenAPI `Organization`). Absent and null fields are both `None`.
///
/// It serializes to WorkOS's JSON: all known fields, then [`Organization::extra`]. WorkOS omits `stripe_customer_id` where there is
/// none. `Debug` shows only the ID.
#[derive(Clone)]
pub struct Organization {
    /// WorkOS's ID. Opaque and never reused.
    pub id: String,
    /// Not unique.
    pub name: String,
    /// A JSON array of the domains as WorkOS describes them, without their verification tokens.
    pub domains: Box<RawValue>,
    /// The application's own key-value pairs.
    pub metadata: BTreeMap<String, Option<String>>,
    /// The application's own ID of the organization.
    pub external_id: Option<String>,
    /// Stripe's ID of the customer.
    pub stripe_customer_id: Option<String>,
    /// When WorkOS created the organization.
    pub created_at: Option<Timestamp>,
    /// When WorkOS last updated the organization. If WorkOS did not send it, the time of the event.
    pub updated_at: Timestamp,
    /// Fields without a column.
    pub extra: Extra,
}

impl fmt::Debug for Organization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Organization").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Organization {
    /// Returns the names of the fields that differ.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let known = [
            ("name", self.name == other.name),
            ("domains", fields::is_same(Some(&self.domains), Some(&other.domains))),
            ("metadata", self.metadata == other.metadata),
            ("external_id", self.external_id == other.external_id),
            ("stripe_customer_id", self.stripe_customer_id == other.stripe_customer_id),
            ("created_at", self.created_at == other.created_at),
            ("updated_at", self.updated_at == other.updated_at),
        ];
        fields::differences(&known, &self.extra, &other.extra)
    }
}

impl Serialize for Organization {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("object", "organization")?;
        map.serialize_entry("id", &self.id)?;
        map.serialize_entry("name", &self.name)?;
        map.serialize_entry("domains", &self.domains)?;
        map.serialize_entry("metadata", &self.metadata)?;
        map.serialize_entry("external_id", &self.external_id)?;
        if let Some(customer) = &self.stripe_customer_id {
            map.serialize_entry("stripe_customer_id", customer)?;
        }
        map.serialize_entry("created_at", &self.created_at)?;
        map.serialize_entry("updated_at", &self.updated_at)?;
        for (name, value) in &self.extra {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}
