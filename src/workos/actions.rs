//! The wire format of actions: parses the context, and signs the verdict.

use super::json::{self, Object};
use super::signature::{Secret, VerifiedBody};
use super::wire::{bounded_id, usable_id};
use crate::domain::action::{Action, ActionContext, ActionKind, Invitation, Verdict};
use crate::domain::timestamp::Timestamp;

/// The signed body is not an action. The service answers 400, and WorkOS applies the failure setting of the dashboard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAnAction {
    /// The kind of action is unknown.
    #[error("the signature is valid, but `object` is not a kind of action that this release knows")]
    Unknown,
    /// A required field is missing, or the body cannot be parsed.
    #[error("the signature is valid, but the body cannot be used: {0}")]
    Unusable(&'static str),
}

impl NotAnAction {
    /// Returns the stable code for callers, metrics and logs.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Unknown => "unknown_action",
            Self::Unusable(_) => "not_an_action",
        }
    }
}

/// Parses an action.
///
/// # Errors
/// [`NotAnAction`]. Unexpected values of other fields are normalized, as in events.
pub fn action(body: &VerifiedBody) -> Result<Action, NotAnAction> {
    let payload = body.bytes();
    let no_object = NotAnAction::Unusable("it is not a JSON object");
    let without_bom = payload.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(payload);
    let text = std::str::from_utf8(without_bom).map_err(|_| no_object)?;
    let sanitized = json::sanitize(text);
    if sanitized.too_deep {
        return Err(NotAnAction::Unusable("it nests deeper than 128 levels"));
    }
    let object = json::object(&sanitized.text).ok_or(no_object)?;
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
        id: bounded_id(id.ok_or(NotAnAction::Unusable("`id` is missing or is not text"))?),
        context,
        email: email.ok_or(NotAnAction::Unusable("the email address is missing or is not text"))?,
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
        user_id: user_id.ok_or(NotAnAction::Unusable("`user.id` is missing or is not text"))?,
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

/// Returns the body of the answer: the verdict, signed at `at` with the secret that signed the action.
///
/// The signed text is copied into the body unchanged. WorkOS may verify the signature over this text or over its own
/// serialization of the payload. With this field order, without spaces, and with non-ASCII letters unescaped, both are equal.
#[must_use]
pub fn answer(kind: ActionKind, verdict: &Verdict, at: Timestamp, secret: &Secret) -> String {
    let timestamp = at.unix_millis();
    let verdict_name = match verdict {
        Verdict::Allow => "Allow",
        Verdict::Deny { .. } => "Deny",
    };
    let message = verdict.message().map(|message| format!(",\"error_message\":{}", serde_json::Value::from(message)));
    let payload = format!(
        "{{\"timestamp\":{timestamp},\"verdict\":\"{verdict_name}\"{}}}",
        message.as_deref().unwrap_or_default()
    );
    let signature = secret.signature(at, payload.as_bytes());
    let object = kind.as_str();
    format!("{{\"object\":\"{object}_action_response\",\"payload\":{payload},\"signature\":\"{signature}\"}}")
}
