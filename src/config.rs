//! Settings. Each one is defined once, in `config/settings.rs`; the flags, `--help`, the guide `operating` and `deploy/env.example` come
//! from the definitions.
//!
//! A setting is an environment variable and, unless it is secret, a flag that overrides it. Secrets have no flag, because `ps`
//! shows flags. [`Source::check`] runs before a command starts anything, and reports every problem at once.

mod serve;
mod setting;
mod settings;
mod unknown;
mod value;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;

use crate::domain::kinds::Kinds;
pub(crate) use serve::{allows_every_action, builder, checked_action_endpoint};
pub use setting::{AnySetting, Description, Setting};
pub use settings::SETTINGS;
pub(crate) use settings::{
    ACTION_RULES, ACTION_SECRETS, ACTION_URL_SECRET, ALLOW_SHARED_ISSUER, API_KEYS, AUDIENCES, CATCH_UP,
    CATCH_UP_INTERVAL, DB_POOL, EVENT_TYPES, IS_LOG_JSON, ISSUERS, JWKS_URL, KINDS, LOG_FILTER, OPS_LISTEN,
    RECONCILE_INTERVAL, RETENTION, SESSION_SIGN_INS, WEBHOOK_PATH, WEBHOOK_SECRETS, WORKOS_API_KEY,
};
pub(crate) use unknown::unknown_variables;

/// The values of the settings: flags first, then the environment. Empty text counts as unset.
#[derive(Debug, Default)]
pub struct Source {
    values: BTreeMap<&'static str, String>,
}

/// Everything that is wrong with the settings, one line each. It never contains a value.
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
    pub fn new(
        flag: impl Fn(&Description) -> Option<String>,
        environment: impl Fn(&'static str) -> Option<String>,
    ) -> Self {
        let values = SETTINGS.iter().filter_map(|setting| {
            let description = setting.description();
            let value = flag(description).or_else(|| environment(description.name))?;
            let value = value.trim();
            (!value.is_empty()).then(|| (description.name, value.to_owned()))
        });
        Self { values: values.collect() }
    }

    /// Checks every setting that `command` uses, for example `serve` or `events list`.
    ///
    /// # Errors
    /// [`Problems`]: everything that is missing, malformed or contradictory.
    pub fn check(&self, command: &str) -> Result<(), Problems> {
        let used = SETTINGS.iter().filter(|setting| setting.description().is_used_by(command));
        let mut problems: Vec<String> = used.filter_map(|setting| setting.problem(self, command)).collect();
        if command == "serve" {
            problems.extend(serve::problems(self));
        }
        if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
    }

    /// Returns the text of a setting, or the text of its default.
    fn text(&self, description: &Description) -> Option<Cow<'_, str>> {
        self.values.get(description.name).map(|value| value.as_str().into()).or_else(|| description.default())
    }

    pub(crate) fn is_set<T>(&self, setting: &Setting<T>) -> bool {
        self.values.contains_key(setting.description().name)
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

/// The database.
#[derive(Clone, Debug)]
pub(crate) struct Database {
    /// Address and role.
    pub(crate) options: PgConnectOptions,
    /// Timeout of one transaction or lookup.
    pub(crate) timeout: Duration,
}

/// Reads the database. `None` if the command can do without and `DATABASE_URL` is not set.
pub(crate) fn database_if_set(source: &Source) -> Result<Option<Database>, Problems> {
    source.is_set(&settings::DATABASE_URL).then(|| database(source)).transpose()
}

/// Reads the database.
pub(crate) fn database(source: &Source) -> Result<Database, Problems> {
    Ok(Database { options: source.get(&settings::DATABASE_URL)?, timeout: source.get(&settings::DB_TIMEOUT)? })
}

/// The WorkOS environment.
#[derive(Debug)]
pub(crate) struct Environment {
    /// `WORKOS_CLIENT_ID`
    pub(crate) client_id: String,
    /// Base URL from `WORKOS_API_HTTPS`, `_HOSTNAME` and `_PORT`.
    pub(crate) api_base: String,
}

/// Reads the WorkOS environment.
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
