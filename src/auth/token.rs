//! One token, judged.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::cache::{KeyCache, NoKey};
use super::error::TokenError;
use super::identity::Identity;
use super::plain;
use super::policy::TokenPolicy;
use crate::domain::clock::Clock;
use crate::domain::timestamp::Timestamp;

/// A longer token is refused unread. WorkOS's templates render at most 3 KiB.
const SIZE_LIMIT: usize = 16 * 1024;

/// How far WorkOS's clock and ours may differ, seconds.
const LEEWAY: i64 = 10;

/// Judges access tokens: form, algorithm, key, signature, then time, issuer, client, subject and session.
#[derive(Clone, Debug)]
pub struct TokenVerifier {
    policy: TokenPolicy,
    keys: KeyCache,
    clock: Clock,
}

impl TokenVerifier {
    /// Accepts what `policy` accepts and a key of `keys` signed.
    #[must_use]
    pub fn new(policy: TokenPolicy, keys: KeyCache, clock: Clock) -> Self {
        Self { policy, keys, clock }
    }

    /// Runs every check in order; no claim is believed before the signature. With a known key it neither waits nor locks.
    ///
    /// # Errors
    /// [`TokenError`]
    pub async fn verify(&self, token: &str) -> Result<Identity, TokenError> {
        let parts = Parts::split(token)?;
        let kid = parts.key_id()?;
        let signature = decode(parts.signature, "signature")?;
        match self.keys.verify(&kid, parts.signed.as_bytes(), &signature).await {
            Ok(true) => {}
            Ok(false) => {
                let reason = format!("key {} did not make this signature", plain(&kid));
                return Err(TokenError::invalid("wrong_signature", reason));
            }
            Err(NoKey::Unknown) => {
                let reason = format!("signed by key {}, which WorkOS does not publish for this client", plain(&kid));
                return Err(TokenError::invalid("unknown_key", reason));
            }
            Err(NoKey::Unavailable { retry_after }) => return Err(TokenError::KeysUnavailable { retry_after }),
        }
        let claims = object(&decode(parts.claims, "claims")?, "claims")?;
        check_times(&claims, self.clock.now())?;
        let issuer = self.policy.check(&claims)?;
        let (subject, session_id) = user_session(&claims)?;
        let acts = |name: &str| claims.get(name).is_some_and(Value::is_object);
        let impersonated = acts("act") || acts("impersonator");
        Ok(Identity { subject, issuer, session_id, impersonated, claims })
    }
}

/// The three parts of a compact JWS (RFC 7515), still encoded.
struct Parts<'a> {
    header: &'a str,
    claims: &'a str,
    signature: &'a str,
    /// What the signature is over: header, dot, claims.
    signed: &'a str,
}

impl<'a> Parts<'a> {
    fn split(token: &'a str) -> Result<Self, TokenError> {
        if token.len() > SIZE_LIMIT {
            return Err(TokenError::invalid("malformed", "longer than 16 KiB".to_owned()));
        }
        let parts = token.rsplit_once('.').and_then(|(signed, signature)| {
            let (header, claims) = signed.split_once('.')?;
            (!claims.contains('.')).then_some(Self { header, claims, signature, signed })
        });
        parts.ok_or_else(|| TokenError::invalid("malformed", "not a JWT: it has not three parts".to_owned()))
    }

    /// The key's id. The algorithm is pinned here, and whatever else the header offers (`jwk`, `jku`, `x5u`, `x5c`) is
    /// ignored: the token does not choose how it is judged.
    fn key_id(&self) -> Result<String, TokenError> {
        let header = object(&decode(self.header, "header")?, "header")?;
        match header.get("alg").and_then(Value::as_str) {
            Some("RS256") => {}
            other => {
                let reason = format!("algorithm {}, only RS256 is accepted", plain(other.unwrap_or("missing")));
                return Err(TokenError::invalid("wrong_algorithm", reason));
            }
        }
        if header.contains_key("crit") {
            return Err(TokenError::invalid("malformed", "the header demands extensions (crit)".to_owned()));
        }
        let kid = header.get("kid").and_then(Value::as_str).filter(|kid| !kid.is_empty());
        kid.map(str::to_owned)
            .ok_or_else(|| TokenError::invalid("no_key_id", "the header names no key (kid)".to_owned()))
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

/// `exp` must be there and ahead; `nbf` and `iat`, where they are, must not lie ahead.
fn check_times(claims: &Map<String, Value>, now: Timestamp) -> Result<(), TokenError> {
    let now = now.unix_seconds();
    let expires = seconds(claims, "exp")?
        .ok_or_else(|| TokenError::invalid("no_expiry", "it never expires (no exp)".to_owned()))?;
    if expires.saturating_add(LEEWAY) <= now {
        return Err(TokenError::Expired { seconds: now.saturating_sub(expires) });
    }
    for name in ["nbf", "iat"] {
        let ahead = seconds(claims, name)?.map_or(0, |at| at.saturating_sub(now));
        if ahead > LEEWAY {
            let reason = format!("not valid yet: {name} lies {ahead} s ahead; check this machine's clock");
            return Err(TokenError::invalid("not_yet_valid", reason));
        }
    }
    Ok(())
}

/// A NumericDate (RFC 7519): any JSON number of seconds that an instant can have.
fn seconds(claims: &Map<String, Value>, name: &str) -> Result<Option<i64>, TokenError> {
    let Some(value) = claims.get(name) else { return Ok(None) };
    let absurd = || TokenError::invalid("malformed", format!("{name} is not a time in seconds"));
    if let Some(whole) = value.as_i64() {
        return Ok(Some(whole));
    }
    let fraction = value.as_f64().filter(|seconds| seconds.abs() < 1e15).ok_or_else(absurd)?;
    #[expect(clippy::cast_possible_truncation, reason = "bounded above")]
    Ok(Some(fraction.floor() as i64))
}

/// The user and the session. Machine tokens are signed with the same keys, and are no user's.
fn user_session(claims: &Map<String, Value>) -> Result<(String, String), TokenError> {
    let text = |name: &str| claims.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let subject =
        text("sub").ok_or_else(|| TokenError::invalid("no_subject", "it is about nobody (no sub)".to_owned()))?;
    if subject.starts_with("client_") {
        return Err(TokenError::invalid("machine_token", "a machine token: its subject is a client".to_owned()));
    }
    let session =
        text("sid").ok_or_else(|| TokenError::invalid("no_session", "no user's session: it has no sid".to_owned()))?;
    Ok((subject.to_owned(), session.to_owned()))
}
