//! Rejections of requests: `{"code","message"}`, with a status that says who must act.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::request_log::LogFields;
use crate::lookup::LookupError;
use crate::store::StoreError;
use crate::tokens::TokenError;

/// The HTTP answer to a rejected request. Its texts contain no data of a user, a token or a payload.
///
/// To answer with another body, take `Result<AuthUser, Rejection>` as the argument of a handler, and use [`Rejection::status`] and
/// [`Rejection::code`].
#[derive(Debug)]
pub struct Rejection {
    status: StatusCode,
    /// The code for programs.
    code: &'static str,
    /// The message for people.
    message: String,
    /// The reason for logs and metrics. It is more specific than the code.
    reason: &'static str,
    challenge: Option<String>,
    retry_after: Option<u64>,
}

impl Rejection {
    /// Returns the status. It says who must act: 4xx the caller, 503 the service.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Returns the code for programs: `token_expired`, `user_deleted`, `database_unavailable` and the others in the guide
    /// [operating](crate::docs::operating).
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// Returns the message for people.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), reason: code, challenge: None, retry_after: None }
    }

    /// Creates a 503: the service failed, and the caller can retry after `retry_after` seconds.
    pub(super) fn unavailable(code: &'static str, message: impl Into<String>, retry_after: u64) -> Self {
        Self { retry_after: Some(retry_after), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message) }
    }

    pub(super) fn because(mut self, reason: &'static str) -> Self {
        self.reason = reason;
        self
    }

    pub(super) fn token_missing(message: &'static str) -> Self {
        let challenge = Some("Bearer realm=\"authkit-sync\"".to_owned());
        Self { challenge, ..Self::new(StatusCode::UNAUTHORIZED, "token_missing", message) }
    }
}

/// Logs the cause of a 503, unless the store logs it once for all callers. The answer contains only a code.
pub(super) fn log_unreported(error: &StoreError) {
    match error {
        error if error.failure().is_some() => {
            tracing::debug!(error = %error, "a database request failed; the caller got 503")
        }
        // The service itself waits until these states end, or stops because of them.
        StoreError::Unfit(_) | StoreError::Unbound => {
            tracing::warn!(error = %error, "the database is not usable yet; the caller got 503");
        }
        _ => tracing::error!(error = %error, "a database request failed; the caller got 503"),
    }
}

impl From<StoreError> for Rejection {
    fn from(error: StoreError) -> Self {
        if matches!(error, StoreError::Busy) {
            return Self::unavailable("busy", "too many requests wait for the database; retry", 2);
        }
        log_unreported(&error);
        Self::unavailable("database_unavailable", "the database is unreachable or not usable; retry", 2)
    }
}

impl From<TokenError> for Rejection {
    fn from(error: TokenError) -> Self {
        let message = error.to_string();
        if let TokenError::KeysUnavailable { retry_after, .. } = &error {
            return Self::unavailable("keys_unavailable", message, retry_after.as_secs().max(1))
                .because(error.reason());
        }
        let code = if matches!(error, TokenError::Expired { .. }) { "token_expired" } else { "token_invalid" };
        let challenge = Some(format!("Bearer error=\"invalid_token\", error_description=\"{message}\""));
        Self { challenge, ..Self::new(StatusCode::UNAUTHORIZED, code, message) }.because(error.reason())
    }
}

impl From<LookupError> for Rejection {
    fn from(error: LookupError) -> Self {
        let message = error.to_string();
        match error {
            LookupError::Token(error) => error.into(),
            LookupError::Store(error) => error.into(),
            LookupError::NotSynced => Self::unavailable("user_not_synced", message, 5),
            LookupError::NotFound => Self::new(StatusCode::NOT_FOUND, "user_not_found", message),
            LookupError::Deleted => Self::new(StatusCode::NOT_FOUND, "user_deleted", message),
            LookupError::SessionRevoked => {
                let challenge = Some(format!("Bearer error=\"invalid_token\", error_description=\"{message}\""));
                Self { challenge, ..Self::new(StatusCode::UNAUTHORIZED, "session_revoked", message) }
            }
            LookupError::MembershipInactive => Self::new(StatusCode::FORBIDDEN, "membership_inactive", message),
            LookupError::OrganizationDeleted => Self::new(StatusCode::FORBIDDEN, "organization_deleted", message),
            LookupError::MembershipsNotSynced => Self::unavailable("memberships_not_synced", message, 5),
        }
    }
}

impl IntoResponse for Rejection {
    fn into_response(self) -> Response {
        let body = Json(json!({ "code": self.code, "message": self.message }));
        let mut response = (self.status, [(header::CACHE_CONTROL, "no-store")], body).into_response();
        let headers = response.headers_mut();
        if let Some(value) = self.challenge.and_then(|challenge| HeaderValue::from_str(&challenge).ok()) {
            headers.insert(header::WWW_AUTHENTICATE, value);
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response.extensions_mut().insert(LogFields::rejected(self.reason));
        response
    }
}

pub(super) async fn no_route() -> Rejection {
    Rejection::new(StatusCode::NOT_FOUND, "route_not_found", "there is no route at this path")
}

pub(super) async fn no_method() -> Rejection {
    Rejection::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path does not support the method")
}
