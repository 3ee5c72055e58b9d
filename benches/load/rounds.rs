//! The rounds: starts everything, measures each row once in each round, and stops everything.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use authkit_sync::dev::workos::{Options as WorkosOptions, SimulatedWorkos};
use authkit_sync::domain::clock::Clock;
use tokio::runtime::Runtime;

use super::database::Database;
use super::lane::{Lane, Outcome, Plan};
use super::options::Options;
use super::report::{Counters, LOOKUPS_BESIDE, Report, Sample};
use super::requests::Kind;
use super::rows::{self, Row, Work};
use super::service::{EmptyHandler, Service};
use super::verify::{self, Verified};
use super::{backfill, pgbench, tokens};

/// The route of lookups.
const USER: &str = "/auth/user";

/// Distinct events of the row of duplicates.
const DUPLICATES: u64 = 1_000;

/// Everything that runs.
#[derive(Debug)]
struct Bench<'a> {
    options: &'a Options,
    folder: PathBuf,
    database: Database,
    workos: SimulatedWorkos,
    service: Service,
    empty: EmptyHandler,
    /// Serves the list of users for the backfill.
    pages: SocketAddr,
    verified: Verified,
    /// Begins the names of this command's runs, which a kept database has never seen.
    prefix: String,
}

/// Measures, prints the table, and fails if the tables differ from what was sent.
pub(crate) fn run(options: &Options) -> ExitCode {
    let began = Instant::now();
    let runtime = Runtime::new().unwrap();
    let folder = std::env::temp_dir().join(format!("authkit-sync-load-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let database = Database::start(options, &folder, runtime.handle());
    let listen = ([127, 0, 0, 1], 0).into();
    let simulated = WorkosOptions { listen, clock: Clock::system(), seed: 7, state: kept_workos(options) };
    let workos = runtime.block_on(SimulatedWorkos::start(simulated)).unwrap();
    let service = Service::start(options, &folder, &database.url("postgres"), &workos);
    let prefix = format!("{:x}", Clock::system().now().unix_seconds());
    let (empty, verified) = (EmptyHandler::start(), Verified::default());
    let pages = runtime.block_on(backfill::serve_pages(options.backfill));
    let mut bench = Bench { options, folder, database, workos, service, empty, pages, verified, prefix };
    let rows = rows::of(options);
    bench.sign_tokens(&rows);
    bench.warm_up();
    let mut report = Report::new(options, &rows, bench.service.start_ms, bench.service.memory().0);
    for round in 0..options.rounds {
        for row in &rows {
            bench.measure(row, round, &mut report);
        }
    }
    report.print(bench.service.memory(), &bench.verified, began.elapsed());
    let is_verified = bench.verified.differences.is_empty();
    let Bench { folder, database, workos, service, .. } = bench;
    drop(service);
    runtime.block_on(workos.stop());
    database.close();
    std::fs::remove_dir_all(&folder).unwrap();
    if is_verified { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A kept database belongs to one simulated WorkOS.
fn kept_workos(options: &Options) -> Option<PathBuf> {
    options.data.as_ref().map(|data| data.with_extension("workos.json"))
}

impl Bench<'_> {
    fn tokens(&self, name: &str, count: usize) -> PathBuf {
        tokens::write(&self.workos, &self.folder, name, count, self.options.users, name.starts_with("sessions"))
    }

    fn sign_tokens(&self, rows: &[Row]) {
        let uses = |wanted: usize| rows.iter().any(|row| matches!(row.work, Work::Lookups(uses) if uses == wanted));
        let besides = rows.iter().any(|row| matches!(row.work, Work::OpenLoopBesideLookups));
        let sessions = rows.iter().any(|row| matches!(row.work, Work::Sessions));
        let count = self.options.tokens;
        self.tokens("warm-up", 1_000);
        for round in 0..self.options.rounds {
            if uses(1) {
                self.tokens(&format!("lookups-1-{round}"), count);
            }
            if uses(10) || besides {
                self.tokens(&format!("lookups-10-{round}"), count / 5);
            }
            if sessions {
                self.tokens(&format!("sessions-10-{round}"), count / 5);
            }
        }
    }

    fn token_file(&self, name: &str) -> String {
        Path::new(&self.folder).join(format!("{name}.tokens")).to_str().unwrap().to_owned()
    }

    fn plan(&self, kind: Kind, run: &str, connections: usize) -> Plan {
        Plan {
            kind,
            run: run.to_owned(),
            secret: self.workos.webhook_secret(),
            addresses: self.service.addresses.clone(),
            connections,
            seconds: self.options.seconds,
            rate: None,
        }
    }

    fn lookups(&self, uses: usize, again: bool, round: usize, connections: usize) -> Plan {
        let tokens = self.token_file(&format!("lookups-{uses}-{round}"));
        self.plan(Kind::Lookups { path: USER.to_owned(), tokens, uses, again }, "lookups", connections)
    }

    fn sessions(&self, round: usize, connections: usize) -> Plan {
        let tokens = self.token_file(&format!("sessions-10-{round}"));
        let kind = Kind::Lookups { path: "/auth/session".to_owned(), tokens, uses: 10, again: false };
        self.plan(kind, "lookups", connections)
    }

    /// Fills caches of statements, keys and pages.
    fn warm_up(&mut self) {
        let run = format!("{}w", self.prefix);
        let tokens = self.token_file("warm-up");
        for kind in [Kind::Created, Kind::Lookups { path: USER.to_owned(), tokens, uses: 1, again: true }] {
            let plan = self.plan(kind, &run, 32);
            self.send(&[Plan { seconds: 1.0, ..plan }]);
        }
    }

    fn measure(&mut self, row: &Row, round: usize, report: &mut Report) {
        self.database.checkpoint();
        let run = format!("{}r{round}{}", self.prefix, row.name.replace('-', ""));
        let plans = match row.work {
            Work::Pgbench(script) => {
                let before = self.counters();
                let seen = pgbench::run(script, &self.database, self.options, &self.folder, &run, row.connections);
                return report.add(&row.name, Sample::of_pgbench(&seen, &self.counters().since(&before)));
            }
            Work::Backfill => return self.measure_backfill(row, report),
            Work::Webhooks => vec![self.plan(Kind::Created, &run, row.connections)],
            Work::Updates => vec![self.plan(Kind::Updated { users: self.options.users }, &run, row.connections)],
            Work::Duplicates => vec![self.plan(Kind::Duplicates { events: DUPLICATES }, &run, row.connections)],
            Work::Lookups(uses) => vec![self.lookups(uses, false, round, row.connections)],
            Work::Sessions => vec![self.sessions(round, row.connections)],
            Work::OpenLoop => vec![self.open_loop(&run, row.connections)],
            Work::OpenLoopBesideLookups => {
                vec![self.open_loop(&run, row.connections), self.lookups(10, true, round, 32)]
            }
            Work::EmptyPost => vec![self.empty_plan(Kind::EmptyPost, row.connections)],
            Work::EmptyGet => vec![self.empty_plan(Kind::EmptyGet, row.connections)],
        };
        let mut samples = self.send(&plans).into_iter();
        report.add(&row.name, samples.next().unwrap());
        if let Some(lookups) = samples.next() {
            report.add(LOOKUPS_BESIDE, lookups);
        }
    }

    fn measure_backfill(&mut self, row: &Row, report: &mut Report) {
        backfill::prepare(&self.database);
        let before = self.counters();
        let (filled, difference) = backfill::run(&self.database, self.pages, self.options.backfill);
        report.add(&row.name, Sample::of_backfill(&filled, &self.counters().since(&before)));
        backfill::discard(&self.database);
        self.verified.users += filled.users;
        self.verified.differences.extend(difference);
    }

    /// Sends each plan's load at the same time, then verifies the tables.
    fn send(&mut self, plans: &[Plan]) -> Vec<Sample> {
        let position = verify::feed_position(&self.database);
        let mut lanes: Vec<Lane> = plans.iter().map(Lane::prepare).collect();
        let before = self.counters();
        lanes.iter_mut().for_each(Lane::go);
        let outcomes: Vec<Outcome> = lanes.into_iter().map(Lane::outcome).collect();
        let spent = self.counters().since(&before);
        for (plan, outcome) in plans.iter().zip(&outcomes) {
            if let Some(failure) = &outcome.failure {
                let (run, failed) = (&plan.run, outcome.failed);
                self.verified
                    .differences
                    .push(format!("{run}: {failed} answers were not 200. The first one:\n{failure}"));
            }
            self.verified.check(&self.database, &plan.kind, &plan.run, outcome.sent, position);
        }
        // The CPU time of two concurrent kinds of load cannot be divided between them.
        let spent = (plans.len() == 1).then_some(spent);
        outcomes.iter().map(|outcome| Sample::of(outcome, spent.as_ref())).collect()
    }

    fn counters(&self) -> Counters {
        let (service, postgres) = (self.service.cpu() + self.empty.cpu(), self.database.cpu());
        Counters { service, postgres, wal: self.database.wal() }
    }

    fn open_loop(&self, run: &str, connections: usize) -> Plan {
        Plan { rate: Some(self.options.rate), ..self.plan(Kind::Created, run, connections) }
    }

    fn empty_plan(&self, kind: Kind, connections: usize) -> Plan {
        Plan { addresses: vec![self.empty.address], ..self.plan(kind, "empty", connections) }
    }
}
