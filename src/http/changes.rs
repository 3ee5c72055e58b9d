//! `GET /changes`: the change feed, for followers with a service key.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use utoipa::{IntoResponses, ToSchema};

use super::error::Rejection;
use super::shapes::{Error, UserShape};
use super::state::HttpState;
use crate::domain::change::Position;
use crate::sync::feed::{FeedError, PAGE, Page};

/// Changes in an answer by default.
const LIMIT: usize = 100;

/// An answer is held back so long at most, seconds: proxies in between lose patience soon after.
const LONGEST_WAIT: u64 = 20;

/// What a follower asks for. A parameter given twice counts as given last.
#[derive(Debug)]
struct Asked {
    after: Option<Position>,
    limit: usize,
    wait: Duration,
}

/// What has changed behind a position; without one nothing but the present position.
#[utoipa::path(
    get,
    path = "/changes",
    operation_id = "listChanges",
    tag = "changes",
    security(("service_key" = [])),
    params(
        ("after" = Option<String>, Query, description = "the position to go on from: of an earlier answer, or `AuthKit-Sync-Position` of a list of users"),
        ("limit" = Option<u16>, Query, description = "how many, default 100", minimum = 1, maximum = 1000),
        ("wait" = Option<u8>, Query, description = "seconds to wait for news", maximum = 20)
    ),
    responses((status = 200, description = "Changes, in order.", body = PageShape), ChangesRefused)
)]
pub(super) async fn read(
    State(state): State<Arc<HttpState>>,
    parameters: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Response, Rejection> {
    let Query(parameters) = parameters.map_err(|_| refuse("the query is malformed"))?;
    let asked = Asked::read(parameters)?;
    let page = match &asked.after {
        None => Page { data: Vec::new(), position: state.feed.now().await? },
        Some(after) => {
            let page = state.feed.after(after, asked.limit, asked.wait);
            tokio::select! {
                page = page => page?,
                // A service that ends has no news to wait for; nothing is told twice and nothing is left out.
                () = state.closing.cancelled() => state.feed.after(after, asked.limit, Duration::ZERO).await?,
            }
        }
    };
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(page)).into_response())
}

impl Asked {
    fn read(parameters: Vec<(String, String)>) -> Result<Self, Rejection> {
        let mut asked = Self { after: None, limit: LIMIT, wait: Duration::ZERO };
        for (name, value) in parameters {
            match name.as_str() {
                "after" => {
                    let position = value.parse().map_err(|_| refuse("after is no position of this feed"))?;
                    asked.after = Some(position);
                }
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=PAGE).contains(limit));
                    asked.limit = limit.ok_or_else(|| refuse("limit must be a number from 1 to 1000"))?;
                }
                "wait" => {
                    let wait = value.parse().ok().filter(|wait| *wait <= LONGEST_WAIT);
                    let wait = wait.ok_or_else(|| refuse("wait must be a number of seconds from 0 to 20"))?;
                    asked.wait = Duration::from_secs(wait);
                }
                _ => return Err(refuse("the parameters are after, limit and wait")),
            }
        }
        Ok(asked)
    }
}

/// Some changes, and where to go on.
#[derive(ToSchema)]
#[schema(as = Changes)]
#[expect(dead_code, reason = "the shape of crate::sync::feed::Page")]
pub(super) struct PageShape {
    data: Vec<ChangeShape>,
    /// Everything up to here has been told.
    position: String,
}

/// One committed difference in a user, or an event of another type.
#[derive(ToSchema)]
#[schema(as = Change)]
#[expect(dead_code, reason = "the shape of crate::domain::change::Change, which writes itself")]
pub(super) struct ChangeShape {
    position: String,
    /// `created`, `updated` or `deleted`; of another event its type.
    kind: String,
    #[schema(required)]
    user_id: Option<String>,
    /// The names of the fields that an update changed.
    changed: Vec<String>,
    #[schema(required)]
    event_id: Option<String>,
    #[schema(required)]
    event_type: Option<String>,
    #[schema(inline)]
    origin: OriginShape,
    #[schema(format = DateTime)]
    at: String,
    /// The user as it stands now, null once it is deleted; absent for other events.
    user: Option<UserShape>,
    /// What another event says, null once that is no longer kept; absent for changes of users.
    data: Option<Value>,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "the words of crate::domain::event::Origin")]
enum OriginShape {
    Webhook,
    CatchUp,
    Backfill,
    Reconcile,
    ReadThrough,
}

/// What a follower may be refused by.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described")]
pub(super) enum ChangesRefused {
    /// `invalid_parameter`
    #[response(status = 400)]
    Parameter(Error),
    /// `unauthorized`
    #[response(status = 401, headers(("WWW-Authenticate" = String, description = "RFC 6750")))]
    Key(Error),
    /// `position_expired`: read the list of users again, and go on from there.
    #[response(status = 410)]
    Expired(Error),
    /// `database_unavailable`
    #[response(status = 503, headers(("Retry-After" = u32, description = "seconds")))]
    Ours(Error),
}

fn refuse(message: &'static str) -> Rejection {
    Rejection::new(StatusCode::BAD_REQUEST, "invalid_parameter", message)
}

impl From<FeedError> for Rejection {
    fn from(error: FeedError) -> Self {
        match error {
            FeedError::Store(error) => error.into(),
            FeedError::Expired => Self::new(StatusCode::GONE, "position_expired", error.to_string()),
        }
    }
}
