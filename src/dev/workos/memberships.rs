//! Organization memberships.

use axum::http::Method;
use serde_json::{Value, json};

use super::SimulatedWorkos;
use super::collection::{Object, object, text};
use super::fault::Fault;
use super::organizations;
use super::routes::{Action, Read, Reads, segment};
use super::state::{State, user_not_found};
use crate::domain::timestamp::Timestamp;

/// All statuses.
const STATUSES: [&str; 3] = ["active", "inactive", "pending"];

pub(super) const READS: &Reads = &[
    ("/user_management/organization_memberships", list),
    ("/user_management/organization_memberships/{id}", |read| {
        let membership = read.state.membership(read.id(0))?;
        Ok(read.state.presented(membership))
    }),
];

pub(super) static ACTIONS: [Action; 6] = [
    Action {
        method: Method::POST,
        path: "/_simulate/memberships",
        body: r#"{"user_id":"user_…","organization_id":"org_…","role_slugs":["member"],"status":"active","custom_attributes":{}}"#,
        effect: "adds a member; an inactive one is reactivated. Event: organization_membership.created or .updated",
        run: |workos, _, given| workos.create_membership(given),
    },
    Action {
        method: Method::PUT,
        path: "/_simulate/memberships/{id}",
        body: r#"{"role_slugs":["admin","member"],"custom_attributes":{"department":"Print"},"directory_managed":true}"#,
        effect: "changes the given fields. Event: organization_membership.updated",
        run: |workos, path, given| workos.update_membership(segment(path, 0), given),
    },
    Action {
        method: Method::POST,
        path: "/_simulate/memberships/{id}/accept",
        body: "",
        effect: "activates a pending membership, as an accepted invitation does. Event: organization_membership.updated",
        run: |workos, path, _| workos.accept_membership(segment(path, 0)),
    },
    Action {
        method: Method::POST,
        path: "/_simulate/memberships/{id}/deactivate",
        body: "",
        effect: "deactivates a member and revokes the sessions in the organization. Event: organization_membership.updated",
        run: |workos, path, _| workos.deactivate_membership(segment(path, 0)),
    },
    Action {
        method: Method::POST,
        path: "/_simulate/memberships/{id}/reactivate",
        body: "",
        effect: "activates an inactive membership. Event: organization_membership.updated",
        run: |workos, path, _| workos.reactivate_membership(segment(path, 0)),
    },
    Action {
        method: Method::DELETE,
        path: "/_simulate/memberships/{id}",
        body: "",
        effect: "removes a member; a later membership has a new ID. Event: organization_membership.deleted",
        run: |workos, path, _| workos.remove_membership(segment(path, 0)).map(|()| json!({})),
    },
];

impl SimulatedWorkos {
    /// `POST /user_management/organization_memberships`: `user_id` and `organization_id` are required. `role_slug`, `role_slugs`,
    /// `status` (`active` or `pending`), `custom_attributes`, `directory_managed` and `id` are optional. An inactive membership of
    /// the user in the organization is reactivated.
    ///
    /// # Errors
    /// [`Fault`], the error of WorkOS.
    pub fn create_membership(&self, given: &Object) -> Result<Value, Fault> {
        self.change(|state, now| state.create_membership(given, now))
    }

    /// Adds an active member with these roles (none: the default role), and returns the membership.
    ///
    /// # Errors
    /// [`Fault`], the error of WorkOS.
    pub fn add_membership(&self, user_id: &str, organization_id: &str, roles: &[&str]) -> Result<Value, Fault> {
        let given = json!({"user_id": user_id, "organization_id": organization_id, "role_slugs": roles});
        self.create_membership(&object(given))
    }

    /// Changes `role_slug`, `role_slugs`, `custom_attributes` or `directory_managed`.
    ///
    /// # Errors
    /// [`Fault`], the error of WorkOS.
    pub fn update_membership(&self, id: &str, given: &Object) -> Result<Value, Fault> {
        self.change(|state, now| state.update_membership(id, given, now))
    }

    /// Replaces the roles of a membership.
    ///
    /// # Errors
    /// [`Fault`] if the membership or a role does not exist.
    pub fn set_membership_roles(&self, id: &str, roles: &[&str]) -> Result<Value, Fault> {
        self.update_membership(id, &object(json!({"role_slugs": roles})))
    }

    /// Activates a pending membership, as an accepted invitation does.
    ///
    /// # Errors
    /// [`Fault`] if the membership does not exist.
    pub fn accept_membership(&self, id: &str) -> Result<Value, Fault> {
        self.change(|state, now| state.set_status(id, "active", now))
    }

