//! `backfill`: read every existing user from WorkOS into the table.

use clap::{ArgMatches, Command};
use serde_json::json;

use super::scan::{ScanStep, context, run_steps};
use super::{Exit, Failure, flag};
use crate::config::Source;
use crate::sync::backfill::{Backfill, BackfillStep};

pub(super) fn command() -> Command {
    Command::new("backfill")
        .about("Read all users from WorkOS into the table. Continue an interrupted backfill")
        .arg(flag("dry-run", "Count the changes, but change nothing"))
        .arg(flag("json", "Print the summary as JSON"))
}

pub(super) async fn run(matches: &ArgMatches, source: &Source) -> Result<Exit, Failure> {
    let context = context(source)?;
    let dry_run = matches.get_flag("dry-run");
    let backfill = Backfill::new(context.clone(), dry_run);
    let counts = run_steps(&context, &backfill, |step| match step {
        BackfillStep::Page { counts, position } => {
            ScanStep::Page(counts, position.map(|id| format!("at {id}")).unwrap_or_default())
        }
        BackfillStep::Done(counts) => ScanStep::Done(counts),
    })
    .await?;
    if matches.get_flag("json") {
        println!("{}", json!({ "dry_run": dry_run, "users": counts }));
    } else {
        println!("{}{}", if dry_run { "dry run, nothing changed: " } else { "" }, super::reconcile::summary(counts));
    }
    Ok(Exit::Yes)
}
