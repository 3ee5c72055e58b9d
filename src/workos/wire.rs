//! Parses WorkOS's JSON into observations.
//!
//! WorkOS adds fields and types without notice, and a strict parser would lose events. So only the essential fields are required.
//! Unexpected values are normalized, and what cannot be applied is stored with a reason (promise 2).

mod membership;
mod organization;
mod redaction;
mod role;
mod user;

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

pub(crate) use role::{permission, role};

use super::json::{self, Object as Fields};
use super::signature::VerifiedBody;
use crate::domain::change::Difference;
use crate::domain::event::{Content, Deletion, Event, Observation, Snapshot};
use crate::domain::object::{Kind, Object};
use crate::domain::role::Refresh;
use crate::domain::timestamp::Timestamp;
use crate::domain::version::Version;

pub(crate) use redaction::{TYPE_WORDS as REDACTED_TYPE_WORDS, redacted};

/// Maximum length of an ID in bytes. WorkOS's IDs are shorter, and PostgreSQL cannot index longer ones. An event with a longer ID
/// is stored under a hash of its ID, and a user with a longer ID is quarantined.
pub(super) const ID_LIMIT: usize = 512;

/// The signed body is not an event: a JSON object with text `id` and `event`. The service answers 400, which the WorkOS dashboard
/// shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAnEvent {
    /// The body is not UTF-8, not JSON, or not an object.
    #[error("the signature is valid, but the body is not a JSON object")]
    NotAnObject,
    /// `id` is missing or is not a string.
    #[error("the signature is valid, but the body has no string `id`")]
    NoId,
    /// `event` is missing or is not a string.
    #[error("the signature is valid, but the body has no string `event`")]
    NoType,
}

/// Parses a webhook's body. The event has no secrets, neither in its content nor in its payload.
///
/// # Errors
/// [`NotAnEvent`]. Other unexpected values are normalized, or make the event [`Content::Unusable`].
pub fn event(body: &VerifiedBody) -> Result<Event, NotAnEvent> {
    read_event(body.bytes())
}

/// Parses an event without its secrets. Which fields are secret depends on the type, so only an event with secrets is parsed twice.
fn read_event(payload: &Bytes) -> Result<Event, NotAnEvent> {
    let event = parse_event(payload)?;
    match redacted(&event.event_type, payload) {
        Some(redacted) => parse_event(&Bytes::from(redacted)),
        None => Ok(event),
    }
}

fn parse_event(payload: &Bytes) -> Result<Event, NotAnEvent> {
    let without_bom = payload.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(payload);
    let text = std::str::from_utf8(without_bom).map_err(|_| NotAnEvent::NotAnObject)?;
    let sanitized = json::sanitize(text);
    let envelope = json::object(&sanitized.text).ok_or(NotAnEvent::NotAnObject)?;
    let field = |name: &str| envelope.get(name).map(|value| &**value);
    let id = json::string(field("id")).filter(|id| !id.is_empty()).ok_or(NotAnEvent::NoId)?;
    let event_type = json::string(field("event")).filter(|name| !name.is_empty()).ok_or(NotAnEvent::NoType)?;
    let created_at = timestamp(field("created_at"));
    let data = field("data").and_then(|data| json::object(data.get()));
    let id = bounded_id(id);
    let user_id = data.as_ref().and_then(|data| subject(&event_type, data));
    let content = if sanitized.too_deep && !needs_only_id(&event_type) {
        Content::Unusable("nested deeper than 128 levels")
    } else {
        match data {
            Some(data) => content(&id, &event_type, created_at, data),
            None => Content::Unusable("data is not an object"),
        }
    };
    Ok(Event { id, event_type, created_at, user_id, content, payload: payload.clone() })
}

/// Returns whether the event ends an object or a session: then only its ID is read, so nothing else can be unusable (promise 4).
fn needs_only_id(event_type: &str) -> bool {
    let is_deletion = Kind::of_event_type(event_type).is_some_and(|(_, difference)| difference == Difference::Deleted);
    is_deletion || event_type == "session.revoked"
}

