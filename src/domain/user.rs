//! A WorkOS user, with every documented field and all other fields that WorkOS sent.

use std::collections::BTreeMap;
use std::fmt;

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::fields::{self, Extra};
use super::timestamp::Timestamp;

/// The names of the fields that have a column. All other fields of a payload are in [`User::extra`].
pub const FIELDS: [&str; 14] = [
    "object",
    "id",
    "email",
    "email_verified",
    "first_name",
    "last_name",
    "name",
    "profile_picture_url",
    "external_id",
    "metadata",
    "last_sign_in_at",
    "locale",
    "created_at",
    "updated_at",
];

/// The field that WorkOS updates without an event.
pub const LAST_SIGN_IN_AT: &str = "last_sign_in_at";

/// A live user as WorkOS describes it (OpenAPI `UserlandUser`). Absent and null fields are both `None`.
///
/// It serializes to WorkOS's JSON: all known fields, absent ones as null, then [`User::extra`]. `Debug` shows only the ID, so that
/// a log line contains no personal data.
#[derive(Clone)]
pub struct User {
    /// WorkOS's ID. Opaque and never reused.
    pub id: String,
    /// Unique among live users at WorkOS, but not here: a new user can arrive before the deletion of the previous one.
    pub email: String,
    /// Whether WorkOS has verified the email address.
    pub email_verified: bool,
    /// Given name.
    pub first_name: Option<String>,
    /// Family name.
    pub last_name: Option<String>,
    /// Display name. WorkOS has sent it since June 2026.
    pub name: Option<String>,
    /// URL of the profile picture.
    pub profile_picture_url: Option<String>,
    /// The application's own ID of the user.
    pub external_id: Option<String>,
    /// The application's own key-value pairs.
    pub metadata: BTreeMap<String, Option<String>>,
    /// Last sign-in. WorkOS updates it without updating `updated_at`.
    pub last_sign_in_at: Option<Timestamp>,
    /// For example `en-GB`.
    pub locale: Option<String>,
    /// When WorkOS created the user.
    pub created_at: Option<Timestamp>,
    /// When WorkOS last updated the user. If WorkOS did not send it, the time of the event.
    pub updated_at: Timestamp,
    /// Fields without a column.
    pub extra: Extra,
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User").field("id", &self.id).finish_non_exhaustive()
    }
}

impl User {
    /// Returns the names of the fields that differ. Fields without a column are compared as JSON values, not as text.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let known = [
            ("email", self.email == other.email),
            ("email_verified", self.email_verified == other.email_verified),
            ("first_name", self.first_name == other.first_name),
            ("last_name", self.last_name == other.last_name),
            ("name", self.name == other.name),
            ("profile_picture_url", self.profile_picture_url == other.profile_picture_url),
            ("external_id", self.external_id == other.external_id),
            ("metadata", self.metadata == other.metadata),
            (LAST_SIGN_IN_AT, self.last_sign_in_at == other.last_sign_in_at),
            ("locale", self.locale == other.locale),
            ("created_at", self.created_at == other.created_at),
            ("updated_at", self.updated_at == other.updated_at),
        ];
        fields::differences(&known, &self.extra, &other.extra)
    }
}

impl Serialize for User {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(FIELDS.len() + self.extra.len()))?;
        map.serialize_entry("object", "user")?;
        map.serialize_entry("id", &self.id)?;
        map.serialize_entry("email", &self.email)?;
        map.serialize_entry("email_verified", &self.email_verified)?;
        map.serialize_entry("first_name", &self.first_name)?;
        map.serialize_entry("last_name", &self.last_name)?;
        map.serialize_entry("name", &self.name)?;
        map.serialize_entry("profile_picture_url", &self.profile_picture_url)?;
        map.serialize_entry("external_id", &self.external_id)?;
        map.serialize_entry("metadata", &self.metadata)?;
        map.serialize_entry("last_sign_in_at", &self.last_sign_in_at)?;
        map.serialize_entry("locale", &self.locale)?;
        map.serialize_entry("created_at", &self.created_at)?;
        map.serialize_entry("updated_at", &self.updated_at)?;
        for (name, value) in &self.extra {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}
