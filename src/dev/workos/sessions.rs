//! Sessions: sign-ins, with or without an organization, and their end.

use axum::http::Method;
use serde_json::{Value, json};

use super::SimulatedWorkos;
use super::collection::{Object, object, text};
use super::fault::Fault;
use super::routes::{Action, Read, Reads, segment};
use super::state::{State, user_not_found};
use crate::domain::timestamp::Timestamp;

/// Lifetime of a session in seconds.
const SESSION_LIFE: i64 = 7 * 86_400;

pub(super) const READS: &Reads = &[("/user_management/users/{id}/sessions", list)];

pub(super) static ACTIONS: [Action; 2] = [
    Action {
        method: Method::POST,
        path: "/_simulate/users/{id}/sessions",
        body: r#"{"organization_id":"org_…","auth_method":"sso","impersonator":{"email":"…","reason":null}}"#,
        effect: "signs the user in; every field is optional. Event: session.created",
        run: |workos, path, given| workos.create_session(segment(path, 0), given),
    },
    Action {
        method: Method::POST,
        path: "/_simulate/sessions/{id}/revoke",
        body: "",
        effect: "revokes a session. Event: session.revoked",
        run: |workos, path, _| workos.revoke_session(segment(path, 0)),
    },
];

impl SimulatedWorkos {
    /// Signs a user in, and returns the session. Every field of `given` is optional: `organization_id`, `auth_method`,
    /// `impersonator`, `ip_address`, `user_agent`.
    ///
    /// # Errors
    /// [`Fault`] if the user does not exist, or is not an active member of the organization.
    pub fn create_session(&self, user_id: &str, given: &Object) -> Result<Value, Fault> {
        self.change(|state, now| state.create_session(user_id, given, now))
    }

    /// `POST /user_management/sessions/revoke`: returns the session. A session that has ended stays as it is, without an event.
    ///
    /// # Errors
    /// [`Fault`] if the session does not exist.
    pub fn revoke_session(&self, id: &str) -> Result<Value, Fault> {
        self.change(|state, now| state.revoke_session(id, now))
    }

    /// Returns every session, oldest first, also those that have ended.
    #[must_use]
    pub fn sessions(&self) -> Vec<Value> {
        self.read(|state| state.sessions.oldest_first().cloned().map(Value::Object).collect())
    }
}

impl State {
    /// Signs a user in with a password, and returns the session ID.
    pub(super) fn sign_in(&mut self, id: &str, organization: Option<&str>, now: Timestamp) -> Result<String, Fault> {
        let session = self.create_session(id, &object(json!({"organization_id": organization})), now)?;
        Ok(session.get("id").and_then(Value::as_str).unwrap_or_default().to_owned())
    }

    /// Signs a user in. This updates `last_sign_in_at` but not `updated_at`, and only `session.created` reports it. An
    /// impersonation is not a sign-in of the user.
    fn create_session(&mut self, user_id: &str, given: &Object, now: Timestamp) -> Result<Value, Fault> {
        if !self.users.contains(user_id) {
            return Err(user_not_found(user_id));
        }
        let value = |name: &str| given.get(name).filter(|value| !value.is_null()).cloned();
        let organization = value("organization_id");
        if let Some(organization) = &organization {
            self.active_membership(user_id, organization.as_str().unwrap_or_default())?;
        }
        let impersonator = value("impersonator");
        let method = if impersonator.is_some() { "impersonation" } else { "password" };
        let life = if impersonator.is_some() { 3_600 } else { SESSION_LIFE };
        let mut session = object(json!({
            "object": "session", "id": self.ids.next("session", now), "user_id": user_id, "status": "active",
            "auth_method": value("auth_method").unwrap_or(json!(method)),
            "ip_address": value("ip_address").unwrap_or(json!("203.0.113.9")),
            "user_agent": value("user_agent").unwrap_or(json!("Mozilla/5.0 (simulated)")),
            "expires_at": now.plus_seconds(life), "ended_at": null, "created_at": now, "updated_at": now,
        }));
        // These two fields are absent if they have no value.
        session.extend(organization.map(|id| ("organization_id".to_owned(), id)));
        if impersonator.is_none() {
            self.users.set(user_id, "last_sign_in_at", json!(now));
        }
        session.extend(impersonator.map(|person| ("impersonator".to_owned(), person)));
        self.sessions.put(session.clone());
        self.emit("session.created", Value::Object(session.clone()), None, now);
        Ok(Value::Object(session))
    }

    fn revoke_session(&mut self, id: &str, now: Timestamp) -> Result<Value, Fault> {
        let session = self.sessions.get(id).ok_or_else(|| Fault::not_found("Session", id))?;
        if text(session, "status") == "active" {
            self.end_session(id, true, now);
        }
        Ok(json!(self.sessions.get(id)))
    }

    /// Revokes the active sessions of a user, or only those in one organization.
    pub(super) fn end_sessions(&mut self, user_id: &str, organization_id: Option<&str>, now: Timestamp) {
        let sessions = self.sessions.with("user_id", user_id).filter(|session| text(session, "status") == "active");
        let chosen = sessions.filter(|session| organization_id.is_none_or(|id| text(session, "organization_id") == id));
        let ids: Vec<String> = chosen.map(|session| text(session, "id").to_owned()).collect();
        for id in ids {
            self.end_session(&id, self.cascades.sessions, now);
        }
    }

    /// Revokes every active session in an organization.
    pub(super) fn end_sessions_in(&mut self, organization_id: &str, now: Timestamp) {
        let sessions = self.sessions.with("organization_id", organization_id);
        let active = sessions.filter(|session| text(session, "status") == "active");
        let ids: Vec<String> = active.map(|session| text(session, "id").to_owned()).collect();
        for id in ids {
            self.end_session(&id, self.cascades.sessions, now);
        }
    }

    /// Revokes a session, with or without an event.
    pub(super) fn end_session(&mut self, id: &str, is_told: bool, now: Timestamp) {
        let changed = self.sessions.change(id, now, |session| {
            session.insert("status".into(), "revoked".into());
            session.insert("ended_at".into(), json!(now));
        });
        if let Some((_, session)) = changed.filter(|_| is_told) {
            self.emit("session.revoked", Value::Object(session), None, now);
        }
    }
}

/// `GET /user_management/users/{id}/sessions`: only active sessions.
fn list(read: &Read<'_>) -> Result<Value, Fault> {
    let (state, id) = (read.state, read.id(0));
    if !state.users.contains(id) {
        return Err(user_not_found(id));
    }
    let now = json!(read.now);
    let is_active =
        |session: &Object| text(session, "status") == "active" && Some(text(session, "expires_at")) > now.as_str();
    read.page(&state.sessions, state.sessions.keys_with("user_id", id), is_active, |session| {
        Value::Object(session.clone())
    })
}
