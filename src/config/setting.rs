//! The parts of the definition of a setting.

use std::borrow::Cow;

use futures_util::future::BoxFuture;

use super::Source;
use super::value::Parsed;
use crate::authkit::{AuthKit, Builder, SecretError};

/// The texts about a setting, and the commands that use it.
#[derive(Clone, Copy, Debug)]
pub struct Description {
    /// The environment variable.
    pub name: &'static str,
    help: &'static str,
    limit: Option<fn() -> String>,
    default: Option<Text>,
    /// A value for `deploy/env.example`, for settings that almost every installation needs.
    pub example: Option<&'static str>,
    /// Whether the value is secret. A secret has no flag and is never shown.
    pub is_secret: bool,
    /// Commands that use it. A name includes its subcommands.
    pub used_by: &'static [&'static str],
    /// Commands that refuse to start without it.
    pub required_by: &'static [&'static str],
}

/// A text: a literal of the definition, or formatted from a constant that other code uses, too.
#[derive(Clone, Copy, Debug)]
enum Text {
    Written(&'static str),
    Made(fn() -> String),
}

impl Description {
    /// Returns the text of one line for `--help` and the guide `operating`.
    #[must_use]
    pub fn help(&self) -> Cow<'static, str> {
        match self.limit {
            Some(limit) => format!("{}. {}", self.help, limit()).into(),
            None => self.help.into(),
        }
    }

    /// Returns the value if the variable is unset. `None`: no value, or it depends on other settings.
    #[must_use]
    pub fn default(&self) -> Option<Cow<'static, str>> {
        self.default.map(|text| match text {
            Text::Written(text) => text.into(),
            Text::Made(text) => text().into(),
        })
    }

    /// Returns the name of the flag: the variable without our prefix, in kebab case. `None` for a secret, for `PORT` and for
    /// `RUST_LOG`.
    #[must_use]
    pub fn flag(&self) -> Option<String> {
        let name = self.name.strip_prefix("AUTHKIT_SYNC_").unwrap_or(self.name);
        let has_flag = !self.is_secret && !matches!(self.name, "PORT" | "RUST_LOG");
        has_flag.then(|| name.to_ascii_lowercase().replace('_', "-"))
    }

    /// Returns true if `command` (for example `events list`) or the command above it uses the setting. `doctor` and `status` check
    /// the settings of `serve`, so they use all of them.
    #[must_use]
    pub fn is_used_by(&self, command: &str) -> bool {
        let is_checked = matches!(command, "doctor" | "status") && names(self.used_by, "serve");
        is_checked || names(self.used_by, command)
    }

    /// Returns the variable with the path of a file that holds the value. `None` if the setting is not secret.
    #[must_use]
    pub fn file_variable(&self) -> Option<String> {
        self.is_secret.then(|| format!("{}_FILE", self.name))
    }

    pub(super) fn missing(&self) -> String {
        format!("{} is not set. Set it to: {}", self.name, self.help())
    }
}

fn names(commands: &[&str], command: &str) -> bool {
    commands.iter().any(|name| command.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(' ')))
}

/// Replaces a secret of a running service.
type Replace<T> = fn(&AuthKit, T) -> BoxFuture<'_, Result<(), SecretError>>;

/// The definition of one setting: its description, its parser, the method of [`Builder`] that takes the value, and the method of
/// [`AuthKit`] that replaces it.
#[derive(Debug)]
pub struct Setting<T> {
    description: Description,
    parser: fn(&str) -> Parsed<T>,
    method: Option<fn(Builder, T) -> Builder>,
    replace: Option<Replace<T>>,
}

impl<T> Setting<T> {
    pub(super) const fn new(name: &'static str, parser: fn(&str) -> Parsed<T>, help: &'static str) -> Self {
        let (used_by, required_by): (&[&str], &[&str]) = (&["serve"], &[]);
        let description = Description {
            name,
            help,
            limit: None,
            default: None,
            example: None,
            is_secret: false,
            used_by,
            required_by,
        };
        Self { description, parser, method: None, replace: None }
    }

    pub(super) const fn default(mut self, text: &'static str) -> Self {
        self.description.default = Some(Text::Written(text));
        self
    }

    /// Sets a default that is a constant of the code: `text` formats it.
    pub(super) const fn default_from(mut self, text: fn() -> String) -> Self {
        self.description.default = Some(Text::Made(text));
        self
    }

    /// Adds a sentence with a bound that is a constant of the code.
    pub(super) const fn limit(mut self, text: fn() -> String) -> Self {
        self.description.limit = Some(text);
        self
    }

    pub(super) const fn example(mut self, text: &'static str) -> Self {
        self.description.example = Some(text);
        self
    }

    pub(super) const fn secret(mut self) -> Self {
        self.description.is_secret = true;
        self
    }

    /// Sets the commands that use it. Without this call, only `serve` does.
    pub(super) const fn used_by(mut self, commands: &'static [&'static str]) -> Self {
        self.description.used_by = commands;
        self
    }

    pub(super) const fn required_by(mut self, commands: &'static [&'static str]) -> Self {
        self.description.required_by = commands;
        self
    }

    /// Sets the method of [`Builder`] that `serve` calls with the value.
    pub(super) const fn passed_to(mut self, method: fn(Builder, T) -> Builder) -> Self {
        self.method = Some(method);
        self
    }

    /// Sets the method of [`AuthKit`] that replaces the value while `serve` runs.
    pub(super) const fn replaced_by(mut self, replace: Replace<T>) -> Self {
        self.replace = Some(replace);
        self
    }

    /// Parses the value or the default. `None`: there is neither. An error never contains the value.
    pub(super) fn parse(&self, source: &Source) -> Option<Result<T, String>> {
        let origin = source.origin(&self.description);
        let value = source.text(&self.description)?;
        Some(value.and_then(|text| {
            (self.parser)(&text).map_err(|wanted| format!("{origin} is malformed: it must be {wanted}"))
        }))
    }
}

/// A [`Setting`] of any type.
pub trait AnySetting: Sync {
    /// Returns the texts about the setting.
    fn description(&self) -> &Description;

    /// Returns the problem of the value, if `command` cannot start with it.
    fn problem(&self, source: &Source, command: &str) -> Option<String>;

    /// Passes the value, if there is one, to the builder.
    fn pass(&self, source: &Source, builder: Builder) -> Builder;

    /// Replaces the value in a running service. `None` if there is no value, or if the value takes effect at the next start only.
    fn replace<'a>(&self, source: &Source, authkit: &'a AuthKit) -> Option<BoxFuture<'a, Result<(), SecretError>>>;
}

impl<T> AnySetting for Setting<T> {
    fn description(&self) -> &Description {
        &self.description
    }

    fn problem(&self, source: &Source, command: &str) -> Option<String> {
        match self.parse(source) {
            Some(value) => value.err(),
            None => names(self.description.required_by, command).then(|| self.description.missing()),
        }
    }

    fn pass(&self, source: &Source, builder: Builder) -> Builder {
        match (self.method, source.find(self)) {
            (Some(method), Some(value)) => method(builder, value),
            _ => builder,
        }
    }

    fn replace<'a>(&self, source: &Source, authkit: &'a AuthKit) -> Option<BoxFuture<'a, Result<(), SecretError>>> {
        Some(self.replace?(authkit, source.find(self)?))
    }
}
