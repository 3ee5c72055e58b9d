//! The table.

use std::collections::BTreeMap;
use std::time::Duration;

use super::backfill::Backfilled;
use super::lane::Outcome;
use super::options::Options;
use super::pgbench::Seen;
use super::rows::Row;
use super::verify::Verified;

/// The second line of the row `open-loop-beside`.
pub(crate) const LOOKUPS_BESIDE: &str = "  lookups-beside";

/// Ratios to print: name, row, row that it is compared with.
const RATIOS: [(&str, &str, &str); 10] = [
    ("webhooks-32 / pgbench-statement-32", "webhooks-32", "pgbench-statement-32"),
    ("webhooks-256 / webhooks-32", "webhooks-256", "webhooks-32"),
    ("webhooks-256 / pgbench-statement-256", "webhooks-256", "pgbench-statement-256"),
    ("webhooks-1 / pgbench-statement-1", "webhooks-1", "pgbench-statement-1"),
    ("webhooks-32 / pgbench-unnest-32", "webhooks-32", "pgbench-unnest-32"),
    ("webhooks-32 / empty-post-32", "webhooks-32", "empty-post-32"),
    ("lookups-new-32 / pgbench-reads-32", "lookups-new-32", "pgbench-reads-32"),
    ("lookups-ten-32 / pgbench-reads-32", "lookups-ten-32", "pgbench-reads-32"),
    ("sessions-ten-32 / lookups-ten-32", "sessions-ten-32", "lookups-ten-32"),
    ("lookups-ten-32 / empty-get-32", "lookups-ten-32", "empty-get-32"),
];

/// Counters that are read before and after a measurement: CPU in microseconds, WAL in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counters {
    pub(crate) service: f64,
    pub(crate) postgres: f64,
    pub(crate) wal: f64,
}

impl Counters {
    /// Returns the difference from an earlier reading.
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            service: self.service - before.service,
            postgres: self.postgres - before.postgres,
            wal: self.wal - before.wal,
        }
    }
}

/// One measurement of a row: a rate, milliseconds, and the cost of each request. NaN: not measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    rate: f64,
    p50: f64,
    p99: f64,
    service: f64,
    postgres: f64,
    load: f64,
    wal: f64,
}

impl Sample {
    pub(crate) fn of(outcome: &Outcome, spent: Option<&Counters>) -> Self {
        let sent = outcome.sent as f64;
        let each = |spent: Option<f64>| spent.map_or(f64::NAN, |spent| spent / sent);
        Self {
            rate: sent / outcome.seconds,
            p50: outcome.p50,
            p99: outcome.p99,
            service: each(spent.map(|spent| spent.service)),
            postgres: each(spent.map(|spent| spent.postgres)),
            load: outcome.cpu / sent,
            wal: each(spent.map(|spent| spent.wal)),
        }
    }

    pub(crate) fn of_pgbench(seen: &Seen, spent: &Counters) -> Self {
        let count = seen.count as f64;
        Self {
            rate: count / seen.seconds,
            p50: seen.p50,
            p99: seen.p99,
            service: f64::NAN,
            postgres: spent.postgres / count,
            load: f64::NAN,
            wal: spent.wal / count,
        }
    }

    pub(crate) fn of_backfill(filled: &Backfilled, spent: &Counters) -> Self {
        let users = filled.users as f64;
        Self {
            rate: users / filled.seconds,
            p50: filled.p50,
            p99: filled.p99,
            service: filled.cpu / users,
            postgres: spent.postgres / users,
            load: f64::NAN,
            wal: spent.wal / users,
        }
    }

    fn columns(&self) -> [(f64, usize); 7] {
        let Self { rate, p50, p99, service, postgres, load, wal } = *self;
        [(rate, 0), (p50, 2), (p99, 2), (service, 0), (postgres, 0), (load, 0), (wal, 0)]
    }
}

