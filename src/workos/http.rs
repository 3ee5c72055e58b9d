//! Creates all HTTP clients. They have timeouts, and never follow a redirect to another host.
//!
//! Only requests to WorkOS use the proxy of the environment (`HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`). Requests to this service,
//! to a server on this machine and to the action endpoint never use it.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::redirect::Policy;
use time::PrimitiveDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use super::addresses::{NoPublicAddress, Resolver, is_public};
use crate::domain::timestamp::Timestamp;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(30);
const MAX_REDIRECTS: usize = 3;

/// Idle connections are closed after this time. Servers close them later (Node: 5 s), so no request uses a closing connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3);

/// The date format of HTTP (RFC 9110 section 5.6.7), always in UTC.
pub(crate) const HTTP_DATE: &[BorrowedFormatItem<'_>] =
    format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");

/// Parses a date in HTTP's format.
pub(crate) fn http_date(text: &str) -> Option<Timestamp> {
    PrimitiveDateTime::parse(text.trim(), HTTP_DATE).ok().map(|date| Timestamp::from(date.assume_utc()))
}

/// Why the body of a response could not be read completely.
pub(crate) enum BodyError {
    /// It is longer than the limit.
    TooLong,
    /// The connection failed.
    Broken(String),
}

/// Reads the body of a response, at most `limit` bytes.
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

/// Describes why a request failed. The text contains neither the URL nor the response.
pub(crate) fn why(error: &reqwest::Error) -> String {
    let reason = if error.is_timeout() && error.is_connect() {
        "the connection timed out; check the network and the firewall"
    } else if error.is_timeout() {
        "the request timed out"
    } else if error.is_connect() {
        return why_not_connected(error);
    } else if error.is_redirect() {
        "the server redirects to another host"
    } else {
        "the connection was lost during the response"
    };
    reason.to_owned()
}

/// Maximum length of the reason of a TLS failure.
const TLS_REASON_LIMIT: usize = 200;

/// Describes why there is no connection: DNS, TCP, a proxy or TLS.
fn why_not_connected(error: &reqwest::Error) -> String {
    let first: &(dyn std::error::Error + 'static) = error;
    let chain: Vec<_> = std::iter::successors(Some(first), |error| error.source()).collect();
    let io = chain.iter().rev().find_map(|error| error.downcast_ref::<std::io::Error>());
    let texts: Vec<String> = chain.iter().map(ToString::to_string).collect();
    let says = |word: &str| texts.iter().any(|text| text.contains(word));
    if says("failed to lookup address") || says("dns error") {
        return "the host name cannot be resolved; check the name and the DNS of this machine".to_owned();
    }
    if says("tunnel") || says("proxy") {
        return "the proxy did not open a connection; check HTTPS_PROXY and NO_PROXY".to_owned();
    }
    match io.map(std::io::Error::kind) {
        Some(ErrorKind::ConnectionRefused) => {
            "the connection was refused; check that the server runs, and the port".to_owned()
        }
        Some(ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable) => {
            "no network path leads to the host; check the network".to_owned()
        }
        // rustls reports a rejected certificate, and an answer without TLS, like this.
        Some(ErrorKind::InvalidData | ErrorKind::Other) => {
            let reason = io.map(ToString::to_string).unwrap_or_default();
            let reason: String = reason.chars().filter(|char| !char.is_control()).take(TLS_REASON_LIMIT).collect();
            format!("TLS failed: {reason}; check the server's certificate and this machine's root certificates")
        }
        Some(ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
            "the server closed the connection before it answered; check the port, and whether the server expects TLS"
                .to_owned()
        }
        _ => "the connection failed".to_owned(),
    }
}

/// Returns host and port of a URL, for messages.
pub(crate) fn host_and_port(url: &reqwest::Url) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}{port}", url.host_str().unwrap_or_default())
}

/// An HTTP client could not be created.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct HttpClientError(String);

impl HttpClientError {
    pub(crate) fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

/// Creates a client for this service itself. It never uses a proxy, so that a proxy setting cannot make a healthy service look
/// unhealthy. Its timeout is 30 seconds, and it follows redirects only within a host.
///
/// # Errors
/// [`HttpClientError`] if TLS cannot be set up.
pub fn http_client() -> Result<reqwest::Client, HttpClientError> {
    build(same_host_client().no_proxy())
}

/// Creates a client for WorkOS at `base`. It uses the environment's proxy, except for an emulator of WorkOS on this machine. Its
/// timeout is 30 seconds. It follows redirects only within a host, because its requests contain the API key.
///
/// # Errors
/// [`HttpClientError`] if TLS cannot be set up.
pub(crate) fn workos_client(base: &reqwest::Url) -> Result<reqwest::Client, HttpClientError> {
    if is_loopback(base) { http_client() } else { build(same_host_client()) }
}

fn is_loopback(url: &reqwest::Url) -> bool {
    let host = host(url);
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// Returns the URL's host. An IPv6 address has no brackets.
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
            (true, hops) if hops <= MAX_REDIRECTS => attempt.follow(),
            _ => attempt.error("redirect to another host, or too many redirects"),
        }
    }))
}

/// Creates a client for a configured URL, which must not reach internal services. It follows no redirects and uses no proxy.
/// Unless `private` is true, it connects only to public addresses: it checks the resolved addresses of a host name, and
/// [`is_allowed`] checks an address in the URL itself.
pub(crate) fn guarded_client(private: bool) -> Result<reqwest::Client, HttpClientError> {
    let client = client().redirect(Policy::none()).no_proxy().dns_resolver(Resolver { private });
    build(client.pool_idle_timeout(IDLE_TIMEOUT))
}

/// Returns whether a guarded client may connect to the URL's host. Host names are checked later, when they are resolved.
pub(crate) fn is_allowed(url: &reqwest::Url, private: bool) -> bool {
    private || host(url).parse().map_or(true, is_public)
}

/// Returns whether a guarded client failed because the host name has no public address.
pub(crate) fn is_blocked_address(error: &reqwest::Error) -> bool {
    let first: Option<&(dyn std::error::Error + 'static)> = Some(error);
    std::iter::successors(first, |error| error.source()).any(|error| error.is::<NoPublicAddress>())
}

fn client() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .user_agent(concat!("authkit-sync/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(TIMEOUT)
}

fn build(client: reqwest::ClientBuilder) -> Result<reqwest::Client, HttpClientError> {
    let missing = |_| {
        HttpClientError::new(
            "cannot create an HTTP client, because TLS or its root certificates are missing; install the package ca-certificates",
        )
    };
    client.build().map_err(missing)
}
