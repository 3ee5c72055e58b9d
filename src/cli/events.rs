//! `events`: list, retry and replay the events in the inbox.

use std::io::Write;
use std::time::Duration;

use clap::{Arg, ArgMatches, Command};
use serde_json::{Value, json};

use super::database::store_of_any_client;
use super::{Exit, Failure, flag};
use crate::config::{self, Source};
use crate::domain::timestamp::Timestamp;
use crate::store::Store;
use crate::store::events::{EventFilter, EventSummary};
use crate::sync::inbox::{self, Retried};

const WHEN: &str = "a time like 2026-09-01T08:15:30Z, or an age like 90s, 2h or 7d";

/// Number of events whose payloads are searched for an organization.
const SEARCHED: i64 = 50_000;

pub(super) fn command() -> Command {
    let option = |name: &'static str, value: &'static str, help: &str| {
        Arg::new(name).long(name).value_name(value).help(help.to_owned())
    };
    let json = || flag("json", "Print the result as JSON");
    let list = Command::new("list")
        .about("List the latest events, newest first")
        .arg(option("outcome", "OUTCOME", "Only events with this outcome").value_parser([
            "applied",
            "stale",
            "ignored",
            "quarantined",
            "dismissed",
        ]))
        .arg(option("type", "TYPE", "Only events of this type"))
        .arg(option("user", "ID", "Only events about this user"))
        .arg(option(
            "organization",
            "ID",
            &format!(
                "Only events that name this organization. Searches the payloads of the newest {SEARCHED} events of the period of \
                 --since and --until. An event whose payload was erased or has expired is not found"
            ),
        ))
        .arg(option("since", "TIME", &format!("Only events received since {WHEN}")).value_parser(when))
        .arg(option("until", "TIME", "Only events received before this time").value_parser(when))
        .arg(
            option("limit", "N", "Maximum number of events")
                .value_parser(clap::value_parser!(i64).range(1..=100_000))
                .default_value("50"),
        )
        .arg(json());
    let id = Arg::new("id").value_name("EVENT").help("Event ID, for example event_01H…");
    let show = Command::new("show")
        .about("Show one event with its payload. The payload can contain personal data")
        .arg(id.clone().required(true))
        .arg(json());
    let retry = Command::new("retry")
        .about("Retry all quarantined events, or one of them. Exit with 1 if one is still quarantined")
        .arg(id)
        .arg(json());
    let replay = Command::new("replay")
        .about("Apply all stored events again. Rows that are already correct do not change")
        .arg(option("since", "TIME", &format!("Only events received since {WHEN}")).value_parser(when).required(true))
        .arg(json());
    let dismiss = Command::new("dismiss")
        .about(
            "End the quarantine of an event without a retry. It is no longer counted, and expires like any other event. Exit with 1 if it is not in quarantine",
        )
        .arg(Arg::new("id").value_name("EVENT").help("Event ID, for example event_01H…").required(true))
        .arg(option("reason", "TEXT", "Why it is not retried. Recorded with the event").required(true));
    Command::new("events")
        .about("List, show, retry, replay or dismiss the events that WorkOS sent")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([list, show, retry, replay, dismiss])
}

pub(super) async fn run(matches: &ArgMatches, source: &Source) -> Result<Exit, Failure> {
    let store = store_of_any_client(source)?;
    match matches.subcommand() {
        Some(("list", matches)) => list(&store, matches).await,
        Some(("show", matches)) => show(&store, matches).await,
        Some(("retry", matches)) => {
            let id = matches.get_one::<String>("id");
            if let Some(id) = id
                && store.event_summary(id).await?.is_none()
            {
                return Err(unknown(id));
            }
            let kinds = config::kinds(source)?;
            let retried = inbox::retry(&store, kinds, id.map(String::as_str)).await?;
            Ok(report(&retried, matches.get_flag("json")))
        }
        Some(("dismiss", matches)) => dismiss(&store, matches).await,
        Some(("replay", matches)) => {
            let since = instant(&store, matches, "since").await?.unwrap_or(Timestamp::from_unix_micros(0));
            let replayed = inbox::replay(&store, config::kinds(source)?, since).await?;
            report(&replayed, matches.get_flag("json"));
            Ok(Exit::Yes)
        }
        _ => Ok(Exit::Usage),
    }
}

