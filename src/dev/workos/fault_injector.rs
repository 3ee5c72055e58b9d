//! Injects faults into the simulated API.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::SimulatedWorkos;
use super::fault::Fault;
use super::ids::Random;
use crate::domain::timestamp::Timestamp;

/// Faults of the API. Probabilities are percentages of requests. The seed of the simulation determines when they occur.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApiFaults {
    /// Probability of status 429, with `Retry-After` in seconds, as a date, or without it.
    pub rate_limit: u8,
    /// Probability of status 500, 502 or 503.
    pub error: u8,
    /// Probability that the connection breaks in the middle of the response.
    pub cut: u8,
    /// Probability of status 200 with an HTML page.
    pub garbage: u8,
    /// Status 401 for every API key.
    pub refuse_key: bool,
    /// The Events API lists an event only after this many milliseconds.
    pub hold_back_ms: u64,
    /// The Events API has no events older than this many seconds, and rejects an earlier `range_start`.
    pub retention_s: Option<u32>,
    /// With an unknown cursor, the Events API starts from the first page instead of rejecting the request.
    pub lost_cursors_start_over: bool,
    /// Event types for which the Events API rejects the request.
    pub unknown_types: Vec<String>,
    /// The Events API lists newest first.
    pub backwards: bool,
    /// Maximum number of items on a page, even if the request has a higher `limit`.
    pub page_limit: Option<usize>,
    /// With the cursor of a removed object, a list starts from the first page instead of continuing.
    pub lists_start_over: bool,
    /// `Retry-After` in seconds of every 429 and every error. Every error is then a 503.
    pub retry_after_s: Option<u32>,
    /// Seconds added to the `Date` header of every response.
    pub date_offset_s: i64,
    /// Probability that the `created_at` of an event is [`ApiFaults::late_by_s`] before the change. Its ID is in order.
    pub late: u8,
    /// Seconds for [`ApiFaults::late`].
    pub late_by_s: u32,
    /// The last event of every page has no usable ID.
    pub unreadable_last: bool,
    /// Every event of every page has no usable ID.
    pub unreadable_page: bool,
    /// A 404 has the format of WorkOS's emulator: the code `not_found`, and no `entity_id`.
    pub emulator_not_found: bool,
    /// A 404 has only the message `Not Found`, as that of organizations in 2021.
    pub bare_not_found: bool,
    /// The list of memberships of an unknown user or organization is empty, as in WorkOS's emulator, instead of a 404.
    pub unknown_lists_empty: bool,
    /// Path prefixes that are answered 404 with a `message`, as with a wrong base URL.
    pub missing_routes: Vec<String>,
    /// The API shows no secrets of webhook endpoints after their creation.
    pub mask_secrets: bool,
    /// The 404 of a missing route is an HTML page.
    pub missing_routes_html: bool,
}

/// The current faults, and the random numbers that decide when they occur.
#[derive(Debug)]
pub(super) struct FaultInjector(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    faults: ApiFaults,
    random: Random,
    /// Events that were created until this time are unknown cursors, unless they were listed again after it.
    cursors_lost: Option<Timestamp>,
    listed_since: HashSet<String>,
    /// Number of API requests by path.
    requests: HashMap<String, usize>,
}

/// The fault of one request.
enum RequestFault {
    None,
    RateLimited(u64),
    Failed(StatusCode),
    Cut,
    Garbage,
}

impl FaultInjector {
    pub(super) fn new(seed: u64) -> Self {
        let random = Random::new(seed.wrapping_add(1));
        Self(Mutex::new(Inner {
            faults: ApiFaults::default(),
            random,
            cursors_lost: None,
            listed_since: HashSet::new(),
            requests: HashMap::new(),
        }))
    }

