//! PostgreSQL's limits, by pgbench.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::database::Database;
use super::options::Options;
use super::requests::{FIRST, created};

/// What pgbench runs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Script {
    /// One statement for each event: inserts the event and upserts the user.
    Statement,
    /// A hundred events in a transaction.
    Unnest,
    /// Reads a user by its ID.
    Reads,
}

/// Each session has its own counter, so that IDs are new and ascending.
const STATEMENT: &str = r"
\set number :first + :client_id * 1000000 + :done
\set done :done + 1
with event as (
    insert into bench.events (id, type, user_id, created_at, payload)
    values ('event_' || :run || '_' || :number, 'user.created', 'user_' || :run || '_' || :number, :at, :payload)
    on conflict do nothing
)
insert into bench.users as stored (
    id, email, email_verified, first_name, last_name, name, external_id, metadata, locale, created_at, updated_at
)
values (
    'user_' || :run || '_' || :number, 'user_' || :run || '_' || :number || '@example.test', true, 'Ada', 'Quill', 'Ada Quill',
    'crm-user_' || :run || '_' || :number, :metadata, 'en-GB', :at, :at
)
on conflict (id) do update set
    email = excluded.email, email_verified = excluded.email_verified, first_name = excluded.first_name,
    last_name = excluded.last_name, name = excluded.name, external_id = excluded.external_id,
    metadata = excluded.metadata, locale = excluded.locale, updated_at = excluded.updated_at, synced_at = now()
where stored.updated_at < excluded.updated_at;
";

const UNNEST: &str = r"
\set number :first + :client_id * 10000000 + :done
\set done :done + 100
with given as (
    select :run || '_' || (:number + place) as id, payload
    from unnest(cast(:payloads as bytea[])) with ordinality as given (payload, place)
), event as (
    insert into bench.events (id, type, user_id, created_at, payload)
    select 'event_' || id, 'user.created', 'user_' || id, cast(:at as timestamptz), payload from given
    on conflict do nothing
)
insert into bench.users as stored (
    id, email, email_verified, first_name, last_name, name, external_id, metadata, locale, created_at, updated_at
)
select
    'user_' || id, 'user_' || id || '@example.test', true, 'Ada', 'Quill', 'Ada Quill', 'crm-user_' || id,
    cast(:metadata as jsonb), 'en-GB', cast(:at as timestamptz), cast(:at as timestamptz)
from given
on conflict (id) do update set
    email = excluded.email, email_verified = excluded.email_verified, first_name = excluded.first_name,
    last_name = excluded.last_name, name = excluded.name, external_id = excluded.external_id,
    metadata = excluded.metadata, locale = excluded.locale, updated_at = excluded.updated_at, synced_at = now()
where stored.updated_at < excluded.updated_at;
";

const READS: &str = r"
\set number random(:first, :last)
select * from workos.users where id = 'user_seed_' || :number;
";

/// The results of pgbench.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    /// Events, or reads.
    pub(crate) count: u64,
    pub(crate) seconds: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

/// The program of the newest installation.
fn program() -> PathBuf {
    let installed = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().filter_map(Result::ok);
    let version = |path: &PathBuf| path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
    let newest = installed.map(|entry| entry.path()).max_by_key(version);
    newest.map(|path| path.join("bin/pgbench")).filter(|path| path.exists()).unwrap_or_else(|| "pgbench".into())
}

/// Runs a script at this many sessions.
pub(crate) fn run(
    script: Script,
    database: &Database,
    options: &Options,
    folder: &Path,
    run: &str,
    clients: usize,
) -> Seen {
    let (text, events) = match script {
        Script::Statement => (STATEMENT, 1),
        Script::Unnest => (UNNEST, 100),
        Script::Reads => (READS, 1),
    };
    let (file, log) = (folder.join("script.sql"), folder.join(format!("pgbench-{run}")));
    fs::write(&file, text).unwrap();
    let payload = created(run, 0).to_string();
    let quoted = format!("\"{}\"", payload.replace('"', "\\\""));
    let mut command = Command::new(program());
    command.args(["--no-vacuum", "--protocol=prepared", "--log"]).arg(format!("--log-prefix={}", log.display()));
    command.arg(format!("--client={clients}")).arg(format!("--jobs={}", clients.min(2)));
    // pgbench starts its clock before it connects, and computes the rate without that.
    let seconds = options.seconds.ceil() as usize + clients / 128 + 1;
    command.arg(format!("--time={seconds}")).arg("--file").arg(&file);
    let define = |name: &str, value: &str| format!("--define={name}={value}");
    command.arg(define("run", run)).arg(define("first", &FIRST.to_string())).arg(define("done", "0"));
    command.arg(define("last", &(FIRST + options.users.max(1) - 1).to_string()));
    command.arg(define("at", "2026-09-01T08:15:30.412Z")).arg(define("metadata", r#"{"plan": "team"}"#));
    if events == 1 {
        command.arg(define("payload", &payload));
    } else {
        command.arg(define("payloads", &format!("{{{}}}", vec![quoted; 100].join(","))));
    }
    command.arg("--host").arg(database.socket()).args(["--port=5432", "--username=postgres", "postgres"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "pgbench failed: {}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    let word = |name: &str| -> f64 {
        let word = said.lines().find_map(|line| line.strip_prefix(name)?.split(['/', ' ']).next()?.parse().ok());
        word.unwrap_or_else(|| panic!("no {name:?} in pgbench's output:\n{said}"))
    };
    let (count, rate) = (word("number of transactions actually processed: "), word("tps = "));
    let latencies = latencies(folder, &format!("pgbench-{run}."));
    let at =
        |part: f64| latencies.get((latencies.len() as f64 * part) as usize).map_or(0.0, |micros| *micros as f64 / 1e3);
    Seen { count: count as u64 * events, seconds: count / rate, p50: at(0.5), p99: at(0.99) }
}

/// Reads the log of each thread, and removes it. Microseconds, ascending.
fn latencies(folder: &Path, prefix: &str) -> Vec<u64> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap().filter_map(Result::ok) {
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix)) {
            let text = fs::read_to_string(entry.path()).unwrap();
            all.extend(text.lines().filter_map(|line| line.split(' ').nth(2)?.parse::<u64>().ok()));
            fs::remove_file(entry.path()).unwrap();
        }
    }
    all.sort_unstable();
    all
}
