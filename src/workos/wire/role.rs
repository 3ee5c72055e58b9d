//! The fields of roles and permissions.

use serde_json::value::RawValue;

use super::{Fields, id_field, timestamp};
use crate::domain::role::{Permission, Role};
use crate::workos::json;

/// Parses a role of a list. `None` if it has no slug.
pub(crate) fn role(item: &RawValue) -> Option<Role> {
    let (slug, mut data) = entry(item)?;
    let mut take = |name: &str| data.remove(name);
    let known = Known { id: take("id"), name: take("name"), description: take("description") };
    let (role_type, resource_type, permissions) = (take("type"), take("resource_type_slug"), take("permissions"));
    let (created_at, updated_at) = (take("created_at"), take("updated_at"));
    let (id, name, description) = known.texts();
    Some(Role {
        slug,
        id,
        name,
        description,
        role_type: json::text(role_type.as_deref()),
        resource_type_slug: json::text(resource_type.as_deref()),
        permissions: slugs(permissions.as_deref()),
        created_at: timestamp(created_at.as_deref()),
        updated_at: timestamp(updated_at.as_deref()),
        extra: data,
    })
}

/// Parses a permission of a list. `None` if it has no slug.
pub(crate) fn permission(item: &RawValue) -> Option<Permission> {
    let (slug, mut data) = entry(item)?;
    let mut take = |name: &str| data.remove(name);
    let known = Known { id: take("id"), name: take("name"), description: take("description") };
    let (system, resource_type) = (take("system"), take("resource_type_slug"));
    let (created_at, updated_at) = (take("created_at"), take("updated_at"));
    let (id, name, description) = known.texts();
    Some(Permission {
        slug,
        id,
        name,
        description,
        system: json::boolean(system.as_deref()).unwrap_or_default(),
        resource_type_slug: json::text(resource_type.as_deref()),
        created_at: timestamp(created_at.as_deref()),
        updated_at: timestamp(updated_at.as_deref()),
        extra: data,
    })
}

/// Fields that roles and permissions have in common.
struct Known {
    id: Option<Box<RawValue>>,
    name: Option<Box<RawValue>>,
    description: Option<Box<RawValue>>,
}

impl Known {
    fn texts(&self) -> (Option<String>, Option<String>, Option<String>) {
        let text = |value: &Option<Box<RawValue>>| json::text(value.as_deref());
        (text(&self.id), text(&self.name), text(&self.description))
    }
}

/// Returns the slug of an entry, and its other fields.
fn entry(item: &RawValue) -> Option<(String, Fields)> {
    let sanitized = json::sanitize(item.get());
    if sanitized.too_deep {
        return None;
    }
    let mut data = json::object(&sanitized.text)?;
    let slug = id_field(&data, "slug")?;
    data.remove("slug");
    data.remove("object");
    Some((slug, data))
}

/// Returns the texts of an array.
fn slugs(value: Option<&RawValue>) -> Vec<String> {
    let items: Option<Vec<Box<RawValue>>> = value.and_then(|value| serde_json::from_str(value.get()).ok());
    items.unwrap_or_default().iter().filter_map(|item| json::string(Some(item))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    #[test]
    fn a_role_keeps_every_field_and_needs_only_a_slug() {
        let text = r#"{"object":"role","id":"role_1","slug":"admin","name":"Admin","description":"","type":"EnvironmentRole",
            "resource_type_slug":"organization","permissions":["a","b",7],"created_at":"2026-01-01T00:00:00.000Z",
            "updated_at":"2026-01-02T00:00:00.000Z","color":"red"}"#;
        let found = role(&raw(text)).unwrap();
        assert_eq!((&*found.slug, found.id.as_deref(), found.permissions.len()), ("admin", Some("role_1"), 2));
        assert_eq!(found.extra.keys().collect::<Vec<_>>(), ["color"]);
        assert!(!found.is_of_organization());
        let bare = role(&raw(r#"{"slug":"org-lead","permissions":null}"#)).unwrap();
        assert!(bare.is_of_organization() && bare.permissions.is_empty() && bare.name.is_none());
        for unusable in [r#"{"id":"role_1"}"#, r#"{"slug":""}"#, r#""admin""#, "null"] {
            assert!(role(&raw(unusable)).is_none() && permission(&raw(unusable)).is_none(), "{unusable}");
        }
    }

    #[test]
    fn a_permission_keeps_every_field() {
        let found = permission(&raw(r#"{"object":"permission","slug":"a:b","system":true,"name":"A","x":1}"#)).unwrap();
        assert!(found.system && found.name.as_deref() == Some("A"));
        assert_eq!(found.extra.keys().collect::<Vec<_>>(), ["x"]);
    }
}
