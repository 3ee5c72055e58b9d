//! `GET /changes`: the change feed, for backends with a service key.

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
use super::shapes::{Error, MembershipShape, OrganizationShape, UserShape};
use super::state::HttpState;
use crate::domain::change::Position;
use crate::sync::feed::{FeedError, PAGE, Page};

/// Default number of changes in an answer.
const LIMIT: usize = 100;

/// Maximum wait for a change, in seconds. Proxies between client and service time out soon after that.
const LONGEST_WAIT: u64 = 20;

/// The parameters of a request. If a parameter is given twice, the last value counts.
#[derive(Debug)]
struct FeedQuery {
    after: Option<Position>,
    limit: usize,
    wait: Duration,
}

/// List the changes after a position. Without `after`, the answer contains only the current position.
#[utoipa::path(
    get,
    path = "/changes",
    operation_id = "listChanges",
    tag = "changes",
    security(("service_key" = [])),
    params(
        ("after" = Option<String>, Query, description = "The `position` of an earlier answer, or the header \
                                                         `AuthKit-Sync-Position` of a list of users."),
        ("limit" = Option<u16>, Query, description = "Maximum number of changes. Default 100.", minimum = 1, maximum = 1000),
        ("wait" = Option<u8>, Query, description = "Seconds to wait if there is no change yet. Default 0.", maximum = 20)
    ),
    responses((status = 200, description = "Changes, in order.", body = PageShape), ChangesRefused)
)]
pub(super) async fn read(
    State(state): State<Arc<HttpState>>,
    parameters: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Response, Rejection> {
    let Query(parameters) = parameters.map_err(|_| refuse("the query is malformed"))?;
    let asked = FeedQuery::read(parameters)?;
    let page = match &asked.after {
        None => Page { data: Vec::new(), position: state.feed.now().await? },
        Some(after) => {
            let page = state.feed.after(after, asked.limit, asked.wait);
            tokio::select! {
                page = page => page?,
                // At shutdown the request stops waiting. No change is repeated or lost.
                () = state.closing.cancelled() => state.feed.after(after, asked.limit, Duration::ZERO).await?,
            }
        }
    };
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(page)).into_response())
}

impl FeedQuery {
    fn read(parameters: Vec<(String, String)>) -> Result<Self, Rejection> {
        let mut asked = Self { after: None, limit: LIMIT, wait: Duration::ZERO };
        for (name, value) in parameters {
            match name.as_str() {
                "after" => {
                    let position = value.parse().map_err(|_| {
                        refuse("`after` is not a position of this feed; use the `position` of an earlier answer")
                    })?;
                    asked.after = Some(position);
                }
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=PAGE).contains(limit));
                    asked.limit = limit.ok_or_else(|| refuse("`limit` must be a number from 1 to 1000"))?;
                }
                "wait" => {
                    let wait = value.parse().ok().filter(|wait| *wait <= LONGEST_WAIT);
                    let wait = wait.ok_or_else(|| refuse("`wait` must be a number of seconds from 0 to 20"))?;
                    asked.wait = Duration::from_secs(wait);
                }
                _ => return Err(refuse("unknown parameter; the parameters are `after`, `limit` and `wait`")),
            }
        }
        Ok(asked)
    }
}

/// A page of changes.
#[derive(ToSchema)]
#[schema(as = Changes)]
#[expect(dead_code, reason = "the shape of crate::sync::feed::Page")]
pub(super) struct PageShape {
    data: Vec<ChangeShape>,
    /// Pass it as `after` to get the next page.
    position: String,
}

/// A committed change of an object, or an event of another type.
#[derive(ToSchema)]
#[schema(as = Change)]
#[expect(dead_code, reason = "the shape of crate::domain::change::Change, which writes itself")]
pub(super) struct ChangeShape {
    position: String,
    /// `created`, `updated` or `deleted` for a user; an event type such as `organization.updated` for another object; the event's
    /// own type for another event.
    kind: String,
    /// The user whom the change is about. For a membership, the member.
    #[schema(required)]
    user_id: Option<String>,
    /// The ID of the changed object, unless it is a user.
    object_id: Option<String>,
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
    /// The current user. Null if it has been deleted. Absent for other events.
    user: Option<UserShape>,
    /// The current organization of a change of an organization. Null if it has been deleted.
    organization: Option<OrganizationShape>,
    /// The current membership of a change of a membership. Null if it has ended.
    organization_membership: Option<MembershipShape>,
    /// The `data` of another event. Null after the retention period. Absent for changes of users.
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

/// Rejections of the change feed.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only for /openapi.json")]
pub(super) enum ChangesRefused {
    /// `invalid_parameter`
    #[response(status = 400)]
    Parameter(Error),
    /// `unauthorized`
    #[response(status = 401, headers(("WWW-Authenticate" = String, description = "See RFC 6750.")))]
    Key(Error),
    /// `position_expired`. Read the list of users again, and continue from its `AuthKit-Sync-Position`.
    #[response(status = 410)]
    Expired(Error),
    /// `database_unavailable`
    #[response(status = 503, headers(("Retry-After" = u32, description = "Seconds to wait before a retry.")))]
    Unavailable(Error),
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
