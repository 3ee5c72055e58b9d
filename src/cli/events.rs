//! `events`: the inbox, seen and worked by an operator.

use std::io::Write;
use std::time::Duration;

use clap::{Arg, ArgMatches, Command};
use serde_json::{Value, json};

use super::walk::flag;
use super::{Exit, Failure, serve, with_settings};
use crate::config::{self, Source};
use crate::domain::clock::Clock;
use crate::domain::timestamp::Timestamp;
use crate::store::Store;
use crate::store::inbox::{Entry, Filter};
use crate::sync::inbox::{self, Retried};

pub(super) const SETTINGS: [&str; 5] =
    ["DATABASE_URL", "AUTHKIT_SYNC_DB_POOL", "AUTHKIT_SYNC_DB_TIMEOUT", "AUTHKIT_SYNC_LOG_FORMAT", "RUST_LOG"];

const WHEN: &str = "2026-09-01T08:15:30Z, or how long ago: 90s, 2h, 7d";

pub(super) fn command() -> Command {
    let option = |name: &'static str, value: &'static str, help: &str| {
        Arg::new(name).long(name).value_name(value).help(help.to_owned())
    };
    let json = || flag("json", "print for machines");
    let list = Command::new("list")
        .about("The newest events, newest first")
        .arg(option("outcome", "OUTCOME", "only of this outcome").value_parser([
            "applied",
            "stale",
            "ignored",
            "quarantined",
        ]))
        .arg(option("type", "TYPE", "only of this type"))
        .arg(option("user", "ID", "only about this user"))
        .arg(option("since", "TIME", &format!("received since then: {WHEN}")).value_parser(instant))
        .arg(option("until", "TIME", "received before then").value_parser(instant))
        .arg(
            option("limit", "N", "at most so many")
                .value_parser(clap::value_parser!(i64).range(1..=100_000))
                .default_value("50"),
        )
        .arg(json());
    let id = Arg::new("id").value_name("EVENT").help("WorkOS's id, event_…");
    let show = Command::new("show")
        .about("One event with its payload, which may hold personal data")
        .arg(id.clone().required(true))
        .arg(json());
    let retry = Command::new("retry")
        .about("Try the quarantine again, all of it or one event; exit 1 when something stays")
        .arg(id)
        .arg(json());
    let replay = Command::new("replay")
        .about("Apply every kept event once more; where the table is right, nothing changes")
        .arg(option("since", "TIME", &format!("received since then: {WHEN}")).value_parser(instant).required(true))
        .arg(json());
    let commands = [list, show, retry, replay].map(|command| with_settings(command, &SETTINGS));
    Command::new("events")
        .about("The inbox: every event WorkOS sent, and what became of it")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands(commands)
}

pub(super) async fn run(matches: &ArgMatches, source: &Source) -> Result<Exit, Failure> {
    let store = store(source)?;
    match matches.subcommand() {
        Some(("list", matches)) => list(&store, matches).await,
        Some(("show", matches)) => show(&store, matches).await,
        Some(("retry", matches)) => {
            let id = matches.get_one::<String>("id");
            if let Some(id) = id
                && store.entry(id).await?.is_none()
            {
                return Err(unknown(id));
            }
            let retried = inbox::retry(&store, id.map(String::as_str)).await?;
            Ok(told(&retried, matches.get_flag("json")))
        }
        Some(("replay", matches)) => {
            let since = matches.get_one::<Timestamp>("since").copied().unwrap_or(Timestamp::from_unix_micros(0));
            let replayed = inbox::replay(&store, since).await?;
            told(&replayed, matches.get_flag("json"));
            Ok(Exit::Yes)
        }
        _ => Ok(Exit::Usage),
    }
}

/// The inbox can be looked after without knowing whose it is.
pub(super) fn store(source: &Source) -> Result<Store, Failure> {
    let database = config::database(source)?;
    Ok(Store::of_any_client(serve::pool(&database), database.timeout))
}

async fn list(store: &Store, matches: &ArgMatches) -> Result<Exit, Failure> {
    let text = |name| matches.get_one::<String>(name).cloned();
    let time = |name| matches.get_one::<Timestamp>(name).copied();
    let filter = Filter {
        outcome: text("outcome"),
        event_type: text("type"),
        user: text("user"),
        since: time("since"),
        until: time("until"),
    };
    let limit = matches.get_one::<i64>("limit").copied().unwrap_or(50);
    let entries = store.entries(&filter, limit).await?;
    if matches.get_flag("json") {
        println!("{}", json!(entries));
    } else {
        print(&entries);
    }
    Ok(Exit::Yes)
}

async fn show(store: &Store, matches: &ArgMatches) -> Result<Exit, Failure> {
    let id = matches.get_one::<String>("id").map(String::as_str).unwrap_or_default();
    let entry = store.entry(id).await?.ok_or_else(|| unknown(id))?;
    let payload = store.payload(id).await?;
    let text = payload.as_deref().map(String::from_utf8_lossy);
    let as_json = text.as_deref().and_then(|text| serde_json::from_str::<Value>(text).ok());
    if matches.get_flag("json") {
        let payload = as_json.or_else(|| text.map(|text| Value::String(text.into_owned())));
        println!("{}", json!({ "event": entry, "payload": payload }));
        return Ok(Exit::Yes);
    }
    print(&[entry]);
    match (as_json, text) {
        (Some(json), _) => println!("{json:#}"),
        (None, Some(text)) => println!("{}", text.escape_debug()),
        (None, None) => println!("its payload is no longer kept"),
    }
    Ok(Exit::Yes)
}

/// A line per event.
pub(super) fn print(entries: &[Entry]) {
    let mut out = std::io::stdout().lock();
    for entry in entries {
        let feeds = match (entry.webhook_at, entry.catch_up_at) {
            (Some(_), Some(_)) => "webhook+catch_up",
            (Some(_), None) => "webhook",
            (None, Some(_)) => "catch_up",
            (None, None) => "read",
        };
        let reason = entry.reason.as_deref().map(|reason| format!("  ({reason})")).unwrap_or_default();
        let erased = if entry.erased { "  [payload gone]" } else { "" };
        let written = writeln!(
            out,
            "{}  {:<11}  {:<16}  {}  {}  {}{reason}{erased}",
            entry.received_at,
            entry.outcome,
            feeds,
            entry.event_type.escape_debug(),
            entry.id.escape_debug(),
            entry.user_id.as_deref().unwrap_or("-").escape_debug(),
        );
        if written.is_err() {
            return;
        }
    }
}

fn told(retried: &Retried, json: bool) -> Exit {
    if json {
        println!("{}", json!(retried));
    } else if retried.tried() == 0 {
        println!("nothing to try");
    } else {
        let outcomes: Vec<String> =
            retried.outcomes.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
        println!("{}", outcomes.join(", "));
        for (id, reason) in &retried.left {
            println!("{}  {reason}", id.escape_debug());
        }
    }
    if retried.left.is_empty() { Exit::Yes } else { Exit::No }
}

fn unknown(id: &str) -> Failure {
    Failure::new(Exit::No, format!("there is no event {}", id.escape_debug()))
}

fn instant(text: &str) -> Result<Timestamp, String> {
    let ago = |ago: Duration| Clock::system().now().minus(ago);
    let instant = Timestamp::parse(text).or_else(|| humantime::parse_duration(text).ok().map(ago));
    instant.ok_or_else(|| format!("it must be {WHEN}"))
}
