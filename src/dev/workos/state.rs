//! The state of the simulated WorkOS, and its changes. No I/O.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::cascades::Cascades;
use super::collection::{Collection, Key, Object, object, text};
use super::fault::Fault;
use super::ids::Ids;
use crate::domain::timestamp::Timestamp;

/// The state that is stored between runs.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) client_id: String,
    pub(super) api_key: String,
    pub(super) webhook_secret: String,
    /// The signing keys as key ID and base64 PKCS#8. The last one signs.
    pub(super) signing_keys: Vec<(String, String)>,
    pub(super) users: Collection,
    #[serde(default)]
    pub(super) organizations: Collection,
    #[serde(default)]
    pub(super) memberships: Collection,
    #[serde(default)]
    pub(super) sessions: Collection,
    #[serde(default)]
    pub(super) permissions: Collection,
    /// The environment roles, the one with the highest priority first. The last one is the default.
    #[serde(default)]
    pub(super) roles: Vec<Object>,
    /// The roles of each organization.
    #[serde(default)]
    pub(super) organization_roles: BTreeMap<String, Vec<Object>>,
    /// Live objects that are missing in lists.
    #[serde(default)]
    pub(super) unlisted: BTreeSet<String>,
    /// `created_at` of removed objects by ID: the position of a cursor in a list.
    #[serde(default)]
    pub(super) removed: BTreeMap<String, String>,
    /// The events that are created for consequences of a change.
    #[serde(skip)]
    pub(super) cascades: Cascades,
    /// The events, oldest first.
    pub(super) events: Vec<Object>,
    /// The generator of IDs. It is stored too, because a repeated or smaller ID would break the order of events.
    pub(super) ids: Ids,
}

/// The fields of a user that a client can set.
const SETTABLE: [&str; 8] =
    ["email", "email_verified", "first_name", "last_name", "name", "profile_picture_url", "external_id", "locale"];

impl State {
    pub(super) fn new(seed: u64, now: Timestamp) -> Self {
        let mut ids = Ids::new(seed);
        let mut state = Self {
            client_id: ids.next("client", now),
            api_key: ids.next("sk_test", now),
            webhook_secret: ids.next("whsec", now),
            signing_keys: Vec::new(),
            users: Collection::default(),
            organizations: Collection::default(),
            memberships: Collection::default(),
            sessions: Collection::default(),
            permissions: Collection::default(),
            roles: Vec::new(),
            organization_roles: BTreeMap::new(),
            unlisted: BTreeSet::new(),
            removed: BTreeMap::new(),
            cascades: Cascades::default(),
            events: Vec::new(),
            ids,
        };
        state.complete(now);
        state
    }

    /// Adds the parts that the state file of an earlier version lacks: the roles of a new environment, and the positions of removed
    /// users.
    pub(super) fn complete(&mut self, now: Timestamp) {
        if self.roles.is_empty() {
            self.create_initial_roles(now);
        }
        let deleted = self.events.iter().filter(|event| text(event, "event") == "user.deleted");
        for user in deleted.filter_map(|event| event.get("data")?.as_object()) {
            self.removed.entry(text(user, "id").to_owned()).or_insert_with(|| text(user, "created_at").to_owned());
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
        if self.users.contains(&id) {
            return Err(Fault::invalid("id_not_available", "id"));
        }
        let mut user = Object::new();
        user.insert("object".into(), "user".into());
        user.insert("id".into(), id.into());
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
        self.users.put(user.clone());
        self.emit("user.created", Value::Object(user.clone()), None, now);
        Ok(Value::Object(user))
    }

    pub(super) fn update(&mut self, id: &str, given: &Object, now: Timestamp) -> Result<Value, Fault> {
        self.user(id)?;
        check_types(given)?;
        self.check_unique(given, Some(id))?;
        let changed = self.users.change(id, now, |user| {
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
        });
        let (before, after) = changed.ok_or_else(|| user_not_found(id))?;
        self.emit_updated("user.updated", before, &after, now);
        Ok(Value::Object(after))
    }

    /// Deletes a user. Its sessions and memberships end. [`Cascades`] selects whether this creates events.
    pub(super) fn delete(&mut self, id: &str, now: Timestamp) -> Result<(), Fault> {
        self.user(id)?;
        self.end_sessions(id, None, now);
        self.end_memberships("user_id", id, now);
        if let Some(user) = self.users.remove(id) {
            self.record_removed(&user);
            self.emit("user.deleted", Value::Object(user), None, now);
        }
        Ok(())
    }

    /// Records the position of a removed object, because a list continues after it.
    pub(super) fn record_removed(&mut self, object: &Object) {
        self.removed.insert(text(object, "id").to_owned(), text(object, "created_at").to_owned());
    }

    /// Returns the position of a removed object.
    pub(super) fn removed_key(&self, id: &str) -> Option<Key> {
        self.removed.get(id).map(|created_at| (created_at.clone(), id.to_owned()))
    }

    /// Creates an `.updated` event with the previous values, unless nothing changed.
    pub(super) fn emit_updated(&mut self, event_type: &str, mut before: Object, after: &Object, now: Timestamp) {
        if before == *after {
            return;
        }
        before.retain(|name, value| name != "updated_at" && after.get(name) != Some(value));
        self.emit(event_type, Value::Object(after.clone()), Some(before), now);
    }

    /// Creates an event of any type.
    pub(super) fn emit(&mut self, event_type: &str, data: Value, previous: Option<Object>, now: Timestamp) {
        let mut context = json!({"client_id": self.client_id});
        if let Some(previous) = previous {
            context["previous_attributes"] = Value::Object(previous);
        }
        let mut event = object(json!({
            "object": "event", "id": self.ids.next("event", now), "event": event_type, "created_at": now,
        }));
        // `json!` would copy these two values.
        event.insert("data".into(), data);
        event.insert("context".into(), context);
        self.events.push(event);
    }

    pub(super) fn user(&self, id: &str) -> Result<Value, Fault> {
        self.users.get(id).cloned().map(Value::Object).ok_or_else(|| user_not_found(id))
    }

    /// Returns the user with this value of an indexed field.
    pub(super) fn user_by(&self, field: &'static str, value: &str) -> Option<Value> {
        self.users.with(field, value).next().cloned().map(Value::Object)
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

/// Returns the 404 of a user.
pub(super) fn user_not_found(id: &str) -> Fault {
    Fault::not_found("User", id)
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
pub(super) fn change_metadata(user: &mut Object, given: &Object) {
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
        assert_eq!((state.users.keys().len(), state.events.len()), (1, events));
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
        state.sign_in(id, None, at(60)).unwrap();
        let after = state.user(id).unwrap();
        assert_eq!((&after["updated_at"], &after["last_sign_in_at"]), (&user["updated_at"], &json!(at(60))));
        assert_eq!(state.events.last().unwrap()["event"], "session.created");
    }
}
