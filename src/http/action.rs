//! `POST /workos/action`: WorkOS asks whether a person may sign in or sign up, and waits for the verdict.
//!
//! For any status other than 200, WorkOS applies the failure setting of its dashboard, which is to deny by default. So the service
//! answers 200 only with a verdict.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use utoipa::ToSchema;

use super::error::{Rejection, no_route};
use super::request_log::LogFields;
use super::shapes::Error;
use super::signed::{self, Accepted, RETRY_AFTER};
use super::state::HttpState;
use crate::actions::Undecided;
use crate::domain::action::Action;
use crate::workos::actions::{self, NotAnAction};
use crate::workos::signature::ACTION_TOLERANCE;

/// The path of the actions endpoint.
pub const ACTION_PATH: &str = "/workos/action";

/// Maximum size of an action, in bytes. WorkOS's own examples are up to 2 KiB long. The longest parts are the metadata of the
/// user and of the organization, each at most 10 pairs of 640 ASCII characters.
///
/// The memory limit for all actions is this size times the number of connections (128 MiB for [`CONNECTIONS`](super::CONNECTIONS)).
/// So connections alone cannot fill it, and a sender without a valid signature cannot block WorkOS's requests.
pub const ACTION_BODY_LIMIT: usize = 32 * 1024;

/// Decide whether a person may sign in or sign up. WorkOS signs the request, and the service signs the answer.
#[utoipa::path(
    post,
    path = "/workos/action",
    operation_id = "decideAction",
    tag = "workos",
    security(("workos_signature" = [])),
    request_body(content = BTreeMap<String, Value>, description = "The action context, as WorkOS signed it."),
    responses(
        (status = 200, description = "The verdict.", body = AnswerShape),
        (status = 400, description = "`not_an_action`, `unknown_action`, `body_incomplete`", body = Error),
        (status = 401, description = "`signature_invalid`", body = Error),
        (status = 408, description = "`body_too_slow`", body = Error),
        (status = 413, description = "`body_too_large`", body = Error),
        (
            status = 503,
            description = "`database_unavailable`, `handler_failed`, `busy`: the service failed. WorkOS applies the \
                           failure setting of its dashboard",
            body = Error,
            headers(("Retry-After" = u32, description = "Seconds to wait before a retry."))
        )
    )
)]
pub(super) async fn decide(
    State(state): State<Arc<HttpState>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Rejection> {
    // Without an action secret the route is not mounted.
    let Some(asked) = &state.actions else { return Err(no_route().await) };
    let (bodies, secrets) = (&asked.bodies, &asked.secrets);
    let accepted = Accepted { endpoint: "action", bodies, secrets, tolerance: ACTION_TOLERANCE };
    let signed = signed::read(&state, &headers, body, accepted).await?;
    let action = actions::action(&signed.body)?;
    let decided = match asked.actions.decide(&action).await {
        Ok(decided) => decided,
        Err(undecided) => return Ok(refuse(&action, undecided)),
    };
    let answer = actions::answer(action.kind(), &decided.decision.verdict, state.clock.now(), signed.body.secret());
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    let mut response = (headers, answer).into_response();
    response.extensions_mut().insert(LogFields {
        verdict: Some(decided.decision.verdict.as_str()),
        decided_by: Some(decided.decision.decided_by),
        repeated: decided.repeated.then_some(true),
        ..LogFields::of_action(&action)
    });
    Ok(response)
}

/// A signed verdict.
#[derive(ToSchema)]
#[schema(as = ActionAnswer)]
#[expect(dead_code, reason = "the shape of crate::workos::actions::answer")]
pub(super) struct AnswerShape {
    /// `authentication_action_response` or `user_registration_action_response`
    object: String,
    payload: PayloadShape,
    /// HMAC-SHA256 of the timestamp, a dot and the payload's text, in hexadecimal.
    signature: String,
}

#[derive(ToSchema)]
#[schema(as = ActionPayload)]
#[expect(dead_code, reason = "only for /openapi.json")]
struct PayloadShape {
    /// Milliseconds since 1970-01-01T00:00:00Z.
    timestamp: u64,
    /// `Allow` or `Deny`
    verdict: String,
    /// The message for the person, only with `Deny`.
    error_message: Option<String>,
}

impl From<NotAnAction> for Rejection {
    fn from(error: NotAnAction) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error.code(), error.to_string())
    }
}

/// Answers 503, because the failure is ours, and adds the action to the log line.
fn refuse(action: &Action, undecided: Undecided) -> Response {
    let message = undecided.to_string();
    let rejection = match undecided {
        Undecided::Store(error) => error.into(),
        Undecided::Slow => {
            Rejection::unavailable("database_unavailable", message, RETRY_AFTER).because("database_slow")
        }
        Undecided::Handler(_) => Rejection::unavailable("handler_failed", message, RETRY_AFTER),
    };
    let mut response = rejection.into_response();
    let rejection = response.extensions_mut().remove::<LogFields>().and_then(|fields| fields.rejection);
    response.extensions_mut().insert(LogFields { rejection, ..LogFields::of_action(action) });
    response
}
