//! WorkOS's JSON into observations.
//!
//! WorkOS adds fields and types without notice, and strict readers have lost events to that. So only what an event cannot
//! do without is demanded; odd values are normalised, and what cannot be applied is kept with a reason (promise 2).

use bytes::Bytes;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::json::{self, Object};
use super::signature::VerifiedBody;
use crate::domain::event::{Content, Event, Observation, Snapshot};
use crate::domain::timestamp::Timestamp;
use crate::domain::user::{FIELDS, User};
use crate::domain::version::Version;

/// A longer id is no id WorkOS would make, and PostgreSQL could not index it: an event is then kept under a hash of its
/// id, and a user is unusable.
pub(super) const ID_LIMIT: usize = 512;

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
        "session.created" => signed_in(&data, created_at).map_or(Content::Other, Content::SignedIn),
        _ => Content::Other,
    }
}

/// When a session's user signed in; somebody who impersonates the user did not.
fn signed_in(data: &Object, fallback: Option<Timestamp>) -> Option<Timestamp> {
    let field = |name: &str| data.get(name).map(|value| &**value);
    let impersonated = field("impersonator").is_some_and(|by| by.get() != "null")
        || json::string(field("auth_method")).as_deref() == Some("impersonation");
    if impersonated { None } else { timestamp(field("created_at")).or(fallback) }
}

/// The type under which the inbox keeps what cannot even be read as an event.
pub(crate) const UNREADABLE: &str = "unreadable";

/// Reads an event of the Events API. What cannot be read as one is kept all the same: an item of a list has no sender who
/// could be told.
pub(crate) fn listed_event(item: &RawValue) -> Event {
    let payload = Bytes::copy_from_slice(item.get().as_bytes());
    read_event(&payload).unwrap_or_else(|error| {
        let why = match error {
            NotAnEvent::NotAnObject => "it is not a JSON object",
            NotAnEvent::NoId => "it has no text id",
            NotAnEvent::NoType => "it has no text event",
        };
        unreadable(item, why)
    })
}

/// What the inbox keeps of an item that is no event: its bytes, under a hash of them.
pub(crate) fn unreadable(item: &RawValue, why: &'static str) -> Event {
    let payload = Bytes::copy_from_slice(item.get().as_bytes());
    Event {
        id: hashed(UNREADABLE, &payload),
        event_type: UNREADABLE.to_owned(),
        created_at: None,
        user_id: None,
        content: Content::Unusable(why),
        payload,
    }
}

/// Reads what the inbox has kept; its signature or its source was checked when it came. `None` where it still cannot be
/// read as what it is.
pub(crate) fn kept(event_type: &str, created_at: Option<Timestamp>, payload: &Bytes) -> Option<Observation> {
    if event_type == SNAPSHOT {
        let text = std::str::from_utf8(payload).ok()?;
        return snapshot(text, created_at?).ok().map(Observation::Snapshot);
    }
    read_event(payload).ok().map(Observation::Event)
}

/// The `data` of an event that the inbox has kept, fit for PostgreSQL's JSON.
pub(crate) fn kept_data(payload: &[u8]) -> Option<Box<RawValue>> {
    let without_bom = payload.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(payload);
    let fit = json::fit(std::str::from_utf8(without_bom).ok()?);
    json::object(&fit.text)?.remove("data")
}

/// Reads a user of WorkOS's REST API. What cannot be applied becomes an event that holds it, for the quarantine.
pub(crate) fn listed_user(item: &RawValue, observed_at: Timestamp) -> Observation {
    match snapshot(item.get(), observed_at) {
        Ok(snapshot) => Observation::Snapshot(snapshot),
        Err(reason) => Observation::Event(unusable_snapshot(item.get(), observed_at, reason)),
    }
}

/// The type under which the inbox keeps snapshots that could not be applied.
pub(crate) const SNAPSHOT: &str = "snapshot";

/// What the inbox keeps of a snapshot that PostgreSQL refuses.
pub(crate) fn kept_snapshot(snapshot: &Snapshot) -> Event {
    Event {
        id: snapshot.version.id.clone(),
        event_type: SNAPSHOT.to_owned(),
        created_at: Some(snapshot.version.observed_at),
        user_id: Some(snapshot.user.id.clone()),
        content: Content::Other,
        payload: snapshot.payload.clone(),
    }
}

