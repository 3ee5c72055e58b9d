//! Organizations.

use axum::http::Method;
use serde_json::{Value, json};

use super::SimulatedWorkos;
use super::collection::{Object, object, text};
use super::fault::Fault;
use super::routes::{Action, Read, Reads, segment};
use super::state::{State, change_metadata};
use crate::domain::timestamp::Timestamp;

pub(super) const READS: &Reads = &[
    ("/organizations", list),
    ("/organizations/{id}", |read| read.state.organization(read.id(0)).cloned().map(Value::Object)),
    ("/organizations/external_id/{external_id}", by_external_id),
];

pub(super) static ACTIONS: [Action; 3] = [
    Action {
        method: Method::POST,
        path: "/_simulate/organizations",
        body: r#"{"name":"Acme","domains":["acme.test"],"metadata":{},"external_id":null}"#,
        effect: "creates an organization; only the name is required. Events: organization.created, organization_domain.created",
        run: |workos, _, given| workos.create_organization(given),
    },
    Action {
        method: Method::PUT,
        path: "/_simulate/organizations/{id}",
        body: r#"{"name":"Acme Ltd","metadata":{"plan":"team"},"external_id":"crm-1","stripe_customer_id":"cus_1"}"#,
        effect: "changes the given fields; null deletes a metadata key. Event: organization.updated",
        run: |workos, path, given| workos.update_organization(segment(path, 0), given),
    },
    Action {
        method: Method::DELETE,
        path: "/_simulate/organizations/{id}",
        body: "",
        effect: "deletes an organization, its memberships, sessions and roles. Event: organization.deleted, and those of cascades",
        run: |workos, path, _| workos.delete_organization(segment(path, 0)).map(|()| json!({})),
    },
];

impl SimulatedWorkos {
    /// `POST /organizations`: only `name` is required. `domains` contains names, or objects with `domain` and `state`. An `id` can
    /// be given.
    ///
    /// # Errors
    /// [`Fault`], the error of WorkOS.
    pub fn create_organization(&self, given: &Object) -> Result<Value, Fault> {
        self.change(|state, now| state.create_organization(given, now))
    }

    /// `PUT /organizations/{id}`
    ///
    /// # Errors
    /// [`Fault`], the error of WorkOS.
    pub fn update_organization(&self, id: &str, given: &Object) -> Result<Value, Fault> {
        self.change(|state, now| state.update_organization(id, given, now))
    }

    /// `DELETE /organizations/{id}`
    ///
    /// # Errors
    /// [`Fault`] if the organization does not exist.
    pub fn delete_organization(&self, id: &str) -> Result<(), Fault> {
        self.change(|state, now| state.delete_organization(id, now))
    }

    /// Returns every organization, oldest first, as the API does.
    #[must_use]
    pub fn organizations(&self) -> Vec<Value> {
        self.read(|state| state.organizations.oldest_first().cloned().map(Value::Object).collect())
    }
}

impl State {
    pub(super) fn organization(&self, id: &str) -> Result<&Object, Fault> {
        self.organizations.get(id).ok_or_else(|| not_found(id))
    }

    fn create_organization(&mut self, given: &Object, now: Timestamp) -> Result<Value, Fault> {
        if given.get("name").is_none_or(Value::is_null) {
            return Err(Fault::invalid("name_required", "name"));
        }
        check_types(given)?;
        self.check_organization_external_id(given, None)?;
        // A test can choose the ID.
        let id = given.get("id").and_then(Value::as_str).map(str::to_owned);
        let id = id.unwrap_or_else(|| self.ids.next("org", now));
        if self.organizations.contains(&id) || self.removed.contains_key(&id) {
            return Err(Fault::invalid("id_not_available", "id"));
        }
        let domains = given.get("domains").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let domains: Vec<Object> = domains.iter().map(|domain| self.new_domain(&id, domain, now)).collect();
        let mut organization = object(json!({
            "object": "organization", "id": id, "allow_profiles_outside_organization": false, "domains": domains,
            "metadata": {}, "external_id": null, "created_at": now, "updated_at": now,
        }));
        set_fields(&mut organization, given);
        self.organizations.put(organization.clone());
        self.emit("organization.created", event_data(&organization), None, now);
        for domain in domains {
            self.emit("organization_domain.created", Value::Object(domain), None, now);
        }
        Ok(Value::Object(organization))
    }