/// Returns the ID of the user that an event is about: `data.id` for the three types that describe a user, `data.user_id` for
/// others. An unknown `user.*` type can use either field. An invitation names the user who accepted it.
fn subject(event_type: &str, data: &Fields) -> Option<String> {
    match event_type {
        "user.created" | "user.updated" | "user.deleted" => id_field(data, "id"),
        other if other.starts_with("user.") => id_field(data, "user_id").or_else(|| id_field(data, "id")),
        other if other.starts_with("invitation.") => id_field(data, "accepted_user_id"),
        _ => id_field(data, "user_id"),
    }
}

fn content(event_id: &str, event_type: &str, created_at: Option<Timestamp>, mut data: Fields) -> Content {
    let id = id_field(&data, "id");
    let Some((kind, difference)) = Kind::of_event_type(event_type) else {
        return match id {
            None if event_type.starts_with("user.") => Content::Unusable(NO_ID),
            id => other_content(event_type, created_at, id, &data),
        };
    };
    let Some(id) = id else { return Content::Unusable(NO_ID) };
    if difference == Difference::Deleted {
        let of = if kind == Kind::Membership { membership::sides(&data) } else { None };
        return Content::Deleted(Box::new(Deletion { kind, id, of }));
    }
    match object(kind, &mut data, created_at) {
        Ok(object) => {
            let updated_at = object.updated_at();
            let observed_at = created_at.unwrap_or(updated_at);
            let version = Version { updated_at, observed_at, id: event_id.to_owned() };
            Content::Live { object: Box::new(object), version }
        }
        Err(reason) => Content::Unusable(reason),
    }
}

/// The content of an event that describes no object.
fn other_content(event_type: &str, created_at: Option<Timestamp>, id: Option<String>, data: &Fields) -> Content {
    let organization = || {
        let nested = data.get("organization_domain").and_then(|domain| json::object(domain.get()));
        id_field(data, "organization_id").or_else(|| id_field(&nested?, "organization_id"))
    };
    match event_type.split_once('.') {
        Some(("session", "created")) => signed_in(data, created_at).map_or(Content::Other, Content::SignedIn),
        Some(("session", "revoked")) => id.map_or(Content::Unusable(NO_ID), Content::SessionRevoked),
        Some(("role" | "permission", _)) => Content::Changed(Refresh::Roles),
        Some(("organization_role", _)) => {
            organization().map_or(Content::Other, |id| Content::Changed(Refresh::OrganizationRoles(id)))
        }
        Some(("organization_domain", _)) => {
            organization().map_or(Content::Other, |id| Content::Changed(Refresh::Organization(id)))
        }
        _ => Content::Other,
    }
}

/// Returns when the user of a session signed in, or `None` if an administrator impersonates the user.
fn signed_in(data: &Fields, fallback: Option<Timestamp>) -> Option<Timestamp> {
    let field = |name: &str| data.get(name).map(|value| &**value);
    let impersonated = field("impersonator").is_some_and(|by| by.get() != "null")
        || json::string(field("auth_method")).as_deref() == Some("impersonation");
    if impersonated { None } else { timestamp(field("created_at")).or(fallback) }
}

/// The type of inbox rows for list items that are not events.
pub(crate) const UNREADABLE: &str = "unreadable";

/// Parses an item of the Events API. An item that is not an event is stored too, because no sender could be answered 400.
pub(crate) fn listed_event(item: &RawValue) -> Event {
    let payload = Bytes::copy_from_slice(item.get().as_bytes());
    read_event(&payload).unwrap_or_else(|error| {
        let why = match error {
            NotAnEvent::NotAnObject => "it is not a JSON object",
            NotAnEvent::NoId => "`id` is missing or is not a string",
            NotAnEvent::NoType => "`event` is missing or is not a string",
        };
        unreadable(item, why)
    })
}

