//! `status`: the summary of `doctor` on one screen.

use clap::{ArgMatches, Command};
use serde_json::json;

use super::doctor::diagnose;
use super::{Exit, Failure, flag};
use crate::config::Source;
use crate::sync::health::{self, Check, Facts, State, ago};

pub(super) fn command() -> Command {
    Command::new("status")
        .about("Show in a few lines whether the sync works: verdict, reasons, lag, jobs, quarantine. Exit with 1 if it does not")
        .arg(flag("json", "Print the summary as JSON"))
}

pub(super) async fn run(matches: &ArgMatches, source: &Source) -> Result<Exit, Failure> {
    let (checks, facts) = diagnose(source, 1).await;
    let verdict = health::worst(&checks);
    let reasons: Vec<&Check> = checks.iter().filter(|check| check.state == State::Failure).collect();
    if matches.get_flag("json") {
        let jobs: Vec<_> =
            facts.iter().flat_map(|facts| &facts.leases).map(|lease| (&lease.job, lease.is_held)).collect();
        let jobs: serde_json::Map<_, _> =
            jobs.into_iter().map(|(job, is_held)| (job.clone(), json!(is_held))).collect();
        println!(
            "{}",
            json!({
                "verdict": verdict,
                "reasons": reasons,
                "synced_through": facts.as_ref().and_then(|facts| facts.synced_through),
                "lag_seconds": facts.as_ref().and_then(|facts| facts.lag_seconds),
                "jobs": jobs,
                "scan_completed_at": facts.as_ref().and_then(|facts| facts.scanned_at),
                "quarantined": facts.as_ref().map(|facts| facts.quarantined),
            })
        );
    } else {
        print(&checks, verdict, &reasons, facts.as_ref());
    }
    Ok(if verdict == State::Failure { Exit::No } else { Exit::Yes })
}

fn print(checks: &[Check], verdict: State, reasons: &[&Check], facts: Option<&Facts>) {
    let warnings = checks.iter().filter(|check| check.state == State::Warning).count();
    println!(
        "verdict     {} ({} of {} checks failed, {warnings} warnings)",
        verdict.as_str(),
        reasons.len(),
        checks.len()
    );
    for reason in reasons {
        println!("reason      {}: {}", reason.name, reason.text);
    }
    let Some(facts) = facts else {
        println!("run `authkit-sync doctor` for every check and what to do");
        return;
    };
    let lag = facts.lag_seconds.map_or("unknown".to_owned(), ago);
    let through = facts.synced_through.map(|at| format!(", complete until {at}")).unwrap_or_default();
    println!("lag         {lag}{through}");
    let running: Vec<&str> =
        facts.leases.iter().filter(|lease| lease.is_held).map(|lease| lease.job.as_str()).collect();
    println!("jobs        {}", if running.is_empty() { "none".to_owned() } else { running.join(", ") });
    println!("last scan   {}", facts.scanned_at.map_or("none".to_owned(), |at| at.to_string()));
    println!("quarantine  {}", facts.quarantined);
    if verdict != State::Ok {
        println!("run `authkit-sync doctor` for every check and what to do");
    }
}
