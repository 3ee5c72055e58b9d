//! The state of the simulated WorkOS, and its changes. No I/O.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::fault::Fault;
use super::ids::Ids;
use crate::domain::timestamp::Timestamp;

/// A user object or an event, as JSON.
pub(super) type Object = Map<String, Value>;

/// The state that is stored between runs.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) client_id: String,
    pub(super) api_key: String,
    pub(super) webhook_secret: String,
    /// The signing keys as key ID and base64 PKCS#8. The last one signs.
    pub(super) signing_keys: Vec<(String, String)>,
    /// The users by ID.
    pub(super) users: BTreeMap<String, Object>,
    /// Live users that are missing in lists.
    #[serde(default)]
    pub(super) unlisted: BTreeSet<String>,
    /// The events, oldest first.
    pub(super) events: Vec<Object>,
    /// Stored too, because a repeated or smaller ID would break the order of events.
    pub(super) ids: Ids,
}

/// The fields of a user that a client can set.
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
            unlisted: BTreeSet::new(),
            events: Vec::new(),
            ids,
        }
    }

    pub(super) fn create(&mut self, given: &Object, now: Timestamp) -> Result<Value, Fault> {
        if given.get("email").is_none_or(Value::is_null) {
            return Err(Fault::invalid("email_required", "email"));
        }
        check_types(given)?;
        self.check_unique(given, None)?;
        // A seed file can contain IDs.
        let id = given.get("id").and_then(Value::as_str).map(str::to_owned);
        let id = id.unwrap_or_else(|| self.ids.next("user", now));
        if self.users.contains_key(&id) {
            return Err(Fault::invalid("id_not_available", "id"));
        }
        let mut user = Object::new();
        user.insert("object".into(), "user".into());
        user.insert("id".into(), id.clone().into());
        for name in SETTABLE {
            user.insert(name.into(), given.get(name).cloned().unwrap_or(Value::Null));
        }
        if user.get("email_verified").is_none_or(Value::is_null) {
            user.insert("email_verified".into(), false.into());
        }
        change_metadata(&mut user, given);
        user.insert("last_sign_in_at".into(), Value::Null);
        user.insert("created_at".into(), json!(now));
        user.insert("updated_at".into(), json!(now));
        if given.get("name").is_none_or(Value::is_null) {
            full_name(&mut user);
        }
        self.users.insert(id, user.clone());
        self.emit("user.created", Value::Object(user.clone()), None, now);
        Ok(Value::Object(user))
    }

    pub(super) fn update(&mut self, id: &str, given: &Object, now: Timestamp) -> Result<Value, Fault> {
        self.user(id)?;
        check_types(given)?;
        self.check_unique(given, Some(id))?;
        let user = self.users.get_mut(id).ok_or_else(|| Fault::not_found(id))?;
        let before = user.clone();
        for name in SETTABLE {
            // These two fields cannot be set to null.
            let is_required = |value: &Value| value.is_null() && ["email", "email_verified"].contains(&name);
            if let Some(value) = given.get(name).filter(|value| !is_required(value)) {
                user.insert(name.into(), value.clone());
            }
        }
        change_metadata(user, given);
        let parts = given.contains_key("first_name") || given.contains_key("last_name");
        if parts && !given.contains_key("name") {
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

    /// A sign-in: `last_sign_in_at` moves and `updated_at` does not; only `session.created` reports it. Returns the session ID.
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

    /// Creates an event of any type.
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

    /// Returns every listed user, oldest first.
    pub(super) fn oldest_first(&self) -> Vec<&Object> {
        let listed = self.users.iter().filter(|(id, _)| !self.unlisted.contains(*id));
        let mut users: Vec<&Object> = listed.map(|(_, user)| user).collect();
        users.sort_by_key(|user| creation(user));
        users
    }

    /// Returns the position of a user in [`State::oldest_first`], also of a deleted one.
    pub(super) fn position(&self, id: &str) -> Option<(&str, &str)> {
        let deleted = || {
            let is_deleted = |event: &&Object| text(event, "event") == "user.deleted";
            let users = self.events.iter().rev().filter(is_deleted).filter_map(|event| event.get("data")?.as_object());
            users.into_iter().find(|user| text(user, "id") == id)
        };
        self.users.get(id).or_else(deleted).map(creation)
    }

    /// Checks the fields that WorkOS requires to be unique in an environment.
    fn check_unique(&self, given: &Object, but: Option<&str>) -> Result<(), Fault> {
        for (field, code) in [("email", "email_not_available"), ("external_id", "external_id_not_available")] {
            let holder = given.get(field).and_then(Value::as_str).and_then(|value| self.user_by(field, value));
            if holder.is_some_and(|user| user.get("id").and_then(Value::as_str) != but) {
                return Err(Fault::invalid(code, field));
            }
        }
        Ok(())
    }
}

/// Returns a text field, or an empty text.
pub(super) fn text<'a>(object: &'a Object, name: &str) -> &'a str {
    object.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// Returns the sort key of a user. All times have the same format, so they are compared as text.
pub(super) fn creation(user: &Object) -> (&str, &str) {
    (text(user, "created_at"), text(user, "id"))
}

