//! The command line: one file per command, data on stdout, logs on stderr, and an exit code that says who must act.

mod backfill;
#[cfg(feature = "dev")]
mod dev;
mod events;
mod exit;
mod handlers;
mod hangup;
mod healthcheck;
mod migrate;
mod rebind;
mod reconcile;
mod serve;
mod token;
mod user;
mod walk;
mod webhook;

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};

use crate::config::{self, SETTINGS, Setting, Source};
use crate::telemetry;
pub use exit::{Exit, Failure};

const ABOUT: &str =
    "Keep a live copy of your WorkOS users in your own PostgreSQL, and look up the user behind an access token";

const AFTER: &str = "\
Settings are environment variables. The environment overrides the file .env, and a flag overrides both. Secrets have no flag.

Exit codes:
   0  success, or the answer is yes
   1  the answer is no
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
            let _ = error.print();
            if error.use_stderr() { Exit::Usage } else { Exit::Yes }
        }
    };
    ExitCode::from(exit as u8)
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
        .subcommand(healthcheck::command());
    #[cfg(feature = "dev")]
    let command = command.subcommand(dev::command());
    command
}

fn run(matches: &ArgMatches) -> Exit {
    let Some((name, matches)) = matches.subcommand() else { return Exit::Usage };
    // `dev` must never touch a real environment, so it gets no settings.
    let dotenv = if name == "dev" { Dotenv::default() } else { Dotenv::read() };
    let source = if name == "dev" { Source::default() } else { source(matches, &dotenv) };
    let filter = telemetry::start(log_filter(name, &source), config::logs_json(&source));
    if let Some(problem) = dotenv.problem {
        tracing::warn!(problem, "the .env file cannot be used as it is; its other lines are");
    }
    let outcome = runtime().and_then(|runtime| {
        runtime.block_on(async {
            hangup::listen(name, matches, filter)?;
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
                "webhook" => webhook::run(matches, &source).await,
                "healthcheck" => healthcheck::run(matches, &source).await,
                #[cfg(feature = "dev")]
                "dev" => dev::run(matches).await,
                _ => Ok(Exit::Usage),
            }
        })
    });
    outcome.unwrap_or_else(|failure| {
        // The terminal may be gone; the exit code says it all the same.
        let _ = writeln!(std::io::stderr(), "authkit-sync {name}: {}", failure.message);
        failure.exit
    })
}

/// Returns the log filter. `dev` logs warnings and errors only, unless `RUST_LOG` is set.
fn log_filter(command: &str, source: &Source) -> Option<String> {
    if command == "dev" {
        let set = std::env::var_os("RUST_LOG").and_then(|filter| filter.into_string().ok());
        return set.or_else(|| Some("warn".to_owned()));
    }
    config::log_filter(source).map(str::to_owned)
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::defect)
}

/// Lines of a `.env` file that are read at most: a file that cannot be read may yield errors for ever.
const DOTENV_LINES: usize = 10_000;

/// The lines of the `.env` file: in a map and not in the process environment, so that only [`source`] sees them.
#[derive(Default)]
struct Dotenv {
    lines: HashMap<String, String>,
    /// What is wrong with the file. It quotes no line, because a line may hold a secret.
    problem: Option<&'static str>,
}

impl Dotenv {
    /// Reads the file of this directory or of the nearest one above; without a file there are no lines.
    fn read() -> Self {
        let mut read = Self::default();
        let lines = match dotenvy::dotenv_iter() {
            Ok(lines) => lines,
            Err(error) if error.not_found() => return read,
            Err(_) => return Self { problem: Some("it cannot be read"), ..read },
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
    let flag = |setting: &Setting| {
        let id = setting.flag()?;
        matches.try_get_one::<String>(&id).ok().flatten().cloned()
    };
    let environment = |name: &'static str| {
        let set = std::env::var_os(name).map(OsString::into_string).and_then(Result::ok);
        set.filter(|value| !value.trim().is_empty()).or_else(|| dotenv.lines.get(name).cloned())
    };
    Source::new(flag, environment)
}

/// Adds a flag for each setting in `used`, and lists the settings without a flag at the end of the help.
fn with_settings(command: Command, used: &[&str]) -> Command {
    let settings = || SETTINGS.iter().filter(|setting| used.contains(&setting.name));
    let flags = settings().filter_map(|setting| {
        let flag = setting.flag()?;
        let default = setting.default.map(|default| format!(" [default: {default}]")).unwrap_or_default();
        let help = format!("{}{default} [env: {}]", setting.help, setting.name);
        Some(Arg::new(flag.clone()).long(flag).value_name("VALUE").help(help))
    });
    let others: Vec<&Setting> = settings().filter(|setting| setting.flag().is_none()).collect();
    let width = others.iter().map(|setting| setting.name.len()).max().unwrap_or_default();
    let others: Vec<String> =
        others.iter().map(|setting| format!("  {:<width$}  {}", setting.name, setting.help)).collect();
    let after = if others.is_empty() {
        String::new()
    } else {
        format!("Environment variables without a flag:\n{}", others.join("\n"))
    };
    command.args(flags).after_help(after)
}
