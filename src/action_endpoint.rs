//! Requests a verdict from the application's HTTP endpoint: signed, within a deadline, and only at permitted addresses.
//!
//! The body of the request is the action as WorkOS sent it, byte for byte. The header `AuthKit-Sync-Signature` has WorkOS's format:
//! `t=<unix milliseconds>, v1=<hex>`, where `v1` is the HMAC-SHA256 of `t`, a dot and the body with the secret. The answer is 200
//! with `{"verdict": "allow"}` or `{"verdict": "deny", "message": "…"}`, or 204 for no opinion.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::{Instant, timeout_at};

use crate::domain::action::{Action, Verdict};
use crate::domain::timestamp::Timestamp;
use crate::workos::http::{BodyError, guarded_client, is_allowed, is_blocked_address, read_body};
use crate::workos::json;
use crate::workos::signature::Secret;

/// The header with our signature.
pub const HEADER: &str = "authkit-sync-signature";

/// Default timeout of the endpoint.
pub const TIMEOUT: Duration = Duration::from_secs(1);

/// Minimum length of the secret, in characters.
pub const SECRET_LENGTH: usize = 32;

/// The largest accepted answer, in bytes.
const ANSWER_LIMIT: usize = 64 * 1024;

/// The message for the person if the endpoint failed and the failure verdict is to deny.
const FAILED: &str = "This cannot be checked right now. Please try again in a moment.";

/// The verdict when the endpoint fails or times out. There is no default, so that the operator must choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// Allow the attempt.
    Allow,
    /// Deny the attempt.
    Deny,
}

/// Settings of the application's HTTP endpoint for verdicts.
#[derive(Clone, Debug)]
pub struct ActionEndpoint {
    /// The URL: `https://…`. `http://…` is accepted only with `private_addresses`.
    pub url: String,
    /// The secret that signs our requests: at least 32 characters, and not a WorkOS secret.
    pub secret: Secret,
    /// The verdict when the endpoint fails.
    pub on_failure: OnFailure,
    /// Timeout from the connection to the last byte. The deadline of all deciders together applies too.
    pub timeout: Duration,
    /// Whether loopback, private and other special addresses are permitted.
    pub private_addresses: bool,
}

/// Why an endpoint's settings are invalid. The text does not contain the URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Not an absolute HTTP URL.
    #[error("the action endpoint's URL must be an absolute http:// or https:// URL")]
    Malformed,
    /// The URL contains credentials, which would appear in logs.
    #[error("the action endpoint's URL must not contain a user name or password; check the signature instead")]
    Credentials,
    /// Personal data would be sent unencrypted.
    #[error("the action endpoint's URL must be https://, unless private addresses are allowed")]
    Plain,
    /// The address is not permitted.
    #[error("the action endpoint's URL names an address that is not public, and private addresses are not allowed")]
    Private,
    /// The secret is too short.
    #[error("the action endpoint's secret must have at least {SECRET_LENGTH} characters")]
    Secret,
    /// No HTTP client can be created.
    #[error("no HTTP client can be created, because TLS or its root certificates are missing")]
    Client,
}

/// Why the endpoint returned no verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndpointFailure {
    /// Its host name resolves only to addresses that are not permitted.
    AddressRefused,
    /// The connection or the name resolution failed.
    Unreachable,
    /// It timed out.
    TimedOut,
    /// It answered with a redirect.
    Redirects,
    /// It answered with a status other than 200 or 204.
    Status,
    /// Its answer is too large.
    TooLong,
    /// Its answer is incomplete.
    Broken,
    /// Its answer is not a verdict.
    Malformed,
}

impl EndpointFailure {
    /// Every failure.
    pub(crate) const ALL: [Self; 8] = [
        Self::AddressRefused,
        Self::Unreachable,
        Self::TimedOut,
        Self::Redirects,
        Self::Status,
        Self::TooLong,
        Self::Broken,
        Self::Malformed,
    ];

    /// Returns the word for metrics and logs.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::AddressRefused => "address_refused",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed_out",
            Self::Redirects => "redirects",
            Self::Status => "status",
            Self::TooLong => "too_long",
            Self::Broken => "broken",
            Self::Malformed => "malformed",
        }
    }
}

impl ActionEndpoint {
    /// Checks the settings without a request.
    ///
    /// # Errors
    /// [`EndpointError`]
    pub fn check(&self) -> Result<(), EndpointError> {
        self.target().map(|_| ())
    }

