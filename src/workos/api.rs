//! WorkOS's REST API, as far as background work reads it: events, users, one user.
//!
//! Nothing here retries: who calls knows how long to rest. Every answer carries the instant it is true of.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{DATE, HeaderMap, RETRY_AFTER};
use reqwest::{StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::clocks::{Answered, Clocks};
use super::http::{BodyError, HttpClientError, http_date, read_body, why, workos_client};
use super::wire;
use crate::domain::clock::Clock;
use crate::domain::event::{Event, Observation};
use crate::domain::timestamp::Timestamp;

/// Items on a page: the most WorkOS gives (OpenAPI: `limit`, 1 to 100).
pub const PAGE: usize = 100;

/// The longest answer read. A page of a hundred large users is well below it.
const ANSWER_LIMIT: usize = 32 * 1024 * 1024;

/// WorkOS is believed when it asks for a rest, up to here.
const LONGEST_REST: Duration = Duration::from_secs(120);

/// An environment's API key. It is never shown.
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

/// Why WorkOS gave no usable answer. Its texts hold nothing of a payload.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ApiError {
    /// 401 or 403: nothing will help but another key.
    #[error("WorkOS refuses the API key ({0}): check WORKOS_API_KEY")]
    KeyRefused(u16),
    /// 400, 404 or 422: the request itself is at fault.
    #[error("WorkOS refuses the request ({status} {code})")]
    Refused {
        /// The status.
        status: u16,
        /// WorkOS's code for it.
        code: String,
    },
    /// 429, 5xx, no answer, or one that cannot be read: try again later.
    #[error("WorkOS cannot be asked: {why}")]
    Unavailable {
        /// What happened.
        why: String,
        /// How long WorkOS wants to be left alone.
        retry_after: Option<Duration>,
    },
}

impl ApiError {
    fn unavailable(why: impl Into<String>) -> Self {
        Self::Unavailable { why: why.into(), retry_after: None }
    }
}

/// One page of a list.
#[derive(Debug)]
pub struct Page<T> {
    /// In WorkOS's order.
    pub items: Vec<T>,
    /// More follow.
    pub more: bool,
    /// What the next page is asked for by: the last item with a usable ID, or, where no item has one, what WorkOS names.
    pub resume: Option<String>,
    /// WorkOS's clock when the request set out, at the latest: everything it knew by then could be on the page. Judged by
    /// our clock and the database's; see `clocks::DATE_TOLERANCE`.
    pub observed_at: Timestamp,
    /// The latest of all these clocks: what lies well ahead of it was recorded under a wrong one.
    pub latest: Timestamp,
}

/// Where a page of events begins.
#[derive(Clone, Copy, Debug)]
pub enum Start<'a> {
    /// Behind this event.
    After(&'a str),
    /// At this instant.
    Since(Timestamp),
    /// Wherever WorkOS begins.
    Anywhere,
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
struct NotFound {
    message: String,
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    entity_id: Option<String>,
}

#[derive(Deserialize)]
struct Fault {
    #[serde(default)]
    code: Option<String>,
}

struct Answer {
    body: Bytes,
    /// See [`Page::latest`].
    latest: Timestamp,
    /// See [`Page::observed_at`].
    observed_at: Timestamp,
    /// WorkOS's clock when it answered, at the earliest plausible end: the `Date` header has whole seconds.
    answered_at: Timestamp,
}

/// What WorkOS says of one user.
#[derive(Debug)]
pub enum Found {
    /// It is alive.
    Live(Box<Observation>),
    /// WorkOS does not know it.
    Unknown {
        /// As of this instant by WorkOS's clock.
        at: Timestamp,
        /// The answer names the ID that was asked for. Without that, a missing route or another server may have answered: it
        /// counts once a live user was read by ID.
        names_it: bool,
    },
}

/// Reads one environment. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Api {
    client: reqwest::Client,
    base: Url,
    key: ApiKey,
    clocks: Arc<Clocks>,
}

impl Api {
    /// Reads from `base` (`https://api.workos.com`) with an API key.
    ///
    /// # Errors
    /// [`HttpClientError`] when `base` is no URL or no TLS can be set up.
    pub fn new(base: &str, key: ApiKey, clock: Clock) -> Result<Self, HttpClientError> {
        let base = Url::parse(base).ok().filter(|url| !url.cannot_be_a_base());
        let base = base.ok_or_else(|| HttpClientError::new("the API's address is malformed"))?;
        Ok(Self { client: workos_client(&base)?, base, key, clocks: Arc::new(Clocks::new(clock)) })
    }

