//! Simulates actions: WorkOS requests a verdict from the application before it completes a sign-in or sign-up, and accepts only
//! signed answers.

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

/// Timeout of the application's answer.
const ACTION_TIMEOUT: Duration = Duration::from_secs(2);

/// An attempt: with `user_id` this user signs in, without it a person signs up with `email`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Attempt {
    /// The ID of the existing user who signs in.
    pub user_id: Option<String>,
    /// The email address of the person who signs up.
    pub email: Option<String>,
    /// The ID of an earlier action, to repeat it. Default: a new ID.
    pub id: Option<String>,
}

/// The result of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ActionResult {
    /// The ID of the action.
    pub id: String,
    /// `Allow` or `Deny`. Without a valid answer `Deny`, the default of WorkOS.
    pub verdict: String,
    /// The message for the person.
    pub error_message: Option<String>,
    /// Why the answer is not valid.
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
    /// Returns the secret of actions and their answers. It is derived from the webhook secret, and differs from it.
    #[must_use]
    pub fn action_secret(&self) -> String {
        self.webhook_secret().replacen("whsec", "actsec", 1)
    }

    /// Sets the URL of the application's actions endpoint.
    pub fn set_action_endpoint(&self, url: &str) {
        *self.0.action_endpoint.lock().unwrap_or_else(PoisonError::into_inner) = Some(url.to_owned());
    }

    /// Requests a verdict on an attempt from the application.
    ///
    /// # Errors
    /// [`Fault`] if the user does not exist, no endpoint is set, or the attempt has neither a user nor an email address.
    pub async fn attempt(&self, attempt: Attempt) -> Result<ActionResult, Fault> {
        let endpoint = self.0.action_endpoint.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let endpoint =
            endpoint.ok_or_else(|| Fault::bad("no_action_endpoint", "No actions endpoint is configured."))?;
        let id = attempt.id.clone().unwrap_or_else(|| self.next_id("action"));
        let (kind, context) = self.context(&id, attempt)?;
        let answer = self.request_verdict(&endpoint, kind, &context.to_string()).await;
        let (verdict, error_message, failure) = match answer {
            Ok(payload) => (payload.verdict, payload.error_message, None),
            Err(failure) => ("Deny".to_owned(), None, Some(failure.to_string())),
        };
        Ok(ActionResult { id, verdict, error_message, failure })
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

    /// Sends the action. Accepts an answer of the right kind with a valid and recent signature.
    async fn request_verdict(&self, endpoint: &str, kind: &str, body: &str) -> Result<Payload, SimulationError> {
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
        let text = answer.text().await.map_err(|_| refuse("the connection was lost during the answer"))?;
        let answer: Answer<'_> =
            serde_json::from_str(&text).map_err(|_| refuse("the answer is not the expected JSON"))?;
        let payload: Payload =
            serde_json::from_str(answer.payload.get()).map_err(|_| refuse("the payload of the answer is malformed"))?;
        let at = Timestamp::from_unix_micros(payload.timestamp.saturating_mul(1_000));
        if answer.object != format!("{kind}_action_response") {
            return Err(refuse("the answer is for another kind of action"));
        }
        if secret.signature(at, answer.payload.get().as_bytes()) != answer.signature {
            return Err(refuse("the signature of the answer does not match"));
        }
        if self.now().unix_millis().abs_diff(payload.timestamp) > ACTION_TOLERANCE.as_millis().try_into().unwrap_or(0) {
            return Err(refuse("the signature of the answer is too old"));
        }
        if !matches!(payload.verdict.as_str(), "Allow" | "Deny") {
            return Err(refuse("the verdict is neither Allow nor Deny"));
        }
        Ok(payload)
    }
}
