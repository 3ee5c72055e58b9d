//! `reconcile`: compare the table with WorkOS and repair it.

use clap::{ArgMatches, Command};
use serde_json::json;

use super::scan::{ScanStep, context, run_steps};
use super::{Exit, Failure, flag};
use crate::config::Source;
use crate::store::scans::ScanCounts;
use crate::sync::reconcile::{Mode, Reconcile, ReconcileStep};

pub(super) fn command() -> Command {
    let accept = "Allow one complete reconcile to delete more than 5 % of the users (and more than 5), even if the API key seems \
                  to belong to another environment";
    Command::new("reconcile")
        .about("Compare all users with WorkOS and repair the table")
        .arg(flag(
            "check",
            "Change nothing. Print the differences (IDs and field names), and exit with 1 if there are any",
        ))
        .arg(flag("accept-deletions", accept).conflicts_with("check"))
        .arg(flag("json", "Print the result as JSON"))
}

pub(super) async fn run(matches: &ArgMatches, source: &Source) -> Result<Exit, Failure> {
    let context = context(source)?;
    let mode = if matches.get_flag("check") { Mode::Check } else { Mode::Repair };
    if matches.get_flag("accept-deletions") {
        context.store.accept_deletions().await?;
    }
    let reconcile = Reconcile::new(context.clone(), mode, None);
    let report = run_steps(&context, &reconcile, |step| match step {
        ReconcileStep::InProgress { counts, unconfirmed } if unconfirmed > 0 => {
            ScanStep::Page(counts, format!("{unconfirmed} missing users to confirm"))
        }
        ReconcileStep::InProgress { counts, .. } => ScanStep::Page(counts, String::new()),
        ReconcileStep::Done(report) => ScanStep::Done(report),
    })
    .await?;
    if matches.get_flag("json") {
        println!("{}", json!({ "check": mode == Mode::Check, "users": report.counts, "drift": report.drift }));
    } else {
        for drift in &report.drift {
            println!("{drift}");
        }
        println!("{}{}", if mode == Mode::Check { "check, nothing changed: " } else { "" }, summary(report.counts));
    }
    let drifted = mode == Mode::Check && !report.drift.is_empty();
    Ok(if drifted { Exit::No } else { Exit::Yes })
}

/// Returns the counts as one line of text.
pub(super) fn summary(counts: ScanCounts) -> String {
    let ScanCounts { new, updated, unchanged, tombstoned, quarantined } = counts;
    format!("{new} new, {updated} updated, {unchanged} unchanged, {tombstoned} deleted, {quarantined} quarantined")
}
