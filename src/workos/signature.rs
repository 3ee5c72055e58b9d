//! WorkOS's signature on webhooks and actions.
//!
//! The header is `WorkOS-Signature: t=<unix milliseconds>, v1=<64 hex digits>` and `v1` is the HMAC-SHA256, keyed with the
//! bytes of the whole secret (a `whsec_` prefix included), over the text of `t`, a dot and the body as it was sent. A
//! body that was parsed and written again does not verify. Source: the five official SDKs and the webhook guide.

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::fmt;
use std::time::Duration;

use crate::domain::timestamp::Timestamp;

/// The header's name; compare without regard to case.
pub const HEADER: &str = "workos-signature";

/// How far `t` may lie from now by default: what every official SDK allows for webhooks.
pub const WEBHOOK_TOLERANCE: Duration = Duration::from_secs(180);

/// The same for actions.
pub const ACTION_TOLERANCE: Duration = Duration::from_secs(30);

/// A longer header is refused unread.
const HEADER_LIMIT: usize = 1024;

/// WorkOS sends one `v1`; more than a rotation could need are refused, so that a header cannot buy us work.
const SIGNATURE_LIMIT: usize = 4;

/// A body that WorkOS signed. Nothing but [`SignatureHeader::verify`] makes one, and only it can be parsed as an event or an
/// action.
#[derive(Clone)]
pub struct VerifiedBody {
    bytes: Bytes,
    secret: Secret,
}

impl VerifiedBody {
    /// The bytes as they were received.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The secret that made the signature: while rotating, the one to answer with.
    #[must_use]
    pub fn secret(&self) -> &Secret {
        &self.secret
    }
}

/// What was sent may be personal data.
impl fmt::Debug for VerifiedBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifiedBody").field("length", &self.bytes.len()).finish_non_exhaustive()
    }
}

/// Why a request is not from WorkOS, or cannot be shown to be. Safe to show: it holds nothing the sender wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// There is no signature header.
    #[error("the WorkOS-Signature header is missing")]
    Missing,
    /// There is one, in a form WorkOS never sends.
    #[error("the WorkOS-Signature header is malformed: {0}")]
    Malformed(&'static str),
    /// It was signed too long ago, or too far in the future.
    #[error(
        "the signature is {seconds} s {direction}, more than the tolerance of {tolerance} s; check this machine's clock"
    )]
    Stale {
        /// Distance from now, whole seconds.
        seconds: u64,
        /// `old` or `in the future`.
        direction: &'static str,
        /// The tolerance, whole seconds.
        tolerance: u64,
    },
    /// No configured secret made it.
    #[error("no configured secret made this signature; compare the endpoint's secret in the WorkOS dashboard")]
    Mismatch,
}

impl SignatureError {
    /// A short stable word for metrics and logs.
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

/// One signing secret. Its text never appears in `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes the secret whole, prefix included, as the WorkOS dashboard shows it.
    #[must_use]
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// How long it is, characters.
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

    /// The signature alone: 64 hex digits over the milliseconds of `at`, a dot and `body`.
    #[must_use]
    pub fn signature(&self, at: Timestamp, body: &[u8]) -> String {
        hex::encode(self.mac(&at.unix_millis().to_string(), body).finalize().into_bytes())
    }

    /// The header value WorkOS would send for `body` at `at`.
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

/// A header that has the right form and a fresh time; only the body is missing to verify it.
#[derive(Debug)]
pub struct SignatureHeader {
    t: String,
    signatures: Vec<[u8; 32]>,
}

impl SignatureHeader {
    /// Reads the header's value and checks its time: everything that can be refused before the body is read.
    ///
    /// Parts are split at commas, trimmed and split at the first `=`; `t` must be there once, all its `v1` are kept, other
    /// keys are ignored.
    ///
    /// # Errors
    /// [`SignatureError::Missing`], [`SignatureError::Malformed`] or [`SignatureError::Stale`].
    pub fn parse(value: Option<&[u8]>, now: Timestamp, tolerance: Duration) -> Result<Self, SignatureError> {
        let value = value.ok_or(SignatureError::Missing)?;
        if value.len() > HEADER_LIMIT {
            return Err(SignatureError::Malformed("longer than 1 KiB"));
        }
        let value = std::str::from_utf8(value).map_err(|_| SignatureError::Malformed("not text"))?;
        let (mut t, mut signatures) = (None, Vec::new());
        for part in value.split(',') {
            match part.trim().split_once('=') {
                Some(("t", _)) if t.is_some() => return Err(SignatureError::Malformed("more than one t")),
                Some(("t", time)) => t = Some(time),
                Some(("v1", _)) if signatures.len() == SIGNATURE_LIMIT => {
                    return Err(SignatureError::Malformed("more than four v1"));
                }
                Some(("v1", signature)) => signatures.push(decode(signature)?),
                _ => {}
            }
        }
        let t = t.ok_or(SignatureError::Malformed("no t"))?;
        if signatures.is_empty() {
            return Err(SignatureError::Malformed("no v1"));
        }
        check_time(t, now, tolerance)?;
        Ok(Self { t: t.to_owned(), signatures })
    }

    /// Compares in constant time with what each secret would have made of the body.
    ///
    /// # Errors
    /// [`SignatureError::Mismatch`] when no secret made any of the header's signatures.
    pub fn verify(&self, secrets: &[Secret], body: Bytes) -> Result<VerifiedBody, SignatureError> {
        let mut genuine = None;
        for secret in secrets {
            let mac = secret.mac(&self.t, &body);
            for signature in &self.signatures {
                if mac.clone().verify_slice(signature).is_ok() {
                    genuine = Some(secret);
                }
            }
        }
        let secret = genuine.ok_or(SignatureError::Mismatch)?.clone();
        Ok(VerifiedBody { bytes: body, secret })
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
            // Rounded up: 30 s would not be more than 30 s.
            seconds: u64::try_from(age.unsigned_abs().div_ceil(1_000)).unwrap_or(u64::MAX),
            direction: if age > 0 { "old" } else { "in the future" },
            tolerance: tolerance.as_secs(),
        });
    }
    Ok(())
}
