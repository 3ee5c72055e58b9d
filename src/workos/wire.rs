//! WorkOS's JSON into observations.
//!
//! WorkOS adds fields and types without notice, and strict readers have lost events to that. So only what an event cannot
//! do without is demanded; odd values are normalised, and what cannot be applied is kept with a reason (promise 2).

use bytes::Bytes;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::json::{self, Object};
use super::signature::VerifiedBody;
use crate::domain::event::{Content, Event, Snapshot};
use crate::domain::timestamp::Timestamp;
use crate::domain::user::{FIELDS, User};
use crate::domain::version::Version;

/// A longer id is no id WorkOS would make, and PostgreSQL could not index it: an event is then kept under a hash of its
/// id, and a user is unusable.
const ID_LIMIT: usize = 512;

/// A signed body that is not a JSON object with text `id` and `event`; WorkOS hears 400, so that it shows in its dashboard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAnEvent {
    /// Not UTF-8, not JSON, or not an object.
    #[error("the body is signed, but it is not a JSON object")]
    NotAnObject,
    /// No `id`, or one that is no text.
    #[error("the body is signed, but it has no text id")]
    NoId,
    /// No `event`, or one that is no text.
    #[error("the body is signed, but it has no text event")]
    NoType,
}

/// Reads a webhook's body.
///
/// # Errors
/// [`NotAnEvent`]; every other oddity is normalised, or kept in the event as [`Content::Unusable`].
pub fn event(body: &VerifiedBody) -> Result<Event, NotAnEvent> {
    read_event(body.bytes())
}

fn read_event(payload: &Bytes) -> Result<Event, NotAnEvent> {
    let without_bom = payload.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(payload);
    let text = std::str::from_utf8(without_bom).map_err(|_| NotAnEvent::NotAnObject)?;
    let fit = json::fit(text);
    let envelope = json::object(&fit.text).ok_or(NotAnEvent::NotAnObject)?;
    let field = |name: &str| envelope.get(name).map(|value| &**value);
    let id = json::string(field("id")).filter(|id| !id.is_empty()).ok_or(NotAnEvent::NoId)?;
    let event_type = json::string(field("event")).filter(|name| !name.is_empty()).ok_or(NotAnEvent::NoType)?;
    let created_at = timestamp(field("created_at"));
    let data = field("data").and_then(|data| json::object(data.get()));
    let id = bounded_id(id);
    let user_id = data.as_ref().and_then(|data| subject(&event_type, data));
    let content = if fit.too_deep {
        Content::Unusable("nested deeper than 128 levels")
    } else {
        match data {
            Some(data) => content(&id, &event_type, created_at, data),
            None => Content::Unusable("data is not an object"),
        }
    };
    Ok(Event { id, event_type, created_at, user_id, content, payload: payload.clone() })
}

/// The user an event is about: `data.id` of the three types that describe a user; of any other, `data.user_id`. A `user.*`
/// type we do not know may use either, as a link between a user and something else would.
fn subject(event_type: &str, data: &Object) -> Option<String> {
    let named = |name: &str| usable_id(data.get(name).map(|value| &**value));
    match event_type {
        "user.created" | "user.updated" | "user.deleted" => named("id"),
        other if other.starts_with("user.") => named("user_id").or_else(|| named("id")),
        _ => named("user_id"),
    }
}

fn content(event_id: &str, event_type: &str, created_at: Option<Timestamp>, mut data: Object) -> Content {
    if event_type.starts_with("user.") && usable_id(data.get("id").map(|value| &**value)).is_none() {
        return Content::Unusable("data.id is missing or no id");
    }
    match event_type {
        "user.deleted" => Content::Deleted,
        "user.created" | "user.updated" => match user(&mut data, created_at) {
            Ok(user) => Content::Live {
                version: Version {
                    updated_at: user.updated_at,
                    observed_at: created_at.unwrap_or(user.updated_at),
                    id: event_id.to_owned(),
                },
                user: Box::new(user),
            },
            Err(reason) => Content::Unusable(reason),
        },
        _ => Content::Other,
    }
}

/// Reads a user object of WorkOS's REST API, observed at `observed_at` (its `Date` header less the request's duration).
///
/// # Errors
/// The reason, in words that hold nothing of the object, why it cannot be applied.
pub fn snapshot(object: &str, observed_at: Timestamp) -> Result<Snapshot, &'static str> {
    let fit = json::fit(object);
    if fit.too_deep {
        return Err("nested deeper than 128 levels");
    }
    let mut data = json::object(&fit.text).ok_or("the user is not a JSON object")?;
    let mut canonical = String::new();
    for (name, value) in &data {
        canonical.push_str(name);
        canonical.push(':');
        json::canonical(value, &mut canonical);
    }
    let id = format!("snapshot:{}", hex::encode(Sha256::digest(canonical)));
    let user = user(&mut data, Some(observed_at))?;
    let version = Version { updated_at: user.updated_at, observed_at, id };
    Ok(Snapshot { user, version })
}

/// Takes the user's fields out of `data`; what is left is its [`User::extra`].
fn user(data: &mut Object, fallback: Option<Timestamp>) -> Result<User, &'static str> {
    let known: Object = FIELDS.iter().filter_map(|name| data.remove_entry(*name)).collect();
    let field = |name: &str| known.get(name).map(|value| &**value);
    Ok(User {
        id: usable_id(field("id")).ok_or("data.id is missing or no id")?,
        email: json::string(field("email")).ok_or("email is missing or no text")?,
        email_verified: json::boolean(field("email_verified")).ok_or("email_verified is missing or no boolean")?,
        first_name: json::text(field("first_name")),
        last_name: json::text(field("last_name")),
        name: json::text(field("name")),
        profile_picture_url: json::text(field("profile_picture_url")),
        external_id: json::text(field("external_id")),
        metadata: field("metadata")
            .and_then(|metadata| json::object(metadata.get()))
            .map(|pairs| pairs.into_iter().map(|(name, value)| (name, json::text(Some(&value)))).collect())
            .unwrap_or_default(),
        last_sign_in_at: timestamp(field("last_sign_in_at")),
        locale: json::text(field("locale")),
        created_at: timestamp(field("created_at")),
        updated_at: timestamp(field("updated_at")).or(fallback).ok_or("there is no time to order it by")?,
        extra: std::mem::take(data),
    })
}

fn timestamp(value: Option<&RawValue>) -> Option<Timestamp> {
    json::string(value).and_then(|text| Timestamp::parse(&text))
}

fn usable_id(value: Option<&RawValue>) -> Option<String> {
    json::text(value).filter(|id| !id.is_empty() && id.len() <= ID_LIMIT)
}

fn bounded_id(id: String) -> String {
    if id.len() <= ID_LIMIT { id } else { format!("sha256:{}", hex::encode(Sha256::digest(&id))) }
}
