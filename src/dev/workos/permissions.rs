//! Permissions. Roles name them by slug.

use axum::http::Method;
use serde_json::{Value, json};

use super::SimulatedWorkos;
use super::collection::{Object, object, text};
use super::fault::Fault;
use super::roles::{check_slug, set_fields};
use super::routes::{Action, Read, Reads, segment};
use super::state::State;
use crate::domain::timestamp::Timestamp;

pub(super) const READS: &Reads = &[
    ("/authorization/permissions", list),
    ("/authorization/permissions/{slug}", |read| read.state.permission(read.id(0)).cloned().map(Value::Object)),
];

pub(super) static ACTIONS: [Action; 3] = [
    Action {
        method: Method::POST,
        path: "/_simulate/permissions",
        body: r#"{"slug":"orders:write","name":"Write orders","description":null}"#,
        effect: "creates a permission; only the slug is required. Event: permission.created",
        run: |workos, _, given| workos.create_permission(given),
    },
    Action {
        method: Method::PUT,
        path: "/_simulate/permissions/{slug}",
        body: r#"{"name":"Write orders"}"#,
        effect: "changes the given fields. Event: permission.updated",
        run: |workos, path, given| workos.update_permission(segment(path, 0), given),
    },
    Action {
        method: Method::DELETE,
        path: "/_simulate/permissions/{slug}",
        body: "",
        effect: "deletes a permission, also from every role. Event: permission.deleted, and none about roles",
        run: |workos, path, _| workos.delete_permission(segment(path, 0)).map(|()| json!({})),
    },
];

impl SimulatedWorkos {
    /// Creates a permission: only `slug` is required. `name` and `description` are optional.
    ///
    /// # Errors
    /// [`Fault`] if the slug is taken or not valid.
    pub fn create_permission(&self, given: &Object) -> Result<Value, Fault> {
        self.change(|state, now| state.create_permission(given, now))
    }

    /// Changes `name` or `description` of a permission.
    ///
    /// # Errors
    /// [`Fault`] if the permission does not exist.
    pub fn update_permission(&self, slug: &str, given: &Object) -> Result<Value, Fault> {
        self.change(|state, now| {
            let id = text(state.permission(slug)?, "id").to_owned();
            let mut given = given.clone();
            given.remove("permissions");
            let changed = state.permissions.change(&id, now, |permission| set_fields(permission, &given));
            let (before, after) = changed.ok_or_else(|| not_found(slug))?;
            state.emit_updated("permission.updated", before, &after, now);
            Ok(Value::Object(after))
        })
    }

    /// Deletes a permission, also from every role. Whether WorkOS then creates events about the roles is not documented, so there
    /// are none.
    ///
    /// # Errors
    /// [`Fault`] if the permission does not exist.
    pub fn delete_permission(&self, slug: &str) -> Result<(), Fault> {
        self.change(|state, now| state.delete_permission(slug, now))
    }

    /// Returns every permission, oldest first, as the API does.
    #[must_use]
    pub fn permissions(&self) -> Vec<Value> {
        self.read(|state| state.permissions.oldest_first().cloned().map(Value::Object).collect())
    }
}

impl State {
    fn permission(&self, slug: &str) -> Result<&Object, Fault> {
        self.permissions.with("slug", slug).next().ok_or_else(|| not_found(slug))
    }

    fn create_permission(&mut self, given: &Object, now: Timestamp) -> Result<Value, Fault> {
        let slug = text(given, "slug");
        check_slug(slug)?;
        if self.permission(slug).is_ok() {
            return Err(Fault::invalid("slug_not_available", "slug"));
        }
        let mut permission = object(json!({
            "object": "permission", "id": self.ids.next("perm", now), "slug": slug, "name": slug, "description": null,
            "system": false, "resource_type_slug": "organization", "created_at": now, "updated_at": now,
        }));
        let mut given = given.clone();
        given.remove("permissions");
        set_fields(&mut permission, &given);
        self.permissions.put(permission.clone());
        self.emit("permission.created", Value::Object(permission.clone()), None, now);
        Ok(Value::Object(permission))
    }

    fn delete_permission(&mut self, slug: &str, now: Timestamp) -> Result<(), Fault> {
        let permission = self.permission(slug)?.clone();
        self.permissions.remove(text(&permission, "id"));
        self.record_removed(&permission);
        for role in self.roles.iter_mut().chain(self.organization_roles.values_mut().flatten()) {
            if let Some(Value::Array(permissions)) = role.get_mut("permissions") {
                permissions.retain(|held| held != slug);
            }
        }
        self.emit("permission.deleted", Value::Object(permission), None, now);
        Ok(())
    }
}

fn not_found(slug: &str) -> Fault {
    Fault::not_found("Permission", slug)
}

fn list(read: &Read<'_>) -> Result<Value, Fault> {
    let all = &read.state.permissions;
    read.page(all, all.keys(), |_| true, |permission| Value::Object(permission.clone()))
}