    fn update_organization(&mut self, id: &str, given: &Object, now: Timestamp) -> Result<Value, Fault> {
        self.organization(id)?;
        check_types(given)?;
        self.check_organization_external_id(given, Some(id))?;
        let changed = self.organizations.change(id, now, |organization| set_fields(organization, given));
        let (before, after) = changed.ok_or_else(|| not_found(id))?;
        self.emit_updated("organization.updated", event_object(&before), &event_object(&after), now);
        Ok(Value::Object(after))
    }

    fn delete_organization(&mut self, id: &str, now: Timestamp) -> Result<(), Fault> {
        let organization = self.organization(id)?.clone();
        let domains = organization.get("domains").and_then(Value::as_array);
        let is_told = self.cascades.memberships;
        for domain in domains.into_iter().flatten().filter(|_| is_told) {
            self.emit("organization_domain.deleted", domain.clone(), None, now);
        }
        self.end_sessions_in(id, now);
        self.end_memberships("organization_id", id, now);
        self.organization_roles.remove(id);
        self.organizations.remove(id);
        self.record_removed(&organization);
        self.emit("organization.deleted", event_data(&organization), None, now);
        Ok(())
    }

    fn check_organization_external_id(&self, given: &Object, but: Option<&str>) -> Result<(), Fault> {
        let Some(value) = given.get("external_id").and_then(Value::as_str) else { return Ok(()) };
        let holder = self.organizations.with("external_id", value).next();
        if holder.is_some_and(|holder| Some(text(holder, "id")) != but) {
            let message = "This external id belongs to another organization.";
            return Err(Fault::bad("external_id_already_used", message));
        }
        Ok(())
    }
}

/// Returns the 404 of an organization.
pub(super) fn not_found(id: &str) -> Fault {
    Fault::not_found("Organization", id)
}

/// Returns the data of an event: without a field that only the API has.
fn event_object(organization: &Object) -> Object {
    let mut data = organization.clone();
    data.remove("allow_profiles_outside_organization");
    data
}

fn event_data(organization: &Object) -> Value {
    Value::Object(event_object(organization))
}

/// Sets the given fields. WorkOS omits `stripe_customer_id` without a value.
fn set_fields(organization: &mut Object, given: &Object) {
    for name in ["name", "external_id", "stripe_customer_id", "allow_profiles_outside_organization"] {
        match given.get(name) {
            Some(Value::Null) if name == "external_id" => organization.insert(name.into(), Value::Null),
            Some(Value::Null) if name == "stripe_customer_id" => organization.remove(name),
            None | Some(Value::Null) => None,
            Some(value) => organization.insert(name.into(), value.clone()),
        };
    }
    change_metadata(organization, given);
}

/// Rejects values of a wrong type.
fn check_types(given: &Object) -> Result<(), Fault> {
    for (name, value) in given.iter().filter(|(_, value)| !value.is_null()) {
        let fits = match name.as_str() {
            "name" | "id" | "external_id" | "stripe_customer_id" => value.is_string(),
            "allow_profiles_outside_organization" => value.is_boolean(),
            "metadata" => value.as_object().is_some_and(|map| map.values().all(|it| it.is_string() || it.is_null())),
            "domains" => value.as_array().is_some_and(|all| all.iter().all(|it| it.is_string() || it.is_object())),
            _ => true,
        };
        if !fits {
            return Err(Fault::invalid("invalid", name));
        }
    }
    Ok(())
}

/// `GET /organizations`, optionally those with one of the `domains`, or whose name contains `search`.
fn list(read: &Read<'_>) -> Result<Value, Fault> {
    let domains = read.values("domains");
    let search = read.parameter("search").map(str::to_lowercase);
    let has_domain = |organization: &Object| {
        let mut held = organization.get("domains").and_then(Value::as_array).into_iter().flatten();
        held.any(|domain| domain.get("domain").and_then(Value::as_str).is_some_and(|name| domains.contains(&name)))
    };
    let is_listed = |organization: &Object| {
        let found = search.as_ref().is_none_or(|search| text(organization, "name").to_lowercase().contains(search));
        found && (domains.is_empty() || has_domain(organization))
    };
    let all = &read.state.organizations;
    read.page(all, all.keys(), is_listed, |organization| Value::Object(organization.clone()))
}

fn by_external_id(read: &Read<'_>) -> Result<Value, Fault> {
    let organization = read.state.organizations.with("external_id", read.id(0)).next();
    organization.cloned().map(Value::Object).ok_or_else(|| not_found(read.id(0)))
}
