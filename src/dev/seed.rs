//! Creates the objects of a seed file at the simulated WorkOS. Each one causes the events that WorkOS would send.
//!
//! The file is an array of users, or an object:
//!
//! ```json
//! {
//!   "permissions": [{"slug": "orders:read"}],
//!   "roles": [{"slug": "billing", "permissions": ["orders:read"]}],
//!   "organizations": [{"name": "Acme", "roles": [{"slug": "org-support", "permissions": ["orders:read"]}]}],
//!   "users": [{"email": "ada@example.test", "memberships": [{"organization": "Acme", "roles": ["billing"]}]}]
//! }
//! ```

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::workos::{Fault, SimulatedWorkos};

type Object = Map<String, Value>;

/// What to create, in this order. The fields of each object are those of WorkOS's API.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Seed {
    permissions: Vec<Object>,
    roles: Vec<Object>,
    organizations: Vec<Organization>,
    users: Vec<User>,
}

#[derive(Debug, Deserialize)]
struct Organization {
    /// The roles of this organization alone. Their slugs begin with `org-`.
    #[serde(default)]
    roles: Vec<Object>,
    #[serde(flatten)]
    fields: Object,
}

#[derive(Debug, Deserialize)]
struct User {
    #[serde(default)]
    memberships: Vec<Membership>,
    #[serde(flatten)]
    fields: Object,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Membership {
    /// The name or the ID of an organization of the file.
    organization: String,
    #[serde(default)]
    roles: Vec<String>,
}

impl Seed {
    /// Reads a seed file.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let seed = match value {
            Value::Array(_) => serde_json::from_value(value).map(|users| Self { users, ..Self::default() }),
            other => serde_json::from_value(other),
        };
        seed.map_err(|error| error.to_string())
    }

    /// Creates everything.
    ///
    /// # Errors
    /// The object that WorkOS refuses, and its answer.
    pub fn create(self, workos: &SimulatedWorkos) -> Result<(), String> {
        for permission in &self.permissions {
            workos.create_permission(permission).map_err(refused("permission", permission))?;
        }
        for role in &self.roles {
            workos.create_role(role).map_err(refused("role", role))?;
        }
        let mut ids = HashMap::new();
        for Organization { roles, fields } in &self.organizations {
            let created = workos.create_organization(fields).map_err(refused("organization", fields))?;
            let id = text(&created, "id");
            for role in roles {
                workos.create_organization_role(&id, role).map_err(refused("role", role))?;
            }
            ids.insert(text(&created, "name"), id.clone());
            ids.insert(id.clone(), id);
        }
        for User { memberships, fields } in &self.users {
            let created = workos.create_user(fields).map_err(refused("user", fields))?;
            for Membership { organization, roles } in memberships {
                let id = ids.get(organization).ok_or_else(|| {
                    format!("the file has no organization {organization:?}; add it to `organizations`")
                })?;
                let roles: Vec<&str> = roles.iter().map(String::as_str).collect();
                workos
                    .add_membership(&text(&created, "id"), id, &roles)
                    .map_err(refused("membership of the user", fields))?;
            }
        }
        Ok(())
    }
}

fn refused(kind: &'static str, object: &Object) -> impl FnOnce(Fault) -> String {
    let object = Value::Object(object.clone());
    move |fault| format!("WorkOS refuses the {kind} {object}: {fault:?}")
}

fn text(object: &Value, field: &str) -> String {
    object.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
}
