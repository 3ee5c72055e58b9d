//! Settings. Each one is defined once, in `config/settings.rs`; the flags, `--help`, the guide `operating` and `deploy/env.example`
//! come from the definitions.
//!
//! A setting is an environment variable and, unless it is secret, a flag that overrides it. Secrets have no flag, because `ps`
//! shows flags. [`Source::check`] runs before a command starts anything, and reports every problem at once.

mod commands;
mod rotation;
mod secret_file;
mod serve;
mod setting;
mod settings;
mod unknown;
mod value;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::domain::kinds::Kinds;
use crate::store::hosts::Hosts;
pub(crate) use rotation::Rotation;
use secret_file::SecretFile;
pub(crate) use serve::{allows_every_action, builder, checked_action_endpoint};
pub use setting::{AnySetting, Description, Setting};
pub use settings::SETTINGS;
pub(crate) use settings::{
    ACTION_RULES, ACTION_SECRETS, ACTION_URL_SECRET, ALLOW_SHARED_ISSUER, API_KEYS, AUDIENCES, CATCH_UP,
    CATCH_UP_INTERVAL, DB_POOL, EVENT_TYPES, IS_LOG_JSON, ISSUERS, JWKS_URL, KINDS, LOG_FILTER, OPS_LISTEN,
    READ_DATABASE_URL, READ_STALENESS, RECONCILE_INTERVAL, RETENTION, SESSION_SIGN_INS, WEBHOOK_PATH, WEBHOOK_SECRETS,
    WORKOS_API_KEY,
};
pub(crate) use unknown::unknown_variables;

/// The values of the settings: flags first, then the environment. An empty value counts as unset. A secret can be in a file, whose
/// path is in the variable [`Description::file_variable`].
#[derive(Default)]
pub struct Source {
    values: BTreeMap<&'static str, String>,
    files: BTreeMap<&'static str, SecretFile>,
}

/// Shows no value, because a value can be a secret.
impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("set", &self.values.keys()).field("files", &self.files).finish()
    }
}

/// All problems of the settings, one line each. They never contain a value.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Problems(Vec<String>);

impl From<String> for Problems {
    fn from(problem: String) -> Self {
        Self(vec![problem])
    }
}

impl Source {
    /// Reads every setting from `flag`, else from `environment`.
    #[must_use]
    pub fn new(flag: impl Fn(&Description) -> Option<String>, environment: impl Fn(&str) -> Option<String>) -> Self {
        let (mut values, mut files) = (BTreeMap::new(), BTreeMap::new());
        for description in SETTINGS.iter().map(|setting| setting.description()) {
            let trimmed = |value: String| Some(value.trim().to_owned()).filter(|value| !value.is_empty());
            let value = flag(description).or_else(|| environment(description.name));
            if let Some(value) = value.and_then(trimmed) {
                values.insert(description.name, value);
            }
            let path = description.file_variable().and_then(|name| environment(&name));
            if let Some(path) = path.and_then(trimmed) {
                files.insert(description.name, SecretFile::new(path.into()));
            }
        }
        Self { values, files }
    }

    /// Checks every setting that `command` uses, for example `serve` or `events list`.
    ///
    /// # Errors
    /// [`Problems`]: everything that is missing, malformed or contradictory.
    pub fn check(&self, command: &str) -> Result<(), Problems> {
        let used: Vec<_> = SETTINGS.iter().filter(|setting| setting.description().is_used_by(command)).collect();
        let mut problems: Vec<String> = used.iter().filter_map(|setting| setting.problem(self, command)).collect();
        for file in used.iter().filter_map(|setting| self.files.get(setting.description().name)) {
            if file.is_readable_by_all() {
                tracing::warn!(
                    file = %file.path().display(),
                    "every user of this machine can read the file of a secret; run chmod o-r, or in Kubernetes set the volume's defaultMode to 0440 and fsGroup"
                );
            }
        }
        if command == "serve" {
            problems.extend(serve::problems(self));
        }
        if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
    }

    /// Returns the same values and the same files, which are not read yet.
    fn unread(&self) -> Self {
        let unread = |file: &SecretFile| SecretFile::new(file.path().to_owned());
        let files = self.files.iter().map(|(name, file)| (*name, unread(file))).collect();
        Self { values: self.values.clone(), files }
    }

    /// Reads every file that is not read yet. Later uses of the values do not read.
    pub(crate) fn load(&self) {
        for file in self.files.values() {
            // The result is kept in the file.
            let _ = file.value();
        }
    }

