//! The command line: one file per command, data on stdout, logs on stderr, and an exit code that says who must act.

mod action;
mod backfill;
mod database;
#[cfg(feature = "dev")]
mod dev;
mod doctor;
mod events;
mod exit;
mod handlers;
mod hangup;
mod healthcheck;
mod migrate;
mod personal;
mod rebind;
mod reconcile;
mod rotation;
mod scan;
mod serve;
mod status;
mod termination;
mod token;
mod user;
mod webhook;

use std::collections::HashMap;
use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::config::{AnySetting, Description, IS_LOG_JSON, LOG_FILTER, SETTINGS, Source, unknown_variables};
use crate::telemetry;
pub use exit::{Exit, Failure};

const ABOUT: &str =
    "Keep a live copy of your WorkOS users in your own PostgreSQL, and look up the user behind an access token";

const AFTER: &str = "\
Settings are environment variables. The environment overrides the file .env, and a flag overrides both. Secrets have no flag.

Exit codes:
   0  success, or a check passed
   1  a check failed, or the object was not found
  64  the command line is wrong
  69  the database, WorkOS or a port is unavailable: retry
  70  a defect of authkit-sync: please report it
  78  the configuration is wrong: correct it";

/// Parses the command line, runs the command, and prints a failure to stderr.
#[must_use]
pub fn main() -> ExitCode {
    let exit = match command().try_get_matches_from(std::env::args_os()) {
        Ok(matches) => run(&matches),
        Err(error) => {
            print_usage(&error);
            if error.use_stderr() { Exit::Usage } else { Exit::Yes }
        }
    };
    ExitCode::from(exit as u8)
}

/// Prints the help, or a usage error. The settings were not read yet, so the environment alone decides about JSON.
fn print_usage(error: &clap::Error) {
    let is_json = std::env::var_os(IS_LOG_JSON.description().name).is_some_and(|format| format == "json");
    if is_json && error.use_stderr() {
        telemetry::set_format(true);
        telemetry::say("ERROR", error.to_string().trim());
    } else {
        let _ = error.print();
    }
}

/// Returns the whole command line, for `--help` and for tests.
#[must_use]
pub fn command() -> Command {
    let command = Command::new("authkit-sync")
        .version(env!("CARGO_PKG_VERSION"))
        .about(ABOUT)
        .after_help(AFTER)
        .max_term_width(120)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(serve::command())
        .subcommand(migrate::command())
        .subcommand(backfill::command())
        .subcommand(reconcile::command())
        .subcommand(events::command())
        .subcommand(user::command())
        .subcommand(handlers::command())
        .subcommand(token::command())
        .subcommand(rebind::command())
        .subcommand(webhook::command())
        .subcommand(action::command())
        .subcommand(doctor::command())
        .subcommand(status::command())
        .subcommand(healthcheck::command());
    #[cfg(feature = "dev")]
    let command = command.subcommand(dev::command());
    command.mut_subcommands(|subcommand| {
        let name = subcommand.get_name().to_owned();
        with_settings(subcommand, &name)
    })
}

/// Returns a flag without a value.
fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

fn run(matches: &ArgMatches) -> Exit {
    let Some((name, matches)) = matches.subcommand() else { return Exit::Usage };
    // `dev` must never touch a real environment, so it gets no settings.
    let dotenv = if name == "dev" { Dotenv::default() } else { Dotenv::read() };
    let source = if name == "dev" { Source::default() } else { source(matches, &dotenv) };
    let filter = telemetry::start(&log_filter(name, &source), source.find(&IS_LOG_JSON) == Some(true));
    if let Some(problem) = dotenv.problem {
        tracing::warn!(problem, "a part of the file .env is ignored; correct the file");
    }
    if name != "dev" {
        warn_of_unknown_variables(&dotenv);
    }
    let outcome = runtime().and_then(|runtime| {
        runtime.block_on(async {
            hangup::listen(name, matches, filter)?;
            // These two report problems of the settings themselves, and check the rest as well as they can.
            if !matches!(name, "doctor" | "status") {
                source.check(&path(name, matches))?;
            }
            match name {
                "serve" => serve::run(matches, &source).await,
                "migrate" => migrate::run(matches, &source).await,
                "backfill" => backfill::run(matches, &source).await,
                "reconcile" => reconcile::run(matches, &source).await,
                "events" => events::run(matches, &source).await,
                "handlers" => handlers::run(matches, &source).await,
                "user" => user::run(matches, &source).await,
                "token" => token::run(matches, &source).await,
                "rebind" => rebind::run(matches, &source).await,
                "action" => action::run(matches, &source).await,
                "webhook" => webhook::run(matches, &source).await,
                "healthcheck" => healthcheck::run(matches, &source).await,
                "doctor" => doctor::run(matches, &source).await,
                "status" => status::run(matches, &source).await,
                #[cfg(feature = "dev")]
                "dev" => dev::run(matches).await,
                _ => Ok(Exit::Usage),
            }
        })
    });
    outcome.unwrap_or_else(|failure| {
        telemetry::say("ERROR", &format!("authkit-sync {name}: {}", failure.message));
        failure.exit
    })
}

