//! `status`: the summary of `doctor` on one screen.

use clap::{ArgMatches, Command};
use serde_json::{Map, Value, json};

use super::database::store_of_any_client;
use super::doctor::diagnose;
use super::{Exit, Failure, flag};
use crate::config::{self, Source};
use crate::domain::kinds::Kinds;
use crate::store::scans::{ScanKind, ScanState};
use crate::store::sizes::TableSize;
use crate::sync::health::{self, Check, Facts, State, ago, count};

pub(super) fn command() -> Command {
    Command::new("status")
        .about("Show in a few lines whether the sync works: verdict, reasons, lag, objects, jobs, quarantine. Exit with 1 if it does not")
        .arg(flag("json", "Print the summary as JSON"))
}

pub(super) async fn run(matches: &ArgMatches, source: &Source) -> Result<Exit, Failure> {
    let (checks, facts) = diagnose(source, 1).await;
    let verdict = health::worst(&checks);
    // What could not be checked has no fix of its own: its cause is another check.
    let is_reason = |check: &&Check| check.state != State::Ok && check.fix.is_some();
    let mut reasons: Vec<&Check> = checks.iter().filter(is_reason).collect();
    reasons.sort_by_key(|check| std::cmp::Reverse(check.state));
    let kinds = config::kinds(source).unwrap_or(Kinds::ALL);
    let objects = match &facts {
        Some(facts) => objects(facts, &sizes(source).await, kinds),
        None => Vec::new(),
    };
    if matches.get_flag("json") {
        println!("{}", as_json(verdict, &reasons, facts.as_ref(), &objects));
    } else {
        print(&checks, verdict, &reasons, facts.as_ref(), &objects);
    }
    Ok(if verdict == State::Failure { Exit::No } else { Exit::Yes })
}

/// Returns the number of rows of the tables, or nothing if it cannot be read.
async fn sizes(source: &Source) -> Vec<TableSize> {
    let Ok(store) = store_of_any_client(source) else { return Vec::new() };
    store.table_sizes().await.unwrap_or_default()
}

/// The objects of one kind.
struct Objects {
    kind: &'static str,
    is_synced: bool,
    live: Option<i64>,
    backfill: ScanState,
    reconcile: ScanState,
}

fn objects(facts: &Facts, sizes: &[TableSize], kinds: Kinds) -> Vec<Objects> {
    use ScanKind as Scan;
    [
        ("users", true, "users", Scan::Backfill, Scan::Reconcile),
        (
            "organizations",
            kinds.organizations,
            "organizations",
            Scan::BackfillOrganizations,
            Scan::ReconcileOrganizations,
        ),
        (
            "memberships",
            kinds.memberships,
            "organization_memberships",
            Scan::BackfillMemberships,
            Scan::ReconcileMemberships,
        ),
    ]
    .into_iter()
    .map(|(kind, is_synced, table, backfill, reconcile)| Objects {
        kind,
        is_synced,
        live: sizes.iter().find(|size| size.name == table).map(|size| size.live),
        backfill: facts.scan(backfill),
        reconcile: facts.scan(reconcile),
    })
    .collect()
}

impl Objects {
    fn text(&self) -> String {
        if !self.is_synced {
            return "not synced (AUTHKIT_SYNC_KINDS)".to_owned();
        }
        let live = self.live.map_or("unknown number of rows".to_owned(), |live| format!("{live} live"));
        let read = count(self.backfill.counts.total(), "object");
        let backfill = match (self.backfill.started_at, self.backfill.completed_at) {
            (Some(_), _) => format!("a backfill runs and has read {read}"),
            (None, Some(at)) => format!("backfill completed {at}"),
            (None, None) => "no backfill has completed".to_owned(),
        };
        let reconcile = match (self.reconcile.started_at, self.reconcile.completed_at) {
            (Some(_), _) => "a reconcile runs".to_owned(),
            (None, Some(at)) => format!("last reconcile {at}"),
            (None, None) => "no reconcile yet".to_owned(),
        };
        format!("{live}, {backfill}, {reconcile}")
    }

    fn as_json(&self) -> Value {
        if !self.is_synced {
            return Value::Null;
        }
        let is_running = self.backfill.started_at.is_some();
        json!({
            "live": self.live,
            "backfill_completed_at": self.backfill.completed_at,
            "backfill_read": is_running.then(|| self.backfill.counts.total()),
            "reconcile_completed_at": self.reconcile.completed_at,
        })
    }
}

fn as_json(verdict: State, reasons: &[&Check], facts: Option<&Facts>, objects: &[Objects]) -> Value {
    let leases = facts.into_iter().flat_map(|facts| &facts.leases);
    let jobs: Map<_, _> = leases.map(|lease| (lease.job.clone(), json!(lease.is_held))).collect();
    let objects: Map<_, _> = objects.iter().map(|of| (of.kind.to_owned(), of.as_json())).collect();
    json!({
        "verdict": verdict,
        "reasons": reasons,
        "synced_through": facts.and_then(|facts| facts.synced_through),
        "lag_seconds": facts.and_then(|facts| facts.lag_seconds),
        "objects": objects,
        "jobs": jobs,
        "scan_completed_at": facts.and_then(|facts| facts.scanned_at),
        "quarantined": facts.map(|facts| facts.quarantined),
    })
}

fn print(checks: &[Check], verdict: State, reasons: &[&Check], facts: Option<&Facts>, objects: &[Objects]) {
    let in_state = |state| checks.iter().filter(|check| check.state == state).count();
    println!(
        "verdict        {} ({} of {} failed, {})",
        verdict.as_str(),
        in_state(State::Failure),
        count(checks.len(), "check"),
        count(in_state(State::Warning), "warning")
    );
    for reason in reasons {
        println!("{:<14} {}: {}", reason.state.as_str(), reason.name, reason.text);
    }
    if let Some(facts) = facts {
        let lag = facts.lag_seconds.map_or("unknown".to_owned(), ago);
        let through = facts.synced_through.map(|at| format!(", complete until {at}")).unwrap_or_default();
        println!("lag            {lag}{through}");
        for of in objects {
            println!("{:<14} {}", of.kind, of.text());
        }
        let held = facts.leases.iter().filter(|lease| lease.is_held);
        let running: Vec<&str> = held.map(|lease| lease.job.as_str()).collect();
        println!("jobs           {}", if running.is_empty() { "none".to_owned() } else { running.join(", ") });
        println!("quarantine     {}", count(facts.quarantined, "event"));
    }
    if verdict != State::Ok {
        println!("run `authkit-sync doctor` for every check and what to do");
    }
}
