//! The explanation of a token: every check, what was found, what was expected, and what to do about the first failure.
//!
//! The checks and their order are those of [`TokenVerifier::verify`]. Claims without a valid signature are shown too and marked as
//! not trusted. The token itself and the claims of a JWT template are not shown.

use serde::Serialize;
use serde_json::{Map, Value};

use super::claims::{CHECKS, Claims};
use super::error::TokenError;
use super::identity::impersonated;
use super::text::{plain, text};
use super::token::{Form, TokenVerifier};
use crate::domain::decide::Stored;
use crate::domain::user::User;

/// The result of one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckResult {
    /// The check passed.
    Pass,
    /// The check failed.
    Fail,
    /// There was nothing to check.
    Skipped,
}

/// One check of a token.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Its stable name.
    pub check: &'static str,
    /// Its result.
    pub verdict: CheckResult,
    /// `false` for a claim without a valid signature.
    pub trusted: bool,
    /// What was found: short printable ASCII.
    pub found: String,
    /// What was expected.
    pub expected: String,
}

/// The user behind the token, in our table.
#[derive(Clone, Copy, Debug)]
pub enum UserState<'a> {
    /// The state of the row.
    Known(&'a Stored<User>),
    /// There is no database: only the token is checked.
    NotChecked,
    /// The database is unreachable.
    Unavailable,
}

/// Every check of one token, in order, and the verdict of the first failure.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// `good`, `bad`, or `unknown` if the keys or the database are unreachable.
    pub verdict: &'static str,
    /// The stable reason of the first failure, as in logs and metrics ([`TokenError::reason`]).
    pub reason: Option<&'static str>,
    /// The message of the first failure, as in the header `WWW-Authenticate`.
    pub message: Option<String>,
    /// What to do.
    pub fix: Option<String>,
    /// Seconds by which this machine's clock is ahead of WorkOS's. Null if unknown.
    pub clock_ahead_seconds: Option<i64>,
    /// Every check.
    pub checks: Vec<Check>,
    /// The subject, if the signature is valid.
    #[serde(skip)]
    subject: Option<String>,
    #[serde(skip)]
    client_id: String,
    /// The checks from here on are trusted.
    #[serde(skip)]
    trusted: bool,
}

impl TokenVerifier {
    /// Runs every check of the token, also those after the first failure if possible.
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
        let is_signed = self.explain_signature(&mut it, &form, algorithm.is_some()).await;
        it.clock_ahead_seconds = self.keys.status().clock_ahead_seconds;
        it.trusted = is_signed;
        let claims = it.note("claims", form.claims(), |claims| found_or(claims, "a JSON object"), "a JSON object");
        match claims {
            Some(claims) => self.explain_claims(&mut it, &claims, is_signed),
            None => it.skip(&CHECKS.map(|check| check.name)),
        }
        it
    }

    /// Explains the key and the signature. Returns true if the signature is valid.
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
                let why = status.error.unwrap_or_else(|| "the request timed out".to_owned());
                let found = format!("{name}; WorkOS's keys are unreachable: {}", plain(&why));
                it.note("key", Err::<(), _>(error), |_| found, &expected);
                None
            }
            Err(error) if error.reason() == "unknown_key" => {
                let found = format!("{name}, which is not one of the {} keys that WorkOS publishes", status.keys);
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
        let found = if made.is_ok() { "matches the key" } else { "does not match the key, the header and the claims" };
        it.note("signature", made, |_| found.to_owned(), "matches the key").is_some()
    }

    fn explain_claims(&self, it: &mut Explanation, claims: &Map<String, Value>, is_signed: bool) {
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
        it.subject = (is_signed && !subject.is_empty()).then(|| subject.to_owned());
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

    /// Returns the subject of a token with a valid signature, even if another check failed.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        self.subject.as_deref()
    }

    /// Adds the last check: the user in our table.
    pub fn note_user(&mut self, state: UserState<'_>) {
        let expected = "a live user";
        let add = |it: &mut Self, verdict, found: String| {
            let trusted = it.subject.is_some();
            it.checks.push(Check { check: "user", verdict, trusted, found, expected: expected.to_owned() });
        };
        let (found, reason, message) = match state {
            UserState::NotChecked => return add(self, CheckResult::Skipped, "DATABASE_URL is not set".to_owned()),
            _ if self.subject.is_none() => {
                return add(self, CheckResult::Skipped, "the subject is not trusted".to_owned());
            }
            UserState::Known(Stored::Live { version, .. }) => {
                let found = format!(
                    "synced with the state of {}; updated at WorkOS at {}",
                    version.observed_at, version.updated_at
                );
                return add(self, CheckResult::Pass, found);
            }
            UserState::Known(Stored::Tombstone { deleted_at, .. }) => {
                let when = deleted_at.map_or_else(String::new, |at| format!(" at {at}"));
                (format!("deleted at WorkOS{when}"), "user_deleted", "its user was deleted at WorkOS")
            }
            UserState::Known(Stored::Absent) => ("not synced".to_owned(), "user_not_found", "its user is not synced"),
            UserState::Unavailable => {
                ("the database is unreachable".to_owned(), "database_unavailable", "the database is unreachable")
            }
        };
        add(self, CheckResult::Fail, found);
        self.fail(reason, format!("the token is valid, but {message}"), fix(reason, &self.client_id));
    }

    /// Adds a check and returns its value.
    fn note<T>(
        &mut self,
        check: &'static str,
        outcome: Result<T, TokenError>,
        found: impl FnOnce(&Result<T, TokenError>) -> String,
        expected: &str,
    ) -> Option<T> {
        let verdict = if outcome.is_ok() { CheckResult::Pass } else { CheckResult::Fail };
        let found = found(&outcome);
        self.checks.push(Check { check, verdict, trusted: self.trusted, found, expected: expected.to_owned() });
        outcome.map_err(|error| self.fail(error.reason(), error.to_string(), fix(error.reason(), &self.client_id))).ok()
    }

    fn skip(&mut self, checks: &[&'static str]) {
        let skipped = |check: &&'static str| Check {
            check,
            verdict: CheckResult::Skipped,
            trusted: false,
            found: "nothing to check".to_owned(),
            expected: String::new(),
        };
        self.checks.extend(checks.iter().map(skipped));
    }

    /// Stores the reason of the first failure.
    fn fail(&mut self, reason: &'static str, message: String, fix: String) {
        if self.reason.is_none() {
            self.verdict = if reason.ends_with("_unavailable") { "unknown" } else { "bad" };
            (self.reason, self.message, self.fix) = (Some(reason), Some(message), Some(fix));
        }
    }

    /// Returns the difference of the clocks as text.
    fn clock(&self) -> String {
        match self.clock_ahead_seconds {
            None => String::new(),
            Some(-1..=1) => "; this machine's clock agrees with WorkOS's".to_owned(),
            Some(ahead) if ahead > 0 => format!("; this machine's clock is {ahead} s ahead of WorkOS's"),
            Some(behind) => format!("; this machine's clock is {} s behind WorkOS's", behind.unsigned_abs()),
        }
    }
}

