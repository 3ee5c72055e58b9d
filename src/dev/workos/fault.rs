//! WorkOS's error responses, and errors of the simulation itself.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// The simulated WorkOS could not be started, or an operation of it failed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SimulationError(String);

impl SimulationError {
    pub(super) fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

/// An error response of WorkOS.
#[derive(Debug)]
pub struct Fault {
    status: StatusCode,
    body: Value,
}

impl Fault {
    pub(super) fn unauthorized() -> Self {
        Self { status: StatusCode::UNAUTHORIZED, body: json!({"message": "Unauthorized"}) }
    }

    pub(super) fn rate_limited() -> Self {
        let body = json!({"message": "Rate limit exceeded.", "code": "rate_limit_exceeded"});
        Self { status: StatusCode::TOO_MANY_REQUESTS, body }
    }

    /// Returns the 404 of an object. `thing` is the kind with a capital letter.
    pub(super) fn not_found(thing: &str, id: &str) -> Self {
        let message = format!("{thing} not found: '{id}'.");
        Self {
            status: StatusCode::NOT_FOUND,
            body: json!({"message": message, "code": "entity_not_found", "entity_id": id}),
        }
    }

    /// Converts a 404 to the format of WorkOS's emulator.
    pub(super) fn like_emulator(self) -> Self {
        if self.status != StatusCode::NOT_FOUND {
            return self;
        }
        let message = self.body.get("message").and_then(Value::as_str).and_then(|message| message.split(':').next());
        Self { body: json!({"message": message, "code": "not_found"}), ..self }
    }

    /// Converts a 404 to the format of `/organizations/{id}` that was recorded in 2021.
    pub(super) fn bare(self) -> Self {
        if self.status == StatusCode::NOT_FOUND { Self { body: json!({"message": "Not Found"}), ..self } } else { self }
    }

    pub(super) fn bad(code: &str, message: &str) -> Self {
        Self { status: StatusCode::BAD_REQUEST, body: json!({"message": message, "code": code}) }
    }

    pub(super) fn conflict(code: &str, message: &str) -> Self {
        Self { status: StatusCode::CONFLICT, body: json!({"message": message, "code": code}) }
    }

    /// Returns a 422 with the name of the field.
    pub(super) fn invalid(code: &str, field: &str) -> Self {
        let errors = json!([{"code": code, "field": field}]);
        let body = json!({"message": "Validation failed.", "code": "invalid_request_parameters", "errors": errors});
        Self { status: StatusCode::UNPROCESSABLE_ENTITY, body }
    }

    /// Returns the answer to a sign-in of a user with several organizations.
    pub(super) fn organization_selection(body: Value) -> Self {
        Self { status: StatusCode::FORBIDDEN, body }
    }

    /// Returns the error of a sign-in, in OAuth's format.
    pub(super) fn grant(description: &str) -> Self {
        let body = json!({"error": "invalid_grant", "error_description": description});
        Self { status: StatusCode::BAD_REQUEST, body }
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        (self.status, Json(self.body)).into_response()
    }
}