    fn inner<T>(&self, read: impl FnOnce(&mut Inner) -> T) -> T {
        read(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn set(&self, faults: ApiFaults) {
        self.inner(|inner| inner.faults = faults);
    }

    pub(super) fn faults(&self) -> ApiFaults {
        self.inner(|inner| inner.faults.clone())
    }

    pub(super) fn lose_cursors(&self, until: Timestamp) {
        self.inner(|inner| {
            inner.cursors_lost = Some(until);
            inner.listed_since.clear();
        });
    }

    /// Records the listed events, whose cursors are valid again.
    pub(super) fn listed(&self, page: &Value) {
        let events = page.get("data").and_then(Value::as_array);
        let ids = events.into_iter().flatten().filter_map(|event| event.get("id")?.as_str().map(str::to_owned));
        self.inner(|inner| {
            if inner.cursors_lost.is_some() {
                inner.listed_since.extend(ids);
            }
        });
    }

    /// Returns the time until which cursors are unknown, or `None` if this cursor is valid.
    pub(super) fn cursors_lost(&self, cursor: Option<&str>) -> Option<Timestamp> {
        self.inner(|inner| inner.cursors_lost.filter(|_| cursor.is_none_or(|id| !inner.listed_since.contains(id))))
    }

    /// Returns the number of requests for this path, including failed ones.
    pub(super) fn requests(&self, path: &str) -> usize {
        self.inner(|inner| inner.requests.get(path).copied().unwrap_or_default())
    }

    /// Returns the number of all requests.
    pub(super) fn all_requests(&self) -> usize {
        self.inner(|inner| inner.requests.values().sum())
    }

    /// Returns by how much the `created_at` of the next event is too early.
    pub(super) fn late_by(&self) -> Option<Duration> {
        self.inner(|Inner { faults, random, .. }| {
            let is_late = faults.late > 0 && random.happens(faults.late);
            is_late.then(|| Duration::from_secs(faults.late_by_s.into()))
        })
    }

    fn count(&self, path: &str) {
        self.inner(|inner| *inner.requests.entry(path.to_owned()).or_default() += 1);
    }

    fn next_fault(&self) -> RequestFault {
        self.inner(|Inner { faults, random, .. }| {
            let number = random.next();
            if random.happens(faults.rate_limit) {
                RequestFault::RateLimited(number)
            } else if random.happens(faults.error) {
                let all = [StatusCode::INTERNAL_SERVER_ERROR, StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE];
                RequestFault::Failed(all[usize::try_from(number % 3).unwrap_or_default()])
            } else if random.happens(faults.cut) {
                RequestFault::Cut
            } else if random.happens(faults.garbage) {
                RequestFault::Garbage
            } else {
                RequestFault::None
            }
        })
    }
}

/// Middleware that applies the faults to an API request.
pub(super) async fn inject(State(workos): State<SimulatedWorkos>, request: Request, next: Next) -> Response {
    workos.fault_injector().count(request.uri().path());
    let faults = workos.fault_injector().faults();
    if faults.refuse_key {
        return Fault::unauthorized().into_response();
    }
    if faults.missing_routes.iter().any(|missing| request.uri().path().starts_with(missing)) {
        return missing_route(request.uri().path(), faults.missing_routes_html);
    }
    match (workos.fault_injector().next_fault(), faults.retry_after_s) {
        (RequestFault::None, _) => next.run(request).await,
        (RequestFault::RateLimited(_), Some(seconds)) => retry_after(Fault::rate_limited(), seconds),
        (RequestFault::RateLimited(number), None) => rate_limited(&workos, number),
        (RequestFault::Failed(_), Some(seconds)) => retry_after(StatusCode::SERVICE_UNAVAILABLE, seconds),
        (RequestFault::Failed(status), None) => (status, "upstream connect error").into_response(),
        (RequestFault::Garbage, _) => {
            ([(header::CONTENT_TYPE, "text/html")], "<html>We'll be right back</html>").into_response()
        }
        (RequestFault::Cut, _) => cut(next.run(request).await).await,
    }
}

fn retry_after(response: impl IntoResponse, seconds: u32) -> Response {
    ([(header::RETRY_AFTER, seconds.to_string())], response).into_response()
}

/// Returns the 404 of a server that does not have the route.
fn missing_route(path: &str, html: bool) -> Response {
    let status = StatusCode::NOT_FOUND;
    if html {
        return (status, [(header::CONTENT_TYPE, "text/html")], "<html><h1>404 Not Found</h1></html>").into_response();
    }
    let body = json!({"message": format!("Cannot GET {path}"), "error": "Not Found", "statusCode": 404});
    (status, Json(body)).into_response()
}

fn rate_limited(workos: &SimulatedWorkos, number: u64) -> Response {
    let mut response = Fault::rate_limited().into_response();
    let date = workos.http_date(workos.now().plus_seconds(1));
    let value = match number % 3 {
        0 => HeaderValue::from_static("1"),
        1 => HeaderValue::from_str(&date).unwrap_or(HeaderValue::from_static("1")),
        _ => return response,
    };
    response.headers_mut().insert(header::RETRY_AFTER, value);
    response
}

/// Returns the first half of the response, then breaks the connection.
async fn cut(response: Response) -> Response {
    let (parts, body) = response.into_parts();
    let whole = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
    let half = whole.slice(..whole.len() / 2);
    let broken = stream::once(async { Ok::<Bytes, std::io::Error>(half) })
        .chain(stream::once(async { Err(std::io::ErrorKind::ConnectionReset.into()) }));
    Response::from_parts(parts, Body::from_stream(broken))
}
