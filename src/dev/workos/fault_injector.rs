//! What goes wrong at the simulated API, as told.

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

/// How the API goes wrong. Chances are percentages of requests, decided by the simulation's seed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApiFaults {
    /// 429, with `Retry-After` as seconds, as a date, or without.
    pub rate_limit: u8,
    /// 500, 502 or 503.
    pub error: u8,
    /// The connection breaks in the middle of the answer.
    pub cut: u8,
    /// 200 with a page for people.
    pub garbage: u8,
    /// 401, whatever the key.
    pub refuse_key: bool,
    /// The Events API does not list the newest events yet, milliseconds.
    pub hold_back_ms: u64,
    /// The Events API has forgotten what is older, seconds; a `range_start` before then is refused.
    pub retention_s: Option<u32>,
    /// A cursor that is no longer known begins the list anew, instead of being refused.
    pub lost_cursors_start_over: bool,
    /// Types whose name makes the Events API refuse the whole call.
    pub unknown_types: Vec<String>,
    /// The Events API lists newest first.
    pub backwards: bool,
    /// Lists give so many items at most, whatever is asked for.
    pub page_limit: Option<usize>,
    /// A list of users asked for behind a user who was deleted begins anew, instead of going on.
    pub lists_start_over: bool,
    /// `Retry-After` of every 429 and of every error, which is then a 503; seconds.
    pub retry_after_s: Option<u32>,
    /// The `Date` header of every answer is off by this many seconds.
    pub date_offset_s: i64,
    /// An event is late: its `created_at` lies [`ApiFaults::late_by_s`] before the change. Its ID keeps the listing order.
    pub late: u8,
    /// How late, seconds.
    pub late_by_s: u32,
    /// The last event of every page has no usable ID.
    pub unreadable_last: bool,
    /// Every event of every page has no usable ID.
    pub unreadable_page: bool,
    /// 404 as WorkOS's emulator answers it: the code is `not_found`, and there is no `entity_id`.
    pub emulator_not_found: bool,
    /// Paths that begin so are no routes, as behind a wrong base URL: 404 with a `message`.
    pub missing_routes: Vec<String>,
    /// The 404 of a missing route is an HTML page.
    pub missing_routes_html: bool,
}

/// The faults in force, and the dice.
#[derive(Debug)]
pub(super) struct FaultInjector(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    faults: ApiFaults,
    random: Random,
    /// Events made until then are no cursors any more, but those listed since.
    cursors_lost: Option<Timestamp>,
    listed_since: HashSet<String>,
    /// Requests of API clients, by path.
    requests: HashMap<String, usize>,
}

/// What becomes of one request.
enum Fate {
    Well,
    RateLimited(u64),
    Failed(StatusCode),
    Cut,
    Garbled,
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

    /// Notes the events a list showed: they are cursors again.
    pub(super) fn listed(&self, page: &Value) {
        let events = page.get("data").and_then(Value::as_array);
        let ids = events.into_iter().flatten().filter_map(|event| event.get("id")?.as_str().map(str::to_owned));
        self.inner(|inner| {
            if inner.cursors_lost.is_some() {
                inner.listed_since.extend(ids);
            }
        });
    }

    /// Until when cursors are lost, as far as this one is concerned.
    pub(super) fn cursors_lost(&self, cursor: Option<&str>) -> Option<Timestamp> {
        self.inner(|inner| inner.cursors_lost.filter(|_| cursor.is_none_or(|id| !inner.listed_since.contains(id))))
    }

    /// Requests made so far for lists and single users, well or not.
    pub(super) fn requests(&self, path: &str) -> usize {
        self.inner(|inner| inner.requests.get(path).copied().unwrap_or_default())
    }

    /// Requests made so far, whatever their path.
    pub(super) fn all_requests(&self) -> usize {
        self.inner(|inner| inner.requests.values().sum())
    }

