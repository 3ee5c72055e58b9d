//! The result of one check.

use std::fmt::Display;

use serde::Serialize;

use crate::store::StoreError;

/// The result of a check. After a failure, data may be incomplete, or an operator must act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    Ok,
    Warning,
    Failure,
}

impl State {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failure => "failure",
        }
    }
}

/// What was checked, what was found, and what to do.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Check {
    pub(crate) name: String,
    pub(crate) state: State,
    pub(crate) text: String,
    pub(crate) fix: Option<String>,
}

impl Check {
    pub(crate) fn ok(name: &str, text: impl Into<String>) -> Self {
        Self { name: name.to_owned(), state: State::Ok, text: text.into(), fix: None }
    }

    pub(crate) fn warning(name: &str, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { state: State::Warning, fix: Some(fix.into()), ..Self::ok(name, text) }
    }

    pub(crate) fn failure(name: &str, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { state: State::Failure, fix: Some(fix.into()), ..Self::ok(name, text) }
    }

    /// Creates the result of a check that needs something else to work first. Another check reports that.
    pub(crate) fn not_checked(name: &str, why: &str) -> Self {
        Self { state: State::Warning, ..Self::ok(name, format!("not checked, because {why}")) }
    }

    /// Returns whether the checked part can be used by other checks.
    pub(crate) fn is_usable(&self) -> bool {
        self.state == State::Ok || (self.state == State::Warning && self.fix.is_some())
    }

    /// Creates a check that fails because of the database.
    pub(crate) fn of_store(name: &str, error: &StoreError) -> Self {
        match error.failure() {
            Some(failure) => Self::failure(name, failure.what(), failure.fix()),
            None => Self::of_message(name, &error.to_string()),
        }
    }

    /// Creates a failed check from a message of the form "what failed; what to do".
    pub(crate) fn of_message(name: &str, message: &str) -> Self {
        match message.split_once("; ") {
            Some((text, fix)) => Self::failure(name, text, fix),
            None => Self::failure(
                name,
                message,
                "wait, because the service retries by itself; if it persists, read its log",
            ),
        }
    }
}

/// Returns a count with its noun: "1 event", "2 events".
pub(crate) fn count(count: impl Display, noun: &str) -> String {
    let count = count.to_string();
    let plural = if count == "1" { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

/// Formats a duration in seconds for people, for example "3 min".
pub(crate) fn ago(seconds: i64) -> String {
    match seconds.max(0) {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} days", seconds / 86_400),
    }
}