/// Returns the inbox row for a list item that is not an event. Its ID is a hash of its bytes without secrets.
pub(crate) fn unreadable(item: &RawValue, why: &'static str) -> Event {
    let item = item.get().as_bytes();
    let payload = redacted(UNREADABLE, item).map_or_else(|| Bytes::copy_from_slice(item), Bytes::from);
    Event {
        id: hashed(UNREADABLE, &payload),
        event_type: UNREADABLE.to_owned(),
        created_at: None,
        user_id: None,
        content: Content::Unusable(why),
        payload,
    }
}

/// Parses a payload of the inbox. Its signature or source was verified when it was received. Returns `None` if it still cannot
/// be parsed.
pub(crate) fn stored_observation(
    event_type: &str,
    created_at: Option<Timestamp>,
    payload: &Bytes,
) -> Option<Observation> {
    if event_type == SNAPSHOT {
        let text = std::str::from_utf8(payload).ok()?;
        let kind = json::object(text).and_then(|data| kind_of(&data)).unwrap_or(Kind::User);
        return snapshot_of(kind, text, created_at?).ok().map(Observation::Snapshot);
    }
    read_event(payload).ok().map(Observation::Event)
}

/// Returns the `data` of a stored event without secrets, as JSON that PostgreSQL accepts. An earlier release stored secrets.
pub(crate) fn stored_data(payload: &[u8]) -> Option<Box<RawValue>> {
    let without_bom = payload.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(payload);
    let sanitized = json::sanitize(std::str::from_utf8(without_bom).ok()?);
    let mut envelope = json::object(&sanitized.text)?;
    let event_type = json::string(envelope.get("event").map(|value| &**value)).unwrap_or_default();
    match redacted(&event_type, sanitized.text.as_bytes()) {
        Some(redacted) => json::object(std::str::from_utf8(&redacted).ok()?)?.remove("data"),
        None => envelope.remove("data"),
    }
}

/// Parses an object of the REST API. An object that cannot be applied becomes an event with its payload, for the quarantine.
pub(crate) fn listed(kind: Kind, item: &RawValue, observed_at: Timestamp) -> Observation {
    match snapshot_of(kind, item.get(), observed_at) {
        Ok(snapshot) => Observation::Snapshot(snapshot),
        Err(reason) => Observation::Event(unusable_snapshot(kind, item.get(), observed_at, reason)),
    }
}

/// The type of inbox rows for snapshots that could not be applied.
pub(crate) const SNAPSHOT: &str = "snapshot";

/// Returns the inbox row for a snapshot that PostgreSQL rejects.
pub(crate) fn kept_snapshot(snapshot: &Snapshot) -> Event {
    Event {
        id: snapshot.version.id.clone(),
        event_type: SNAPSHOT.to_owned(),
        created_at: Some(snapshot.version.observed_at),
        user_id: snapshot.object.user_id().map(str::to_owned),
        content: Content::Other,
        payload: snapshot.payload.clone(),
    }
}

/// Returns the inbox row for an object that cannot be applied. Its `created_at` is the time of the observation.
fn unusable_snapshot(kind: Kind, text: &str, observed_at: Timestamp, reason: &'static str) -> Event {
    let text = &*redaction::snapshot(kind, text);
    let data = json::object(&json::sanitize(text).text);
    let id = data.as_ref().map_or_else(|| hashed(SNAPSHOT, text.as_bytes()), snapshot_id);
    Event {
        id,
        event_type: SNAPSHOT.to_owned(),
        created_at: Some(observed_at),
        user_id: data.and_then(|data| id_field(&data, if kind == Kind::User { "id" } else { "user_id" })),
        content: Content::Unusable(reason),
        payload: Bytes::copy_from_slice(text.as_bytes()),
    }
}

/// Returns the ID of a snapshot. Equal objects have equal IDs, in any order of their fields.
fn snapshot_id(data: &Fields) -> String {
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

/// Parses a user object of the REST API. `observed_at` is the `Date` header minus the duration of the request.
///
/// # Errors
/// Why the object cannot be applied. The text contains nothing of the object.
pub fn snapshot(object: &str, observed_at: Timestamp) -> Result<Snapshot, &'static str> {
    snapshot_of(Kind::User, object, observed_at)
}