    /// Notes what another clock, the database's, says now: [`Page::observed_at`] is judged by both. Clones share it.
    pub(crate) fn note_second_clock(&self, now: Timestamp) {
        self.clocks.note_second(now);
    }

    /// A page of events of these types, oldest first. WorkOS demands that types are named, and some of its emulators give
    /// every type regardless: the caller filters again.
    ///
    /// # Errors
    /// [`ApiError`]
    pub async fn events(&self, types: &[String], start: Start<'_>, limit: usize) -> Result<Page<Event>, ApiError> {
        let mut url = self.url(&["events"]);
        {
            let mut query = url.query_pairs_mut();
            query.append_pair("events", &types.join(","));
            query.append_pair("order", "asc").append_pair("limit", &limit.to_string());
            match start {
                Start::After(id) => query.append_pair("after", id),
                Start::Since(instant) => query.append_pair("range_start", &instant.to_string()),
                Start::Anywhere => &mut query,
            };
        }
        let answer = self.get(url).await?;
        list(&answer, |item| reading(item, wire::listed_event).unwrap_or_else(|panicked| *panicked))
    }

    /// A page of users, oldest first, behind the user `after`: snapshots, and events that hold what is none.
    ///
    /// # Errors
    /// [`ApiError`]
    pub async fn users(&self, after: Option<&str>) -> Result<Page<Observation>, ApiError> {
        let mut url = self.url(&["user_management", "users"]);
        url.query_pairs_mut().append_pair("order", "asc").append_pair("limit", &PAGE.to_string());
        if let Some(after) = after {
            url.query_pairs_mut().append_pair("after", after);
        }
        let answer = self.get(url).await?;
        let read = |item: &RawValue| wire::listed_user(item, answer.observed_at);
        list(&answer, |item| reading(item, read).unwrap_or_else(|panicked| Observation::Event(*panicked)))
    }

    /// One user by id.
    ///
    /// # Errors
    /// [`ApiError`]; a 404 that is not WorkOS's own is one too, because a deletion may be inferred from a true one.
    pub async fn user(&self, id: &str) -> Result<Found, ApiError> {
        let answer = match self.ask(self.url(&["user_management", "users", id])).await? {
            (StatusCode::NOT_FOUND, headers, answer) => match not_found(&answer.body, id) {
                Some(names_it) => return Ok(Found::Unknown { at: answer.answered_at, names_it }),
                None => check_status(StatusCode::NOT_FOUND, &headers, answer)?,
            },
            (status, headers, answer) => check_status(status, &headers, answer)?,
        };
        let text = String::from_utf8_lossy(&answer.body);
        let raw: &RawValue = serde_json::from_str(&text).map_err(|_| garbled())?;
        Ok(Found::Live(Box::new(wire::listed_user(raw, answer.observed_at))))
    }

    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        url
    }

    async fn get(&self, url: Url) -> Result<Answer, ApiError> {
        let (status, headers, answer) = self.ask(url).await?;
        check_status(status, &headers, answer)
    }

    async fn ask(&self, url: Url) -> Result<(StatusCode, HeaderMap, Answer), ApiError> {
        let began = Instant::now();
        let request = self.client.get(url).bearer_auth(&self.key.0);
        let response = request.send().await.map_err(|error| ApiError::unavailable(why(&error)))?;
        let (status, headers) = (response.status(), response.headers().clone());
        let took = began.elapsed();
        let body = read_body(response, ANSWER_LIMIT).await.map_err(|error| match error {
            BodyError::TooLong => ApiError::unavailable("its answer is longer than 32 MiB"),
            BodyError::Broken(why) => ApiError::unavailable(why),
        })?;
        let Answered { at, latest } = self.clocks.answered(date_of(&headers));
        let answer = Answer {
            body,
            latest,
            observed_at: at.minus(took),
            // The header cuts off fractions of a second; a deletion confirmed by this answer was made before then.
            answered_at: at.plus_seconds(1),
        };
        Ok((status, headers, answer))
    }
}

fn date_of(headers: &HeaderMap) -> Option<Timestamp> {
    http_date(headers.get(DATE)?.to_str().ok()?)
}

