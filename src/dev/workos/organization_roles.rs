//! Roles that exist in one organization. Their slugs start with `org-`.

use axum::http::Method;
use serde_json::{Value, json};

use super::SimulatedWorkos;
use super::collection::{Object, object, text};
use super::fault::Fault;
use super::roles::{check_slug, not_found, set_fields, slugs_of, unpaged};
use super::routes::{Action, Read, Reads, segment};
use super::state::State;
use crate::domain::timestamp::Timestamp;

pub(super) const READS: &Reads = &[
    ("/authorization/organizations/{id}/roles", |read| {
        read.state.organization(read.id(0))?;
        Ok(unpaged(&read.state.roles_in(read.id(0))))
    }),
    ("/authorization/organizations/{id}/roles/{slug}", one),
];

pub(super) static ACTIONS: [Action; 3] = [
    Action {
        method: Method::POST,
        path: "/_simulate/organizations/{id}/roles",
        body: r#"{"slug":"org-print-lead","name":"Print lead","permissions":["orders:read"]}"#,
        effect: "creates an organization role; only the slug is required. Event: organization_role.created",
        run: |workos, path, given| workos.create_organization_role(segment(path, 0), given),
    },
    Action {
        method: Method::PUT,
        path: "/_simulate/organizations/{id}/roles/{slug}",
        body: r#"{"name":"Print lead","permissions":["orders:read","orders:write"]}"#,
        effect: "changes the given fields. Event: organization_role.updated",
        run: |workos, path, given| workos.update_organization_role(segment(path, 0), segment(path, 1), given),
    },
    Action {
        method: Method::DELETE,
        path: "/_simulate/organizations/{id}/roles/{slug}",
        body: "",
        effect: "deletes an organization role that no member has. Event: organization_role.deleted",
        run: |workos, path, _| workos.delete_organization_role(segment(path, 0), segment(path, 1)).map(|()| json!({})),
    },
];

impl SimulatedWorkos {
    /// Creates a role of an organization: only `slug` is required, which starts with `org-`. `name`, `description` and
    /// `permissions` are optional.
    ///
    /// # Errors
    /// [`Fault`] if the organization does not exist, or the slug is taken or not valid.
    pub fn create_organization_role(&self, organization_id: &str, given: &Object) -> Result<Value, Fault> {
        self.change(|state, now| state.create_organization_role(organization_id, given, now))
    }

    /// Changes `name`, `description` or `permissions` of an organization role.
    ///
    /// # Errors
    /// [`Fault`] if the role does not exist.
    pub fn update_organization_role(&self, organization_id: &str, slug: &str, given: &Object) -> Result<Value, Fault> {
        self.change(|state, now| {
            let role = state.organization_role(organization_id, slug)?;
            let before = role.clone();
            set_fields(role, given);
            if *role != before {
                role.insert("updated_at".into(), json!(now));
            }
            let after = role.clone();
            let data = |role| event_data(organization_id, role);
            state.emit_updated("organization_role.updated", data(&before), &data(&after), now);
            Ok(Value::Object(after))
        })
    }

    /// Replaces the permissions of an organization role.
    ///
    /// # Errors
    /// [`Fault`] if the role does not exist.
    pub fn set_organization_role_permissions(
        &self,
        organization_id: &str,
        slug: &str,
        permissions: &[&str],
    ) -> Result<Value, Fault> {
        self.update_organization_role(organization_id, slug, &object(json!({"permissions": permissions})))
    }

    /// Deletes an organization role.
    ///
    /// # Errors
    /// [`Fault`] if the role does not exist, or a member has it.
    pub fn delete_organization_role(&self, organization_id: &str, slug: &str) -> Result<(), Fault> {
        self.change(|state, now| state.delete_organization_role(organization_id, slug, now))
    }

    /// Returns the roles of an organization as the API does: also the environment roles, in the order of their priority.
    #[must_use]
    pub fn organization_roles(&self, organization_id: &str) -> Vec<Value> {
        self.read(|state| state.roles_in(organization_id).into_iter().cloned().map(Value::Object).collect())
    }
}

impl State {
    fn organization_role(&mut self, organization_id: &str, slug: &str) -> Result<&mut Object, Fault> {
        self.organization(organization_id)?;
        let roles = self.organization_roles.get_mut(organization_id);
        let role = roles.into_iter().flatten().find(|role| text(role, "slug") == slug);
        role.ok_or_else(|| not_found(slug))
    }

    fn create_organization_role(
        &mut self,
        organization_id: &str,
        given: &Object,
        now: Timestamp,
    ) -> Result<Value, Fault> {
        let slug = text(given, "slug");
        check_slug(slug)?;
        if !slug.starts_with("org-") {
            return Err(Fault::invalid("prefix_required", "slug"));
        }
        self.organization(organization_id)?;
        if self.organization_role(organization_id, slug).is_ok() {
            return Err(Fault::invalid("slug_not_available", "slug"));
        }
        let role = self.new_role(given, "OrganizationRole", now);
        self.organization_roles.entry(organization_id.to_owned()).or_default().push(role.clone());
        self.emit("organization_role.created", Value::Object(event_data(organization_id, &role)), None, now);
        Ok(Value::Object(role))
    }

    fn delete_organization_role(&mut self, organization_id: &str, slug: &str, now: Timestamp) -> Result<(), Fault> {
        let role = self.organization_role(organization_id, slug)?.clone();
        let has_role = |membership: &Object| slugs_of(membership).any(|held| held == slug);
        if self.memberships.with("organization_id", organization_id).any(has_role) {
            return Err(Fault::conflict("role_has_assignments", "The role is still assigned."));
        }
        if let Some(roles) = self.organization_roles.get_mut(organization_id) {
            roles.retain(|role| text(role, "slug") != slug);
        }
        self.emit("organization_role.deleted", Value::Object(event_data(organization_id, &role)), None, now);
        Ok(())
    }
}

/// Returns the data of an event: it has the organization, but no ID and no type.
fn event_data(organization_id: &str, role: &Object) -> Object {
    let mut data = role.clone();
    data.retain(|name, _| !["id", "type"].contains(&name.as_str()));
    data.insert("object".into(), "organization_role".into());
    data.insert("organization_id".into(), organization_id.into());
    data
}

fn one(read: &Read<'_>) -> Result<Value, Fault> {
    read.state.organization(read.id(0))?;
    let mut roles = read.state.roles_in(read.id(0)).into_iter();
    let role = roles.find(|role| text(role, "slug") == read.id(1));
    role.cloned().map(Value::Object).ok_or_else(|| not_found(read.id(1)))
}