    /// `PUT /user_management/organization_memberships/{id}/deactivate`: also revokes the sessions of the user in the organization.
    ///
    /// # Errors
    /// [`Fault`] if the membership does not exist or is pending.
    pub fn deactivate_membership(&self, id: &str) -> Result<Value, Fault> {
        self.change(|state, now| {
            state.refuse_pending(id, "deactivate")?;
            let membership = state.set_status(id, "inactive", now)?;
            let field = |name: &str| membership.get(name).and_then(Value::as_str).unwrap_or_default();
            state.end_sessions(field("user_id"), Some(field("organization_id")), now);
            Ok(membership)
        })
    }

    /// `PUT /user_management/organization_memberships/{id}/reactivate`
    ///
    /// # Errors
    /// [`Fault`] if the membership does not exist or is pending.
    pub fn reactivate_membership(&self, id: &str) -> Result<Value, Fault> {
        self.change(|state, now| {
            state.refuse_pending(id, "reactivate")?;
            state.set_status(id, "active", now)
        })
    }

    /// `DELETE /user_management/organization_memberships/{id}`
    ///
    /// # Errors
    /// [`Fault`] if the membership does not exist.
    pub fn remove_membership(&self, id: &str) -> Result<(), Fault> {
        self.change(|state, now| {
            let membership = state.memberships.remove(id).ok_or_else(|| not_found(id))?;
            state.record_removed(&membership);
            state.emit("organization_membership.deleted", Value::Object(membership), None, now);
            Ok(())
        })
    }

    /// Returns every membership of any status, oldest first, as in events.
    #[must_use]
    pub fn memberships(&self) -> Vec<Value> {
        self.read(|state| state.memberships.oldest_first().cloned().map(Value::Object).collect())
    }
}

impl State {
    fn membership(&self, id: &str) -> Result<&Object, Fault> {
        self.memberships.get(id).ok_or_else(|| not_found(id))
    }

    fn membership_of(&self, user_id: &str, organization_id: &str) -> Option<&Object> {
        let sides = [("user_id", user_id), ("organization_id", organization_id)];
        let (field, id) = sides.into_iter().min_by_key(|(field, id)| self.memberships.keys_with(field, id).len())?;
        let is_of = |membership: &&Object| sides.iter().all(|(field, id)| text(membership, field) == *id);
        self.memberships.with(field, id).find(is_of)
    }

    /// Returns the active membership of a user in an organization, as a sign-in needs it.
    pub(super) fn active_membership(&self, user_id: &str, organization_id: &str) -> Result<&Object, Fault> {
        let membership = self.membership_of(user_id, organization_id);
        let active = membership.filter(|membership| text(membership, "status") == "active");
        active.ok_or_else(|| Fault::grant("The user is not an active member of the organization."))
    }

    fn create_membership(&mut self, given: &Object, now: Timestamp) -> Result<Value, Fault> {
        let (user_id, organization_id) = (text(given, "user_id"), text(given, "organization_id"));
        if !self.users.contains(user_id) {
            return Err(user_not_found(user_id));
        }
        self.organization(organization_id)?;
        check_types(given)?;
        if let Some(membership) = self.membership_of(user_id, organization_id) {
            let id = text(membership, "id").to_owned();
            if text(membership, "status") != "inactive" {
                let message = "The user already has a membership in this organization.";
                return Err(Fault::bad("organization_membership_already_exists", message));
            }
            return self.change_membership(&id, given, Some("active"), now);
        }
        let id = given.get("id").and_then(Value::as_str).map(str::to_owned);
        let id = id.unwrap_or_else(|| self.ids.next("om", now));
        if self.memberships.contains(&id) || self.removed.contains_key(&id) {
            return Err(Fault::invalid("id_not_available", "id"));
        }
        let roles = role_slugs(given).unwrap_or_default();
        let status = if text(given, "status") == "pending" { "pending" } else { "active" };
        let mut membership = object(json!({
            "object": "organization_membership", "id": id, "user_id": user_id, "organization_id": organization_id,
            "status": status, "custom_attributes": {}, "directory_managed": false,
            "created_at": now, "updated_at": now,
        }));
        membership.extend(self.roles_of_membership(organization_id, &roles)?);
        set_fields(&mut membership, given);
        self.memberships.put(membership.clone());
        self.emit("organization_membership.created", Value::Object(membership.clone()), None, now);
        Ok(self.presented(&membership))
    }

    fn update_membership(&mut self, id: &str, given: &Object, now: Timestamp) -> Result<Value, Fault> {
        self.membership(id)?;
        check_types(given)?;
        self.change_membership(id, given, None, now)
    }

    fn set_status(&mut self, id: &str, status: &str, now: Timestamp) -> Result<Value, Fault> {
        self.change_membership(id, &Object::new(), Some(status), now)
    }

