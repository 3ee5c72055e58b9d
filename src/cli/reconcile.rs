//! `reconcile`: compare the table with WorkOS, and repair it.

use clap::{ArgMatches, Command};
use serde_json::json;

use super::walk::{Reached, context, flag, follow, with_walk_settings};
use super::{Exit, Failure};
use crate::config::Source;
use crate::store::walks::Counts;
use crate::sync::reconcile::{Mode, Reconcile, Step};

pub(super) fn command() -> Command {
    let accept = "deletions beyond the bound are meant, and so is what looks like another environment's key; good for one \
                  complete reconcile";
    let command = Command::new("reconcile")
        .about("Compare every user with WorkOS and repair the table")
        .arg(flag("check", "change nothing; print what differs (ids and field names), and exit 1 when something does"))
        .arg(flag("accept-deletions", accept).conflicts_with("check"))
        .arg(flag("json", "print for machines"));
    with_walk_settings(command)
}

pub(super) async fn run(matches: &ArgMatches, source: &Source) -> Result<Exit, Failure> {
    let context = context(source)?;
    let mode = if matches.get_flag("check") { Mode::Check } else { Mode::Repair };
    if matches.get_flag("accept-deletions") {
        context.store.accept_deletions().await?;
    }
    let reconcile = Reconcile::new(context.clone(), mode, None);
    let report = follow(&context, &reconcile, async || {
        Ok(match reconcile.step().await? {
            Step::Standby => Reached::Elsewhere,
            Step::Going { counts, open } if open > 0 => Reached::Going(counts, format!("{open} to be asked about")),
            Step::Going { counts, .. } => Reached::Going(counts, String::new()),
            Step::Done(report) => Reached::End(report),
        })
    })
    .await?;
    if matches.get_flag("json") {
        println!("{}", json!({ "check": mode == Mode::Check, "users": report.counts, "drift": report.drift }));
    } else {
        for drift in &report.drift {
            println!("{drift}");
        }
        println!("{}{}", if mode == Mode::Check { "would be: " } else { "" }, summary(report.counts));
    }
    let drifted = mode == Mode::Check && !report.drift.is_empty();
    Ok(if drifted { Exit::No } else { Exit::Yes })
}

/// One line for people.
pub(super) fn summary(counts: Counts) -> String {
    let Counts { new, updated, unchanged, tombstoned, quarantined } = counts;
    format!("{new} new, {updated} updated, {unchanged} unchanged, {tombstoned} tombstoned, {quarantined} quarantined")
}
