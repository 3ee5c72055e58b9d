//! `reconcile`: compare the table with WorkOS and repair it.

use clap::{ArgMatches, Command};
use serde_json::{Value, json};

use super::scan::{ScanStep, context, run_steps};
use super::{Exit, Failure, flag};
use crate::config::Source;
use crate::domain::kinds::Kinds;
use crate::store::scans::ScanCounts;
use crate::sync::backfill::organizations::KindCounts;
use crate::sync::health::count;
use crate::sync::reconcile::organizations::{OrganizationsReconcile, OrganizationsReconcileStep};
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
    let report = run_steps(&context, &reconcile, "reconcile of users", |step| match step {
        ReconcileStep::InProgress { counts, unconfirmed } if unconfirmed > 0 => {
            ScanStep::Page(counts, format!("{} to confirm", count(unconfirmed, "missing user")))
        }
        ReconcileStep::InProgress { counts, .. } => ScanStep::Page(counts, String::new()),
        ReconcileStep::Done(report) => ScanStep::Done(report),
    })
    .await?;
    let (users, mut drift) = (report.counts, report.drift);
    let organizations = OrganizationsReconcile::new(context.clone(), mode, None);
    let report = run_steps(&context, &organizations, "reconcile of organizations and memberships", |step| match step {
        OrganizationsReconcileStep::InProgress { counts, unconfirmed } if unconfirmed > 0 => {
            ScanStep::Page(counts.total(), format!("{} to confirm", count(unconfirmed, "missing object")))
        }
        OrganizationsReconcileStep::InProgress { counts, .. } => ScanStep::Page(counts.total(), String::new()),
        OrganizationsReconcileStep::Done(report) => ScanStep::Done(report),
    })
    .await?;
    drift.extend(report.drift);
    let KindCounts { organizations, memberships } = report.counts;
    if matches.get_flag("json") {
        let is_check = mode == Mode::Check;
        let counts = json!({ "users": users, "organizations": organizations, "memberships": memberships });
        let mut output = json!({ "check": is_check, "drift": drift });
        if let (Some(output), Value::Object(counts)) = (output.as_object_mut(), counts) {
            output.extend(counts);
        }
        println!("{output}");
    } else {
        for drift in &drift {
            println!("{drift}");
        }
        if mode == Mode::Check {
            println!("check, nothing changed");
        }
        print_counts(context.kinds, users, report.counts);
    }
    let drifted = mode == Mode::Check && !drift.is_empty();
    Ok(if drifted { Exit::No } else { Exit::Yes })
}

/// Prints a line for each kind that is synced.
pub(super) fn print_counts(kinds: Kinds, users: ScanCounts, counts: KindCounts) {
    println!("users: {}", summary(users));
    for (is_synced, name, counts) in [
        (kinds.organizations, "organizations", counts.organizations),
        (kinds.memberships, "memberships", counts.memberships),
    ] {
        if is_synced {
            println!("{name}: {}", summary(counts));
        }
    }
}

/// Returns the counts as one line of text.
fn summary(counts: ScanCounts) -> String {
    let ScanCounts { new, updated, unchanged, tombstoned, quarantined } = counts;
    format!("{new} new, {updated} updated, {unchanged} unchanged, {tombstoned} deleted, {quarantined} quarantined")
}
