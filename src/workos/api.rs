//! A client of WorkOS's REST API: lists events and objects, and reads an object by ID.
//!
//! It does not retry, because the caller decides about pauses. Every response has the time at which it was correct.

mod by_id;
mod lists;
mod measured;
mod roles;

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use reqwest::header::{DATE, HeaderMap, RETRY_AFTER};
use reqwest::{Method, RequestBuilder, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::time::Instant;

pub use by_id::Found;
pub use roles::{FoundRole, RoleList};

use super::clocks::{Answered, Clocks};
use super::contact::{Contact, ContactStatus};
use super::http::{BodyError, HttpClientError, host_and_port, http_date, read_body, why, workos_client};
use super::wire;
use crate::domain::clock::Clock;
use crate::domain::event::Event;
use crate::domain::timestamp::Timestamp;
use crate::metrics::Metrics;

/// Items on a page, the maximum of WorkOS (OpenAPI: `limit`, 1 to 100).
pub const PAGE: usize = 100;

/// Maximum size of a response in bytes. A page of a hundred large users is much smaller.
const RESPONSE_LIMIT: usize = 32 * 1024 * 1024;

/// Upper limit of the pause that WorkOS requests with `Retry-After`.
const LONGEST_PAUSE: Duration = Duration::from_secs(120);

/// The API key of an environment. `Debug` does not show it.
#[derive(Clone)]
pub struct ApiKey(String);

impl ApiKey {
    /// Wraps the key's text.
    #[must_use]
    pub fn new(key: impl Into<String>) -> Self {
        Self(key.into())
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey")
    }
}

/// Why a request to WorkOS failed. The message contains nothing of a payload.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ApiError {
    /// Status 401 or 403. A retry with the same key cannot succeed.
    #[error("WorkOS at {host} rejected the API key (status {status}); check WORKOS_API_KEY")]
    KeyRefused {
        /// The host and the port.
        host: String,
        /// The HTTP status.
        status: u16,
    },
    /// Status 400, 404, 409 or 422: WorkOS does not accept the request.
    #[error("WorkOS at {host} rejected the request (status {status}, code {code:?})")]
    Refused {
        /// The host and the port.
        host: String,
        /// The HTTP status.
        status: u16,
        /// WorkOS's error code. Empty if there is none.
        code: String,
    },
    /// Status 429 or 5xx, no response, or a response that cannot be parsed. A retry can succeed.
    #[error("the request to WorkOS at {host} failed: {why}")]
    Unavailable {
        /// The host and the port.
        host: String,
        /// The reason.
        why: String,
        /// The HTTP status, if WorkOS answered with one.
        status: Option<u16>,
        /// The pause that WorkOS requested with `Retry-After`.
        retry_after: Option<Duration>,
    },
}

impl ApiError {
    fn unavailable(host: &str, why: impl Into<String>) -> Self {
        Self::Unavailable { host: host.to_owned(), why: why.into(), status: None, retry_after: None }
    }

    /// Returns whether WorkOS answered that too many requests were sent.
    #[must_use]
    pub fn is_rate_limit(&self) -> bool {
        matches!(self, Self::Unavailable { status: Some(429), .. })
    }
}

/// One page of a list.
#[derive(Debug)]
pub struct Page<T> {
    /// The items, in WorkOS's order.
    pub items: Vec<T>,
    /// Whether there are more pages.
    pub more: bool,
    /// The cursor of the next page: the ID of the last item that has a usable ID, or else the cursor that WorkOS returned.
    pub resume: Option<String>,
    /// When the request was sent, or a little earlier, by WorkOS's clock. The page contains everything that WorkOS had committed at
    /// that time. It is checked against our clock and the database's clock (`clocks::DATE_TOLERANCE`).
    pub observed_at: Timestamp,
    /// The latest of these clocks. A stored time that is much later was recorded with a wrong clock.
    pub latest: Timestamp,
}

/// The start of a page of events.
#[derive(Clone, Copy, Debug)]
pub enum EventsFrom<'a> {
    /// After the event with this ID.
    After(&'a str),
    /// At this time.
    Time(Timestamp),
    /// At the oldest event that WorkOS lists.
    Oldest,
}

#[derive(Deserialize)]
struct List<'a> {
    #[serde(borrow)]
    data: Vec<&'a RawValue>,
    #[serde(default)]
    list_metadata: Option<ListMetadata>,
}

#[derive(Default, Deserialize)]
struct ListMetadata {
    #[serde(default)]
    after: Option<String>,
}

#[derive(Deserialize)]
struct Identified {
    id: String,
}

#[derive(Deserialize)]
struct ErrorBody {
    #[serde(default)]
    code: Option<String>,
}

/// A response, and when it was correct.
struct ApiResponse {
    body: Bytes,
    /// The host that answered, for errors.
    host: Arc<str>,
    /// See [`Page::latest`].
    latest: Timestamp,
    /// See [`Page::observed_at`].
    observed_at: Timestamp,
    /// When WorkOS answered, by its clock, rounded up to a second, because the `Date` header has whole seconds.
    answered_at: Timestamp,
}

