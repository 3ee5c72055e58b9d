//! WorkOS's API for webhook endpoints, and a probe that checks whether a URL leads to this service.
//!
//! Facts about the API: WIRE 7. Its emulator sends `enabled` instead of `status` and masks the secret after the creation.

use std::fmt;

use bytes::Bytes;
use reqwest::Method;
use serde::Deserialize;
use serde_json::json;

use super::api::{Api, ApiError};
use super::http::{guarded_client, read_body, why};
use super::signature::{self, Secret};
use crate::domain::timestamp::Timestamp;

/// Maximum number of pages of endpoints.
const MAX_PAGES: usize = 20;

/// Maximum size of the answer to a probe, in bytes.
const PROBE_ANSWER_LIMIT: usize = 64 * 1024;

/// The body of a probe. It is signed and is not an event, so this service answers 400 `not_an_event` and stores nothing.
const PROBE_BODY: &[u8] = br#"{"object":"authkit_sync_probe"}"#;

/// A webhook endpoint at WorkOS.
#[derive(Clone, Deserialize)]
pub struct WebhookEndpoint {
    /// WorkOS's ID.
    pub id: String,
    /// The URL that receives the events.
    #[serde(alias = "url")]
    pub endpoint_url: String,
    /// The types that it receives.
    #[serde(default)]
    pub events: Vec<String>,
    #[serde(default)]
    status: Option<String>,
    #[serde(default)]
    enabled: Option<bool>,
    #[serde(default)]
    secret: Option<String>,
    #[serde(default)]
    created_at: Option<String>,
}

/// Shows no secret.
impl fmt::Debug for WebhookEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookEndpoint").field("id", &self.id).field("url", &self.endpoint_url).finish_non_exhaustive()
    }
}

impl WebhookEndpoint {
    /// Returns whether WorkOS sends events to it.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.status.as_deref().map_or(self.enabled.unwrap_or(true), |status| status == "enabled")
    }

    /// Returns the complete signing secret, if WorkOS shows it.
    #[must_use]
    pub fn secret(&self) -> Option<&str> {
        let is_complete =
            |secret: &&str| secret.len() >= 16 && secret.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'*');
        self.secret.as_deref().filter(is_complete).filter(|secret| !secret.contains("..."))
    }

    /// Returns when it was created.
    #[must_use]
    pub fn created_at(&self) -> Option<Timestamp> {
        self.created_at.as_deref().and_then(Timestamp::parse)
    }

    /// Returns the types of `wanted` that it does not receive.
    #[must_use]
    pub fn missing<'a>(&self, wanted: &[&'a str]) -> Vec<&'a str> {
        wanted.iter().copied().filter(|name| !self.events.iter().any(|event| event == name)).collect()
    }
}

#[derive(Deserialize)]
struct Page {
    data: Vec<WebhookEndpoint>,
    #[serde(default)]
    list_metadata: Metadata,
}

#[derive(Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    after: Option<String>,
}

impl Api {
    /// Returns every webhook endpoint of the environment.
    ///
    /// # Errors
    /// [`ApiError`]
    pub async fn webhook_endpoints(&self) -> Result<Vec<WebhookEndpoint>, ApiError> {
        let (mut endpoints, mut after) = (Vec::new(), None::<String>);
        for _ in 0..MAX_PAGES {
            let mut url = self.url(&["webhook_endpoints"]);
            url.query_pairs_mut().append_pair("limit", "100");
            if let Some(after) = &after {
                url.query_pairs_mut().append_pair("after", after);
            }
            let page: Page = self.call(Method::GET, url, None).await?;
            endpoints.extend(page.data);
            match page.list_metadata.after {
                Some(next) if after.as_ref() != Some(&next) => after = Some(next),
                _ => break,
            }
        }
        Ok(endpoints)
    }

    /// Creates a webhook endpoint. Only this answer reliably contains its secret.
    ///
    /// # Errors
    /// [`ApiError`]
    pub async fn create_webhook_endpoint(&self, url: &str, events: &[&str]) -> Result<WebhookEndpoint, ApiError> {
        let body = json!({"endpoint_url": url, "events": events});
        self.call(Method::POST, self.url(&["webhook_endpoints"]), Some(body)).await
    }

    /// Sets the event types of a webhook endpoint, and enables it.
    ///
    /// # Errors
    /// [`ApiError`]
    pub async fn update_webhook_endpoint(&self, id: &str, events: &[&str]) -> Result<WebhookEndpoint, ApiError> {
        let body = json!({"events": events, "status": "enabled"});
        self.call(Method::PATCH, self.url(&["webhook_endpoints", id]), Some(body)).await
    }
}

/// The answer of an endpoint to a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeAnswer {
    /// The HTTP status.
    pub status: u16,
    /// The error code of this service. Empty if the answer has another format.
    pub code: String,
    /// The error message of this service.
    pub message: String,
}

#[derive(Default, Deserialize)]
struct ErrorBody {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// Posts a signed body that is not an event to the URL. Like WorkOS, it follows no redirects.
///
/// # Errors
/// Why there was no answer.
pub async fn probe(url: &str, secret: &Secret, now: Timestamp) -> Result<ProbeAnswer, String> {
    let client = guarded_client(true).map_err(|error| error.to_string())?;
    let request = client.post(url).header(signature::HEADER, secret.sign(now, PROBE_BODY));
    let request = request.header("content-type", "application/json").body(Bytes::from_static(PROBE_BODY));
    let answer = request
        .send()
        .await
        .map_err(|error| if error.is_builder() { "the URL is malformed".to_owned() } else { why(&error) })?;
    let status = answer.status().as_u16();
    let body = read_body(answer, PROBE_ANSWER_LIMIT).await.unwrap_or_else(|_| Bytes::new());
    let ErrorBody { code, message } = serde_json::from_slice(&body).unwrap_or_default();
    let plain = |text: String| text.chars().filter(|char| char.is_ascii_graphic() || *char == ' ').take(200).collect();
    Ok(ProbeAnswer { status, code: plain(code), message: plain(message) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(text: &str) -> WebhookEndpoint {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn an_endpoint_of_workos_and_one_of_its_emulator_are_read() {
        let real = endpoint(include_str!("../../tests/fixtures/webhook_endpoint.created.json"));
        assert!(real.is_enabled() && real.secret() == Some("whsec_ExampleOnly0000000000000"));
        assert_eq!(real.missing(&["user.created", "session.created"]), ["session.created"]);
        assert!(!format!("{real:?}").contains("whsec_"));
        let emulated =
            endpoint(r#"{"id":"we_1","url":"https://a.test/","enabled":false,"secret":"whsec_****************1234"}"#);
        assert_eq!((emulated.is_enabled(), emulated.secret(), emulated.created_at()), (false, None, None));
    }
}
