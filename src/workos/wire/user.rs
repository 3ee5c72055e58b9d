//! The fields of a user.

use super::{Fields, NO_ID, NO_TIME, metadata, timestamp, usable_id};
use crate::domain::timestamp::Timestamp;
use crate::domain::user::{FIELDS, User};
use crate::workos::json;

/// Moves the user's fields out of `data`. The remaining fields become [`User::extra`].
pub(super) fn parse(data: &mut Fields, fallback: Option<Timestamp>) -> Result<User, &'static str> {
    let known: Fields = FIELDS.iter().filter_map(|name| data.remove_entry(*name)).collect();
    let field = |name: &str| known.get(name).map(|value| &**value);
    Ok(User {
        id: usable_id(field("id")).ok_or(NO_ID)?,
        email: json::string(field("email")).ok_or("email is missing or is not a string")?,
        email_verified: json::boolean(field("email_verified"))
            .ok_or("email_verified is missing or is not a boolean")?,
        first_name: json::text(field("first_name")),
        last_name: json::text(field("last_name")),
        name: json::text(field("name")),
        profile_picture_url: json::text(field("profile_picture_url")),
        external_id: json::text(field("external_id")),
        metadata: metadata(field("metadata")),
        last_sign_in_at: timestamp(field("last_sign_in_at")),
        locale: json::text(field("locale")),
        created_at: timestamp(field("created_at")),
        updated_at: timestamp(field("updated_at")).or(fallback).ok_or(NO_TIME)?,
        extra: std::mem::take(data),
    })
}
