//! The fields of an organization membership.

use serde_json::value::RawValue;

use super::{Fields, NO_ID, NO_TIME, id_field, timestamp, usable_id};
use crate::domain::membership::{FIELDS, Membership, REST_ONLY, Sides};
use crate::domain::timestamp::Timestamp;
use crate::workos::json;

/// Returns the user and the organization of a membership.
pub(super) fn sides(data: &Fields) -> Option<Sides> {
    Some(Sides { user_id: id_field(data, "user_id")?, organization_id: id_field(data, "organization_id")? })
}

/// Moves the membership's fields out of `data`. The remaining fields become [`Membership::extra`].
pub(super) fn parse(data: &mut Fields, fallback: Option<Timestamp>) -> Result<Membership, &'static str> {
    let known: Fields = FIELDS.iter().filter_map(|name| data.remove_entry(*name)).collect();
    data.retain(|name, _| !REST_ONLY.contains(&name.as_str()));
    let field = |name: &str| known.get(name).map(|value| &**value);
    let role = field("role").and_then(slug);
    Ok(Membership {
        id: usable_id(field("id")).ok_or(NO_ID)?,
        of: sides(&known).ok_or("user_id or organization_id is missing or is not an ID")?,
        status: json::string(field("status")).ok_or("status is missing or is not a string")?,
        roles: roles(field("roles"), role.as_ref()),
        role,
        custom_attributes: field("custom_attributes").and_then(|value| json::object(value.get())).unwrap_or_default(),
        directory_managed: json::boolean(field("directory_managed")).unwrap_or_default(),
        created_at: timestamp(field("created_at")),
        updated_at: timestamp(field("updated_at")).or(fallback).ok_or(NO_TIME)?,
        extra: std::mem::take(data),
    })
}

/// Returns the slugs of all roles. Older events have only `role`.
fn roles(value: Option<&RawValue>, role: Option<&String>) -> Vec<String> {
    let items: Option<Vec<Box<RawValue>>> = value.and_then(|value| serde_json::from_str(value.get()).ok());
    let mut slugs: Vec<String> = items.unwrap_or_default().iter().filter_map(|item| slug(item)).collect();
    if let Some(role) = role.filter(|role| !slugs.contains(role)) {
        slugs.push(role.clone());
    }
    slugs
}

/// Returns the slug of a role: of `{"slug": …}`, or the text itself.
fn slug(value: &RawValue) -> Option<String> {
    match json::object(value.get()) {
        Some(role) => id_field(&role, "slug"),
        None => json::string(Some(value)).filter(|slug| !slug.is_empty()),
    }
}
