//! One token, explained: every check with what was found and what was expected, and what to do about the first that fails.
//!
//! The checks are [`TokenVerifier::verify`]'s own, in its order. What the token says is shown even where no signature vouches
//! for it, and marked so. The token itself, and claims that a JWT template may fill, are not shown.

use serde::Serialize;
use serde_json::{Map, Value};

use super::claims::{CHECKS, Claims, text};
use super::error::TokenError;
use super::plain;
use super::token::{Form, TokenVerifier, impersonated};
use crate::domain::decide::Stored;

/// How one check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it must be.
    Pass,
    /// Not as it must be.
    Fail,
    /// There was nothing to look at.
    Skipped,
}

/// One check of a token.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Its name, which stays.
    pub check: &'static str,
    /// How it came out.
    pub verdict: Verdict,
    /// `false` for a claim that no signature vouches for: it decides nothing.
    pub trusted: bool,
    /// What was found: short printable ASCII.
    pub found: String,
    /// What was expected.
    pub expected: String,
}

/// What the table knows of a token's subject.
#[derive(Clone, Copy, Debug)]
pub enum UserStanding<'a> {
    /// The table was asked.
    Asked(&'a Stored),
    /// There is no table to ask: the token alone decides.
    NotAsked,
    /// The table could not be asked.
    Unavailable,
}

/// Every check of one token, in order, and the verdict: the first failure's.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// `good`, `bad`, or `unknown` where the keys or the database could not be asked.
    pub verdict: &'static str,
    /// The first failure's stable word, as [`TokenError::reason`] gives it to logs and metrics.
    pub reason: Option<&'static str>,
    /// The first failure in words, as callers hear it in `WWW-Authenticate`.
    pub message: Option<String>,
    /// What to do about it.
    pub fix: Option<String>,
    /// How far this machine's clock is ahead of WorkOS's, seconds; null where that is not known.
    pub clock_ahead_seconds: Option<i64>,
    /// Every check.
    pub checks: Vec<Check>,
    /// The subject, where a signature vouches for it.
    #[serde(skip)]
    subject: Option<String>,
    #[serde(skip)]
    client_id: String,
    /// What is noted from here on may be believed.
    #[serde(skip)]
    trusted: bool,
}

impl TokenVerifier {
    /// Shows every check of the token. Those after the first failure are shown too, where they can be looked at.
    pub async fn explain(&self, token: &str) -> Explanation {
        let mut it = Explanation::new(self.policy.client_id());
        let form = Form::read(token);
        let size = format!("{} bytes", token.len());
        let three = "a JWT of at most 16 KiB: header, claims and signature, base64url, no extensions (crit)";
        let Some(form) = it.note("form", form, |form| found_or(form, &size), three) else {
            it.skip(&["algorithm", "key", "signature", "claims"]);
            it.skip(&CHECKS.map(|check| check.name));
            return it;
        };
        let algorithm = it.note(
            "algorithm",
            form.check_algorithm(),
            |_| form.algorithm().map_or_else(|| "none".to_owned(), plain),
            "RS256",
        );
        let vouched = self.explain_signature(&mut it, &form, algorithm.is_some()).await;
        it.clock_ahead_seconds = self.keys.status().clock_ahead_seconds;
        it.trusted = vouched;
        let claims = it.note("claims", form.claims(), |claims| found_or(claims, "a JSON object"), "a JSON object");
        match claims {
            Some(claims) => self.explain_claims(&mut it, &claims, vouched),
            None => it.skip(&CHECKS.map(|check| check.name)),
        }
        it
    }