/// Rejects values of a wrong type. Null means absent, as in WorkOS's SDKs.
fn check_types(given: &Object) -> Result<(), Fault> {
    for (name, value) in given.iter().filter(|(_, value)| !value.is_null()) {
        let fits = match name.as_str() {
            "email" => value.as_str().is_some_and(|email| email.contains('@')),
            "email_verified" => value.is_boolean(),
            "metadata" => {
                value.as_object().is_some_and(|map| map.values().all(|value| value.is_string() || value.is_null()))
            }
            other => value.is_string() || !(SETTABLE.contains(&other) || other == "id"),
        };
        if !fits {
            return Err(Fault::invalid("invalid", name));
        }
    }
    Ok(())
}

/// Updates the metadata: null deletes a key, an empty object deletes all keys.
fn change_metadata(user: &mut Object, given: &Object) {
    let mut metadata = user.get("metadata").and_then(Value::as_object).cloned().unwrap_or_default();
    if let Some(Value::Object(changes)) = given.get("metadata") {
        if changes.is_empty() {
            metadata.clear();
        }
        metadata.extend(changes.clone());
        metadata.retain(|_, value| !value.is_null());
    }
    user.insert("metadata".into(), Value::Object(metadata));
}

/// Sets the display name from the first and last name.
fn full_name(user: &mut Object) {
    let name = format!("{} {}", text(user, "first_name"), text(user, "last_name"));
    let name = name.trim();
    let name = if name.is_empty() { Value::Null } else { name.into() };
    user.insert("name".into(), name);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::parse("2026-09-01T08:15:30.412Z").unwrap().plus_seconds(second)
    }

    fn object(value: Value) -> Object {
        value.as_object().unwrap().clone()
    }

    fn with_user(given: Value) -> (State, Value) {
        let mut state = State::new(7, at(0));
        let user = state.create(&object(given), at(0)).unwrap();
        (state, user)
    }

    fn update(state: &mut State, user: &Value, given: Value) -> Result<Value, Fault> {
        state.update(user["id"].as_str().unwrap(), &object(given), at(1))
    }

    #[test]
    fn a_given_display_name_stays_until_it_or_its_parts_change() {
        let (mut state, user) = with_user(json!({"email": "a@example.test", "name": "Dr Ada", "first_name": "Ada"}));
        assert_eq!(user["name"], "Dr Ada");
        assert_eq!(update(&mut state, &user, json!({"locale": "pt-BR"})).unwrap()["name"], "Dr Ada");
        let renamed = update(&mut state, &user, json!({"last_name": "Quill"})).unwrap();
        assert_eq!(renamed["name"], "Ada Quill");
    }

    #[test]
    fn invalid_values_are_rejected_and_change_nothing() {
        let (mut state, user) = with_user(json!({"email": "a@example.test", "metadata": {"plan": "team"}}));
        let events = state.events.len();
        for given in [
            json!({"email": 5}),
            json!({"email": "nobody"}),
            json!({"first_name": ["Ada"]}),
            json!({"email_verified": "yes"}),
            json!({"metadata": "x"}),
            json!({"metadata": {"plan": 1}}),
        ] {
            assert!(update(&mut state, &user, given.clone()).is_err(), "{given}");
            let mut create = object(json!({"email": "b@example.test"}));
            create.extend(object(given.clone()));
            assert!(state.create(&create, at(1)).is_err(), "{given}");
        }
        assert_eq!(state.user(user["id"].as_str().unwrap()).unwrap(), user);
        assert_eq!((state.users.len(), state.events.len()), (1, events));
    }

    #[test]
    fn ids_emails_and_external_ids_are_unique() {
        let (mut state, user) = with_user(json!({"id": "user_1", "email": "a@example.test", "external_id": "crm-1"}));
        for taken in [
            json!({"email": "A@EXAMPLE.test"}),
            json!({"email": "b@example.test", "external_id": "crm-1"}),
            json!({"email": "b@example.test", "id": "user_1"}),
        ] {
            assert!(state.create(&object(taken.clone()), at(1)).is_err(), "{taken}");
        }
        assert_eq!(state.user("user_1").unwrap(), user);
        let other = state.create(&object(json!({"email": "b@example.test", "external_id": null})), at(1)).unwrap();
        assert!(update(&mut state, &other, json!({"external_id": "crm-1"})).is_err());
        update(&mut state, &user, json!({"external_id": null})).unwrap();
        assert_eq!(update(&mut state, &other, json!({"external_id": "crm-1"})).unwrap()["external_id"], "crm-1");
    }

    #[test]
    fn null_for_a_required_field_changes_nothing() {
        let (mut state, user) = with_user(json!({"email": "a@example.test", "email_verified": true}));
        let nulls = json!({"email": null, "email_verified": null, "metadata": null});
        assert_eq!(update(&mut state, &user, nulls).unwrap(), user);
    }

    #[test]
    fn a_metadata_key_that_is_null_is_not_created() {
        let (_, user) = with_user(json!({"email": "a@example.test", "metadata": {"a": null, "b": "2"}}));
        assert_eq!(user["metadata"], json!({"b": "2"}));
    }

    #[test]
    fn a_sign_in_creates_only_a_session_event() {
        let (mut state, user) = with_user(json!({"email": "a@example.test"}));
        let id = user["id"].as_str().unwrap();
        state.sign_in(id, at(60)).unwrap();
        let after = state.user(id).unwrap();
        assert_eq!((&after["updated_at"], &after["last_sign_in_at"]), (&user["updated_at"], &json!(at(60))));
        assert_eq!(state.events.last().unwrap()["event"], "session.created");
    }
}