    /// Returns the text of a setting, or the text of its default. An error says what is wrong with the file of a secret.
    fn text(&self, description: &Description) -> Option<Result<Cow<'_, str>, String>> {
        let value = self.values.get(description.name);
        match (value, self.files.get(description.name)) {
            (Some(_), Some(_)) => {
                let (name, file) = (description.name, description.file_variable().unwrap_or_default());
                Some(Err(format!("{name} and {file} are both set. Remove one of them")))
            }
            (Some(value), None) => Some(Ok(value.as_str().into())),
            (None, Some(file)) => Some(match file.value() {
                Ok(value) => Ok(value.into()),
                Err(why) => Err(format!("{} cannot be used: {why}", description.file_variable().unwrap_or_default())),
            }),
            (None, None) => description.default().map(Ok),
        }
    }

    /// Returns the name of a setting's value for an error: the variable, and the file if the value is in a file.
    fn origin(&self, description: &Description) -> String {
        match self.file(description) {
            Some(path) => format!("{} (in the file {})", description.name, path.display()),
            None => description.name.to_owned(),
        }
    }

    /// Returns the file that holds the value of a secret.
    fn file(&self, description: &Description) -> Option<&Path> {
        self.files.get(description.name).map(SecretFile::path)
    }

    /// Returns how to replace a secret: where to write it, and when `serve` uses it.
    pub(crate) fn how_to_replace<T>(&self, setting: &Setting<T>) -> String {
        let description = setting.description();
        match self.file(description) {
            Some(path) => {
                format!("write it into the file {}; `authkit-sync serve` reads it within 2 seconds", path.display())
            }
            None => format!("set {}, and restart `authkit-sync serve`", description.name),
        }
    }

    pub(crate) fn is_set<T>(&self, setting: &Setting<T>) -> bool {
        let name = setting.description().name;
        self.values.contains_key(name) || self.files.contains_key(name)
    }

    /// Returns the value of a setting or its default. `None` if there is neither, or if the value is malformed.
    pub(crate) fn find<T>(&self, setting: &Setting<T>) -> Option<T> {
        setting.parse(self)?.ok()
    }

    /// Returns the value of a setting or its default.
    ///
    /// # Errors
    /// [`Problems`] if there is neither, or if the value is malformed. After [`Source::check`] that is a setting that the command
    /// does not use, or does not require.
    pub(crate) fn get<T>(&self, setting: &Setting<T>) -> Result<T, Problems> {
        let value = setting.parse(self).unwrap_or_else(|| Err(setting.description().missing()));
        value.map_err(Problems::from)
    }
}

/// The settings of the database.
#[derive(Clone, Debug)]
pub(crate) struct Database {
    /// Addresses and role.
    pub(crate) hosts: Hosts,
    /// Timeout of one transaction or lookup.
    pub(crate) timeout: Duration,
}

/// Reads the settings of the database. `None` if `DATABASE_URL` is not set and the command does not require it.
pub(crate) fn database_if_set(source: &Source) -> Result<Option<Database>, Problems> {
    source.is_set(&settings::DATABASE_URL).then(|| database(source)).transpose()
}

/// Reads the settings of the database.
pub(crate) fn database(source: &Source) -> Result<Database, Problems> {
    Ok(Database { hosts: source.get(&settings::DATABASE_URL)?, timeout: source.get(&settings::DB_TIMEOUT)? })
}

/// The settings of the WorkOS environment.
#[derive(Debug)]
pub(crate) struct Environment {
    /// `WORKOS_CLIENT_ID`
    pub(crate) client_id: String,
    /// Base URL from `WORKOS_API_HTTPS`, `_HOSTNAME` and `_PORT`.
    pub(crate) api_base: String,
}

/// Reads the settings of the WorkOS environment.
pub(crate) fn environment(source: &Source) -> Result<Environment, Problems> {
    Ok(Environment { client_id: source.get(&settings::CLIENT_ID)?, api_base: api_base(source)? })
}

/// Reads the base URL of the WorkOS API.
pub(crate) fn api_base(source: &Source) -> Result<String, Problems> {
    let scheme = if source.get(&settings::API_HTTPS)? { "https" } else { "http" };
    let host = source.get(&settings::API_HOSTNAME)?;
    let port = source.find(&settings::API_PORT).map(|port| format!(":{port}")).unwrap_or_default();
    Ok(format!("{scheme}://{host}{port}"))
}

/// Reads the address of the public listener: `AUTHKIT_SYNC_LISTEN`, else all addresses with `PORT`, else the default.
pub(crate) fn listen(source: &Source) -> Result<SocketAddr, Problems> {
    match source.find(&settings::PORT) {
        Some(port) if !source.is_set(&settings::LISTEN) => Ok(SocketAddr::from(([0, 0, 0, 0], port))),
        _ => source.get(&settings::LISTEN),
    }
}

/// Returns what is synced.
pub(crate) fn kinds(source: &Source) -> Result<Kinds, Problems> {
    Ok(Kinds { sign_ins: source.get(&SESSION_SIGN_INS)?, ..source.get(&KINDS)? })
}
