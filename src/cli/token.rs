//! `token explain`: show every check of an access token, and what to do about the first that fails.

use std::io::{IsTerminal, Read};
use std::sync::Arc;

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::json;

use super::database::store_of_client;
use super::{Exit, Failure, flag};
use crate::config::{self, ALLOW_SHARED_ISSUER, AUDIENCES, Environment, ISSUERS, JWKS_URL, Source};
use crate::domain::clock::Clock;
use crate::domain::decide::Stored;
use crate::store::{Store, StoreError};
use crate::telemetry;
use crate::tokens::{CheckResult, Explanation, HttpKeySource, KeyCache, TokenPolicy, TokenVerifier, UserState};

const ABOUT: &str = "\
Read an access token from stdin. Show every check in order, what was found and what was expected, then the verdict and what to
do. The token is not printed. Without DATABASE_URL, only the token is checked, not its user.

Exit codes: 0 good; 1 bad, or its user is deleted or not synced; 69 WorkOS's keys or the database are unreachable;
78 the configuration is wrong.";

/// Bytes read from stdin: more than the longest accepted token.
const READ_LIMIT: u64 = 64 * 1024;

/// A terminal passes at most this many bytes of a line and discards the rest.
const TERMINAL_LINE: usize = 4_095;

pub(super) fn command() -> Command {
    let misplaced = Arg::new("misplaced").hide(true).num_args(0..).allow_hyphen_values(true).trailing_var_arg(true);
    let explain = Command::new("explain")
        .about("Show why an access token (on stdin) is accepted or refused")
        .long_about(ABOUT)
        .arg(flag("json", "Print the result as JSON"))
        .arg(misplaced.action(ArgAction::Append));
    Command::new("token")
        .about("Check access tokens")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(explain)
}

pub(super) async fn run(matches: &ArgMatches, source: &Source) -> Result<Exit, Failure> {
    let Some(("explain", matches)) = matches.subcommand() else { return Ok(Exit::Usage) };
    if matches.contains_id("misplaced") {
        let message = "the token was given as an argument, where shells and `ps` can show it: pass it on stdin instead";
        return Err(Failure::new(Exit::Usage, message));
    }
    let environment = config::environment(source)?;
    let database = config::database_if_set(source)?;
    let store = database.map(|database| store_of_client(&database, &environment));
    let verifier = verifier(source, &environment)?;
    let token = read()?;
    let mut explanation = verifier.explain(bare(&token)).await;
    let unfit = note_user(&mut explanation, store.as_ref()).await?;
    if matches.get_flag("json") {
        println!("{}", json!(explanation));
    } else {
        print(&explanation);
    }
    match (unfit, explanation.verdict) {
        (Some(failure), "unknown") => Err(failure),
        (_, "good") => Ok(Exit::Yes),
        (_, "unknown") => Ok(Exit::Unavailable),
        _ => Ok(Exit::No),
    }
}

/// Creates a verifier with the same settings as `serve`.
fn verifier(source: &Source, environment: &Environment) -> Result<TokenVerifier, Failure> {
    let Environment { client_id, api_base } = environment;
    let keys = match source.find(&JWKS_URL) {
        Some(url) => HttpKeySource::new(&url),
        None => HttpKeySource::of_client(client_id, api_base),
    };
    let keys = keys.map_err(|error| Failure::new(Exit::Config, error))?;
    let policy = TokenPolicy::new(client_id, api_base)
        .issuers(source.find(&ISSUERS).unwrap_or_default())
        .audiences(source.find(&AUDIENCES).unwrap_or_default())
        .allow_shared_issuer(source.get(&ALLOW_SHARED_ISSUER)?);
    let clock = Clock::system();
    Ok(TokenVerifier::new(policy, KeyCache::new(Arc::new(keys), clock.clone()), clock))
}

/// Reads stdin: all of it, or one line from a terminal.
fn read() -> Result<String, Failure> {
    let stdin = std::io::stdin();
    let mut bytes = Vec::new();
    if stdin.is_terminal() {
        telemetry::say("INFO", "paste an access token and press Enter");
        let mut line = String::new();
        stdin.read_line(&mut line).map_err(Failure::unavailable)?;
        if line.len() >= TERMINAL_LINE {
            let message = "the token is too long for a terminal, which cuts lines after 4,095 characters: pass it through a pipe or a file";
            return Err(Failure::new(Exit::Usage, message));
        }
        return Ok(line);
    }
    stdin.lock().take(READ_LIMIT).read_to_end(&mut bytes).map_err(Failure::unavailable)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Returns the token of the pasted text, which can be a header or quoted.
fn bare(pasted: &str) -> &str {
    let mut token = pasted.trim().trim_matches(['"', '\'']);
    for before in ["authorization:", "bearer "] {
        if token.get(..before.len()).is_some_and(|start| start.eq_ignore_ascii_case(before)) {
            token = token.get(before.len()..).unwrap_or_default().trim();
        }
    }
    token
}

/// Adds the state of the user. Returns a failure if the database belongs to another environment.
async fn note_user(explanation: &mut Explanation, store: Option<&Store>) -> Result<Option<Failure>, Failure> {
    let Some(store) = store else {
        explanation.note_user(UserState::NotChecked);
        return Ok(None);
    };
    // PostgreSQL text cannot contain NUL, so no user has such an ID.
    let Some(subject) = explanation.subject().filter(|subject| !subject.contains('\0')) else {
        explanation.note_user(UserState::Known(&Stored::Absent));
        return Ok(None);
    };
    let stored = store.user(subject).await;
    match stored {
        Ok(stored) => explanation.note_user(UserState::Known(&stored)),
        Err(error) => {
            explanation.note_user(UserState::Unavailable);
            if matches!(error, StoreError::Unfit(_)) {
                return Ok(Some(error.into()));
            }
            telemetry::say("WARN", &format!("authkit-sync token: {error}"));
        }
    }
    Ok(None)
}

fn print(explanation: &Explanation) {
    for check in &explanation.checks {
        let verdict = match check.verdict {
            CheckResult::Pass => "pass",
            CheckResult::Fail => "FAIL",
            CheckResult::Skipped => "skip",
        };
        let doubt = if check.trusted || check.verdict == CheckResult::Skipped { "" } else { " (not trusted)" };
        println!("{verdict}  {:<10}  {}{doubt}", check.check, check.found);
        if !check.expected.is_empty() {
            println!("      {:<10}  expected: {}", "", check.expected);
        }
    }
    if explanation.checks.iter().any(|check| !check.trusted && check.verdict != CheckResult::Skipped) {
        println!("\nValues marked as not trusted have no valid signature, so any sender can have written them.");
    }
    println!("\n{}: {}", explanation.verdict, explanation.message.as_deref().unwrap_or("every check passed"));
    if let (Some(reason), Some(fix)) = (explanation.reason, &explanation.fix) {
        println!("reason: {reason}\nto do: {fix}");
    }
}
