//! What the simulated WorkOS knows, and how it changes. No I/O.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::fault::Fault;
use super::ids::Ids;
use crate::domain::timestamp::Timestamp;

/// A user object or an event, as JSON.
pub(super) type Object = Map<String, Value>;

/// Everything that outlives a run.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) client_id: String,
    pub(super) api_key: String,
    pub(super) webhook_secret: String,
    /// PKCS#8 of each signing key, base64, by key id; the last one signs.
    pub(super) signing_keys: Vec<(String, String)>,
    /// By id, which is the order of creation.
    pub(super) users: BTreeMap<String, Object>,
    /// Oldest first.
    pub(super) events: Vec<Object>,
    #[serde(skip, default = "fresh_ids")]
    pub(super) ids: Ids,
}

fn fresh_ids() -> Ids {
    Ids::new(0)
}

/// What a caller may set on a user.
const SETTABLE: [&str; 8] =
    ["email", "email_verified", "first_name", "last_name", "name", "profile_picture_url", "external_id", "locale"];

impl State {
    pub(super) fn new(seed: u64, now: Timestamp) -> Self {
        let mut ids = Ids::new(seed);
        Self {
            client_id: ids.next("client", now),
            api_key: ids.next("sk_test", now),
            webhook_secret: ids.next("whsec", now),
            signing_keys: Vec::new(),
            users: BTreeMap::new(),
            events: Vec::new(),
            ids,
        }
    }

    pub(super) fn create(&mut self, given: &Object, now: Timestamp) -> Result<Value, Fault> {
        let email = given.get("email").and_then(Value::as_str).filter(|email| email.contains('@'));
        let email = email.ok_or_else(|| Fault::invalid("email_required", "email"))?;
        self.refuse_taken(email, None)?;
        // A seed may bring ids of its own.
        let id = given.get("id").and_then(Value::as_str).map(str::to_owned);
        let id = id.unwrap_or_else(|| self.ids.next("user", now));
        let mut user = Object::new();
        user.insert("object".into(), "user".into());
        user.insert("id".into(), id.clone().into());
        for name in SETTABLE {
            user.insert(name.into(), given.get(name).cloned().unwrap_or(Value::Null));
        }
        if !user.get("email_verified").is_some_and(Value::is_boolean) {
            user.insert("email_verified".into(), false.into());
        }
        user.insert(
            "metadata".into(),
            given.get("metadata").filter(|map| map.is_object()).cloned().unwrap_or(json!({})),
        );
        user.insert("last_sign_in_at".into(), Value::Null);
        user.insert("created_at".into(), json!(now));
        user.insert("updated_at".into(), json!(now));
        full_name(&mut user);
        self.users.insert(id, user.clone());
        self.emit("user.created", Value::Object(user.clone()), None, now);
        Ok(Value::Object(user))
    }

    pub(super) fn update(&mut self, id: &str, given: &Object, now: Timestamp) -> Result<Value, Fault> {
        if let Some(email) = given.get("email").and_then(Value::as_str) {
            self.refuse_taken(email, Some(id))?;
        }
        let user = self.users.get_mut(id).ok_or_else(|| Fault::not_found(id))?;
        let before = user.clone();
        for name in SETTABLE {
            if let Some(value) = given.get(name) {
                user.insert(name.into(), value.clone());
            }
        }
        // Partial: null deletes a key, an empty object clears.
        if let Some(Value::Object(changes)) = given.get("metadata") {
            let mut metadata = user.get("metadata").and_then(Value::as_object).cloned().unwrap_or_default();
            if changes.is_empty() {
                metadata.clear();
            }
            metadata.extend(changes.clone());
            metadata.retain(|_, value| !value.is_null());
            user.insert("metadata".into(), Value::Object(metadata));
        }
        if !given.contains_key("name") {
            full_name(user);
        }
        if *user == before {
            return Ok(Value::Object(before));
        }
        user.insert("updated_at".into(), json!(now));
        let after = user.clone();
        let mut previous = before;
        previous.retain(|name, value| name != "updated_at" && after.get(name) != Some(value));
        self.emit("user.updated", Value::Object(after.clone()), Some(previous), now);
        Ok(Value::Object(after))
    }

    pub(super) fn delete(&mut self, id: &str, now: Timestamp) -> Result<(), Fault> {
        let user = self.users.remove(id).ok_or_else(|| Fault::not_found(id))?;
        self.emit("user.deleted", Value::Object(user), None, now);
        Ok(())
    }

    /// A sign-in: `last_sign_in_at` moves and `updated_at` does not; only `session.created` tells of it. Returns the session.
    pub(super) fn sign_in(&mut self, id: &str, now: Timestamp) -> Result<String, Fault> {
        let user = self.users.get_mut(id).ok_or_else(|| Fault::not_found(id))?;
        user.insert("last_sign_in_at".into(), json!(now));
        let session = self.ids.next("session", now);
        let data = json!({
            "object": "session", "id": session, "user_id": id, "organization_id": null, "status": "active",
            "auth_method": "password", "ip_address": "203.0.113.9", "user_agent": null,
            "expires_at": now.plus_seconds(7 * 86_400), "ended_at": null, "created_at": now, "updated_at": now,
        });
        self.emit("session.created", data, None, now);
        Ok(session)
    }

    /// Makes an event of any type.
    pub(super) fn emit(&mut self, event_type: &str, data: Value, previous: Option<Object>, now: Timestamp) {
        let mut context = json!({"client_id": self.client_id});
        if let Some(previous) = previous {
            context["previous_attributes"] = Value::Object(previous);
        }
        let event = json!({
            "object": "event", "id": self.ids.next("event", now), "event": event_type,
            "data": data, "created_at": now, "context": context,
        });
        if let Value::Object(event) = event {
            self.events.push(event);
        }
    }

    pub(super) fn user(&self, id: &str) -> Result<Value, Fault> {
        self.users.get(id).cloned().map(Value::Object).ok_or_else(|| Fault::not_found(id))
    }

    pub(super) fn user_by(&self, field: &str, value: &str) -> Option<Value> {
        let same = |user: &&Object| {
            let held = user.get(field).and_then(Value::as_str);
            held.is_some_and(
                |held| if field == "email" { held.to_lowercase() == value.to_lowercase() } else { held == value },
            )
        };
        self.users.values().find(same).cloned().map(Value::Object)
    }

    fn refuse_taken(&self, email: &str, but: Option<&str>) -> Result<(), Fault> {
        let taken = self.user_by("email", email).filter(|user| user.get("id").and_then(Value::as_str) != but);
        if taken.is_some() { Err(Fault::invalid("email_not_available", "email")) } else { Ok(()) }
    }
}

/// WorkOS's display name, from the two others.
fn full_name(user: &mut Object) {
    let text = |name: &str| user.get(name).and_then(Value::as_str).unwrap_or_default();
    let name = format!("{} {}", text("first_name"), text("last_name"));
    let name = name.trim();
    let name = if name.is_empty() { Value::Null } else { name.into() };
    user.insert("name".into(), name);
}
