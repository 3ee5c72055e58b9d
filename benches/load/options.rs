//! The options of the command line.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Arg, ArgAction, ArgMatches, Command};

/// What to measure, and with which data.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) rounds: usize,
    pub(crate) seconds: f64,
    /// Beginnings of names of rows. Empty: the default rows.
    pub(crate) rows: Vec<String>,
    /// Numbers of connections of the rows `webhooks` and `pgbench-statement`.
    pub(crate) connections: Vec<usize>,
    /// Webhooks per second of the open loop.
    pub(crate) rate: u32,
    pub(crate) users: u64,
    pub(crate) inbox: u64,
    pub(crate) processes: usize,
    /// Tokens that the row `lookups-new` has in each round.
    pub(crate) tokens: usize,
    /// Users that the row `backfill` reads.
    pub(crate) backfill: u64,
    pub(crate) binary: PathBuf,
    pub(crate) data: Option<PathBuf>,
    /// Settings of PostgreSQL, `name=value`.
    pub(crate) postgres: Vec<String>,
    /// Settings of the service, `NAME=value`.
    pub(crate) settings: Vec<String>,
    /// Print every round as JSON too.
    pub(crate) json: bool,
}

fn option(name: &'static str, default: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).default_value(default).help(help)
}

fn command() -> Command {
    let settings = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).action(ArgAction::Append).value_name("NAME=VALUE").help(help)
    };
    Command::new("load")
        .about("Measure webhooks and lookups, and compare them with an empty handler and PostgreSQL's own limits")
        .arg(option("rounds", "3", "Number of rounds. The table shows medians"))
        .arg(option("seconds", "2", "Duration of one measurement"))
        .arg(option("rows", "", "Rows to measure: beginnings of their names, separated by commas"))
        .arg(option("connections", "1,32,256", "Connections of the rows webhooks and pgbench-statement"))
        .arg(option("rate", "300", "Webhooks per second of the open loop"))
        .arg(option("users", "10000", "Users in the table before the first round. They are loaded with SQL"))
        .arg(option("inbox", "0", "Events in the inbox before the first round"))
        .arg(option("processes", "1", "Processes of the service on one database"))
        .arg(option("tokens", "30000", "Tokens of the row lookups-new in one round. It ends early when they run out"))
        .arg(option("backfill", "20000", "Users that the row backfill reads in one round"))
        .arg(option("binary", env!("CARGO_BIN_EXE_authkit-sync"), "The binary authkit-sync to measure"))
        .arg(Arg::new("data").long("data").help("Directory that keeps the database for a next run with as many users"))
        .arg(settings("postgres", "Setting of PostgreSQL, for example shared_buffers=4GB"))
        .arg(settings("set", "Setting of the service, for example AUTHKIT_SYNC_DB_POOL=40"))
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print each measurement as JSON too"))
        .arg(Arg::new("bench").long("bench").action(ArgAction::SetTrue).hide(true))
}

fn number<T: FromStr<Err: std::fmt::Debug>>(matches: &ArgMatches, name: &str) -> T {
    matches.get_one::<String>(name).unwrap().parse().unwrap()
}

fn list(matches: &ArgMatches, name: &str) -> Vec<String> {
    matches.get_many::<String>(name).unwrap_or_default().cloned().collect()
}

/// Reads the command line.
pub(crate) fn read(arguments: &[String]) -> Options {
    let matches = command().get_matches_from(arguments);
    let parts = |name: &str| {
        let text: String = number(&matches, name);
        text.split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect::<Vec<String>>()
    };
    Options {
        rounds: number(&matches, "rounds"),
        seconds: number(&matches, "seconds"),
        rows: parts("rows"),
        connections: parts("connections").iter().map(|part| part.parse().unwrap()).collect(),
        rate: number(&matches, "rate"),
        users: number(&matches, "users"),
        inbox: number(&matches, "inbox"),
        processes: number(&matches, "processes"),
        tokens: number(&matches, "tokens"),
        backfill: number(&matches, "backfill"),
        binary: number(&matches, "binary"),
        data: matches.get_one::<String>("data").map(PathBuf::from),
        postgres: list(&matches, "postgres"),
        settings: list(&matches, "set"),
        json: matches.get_flag("json"),
    }
}
