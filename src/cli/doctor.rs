//! `doctor`: check everything that the sync needs, and say what to do.
//!
//! The checks are in one file per subject. They change nothing. If a part is down, only its own checks fail.

mod database;
mod hosts;
mod settings;
mod standby;
mod subject;
mod webhooks;
mod workos;

use clap::{Arg, ArgMatches, Command};
use serde_json::json;

use super::{Exit, Failure, flag};
use crate::config::Source;
use crate::store::{Store, StoreError};
use crate::sync::health::{self, Check, Facts, State};
use subject::Subject;

const ABOUT: &str = "\
Check the settings, the database, WorkOS, webhooks, the background jobs and the handlers. Each check is ok, a warning or a failure,
with what was found and what to do. After a failure, data may be incomplete, or an operator must act. The command changes nothing.
It sends one signed request that is not an event to the webhook endpoint. Use the settings of `serve`.

Exit codes: 0 no check failed; 1 a check failed.";

/// The names of the checks that need a usable schema.
const OF_SCHEMA: [&str; 10] = [
    "jobs",
    "sync_lag",
    "organizations",
    "reconcile",
    "retention",
    "erasure",
    "quarantine",
    "inbox",
    "handlers",
    "feed",
];

pub(super) fn command() -> Command {
    let replicas = Arg::new("replicas").long("replicas").value_name("N").default_value("1");
    let replicas = replicas.value_parser(clap::value_parser!(i64).range(1..=1_000));
    Command::new("doctor")
        .about("Check everything that the sync needs, and say what to do. Exit with 1 if a check failed")
        .long_about(ABOUT)
        .arg(replicas.help("Number of `serve` processes, for the check of the database connections"))
        .arg(flag("json", "Print the checks as JSON: name, state, text and fix"))
}

pub(super) async fn run(matches: &ArgMatches, source: &Source) -> Result<Exit, Failure> {
    let replicas = matches.get_one::<i64>("replicas").copied().unwrap_or(1);
    let (checks, _) = diagnose(source, replicas).await;
    if matches.get_flag("json") {
        println!("{}", json!(checks));
    } else {
        checks.iter().for_each(print);
    }
    let has_failed = checks.iter().any(|check| check.state == State::Failure);
    Ok(if has_failed { Exit::No } else { Exit::Yes })
}

/// Runs every check. Returns the progress, too, if it can be read.
pub(super) async fn diagnose(source: &Source, replicas: i64) -> (Vec<Check>, Option<Facts>) {
    let subject = Subject::new(source);
    let mut checks = settings::checks(&subject);
    let ((database, ahead), workos) = tokio::join!(database::checks(&subject, replicas), workos::checks(&subject));
    // A role that lacks privileges, or a standby, can still be read.
    let is_readable = database.iter().any(|check| check.name == "database_schema" && check.is_usable());
    checks.extend(database);
    checks.extend(standby::check(&subject).await);
    checks.push(workos::clocks(subject.keys.as_ref(), ahead));
    checks.extend(workos);
    checks.extend(webhooks::checks(&subject).await);
    let unknown = || OF_SCHEMA.map(|name| Check::not_checked(name, "the database cannot be read"));
    let (true, Some(store)) = (is_readable, &subject.store) else {
        checks.extend(unknown());
        return (checks, None);
    };
    let expected = subject.expected();
    match Facts::read(&expected, store).await {
        Ok(facts) => {
            checks.extend(health::checks(&expected, &facts));
            match handlers(store, &facts).await {
                Ok(of_handlers) => checks.extend(of_handlers),
                Err(error) => checks.push(Check::of_store("handlers", &error)),
            }
            (checks, Some(facts))
        }
        Err(error) => {
            checks.push(Check::of_store("database_read", &error));
            checks.extend(unknown());
            (checks, None)
        }
    }
}

async fn handlers(store: &Store, facts: &Facts) -> Result<Vec<Check>, StoreError> {
    let (statuses, handlers) = (store.handler_statuses().await?, store.handlers(None).await?);
    Ok(health::handler_checks(&statuses, &handlers, facts))
}

fn print(check: &Check) {
    println!("{:<8} {:<22} {}", check.state.as_str(), check.name, check.text);
    if let Some(fix) = &check.fix {
        println!("{:<8} {:<22} -> {fix}", "", "");
    }
}
