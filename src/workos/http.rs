//! The one place where HTTP clients are made: bounded in time, and never sent to another host.
//!
//! Only requests to WorkOS use the proxy that the environment names (`HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`). Requests to
//! this service itself, to a server on this machine and to the action endpoint never do.

use std::net::IpAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::redirect::Policy;
use time::PrimitiveDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use super::addresses::{Refused, Resolver, is_public};
use crate::domain::timestamp::Timestamp;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(30);
const REDIRECTS: usize = 3;

/// Shorter than servers keep idle connections (Node: 5 s), so that no request is sent into one that is being closed.
const IDLE: Duration = Duration::from_secs(3);

/// HTTP's form of a date (RFC 9110 section 5.6.7), which is always in UTC.
pub(crate) const HTTP_DATE: &[BorrowedFormatItem<'_>] =
    format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");

/// Reads a date in HTTP's form.
pub(crate) fn http_date(text: &str) -> Option<Timestamp> {
    PrimitiveDateTime::parse(text.trim(), HTTP_DATE).ok().map(|date| Timestamp::from(date.assume_utc()))
}

/// Why a body could not be read whole.
pub(crate) enum BodyError {
    /// It is longer than the bound.
    TooLong,
    /// The connection failed on the way.
    Broken(&'static str),
}

/// A response's body, of `limit` bytes at most.
pub(crate) async fn read_body(mut response: reqwest::Response, limit: usize) -> Result<Bytes, BodyError> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| BodyError::Broken(why(&error)))? {
        if body.len() + chunk.len() > limit {
            return Err(BodyError::TooLong);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// What went wrong with a request, in words that quote neither the URL nor the answer.
pub(crate) fn why(error: &reqwest::Error) -> &'static str {
    if error.is_timeout() {
        "it timed out"
    } else if error.is_connect() {
        "the connection failed"
    } else if error.is_redirect() {
        "it redirects elsewhere"
    } else {
        "the answer broke off"
    }
}

/// Why there is no HTTP client.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct HttpClientError(String);

impl HttpClientError {
    pub(crate) fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

/// A client for this service itself. It never uses a proxy, so that a proxy setting cannot make a healthy service look
/// unhealthy. It gives up after 30 s and follows redirects within a host only.
///
/// # Errors
/// [`HttpClientError`] when TLS cannot be set up.
pub fn http_client() -> Result<reqwest::Client, HttpClientError> {
    build(same_host_client().no_proxy())
}

/// A client for WorkOS at `base`. It uses the environment's proxy, except for a WorkOS on this machine (an emulator). It
/// gives up after 30 s and follows redirects within a host only: what it sends may carry a key.
///
/// # Errors
/// [`HttpClientError`] when TLS cannot be set up.
pub(crate) fn workos_client(base: &reqwest::Url) -> Result<reqwest::Client, HttpClientError> {
    if is_loopback(base) { http_client() } else { build(same_host_client()) }
}

fn is_loopback(url: &reqwest::Url) -> bool {
    let host = host(url);
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// The URL's host; an IPv6 address without its brackets.
fn host(url: &reqwest::Url) -> &str {
    let host = url.host_str().unwrap_or_default();
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

fn same_host_client() -> reqwest::ClientBuilder {
    client().redirect(Policy::custom(|attempt| {
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
    }))
}

/// A client for an address that was configured and might point inside: it follows no redirect, ignores the environment's
/// proxies, and, unless `private`, dials public addresses alone. What is checked is what is dialled: names are resolved here,
/// and an address in the URL itself is for [`is_dialled`] to refuse.
pub(crate) fn guarded_client(private: bool) -> Result<reqwest::Client, HttpClientError> {
    let client = client().redirect(Policy::none()).no_proxy().dns_resolver(Resolver { private });
    build(client.pool_idle_timeout(IDLE))
}

/// Whether a guarded client would dial the URL's host: names are judged when they are resolved.
pub(crate) fn is_dialled(url: &reqwest::Url, private: bool) -> bool {
    private || host(url).parse().map_or(true, is_public)
}

/// Whether a guarded client found nothing but addresses it may not dial.
pub(crate) fn was_refused(error: &reqwest::Error) -> bool {
    let first: Option<&(dyn std::error::Error + 'static)> = Some(error);
    std::iter::successors(first, |error| error.source()).any(|error| error.is::<Refused>())
}

fn client() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .user_agent(concat!("authkit-sync/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(TIMEOUT)
}

fn build(client: reqwest::ClientBuilder) -> Result<reqwest::Client, HttpClientError> {
    let missing = |_| HttpClientError::new("no HTTP client can be made: TLS or its root certificates are missing");
    client.build().map_err(missing)
}