/// What the inbox keeps of a user object that is no snapshot; its `created_at` is when it was observed.
fn unusable_snapshot(text: &str, observed_at: Timestamp, reason: &'static str) -> Event {
    let data = json::object(&json::fit(text).text);
    let id = data.as_ref().map_or_else(|| hashed(SNAPSHOT, text.as_bytes()), snapshot_id);
    Event {
        id,
        event_type: SNAPSHOT.to_owned(),
        created_at: Some(observed_at),
        user_id: data.and_then(|data| usable_id(data.get("id").map(|value| &**value))),
        content: Content::Unusable(reason),
        payload: Bytes::copy_from_slice(text.as_bytes()),
    }
}

/// The same user object has the same id, whatever the order of its fields.
fn snapshot_id(data: &Object) -> String {
    let mut canonical = String::new();
    for (name, value) in data {
        canonical.push_str(name);
        canonical.push(':');
        json::canonical(value, &mut canonical);
    }
    hashed(SNAPSHOT, canonical.as_bytes())
}

fn hashed(kind: &str, bytes: &[u8]) -> String {
    format!("{kind}:{}", hex::encode(Sha256::digest(bytes)))
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
    let id = snapshot_id(&data);
    let user = user(&mut data, Some(observed_at))?;
    let version = Version { updated_at: user.updated_at, observed_at, id };
    Ok(Snapshot { user, version, payload: Bytes::copy_from_slice(object.as_bytes()) })
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

pub(super) fn usable_id(value: Option<&RawValue>) -> Option<String> {
    json::text(value).filter(|id| !id.is_empty() && id.len() <= ID_LIMIT)
}

pub(super) fn bounded_id(id: String) -> String {
    if id.len() <= ID_LIMIT { id } else { format!("sha256:{}", hex::encode(Sha256::digest(&id))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Event {
        read_event(&Bytes::copy_from_slice(json.as_bytes())).unwrap()
    }

    fn with_data(data: &str) -> Event {
        read(&format!(
            r#"{{"id":"event_1","event":"user.updated","created_at":"2026-09-01T08:00:00.000Z","data":{data}}}"#
        ))
    }

    fn live(data: &str) -> User {
        match with_data(data).content {
            Content::Live { user, .. } => *user,
            other => panic!("{other:?}"),
        }
    }

    fn reason(event: &Event) -> Option<&'static str> {
        match event.content {
            Content::Unusable(reason) => Some(reason),
            _ => None,
        }
    }

    #[test]
    fn odd_values_are_normalised_and_absent_ones_are_null() {
        let user = live(
            r#"{"id":"user_1","email":"a@example.test","email_verified":true,"first_name":42,"last_name":true,
                "name":{"x":1},"locale":["en"],"external_id":1.50,"metadata":{"n":1E+2,"b":false,"o":{},"s":"x"},
                "last_sign_in_at":7,"created_at":"2026-09-01 08:15:30.412","updated_at":"not a time"}"#,
        );
        assert_eq!(user.first_name.as_deref(), Some("42"));
        assert_eq!(user.last_name.as_deref(), Some("true"));
        assert_eq!((user.name, user.locale, user.last_sign_in_at), (None, None, None));
        assert_eq!(user.external_id.as_deref(), Some("1.50"));
        let metadata: Vec<_> = user.metadata.iter().map(|(k, v)| (k.as_str(), v.as_deref())).collect();
        assert_eq!(metadata, [("b", Some("false")), ("n", Some("1E+2")), ("o", None), ("s", Some("x"))]);
        assert_eq!(user.created_at.unwrap().to_string(), "2026-09-01T08:15:30.412Z");
        assert_eq!(user.updated_at.to_string(), "2026-09-01T08:00:00.000Z", "the event's time stands in");
        assert!(live(r#"{"id":"u","email":"a","email_verified":false,"metadata":"none"}"#).metadata.is_empty());
    }

    #[test]
    fn what_postgres_and_utf8_refuse_becomes_a_replacement_character() {
        let user = live(
            r#"{"id":"user_1","email":"a@example.test","email_verified":true,
                "first_name":"N\u0000L \ud83d lone \udc00 pair \ud83e\udd80 slash \\u0000","metadata":{"k\u0000":"v\uD800"}}"#,
        );
        assert_eq!(user.first_name.as_deref(), Some("N\u{FFFD}L \u{FFFD} lone \u{FFFD} pair 🦀 slash \\u0000"));
        assert_eq!(user.metadata.get("k\u{FFFD}"), Some(&Some("v\u{FFFD}".to_owned())));
    }

    #[test]
    fn fields_without_a_column_are_kept_to_the_digit() {
        let user = live(
            r#"{"object":"user","id":"u","email":"a","email_verified":true,"big":12345678901234567890123,"e":1e400,"n":null}"#,
        );
        let extra: Vec<_> = user.extra.iter().map(|(name, value)| (name.as_str(), value.get())).collect();
        assert_eq!(extra, [("big", "12345678901234567890123"), ("e", "1e400"), ("n", "null")]);
    }

    #[test]
    fn what_cannot_be_applied_names_its_reason_and_keeps_its_user() {
        for (data, expected) in [
            ("[1]", "data is not an object"),
            (r#"{"email":"a","email_verified":true}"#, "data.id is missing or no id"),
            (r#"{"id":{},"email":"a","email_verified":true}"#, "data.id is missing or no id"),
            (r#"{"id":"","email":"a","email_verified":true}"#, "data.id is missing or no id"),
            (r#"{"id":"u","email":7,"email_verified":true}"#, "email is missing or no text"),
            (r#"{"id":"u","email":"a","email_verified":"yes"}"#, "email_verified is missing or no boolean"),
        ] {
            assert_eq!(reason(&with_data(data)), Some(expected), "{data}");
        }
        let timeless = read(r#"{"id":"e","event":"user.created","data":{"id":"u","email":"a","email_verified":true}}"#);
        assert_eq!(reason(&timeless), Some("there is no time to order it by"));
        let deep = format!(r#"{{"id":"u","x":{}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        let deep = with_data(&deep);
        assert_eq!(reason(&deep), Some("nested deeper than 128 levels"));
        assert_eq!(deep.user_id.as_deref(), Some("u"), "its deletion must find it");
    }

    #[test]
    fn a_delete_needs_only_an_id_and_a_number_will_do() {
        let event = read(r#"{"id":"e","event":"user.deleted","data":{"id":42}}"#);
        assert!(matches!(event.content, Content::Deleted));
        assert_eq!(event.user_id.as_deref(), Some("42"));
    }

    #[test]
    fn an_event_of_any_type_is_tied_to_the_user_it_names() {
        let of = |event_type: &str, data: &str| {
            read(&format!(r#"{{"id":"e","event":"{event_type}","data":{data}}}"#)).user_id
        };
        assert_eq!(of("session.created", r#"{"id":"session_1","user_id":"u"}"#).as_deref(), Some("u"));
        assert_eq!(of("organization.created", r#"{"id":"org_1"}"#), None);
        assert_eq!(of("authentication.oauth_failed", r#"{"user_id":null}"#), None);
        assert_eq!(of("user.linked", r#"{"id":"link_1","user_id":"u"}"#).as_deref(), Some("u"));
        assert_eq!(of("user.renamed", r#"{"id":"u"}"#).as_deref(), Some("u"));
    }

    #[test]
    fn only_a_json_object_with_text_id_and_event_is_an_event() {
        for (body, expected) in [
            (&b""[..], NotAnEvent::NotAnObject),
            (b"[]", NotAnEvent::NotAnObject),
            (b"{\"id\":\"e\",\"event\":\"x\"", NotAnEvent::NotAnObject),
            (b"{\"id\":\"\xFF\"}", NotAnEvent::NotAnObject),
            (b"{}", NotAnEvent::NoId),
            (b"{\"id\":7,\"event\":\"x\"}", NotAnEvent::NoId),
            (b"{\"id\":\"e\"}", NotAnEvent::NoType),
            (b"{\"id\":\"e\",\"event\":null}", NotAnEvent::NoType),
        ] {
            assert_eq!(read_event(&Bytes::copy_from_slice(body)).unwrap_err(), expected);
        }
        assert_eq!(read("\u{FEFF}{\"id\":\"e\",\"event\":\"x\",\"data\":{}}").id, "e");
        let long = read(&format!(r#"{{"id":"{}","event":"x","data":{{}}}}"#, "e".repeat(5_000)));
        assert!(long.id.starts_with("sha256:"), "an id no index takes is kept under its hash");
    }

    #[test]
    fn equal_snapshots_have_equal_ids_whatever_their_key_order() {
        let at = Timestamp::from_unix_micros(0);
        let one = snapshot(r#"{"id":"u","email":"a","email_verified":true,"x":{"b":1,"a":[ 1, 2]}}"#, at).unwrap();
        let two = snapshot(r#"{"x":{"a":[1,2],"b":1},"email_verified":true, "email":"a","id":"u"}"#, at).unwrap();
        let other = snapshot(r#"{"id":"u","email":"b","email_verified":true,"x":{"b":1,"a":[1,2]}}"#, at).unwrap();
        assert_eq!(one.version, two.version);
        assert_ne!(one.version.id, other.version.id);
    }
}