/// A client for one WorkOS environment. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Api {
    client: reqwest::Client,
    base: Url,
    host: Arc<str>,
    /// Clones share it.
    key: Arc<ArcSwap<ApiKey>>,
    clocks: Arc<Clocks>,
    contact: Arc<Contact>,
    metrics: Option<Arc<Metrics>>,
}

impl Api {
    /// Creates a client for `base` (`https://api.workos.com`) with an API key.
    ///
    /// # Errors
    /// [`HttpClientError`] if `base` is not a URL or TLS cannot be set up.
    pub fn new(base: &str, key: ApiKey, clock: Clock) -> Result<Self, HttpClientError> {
        let base = Url::parse(base).ok().filter(|url| !url.cannot_be_a_base());
        let base = base
            .ok_or_else(|| HttpClientError::new("the URL of the WorkOS API is malformed; check WORKOS_API_HOSTNAME"))?;
        let (host, key) = (host_and_port(&base).into(), Arc::new(ArcSwap::from_pointee(key)));
        let (clocks, contact) = (Arc::new(Clocks::new(clock)), Arc::default());
        Ok(Self { client: workos_client(&base)?, base, host, key, clocks, contact, metrics: None })
    }

    /// Returns the host and port of the API.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// Returns whether WorkOS answers the requests of this client and its clones.
    pub(crate) fn contact(&self) -> ContactStatus {
        self.contact.status()
    }

    /// Returns whether there is an API key.
    pub(crate) fn has_key(&self) -> bool {
        !self.key.load().0.is_empty()
    }

    /// Returns this client with another API key, unmeasured. Clones of this client keep theirs.
    pub(crate) fn with_key(&self, key: ApiKey) -> Self {
        Self { key: Arc::new(ArcSwap::from_pointee(key)), metrics: None, ..self.clone() }
    }

    /// Replaces the API key of this client and of all its clones.
    pub(crate) fn set_key(&self, key: ApiKey) {
        self.key.store(Arc::new(key));
    }

    /// Records the current time of the database's clock, which is used to check `Date` headers. Clones share it.
    pub(crate) fn note_second_clock(&self, now: Timestamp) {
        self.clocks.note_second(now);
    }

    /// Returns a page of events of these types, oldest first. Some emulators return every type, so the caller must filter again.
    ///
    /// # Errors
    /// [`ApiError`]
    pub async fn events(&self, types: &[String], start: EventsFrom<'_>, limit: usize) -> Result<Page<Event>, ApiError> {
        let mut url = self.url(&["events"]);
        {
            let mut query = url.query_pairs_mut();
            query.append_pair("events", &types.join(","));
            query.append_pair("order", "asc").append_pair("limit", &limit.to_string());
            match start {
                EventsFrom::After(id) => query.append_pair("after", id),
                EventsFrom::Time(instant) => query.append_pair("range_start", &instant.to_string()),
                EventsFrom::Oldest => &mut query,
            };
        }
        let answer = self.get(url).await?;
        list(&answer, |item| reading(item, wire::listed_event).unwrap_or_else(|panicked| *panicked))
    }

    pub(super) fn url(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        url
    }

    fn unreachable(&self, why: impl Into<String>) -> ApiError {
        ApiError::unavailable(&self.host, why)
    }

    async fn get(&self, url: Url) -> Result<ApiResponse, ApiError> {
        let (status, headers, answer) = self.request(url).await?;
        check_status(status, &headers, answer)
    }

    /// Sends a request with a JSON body, and returns the object of the answer.
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        url: Url,
        body: Option<serde_json::Value>,
    ) -> Result<T, ApiError> {
        let request = self.client.request(method, url);
        let (status, headers, answer) =
            self.send(if let Some(body) = body { request.json(&body) } else { request }).await?;
        let answer = check_status(status, &headers, answer)?;
        object(&answer.body).ok_or_else(|| invalid_json(&answer.host))
    }

    async fn request(&self, url: Url) -> Result<(StatusCode, HeaderMap, ApiResponse), ApiError> {
        self.send(self.client.get(url)).await
    }

    async fn send(&self, request: RequestBuilder) -> Result<(StatusCode, HeaderMap, ApiResponse), ApiError> {
        let began = Instant::now();
        let response = match request.bearer_auth(&self.key.load().0).build() {
            Ok(request) => {
                let endpoint = measured::endpoint(request.url());
                let response = self.client.execute(request).await;
                self.measure(&endpoint, &response, began.elapsed());
                response
            }
            Err(error) => Err(error),
        };
        let response = response.map_err(|error| self.unreachable(why(&error)))?;
        let (status, headers) = (response.status(), response.headers().clone());
        let took = began.elapsed();
        let body = read_body(response, RESPONSE_LIMIT).await.map_err(|error| match error {
            BodyError::TooLong => self.unreachable("the response is larger than 32 MiB"),
            BodyError::Broken(why) => self.unreachable(why),
        })?;
        let Answered { at, latest } = self.clocks.answered(date_of(&headers));
        let answer = ApiResponse {
            body,
            host: self.host.clone(),
            latest,
            observed_at: at.minus(took),
            // The header has no fractions of a second. A deletion that this response confirms happened before this time.
            answered_at: at.plus_seconds(1),
        };
        Ok((status, headers, answer))
    }
}

