//! Replaces the secrets of a running service when they change in their files, or in the environment's `.env` file.
//!
//! A new secret that cannot be used changes nothing: the previous one stays in use, and the log, `/readyz` and a metric report the
//! problem. The other secrets are replaced.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::settings::{DATABASE_URL, READ_DATABASE_URL};
use super::{AnySetting, Description, SETTINGS, Source, serve};
use crate::authkit::{AuthKit, SecretError};

/// The pause before a retry of a secret that was not accepted. It doubles with each attempt.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The secrets of a running service.
pub(crate) struct Rotation {
    authkit: AuthKit,
    /// The values in use. They include every secret, also one from a file.
    current: Source,
    /// The sources of the values: files and the environment.
    given: Source,
    failures: BTreeMap<&'static str, Failure>,
}

/// A new secret that cannot be used.
struct Failure {
    /// The secret. `None` if its file cannot be read.
    text: Option<String>,
    problem: String,
    attempts: u32,
    retry_at: Instant,
}

enum Outcome {
    Unchanged,
    Replaced,
    /// The secret was not accepted. The service retries it later.
    Waiting,
}

/// Why a secret cannot be used. The text does not contain it.
struct Problem {
    text: String,
    /// Whether a retry can succeed without a change of the secret.
    can_pass: bool,
}

impl From<String> for Problem {
    fn from(text: String) -> Self {
        Self { text, can_pass: false }
    }
}

impl From<SecretError> for Problem {
    fn from(error: SecretError) -> Self {
        Self { can_pass: matches!(error, SecretError::NotAccepted(_)), text: error.to_string() }
    }
}

impl Rotation {
    /// Creates a rotation from the values with which the service was built.
    pub(crate) fn new(authkit: AuthKit, source: &Source) -> Self {
        let mut current = Source { values: source.values.clone(), files: BTreeMap::new() };
        for description in secrets().map(|setting| setting.description()) {
            if let Some(Ok(text)) = source.text(description) {
                current.values.insert(description.name, text.into_owned());
            }
        }
        Self { authkit, current, given: source.unread(), failures: BTreeMap::new() }
    }

    /// Returns whether a file holds a secret.
    pub(crate) fn has_files(&self) -> bool {
        !self.given.files.is_empty()
    }

    /// Returns the sources of the values, with files that are not read yet.
    pub(crate) fn unread(&self) -> Source {
        self.given.unread()
    }

    /// Lets the next call of [`Rotation::adopt`] retry every secret that was not accepted, without a pause.
    pub(crate) fn retry_now(&mut self) {
        for failure in self.failures.values_mut() {
            failure.retry_at = Instant::now();
        }
    }

    /// Replaces the secrets that differ, and returns the names of their settings.
    pub(crate) async fn adopt(&mut self, given: Source) -> Vec<&'static str> {
        let mut replaced = Vec::new();
        for setting in secrets() {
            let name = setting.description().name;
            match self.replace(setting, &given).await {
                Ok(Outcome::Waiting) => {}
                Ok(Outcome::Unchanged) => self.end_failure(name),
                Ok(Outcome::Replaced) => {
                    self.end_failure(name);
                    self.authkit.count_replaced_secret(name);
                    tracing::info!(setting = name, "the secret was replaced, and the new one is in use");
                    replaced.push(name);
                }
                Err(problem) => self.note_failure(setting.description(), problem, &given),
            }
        }
        self.given = given;
        replaced
    }

    /// Replaces one secret, if it differs.
    async fn replace(&mut self, setting: &dyn AnySetting, given: &Source) -> Result<Outcome, Problem> {
        let description = setting.description();
        let name = description.name;
        let in_use = self.current.values.get(name);
        let Some(text) = given.text(description) else {
            return match in_use {
                Some(_) => Err("it is no longer set. Set it, or restart to remove it".to_owned().into()),
                None => Ok(Outcome::Unchanged),
            };
        };
        let text = text?.into_owned();
        if in_use == Some(&text) {
            return Ok(Outcome::Unchanged);
        }
        let failure = self.failures.get(name).filter(|failure| failure.text.as_ref() == Some(&text));
        if failure.is_some_and(|failure| Instant::now() < failure.retry_at) {
            return Ok(Outcome::Waiting);
        }
        if let Some(problem) = setting.problem(given, "serve") {
            return Err(problem.into());
        }
        if in_use.is_none() {
            return Err("it was not set at the start. Restart to use it".to_owned().into());
        }
        let mut candidate = Source { values: self.current.values.clone(), files: BTreeMap::new() };
        candidate.values.insert(name, text);
        if let Some(problem) = serve::problems(&candidate).into_iter().next() {
            return Err(problem.into());
        }
        let Some(replacing) = setting.replace(&candidate, &self.authkit) else { return Ok(Outcome::Unchanged) };
        replacing.await?;
        self.current = candidate;
        Ok(Outcome::Replaced)
    }

    /// Reports a problem, unless it was reported already.
    fn note_failure(&mut self, description: &Description, problem: Problem, given: &Source) {
        let (name, text) = (description.name, given.text(description).and_then(Result::ok).map(Cow::into_owned));
        let previous = self.failures.remove(name).filter(|failure| failure.text == text);
        if previous.as_ref().is_none_or(|failure| failure.problem != problem.text) {
            report(&given.origin(description), &problem);
            self.authkit.note_secret(name, Some(problem.text.clone()));
        }
        let attempts = previous.map_or(0, |failure| failure.attempts);
        let pause = FIRST_PAUSE.saturating_mul(1 << attempts.min(5)).min(LONGEST_PAUSE);
        let (problem, retry_at) = (problem.text, Instant::now() + pause);
        self.failures.insert(name, Failure { text, problem, attempts: attempts + 1, retry_at });
    }

    /// Records that the setting has no problem any more.
    fn end_failure(&mut self, name: &'static str) {
        if self.failures.remove(name).is_some() {
            self.authkit.note_secret(name, None);
            if name == DATABASE_URL.description().name {
                self.authkit.withdraw_database_login();
            } else if name == READ_DATABASE_URL.description().name {
                self.authkit.withdraw_standby_login();
            }
        }
    }
}

fn report(secret: &str, problem: &Problem) {
    let Problem { text, can_pass } = problem;
    if *can_pass {
        tracing::warn!(
            "the new value of {secret} is not accepted, so the service keeps the previous one and retries within {} s: {text}",
            LONGEST_PAUSE.as_secs()
        );
    } else {
        tracing::error!("the new value of {secret} cannot be used, so the service keeps the previous one: {text}");
    }
}

/// The secrets that `serve` uses.
fn secrets() -> impl Iterator<Item = &'static dyn AnySetting> {
    SETTINGS.iter().copied().filter(|setting| {
        let description = setting.description();
        description.is_secret && description.is_used_by("serve")
    })
}
