//! Actions on WorkOS's wire: a context in, a signed verdict out.

use super::json::{self, Object};
use super::signature::{Secret, VerifiedBody};
use super::wire::{bounded_id, usable_id};
use crate::domain::action::{Action, ActionContext, ActionKind, Invitation, Verdict};
use crate::domain::timestamp::Timestamp;

/// Why a signed body is no action. WorkOS hears 400, and its own dashboard setting decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAnAction {
    /// A kind of action we do not know: never taken for one we do.
    #[error("the body is signed, but its object is neither of the two kinds of action this release knows")]
    Unknown,
    /// Something an action cannot do without is missing.
    #[error("the body is signed, but {0}")]
    Unusable(&'static str),
}

impl NotAnAction {
    /// A short stable word for callers, metrics and logs.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Unknown => "unknown_action",
            Self::Unusable(_) => "not_an_action",
        }
    }
}

/// Reads an action's context.
///
/// # Errors
/// [`NotAnAction`]; every other oddity is normalised, as in events.
pub fn action(body: &VerifiedBody) -> Result<Action, NotAnAction> {
    let payload = body.bytes();
    let no_object = NotAnAction::Unusable("it is not a JSON object");
    let without_bom = payload.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(payload);
    let text = std::str::from_utf8(without_bom).map_err(|_| no_object)?;
    let fit = json::fit(text);
    if fit.too_deep {
        return Err(NotAnAction::Unusable("it nests deeper than 128 levels"));
    }
    let object = json::object(&fit.text).ok_or(no_object)?;
    let within = |name: &str| object.get(name).and_then(|value| json::object(value.get())).unwrap_or_default();
    let (context, person) = match json::string(object.get("object").map(|value| &**value)).as_deref() {
        Some("authentication_action_context") => {
            let user = within("user");
            (authentication(&object, &user, &within)?, user)
        }
        Some("user_registration_action_context") => {
            let invitation =
                object.get("invitation").and_then(|value| json::object(value.get())).map(|it| Invitation {
                    id: field(&it, "id"),
                    organization_id: field(&it, "organization_id"),
                    inviter_user_id: field(&it, "inviter_user_id"),
                });
            (ActionContext::UserRegistration { invitation }, within("user_data"))
        }
        _ => return Err(NotAnAction::Unknown),
    };
    let id = json::string(object.get("id").map(|value| &**value)).filter(|id| !id.is_empty());
    let email = json::string(person.get("email").map(|value| &**value)).filter(|email| !email.is_empty());
    Ok(Action {
        id: bounded_id(id.ok_or(NotAnAction::Unusable("it has no text id"))?),
        context,
        email: email.ok_or(NotAnAction::Unusable("it has no text e-mail address"))?,
        first_name: field(&person, "first_name"),
        last_name: field(&person, "last_name"),
        name: field(&person, "name"),
        ip_address: field(&object, "ip_address"),
        user_agent: field(&object, "user_agent"),
        device_fingerprint: field(&object, "device_fingerprint"),
        authentication_method: field(&object, "authentication_method"),
        payload: payload.clone(),
    })
}

fn authentication(
    object: &Object,
    user: &Object,
    within: &impl Fn(&str) -> Object,
) -> Result<ActionContext, NotAnAction> {
    let user_id = usable_id(user.get("id").map(|value| &**value));
    Ok(ActionContext::Authentication {
        user_id: user_id.ok_or(NotAnAction::Unusable("it has no text user.id"))?,
        email_verified: json::boolean(user.get("email_verified").map(|value| &**value)).unwrap_or_default(),
        external_id: field(user, "external_id"),
        organization_id: field(&within("organization"), "id"),
        organization_membership_id: field(&within("organization_membership"), "id"),
        issuer: field(object, "issuer"),
    })
}

fn field(object: &Object, name: &str) -> Option<String> {
    json::text(object.get(name).map(|value| &**value))
}

/// The body that answers an action: the verdict, signed at `at` with the secret that signed the action.
///
/// The payload's text is made once, signed, and put into the body as it is: WorkOS may compare the signature with our text or
/// with its own serialisation of it, and in this order, without spaces and with letters beyond ASCII as they are, both agree.
#[must_use]
pub fn answer(kind: ActionKind, verdict: &Verdict, at: Timestamp, secret: &Secret) -> String {
    let timestamp = at.unix_millis();
    let word = match verdict {
        Verdict::Allow => "Allow",
        Verdict::Deny { .. } => "Deny",
    };
    let message = verdict.message().map(|message| format!(",\"error_message\":{}", serde_json::Value::from(message)));
    let payload =
        format!("{{\"timestamp\":{timestamp},\"verdict\":\"{word}\"{}}}", message.as_deref().unwrap_or_default());
    let signature = secret.signature(at, payload.as_bytes());
    let object = kind.as_str();
    format!("{{\"object\":\"{object}_action_response\",\"payload\":{payload},\"signature\":\"{signature}\"}}")
}