async fn list(store: &Store, matches: &ArgMatches) -> Result<Exit, Failure> {
    let text = |name| matches.get_one::<String>(name).cloned();
    let (since, until) = (instant(store, matches, "since").await?, instant(store, matches, "until").await?);
    let ids = match text("organization") {
        Some(id) => Some(store.events_naming(&id, (since, until), SEARCHED).await?),
        None => None,
    };
    let filter =
        EventFilter { outcome: text("outcome"), event_type: text("type"), user: text("user"), since, until, ids };
    let limit = matches.get_one::<i64>("limit").copied().unwrap_or(50);
    let entries = store.event_summaries(&filter, limit).await?;
    if matches.get_flag("json") {
        println!("{}", json!(entries));
    } else {
        print(&entries);
    }
    Ok(Exit::Yes)
}

/// Maximum length of the reason for a dismissal, in bytes.
const REASON: usize = 500;

async fn dismiss(store: &Store, matches: &ArgMatches) -> Result<Exit, Failure> {
    let text = |name| matches.get_one::<String>(name).map(|text| text.trim()).unwrap_or_default();
    let (id, reason) = (text("id"), text("reason"));
    if reason.is_empty() || reason.len() > REASON || reason.contains('\0') {
        return Err(Failure::new(Exit::Usage, format!("--reason must have 1 to {REASON} bytes")));
    }
    let entry = store.event_summary(id).await?.ok_or_else(|| unknown(id))?;
    if store.dismiss(id, reason).await? {
        println!("dismissed; `authkit-sync events list --outcome dismissed` lists it until it expires");
        return Ok(Exit::Yes);
    }
    let why = if entry.dismissed.is_some() { "it was dismissed before" } else { "it is not in quarantine" };
    Err(Failure::new(Exit::No, format!("event {} was not dismissed: {why}", id.escape_debug())))
}

async fn show(store: &Store, matches: &ArgMatches) -> Result<Exit, Failure> {
    let id = matches.get_one::<String>("id").map(String::as_str).unwrap_or_default();
    let entry = store.event_summary(id).await?.ok_or_else(|| unknown(id))?;
    let payload = store.event_payload(id).await?;
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
        (None, None) => println!("the payload was erased or has expired"),
    }
    Ok(Exit::Yes)
}

/// Prints one line for each event.
pub(super) fn print(entries: &[EventSummary]) {
    let mut out = std::io::stdout().lock();
    for entry in entries {
        let origin = match (entry.webhook_at, entry.catch_up_at) {
            (Some(_), Some(_)) => "webhook+catch_up",
            (Some(_), None) => "webhook",
            (None, Some(_)) => "catch_up",
            (None, None) => "read",
        };
        let reason = entry.reason.as_deref().map(|reason| format!("  ({reason})")).unwrap_or_default();
        let dismissed = entry.dismissed.as_deref().map(|why| format!("  [dismissed: {}]", why.escape_debug()));
        let dismissed = dismissed.unwrap_or_default();
        let erased = if entry.erased { "  [payload erased]" } else { "" };
        let written = writeln!(
            out,
            "{}  {:<11}  {:<16}  {}  {}  {}{reason}{dismissed}{erased}",
            entry.received_at,
            entry.outcome,
            origin,
            entry.event_type.escape_debug(),
            entry.id.escape_debug(),
            entry.user_id.as_deref().unwrap_or("-").escape_debug(),
        );
        if written.is_err() {
            return;
        }
    }
}

/// Prints the outcomes, and returns the exit code.
fn report(retried: &Retried, json: bool) -> Exit {
    if json {
        println!("{}", json!(retried));
    } else if retried.total() == 0 {
        println!("nothing to do: no event matches");
    } else {
        let outcomes: Vec<String> =
            retried.outcomes.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
        println!("{}", outcomes.join(", "));
        for (id, reason) in &retried.quarantined {
            println!("{}  {reason}", id.escape_debug());
        }
    }
    if retried.quarantined.is_empty() { Exit::Yes } else { Exit::No }
}

fn unknown(id: &str) -> Failure {
    Failure::new(
        Exit::No,
        format!("event {} not found; list events with `authkit-sync events list`", id.escape_debug()),
    )
}

/// A time or an age, as an operator writes it.
#[derive(Clone, Copy, Debug)]
enum When {
    At(Timestamp),
    Ago(Duration),
}

fn when(text: &str) -> Result<When, String> {
    let ago = || humantime::parse_duration(text).ok().map(When::Ago);
    let when = Timestamp::parse(text).map(When::At).or_else(ago);
    when.ok_or_else(|| format!("expected {WHEN}"))
}

/// Returns the instant of an argument. The inbox has times of the database's clock, so an age is subtracted from that clock.
async fn instant(store: &Store, matches: &ArgMatches, name: &str) -> Result<Option<Timestamp>, Failure> {
    Ok(match matches.get_one::<When>(name) {
        Some(When::At(at)) => Some(*at),
        Some(When::Ago(ago)) => Some(store.now().await?.minus(*ago)),
        None => None,
    })
}
