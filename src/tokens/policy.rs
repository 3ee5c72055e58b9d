//! Which issuers, audiences and clients are accepted.

use serde_json::{Map, Value};

use super::error::TokenError;
use super::text::{plain, shown, text};

/// The issuer that all WorkOS customers share. It does not say which environment a token belongs to.
const SHARED_ISSUER: &str = "https://api.workos.com";

/// Which issuers, audiences and client a token must name.
///
/// WorkOS issues tokens in several forms: with the shared issuer or one that ends with the client ID, on its own host or a custom
/// domain, with or without an audience and a `client_id`. A token is accepted if its issuer is accepted, nothing in it names
/// another client, and something in it names this client.
#[derive(Clone, Debug)]
pub struct TokenPolicy {
    client_id: String,
    issuers: Vec<String>,
    audiences: Vec<String>,
    allow_shared_issuer: bool,
}

impl TokenPolicy {
    /// Accepts the issuers that WorkOS uses for this client at `api_base` and at its own host.
    #[must_use]
    pub fn new(client_id: &str, api_base: &str) -> Self {
        let mut issuers = Vec::new();
        for base in [api_base.trim_end_matches('/'), SHARED_ISSUER] {
            for issuer in [base.to_owned(), format!("{base}/user_management/{client_id}")] {
                if !issuers.contains(&issuer) {
                    issuers.push(issuer);
                }
            }
        }
        Self { client_id: client_id.to_owned(), issuers, audiences: Vec::new(), allow_shared_issuer: false }
    }

    /// Accepts these issuers instead, if there are any. Trailing slashes are ignored.
    #[must_use]
    pub fn issuers(mut self, issuers: Vec<String>) -> Self {
        if issuers.is_empty() {
            return self;
        }
        self.issuers = issuers.iter().map(|issuer| issuer.trim_end_matches('/').to_owned()).collect();
        self
    }

    /// Accepts these audiences in addition to the client ID.
    #[must_use]
    pub fn audiences(mut self, audiences: Vec<String>) -> Self {
        self.audiences = audiences;
        self
    }

    /// Accepts tokens of the shared issuer that name no client.
    #[must_use]
    pub fn allow_shared_issuer(mut self, allow: bool) -> Self {
        self.allow_shared_issuer = allow;
        self
    }

    /// Returns the issuer without trailing slashes.
    fn issuer(claims: &Map<String, Value>) -> &str {
        text(claims, "iss").trim_end_matches('/')
    }

    /// Checks that the issuer is accepted.
    pub(super) fn check_issuer(&self, claims: &Map<String, Value>) -> Result<(), TokenError> {
        let issuer = Self::issuer(claims);
        if self.issuers.iter().any(|accepted| accepted == issuer) {
            return Ok(());
        }
        let said = if issuer.is_empty() { "none".to_owned() } else { plain(text(claims, "iss")) };
        let accepted = self.accepted_issuers();
        let reason = format!("issuer {said} is not accepted (accepted: {accepted}); if it is yours, set WORKOS_ISSUER");
        Err(TokenError::invalid("wrong_issuer", reason))
    }

    /// Checks that the audience, if present, is accepted.
    pub(super) fn check_audience(&self, claims: &Map<String, Value>) -> Result<(), TokenError> {
        let ours = |audience: &str| audience == self.client_id || self.audiences.iter().any(|own| own == audience);
        let good = match claims.get("aud") {
            None | Some(Value::Null) => true,
            Some(Value::String(audience)) => ours(audience),
            Some(Value::Array(list)) if list.iter().all(Value::is_string) => {
                list.is_empty() || list.iter().filter_map(Value::as_str).any(ours)
            }
            Some(_) => {
                let reason = "aud is neither text nor a list of text".to_owned();
                return Err(TokenError::invalid("wrong_audience", reason));
            }
        };
        if good {
            return Ok(());
        }
        let (said, accepted) = (shown(claims.get("aud")), self.accepted_audiences());
        let reason = format!(
            "audience {said} is not accepted (accepted: {accepted}); if it is yours, set AUTHKIT_SYNC_AUDIENCES"
        );
        Err(TokenError::invalid("wrong_audience", reason))
    }

    /// Checks that nothing names another client, and that something names this client.
    pub(super) fn check_client(&self, claims: &Map<String, Value>) -> Result<(), TokenError> {
        let issuer = Self::issuer(claims);
        if let Some(other) = client_of(issuer).filter(|named| *named != self.client_id) {
            let reason = format!("the issuer names client {}, not {}", plain(other), self.client_id);
            return Err(TokenError::invalid("wrong_client", reason));
        }
        let claimed = claims.get("client_id");
        if let Some(other) = claimed.filter(|named| named.as_str() != Some(&self.client_id)) {
            let other = plain(other.as_str().unwrap_or("not text"));
            return Err(TokenError::invalid("wrong_client", format!("client_id is {other}, not {}", self.client_id)));
        }
        // A custom domain belongs to one environment, so its issuer is enough.
        let bound = client_of(issuer).is_some() || claimed.is_some() || has_audience(claims);
        if bound || issuer != SHARED_ISSUER || self.allow_shared_issuer {
            return Ok(());
        }
        Err(TokenError::invalid(
            "unbound",
            format!(
                "issuer {SHARED_ISSUER} is shared by all WorkOS customers and the token names no client; add aud {} \
                 to the JWT template, or set AUTHKIT_SYNC_ALLOW_SHARED_ISSUER",
                self.client_id
            ),
        ))
    }

    pub(super) fn client_id(&self) -> &str {
        &self.client_id
    }

    /// Returns the accepted issuers for a message.
    pub(super) fn accepted_issuers(&self) -> String {
        self.issuers.iter().map(|issuer| plain(issuer)).collect::<Vec<_>>().join(", ")
    }

    /// Returns the accepted audiences for a message.
    pub(super) fn accepted_audiences(&self) -> String {
        let accepted = std::iter::once(&self.client_id).chain(&self.audiences);
        accepted.map(|own| plain(own)).collect::<Vec<_>>().join(", ")
    }

    /// Returns the claims that name a client, for a message.
    pub(super) fn bindings(&self, claims: &Map<String, Value>) -> String {
        let issuer = Self::issuer(claims);
        let by_issuer = client_of(issuer).map(|client| format!("issuer of {}", plain(client)));
        let claimed = claims.get("client_id").map(|claimed| format!("client_id {}", shown(Some(claimed))));
        let audience = has_audience(claims).then(|| "an audience".to_owned());
        let host = (issuer != SHARED_ISSUER && self.check_issuer(claims).is_ok())
            .then(|| "the issuer of a custom domain".to_owned());
        let named: Vec<String> = [by_issuer, claimed, audience].into_iter().flatten().collect();
        if named.is_empty() { host.unwrap_or_else(|| "nothing names a client".to_owned()) } else { named.join(", ") }
    }

    /// Returns the expected client for a message.
    pub(super) fn expected_client(&self) -> String {
        let unbound = if self.allow_shared_issuer { ", or no client" } else { "" };
        format!("{} named by issuer, client_id or audience{unbound}", self.client_id)
    }
}

/// Returns the client ID at the end of an issuer.
fn client_of(issuer: &str) -> Option<&str> {
    issuer.rsplit('/').next().filter(|segment| segment.starts_with("client_"))
}

/// Returns true if the token has an audience. Another check has accepted it.
fn has_audience(claims: &Map<String, Value>) -> bool {
    match claims.get("aud") {
        Some(Value::Array(list)) => !list.is_empty(),
        audience => audience.is_some_and(Value::is_string),
    }
}