    fn target(&self) -> Result<reqwest::Url, EndpointError> {
        let url: reqwest::Url = self.url.parse().map_err(|_| EndpointError::Malformed)?;
        if url.host_str().is_none() || !matches!(url.scheme(), "https" | "http") {
            Err(EndpointError::Malformed)
        } else if !url.username().is_empty() || url.password().is_some() {
            Err(EndpointError::Credentials)
        } else if url.scheme() == "http" && !self.private_addresses {
            Err(EndpointError::Plain)
        } else if !is_allowed(&url, self.private_addresses) {
            Err(EndpointError::Private)
        } else {
            check_secret(&self.secret)?;
            Ok(url)
        }
    }
}

fn check_secret(secret: &Secret) -> Result<(), EndpointError> {
    if secret.length() < SECRET_LENGTH { Err(EndpointError::Secret) } else { Ok(()) }
}

/// An endpoint with checked settings.
#[derive(Debug)]
pub(crate) struct Endpoint {
    client: reqwest::Client,
    url: reqwest::Url,
    settings: ActionEndpoint,
    /// It replaces that of the settings.
    secret: ArcSwap<Secret>,
}

impl Endpoint {
    pub(crate) fn new(settings: ActionEndpoint) -> Result<Self, EndpointError> {
        let url = settings.target()?;
        let client = guarded_client(settings.private_addresses).map_err(|_| EndpointError::Client)?;
        let secret = ArcSwap::from_pointee(settings.secret.clone());
        Ok(Self { client, url, settings, secret })
    }

    /// Returns the secret that signs our requests.
    pub(crate) fn secret(&self) -> Arc<Secret> {
        self.secret.load_full()
    }

    /// Replaces the secret that signs our requests.
    pub(crate) fn set_secret(&self, secret: Secret) -> Result<(), EndpointError> {
        check_secret(&secret)?;
        self.secret.store(Arc::new(secret));
        Ok(())
    }

    /// Returns the verdict for a failure.
    pub(crate) fn on_failure(&self) -> Verdict {
        match self.settings.on_failure {
            OnFailure::Allow => Verdict::Allow,
            OnFailure::Deny => Verdict::deny(FAILED),
        }
    }

    /// Requests a verdict. `None` means no opinion.
    pub(crate) async fn ask(
        &self,
        action: &Action,
        now: Timestamp,
        deadline: Instant,
    ) -> Result<Option<Verdict>, EndpointFailure> {
        let deadline = deadline.min(Instant::now() + self.settings.timeout);
        timeout_at(deadline, self.exchange(action, now)).await.unwrap_or(Err(EndpointFailure::TimedOut))
    }

    async fn exchange(&self, action: &Action, now: Timestamp) -> Result<Option<Verdict>, EndpointFailure> {
        let request = self
            .client
            .post(self.url.clone())
            .header(HEADER, self.secret.load().sign(now, &action.payload))
            .header("content-type", "application/json")
            .body(action.payload.clone());
        let answer = request.send().await.map_err(|error| match error {
            _ if is_blocked_address(&error) => EndpointFailure::AddressRefused,
            _ if error.is_timeout() => EndpointFailure::TimedOut,
            _ if error.is_connect() => EndpointFailure::Unreachable,
            _ => EndpointFailure::Broken,
        })?;
        match answer.status().as_u16() {
            200 => {}
            204 => return Ok(None),
            300..=399 => return Err(EndpointFailure::Redirects),
            _ => return Err(EndpointFailure::Status),
        }
        let body = read_body(answer, ANSWER_LIMIT).await.map_err(|error| match error {
            BodyError::TooLong => EndpointFailure::TooLong,
            BodyError::Broken(_) => EndpointFailure::Broken,
        })?;
        verdict(&body).map(Some).ok_or(EndpointFailure::Malformed)
    }
}

/// Reads the verdict in an answer. Invalid characters in the message (half of a surrogate pair) are replaced, so that they do not
/// invalidate a denial.
fn verdict(body: &[u8]) -> Option<Verdict> {
    let sanitized = json::sanitize(std::str::from_utf8(body).ok()?);
    let answer = json::object(&sanitized.text)?;
    let word = json::string(answer.get("verdict").map(|value| &**value))?;
    match word.to_ascii_lowercase().as_str() {
        "allow" => Some(Verdict::Allow),
        "deny" => {
            let message = json::text(answer.get("message").map(|value| &**value));
            Some(Verdict::deny(message.unwrap_or_default()))
        }
        _ => None,
    }
}
