//! Domains of organizations. A change of a domain does not change the `updated_at` of its organization, and causes no
//! `organization.updated`.

use axum::http::Method;
use serde_json::{Value, json};

use super::SimulatedWorkos;
use super::collection::{Object, object, text};
use super::fault::Fault;
use super::routes::{Action, segment};
use super::state::State;
use crate::domain::timestamp::Timestamp;

pub(super) static ACTIONS: [Action; 4] = [
    Action {
        method: Method::POST,
        path: "/_simulate/organizations/{id}/domains",
        body: r#"{"domain":"acme.test"}"#,
        effect: "adds a pending domain. Event: organization_domain.created",
        run: |workos, path, given| workos.add_domain(segment(path, 0), text(given, "domain")),
    },
    Action {
        method: Method::POST,
        path: "/_simulate/organizations/{id}/domains/{domain}/verify",
        body: "",
        effect: "verifies a domain. Event: organization_domain.verified",
        run: |workos, path, _| workos.verify_domain(segment(path, 0), segment(path, 1)),
    },
    Action {
        method: Method::POST,
        path: "/_simulate/organizations/{id}/domains/{domain}/fail",
        body: "",
        effect: "fails the verification of a domain. Event: organization_domain.verification_failed",
        run: |workos, path, _| workos.fail_domain(segment(path, 0), segment(path, 1)),
    },
    Action {
        method: Method::DELETE,
        path: "/_simulate/organizations/{id}/domains/{domain}",
        body: "",
        effect: "removes a domain. Event: organization_domain.deleted",
        run: |workos, path, _| workos.remove_domain(segment(path, 0), segment(path, 1)).map(|()| json!({})),
    },
];

impl SimulatedWorkos {
    /// Adds a pending domain to an organization, and returns the domain.
    ///
    /// # Errors
    /// [`Fault`] if the organization does not exist or has the domain.
    pub fn add_domain(&self, organization_id: &str, domain: &str) -> Result<Value, Fault> {
        self.change(|state, now| state.add_domain(organization_id, domain, now))
    }

    /// Verifies a domain, given by its name or ID, and returns it.
    ///
    /// # Errors
    /// [`Fault`] if the organization or the domain does not exist.
    pub fn verify_domain(&self, organization_id: &str, domain: &str) -> Result<Value, Fault> {
        self.change(|state, now| {
            let domain = state.set_domain_state(organization_id, domain, "verified", now)?;
            state.emit("organization_domain.verified", domain.clone(), None, now);
            Ok(domain)
        })
    }

    /// Fails the verification of a domain, given by its name or ID, and returns the domain.
    ///
    /// # Errors
    /// [`Fault`] if the organization or the domain does not exist.
    pub fn fail_domain(&self, organization_id: &str, domain: &str) -> Result<Value, Fault> {
        self.change(|state, now| {
            let domain = state.set_domain_state(organization_id, domain, "failed", now)?;
            let data = json!({"reason": "domain_verification_period_expired", "organization_domain": domain});
            state.emit("organization_domain.verification_failed", data, None, now);
            Ok(domain)
        })
    }

    /// Removes a domain, given by its name or ID.
    ///
    /// # Errors
    /// [`Fault`] if the organization or the domain does not exist.
    pub fn remove_domain(&self, organization_id: &str, domain: &str) -> Result<(), Fault> {
        self.change(|state, now| {
            let (mut domains, position) = state.find_domain(organization_id, domain)?;
            let removed = domains.remove(position);
            state.organizations.set(organization_id, "domains", json!(domains));
            state.emit("organization_domain.deleted", removed, None, now);
            Ok(())
        })
    }
}

impl State {
    /// Returns a new domain from its name, or from an object with `domain` and `state`.
    pub(super) fn new_domain(&mut self, organization_id: &str, given: &Value, now: Timestamp) -> Object {
        let (name, state) = match given {
            Value::Object(given) => (text(given, "domain"), text(given, "state")),
            other => (other.as_str().unwrap_or_default(), ""),
        };
        let state = if state.is_empty() { "pending" } else { state };
        object(json!({
            "object": "organization_domain", "id": self.ids.next("org_domain", now), "organization_id": organization_id,
            "domain": name, "state": state, "verification_strategy": "dns",
            "verification_token": self.ids.ulid(now), "verification_prefix": "wos-domain-verification-simulated",
            "created_at": now, "updated_at": now,
        }))
    }

    fn add_domain(&mut self, organization_id: &str, name: &str, now: Timestamp) -> Result<Value, Fault> {
        let mut domains = self.domains(organization_id)?;
        if name.is_empty() || position(&domains, name).is_some() {
            return Err(Fault::invalid("invalid", "domain"));
        }
        let domain = Value::Object(self.new_domain(organization_id, &json!(name), now));
        domains.push(domain.clone());
        self.organizations.set(organization_id, "domains", json!(domains));
        self.emit("organization_domain.created", domain.clone(), None, now);
        Ok(domain)
    }

    fn set_domain_state(
        &mut self,
        organization_id: &str,
        domain: &str,
        state: &str,
        now: Timestamp,
    ) -> Result<Value, Fault> {
        let (mut domains, position) = self.find_domain(organization_id, domain)?;
        let mut domain = domains.swap_remove(position);
        domain["state"] = json!(state);
        domain["updated_at"] = json!(now);
        domains.push(domain.clone());
        let last = domains.len() - 1;
        domains.swap(position, last);
        self.organizations.set(organization_id, "domains", json!(domains));
        Ok(domain)
    }

    fn domains(&self, organization_id: &str) -> Result<Vec<Value>, Fault> {
        let domains = self.organization(organization_id)?.get("domains").and_then(Value::as_array);
        Ok(domains.cloned().unwrap_or_default())
    }

    fn find_domain(&self, organization_id: &str, domain: &str) -> Result<(Vec<Value>, usize), Fault> {
        let domains = self.domains(organization_id)?;
        let position = position(&domains, domain).ok_or_else(|| Fault::not_found("Organization domain", domain))?;
        Ok((domains, position))
    }
}

/// Returns the position of a domain with this name or ID.
fn position(domains: &[Value], name: &str) -> Option<usize> {
    let is_it = |domain: &Value| ["id", "domain"].iter().any(|field| domain.get(*field).is_some_and(|it| it == name));
    domains.iter().position(is_it)
}
