//! Environment roles, and the roles of a member.

use axum::http::Method;
use serde_json::{Value, json};

use super::SimulatedWorkos;
use super::collection::{Object, object, text};
use super::fault::Fault;
use super::routes::{Action, Read, Reads, segment};
use super::state::State;
use crate::domain::timestamp::Timestamp;

pub(super) const READS: &Reads =
    &[("/authorization/roles", |read| Ok(unpaged(&read.state.roles))), ("/authorization/roles/{slug}", one)];

pub(super) static ACTIONS: [Action; 4] = [
    Action {
        method: Method::POST,
        path: "/_simulate/roles",
        body: r#"{"slug":"billing","name":"Billing","description":null,"permissions":["invoices:read"]}"#,
        effect: "creates an environment role; only the slug is required. Event: role.created",
        run: |workos, _, given| workos.create_role(given),
    },
    Action {
        method: Method::PUT,
        path: "/_simulate/roles/{slug}",
        body: r#"{"name":"Billing","permissions":["invoices:read","invoices:write"]}"#,
        effect: "changes the given fields. Event: role.updated, but only if the permissions changed",
        run: |workos, path, given| workos.update_role(segment(path, 0), given),
    },
    Action {
        method: Method::DELETE,
        path: "/_simulate/roles/{slug}",
        body: "",
        effect: "deletes an environment role; its members lose it. Event: role.deleted, and those of cascades",
        run: |workos, path, _| workos.delete_role(segment(path, 0)).map(|()| json!({})),
    },
    Action {
        method: Method::POST,
        path: "/_simulate/role_order",
        body: r#"{"slugs":["admin","billing","member"]}"#,
        effect: "sets the priority of the environment roles, the highest first; the last one is the default. No event",
        run: |workos, _, given| {
            let slugs = given.get("slugs").and_then(Value::as_array).into_iter().flatten();
            let slugs: Vec<&str> = slugs.filter_map(Value::as_str).collect();
            workos.order_roles(&slugs)
        },
    },
];

impl SimulatedWorkos {
    /// Creates an environment role with the highest priority: only `slug` is required. `name`, `description` and `permissions` are
    /// optional. A permission need not exist.
    ///
    /// # Errors
    /// [`Fault`] if the slug is taken or not valid.
    pub fn create_role(&self, given: &Object) -> Result<Value, Fault> {
        self.change(|state, now| state.create_role(given, now))
    }

    /// Changes `name`, `description` or `permissions` of an environment role. Only a change of the permissions causes an event,
    /// because WorkOS documents no other.
    ///
    /// # Errors
    /// [`Fault`] if the role does not exist.
    pub fn update_role(&self, slug: &str, given: &Object) -> Result<Value, Fault> {
        self.change(|state, now| state.update_role(slug, given, now))
    }

    /// Replaces the permissions of an environment role.
    ///
    /// # Errors
    /// [`Fault`] if the role does not exist.
    pub fn set_role_permissions(&self, slug: &str, permissions: &[&str]) -> Result<Value, Fault> {
        self.update_role(slug, &object(json!({"permissions": permissions})))
    }

    /// Deletes an environment role. A member without another role gets the default role.
    ///
    /// # Errors
    /// [`Fault`] if the role does not exist or is the default role.
    pub fn delete_role(&self, slug: &str) -> Result<(), Fault> {
        self.change(|state, now| state.delete_role(slug, now))
    }

    /// Sets the priority of the environment roles, the highest first. The last one is the default. Roles that are not named keep
    /// their order before the named ones. WorkOS has no event for it.
    ///
    /// # Errors
    /// [`Fault`] if a role does not exist.
    pub fn order_roles(&self, slugs: &[&str]) -> Result<Value, Fault> {
        self.change(|state, _| {
            let unknown = slugs.iter().find(|slug| !state.roles.iter().any(|role| text(role, "slug") == **slug));
            if let Some(slug) = unknown {
                return Err(not_found(slug));
            }
            state.roles.sort_by_key(|role| slugs.iter().position(|slug| *slug == text(role, "slug")));
            Ok(unpaged(&state.roles))
        })
    }

