//! `handlers`: add, list, pause and retry handlers of changes.

use std::io::Write;
use std::time::Duration;

use clap::{Arg, ArgMatches, Command};
use serde_json::json;

use super::database::store_of_any_client;
use super::{Exit, Failure, flag};
use crate::config::Source;
use crate::domain::clock::Clock;
use crate::domain::event_types::{documented, is_documented};
use crate::domain::handler::{NAME, Types, is_name};
use crate::domain::timestamp::Timestamp;
use crate::store::Store;
use crate::store::handlers::HandlerStatus;
use crate::store::handlers::{AddError, NewHandler};
use crate::sync::health::count;

const ADD: &str = "\
Register a PL/pgSQL function (change jsonb) that the service calls for every change of the given types. Each call has its own
transaction, which also stores the progress of the handler. The function runs as its owner, or as --role. The service's role must
be a member of that role. A role protects against mistakes, not against hostile code, because a function can reset its role.";

pub(super) fn command() -> Command {
    let option = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    let name =
        || Arg::new("name").value_name("HANDLER").required(true).help("Name of the handler, as in `handlers list`");
    let json = || flag("json", "Print the result as JSON");
    let add = Command::new("add")
        .about("Register a function in the database that is called for every change")
        .long_about(ADD)
        .arg(
            Arg::new("function")
                .value_name("FUNCTION")
                .required(true)
                .help("Function with its schema, for example public.on_workos_user"),
        )
        .arg(
            option("types", "TYPES", "Event types, separated by commas: user.created, user.* or *")
                .default_value("user.*")
                .value_parser(|text: &str| Types::parse(text).map_err(|error| error.to_string())),
        )
        .arg(
            option("name", "NAME", "Name under which the progress is stored. Default: the name of the function")
                .value_parser(checked_name),
        )
        .arg(option("role", "ROLE", "Role that runs the function. Default: the owner of the function"))
        .arg(option("timeout", "DURATION", "Timeout of one call").default_value("10s").value_parser(timeout))
        .arg(flag("from-start", "First call the function once for every live user: kind created, origin backfill"));
    let list = Command::new("list").about("List all handlers with their progress and last error").arg(json());
    let pause = Command::new("pause").about("Pause a handler. Resume it with `handlers resume`").arg(name());
    let resume = Command::new("resume").about("Resume a paused handler at its position").arg(name());
    let remove = Command::new("remove").about("Remove a handler with its progress and its backlog").arg(name());
    let redrive = Command::new("redrive").about("Retry dead-lettered and waiting changes now").arg(name()).arg(option(
        "user",
        "ID",
        "Only changes of this user",
    ));
    Command::new("handlers")
        .about("Manage handlers: code that runs for every change, in SQL or in Rust")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([add, list, pause, resume, remove, redrive])
}

pub(super) async fn run(matches: &ArgMatches, source: &Source) -> Result<Exit, Failure> {
    let store = store_of_any_client(source)?;
    let Some((command, matches)) = matches.subcommand() else { return Ok(Exit::Usage) };
    match command {
        "add" => add(&store, matches).await,
        "list" => list(&store, matches.get_flag("json")).await,
        _ => change(&store, command, matches).await,
    }
}

async fn change(store: &Store, command: &str, matches: &ArgMatches) -> Result<Exit, Failure> {
    let name = matches.get_one::<String>("name").map(String::as_str).unwrap_or_default();
    let done = match command {
        "pause" => store.pause_handler(name, true).await?.then(|| "paused".to_owned()),
        "resume" => store.pause_handler(name, false).await?.then(|| "resumed".to_owned()),
        "remove" => store.remove_handler(name).await?.then(|| "removed".to_owned()),
        _ => {
            let user = matches.get_one::<String>("user").map(String::as_str);
            let redriven = store.redrive_handler(name, user).await?;
            redriven.map(|redriven| format!("{} will be retried", count(redriven, "change")))
        }
    };
    let done = done.ok_or_else(|| {
        Failure::new(
            Exit::No,
            format!("handler {} not found; list handlers with `authkit-sync handlers list`", name.escape_debug()),
        )
    })?;
    println!("{done}");
    Ok(Exit::Yes)
}

async fn add(store: &Store, matches: &ArgMatches) -> Result<Exit, Failure> {
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    let new = NewHandler {
        name: text("name"),
        function: text("function").unwrap_or_default(),
        role: text("role"),
        types: matches.get_one::<Types>("types").cloned().unwrap_or_else(|| Types::from_names(Vec::new())),
        timeout: matches.get_one::<Duration>("timeout").copied().unwrap_or_default(),
        from_start: matches.get_flag("from-start"),
    };
    if new.from_start && !new.types.contains("user.created") {
        return Err(Failure::new(
            Exit::Usage,
            "--from-start calls the function for existing users only, and --types does not include user.created; remove \
             --from-start, or add user.* to --types",
        ));
    }
    let (name, role) = store.add_handler(&new).await?;
    warn_of_unknown_types(&new.types);
    let start = if new.from_start { "with all live users" } else { "at the end of the feed" };
    println!("added {name}: it runs as {role} and starts {start}");
    Ok(Exit::Yes)
}

/// Warns about misspelled types. They are accepted, because WorkOS adds types without notice.
fn warn_of_unknown_types(types: &Types) {
    for name in types.names().iter().filter(|name| !is_documented(name)) {
        let closest = documented().min_by_key(|known| strsim::damerau_levenshtein(known, name)).unwrap_or_default();
        tracing::warn!(
            "WorkOS documents no event type {name}, so the handler may never be called for it. Did you mean {closest}?"
        );
    }
}

async fn list(store: &Store, json: bool) -> Result<Exit, Failure> {
    let statuses = store.handler_statuses().await?;
    if json {
        println!("{}", json!(statuses));
        return Ok(Exit::Yes);
    }
    let now = Clock::system().now();
    let mut out = std::io::stdout().lock();
    for handler in &statuses {
        // The reader closed the pipe.
        if print(&mut out, handler, now).is_err() {
            break;
        }
    }
    Ok(Exit::Yes)
}

fn print(out: &mut impl Write, handler: &HandlerStatus, now: Timestamp) -> std::io::Result<()> {
    let what = match (&handler.function, &handler.role) {
        (Some(function), Some(role)) => format!("{function} as {role}"),
        _ => "in Rust".to_owned(),
    };
    let age = handler.oldest_at.map_or(0, |at| (now.unix_seconds() - at.unix_seconds()).max(0));
    writeln!(
        out,
        "{}  {}  {}  [{}]  depth {}, oldest {age} s, waiting {}, dead-lettered {}",
        handler.name,
        handler.state,
        what.escape_debug(),
        handler.types.join(","),
        handler.depth,
        handler.waiting,
        handler.dead_lettered,
    )?;
    if let Some(problem) = &handler.problem {
        writeln!(out, "    {}", problem.escape_debug())?;
    }
    if !handler.has_process && handler.state != "paused" {
        writeln!(
            out,
            "    no running process has this handler: start the process that registers it, or run `authkit-sync handlers remove {}`",
            handler.name
        )?;
    }
    let Some(error) = &handler.last_error else { return Ok(()) };
    let parts = [&error.sqlstate, &error.constraint, &error.location, &error.message];
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
    duration.ok_or_else(|| "expected a duration from 100ms to 5m, for example 10s".to_owned())
}

impl From<AddError> for Failure {
    fn from(error: AddError) -> Self {
        match error {
            AddError::Store(error) => error.into(),
            other => Self::new(Exit::Config, other),
        }
    }
}
