//! The one way to make an HTTP client: bounded in time, and never sent to another host.

use std::time::Duration;

use reqwest::redirect::Policy;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(30);
const REDIRECTS: usize = 3;

/// Why there is no HTTP client.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct HttpClientError(String);

impl HttpClientError {
    pub(crate) fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

/// A client that gives up after 30 s and follows redirects within a host only: what we send may carry a key.
///
/// # Errors
/// [`HttpClientError`] when TLS cannot be set up.
pub fn http_client() -> Result<reqwest::Client, HttpClientError> {
    let same_host = Policy::custom(|attempt| {
        let first = attempt.previous().first();
        let same = first.is_some_and(|first| {
            first.host_str() == attempt.url().host_str()
                && first.scheme() == attempt.url().scheme()
                && first.port_or_known_default() == attempt.url().port_or_known_default()
        });
        match (same, attempt.previous().len()) {
            (true, hops) if hops <= REDIRECTS => attempt.follow(),
            _ => attempt.error("a redirect to another host, or too many"),
        }
    });
    reqwest::Client::builder()
        .user_agent(concat!("authkit-sync/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(TIMEOUT)
        .redirect(same_host)
        .build()
        .map_err(|_| HttpClientError::new("no HTTP client can be made: TLS or its root certificates are missing"))
}
