//! `POST /workos/action`: WorkOS asks whether somebody may sign in or up, and waits for the answer.
//!
//! Whoever is refused an answer here leaves the attempt to what WorkOS's dashboard says about failures: deny, unless
//! somebody chose otherwise. So nothing but a decision is ever answered as one.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use utoipa::ToSchema;

use super::error::{Rejection, no_route};
use super::request_log::LogFields;
use super::shapes::Error;
use super::signed::{self, RETRY_AFTER};
use super::state::HttpState;
use crate::actions::Undecided;
use crate::domain::action::Action;
use crate::workos::actions::{self, NotAnAction};
use crate::workos::signature::ACTION_TOLERANCE;

/// Where WorkOS asks.
pub const ACTION_PATH: &str = "/workos/action";

/// The longest action, bytes: 32 KiB. WorkOS's own examples are up to 2 KiB long. The longest parts are the metadata of the
/// user and of the organization, each at most 10 pairs of 640 ASCII characters.
///
/// This times the number of connections is the memory for all actions (128 MiB for [`CONNECTIONS`](super::CONNECTIONS)), so
/// connections alone can never fill it: nobody who cannot sign can keep WorkOS from asking.
pub const ACTION_BODY_LIMIT: usize = 32 * 1024;

/// Whether somebody may sign in or up: signed by WorkOS, answered with a signature.
#[utoipa::path(
    post,
    path = "/workos/action",
    operation_id = "decideAction",
    tag = "workos",
    security(("workos_signature" = [])),
    request_body(content = BTreeMap<String, Value>, description = "the context, as WorkOS signed it"),
    responses(
        (status = 200, description = "The verdict.", body = AnswerShape),
        (status = 400, description = "`not_an_action`, `unknown_action`, `body_incomplete`", body = Error),
        (status = 401, description = "`signature_invalid`", body = Error),
        (status = 408, description = "`body_too_slow`", body = Error),
        (status = 413, description = "`body_too_large`", body = Error),
        (
            status = 503,
            description = "`database_unavailable`, `handler_failed`, `busy`: ours; what follows is the dashboard's setting",
            body = Error,
            headers(("Retry-After" = u32, description = "seconds"))
        )
    )
)]
pub(super) async fn decide(
    State(state): State<Arc<HttpState>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Rejection> {
    // Without deciders there is no such route.
    let Some(asked) = &state.actions else { return Err(no_route().await) };
    let signed = signed::read(&state, &headers, body, &asked.bodies, &asked.secrets, ACTION_TOLERANCE).await?;
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
    /// HMAC-SHA256 over the timestamp, a dot and the payload's text, in hexadecimal.
    signature: String,
}

#[derive(ToSchema)]
#[schema(as = ActionPayload)]
#[expect(dead_code, reason = "only described")]
struct PayloadShape {
    /// Milliseconds since 1970.
    timestamp: u64,
    /// `Allow` or `Deny`
    verdict: String,
    /// Why not; with `Deny` only.
    error_message: Option<String>,
}

impl From<NotAnAction> for Rejection {
    fn from(error: NotAnAction) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error.code(), error.to_string())
    }
}

/// Ours to mend, so 503; the log says which action it was.
fn refuse(action: &Action, undecided: Undecided) -> Response {
    let message = undecided.to_string();
    let refusal = match undecided {
        Undecided::Store(error) => error.into(),
        Undecided::Slow => {
            Rejection::unavailable("database_unavailable", message, RETRY_AFTER).because("database_slow")
        }
        Undecided::Handler(_) => Rejection::unavailable("handler_failed", message, RETRY_AFTER),
    };
    let mut response = refusal.into_response();
    let refused = response.extensions_mut().remove::<LogFields>().and_then(|fields| fields.refused);
    response.extensions_mut().insert(LogFields { refused, ..LogFields::of_action(action) });
    response
}
