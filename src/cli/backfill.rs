//! `backfill`: read every existing user from WorkOS into the table.

use clap::{ArgMatches, Command};
use serde_json::json;

use super::reconcile::print_counts;
use super::scan::{ScanStep, context, run_steps};
use super::{Exit, Failure, flag};
use crate::config::Source;
use crate::sync::backfill::organizations::{KindCounts, OrganizationsBackfill, OrganizationsStep};
use crate::sync::backfill::{Backfill, BackfillStep};

pub(super) fn command() -> Command {
    Command::new("backfill")
        .about("Read all users, organizations and memberships from WorkOS into the tables. Continue an interrupted backfill")
        .arg(flag("dry-run", "Count the changes, but change nothing"))
        .arg(flag("json", "Print the summary as JSON"))
}

pub(super) async fn run(matches: &ArgMatches, source: &Source) -> Result<Exit, Failure> {
    let context = context(source)?;
    let dry_run = matches.get_flag("dry-run");
    let backfill = Backfill::new(context.clone(), dry_run);
    let counts = run_steps(&context, &backfill, "backfill of users", |step| match step {
        BackfillStep::Page { counts, position } => {
            ScanStep::Page(counts, position.map(|id| format!("at {id}")).unwrap_or_default())
        }
        BackfillStep::Done(counts) => ScanStep::Done(counts),
    })
    .await?;
    let organizations = OrganizationsBackfill::new(context.clone(), dry_run);
    let kinds = run_steps(&context, &organizations, "backfill of organizations and memberships", |step| match step {
        OrganizationsStep::Page { counts, position } => {
            ScanStep::Page(counts.total(), position.map(|id| format!("at {id}")).unwrap_or_default())
        }
        OrganizationsStep::Done(counts) => ScanStep::Done(counts),
    })
    .await?;
    if matches.get_flag("json") {
        let KindCounts { organizations, memberships } = kinds;
        let summary =
            json!({ "dry_run": dry_run, "users": counts, "organizations": organizations, "memberships": memberships });
        println!("{summary}");
    } else {
        if dry_run {
            println!("dry run, nothing changed");
        }
        print_counts(context.kinds, counts, kinds);
    }
    Ok(Exit::Yes)
}
