//! The fields of an organization.

use serde_json::value::RawValue;

use super::{Fields, NO_ID, NO_TIME, metadata, timestamp, usable_id};
use crate::domain::organization::{FIELDS, Organization, REST_ONLY};
use crate::domain::timestamp::Timestamp;
use crate::workos::json;

/// Moves the organization's fields out of `data`. The remaining fields become [`Organization::extra`].
pub(super) fn parse(data: &mut Fields, fallback: Option<Timestamp>) -> Result<Organization, &'static str> {
    let known: Fields = FIELDS.iter().filter_map(|name| data.remove_entry(*name)).collect();
    data.retain(|name, _| !REST_ONLY.contains(&name.as_str()));
    let field = |name: &str| known.get(name).map(|value| &**value);
    Ok(Organization {
        id: usable_id(field("id")).ok_or(NO_ID)?,
        name: json::text(field("name")).ok_or("name is missing or is not text")?,
        domains: domains(field("domains")),
        metadata: metadata(field("metadata")),
        external_id: json::text(field("external_id")),
        stripe_customer_id: json::text(field("stripe_customer_id")),
        created_at: timestamp(field("created_at")),
        updated_at: timestamp(field("updated_at")).or(fallback).ok_or(NO_TIME)?,
        extra: std::mem::take(data),
    })
}

/// Returns the domains without their verification tokens: a token proves the control of a domain, so it is a secret. A value that
/// is not an array becomes an empty array, and an item that is not an object is omitted.
fn domains(value: Option<&RawValue>) -> Box<RawValue> {
    let items: Vec<Box<RawValue>> = value.and_then(|value| serde_json::from_str(value.get()).ok()).unwrap_or_default();
    let domains: Vec<Fields> = items
        .iter()
        .filter_map(|item| json::object(item.get()))
        .map(|mut domain| {
            domain.remove("verification_token");
            domain
        })
        .collect();
    serde_json::value::to_raw_value(&domains).unwrap_or_else(|_| RawValue::NULL.to_owned())
}