    /// How long before its change an event says that it was made.
    pub(super) fn late_by(&self) -> Option<Duration> {
        self.inner(|Inner { faults, random, .. }| {
            let is_late = faults.late > 0 && random.happens(faults.late);
            is_late.then(|| Duration::from_secs(faults.late_by_s.into()))
        })
    }

    fn count(&self, path: &str) {
        self.inner(|inner| *inner.requests.entry(path.to_owned()).or_default() += 1);
    }

    fn fate(&self) -> Fate {
        self.inner(|Inner { faults, random, .. }| {
            let dice = random.next();
            if random.happens(faults.rate_limit) {
                Fate::RateLimited(dice)
            } else if random.happens(faults.error) {
                let all = [StatusCode::INTERNAL_SERVER_ERROR, StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE];
                Fate::Failed(all[usize::try_from(dice % 3).unwrap_or_default()])
            } else if random.happens(faults.cut) {
                Fate::Cut
            } else if random.happens(faults.garbage) {
                Fate::Garbled
            } else {
                Fate::Well
            }
        })
    }
}

/// Lets a request of an API client go wrong.
pub(super) async fn meet(State(workos): State<SimulatedWorkos>, request: Request, next: Next) -> Response {
    workos.fault_injector().count(request.uri().path());
    let faults = workos.fault_injector().faults();
    if faults.refuse_key {
        return Fault::unauthorized().into_response();
    }
    if faults.missing_routes.iter().any(|missing| request.uri().path().starts_with(missing)) {
        return missing_route(request.uri().path(), faults.missing_routes_html);
    }
    match (workos.fault_injector().fate(), faults.retry_after_s) {
        (Fate::Well, _) => next.run(request).await,
        (Fate::RateLimited(_), Some(seconds)) => retry_after(Fault::rate_limited(), seconds),
        (Fate::RateLimited(dice), None) => rate_limited(&workos, dice),
        (Fate::Failed(_), Some(seconds)) => retry_after(StatusCode::SERVICE_UNAVAILABLE, seconds),
        (Fate::Failed(status), None) => (status, "upstream connect error").into_response(),
        (Fate::Garbled, _) => {
            ([(header::CONTENT_TYPE, "text/html")], "<html>We'll be right back</html>").into_response()
        }
        (Fate::Cut, _) => cut(next.run(request).await).await,
    }
}

fn retry_after(response: impl IntoResponse, seconds: u32) -> Response {
    ([(header::RETRY_AFTER, seconds.to_string())], response).into_response()
}

/// The 404 of a server that has no such route.
fn missing_route(path: &str, html: bool) -> Response {
    let status = StatusCode::NOT_FOUND;
    if html {
        return (status, [(header::CONTENT_TYPE, "text/html")], "<html><h1>404 Not Found</h1></html>").into_response();
    }
    let body = json!({"message": format!("Cannot GET {path}"), "error": "Not Found", "statusCode": 404});
    (status, Json(body)).into_response()
}

fn rate_limited(workos: &SimulatedWorkos, dice: u64) -> Response {
    let mut response = Fault::rate_limited().into_response();
    let date = workos.date_of(workos.now().plus_seconds(1));
    let wish = match dice % 3 {
        0 => HeaderValue::from_static("1"),
        1 => HeaderValue::from_str(&date).unwrap_or(HeaderValue::from_static("1")),
        _ => return response,
    };
    response.headers_mut().insert(header::RETRY_AFTER, wish);
    response
}

/// The first half of the answer, and then nothing.
async fn cut(response: Response) -> Response {
    let (parts, body) = response.into_parts();
    let whole = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
    let half = whole.slice(..whole.len() / 2);
    let broken = stream::once(async { Ok::<Bytes, std::io::Error>(half) })
        .chain(stream::once(async { Err(std::io::ErrorKind::ConnectionReset.into()) }));
    Response::from_parts(parts, Body::from_stream(broken))
}
