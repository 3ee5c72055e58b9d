//! Events and snapshots as WorkOS would send them.

use std::sync::atomic::{AtomicU64, Ordering};

use authkit_sync::domain::event::{Event, Observation};
use authkit_sync::domain::timestamp::Timestamp;
use authkit_sync::workos::signature::{Secret, SignatureHeader, WEBHOOK_TOLERANCE};
use authkit_sync::workos::wire;
use bytes::Bytes;
use serde_json::{Value, json};

/// Returns the instant this many milliseconds after 2026-09-01T08:00:00Z.
pub(crate) fn at(millis: i64) -> Timestamp {
    Timestamp::from_unix_micros(Timestamp::parse("2026-09-01T08:00:00Z").unwrap().unix_micros() + millis * 1_000)
}

/// Returns an ID that is unique in this process. Later IDs are greater, like those of WorkOS.
pub(crate) fn unique(prefix: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{prefix}_{}_{:012}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A user object in WorkOS's format.
pub(crate) fn user(id: &str, name: &str, updated_ms: i64) -> Value {
    json!({
        "object": "user", "id": id, "email": format!("{id}@example.test"), "email_verified": true,
        "first_name": name, "last_name": "Quill", "name": format!("{name} Quill"), "profile_picture_url": null,
        "external_id": null, "metadata": {"plan": "team"}, "last_sign_in_at": null, "locale": "en-GB",
        "created_at": at(0), "updated_at": at(updated_ms),
    })
}

/// An event's body.
pub(crate) fn body(id: &str, event_type: &str, created_ms: i64, data: &Value) -> Bytes {
    let event = json!({"object": "event", "id": id, "event": event_type, "created_at": at(created_ms), "data": data});
    Bytes::from(event.to_string())
}

/// Verifies and parses a body as the receiver does.
pub(crate) fn event(body: &Bytes) -> Event {
    let secret = Secret::new("whsec_test");
    let header = secret.sign(at(0), body);
    let header = SignatureHeader::parse(Some(header.as_bytes()), at(0), WEBHOOK_TOLERANCE).unwrap();
    wire::event(&header.verify(&[secret], body.clone()).unwrap()).unwrap()
}

/// An event with a new ID, as an observation.
pub(crate) fn observed(event_type: &str, created_ms: i64, data: &Value) -> Observation {
    Observation::Event(event(&body(&unique("event"), event_type, created_ms, data)))
}

/// A snapshot, as an observation.
pub(crate) fn snapshot(user: &Value, observed_ms: i64) -> Observation {
    Observation::Snapshot(wire::snapshot(&user.to_string(), at(observed_ms)).unwrap())
}
