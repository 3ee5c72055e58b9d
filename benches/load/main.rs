//! Measures webhooks and lookups, and compares them with their limits: an empty axum handler, and PostgreSQL itself.
//!
//! ```sh
//! cargo bench --bench load                                     # the table, about three minutes on two cores
//! cargo bench --bench load -- --rows webhooks,pgbench-statement --rounds 5 --seconds 4
//! cargo bench --bench load -- --users 1000000 --inbox 20000000 --data /var/tmp/bench
//! cargo bench --bench load -- --help                           # every option
//! ```
//!
//! **Processes.** PostgreSQL is a private server. Its data is on disk, with `fsync` and `synchronous_commit` on. The service is
//! the binary `authkit-sync serve` with its default settings: background jobs, feed, metrics, and one log line per request in a
//! file. `--binary` measures another build of it. The load generator is a separate process for each kind of load. It sends prepared
//! bytes over persistent connections. The bodies, signatures and tokens are created before the measurement starts.
//!
//! **Rounds.** Each round measures every row once, so that a change in the machine's speed affects all rows. The table shows the
//! medians of the rounds. A ratio is the median of the ratios within each round.
//!
//! **Latency.** A closed loop measures from sending a request to the end of its answer. An open loop sends at fixed times and
//! measures from the intended time, so a request that waits for its turn counts as slow.
//!
//! **CPU.** User and system time per request. `service`: all processes of the service. `postgres`: the postmaster, its running
//! children, and its children that have ended (`cutime` and `cstime`), which includes checkpoints and the WAL writer. For a row of
//! pgbench it includes starting the sessions. `load`: the load generator, which shares the processors with them.
//!
//! **Final state.** After each row, the tables must contain exactly what was sent: every event once, every user with its latest
//! state, and one change for each difference. The command fails otherwise.
//!
//! The row `backfill` reads prepared pages without pauses into an empty database, in a separate process. Its latencies are those
//! of a page of a hundred users.
//!
//! The comparison `pgbench-statement` stores an event of the same size and upserts its user in one statement, in tables with
//! primary keys only. `pgbench-unnest` stores a hundred of each in a transaction. `pgbench-reads` reads a user by its ID from the
//! service's own table. All use prepared statements and as many sessions as the service has clients.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on should stop")]

mod backfill;
mod client;
mod cpu;
mod database;
mod empty;
mod lane;
mod options;
mod pgbench;
mod report;
mod requests;
mod rounds;
mod rows;
mod service;
mod tokens;
mod verify;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        // The benchmark starts itself for its other processes.
        Some("lane") => client::main(),
        Some("empty") => empty::main(),
        Some("backfill") => backfill::fill(&arguments[2], &arguments[3]),
        // `cargo test --benches` runs it without measuring anything.
        _ if !arguments.iter().any(|argument| argument == "--bench") => {}
        _ => return rounds::run(&options::read(&arguments)),
    }
    ExitCode::SUCCESS
}