/// Returns what to do about a failure with this reason.
fn fix(reason: &str, client_id: &str) -> String {
    let fixed = match reason {
        "malformed" => {
            "pass the whole access token, as in the header `Authorization: Bearer`. A session cookie, a refresh \
             token or an API key does not work"
        }
        "wrong_algorithm" => "use an access token from AuthKit. Another system made this one",
        "no_key_id" => "use an access token from AuthKit. Each of them has a key ID",
        "unknown_key" => {
            return format!(
                "use the same WORKOS_CLIENT_ID here ({client_id}) and in the application that signs users in, then \
                 sign in again. WorkOS may also have withdrawn the key"
            );
        }
        "wrong_signature" => "get a new token and copy all of it. This one was changed or forged",
        "keys_unavailable" => {
            "make WorkOS reachable from this machine (WORKOS_API_HOSTNAME, WORKOS_JWKS_URL, proxy, firewall) and \
             check WORKOS_CLIENT_ID. The token may be good"
        }
        "token_expired" => {
            "refresh the session to get a new access token. If a new token is expired too, correct this machine's clock"
        }
        "no_expiry" => "use an access token from AuthKit. All of them expire",
        "not_yet_valid" => "correct this machine's clock (NTP). It is behind WorkOS's",
        "wrong_issuer" => {
            "if the issuer is your custom auth domain, set WORKOS_API_HOSTNAME or WORKOS_ISSUER. Otherwise the \
             application uses another WorkOS environment"
        }
        "wrong_audience" => "if the audience is yours (a JWT template sets it), add it to AUTHKIT_SYNC_AUDIENCES",
        "wrong_client" => {
            return format!(
                "use the same WORKOS_CLIENT_ID here ({client_id}) and in the application that signs users in"
            );
        }
        "unbound" => {
            return format!(
                "add {{\"aud\": \"{client_id}\"}} to the JWT template of the environment, or set \
                 AUTHKIT_SYNC_ALLOW_SHARED_ISSUER=true. The token names no client"
            );
        }
        "machine_token" => "use the access token of a signed-in user. A machine token has no user",
        "no_subject" | "no_session" => "use the access token of a user's AuthKit session",
        "user_deleted" => "nothing. The user was deleted at WorkOS, and its tokens are refused until they expire",
        "user_not_found" => {
            "wait some seconds if the user has just signed up. Otherwise run `authkit-sync user ID` and \
             `authkit-sync reconcile --check`"
        }
        "database_unavailable" => {
            "check DATABASE_URL, that the database is running, and that it is migrated. The token is good"
        }
        _ => "read the section Troubleshoot a lookup of the guide `operating`",
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