    /// Returns the environment roles as the API does, the one with the highest priority first.
    #[must_use]
    pub fn roles(&self) -> Vec<Value> {
        self.read(|state| state.roles.iter().cloned().map(Value::Object).collect())
    }
}

impl State {
    /// Creates the roles that every new environment has, without events.
    pub(super) fn create_initial_roles(&mut self, now: Timestamp) {
        for (slug, name) in [("admin", "Admin"), ("member", "Member")] {
            let given = object(json!({"slug": slug, "name": name}));
            let role = self.new_role(&given, "EnvironmentRole", now);
            self.roles.push(role);
        }
    }

    pub(super) fn new_role(&mut self, given: &Object, kind: &str, now: Timestamp) -> Object {
        let slug = text(given, "slug");
        let mut role = object(json!({
            "object": "role", "id": self.ids.next("role", now), "slug": slug, "name": slug, "description": null,
            "type": kind, "resource_type_slug": "organization", "permissions": [], "created_at": now, "updated_at": now,
        }));
        set_fields(&mut role, given);
        role
    }

    fn create_role(&mut self, given: &Object, now: Timestamp) -> Result<Value, Fault> {
        check_slug(text(given, "slug"))?;
        if text(given, "slug").starts_with("org-") {
            return Err(Fault::invalid("reserved_prefix", "slug"));
        }
        if self.roles.iter().any(|role| text(role, "slug") == text(given, "slug")) {
            return Err(Fault::invalid("slug_not_available", "slug"));
        }
        let role = self.new_role(given, "EnvironmentRole", now);
        self.roles.insert(0, role.clone());
        self.emit("role.created", Value::Object(event_data(&role)), None, now);
        Ok(Value::Object(role))
    }

    fn update_role(&mut self, slug: &str, given: &Object, now: Timestamp) -> Result<Value, Fault> {
        let role = self.roles.iter_mut().find(|role| text(role, "slug") == slug).ok_or_else(|| not_found(slug))?;
        let before = role.clone();
        set_fields(role, given);
        if *role != before {
            role.insert("updated_at".into(), json!(now));
        }
        let after = role.clone();
        if before.get("permissions") != after.get("permissions") {
            self.emit_updated("role.updated", event_data(&before), &event_data(&after), now);
        }
        Ok(Value::Object(after))
    }

    fn delete_role(&mut self, slug: &str, now: Timestamp) -> Result<(), Fault> {
        let position = self.roles.iter().position(|role| text(role, "slug") == slug).ok_or_else(|| not_found(slug))?;
        if position + 1 == self.roles.len() {
            return Err(Fault::conflict("role_is_default", "The default role cannot be deleted."));
        }
        let mut data = event_data(&self.roles.remove(position));
        data.remove("permissions");
        self.emit("role.deleted", Value::Object(data), None, now);
        self.take_role_from_members(slug, now)
    }

    /// Removes a deleted role from its members. [`Cascades`](super::cascades::Cascades) selects whether this creates events.
    fn take_role_from_members(&mut self, slug: &str, now: Timestamp) -> Result<(), Fault> {
        let holders =
            self.memberships.oldest_first().filter(|membership| slugs_of(membership).any(|held| held == slug));
        let holders: Vec<Object> = holders.cloned().collect();
        for membership in holders {
            let left: Vec<String> = slugs_of(&membership).filter(|held| *held != slug).map(str::to_owned).collect();
            let roles = self.roles_of_membership(text(&membership, "organization_id"), &left)?;
            let id = text(&membership, "id");
            let changed = self.memberships.change(id, now, |membership| membership.extend(roles));
            if let Some((before, after)) = changed.filter(|_| self.cascades.memberships) {
                self.emit_updated("organization_membership.updated", before, &after, now);
            }
        }
        Ok(())
    }

