//! `GET /changes`: the change feed, for followers with a service key.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::Edge;
use super::error::Refusal;
use crate::domain::change::Position;
use crate::sync::feed::{FeedError, PAGE, Page};

/// Where an answer says from which position to follow it.
pub(super) const POSITION: HeaderName = HeaderName::from_static("authkit-sync-position");

/// Changes in an answer by default.
const LIMIT: usize = 100;

/// An answer is held back so long at most, seconds: proxies in between lose patience soon after.
const LONGEST_WAIT: u64 = 20;

/// What a follower asks for.
#[derive(Debug)]
struct Asked {
    after: Option<Position>,
    limit: usize,
    wait: Duration,
}

/// Without `after` no changes, and the present position; else what is behind it, as soon as there is something.
pub(super) async fn read(
    State(edge): State<Arc<Edge>>,
    Query(parameters): Query<Vec<(String, String)>>,
) -> Result<Response, Refusal> {
    let asked = Asked::read(parameters)?;
    let page = match &asked.after {
        None => Page { data: Vec::new(), position: edge.feed.now().await? },
        Some(after) => {
            let page = edge.feed.after(after, asked.limit, asked.wait);
            tokio::select! {
                page = page => page?,
                // A service that ends has no news to wait for; nothing is told twice and nothing is left out.
                () = edge.closing.cancelled() => edge.feed.after(after, asked.limit, Duration::ZERO).await?,
            }
        }
    };
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(page)).into_response())
}

impl Asked {
    fn read(parameters: Vec<(String, String)>) -> Result<Self, Refusal> {
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

fn refuse(message: &'static str) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "invalid_parameter", message)
}

impl From<FeedError> for Refusal {
    fn from(error: FeedError) -> Self {
        match error {
            FeedError::Store(error) => error.into(),
            FeedError::Expired => Self::new(StatusCode::GONE, "position_expired", error.to_string()),
        }
    }
}
