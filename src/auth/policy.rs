//! Which tokens are ours.

use serde_json::{Map, Value};

use super::error::TokenError;
use super::plain;

/// The issuer every WorkOS customer shares: it binds a token to nobody.
const SHARED_ISSUER: &str = "https://api.workos.com";

/// Which issuers, audiences and client a token must name.
///
/// WorkOS issues tokens in several forms: under the shared issuer or one that ends in the client id, on its own host or a
/// custom domain, with or without an audience or a `client_id`. A token is ours when its issuer is accepted, nothing in it
/// names another client, and something binds it to this one.
#[derive(Clone, Debug)]
pub struct TokenPolicy {
    client_id: String,
    issuers: Vec<String>,
    audiences: Vec<String>,
    allow_shared_issuer: bool,
}

impl TokenPolicy {
    /// Accepts the issuers WorkOS uses for this client at `api_base`, and at its own host.
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

    /// Accepts these issuers instead. Trailing slashes do not matter, everything else does.
    #[must_use]
    pub fn issuers(mut self, issuers: Vec<String>) -> Self {
        self.issuers = issuers.iter().map(|issuer| issuer.trim_end_matches('/').to_owned()).collect();
        self
    }

    /// Accepts these audiences beside the client id.
    #[must_use]
    pub fn audiences(mut self, audiences: Vec<String>) -> Self {
        self.audiences = audiences;
        self
    }

    /// Accepts tokens of the shared issuer that name no client at all.
    #[must_use]
    pub fn allow_shared_issuer(mut self, allow: bool) -> Self {
        self.allow_shared_issuer = allow;
        self
    }

    /// Checks issuer, then what binds the token to this client; returns the issuer.
    pub(super) fn check(&self, claims: &Map<String, Value>) -> Result<String, TokenError> {
        let written = claims.get("iss").and_then(Value::as_str).unwrap_or_default();
        let issuer = written.trim_end_matches('/');
        if !self.issuers.iter().any(|accepted| accepted == issuer) {
            let accepted: Vec<String> = self.issuers.iter().map(|accepted| plain(accepted)).collect();
            let said = if issuer.is_empty() { "none".to_owned() } else { plain(written) };
            return Err(TokenError::invalid(
                "wrong_issuer",
                format!("issuer {said} is not among {}; if it is yours, set WORKOS_ISSUER", accepted.join(", ")),
            ));
        }
        self.check_binding(issuer, claims)?;
        Ok(written.to_owned())
    }

    fn check_binding(&self, issuer: &str, claims: &Map<String, Value>) -> Result<(), TokenError> {
        let issuer_client = issuer.rsplit('/').next().filter(|segment| segment.starts_with("client_"));
        if let Some(other) = issuer_client.filter(|named| *named != self.client_id) {
            let reason = format!("the issuer names client {}, not {}", plain(other), self.client_id);
            return Err(TokenError::invalid("wrong_client", reason));
        }
        let claimed = claims.get("client_id");
        if let Some(other) = claimed.filter(|named| named.as_str() != Some(&self.client_id)) {
            let other = plain(other.as_str().unwrap_or("something that is no text"));
            return Err(TokenError::invalid("wrong_client", format!("client_id is {other}, not {}", self.client_id)));
        }
        let audiences = audiences(claims)?;
        let ours = |audience: &&str| *audience == self.client_id || self.audiences.iter().any(|own| own == audience);
        if !audiences.is_empty() && !audiences.iter().any(ours) {
            let accepted = std::iter::once(&self.client_id).chain(&self.audiences).map(|own| plain(own));
            let reason = format!(
                "audience {} names none of {}; if it is yours, set AUTHKIT_SYNC_AUDIENCES",
                plain(&audiences.join(" ")),
                accepted.collect::<Vec<_>>().join(", ")
            );
            return Err(TokenError::invalid("wrong_audience", reason));
        }
        let bound = issuer_client.is_some() || claimed.is_some() || !audiences.is_empty();
        // A custom domain belongs to one environment, so its bare issuer is a binding of its own.
        if bound || issuer != SHARED_ISSUER || self.allow_shared_issuer {
            return Ok(());
        }
        Err(TokenError::invalid(
            "unbound",
            format!(
                "issuer {SHARED_ISSUER} is shared by all WorkOS customers and the token names no client: give the JWT template an aud of {}, or set AUTHKIT_SYNC_ALLOW_SHARED_ISSUER",
                self.client_id
            ),
        ))
    }
}

/// `aud` as a list: absent, text, or an array of texts.
fn audiences(claims: &Map<String, Value>) -> Result<Vec<&str>, TokenError> {
    let malformed = || TokenError::invalid("wrong_audience", "aud is neither text nor a list of texts".to_owned());
    match claims.get("aud") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(audience)) => Ok(vec![audience]),
        Some(Value::Array(list)) => list.iter().map(|item| item.as_str().ok_or_else(malformed)).collect(),
        Some(_) => Err(malformed()),
    }
}
