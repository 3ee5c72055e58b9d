//! Verification of an access token.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::cache::{KeyCache, NoKey};
use super::claims::{CHECKS, Claims};
use super::error::TokenError;
use super::identity::Identity;
use super::policy::TokenPolicy;
use super::text::{plain, text};
use crate::domain::clock::Clock;

/// A longer token is refused before it is parsed. WorkOS's templates render at most 3 KiB.
const SIZE_LIMIT: usize = 16 * 1024;

/// Verifies access tokens: form, algorithm, key, signature, then time, issuer, audience, client, subject and session.
#[derive(Clone, Debug)]
pub struct TokenVerifier {
    pub(super) policy: TokenPolicy,
    pub(super) keys: KeyCache,
    pub(super) clock: Clock,
}

impl TokenVerifier {
    /// Accepts tokens that `policy` accepts and that a key of `keys` has signed.
    #[must_use]
    pub fn new(policy: TokenPolicy, keys: KeyCache, clock: Clock) -> Self {
        Self { policy, keys, clock }
    }

    /// Runs every check in order. No claim is trusted before the signature. With a known key it neither waits nor locks.
    /// [`TokenVerifier::explain`] runs the same checks and continues after the first failure.
    ///
    /// # Errors
    /// [`TokenError`]
    pub async fn verify(&self, token: &str) -> Result<Identity, TokenError> {
        let form = Form::read(token)?;
        form.check_algorithm()?;
        let kid = form.key_id()?;
        self.check_signature(&form, kid).await?;
        let claims = form.claims()?;
        let read = Claims { claims: &claims, policy: &self.policy, now: self.clock.now() };
        for check in &CHECKS {
            (check.run)(&read)?;
        }
        Ok(identity(claims))
    }

    /// Checks the signature with the key `kid`, which WorkOS must publish.
    pub(super) async fn check_signature(&self, form: &Form<'_>, kid: &str) -> Result<(), TokenError> {
        match self.keys.verify(kid, form.signed.as_bytes(), &form.signature).await {
            Ok(true) => Ok(()),
            Ok(false) => {
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

/// The claims of a token that passed every check.
fn identity(claims: Map<String, Value>) -> Identity {
    let own = |name: &str| text(&claims, name).to_owned();
    let (subject, issuer, session_id) = (own("sub"), own("iss"), own("sid"));
    let impersonated = impersonated(&claims);
    Identity { subject, issuer, session_id, impersonated, claims }
}

/// Returns true if an administrator is impersonating the user: `act` (documented) or `impersonator` (read by some SDKs).
pub(super) fn impersonated(claims: &Map<String, Value>) -> bool {
    ["act", "impersonator"].iter().any(|name| claims.get(*name).is_some_and(Value::is_object))
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
        if token.len() > SIZE_LIMIT {
            return Err(TokenError::invalid("malformed", "the token is longer than 16 KiB".to_owned()));
        }
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

fn object(json: &[u8], name: &str) -> Result<Map<String, Value>, TokenError> {
    serde_json::from_slice(json)
        .map_err(|_| TokenError::invalid("malformed", format!("not a JWT: its {name} is not a JSON object")))
}