    /// Whether a published key made the signature.
    async fn explain_signature(&self, it: &mut Explanation, form: &Form<'_>, ours: bool) -> bool {
        let expected = format!("a key WorkOS publishes for {}", self.policy.client_id());
        let kid = match form.key_id() {
            Ok(kid) => kid,
            Err(error) => {
                it.note("key", Err::<(), _>(error), |_| "no kid in the header".to_owned(), &expected);
                it.skip(&["signature"]);
                return false;
            }
        };
        let outcome = self.check_signature(form, kid).await;
        let name = plain(kid);
        let status = self.keys.status();
        let made = match outcome {
            Err(error @ TokenError::KeysUnavailable { .. }) => {
                let why = status.error.unwrap_or_else(|| "no answer in time".to_owned());
                let found = format!("{name}; WorkOS's keys cannot be had: {}", plain(&why));
                it.note("key", Err::<(), _>(error), |_| found, &expected);
                None
            }
            Err(error) if error.reason() == "unknown_key" => {
                let found = format!("{name}, not among the {} that WorkOS publishes", status.keys);
                it.note("key", Err::<(), _>(error), |_| found, &expected);
                None
            }
            made => {
                it.note("key", Ok(()), |_| format!("{name}, published"), &expected);
                Some(made).filter(|_| ours)
            }
        };
        let Some(made) = made else {
            it.skip(&["signature"]);
            return false;
        };
        let found =
            if made.is_ok() { "made by that key" } else { "not made by that key over this header and these claims" };
        it.note("signature", made, |_| found.to_owned(), "made by that key").is_some()
    }

    fn explain_claims(&self, it: &mut Explanation, claims: &Map<String, Value>, vouched: bool) {
        let read = Claims { claims, policy: &self.policy, now: self.clock.now() };
        for check in &CHECKS {
            let mut found = (check.found)(&read);
            match check.name {
                "expiry" => found.push_str(&it.clock()),
                "session" if impersonated(claims) => found.push_str(", impersonated"),
                _ => {}
            }
            it.note(check.name, (check.run)(&read), |_| found, &(check.expected)(&read));
        }
        let subject = text(claims, "sub");
        it.subject = (vouched && !subject.is_empty()).then(|| subject.to_owned());
    }
}

fn found_or<T>(outcome: &Result<T, TokenError>, good: &str) -> String {
    outcome.as_ref().map_or_else(ToString::to_string, |_| good.to_owned())
}

impl Explanation {
    fn new(client_id: &str) -> Self {
        Self {
            verdict: "good",
            reason: None,
            message: None,
            fix: None,
            clock_ahead_seconds: None,
            checks: Vec::new(),
            subject: None,
            client_id: client_id.to_owned(),
            trusted: true,
        }
    }

    /// Whom to look up: the subject of a token that WorkOS signed, whatever else is wrong with it.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        self.subject.as_deref()
    }

    /// Adds what the table knows of the subject: the last check.
    pub fn note_user(&mut self, standing: UserStanding<'_>) {
        let expected = "a live user";
        let add = |it: &mut Self, verdict, found: String| {
            let trusted = it.subject.is_some();
            it.checks.push(Check { check: "user", verdict, trusted, found, expected: expected.to_owned() });
        };
        let (found, reason, message) = match standing {
            UserStanding::NotAsked => return add(self, Verdict::Skipped, "DATABASE_URL is not set".to_owned()),
            _ if self.subject.is_none() => {
                return add(self, Verdict::Skipped, "nobody vouches for the subject".to_owned());
            }
            UserStanding::Asked(Stored::Live { version, .. }) => {
                let found = format!("synced, as of {}; changed at WorkOS {}", version.observed_at, version.updated_at);
                return add(self, Verdict::Pass, found);
            }
            UserStanding::Asked(Stored::Tombstone { deleted_at }) => {
                let when = deleted_at.map_or_else(String::new, |at| format!(" at {at}"));
                (format!("deleted at WorkOS{when}"), "user_deleted", "its user was deleted at WorkOS")
            }
            UserStanding::Asked(Stored::Absent) => {
                ("not synced".to_owned(), "user_not_found", "its user is not here (yet)")
            }
            UserStanding::Unavailable => {
                ("the database cannot be asked".to_owned(), "database_unavailable", "the database cannot be asked")
            }
        };
        add(self, Verdict::Fail, found);
        self.fail(reason, format!("the token is valid, but {message}"), fix(reason, &self.client_id));
    }

    /// Adds a check that was run, and gives back what came of it.
    fn note<T>(
        &mut self,
        check: &'static str,
        outcome: Result<T, TokenError>,
        found: impl FnOnce(&Result<T, TokenError>) -> String,
        expected: &str,
    ) -> Option<T> {
        let verdict = if outcome.is_ok() { Verdict::Pass } else { Verdict::Fail };
        let found = found(&outcome);
        self.checks.push(Check { check, verdict, trusted: self.trusted, found, expected: expected.to_owned() });
        outcome.map_err(|error| self.fail(error.reason(), error.to_string(), fix(error.reason(), &self.client_id))).ok()
    }

    fn skip(&mut self, checks: &[&'static str]) {
        let skipped = |check: &&'static str| Check {
            check,
            verdict: Verdict::Skipped,
            trusted: false,
            found: "nothing to look at".to_owned(),
            expected: String::new(),
        };
        self.checks.extend(checks.iter().map(skipped));
    }

    /// The first failure is the reason.
    fn fail(&mut self, reason: &'static str, message: String, fix: String) {
        if self.reason.is_none() {
            self.verdict = if reason.ends_with("_unavailable") { "unknown" } else { "bad" };
            (self.reason, self.message, self.fix) = (Some(reason), Some(message), Some(fix));
        }
    }

    /// How this machine's clock stands to WorkOS's, in words.
    fn clock(&self) -> String {
        match self.clock_ahead_seconds {
            None => String::new(),
            Some(-1..=1) => "; this machine's clock agrees with WorkOS's".to_owned(),
            Some(ahead) if ahead > 0 => format!("; this machine's clock is {ahead} s ahead of WorkOS's"),
            Some(behind) => format!("; this machine's clock is {} s behind WorkOS's", behind.unsigned_abs()),
        }
    }
}