/// Parses an object of the REST API, without its secrets.
///
/// # Errors
/// As [`snapshot`].
pub(crate) fn snapshot_of(kind: Kind, text: &str, observed_at: Timestamp) -> Result<Snapshot, &'static str> {
    let text = &*redaction::snapshot(kind, text);
    let sanitized = json::sanitize(text);
    if sanitized.too_deep {
        return Err("nested deeper than 128 levels");
    }
    let mut data = json::object(&sanitized.text).ok_or("it is not a JSON object")?;
    let id = snapshot_id(&data);
    let object = object(kind, &mut data, Some(observed_at))?;
    let version = Version { updated_at: object.updated_at(), observed_at, id };
    Ok(Snapshot { object, version, payload: Bytes::copy_from_slice(text.as_bytes()) })
}

/// Returns the kind of an object of the REST API, from its field `object`.
fn kind_of(data: &Fields) -> Option<Kind> {
    let word = json::string(data.get("object").map(|value| &**value))?;
    Kind::ALL.into_iter().find(|kind| kind.as_str() == word)
}

/// Moves the object's fields out of `data`. The remaining fields become the object's extra fields. `fallback` replaces a missing
/// `updated_at`.
fn object(kind: Kind, data: &mut Fields, fallback: Option<Timestamp>) -> Result<Object, &'static str> {
    match kind {
        Kind::User => user::parse(data, fallback).map(Object::User),
        Kind::Organization => organization::parse(data, fallback).map(Object::Organization),
        Kind::Membership => membership::parse(data, fallback).map(Object::Membership),
    }
}

/// Why an object without an ID cannot be applied.
const NO_ID: &str = "data.id is missing or is not an ID";

/// Why an object without a time cannot be applied.
const NO_TIME: &str = "it has no updated_at and no created_at, so it cannot be ordered";

fn id_field(data: &Fields, name: &str) -> Option<String> {
    usable_id(data.get(name).map(|value| &**value))
}

