//! Where signing keys come from.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use reqwest::header::{AGE, DATE, HeaderMap};

use crate::domain::timestamp::Timestamp;
use crate::workos::http::{BodyError, HttpClientError, host_and_port, http_date, read_body, why, workos_client};

/// Maximum size of the document, in bytes. WorkOS's document has a few kilobytes.
const DOCUMENT_LIMIT: usize = 1024 * 1024;

/// Timeout of one fetch, from the connection to the last byte.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Fetches the current JWKS document (RFC 7517).
pub trait KeySource: Send + Sync + 'static {
    /// Fetches it once. The caller sets the timeout.
    fn fetch(&self) -> BoxFuture<'_, Result<Bytes, KeyFetchError>>;

    /// Returns WorkOS's time at its last answer, if known.
    fn date(&self) -> Option<Timestamp> {
        None
    }
}

/// Why a document could not be fetched. The text contains no personal data and no secret.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub struct KeyFetchError {
    text: String,
    is_unknown_client: bool,
}

impl KeyFetchError {
    /// Creates the error with a reason.
    #[must_use]
    pub fn new(why: impl Into<String>) -> Self {
        Self { text: why.into(), is_unknown_client: false }
    }

    /// WorkOS answered 404: it does not know the client ID.
    #[must_use]
    pub fn unknown_client() -> Self {
        Self { text: "WorkOS answered 404: the client ID is unknown".into(), is_unknown_client: true }
    }

    pub(super) fn is_unknown_client(&self) -> bool {
        self.is_unknown_client
    }
}

/// The document at a URL. The content type is ignored.
#[derive(Debug)]
pub struct HttpKeySource {
    client: reqwest::Client,
    url: reqwest::Url,
    date: ArcSwapOption<Timestamp>,
}

impl HttpKeySource {
    /// Creates a source that fetches from `url`. WorkOS's URL is `https://api.workos.com/sso/jwks/<client id>`.
    ///
    /// # Errors
    /// [`HttpClientError`] if the URL is malformed or TLS cannot be set up.
    pub fn new(url: &str) -> Result<Self, HttpClientError> {
        let url = url.parse().map_err(|_| {
            HttpClientError::new("the JWKS URL is malformed: it must be an absolute http:// or https:// URL")
        })?;
        Ok(Self { client: workos_client(&url)?, url, date: ArcSwapOption::empty() })
    }

    /// Creates a source for the URL at which WorkOS publishes the keys of this client.
    ///
    /// # Errors
    /// [`HttpClientError`], as [`HttpKeySource::new`].
    pub fn of_client(client_id: &str, api_base: &str) -> Result<Self, HttpClientError> {
        Self::new(&format!("{}/sso/jwks/{client_id}", api_base.trim_end_matches('/')))
    }

    async fn get(&self) -> Result<Bytes, KeyFetchError> {
        let host = host_and_port(&self.url);
        let failed = |why: String| KeyFetchError::new(format!("the request to {host} failed: {why}"));
        let answer = self.client.get(self.url.clone()).timeout(TIMEOUT).send().await;
        let answer = answer.map_err(|error| failed(why(&error)))?;
        self.date.store(date(answer.headers()).map(Arc::new));
        match answer.status().as_u16() {
            200 => {}
            404 => return Err(KeyFetchError::unknown_client()),
            status => return Err(failed(format!("it answered {status}"))),
        }
        read_body(answer, DOCUMENT_LIMIT).await.map_err(|error| match error {
            BodyError::TooLong => failed("the document is longer than 1 MiB".to_owned()),
            BodyError::Broken(why) => failed(why),
        })
    }
}

impl KeySource for HttpKeySource {
    fn fetch(&self) -> BoxFuture<'_, Result<Bytes, KeyFetchError>> {
        self.get().boxed()
    }

    fn date(&self) -> Option<Timestamp> {
        self.date.load().as_deref().copied()
    }
}

/// Returns the time of an answer: its `Date` plus the `Age` that a cache has added.
fn date(headers: &HeaderMap) -> Option<Timestamp> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let age = text(AGE).and_then(|age| age.trim().parse::<u32>().ok()).unwrap_or(0);
    http_date(text(DATE)?).map(|date| date.plus_seconds(i64::from(age)))
}