/// All measurements.
#[derive(Debug)]
pub(crate) struct Report {
    /// Rows in the order of the table.
    names: Vec<String>,
    samples: BTreeMap<String, Vec<Sample>>,
    json: bool,
    start_ms: f64,
    idle_memory: f64,
    conditions: String,
}

impl Report {
    pub(crate) fn new(options: &Options, rows: &[Row], start_ms: f64, idle_memory: f64) -> Self {
        let mut names = Vec::new();
        for row in rows {
            names.push(row.name.clone());
            if row.name == "open-loop-beside" {
                names.push(LOOKUPS_BESIDE.to_owned());
            }
        }
        let conditions = format!(
            "{} rounds of {} s; {} users, {} events in the inbox; {} process(es); open loop: {} webhooks/s; {} processors",
            options.rounds,
            options.seconds,
            options.users,
            options.inbox,
            options.processes,
            options.rate,
            std::thread::available_parallelism().map_or(0, usize::from),
        );
        Self { names, samples: BTreeMap::new(), json: options.json, start_ms, idle_memory, conditions }
    }

    pub(crate) fn add(&mut self, name: &str, sample: Sample) {
        if self.json {
            let Sample { rate, p50, p99, service, postgres, load, wal } = sample;
            let values = serde_json::json!({
                "row": name.trim(), "rate": rate, "p50_ms": p50, "p99_ms": p99, "service_us": service,
                "postgres_us": postgres, "load_us": load, "wal_bytes": wal,
            });
            println!("{values}");
        } else {
            eprintln!("{}", line(name, &sample));
        }
        self.samples.entry(name.to_owned()).or_default().push(sample);
    }

    pub(crate) fn print(&self, memory: (f64, f64), verified: &Verified, took: Duration) {
        println!("\n{}", self.conditions);
        println!(
            "{:<24} {:>9} {:>9} {:>9} {:>12} {:>12} {:>9} {:>9}",
            "medians", "per s", "p50 ms", "p99 ms", "service µs", "postgres µs", "load µs", "WAL bytes"
        );
        for name in &self.names {
            println!("{}", line(name, &self.median(name)));
        }
        println!();
        for (name, row, other) in RATIOS {
            if let (Some(ours), Some(theirs)) = (self.samples.get(row), self.samples.get(other)) {
                let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours.rate / theirs.rate).collect();
                println!("{name:<40} {:>6.3}   rounds: {ratios:.3?}", median(ratios.clone()));
            }
        }
        let (resident, peak) = memory;
        println!(
            "\nservice: ready after {:.0} ms; resident memory {:.0} MiB at first, {resident:.0} MiB at the end, \
             {peak:.0} MiB at most",
            self.start_ms, self.idle_memory
        );
        let Verified { events, users, changes, differences } = verified;
        if differences.is_empty() {
            println!("verified: {events} events, {users} users and {changes} changes are as sent");
        }
        for difference in differences {
            println!("DIFFERENT: {difference}");
        }
        println!("took {:.0} s", took.as_secs_f64());
    }

    fn median(&self, name: &str) -> Sample {
        let samples = self.samples.get(name).map(Vec::as_slice).unwrap_or_default();
        let of = |value: fn(&Sample) -> f64| median(samples.iter().map(value).collect());
        Sample {
            rate: of(|sample| sample.rate),
            p50: of(|sample| sample.p50),
            p99: of(|sample| sample.p99),
            service: of(|sample| sample.service),
            postgres: of(|sample| sample.postgres),
            load: of(|sample| sample.load),
            wal: of(|sample| sample.wal),
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn line(name: &str, sample: &Sample) -> String {
    let mut line = format!("{name:<24}");
    for ((value, decimals), width) in sample.columns().into_iter().zip([9, 9, 9, 12, 12, 9, 9]) {
        let text = if value.is_nan() { String::new() } else { format!("{value:.decimals$}") };
        line += &format!(" {text:>width$}");
    }
    line
}
