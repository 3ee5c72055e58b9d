//! stub
#![expect(missing_docs)]
use crate::domain::clock::Clock;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use std::sync::Arc;
use std::time::Duration;
#[derive(Debug, serde::Serialize)]
pub struct Identity {
    pub subject: String,
}
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("x")]
    Expired {},
    #[error("y")]
    Invalid(String),
    #[error("z")]
    KeysUnavailable { retry_after: Duration },
}
impl TokenError {
    pub fn reason(&self) -> &'static str {
        "x"
    }
}
#[derive(Debug)]
pub struct TokenPolicy;
impl TokenPolicy {
    pub fn new(_: &str, _: &str) -> Self {
        Self
    }
    pub fn issuers(self, _: Vec<String>) -> Self {
        self
    }
    pub fn audiences(self, _: Vec<String>) -> Self {
        self
    }
    pub fn allow_shared_issuer(self, _: bool) -> Self {
        self
    }
}
pub trait KeySource: Send + Sync + 'static {
    fn fetch(&self) -> BoxFuture<'_, Result<Bytes, String>>;
}
pub struct HttpKeySource;
impl HttpKeySource {
    pub fn new(_: &str) -> Result<Self, String> {
        Ok(Self)
    }
}
impl KeySource for HttpKeySource {
    fn fetch(&self) -> BoxFuture<'_, Result<Bytes, String>> {
        Box::pin(async { Err(String::new()) })
    }
}
#[derive(Debug)]
pub struct KeyCache;
impl KeyCache {
    pub fn new(_: Arc<dyn KeySource>, _: Clock) -> Self {
        Self
    }
    pub fn status(&self) -> String {
        String::new()
    }
    pub async fn tick(&self) -> Duration {
        Duration::from_secs(1)
    }
}
#[derive(Debug)]
pub struct TokenVerifier;
impl TokenVerifier {
    pub fn new(_: TokenPolicy, _: Arc<KeyCache>, _: Clock) -> Self {
        Self
    }
    pub async fn verify(&self, _: &str) -> Result<Identity, TokenError> {
        Err(TokenError::Expired {})
    }
}
