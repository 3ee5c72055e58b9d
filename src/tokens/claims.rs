//! The checks of the claims of a signed token: one ordered table for the verdict and for its explanation.

use serde_json::{Map, Value};

use super::error::TokenError;
use super::policy::TokenPolicy;
use super::text::{shown, text};
use crate::domain::timestamp::Timestamp;

/// Parses the header or the claims of a token.
pub(super) fn object(json: &[u8], name: &str) -> Result<Map<String, Value>, TokenError> {
    serde_json::from_slice(json)
        .map_err(|_| TokenError::invalid("malformed", format!("not a JWT: its {name} is not a JSON object")))
}

/// Tolerated difference between WorkOS's clock and ours, seconds.
pub(super) const LEEWAY: i64 = 10;

/// The claims, and what they are compared with.
pub(super) struct Claims<'a> {
    pub(super) claims: &'a Map<String, Value>,
    pub(super) policy: &'a TokenPolicy,
    pub(super) now: Timestamp,
}

/// One check. The verdict only calls `run`; an explanation also calls `found` and `expected`.
pub(super) struct ClaimCheck {
    pub(super) name: &'static str,
    pub(super) run: fn(&Claims<'_>) -> Result<(), TokenError>,
    pub(super) found: fn(&Claims<'_>) -> String,
    pub(super) expected: fn(&Claims<'_>) -> String,
}

/// Every check of a claim, in order. The first one that fails gives the reason.
pub(super) const CHECKS: [ClaimCheck; 8] = [
    ClaimCheck {
        name: "expiry",
        run: expiry,
        found: |it| it.time("exp"),
        expected: |it| format!("exp after {} (tolerance {LEEWAY} s)", it.now),
    },
    ClaimCheck {
        name: "not_before",
        run: |it| not_ahead(it, "nbf"),
        found: |it| it.time("nbf"),
        expected: |it| format!("no nbf, or nbf before {} (tolerance {LEEWAY} s)", it.now),
    },
    ClaimCheck {
        name: "issued_at",
        run: |it| not_ahead(it, "iat"),
        found: |it| it.time("iat"),
        expected: |it| format!("no iat, or iat before {} (tolerance {LEEWAY} s)", it.now),
    },
    ClaimCheck {
        name: "issuer",
        run: |it| it.policy.check_issuer(it.claims),
        found: |it| it.shown("iss"),
        expected: |it| format!("one of {}", it.policy.accepted_issuers()),
    },
    ClaimCheck {
        name: "audience",
        run: |it| it.policy.check_audience(it.claims),
        found: |it| it.shown("aud"),
        expected: |it| format!("none, or one of {}", it.policy.accepted_audiences()),
    },
    ClaimCheck {
        name: "client",
        run: |it| it.policy.check_client(it.claims),
        found: |it| it.policy.bindings(it.claims),
        expected: |it| it.policy.expected_client(),
    },
    ClaimCheck { name: "subject", run: subject, found: |it| it.shown("sub"), expected: |_| "a user ID".to_owned() },
    ClaimCheck {
        name: "session",
        run: session,
        found: |it| it.shown("sid"),
        expected: |_| "a session ID (sid)".to_owned(),
    },
];

impl Claims<'_> {
    /// Runs every check, in order.
    pub(super) fn check(&self) -> Result<(), TokenError> {
        CHECKS.iter().try_for_each(|check| (check.run)(self))
    }

    fn time(&self, name: &str) -> String {
        match seconds(self.claims, name) {
            Ok(None) => "none".to_owned(),
            Err(_) => "not a time in seconds".to_owned(),
            Ok(Some(at)) => {
                let instant = at.checked_mul(1_000_000).map(Timestamp::from_unix_micros);
                let instant = instant.map_or_else(|| "out of range".to_owned(), |at| at.to_string());
                let away = at.saturating_sub(self.now.unix_seconds());
                let side = if away < 0 { "ago" } else { "ahead" };
                format!("{instant}, {} s {side}", away.unsigned_abs())
            }
        }
    }

    fn shown(&self, name: &str) -> String {
        shown(self.claims.get(name))
    }
}

/// The claims that are compared with the clock: seconds since 1970.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    expires: i64,
    not_before: Option<i64>,
    issued: Option<i64>,
}

impl Times {
    pub(super) fn read(claims: &Map<String, Value>) -> Result<Self, TokenError> {
        let (not_before, issued) = (seconds(claims, "nbf")?, seconds(claims, "iat")?);
        Ok(Self { expires: expires(claims)?, not_before, issued })
    }

    /// Runs those of the [`CHECKS`] that depend on the clock, in the same order.
    pub(super) fn check(&self, now: Timestamp) -> Result<(), TokenError> {
        is_current(self.expires, now)?;
        is_not_ahead("nbf", self.not_before, now)?;
        is_not_ahead("iat", self.issued, now)
    }
}

/// Checks that `exp` is present and in the future.
fn expiry(it: &Claims<'_>) -> Result<(), TokenError> {
    is_current(expires(it.claims)?, it.now)
}

fn expires(claims: &Map<String, Value>) -> Result<i64, TokenError> {
    seconds(claims, "exp")?
        .ok_or_else(|| TokenError::invalid("no_expiry", "the token has no exp, so it would never expire".to_owned()))
}

fn is_current(expires: i64, now: Timestamp) -> Result<(), TokenError> {
    let now = now.unix_seconds();
    if expires.saturating_add(LEEWAY) <= now {
        return Err(TokenError::Expired { seconds: now.saturating_sub(expires) });
    }
    Ok(())
}

/// Checks that `nbf` and `iat`, if present, are not in the future.
fn not_ahead(it: &Claims<'_>, name: &str) -> Result<(), TokenError> {
    is_not_ahead(name, seconds(it.claims, name)?, it.now)
}

fn is_not_ahead(name: &str, at: Option<i64>, now: Timestamp) -> Result<(), TokenError> {
    let ahead = at.map_or(0, |at| at.saturating_sub(now.unix_seconds()));
    if ahead > LEEWAY {
        let reason = format!("not valid yet: {name} is {ahead} s in the future; check this machine's clock");
        return Err(TokenError::invalid("not_yet_valid", reason));
    }
    Ok(())
}

/// Reads a NumericDate (RFC 7519): a JSON number of seconds.
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

/// Checks that the subject is a user. Machine tokens are signed with the same keys.
fn subject(it: &Claims<'_>) -> Result<(), TokenError> {
    match text(it.claims, "sub") {
        "" => Err(TokenError::invalid("no_subject", "the token has no sub, so it names no user".to_owned())),
        machine if machine.starts_with("client_") => Err(TokenError::invalid(
            "machine_token",
            "the token belongs to a machine: its subject is a client".to_owned(),
        )),
        _ => Ok(()),
    }
}

fn session(it: &Claims<'_>) -> Result<(), TokenError> {
    if text(it.claims, "sid").is_empty() {
        return Err(TokenError::invalid(
            "no_session",
            "the token has no sid, so it belongs to no user session".to_owned(),
        ));
    }
    Ok(())
}
