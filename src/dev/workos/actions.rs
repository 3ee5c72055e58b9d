//! Actions: WorkOS asks the application before it completes a sign-in or a sign-up, and believes only what is signed.

use std::sync::PoisonError;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::fault::Fault;
use super::{SimulatedWorkos, SimulationError};
use crate::domain::timestamp::Timestamp;
use crate::workos::http::http_client;
use crate::workos::signature::{self, ACTION_TOLERANCE, Secret};

/// How long an answer is waited for.
const ACTION_TIMEOUT: Duration = Duration::from_secs(2);

/// Who tries what: with `user_id` that user signs in, without one somebody signs up with `email`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Attempt {
    /// An existing user, who signs in.
    pub user_id: Option<String>,
    /// Of somebody who signs up.
    pub email: Option<String>,
    /// An action's id, to ask once more about the same one; else a new one.
    pub id: Option<String>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Judged {
    /// The action's id.
    pub id: String,
    /// `Allow` or `Deny`; where no answer could be believed, `Deny`, as by default at WorkOS.
    pub verdict: String,
    /// What the person is told.
    pub error_message: Option<String>,
    /// Why the answer could not be believed.
    pub failure: Option<String>,
}

#[derive(Deserialize)]
struct Answer<'a> {
    object: String,
    #[serde(borrow)]
    payload: &'a RawValue,
    signature: String,
}

#[derive(Deserialize)]
struct Payload {
    timestamp: i64,
    verdict: String,
    error_message: Option<String>,
}

impl SimulatedWorkos {
    /// What actions and their answers are signed with; as lasting as the webhook secret, and not it.
    #[must_use]
    pub fn action_secret(&self) -> String {
        self.webhook_secret().replacen("whsec", "actsec", 1)
    }

    /// Asks at `url` from now on.
    pub fn set_action_endpoint(&self, url: &str) {
        *self.0.action_endpoint.lock().unwrap_or_else(PoisonError::into_inner) = Some(url.to_owned());
    }

    /// Asks whether an attempt may go on.
    ///
    /// # Errors
    /// [`Fault`] when there is no such user, nobody to ask, or nobody to ask about.
    pub async fn attempt(&self, attempt: Attempt) -> Result<Judged, Fault> {
        let endpoint = self.0.action_endpoint.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let endpoint =
            endpoint.ok_or_else(|| Fault::bad("no_action_endpoint", "No actions endpoint is configured."))?;
        let id = attempt.id.clone().unwrap_or_else(|| self.next_id("action"));
        let (kind, context) = self.context(&id, attempt)?;
        let believed = self.ask(&endpoint, kind, &context.to_string()).await;
        let (verdict, error_message, failure) = match believed {
            Ok(payload) => (payload.verdict, payload.error_message, None),
            Err(failure) => ("Deny".to_owned(), None, Some(failure.to_string())),
        };
        Ok(Judged { id, verdict, error_message, failure })
    }

    fn context(&self, id: &str, attempt: Attempt) -> Result<(&'static str, Value), Fault> {
        let mut context = json!({
            "id": id, "ip_address": "203.0.113.9", "user_agent": "Mozilla/5.0", "device_fingerprint": "fp_simulated",
            "authentication_method": "Password",
        });
        let kind = if let Some(user) = attempt.user_id {
            context["user"] = self.read(|state| state.user(&user))?;
            context["issuer"] = json!(format!("{}/user_management/{}", self.base_url(), self.client_id()));
            "authentication"
        } else {
            let email = attempt.email.ok_or_else(|| Fault::invalid("email_required", "email"))?;
            context["user_data"] =
                json!({"object": "user_data", "email": email, "first_name": "", "last_name": "", "name": null});
            "user_registration"
        };
        context["object"] = json!(format!("{kind}_action_context"));
        Ok((kind, context))
    }

    /// Asks, and believes an answer of the right kind, signed with the secret over its own payload, and fresh.
    async fn ask(&self, endpoint: &str, kind: &str, body: &str) -> Result<Payload, SimulationError> {
        let secret = Secret::new(self.action_secret());
        let refuse = |why: &str| SimulationError::new(why);
        let client = http_client().map_err(|error| refuse(&error.to_string()))?;
        let header = secret.sign(self.now(), body.as_bytes());
        let request =
            client.post(endpoint).header(signature::HEADER, header).header("content-type", "application/json");
        let answer = request.timeout(ACTION_TIMEOUT).body(body.to_owned()).send().await;
        let answer = answer.map_err(|_| refuse("the endpoint did not answer"))?;
        if answer.status().as_u16() != 200 {
            return Err(refuse(&format!("the endpoint answered {}", answer.status().as_u16())));
        }
        let text = answer.text().await.map_err(|_| refuse("the answer broke off"))?;
        let answer: Answer<'_> = serde_json::from_str(&text).map_err(|_| refuse("the answer is no answer"))?;
        let payload: Payload = serde_json::from_str(answer.payload.get()).map_err(|_| refuse("the payload is none"))?;
        let at = Timestamp::from_unix_micros(payload.timestamp.saturating_mul(1_000));
        if answer.object != format!("{kind}_action_response") {
            return Err(refuse("the answer is of another kind"));
        }
        if secret.signature(at, answer.payload.get().as_bytes()) != answer.signature {
            return Err(refuse("the answer's signature is not ours"));
        }
        if self.now().unix_millis().abs_diff(payload.timestamp) > ACTION_TOLERANCE.as_millis().try_into().unwrap_or(0) {
            return Err(refuse("the answer is stale"));
        }
        if !matches!(payload.verdict.as_str(), "Allow" | "Deny") {
            return Err(refuse("the verdict is none"));
        }
        Ok(payload)
    }
}