/// An answer, or which kind of refusal it is.
fn check_status(status: StatusCode, headers: &HeaderMap, answer: Answer) -> Result<Answer, ApiError> {
    match status.as_u16() {
        200..=299 => Ok(answer),
        status @ (401 | 403) => Err(ApiError::KeyRefused(status)),
        status @ (400 | 404 | 422) => Err(ApiError::Refused { status, code: code(&answer.body) }),
        status => {
            let wish = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
            // A date is reckoned from the answer's own, so that it does not matter what our clock says.
            let seconds = wish.and_then(|wish| {
                wish.trim().parse().ok().or_else(|| {
                    let answered_at = date_of(headers).unwrap_or(answer.answered_at);
                    u64::try_from(http_date(wish)?.unix_seconds() - answered_at.unix_seconds()).ok()
                })
            });
            let retry_after = seconds.map(|seconds| Duration::from_secs(seconds).min(LONGEST_REST));
            Err(ApiError::Unavailable { why: format!("it answers {status}"), retry_after })
        }
    }
}

fn list<T>(answer: &Answer, read: impl Fn(&RawValue) -> T) -> Result<Page<T>, ApiError> {
    // One event's broken letter must not hold up the page.
    let text = String::from_utf8_lossy(&answer.body);
    let list: List<'_> = serde_json::from_str(&text).map_err(|_| garbled())?;
    let after = list.list_metadata.and_then(|metadata| metadata.after);
    let more = after.is_some() && !list.data.is_empty();
    let resume = list.data.iter().rev().find_map(|item| usable_id(item)).or(after);
    let items: Vec<T> = list.data.into_iter().map(read).collect();
    Ok(Page { items, more, resume, observed_at: answer.observed_at, latest: answer.latest })
}

/// The ID under which WorkOS knows an item of a list.
fn usable_id(item: &RawValue) -> Option<String> {
    let id = object::<Identified>(item.get().as_bytes())?.id;
    (!id.is_empty() && id.len() <= wire::ID_LIMIT && !id.contains('\0')).then_some(id)
}

/// Reads an item. One that makes us panic is handed over as an event for the quarantine, so that it stops no other.
fn reading<T>(item: &RawValue, read: impl Fn(&RawValue) -> T) -> Result<T, Box<Event>> {
    let read = std::panic::catch_unwind(AssertUnwindSafe(|| read(item)));
    read.map_err(|_panic| Box::new(wire::unreadable(item, "it made authkit-sync panic")))
}

fn garbled() -> ApiError {
    ApiError::unavailable("its answer is not the JSON it should be")
}

/// Whether a 404 says that WorkOS does not know `id`, and, if so, whether it names that ID. WorkOS gives `entity_not_found` and
/// the `entity_id`; its emulator `not_found` without it.
fn not_found(body: &[u8], id: &str) -> Option<bool> {
    let NotFound { message, code, entity_id } = object(body)?;
    let is_code = code.is_none_or(|code| ["entity_not_found", "not_found"].contains(&code.as_str()));
    let is_it = entity_id.as_ref().is_none_or(|entity_id| entity_id == id);
    (!message.is_empty() && is_code && is_it).then_some(entity_id.is_some())
}

/// Reads a JSON object; serde would take a list for the fields of a struct, too.
fn object<T: DeserializeOwned>(text: &[u8]) -> Option<T> {
    if text.trim_ascii_start().starts_with(b"{") { serde_json::from_slice(text).ok() } else { None }
}

/// WorkOS's code for a refusal, when it is a word.
fn code(body: &[u8]) -> String {
    let code = serde_json::from_slice::<Fault>(body).ok().and_then(|fault| fault.code).unwrap_or_default();
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
        for (wish, expected) in [
            ("7", Some(7)),
            ("Tue, 01 Sep 2026 09:00:30 GMT", Some(30)),
            ("Tue, 01 Sep 2026 08:00:00 GMT", None),
            ("86400", Some(LONGEST_REST.as_secs())),
            ("soon", None),
            ("-1", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, wish.parse().unwrap());
            let answer = Answer { body: Bytes::new(), latest: answered_at, observed_at: answered_at, answered_at };
            let Err(ApiError::Unavailable { retry_after, .. }) =
                check_status(StatusCode::TOO_MANY_REQUESTS, &headers, answer)
            else {
                panic!("429 is no answer")
            };
            assert_eq!(retry_after, expected.map(Duration::from_secs), "{wish}");
        }
    }

    #[test]
    fn a_404_says_unknown_only_in_the_words_of_workos_or_its_emulator() {
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

    #[test]
    fn an_item_that_makes_us_panic_is_kept_for_the_quarantine() {
        let item = RawValue::from_string(r#"{"id":"event_1"}"#.to_owned()).unwrap();
        assert!(reading(&item, |item| item.get().len()).is_ok());
        let kept = reading(&item, |_| -> usize { panic!("a defect of ours") }).unwrap_err();
        assert!(matches!(kept.content, Content::Unusable(_)));
        assert_eq!(&kept.payload[..], item.get().as_bytes());
    }
}
