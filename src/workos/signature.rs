//! Verifies WorkOS's signature of webhooks and actions.
//!
//! The header is `WorkOS-Signature: t=<unix milliseconds>, v1=<64 hex digits>` and `v1` is the HMAC-SHA256, keyed with the
//! bytes of the complete secret (including a `whsec_` prefix), over the text of `t`, a dot and the raw body. A body that was
//! parsed and serialized again has another signature. Source: the five official SDKs and the webhook guide.

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::fmt;
use std::time::Duration;

use crate::domain::timestamp::Timestamp;

/// The name of the header, in lower case.
pub const HEADER: &str = "workos-signature";

/// Default tolerance for the time of a webhook's signature, as in every official SDK.
pub const WEBHOOK_TOLERANCE: Duration = Duration::from_secs(180);

/// Default tolerance for the time of an action's signature.
pub const ACTION_TOLERANCE: Duration = Duration::from_secs(30);

/// A longer header is rejected without parsing it. Bytes.
const HEADER_LIMIT: usize = 1024;

/// Maximum number of `v1` in a header. WorkOS sends one. The limit bounds the work that a header can cause.
const SIGNATURE_LIMIT: usize = 4;

/// A body with a valid signature of WorkOS. Only [`SignatureHeader::verify`] creates it, and only a `VerifiedBody` can be parsed
/// as an event or an action.
#[derive(Clone)]
pub struct VerifiedBody {
    bytes: Bytes,
    secret: Secret,
    position: usize,
}

impl VerifiedBody {
    /// Returns the raw body.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Returns the secret that verified the signature. During a rotation, the answer to an action must be signed with it.
    #[must_use]
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// Returns the position of that secret among those given, from 0.
    #[must_use]
    pub fn position(&self) -> usize {
        self.position
    }
}

/// Shows only the length, because the body can contain personal data.
impl fmt::Debug for VerifiedBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifiedBody").field("length", &self.bytes.len()).finish_non_exhaustive()
    }
}

/// Why a signature was rejected. The message contains nothing that the sender wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The request has no signature header.
    #[error("the WorkOS-Signature header is missing")]
    Missing,
    /// The header has a format that WorkOS never sends.
    #[error("the WorkOS-Signature header is malformed: {0}")]
    Malformed(&'static str),
    /// The signature is too old, or too far in the future.
    #[error(
        "the signature is {seconds} s {direction}, more than the tolerance of {tolerance} s; check this machine's clock"
    )]
    Stale {
        /// Difference from the current time, in seconds.
        seconds: u64,
        /// `old` or `in the future`.
        direction: &'static str,
        /// The tolerance, in seconds.
        tolerance: u64,
    },
    /// No configured secret matches the signature.
    #[error(
        "the signature matches no configured secret; compare the secret with the endpoint's in the WorkOS dashboard"
    )]
    Mismatch,
}

impl SignatureError {
    /// Returns the stable reason for metrics and logs.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Missing => "signature_missing",
            Self::Malformed(_) => "signature_malformed",
            Self::Stale { .. } => "signature_stale",
            Self::Mismatch => "signature_mismatch",
        }
    }
}