/// What to do about a reason, in one sentence.
fn fix(reason: &str, client_id: &str) -> String {
    let fixed = match reason {
        "malformed" => {
            "give the access token itself, whole, as it stands behind `Authorization: Bearer`: no session cookie, no refresh token and no API key"
        }
        "wrong_algorithm" => "take an access token that AuthKit issued; this one was made by something else",
        "no_key_id" => "take an access token that AuthKit issued; WorkOS names its key in every one",
        "unknown_key" => {
            return format!(
                "the application signs in to another environment than {client_id}, or the key was withdrawn: compare WORKOS_CLIENT_ID on both sides, then sign in again"
            );
        }
        "wrong_signature" => "the token was changed on its way, or forged: take a fresh one, and copy it whole",
        "keys_unavailable" => {
            "let this machine reach WorkOS (WORKOS_API_HOSTNAME, WORKOS_JWKS_URL, proxy, firewall) and check WORKOS_CLIENT_ID; the token may be good"
        }
        "token_expired" => {
            "refresh the session for a new access token; if a new one is expired as well, set this machine's clock"
        }
        "no_expiry" => "take an access token that AuthKit issued; those expire",
        "not_yet_valid" => "set this machine's clock (NTP): it is behind WorkOS's",
        "wrong_issuer" => {
            "if this is your environment's custom auth domain, set WORKOS_API_HOSTNAME or WORKOS_ISSUER; else the application signs in to another environment"
        }
        "wrong_audience" => "if this audience is yours (a JWT template sets it), add it to AUTHKIT_SYNC_AUDIENCES",
        "wrong_client" => {
            return format!(
                "the token was issued to another client than {client_id}: compare WORKOS_CLIENT_ID on both sides"
            );
        }
        "unbound" => {
            return format!(
                "this environment issues tokens without an audience; add {{\"aud\": \"{client_id}\"}} to its JWT template, or set AUTHKIT_SYNC_ALLOW_SHARED_ISSUER=true"
            );
        }
        "machine_token" => "call with a signed-in user's access token; a machine's has no user to look up",
        "no_subject" | "no_session" => "call with the access token of a user's AuthKit session",
        "user_deleted" => "nothing: the account is gone at WorkOS, and its tokens are refused until they expire",
        "user_not_found" => {
            "wait for the event if the user has just signed up; else see `authkit-sync user ID` and `authkit-sync reconcile --check`"
        }
        "database_unavailable" => {
            "check DATABASE_URL, that the database answers, and that it is migrated; the token is good"
        }
        _ => "see the README, When `get_auth_user` does not answer what you expect",
    };
    fixed.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_agree_within_a_second_and_a_difference_is_named() {
        let says = |clock_ahead_seconds| Explanation { clock_ahead_seconds, ..Explanation::new("client_1") }.clock();
        assert_eq!(says(None), "");
        for agrees in -1..=1 {
            assert_eq!(says(Some(agrees)), "; this machine's clock agrees with WorkOS's");
        }
        assert_eq!(says(Some(7)), "; this machine's clock is 7 s ahead of WorkOS's");
        assert_eq!(says(Some(-7)), "; this machine's clock is 7 s behind WorkOS's");
    }
}
