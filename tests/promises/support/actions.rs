//! Actions as WorkOS sends them, and decision endpoints.

use std::time::Duration;

use authkit_sync::action_endpoint::{ActionEndpoint, OnFailure};
use authkit_sync::authkit::Builder;
use authkit_sync::domain::action_rules::Rules;
use authkit_sync::workos::signature::Secret;
use bytes::Bytes;
use serde_json::{Value, json};

use super::events::{unique, user};
use super::service::{Answer, Service};

/// The action secret of test services.
pub(crate) const ACTION_SECRET: &str = "actsec_01_different_from_webhook_secret";

/// The secret of test endpoints.
pub(crate) const ENDPOINT_SECRET: &str = "an-endpoint-secret-of-at-least-32-characters";

pub(crate) fn secrets() -> Vec<Secret> {
    vec![Secret::new(ACTION_SECRET)]
}

/// A sign-up.
pub(crate) fn registration(id: &str, email: &str) -> Bytes {
    let person =
        json!({"object": "user_data", "email": email, "first_name": "New", "last_name": "Personal", "name": null});
    context(json!({"object": "user_registration_action_context", "id": id, "user_data": person}))
}

/// A sign-in of a user with the address `<user>@example.test`.
pub(crate) fn authentication(id: &str, user_id: &str) -> Bytes {
    context(json!({"object": "authentication_action_context", "id": id, "user": user(user_id, "Ada", 0)}))
}

fn context(mut context: Value) -> Bytes {
    context["ip_address"] = json!("203.0.113.9");
    context["user_agent"] = json!("Personal/1.0");
    Bytes::from(context.to_string())
}

/// Returns a unique action ID.
pub(crate) fn fresh() -> String {
    unique("action")
}

/// An endpoint on this machine.
pub(crate) fn endpoint(url: &str, on_failure: OnFailure) -> ActionEndpoint {
    let secret = Secret::new(ENDPOINT_SECRET);
    ActionEndpoint {
        url: url.to_owned(),
        secret,
        on_failure,
        timeout: Duration::from_secs(30),
        private_addresses: true,
    }
}

impl Service {
    /// Sends an action as WorkOS does.
    pub(crate) async fn act(&self, body: &Bytes) -> Answer {
        self.act_signed(body, Some(&Secret::new(ACTION_SECRET).sign(self.clock.now(), body))).await
    }

    /// Sends an action with the given signature header, or without one.
    pub(crate) async fn act_signed(&self, body: &Bytes, header: Option<&str>) -> Answer {
        let mut request = self.client.post(self.url("/workos/action")).body(body.clone());
        if let Some(header) = header {
            request = request.header("WorkOS-Signature", header);
        }
        Answer::of(request.send().await.unwrap()).await
    }

    /// Returns the verdict and the message for the person.
    pub(crate) async fn verdict(&self, body: &Bytes) -> (String, Option<String>) {
        let answer = self.act(body).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let payload = answer.json()["payload"].clone();
        let text = |name: &str| payload[name].as_str().map(str::to_owned);
        (text("verdict").unwrap(), text("error_message"))
    }

    /// Returns the metrics.
    pub(crate) async fn metrics(&self) -> String {
        super::service::http_ok(&format!("http://{}/metrics", self.ops)).await
    }
}

/// A rule with a message.
pub(crate) const GMAIL: &str = "deny registration @gmail.com \"Please sign up with your work address.\"";

/// Settings with these rules.
pub(crate) fn rules(text: &str) -> impl FnOnce(Builder) -> Builder + use<> {
    let rules: Rules = text.parse().unwrap();
    move |builder| builder.action_secrets(secrets()).action_rules(rules)
}

/// A verdict as `Service::verdict` returns it.
pub(crate) fn allowed() -> (String, Option<String>) {
    ("Allow".to_owned(), None)
}

/// A denial with a message, as `Service::verdict` returns it.
pub(crate) fn denied(message: &str) -> (String, Option<String>) {
    ("Deny".to_owned(), Some(message.to_owned()))
}