/// A signing secret. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Creates a secret from the complete text that the WorkOS dashboard shows, including the prefix.
    #[must_use]
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// Returns its length in characters.
    pub(crate) fn length(&self) -> usize {
        self.0.chars().count()
    }

    fn mac(&self, t: &str, body: &[u8]) -> Hmac<Sha256> {
        #[expect(clippy::expect_used, reason = "HMAC takes a key of any length")]
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.as_bytes()).expect("HMAC takes a key of any length");
        mac.update(t.as_bytes());
        mac.update(b".");
        mac.update(body);
        mac
    }

    /// Returns the signature, 64 hex digits, of `body` at the time `at`.
    #[must_use]
    pub fn signature(&self, at: Timestamp, body: &[u8]) -> String {
        hex::encode(self.mac(&at.unix_millis().to_string(), body).finalize().into_bytes())
    }

    /// Returns the header value that WorkOS sends for `body` at the time `at`.
    #[must_use]
    pub fn sign(&self, at: Timestamp, body: &[u8]) -> String {
        format!("t={}, v1={}", at.unix_millis(), self.signature(at, body))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A well-formed header with a recent time. The signature itself is not verified yet, because that needs the body.
#[derive(Debug)]
pub struct SignatureHeader {
    t: String,
    signatures: Vec<[u8; 32]>,
}

impl SignatureHeader {
    /// Parses the header and checks its time, before the body is read.
    ///
    /// Parts are separated by commas. Exactly one `t` is required, and at least one `v1`. Other keys are ignored.
    ///
    /// # Errors
    /// [`SignatureError::Missing`], [`SignatureError::Malformed`] or [`SignatureError::Stale`].
    pub fn parse(value: Option<&[u8]>, now: Timestamp, tolerance: Duration) -> Result<Self, SignatureError> {
        let value = value.ok_or(SignatureError::Missing)?;
        if value.len() > HEADER_LIMIT {
            return Err(SignatureError::Malformed("it is longer than 1 KiB"));
        }
        let value = std::str::from_utf8(value).map_err(|_| SignatureError::Malformed("it is not UTF-8"))?;
        let (mut t, mut signatures) = (None, Vec::new());
        for part in value.split(',') {
            match part.trim().split_once('=') {
                Some(("t", _)) if t.is_some() => return Err(SignatureError::Malformed("it has more than one t")),
                Some(("t", time)) => t = Some(time),
                Some(("v1", _)) if signatures.len() == SIGNATURE_LIMIT => {
                    return Err(SignatureError::Malformed("it has more than four v1"));
                }
                Some(("v1", signature)) => signatures.push(decode(signature)?),
                _ => {}
            }
        }
        let t = t.ok_or(SignatureError::Malformed("it has no t"))?;
        if signatures.is_empty() {
            return Err(SignatureError::Malformed("it has no v1"));
        }
        check_time(t, now, tolerance)?;
        Ok(Self { t: t.to_owned(), signatures })
    }

    /// Verifies the signature of the body with each secret, in constant time.
    ///
    /// # Errors
    /// [`SignatureError::Mismatch`] if no secret matches any signature of the header.
    pub fn verify(&self, secrets: &[Secret], body: Bytes) -> Result<VerifiedBody, SignatureError> {
        let mut genuine = None;
        for (position, secret) in secrets.iter().enumerate() {
            let mac = secret.mac(&self.t, &body);
            for signature in &self.signatures {
                if mac.clone().verify_slice(signature).is_ok() {
                    genuine = Some((position, secret));
                }
            }
        }
        let (position, secret) = genuine.ok_or(SignatureError::Mismatch)?;
        Ok(VerifiedBody { bytes: body, secret: secret.clone(), position })
    }
}

fn decode(signature: &str) -> Result<[u8; 32], SignatureError> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(signature, &mut bytes).map_err(|_| SignatureError::Malformed("v1 is not 64 hex digits"))?;
    Ok(bytes)
}

fn check_time(t: &str, now: Timestamp, tolerance: Duration) -> Result<(), SignatureError> {
    if t.is_empty() || !t.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(SignatureError::Malformed("t is not a number"));
    }
    let t: i64 = t.parse().map_err(|_| SignatureError::Malformed("t is not a number of milliseconds"))?;
    let age = i128::from(now.unix_millis()) - i128::from(t);
    if age.unsigned_abs() > tolerance.as_millis() {
        return Err(SignatureError::Stale {
            // Rounded up, so that the message does not say that 30 s is more than the tolerance of 30 s.
            seconds: u64::try_from(age.unsigned_abs().div_ceil(1_000)).unwrap_or(u64::MAX),
            direction: if age > 0 { "old" } else { "in the future" },
            tolerance: tolerance.as_secs(),
        });
    }
    Ok(())
}