fn date_of(headers: &HeaderMap) -> Option<Timestamp> {
    http_date(headers.get(DATE)?.to_str().ok()?)
}

/// Returns the response, or the error for its status.
fn check_status(status: StatusCode, headers: &HeaderMap, answer: ApiResponse) -> Result<ApiResponse, ApiError> {
    let host = answer.host.to_string();
    match status.as_u16() {
        200..=299 => Ok(answer),
        status @ (401 | 403) => Err(ApiError::KeyRefused { host, status }),
        status @ (400 | 404 | 409 | 422) => Err(ApiError::Refused { host, status, code: code(&answer.body) }),
        status => {
            let value = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
            // A date is compared with the response's own date, so that our clock does not matter.
            let seconds = value.and_then(|value| {
                value.trim().parse().ok().or_else(|| {
                    let answered_at = date_of(headers).unwrap_or(answer.answered_at);
                    u64::try_from(http_date(value)?.unix_seconds() - answered_at.unix_seconds()).ok()
                })
            });
            let retry_after = seconds.map(|seconds| Duration::from_secs(seconds).min(LONGEST_PAUSE));
            let because = if status == 429 { ", because too many requests were sent" } else { "" };
            let why = format!("it answered {status}{because}");
            Err(ApiError::Unavailable { host, why, status: Some(status), retry_after })
        }
    }
}

fn list<T>(answer: &ApiResponse, read: impl Fn(&RawValue) -> T) -> Result<Page<T>, ApiError> {
    // Invalid UTF-8 in one event must not block the page.
    let text = String::from_utf8_lossy(&answer.body);
    let list: List<'_> = serde_json::from_str(&text).map_err(|_| invalid_json(&answer.host))?;
    let after = list.list_metadata.and_then(|metadata| metadata.after);
    let more = after.is_some() && !list.data.is_empty();
    let resume = list.data.iter().rev().find_map(|item| usable_id(item)).or(after);
    let items: Vec<T> = list.data.into_iter().map(read).collect();
    Ok(Page { items, more, resume, observed_at: answer.observed_at, latest: answer.latest })
}

/// Returns the ID of a list item, if it can be a cursor.
fn usable_id(item: &RawValue) -> Option<String> {
    let id = object::<Identified>(item.get().as_bytes())?.id;
    (!id.is_empty() && id.len() <= wire::ID_LIMIT && !id.contains('\0')).then_some(id)
}

/// Parses an item. If that panics, returns an event for the quarantine, so that the item blocks no other.
fn reading<T>(item: &RawValue, read: impl Fn(&RawValue) -> T) -> Result<T, Box<Event>> {
    let read = std::panic::catch_unwind(AssertUnwindSafe(|| read(item)));
    read.map_err(|_panic| Box::new(wire::unreadable(item, "it made authkit-sync panic")))
}

fn invalid_json(host: &str) -> ApiError {
    ApiError::unavailable(host, "the response is not the expected JSON; check WORKOS_API_HOSTNAME and any proxy")
}

/// Parses a JSON object. Without this check, serde would also accept an array for a struct.
fn object<T: DeserializeOwned>(text: &[u8]) -> Option<T> {
    if text.trim_ascii_start().starts_with(b"{") { serde_json::from_slice(text).ok() } else { None }
}

/// Returns WorkOS's error code if it is a plain word.
fn code(body: &[u8]) -> String {
    let code = serde_json::from_slice::<ErrorBody>(body).ok().and_then(|error| error.code).unwrap_or_default();
    let word = code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if word { code } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::event::Content;

    #[test]
    fn retry_after_is_seconds_or_a_date_and_is_bounded() {
        let answered_at = http_date("Tue, 01 Sep 2026 09:00:00 GMT").unwrap();
        for (value, expected) in [
            ("7", Some(7)),
            ("Tue, 01 Sep 2026 09:00:30 GMT", Some(30)),
            ("Tue, 01 Sep 2026 08:00:00 GMT", None),
            ("86400", Some(LONGEST_PAUSE.as_secs())),
            ("soon", None),
            ("-1", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, value.parse().unwrap());
            let answer = ApiResponse {
                body: Bytes::new(),
                host: "".into(),
                latest: answered_at,
                observed_at: answered_at,
                answered_at,
            };
            let Err(ApiError::Unavailable { retry_after, .. }) =
                check_status(StatusCode::TOO_MANY_REQUESTS, &headers, answer)
            else {
                panic!("429 is an error")
            };
            assert_eq!(retry_after, expected.map(Duration::from_secs), "{value}");
        }
    }

    #[test]
    fn an_item_that_causes_a_panic_is_quarantined() {
        let item = RawValue::from_string(r#"{"id":"event_1"}"#.to_owned()).unwrap();
        assert!(reading(&item, |item| item.get().len()).is_ok());
        let kept = reading(&item, |_| -> usize { panic!("a defect of ours") }).unwrap_err();
        assert!(matches!(kept.content, Content::Unusable(_)));
        assert_eq!(&kept.payload[..], item.get().as_bytes());
    }
}