/// Converts an object of text values. Anything else becomes an empty map.
fn metadata(value: Option<&RawValue>) -> BTreeMap<String, Option<String>> {
    value
        .and_then(|metadata| json::object(metadata.get()))
        .map(|pairs| pairs.into_iter().map(|(name, value)| (name, json::text(Some(&value)))).collect())
        .unwrap_or_default()
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
    use crate::domain::user::User;

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
            Content::Live { object, .. } => match *object {
                Object::User(user) => user,
                other => panic!("{other:?}"),
            },
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
    fn unexpected_values_are_normalized_and_absent_ones_are_null() {
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
        assert_eq!(user.updated_at.to_string(), "2026-09-01T08:00:00.000Z", "the event's time is the fallback");
        assert!(live(r#"{"id":"u","email":"a","email_verified":false,"metadata":"none"}"#).metadata.is_empty());
    }

    #[test]
    fn characters_that_postgres_or_utf8_rejects_are_replaced() {
        let user = live(
            r#"{"id":"user_1","email":"a@example.test","email_verified":true,
                "first_name":"N\u0000L \ud83d lone \udc00 pair \ud83e\udd80 slash \\u0000","metadata":{"k\u0000":"v\uD800"}}"#,
        );
        assert_eq!(user.first_name.as_deref(), Some("N\u{FFFD}L \u{FFFD} lone \u{FFFD} pair 🦀 slash \\u0000"));
        assert_eq!(user.metadata.get("k\u{FFFD}"), Some(&Some("v\u{FFFD}".to_owned())));
    }

    #[test]
    fn fields_without_a_column_keep_every_digit() {
        let user = live(
            r#"{"object":"user","id":"u","email":"a","email_verified":true,"big":12345678901234567890123,"e":1e400,"n":null}"#,
        );
        let extra: Vec<_> = user.extra.iter().map(|(name, value)| (name.as_str(), value.get())).collect();
        assert_eq!(extra, [("big", "12345678901234567890123"), ("e", "1e400"), ("n", "null")]);
    }

    #[test]
    fn an_unusable_event_has_a_reason_and_its_user_id() {
        for (data, expected) in [
            ("[1]", "data is not an object"),
            (r#"{"email":"a","email_verified":true}"#, "data.id is missing or is not an ID"),
            (r#"{"id":{},"email":"a","email_verified":true}"#, "data.id is missing or is not an ID"),
            (r#"{"id":"","email":"a","email_verified":true}"#, "data.id is missing or is not an ID"),
            (r#"{"id":"u","email":7,"email_verified":true}"#, "email is missing or is not a string"),
            (r#"{"id":"u","email":"a","email_verified":"yes"}"#, "email_verified is missing or is not a boolean"),
        ] {
            assert_eq!(reason(&with_data(data)), Some(expected), "{data}");
        }
        let timeless = read(r#"{"id":"e","event":"user.created","data":{"id":"u","email":"a","email_verified":true}}"#);
        assert_eq!(reason(&timeless), Some("it has no updated_at and no created_at, so it cannot be ordered"));
        let deep = format!(r#"{{"id":"u","x":{}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        let deep = with_data(&deep);
        assert_eq!(reason(&deep), Some("nested deeper than 128 levels"));
        assert_eq!(deep.user_id.as_deref(), Some("u"), "its deletion must find it");
    }

    #[test]
    fn a_deletion_and_a_revocation_with_deeply_nested_fields_need_only_an_id() {
        let deep = format!("{}1{}", "[".repeat(500), "]".repeat(500));
        let event = |event_type: &str| {
            let data =
                format!(r#"{{"id":"x_1","user_id":"u","organization_id":"o","ip_address":"192.0.2.1","x":{deep}}}"#);
            read(&format!(
                r#"{{"id":"e","event":"{event_type}","created_at":"2026-09-01T08:00:00.000Z","data":{data}}}"#
            ))
        };
        for event_type in ["user.deleted", "organization.deleted", "organization_membership.deleted"] {
            let content = event(event_type).content;
            assert!(
                matches!(&content, Content::Deleted(deletion) if deletion.id == "x_1"),
                "{event_type}: {content:?}"
            );
        }
        let revoked = event("session.revoked");
        assert!(matches!(&revoked.content, Content::SessionRevoked(id) if id == "x_1"), "{:?}", revoked.content);
        let payload = String::from_utf8(revoked.payload.to_vec()).unwrap();
        assert!(!payload.contains("192.0.2.1"), "{payload}");
        assert!(reason(&event("organization_membership.updated")).is_some());
    }

    #[test]
    fn a_delete_needs_only_an_id_which_can_be_a_number() {
        let event = read(r#"{"id":"e","event":"user.deleted","data":{"id":42}}"#);
        assert!(matches!(event.content, Content::Deleted(_)));
        assert_eq!(event.user_id.as_deref(), Some("42"));
    }

    #[test]
    fn an_event_of_any_type_has_the_id_of_its_user() {
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
        assert!(long.id.starts_with("sha256:"), "an ID that cannot be indexed is replaced by its hash");
    }

    #[test]
    fn equal_snapshots_have_equal_ids_in_any_key_order() {
        let at = Timestamp::from_unix_micros(0);
        let one = snapshot(r#"{"id":"u","email":"a","email_verified":true,"x":{"b":1,"a":[ 1, 2]}}"#, at).unwrap();
        let two = snapshot(r#"{"x":{"a":[1,2],"b":1},"email_verified":true, "email":"a","id":"u"}"#, at).unwrap();
        let other = snapshot(r#"{"id":"u","email":"b","email_verified":true,"x":{"b":1,"a":[1,2]}}"#, at).unwrap();
        assert_eq!(one.version, two.version);
        assert_ne!(one.version.id, other.version.id);
    }
}