    /// Returns the fields `role` and `roles` of a membership: `role` is the one with the highest priority. Without a role it is the
    /// default role.
    pub(super) fn roles_of_membership(&self, organization_id: &str, slugs: &[String]) -> Result<Object, Fault> {
        let available = self.roles_in(organization_id);
        let default = available.last().map(|role| text(role, "slug").to_owned());
        let slugs = if slugs.is_empty() { default.into_iter().collect() } else { slugs.to_vec() };
        if slugs.iter().any(|slug| !available.iter().any(|role| text(role, "slug") == slug)) {
            return Err(Fault::invalid("role_not_found", "role_slug"));
        }
        let first = available.iter().map(|role| text(role, "slug")).find(|role| slugs.iter().any(|slug| slug == role));
        let roles: Vec<Value> = slugs.iter().map(|slug| json!({"slug": slug})).collect();
        Ok(object(json!({"role": {"slug": first}, "roles": roles})))
    }

    /// Returns the roles that a member of an organization can have, the one with the highest priority first: those of the
    /// organization have more priority than the default role, and less than the others.
    pub(super) fn roles_in(&self, organization_id: &str) -> Vec<&Object> {
        let own = self.organization_roles.get(organization_id).map(Vec::as_slice).unwrap_or_default();
        let (first, default) = self.roles.split_at(self.roles.len().saturating_sub(1));
        first.iter().chain(own).chain(default).collect()
    }

    /// Returns the permissions of these roles in an organization, sorted.
    pub(super) fn permissions_of(&self, organization_id: &str, slugs: &[&str]) -> Vec<String> {
        let roles = self.roles_in(organization_id).into_iter().filter(|role| slugs.contains(&text(role, "slug")));
        let permissions = roles.filter_map(|role| role.get("permissions")?.as_array()).flatten();
        let mut permissions: Vec<String> = permissions.filter_map(Value::as_str).map(str::to_owned).collect();
        permissions.sort();
        permissions.dedup();
        permissions
    }
}

/// Returns the role slugs of a membership.
pub(super) fn slugs_of(membership: &Object) -> impl Iterator<Item = &str> {
    let roles = membership.get("roles").and_then(Value::as_array).into_iter().flatten();
    roles.filter_map(|role| role.get("slug")?.as_str())
}

/// Returns the 404 of a role.
pub(super) fn not_found(slug: &str) -> Fault {
    Fault::not_found("Role", slug)
}

/// Returns a list as the API returns roles: it has no pages.
pub(super) fn unpaged<T: serde::Serialize>(roles: &[T]) -> Value {
    json!({"object": "list", "data": roles})
}

pub(super) fn check_slug(slug: &str) -> Result<(), Fault> {
    let is_valid = |char: char| char.is_ascii_lowercase() || char.is_ascii_digit() || "-_:".contains(char);
    if slug.is_empty() || slug.len() > 48 || !slug.chars().all(is_valid) {
        return Err(Fault::invalid("invalid", "slug"));
    }
    Ok(())
}

/// Sets the given fields of a role or permission.
pub(super) fn set_fields(role: &mut Object, given: &Object) {
    for name in ["name", "description", "permissions"] {
        let is_required = name != "description";
        let value = given.get(name).filter(|value| !(is_required && value.is_null())).cloned();
        role.extend(value.map(|value| (name.to_owned(), value)));
    }
}

/// Returns the data of an event: it has no ID, no name and no description.
fn event_data(role: &Object) -> Object {
    let mut data = role.clone();
    data.retain(|name, _| !["id", "name", "description", "type"].contains(&name.as_str()));
    data
}

fn one(read: &Read<'_>) -> Result<Value, Fault> {
    let role = read.state.roles.iter().find(|role| text(role, "slug") == read.id(0));
    role.cloned().map(Value::Object).ok_or_else(|| not_found(read.id(0)))
}
