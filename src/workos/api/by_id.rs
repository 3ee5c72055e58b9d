//! Reads one object by ID. Reconcile infers deletions from a 404, so the code checks that the 404 comes from WorkOS.

use reqwest::{StatusCode, Url};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Api, ApiError, ApiResponse, check_status, invalid_json, object};
use crate::domain::event::Observation;
use crate::domain::object::Kind;
use crate::domain::timestamp::Timestamp;
use crate::workos::wire;

/// The result of reading an object by ID.
#[derive(Debug)]
pub enum Found {
    /// The object exists.
    Live(Box<Observation>),
    /// WorkOS does not know the object.
    Unknown {
        /// When WorkOS answered, by its clock.
        at: Timestamp,
        /// Whether the response contains the requested ID. A response without the ID may come from another server, or mean a
        /// missing route. So callers accept it only after they have read a live object by ID.
        has_id: bool,
    },
}

/// A 404 of WorkOS. See [`Found::Unknown`].
pub(super) struct Unknown {
    pub(super) at: Timestamp,
    pub(super) has_id: bool,
}

#[derive(Deserialize)]
struct NotFound {
    message: String,
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    entity_id: Option<String>,
}

impl Api {
    /// Reads one user by ID.
    ///
    /// # Errors
    /// As [`Api::object`].
    pub async fn user(&self, id: &str) -> Result<Found, ApiError> {
        self.object(Kind::User, id).await
    }

    /// Reads one object by ID.
    ///
    /// # Errors
    /// [`ApiError`], also for a 404 that does not come from WorkOS, because callers infer a deletion from a 404 of WorkOS.
    pub async fn object(&self, kind: Kind, id: &str) -> Result<Found, ApiError> {
        let path: &[&str] = match kind {
            Kind::User => &["user_management", "users", id],
            Kind::Organization => &["organizations", id],
            Kind::Membership => &["user_management", "organization_memberships", id],
        };
        let answer = match self.find(self.url(path), id).await? {
            Ok(answer) => answer,
            Err(Unknown { at, has_id }) => return Ok(Found::Unknown { at, has_id }),
        };
        let text = String::from_utf8_lossy(&answer.body);
        let raw: &RawValue = serde_json::from_str(&text).map_err(|_| invalid_json(&answer.host))?;
        Ok(Found::Live(Box::new(wire::listed(kind, raw, answer.observed_at))))
    }

    /// Requests the object that `name` names. The inner error is a 404 of WorkOS.
    pub(super) async fn find(&self, url: Url, name: &str) -> Result<Result<ApiResponse, Unknown>, ApiError> {
        let (status, headers, answer) = self.request(url).await?;
        if status == StatusCode::NOT_FOUND
            && let Some(has_id) = not_found(&answer.body, name)
        {
            return Ok(Err(Unknown { at: answer.answered_at, has_id }));
        }
        check_status(status, &headers, answer).map(Ok)
    }
}

/// Returns `Some` if a 404 means that WorkOS does not know `id`, with whether the body contains the ID. WorkOS answers
/// `entity_not_found` with the `entity_id`. Its emulator answers `not_found` without it.
fn not_found(body: &[u8], id: &str) -> Option<bool> {
    let NotFound { message, code, entity_id } = object(body)?;
    let is_code = code.is_none_or(|code| ["entity_not_found", "not_found"].contains(&code.as_str()));
    let is_it = entity_id.as_ref().is_none_or(|entity_id| entity_id == id);
    (!message.is_empty() && is_code && is_it).then_some(entity_id.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_404_means_unknown_only_in_the_format_of_workos_or_its_emulator() {
        for (body, expected) in [
            (r#"{"message":"User not found: 'user_1'.","code":"entity_not_found","entity_id":"user_1"}"#, Some(true)),
            (r#"{"message":"User not found","code":"not_found"}"#, Some(false)),
            (r#"{"message":"Not Found"}"#, Some(false)),
            (r#"{"message":"Not Found","code":null,"entity_id":null}"#, Some(false)),
            (r#"{"message":"User not found","code":"not_found","entity_id":"user_1"}"#, Some(true)),
            (r#"{"message":"User not found","code":"entity_not_found","entity_id":"user_2"}"#, None),
            (r#"{"message":"No such route","code":"route_not_found"}"#, None),
            (r#"{"message":"User not found","code":404}"#, None),
            (r#"{"code":"entity_not_found","entity_id":"user_1"}"#, None),
            (r#"{"message":["not","found"],"code":"not_found"}"#, None),
            (r#"["message"]"#, None),
            ("<html>404</html>", None),
            ("", None),
        ] {
            assert_eq!(not_found(body.as_bytes(), "user_1"), expected, "{body}");
        }
    }
}
