//! `webhook`: register the webhook endpoint at WorkOS, and test it.

mod register;
mod sign;

use clap::{ArgMatches, Command};

use super::{Exit, Failure};
use crate::config::Source;

pub(super) fn command() -> Command {
    Command::new("webhook")
        .about("Register the webhook endpoint at WorkOS, or test it")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([register::command(), sign::command()])
}

pub(super) async fn run(matches: &ArgMatches, source: &Source) -> Result<Exit, Failure> {
    match matches.subcommand() {
        Some(("register", matches)) => register::run(matches, source).await,
        Some(("sign", matches)) => sign::run(matches, source).await,
        _ => Ok(Exit::Usage),
    }
}
