//! Verification of an access token.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::cache::{KeyCache, NoKey};
use super::claims::{Claims, object};
use super::error::TokenError;
use super::identity::Identity;
use super::keys::KeyFingerprint;
use super::policy::TokenPolicy;
use super::text::plain;
use super::verified::{TokenHash, Verified, VerifiedTokens};
use crate::domain::clock::Clock;

/// Maximum length of a token, in bytes. A longer token is refused before it is parsed. WorkOS's JWT templates add at most 3 KiB.
const SIZE_LIMIT: usize = 16 * 1024;

/// Verifies access tokens: form, algorithm, key, signature, then time, issuer, audience, client, subject and session.
#[derive(Clone, Debug)]
pub struct TokenVerifier {
    pub(super) policy: TokenPolicy,
    pub(super) keys: KeyCache,
    pub(super) clock: Clock,
    known: VerifiedTokens,
}

impl TokenVerifier {
    /// Accepts tokens that `policy` accepts and that a key of `keys` has signed.
    #[must_use]
    pub fn new(policy: TokenPolicy, keys: KeyCache, clock: Clock) -> Self {
        Self { policy, keys, clock, known: VerifiedTokens::new() }
    }

    /// Verifies a token and returns its claims.
    ///
    /// It runs every check in order. No claim is trusted before the signature. With a known key it does not wait.
    /// [`TokenVerifier::explain`] runs the same checks and continues after the first failure.
    ///
    /// # Errors
    /// [`TokenError`]
    pub async fn verify(&self, token: &str) -> Result<Identity, TokenError> {
        Ok(self.verified(token).await?.identity.clone())
    }

    /// Verifies a token and returns its subject, the ID of a user.
    ///
    /// # Errors
    /// The same as [`TokenVerifier::verify`].
    pub async fn subject(&self, token: &str) -> Result<String, TokenError> {
        Ok(self.verified(token).await?.identity.subject.clone())
    }

    /// Verifies a token and returns its subject and the ID of its session.
    ///
    /// # Errors
    /// The same as [`TokenVerifier::verify`].
    pub(crate) async fn subject_and_session(&self, token: &str) -> Result<(String, String), TokenError> {
        let Identity { subject, session_id, .. } = &self.verified(token).await?.identity;
        Ok((subject.clone(), session_id.clone()))
    }

    /// Verifies a token, or returns the cached result if its key is still published and its times are still valid.
    async fn verified(&self, token: &str) -> Result<Arc<Verified>, TokenError> {
        Form::check_size(token)?;
        let hash = TokenHash::of(token);
        let now = self.clock.now();
        let published = |known: &Arc<Verified>| self.keys.is_published(&known.key_id, known.key, now);
        if let Some(known) = self.known.get(&hash).filter(published) {
            known.times.check(now)?;
            return Ok(known);
        }
        let form = Form::read(token)?;
        form.check_algorithm()?;
        let kid = form.key_id()?;
        let key = self.check_signature(&form, kid).await?;
        let claims = form.claims()?;
        Claims { claims: &claims, policy: &self.policy, now: self.clock.now() }.check()?;
        let verified = Arc::new(Verified::new(kid, key, &claims)?);
        self.known.insert(hash, verified.clone());
        Ok(verified)
    }

    /// Checks the signature with the key `kid`, which WorkOS must publish. Returns which key that was.
    pub(super) async fn check_signature(&self, form: &Form<'_>, kid: &str) -> Result<KeyFingerprint, TokenError> {
        match self.keys.verify(kid, form.signed.as_bytes(), &form.signature).await {
            Ok(Some(key)) => Ok(key),
            Ok(None) => {
                let reason = format!("the signature does not match key {}", plain(kid));
                Err(TokenError::invalid("wrong_signature", reason))
            }
            Err(NoKey::Unknown) => {
                let reason = format!("signed by key {}, which WorkOS does not publish for this client", plain(kid));
                Err(TokenError::invalid("unknown_key", reason))
            }
            Err(NoKey::Unavailable { retry_after }) => Err(TokenError::KeysUnavailable { retry_after }),
        }
    }
}

/// A compact JWS (RFC 7515) with decoded header and signature. The claims are decoded after the signature check.
pub(super) struct Form<'a> {
    header: Map<String, Value>,
    claims: &'a str,
    /// The signed text: header, dot, claims.
    signed: &'a str,
    signature: Vec<u8>,
}

impl<'a> Form<'a> {
    /// Refuses text that is not a JWT, and tokens that require extensions.
    pub(super) fn read(token: &'a str) -> Result<Self, TokenError> {
        Self::check_size(token)?;
        let parts = token.rsplit_once('.').and_then(|(signed, signature)| {
            let (header, claims) = signed.split_once('.')?;
            (!claims.contains('.')).then_some((signed, header, claims, signature))
        });
        let (signed, header, claims, signature) = parts
            .ok_or_else(|| TokenError::invalid("malformed", "not a JWT: it does not have three parts".to_owned()))?;
        let header = object(&decode(header, "header")?, "header")?;
        if header.contains_key("crit") {
            return Err(TokenError::invalid("malformed", "the header requires extensions (crit)".to_owned()));
        }
        Ok(Self { header, claims, signed, signature: decode(signature, "signature")? })
    }

    fn check_size(token: &str) -> Result<(), TokenError> {
        if token.len() > SIZE_LIMIT {
            return Err(TokenError::invalid("malformed", "the token is longer than 16 KiB".to_owned()));
        }
        Ok(())
    }

    /// Accepts one algorithm and ignores the other parts of the header (`jwk`, `jku`, `x5u`, `x5c`): the token does not choose how
    /// it is verified.
    pub(super) fn check_algorithm(&self) -> Result<(), TokenError> {
        match self.algorithm() {
            Some("RS256") => Ok(()),
            other => {
                let reason = format!("algorithm {} is not accepted, only RS256", plain(other.unwrap_or("missing")));
                Err(TokenError::invalid("wrong_algorithm", reason))
            }
        }
    }

    pub(super) fn algorithm(&self) -> Option<&str> {
        self.header.get("alg").and_then(Value::as_str)
    }

    pub(super) fn key_id(&self) -> Result<&str, TokenError> {
        let kid = self.header.get("kid").and_then(Value::as_str).filter(|kid| !kid.is_empty());
        kid.ok_or_else(|| TokenError::invalid("no_key_id", "the header has no key ID (kid)".to_owned()))
    }

    /// Returns the claims. The caller has checked the signature.
    pub(super) fn claims(&self) -> Result<Map<String, Value>, TokenError> {
        object(&decode(self.claims, "claims")?, "claims")
    }
}

fn decode(part: &str, name: &str) -> Result<Vec<u8>, TokenError> {
    URL_SAFE_NO_PAD
        .decode(part)
        .map_err(|_| TokenError::invalid("malformed", format!("not a JWT: its {name} is not base64url")))
}
