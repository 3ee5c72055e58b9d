//! Objects of one kind, with the indexes that lists and lookups use.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::domain::timestamp::Timestamp;

/// An object or an event, as JSON.
pub(super) type Object = Map<String, Value>;

/// The position of an object in a list: `created_at` and `id`. All times have the same format, so they are compared as text.
pub(super) type Key = (String, String);

/// The fields whose text values find objects. Email addresses are compared without case.
const INDEXED: [&str; 5] = ["email", "external_id", "organization_id", "slug", "user_id"];

static NO_KEYS: BTreeSet<Key> = BTreeSet::new();

/// The objects of a kind. A state file contains them as a map by ID.
#[derive(Debug, Default, Deserialize)]
#[serde(from = "BTreeMap<String, Object>")]
pub(super) struct Collection {
    objects: BTreeMap<String, Object>,
    keys: BTreeSet<Key>,
    groups: BTreeMap<(&'static str, String), BTreeSet<Key>>,
}

impl From<BTreeMap<String, Object>> for Collection {
    fn from(objects: BTreeMap<String, Object>) -> Self {
        let mut collection = Self::default();
        objects.into_iter().for_each(|(id, object)| collection.put_as(&id, object));
        collection
    }
}

impl Serialize for Collection {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.objects.serialize(serializer)
    }
}

impl Collection {
    pub(super) fn get(&self, id: &str) -> Option<&Object> {
        self.objects.get(id)
    }

    pub(super) fn contains(&self, id: &str) -> bool {
        self.objects.contains_key(id)
    }

    /// Adds an object, or replaces the one with its ID.
    pub(super) fn put(&mut self, object: Object) {
        let id = text(&object, "id").to_owned();
        self.put_as(&id, object);
    }

    fn put_as(&mut self, id: &str, object: Object) {
        self.remove(id);
        let key = (text(&object, "created_at").to_owned(), id.to_owned());
        for group in groups(&object) {
            self.groups.entry(group).or_default().insert(key.clone());
        }
        self.keys.insert(key);
        self.objects.insert(id.to_owned(), object);
    }

    pub(super) fn remove(&mut self, id: &str) -> Option<Object> {
        let object = self.objects.remove(id)?;
        let key = (text(&object, "created_at").to_owned(), id.to_owned());
        for group in groups(&object) {
            if let Some(keys) = self.groups.get_mut(&group) {
                keys.remove(&key);
                if keys.is_empty() {
                    self.groups.remove(&group);
                }
            }
        }
        self.keys.remove(&key);
        Some(object)
    }

    /// Changes an object, and updates its `updated_at` if anything changed. Returns the object before and after the change.
    pub(super) fn change(
        &mut self,
        id: &str,
        now: Timestamp,
        change: impl FnOnce(&mut Object),
    ) -> Option<(Object, Object)> {
        let before = self.get(id)?.clone();
        let mut after = before.clone();
        change(&mut after);
        if after != before {
            after.insert("updated_at".into(), json!(now));
            self.put_as(id, after.clone());
        }
        Some((before, after))
    }

    /// Sets a field without changing `updated_at`.
    pub(super) fn set(&mut self, id: &str, field: &str, value: Value) {
        if let Some(mut object) = self.remove(id) {
            object.insert(field.to_owned(), value);
            self.put_as(id, object);
        }
    }

    /// Returns the position of an object.
    pub(super) fn key(&self, id: &str) -> Option<Key> {
        self.get(id).map(|object| (text(object, "created_at").to_owned(), id.to_owned()))
    }

    /// Returns the positions of all objects, oldest first.
    pub(super) fn keys(&self) -> &BTreeSet<Key> {
        &self.keys
    }

    /// Returns the positions of the objects whose indexed `field` has this value, oldest first.
    pub(super) fn keys_with(&self, field: &'static str, value: &str) -> &BTreeSet<Key> {
        self.groups.get(&group(field, value)).unwrap_or(&NO_KEYS)
    }

    /// Returns the objects whose indexed `field` has this value, oldest first.
    pub(super) fn with(&self, field: &'static str, value: &str) -> impl DoubleEndedIterator<Item = &Object> {
        self.keys_with(field, value).iter().filter_map(|(_, id)| self.get(id))
    }

    /// Returns all objects, oldest first.
    pub(super) fn oldest_first(&self) -> impl Iterator<Item = &Object> {
        self.keys.iter().filter_map(|(_, id)| self.get(id))
    }
}

fn group(field: &'static str, value: &str) -> (&'static str, String) {
    (field, if field == "email" { value.to_lowercase() } else { value.to_owned() })
}

fn groups(object: &Object) -> impl Iterator<Item = (&'static str, String)> {
    INDEXED.iter().filter_map(|field| Some(group(field, object.get(*field)?.as_str()?)))
}

/// Returns a text field, or an empty text.
pub(super) fn text<'a>(object: &'a Object, name: &str) -> &'a str {
    object.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// Returns the object of a literal.
pub(super) fn object(value: Value) -> Object {
    match value {
        Value::Object(object) => object,
        _ => Object::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_value_is_found_under_its_new_value_alone() {
        let mut users = Collection::default();
        users.put(object(json!({"id": "user_1", "email": "Ada@example.test", "created_at": "2026-09-01"})));
        assert_eq!(users.with("email", "ADA@example.test").count(), 1);
        users.set("user_1", "email", json!("grace@example.test"));
        assert_eq!(users.with("email", "ada@example.test").count(), 0);
        assert_eq!(users.with("email", "grace@example.test").count(), 1);
        users.set("user_1", "created_at", json!("2026-10-01"));
        assert_eq!(users.keys().iter().map(|(at, _)| at.as_str()).collect::<Vec<_>>(), ["2026-10-01"]);
        users.remove("user_1");
        assert!(users.keys().is_empty() && users.groups.is_empty());
    }
}
