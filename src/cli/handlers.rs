//! `handlers`: what reacts to changes, seen and worked by an operator.

use std::io::Write;
use std::time::Duration;

use clap::{Arg, ArgMatches, Command};
use serde_json::json;

use super::walk::flag;
use super::{Exit, Failure, events, with_settings};
use crate::config::Source;
use crate::domain::clock::Clock;
use crate::domain::handler::{NAME, Types, is_name};
use crate::domain::timestamp::Timestamp;
use crate::store::Store;
use crate::store::handler_admin::{AddError, NewHandler};
use crate::store::handler_standing::HandlerStanding;

const ADD: &str = "\
Has a PL/pgSQL function (change jsonb) called for every change of the given types, in a transaction of its own that commits
together with the fact that it ran. It runs as the function's owner, or as --role; the service's own role has to be a member
of that. This keeps mistakes apart, not hostile code: a function may give the role back by itself.";

pub(super) fn command() -> Command {
    let option = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    let name = || Arg::new("name").value_name("HANDLER").required(true).help("its name, as `handlers list` shows it");
    let json = || flag("json", "print for machines");
    let add = Command::new("add")
        .about("Have a function in the database called for every change")
        .long_about(ADD)
        .arg(
            Arg::new("function")
                .value_name("FUNCTION")
                .required(true)
                .help("with its schema, for example public.on_workos_user"),
        )
        .arg(
            option("types", "TYPES", "event types: whole, as user.* or *, separated by commas")
                .default_value("user.*")
                .value_parser(|text: &str| Types::parse(text).map_err(|error| error.to_string())),
        )
        .arg(option("name", "NAME", "keeps the progress; the function's name unless given").value_parser(checked_name))
        .arg(option("role", "ROLE", "runs it; the function's owner unless given"))
        .arg(
            option("timeout", "DURATION", "how long it may take with one change")
                .default_value("10s")
                .value_parser(timeout),
        )
        .arg(flag("from-start", "call it first for every live user, as created of origin backfill"));
    let list = Command::new("list").about("Every handler: how far it is, and its last error").arg(json());
    let pause = Command::new("pause").about("Let a handler take nothing until it is resumed").arg(name());
    let resume = Command::new("resume").about("Let a paused handler go on where it was").arg(name());
    let remove = Command::new("remove").about("Forget a handler, its progress and its backlog").arg(name());
    let redrive = Command::new("redrive")
        .about("Try what was set aside again, and what waits at once")
        .arg(name())
        .arg(option("user", "ID", "only this user's changes"));
    let commands = [add, list, pause, resume, remove, redrive].map(|it| with_settings(it, &events::SETTINGS));
    Command::new("handlers")
        .about("What reacts to changes: functions in the database, and handlers of applications in Rust")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands(commands)
}

pub(super) async fn run(matches: &ArgMatches, source: &Source) -> Result<Exit, Failure> {
    let store = events::store(source)?;
    let Some((command, matches)) = matches.subcommand() else { return Ok(Exit::Usage) };
    match command {
        "add" => add(&store, matches).await,
        "list" => list(&store, matches.get_flag("json")).await,
        _ => work(&store, command, matches).await,
    }
}

async fn work(store: &Store, command: &str, matches: &ArgMatches) -> Result<Exit, Failure> {
    let name = matches.get_one::<String>("name").map(String::as_str).unwrap_or_default();
    let done = match command {
        "pause" => store.pause_handler(name, true).await?.then(|| "paused".to_owned()),
        "resume" => store.pause_handler(name, false).await?.then(|| "resumed".to_owned()),
        "remove" => store.remove_handler(name).await?.then(|| "removed".to_owned()),
        _ => {
            let user = matches.get_one::<String>("user").map(String::as_str);
            let redriven = store.redrive_handler(name, user).await?;
            redriven.map(|count| format!("changes tried again: {count}"))
        }
    };
    let done = done.ok_or_else(|| {
        Failure::new(Exit::No, format!("there is no handler {}; see `handlers list`", name.escape_debug()))
    })?;
    println!("{done}");
    Ok(Exit::Yes)
}

async fn add(store: &Store, matches: &ArgMatches) -> Result<Exit, Failure> {
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    let function = text("function").unwrap_or_default();
    if text("name").is_none() && !is_name(function.trim_end_matches("(jsonb)")) {
        return Err(Failure::new(Exit::Config, format!("give the handler a --name: {NAME}")));
    }
    let new = NewHandler {
        name: text("name"),
        function,
        role: text("role"),
        types: matches.get_one::<Types>("types").cloned().unwrap_or_else(|| Types::from_names(Vec::new())),
        timeout: matches.get_one::<Duration>("timeout").copied().unwrap_or_default(),
        from_start: matches.get_flag("from-start"),
    };
    let (name, role) = store.add_handler(&new).await?;
    let start = if new.from_start { "with every live user" } else { "at the end of the feed" };
    println!("{name} runs as {role}, and starts {start}");
    Ok(Exit::Yes)
}

async fn list(store: &Store, json: bool) -> Result<Exit, Failure> {
    let standings = store.handler_standings().await?;
    if json {
        println!("{}", json!(standings));
        return Ok(Exit::Yes);
    }
    let now = Clock::system().now();
    let mut out = std::io::stdout().lock();
    for standing in &standings {
        // A reader that is gone wants no more.
        if tell(&mut out, standing, now).is_err() {
            break;
        }
    }
    Ok(Exit::Yes)
}

fn tell(out: &mut impl Write, handler: &HandlerStanding, now: Timestamp) -> std::io::Result<()> {
    let what = match (&handler.function, &handler.role) {
        (Some(function), Some(role)) => format!("{function} as {role}"),
        _ => "in Rust".to_owned(),
    };
    let age = handler.oldest_at.map_or(0, |at| (now.unix_seconds() - at.unix_seconds()).max(0));
    writeln!(
        out,
        "{}  {}  {}  [{}]  depth {}, oldest {age} s, waiting {}, set aside {}",
        handler.name,
        handler.state,
        what.escape_debug(),
        handler.types.join(","),
        handler.depth,
        handler.waiting,
        handler.set_aside,
    )?;
    if let Some(trouble) = &handler.trouble {
        writeln!(out, "    {}", trouble.escape_debug())?;
    }
    let Some(error) = &handler.last_error else { return Ok(()) };
    let parts = [&error.sqlstate, &error.constraint, &error.place, &error.message];
    let parts: Vec<String> = parts.into_iter().flatten().map(|part| part.escape_debug().to_string()).collect();
    let at = error.at.map(|at| at.to_string()).unwrap_or_default();
    writeln!(out, "    {at}  change {} of {}: {}", error.position, error.user_id.escape_debug(), parts.join(", "))
}

fn checked_name(text: &str) -> Result<String, String> {
    if is_name(text) { Ok(text.to_owned()) } else { Err(NAME.to_owned()) }
}

fn timeout(text: &str) -> Result<Duration, String> {
    let range = Duration::from_millis(100)..=Duration::from_secs(300);
    let duration = humantime::parse_duration(text).ok().filter(|duration| range.contains(duration));
    duration.ok_or_else(|| "it must be a duration like 10s, of at most 5m".to_owned())
}

impl From<AddError> for Failure {
    fn from(error: AddError) -> Self {
        match error {
            AddError::Store(error) => error.into(),
            other => Self::new(Exit::Config, other),
        }
    }
}