    fn change_membership(
        &mut self,
        id: &str,
        given: &Object,
        status: Option<&str>,
        now: Timestamp,
    ) -> Result<Value, Fault> {
        let organization_id = text(self.membership(id)?, "organization_id").to_owned();
        let roles = role_slugs(given).map(|roles| self.roles_of_membership(&organization_id, &roles)).transpose()?;
        let changed = self.memberships.change(id, now, |membership| {
            membership.extend(roles.unwrap_or_default());
            set_fields(membership, given);
            membership.extend(status.map(|status| ("status".to_owned(), json!(status))));
        });
        let (before, after) = changed.ok_or_else(|| not_found(id))?;
        self.emit_updated("organization_membership.updated", before, &after, now);
        Ok(self.presented(&after))
    }

    /// Removes the memberships of a user (`user_id`) or of an organization (`organization_id`).
    pub(super) fn end_memberships(&mut self, field: &'static str, id: &str, now: Timestamp) {
        let memberships: Vec<Object> = self.memberships.with(field, id).cloned().collect();
        for membership in memberships {
            self.memberships.remove(text(&membership, "id"));
            self.record_removed(&membership);
            if self.cascades.memberships {
                self.emit("organization_membership.deleted", Value::Object(membership), None, now);
            }
        }
    }

    fn refuse_pending(&self, id: &str, verb: &str) -> Result<(), Fault> {
        if text(self.membership(id)?, "status") == "pending" {
            let code = format!("cannot_{verb}_pending_organization_membership");
            return Err(Fault::bad(&code, &format!("A pending membership can not be {verb}d.")));
        }
        Ok(())
    }

    /// Returns the membership as the API does: with the name of the organization and the user.
    fn presented(&self, membership: &Object) -> Value {
        let mut presented = membership.clone();
        let organization = self.organizations.get(text(membership, "organization_id"));
        let name = organization.and_then(|organization| organization.get("name")).cloned();
        presented.extend(name.map(|name| ("organization_name".to_owned(), name)));
        let user = self.users.get(text(membership, "user_id")).cloned();
        presented.extend(user.map(|user| ("user".to_owned(), Value::Object(user))));
        Value::Object(presented)
    }
}

/// Returns the 404 of a membership.
fn not_found(id: &str) -> Fault {
    Fault::not_found("Organization membership", id)
}

/// Returns the role slugs of a request, if it has any.
fn role_slugs(given: &Object) -> Option<Vec<String>> {
    let slugs = given.get("role_slugs").and_then(Value::as_array);
    let slugs = slugs.map(|slugs| slugs.iter().filter_map(Value::as_str).map(str::to_owned).collect());
    slugs.or_else(|| given.get("role_slug").and_then(Value::as_str).map(|slug| vec![slug.to_owned()]))
}

fn set_fields(membership: &mut Object, given: &Object) {
    for name in ["custom_attributes", "directory_managed"] {
        let value = given.get(name).filter(|value| !value.is_null()).cloned();
        membership.extend(value.map(|value| (name.to_owned(), value)));
    }
}

/// Rejects values of a wrong type.
fn check_types(given: &Object) -> Result<(), Fault> {
    for (name, value) in given.iter().filter(|(_, value)| !value.is_null()) {
        let fits = match name.as_str() {
            "custom_attributes" => value.is_object(),
            "directory_managed" => value.is_boolean(),
            "role_slugs" => value.as_array().is_some_and(|slugs| slugs.iter().all(Value::is_string)),
            "role_slug" | "id" => value.is_string(),
            "status" => ["active", "pending"].iter().any(|status| value == status),
            _ => true,
        };
        if !fits {
            return Err(Fault::invalid("invalid", name));
        }
    }
    Ok(())
}

/// `GET /user_management/organization_memberships`: of a user, of an organization, or of both. By default only active memberships.
fn list(read: &Read<'_>) -> Result<Value, Fault> {
    let (user, organization) = (read.parameter("user_id"), read.parameter("organization_id"));
    let (state, lenient) = (read.state, read.faults.unknown_lists_empty);
    let keys = match (user, organization) {
        (Some(id), _) => state.memberships.keys_with("user_id", id),
        (None, Some(id)) => state.memberships.keys_with("organization_id", id),
        (None, None) => {
            let message = "A user or an organization has to be named.";
            return Err(Fault::bad("missing_user_id_or_organization_id", message));
        }
    };
    if let Some(id) = user.filter(|id| !lenient && !state.users.contains(id)) {
        return Err(user_not_found(id));
    }
    if let Some(id) = organization.filter(|id| !lenient && !state.organizations.contains(id)) {
        return Err(organizations::not_found(id));
    }
    let mut statuses = read.values("statuses");
    if statuses.iter().any(|status| !STATUSES.contains(status)) {
        return Err(Fault::invalid("invalid", "statuses"));
    }
    if statuses.is_empty() {
        statuses.push("active");
    }
    let is_listed = |membership: &Object| {
        statuses.contains(&text(membership, "status"))
            && organization.is_none_or(|id| text(membership, "organization_id") == id)
    };
    read.page(&state.memberships, keys, is_listed, |membership| state.presented(membership))
}