/// Returns the names of the command and its subcommands, for example `events list`.
fn path(name: &str, matches: &ArgMatches) -> String {
    let subcommand = matches.subcommand().map(|(inner, matches)| format!(" {}", path(inner, matches)));
    format!("{name}{}", subcommand.unwrap_or_default())
}

fn warn_of_unknown_variables(dotenv: &Dotenv) {
    let environment =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let lines = dotenv.lines.iter().map(|(name, value)| (name.clone(), value.clone()));
    for unknown in unknown_variables(environment.chain(lines)) {
        tracing::warn!(
            "{} is set, but there is no such setting, so it has no effect. Did you mean {}?",
            unknown.name.escape_debug(),
            unknown.closest
        );
    }
}

/// Returns the log filter. `dev` logs warnings and errors only, unless `RUST_LOG` is set.
fn log_filter(command: &str, source: &Source) -> String {
    let filter = if command == "dev" {
        std::env::var_os("RUST_LOG").and_then(|filter| filter.into_string().ok())
    } else {
        source.find(&LOG_FILTER)
    };
    filter.unwrap_or_else(|| "warn".to_owned())
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::defect)
}

/// Maximum number of lines read from a `.env` file, because a file that cannot be read may return errors forever.
const DOTENV_LINES: usize = 10_000;

/// The lines of the `.env` file. They are not put into the process environment, so only [`source`] uses them.
#[derive(Default)]
struct Dotenv {
    lines: HashMap<String, String>,
    /// The problem of the file. It contains no line, because a line may contain a secret.
    problem: Option<&'static str>,
}

impl Dotenv {
    /// Reads the file in the working directory or the nearest directory above it. Without a file there are no lines.
    fn read() -> Self {
        let mut read = Self::default();
        let lines = match dotenvy::dotenv_iter() {
            Ok(lines) => lines,
            Err(error) if error.not_found() => return read,
            Err(_) => return Self { problem: Some("the file cannot be read"), ..read },
        };
        for line in lines.take(DOTENV_LINES) {
            match line {
                Ok((name, value)) => {
                    read.lines.insert(name, value);
                }
                Err(dotenvy::Error::LineParse(..)) => read.problem = Some("a line is malformed"),
                Err(_) => read.problem = Some("a line cannot be read"),
            }
        }
        read
    }
}

/// Reads the settings: flags, then the environment, then `.env`.
fn source(matches: &ArgMatches, dotenv: &Dotenv) -> Source {
    // The innermost subcommand has the flags.
    let innermost = std::iter::successors(Some(matches), |matches| matches.subcommand().map(|(_, inner)| inner)).last();
    let matches = innermost.unwrap_or(matches);
    let flag = |setting: &Description| {
        let id = setting.flag()?;
        matches.try_get_one::<String>(&id).ok().flatten().cloned()
    };
    let environment = |name: &str| {
        let set = std::env::var_os(name).map(OsString::into_string).and_then(Result::ok);
        set.filter(|value| !value.trim().is_empty()).or_else(|| dotenv.lines.get(name).cloned())
    };
    Source::new(flag, environment)
}

/// Adds a flag for each setting that the command at `path` uses, and lists those without a flag at the end of the help. If the
/// command has subcommands, they get the flags.
fn with_settings(command: Command, path: &str) -> Command {
    if command.has_subcommands() {
        return command.mut_subcommands(|subcommand| {
            let path = format!("{path} {}", subcommand.get_name());
            with_settings(subcommand, &path)
        });
    }
    let descriptions = SETTINGS.iter().map(|setting| setting.description());
    let used: Vec<&Description> = descriptions.filter(|setting| setting.is_used_by(path)).collect();
    let flags = used.iter().filter_map(|setting| {
        let flag = setting.flag()?;
        let default = setting.default().map(|default| format!(" [default: {default}]")).unwrap_or_default();
        let help = format!("{}{default} [env: {}]", setting.help(), setting.name);
        Some(Arg::new(flag.clone()).long(flag).value_name("VALUE").help(help))
    });
    let others: Vec<&&Description> = used.iter().filter(|setting| setting.flag().is_none()).collect();
    let width = others.iter().map(|setting| setting.name.len()).max().unwrap_or_default();
    let lines: Vec<String> =
        others.iter().map(|setting| format!("  {:<width$}  {}", setting.name, setting.help())).collect();
    let command = command.args(flags);
    if lines.is_empty() {
        return command;
    }
    let files: Vec<String> = used.iter().filter_map(|setting| setting.file_variable()).collect();
    let files = if files.is_empty() {
        String::new()
    } else {
        format!("\n\nA secret can be in a file. Then set the path of the file instead:\n  {}", files.join("\n  "))
    };
    command.after_help(format!("Environment variables without a flag:\n{}{files}", lines.join("\n")))
}
