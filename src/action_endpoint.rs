//! The application's HTTP decision endpoint: asked with a signature, within a deadline, at addresses it may have.
//!
//! The request is the action as WorkOS sent it, byte for byte, with our own signature in the header
//! `AuthKit-Sync-Signature`, made as WorkOS makes its own: `t=<unix milliseconds>, v1=<hex>`, where `v1` is the HMAC-SHA256
//! of `t`, a dot and the body, keyed with the secret. The answer is 200 with `{"verdict": "allow"}` or
//! `{"verdict": "deny", "message": "…"}`, or 204: no opinion.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::domain::action::{Action, Verdict};
use crate::domain::timestamp::Timestamp;
use crate::workos::http::{BodyError, guarded_client, is_dialled, read_body, was_refused};
use crate::workos::json;
use crate::workos::signature::Secret;

/// The header that carries our signature.
pub const HEADER: &str = "authkit-sync-signature";

/// How long the endpoint may take by default.
pub const TIMEOUT: Duration = Duration::from_secs(1);

/// The shortest secret.
pub const SECRET_LENGTH: usize = 32;

/// The longest answer read.
const ANSWER_LIMIT: usize = 64 * 1024;

/// What a person is told when the endpoint failed and that was to deny.
const FAILED: &str = "This cannot be checked right now. Please try again in a moment.";

/// What stands in for the endpoint's verdict when it fails. There is no default: somebody has to choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// Whoever comes is let in.
    Allow,
    /// Nobody is.
    Deny,
}

/// Where an application decides over HTTP, and how it is asked.
#[derive(Clone, Debug)]
pub struct ActionEndpoint {
    /// Where: `https://…`; `http://…` only with `private_addresses`.
    pub url: String,
    /// Signs our requests; at least [`SECRET_LENGTH`] characters, and no secret of WorkOS's.
    pub secret: Secret,
    /// What a failure comes to.
    pub on_failure: OnFailure,
    /// From the connection to the last byte. The deadline of all deciders together bounds it, too.
    pub timeout: Duration,
    /// Whether it may be at a loopback, private or otherwise special address.
    pub private_addresses: bool,
}

/// Why an endpoint cannot be used; it does not quote the URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Not a URL we could ask.
    #[error("the action endpoint's URL must be an absolute http:// or https:// URL")]
    Malformed,
    /// A password in the URL would end up in logs.
    #[error("the action endpoint's URL must hold no user name and no password: the signature shows who asks")]
    Credentials,
    /// Names and addresses of people would travel in the clear.
    #[error("the action endpoint's URL must be https://, unless private addresses are allowed")]
    Plain,
    /// An address that may not be dialled.
    #[error("the action endpoint's URL names an address that is not public, and private addresses are not allowed")]
    Private,
    /// Too short to be one.
    #[error("the action endpoint's secret must have at least 32 characters")]
    Secret,
    /// No HTTP client.
    #[error("no HTTP client can be made: TLS or its root certificates are missing")]
    Client,
}

/// Why the endpoint gave no verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndpointFailure {
    /// Its name leads to addresses that may not be dialled, and to no other.
    AddressRefused,
    /// No connection, or no name.
    Unreachable,
    /// It took too long.
    TimedOut,
    /// It answers with another place.
    Redirects,
    /// It answers with a status that is neither 200 nor 204.
    Status,
    /// Its answer is too long.
    TooLong,
    /// Its answer broke off.
    Broken,
    /// Its answer is no verdict.
    Malformed,
}

impl EndpointFailure {
    /// The word used in metrics and logs.
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
    /// Whether it can be used, as far as that can be told without asking it.
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
        } else if !is_dialled(&url, self.private_addresses) {
            Err(EndpointError::Private)
        } else if self.secret.length() < SECRET_LENGTH {
            Err(EndpointError::Secret)
        } else {
            Ok(url)
        }
    }
}

/// An endpoint that was found usable.
#[derive(Debug)]
pub(crate) struct Endpoint {
    client: reqwest::Client,
    url: reqwest::Url,
    settings: ActionEndpoint,
}

impl Endpoint {
    pub(crate) fn new(settings: ActionEndpoint) -> Result<Self, EndpointError> {
        let url = settings.target()?;
        let client = guarded_client(settings.private_addresses).map_err(|_| EndpointError::Client)?;
        Ok(Self { client, url, settings })
    }

    /// The verdict that stands in for a failed one.
    pub(crate) fn on_failure(&self) -> Verdict {
        match self.settings.on_failure {
            OnFailure::Allow => Verdict::Allow,
            OnFailure::Deny => Verdict::deny(FAILED),
        }
    }

    /// Asks; `None` is no opinion.
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
            .header(HEADER, self.settings.secret.sign(now, &action.payload))
            .header("content-type", "application/json")
            .body(action.payload.clone());
        let answer = request.send().await.map_err(|error| match error {
            _ if was_refused(&error) => EndpointFailure::AddressRefused,
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

/// The verdict that an answer's text holds. Its message may be odd (half an emoji, cut off by who wrote it): who was denied must
/// not be let in for that.
fn verdict(body: &[u8]) -> Option<Verdict> {
    let fit = json::fit(std::str::from_utf8(body).ok()?);
    let answer = json::object(&fit.text)?;
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
