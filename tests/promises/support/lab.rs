//! A simulated WorkOS, a database, and the context of background jobs.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use authkit_sync::dev::workos::{Options, SimulatedWorkos};
use authkit_sync::domain::clock::Clock;
use authkit_sync::domain::kinds::Kinds;
use authkit_sync::metrics::Metrics;
use authkit_sync::store::{Pool, Store};
use authkit_sync::sync::job::{JobContext, JobError};
use authkit_sync::sync::reconcile::{Mode, Reconcile, ReconcileStep, Report};
use authkit_sync::sync::refresh::{Refresh, RefreshStep};
use authkit_sync::sync::{backfill, catch_up};
use authkit_sync::workos::api::{Api, ApiKey};
use serde_json::{Map, Value, json};
use sqlx::PgPool;

use super::binary;
use super::database::TestDatabase;
use super::pgbouncer::as_the_run_wants;

/// Listens on free ports, because another run of the tests may use the default ones.
const ANY_PORTS: [(&str, &str); 2] =
    [("AUTHKIT_SYNC_LISTEN", "127.0.0.1:0"), ("AUTHKIT_SYNC_OPS_LISTEN", "127.0.0.1:0")];

pub(crate) struct Lab {
    pub(crate) database: TestDatabase,
    pub(crate) pool: PgPool,
    pub(crate) workos: SimulatedWorkos,
    /// The clock of WorkOS and of the jobs.
    pub(crate) clock: Clock,
}

impl Lab {
    /// Uses the machine's clock, because the real binary has no other.
    pub(crate) async fn new() -> Self {
        Self::with(None).await
    }

    pub(crate) async fn with(state: Option<std::path::PathBuf>) -> Self {
        let database = TestDatabase::unbound().await;
        let pool = database.pool(6).await;
        let clock = Clock::manual(Clock::system().now());
        let workos = another_workos(&clock, fastrand::u64(..), state).await;
        Self { database, pool, workos, clock }
    }

    /// The pool of a process of the service.
    pub(crate) fn service_pool(&self) -> PgPool {
        as_the_run_wants(&self.pool)
    }

    /// The context of a process of the service.
    pub(crate) fn context(&self) -> JobContext {
        self.context_of(&self.workos, &self.workos.api_key())
    }

    /// A context with another API key, or another WorkOS.
    pub(crate) fn context_of(&self, workos: &SimulatedWorkos, key: &str) -> JobContext {
        let api = Api::new(workos.base_url(), ApiKey::new(key), self.clock.clone()).unwrap();
        job_context(
            self.service_pool(),
            &self.workos.client_id(),
            Duration::from_secs(20),
            api,
            &self.clock,
            fastrand::u64(..),
        )
    }

    pub(crate) fn catch_up(&self) -> catch_up::CatchUp {
        self.catch_up_of(self.context())
    }

    pub(crate) fn catch_up_of(&self, context: JobContext) -> catch_up::CatchUp {
        let types = Kinds::USERS.event_types().into_iter().map(str::to_owned).collect();
        catch_up::CatchUp::new(context, types, Duration::ZERO)
    }

    /// Catch-up of every synced kind.
    pub(crate) fn catch_up_of_all_kinds(&self) -> catch_up::CatchUp {
        let types = Kinds::ALL.event_types().into_iter().map(str::to_owned).collect();
        catch_up::CatchUp::new(self.context(), types, Duration::ZERO)
    }

    /// Runs the refresh until nothing is due. Returns the number of reads.
    pub(crate) async fn refresh(&self) -> usize {
        let refresh = Refresh::new(self.context());
        let mut reads = 0;
        while refresh.step().await.unwrap() == Some(RefreshStep::Read) {
            reads += 1;
        }
        reads
    }

    /// Moves the clock of WorkOS and of the jobs forward.
    pub(crate) fn pass(&self, seconds: i64) {
        self.clock.set(self.clock.now().plus_seconds(seconds));
    }

    /// Creates an organization at WorkOS, and returns its ID.
    pub(crate) fn create_organization(&self, name: &str) -> String {
        let organization = self.workos.create_organization(&object(json!({"name": name}))).unwrap();
        organization["id"].as_str().unwrap().to_owned()
    }

    /// Adds a member at WorkOS, and returns the ID of the membership.
    pub(crate) fn add_member(&self, user: &str, organization: &str) -> String {
        let membership = self.workos.add_membership(user, organization, &[]).unwrap();
        membership["id"].as_str().unwrap().to_owned()
    }

    /// Creates users at WorkOS, and returns their IDs.
    pub(crate) fn create_users(&self, count: usize) -> Vec<String> {
        (0..count).map(|_| self.create_user("Ada")).collect()
    }

    pub(crate) fn create_user(&self, name: &str) -> String {
        let email = format!("{}@example.test", super::events::unique("user"));
        let user = self.workos.create_user(&object(json!({"email": email, "first_name": name}))).unwrap();
        user["id"].as_str().unwrap().to_owned()
    }

    pub(crate) fn rename(&self, id: &str, name: &str) {
        self.workos.update_user(id, &object(json!({"first_name": name}))).unwrap();
    }

    /// Runs a complete backfill.
    pub(crate) async fn backfill(&self) -> authkit_sync::store::scans::ScanCounts {
        let backfill = backfill::Backfill::new(self.context(), false);
        loop {
            match backfill.step().await.unwrap() {
                Some(backfill::BackfillStep::Done(counts)) => return counts,
                None => self.free_leases().await,
                Some(backfill::BackfillStep::Page { .. }) => {}
            }
        }
    }

    /// Runs a complete reconcile or check.
    pub(crate) async fn reconcile(&self, mode: Mode) -> Result<Report, JobError> {
        reconcile(self.context(), mode).await
    }

    /// Deletes all leases, as if their holders had been killed and the leases had expired.
    pub(crate) async fn free_leases(&self) {
        sqlx::query("delete from workos.leases").execute(&self.pool).await.unwrap();
    }

    /// Returns the number that a query selects.
    pub(crate) async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&self.pool).await.unwrap()
    }

    /// The settings of the real binary.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        let port = self.workos.base_url().rsplit(':').next().unwrap().to_owned();
        vec![
            ("DATABASE_URL", self.database.url()),
            ("WORKOS_CLIENT_ID", self.workos.client_id()),
            ("WORKOS_API_KEY", self.workos.api_key()),
            ("WORKOS_API_HOSTNAME", "127.0.0.1".to_owned()),
            ("WORKOS_API_PORT", port),
            ("WORKOS_API_HTTPS", "false".to_owned()),
        ]
    }

    /// Runs a command to its end without blocking the simulated WorkOS. Returns its exit code, stdout and stderr.
    pub(crate) async fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        self.run_with(arguments, &[]).await
    }

    pub(crate) async fn run_with(&self, arguments: &[&str], more: &[(&'static str, &str)]) -> (i32, String, String) {
        let mut command = binary::binary();
        command.args(arguments).envs(self.environment()).envs(ANY_PORTS).envs(more.iter().copied());
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    }
}

pub(crate) async fn reconcile(context: JobContext, mode: Mode) -> Result<Report, JobError> {
    let reconcile = Reconcile::new(context, mode, None);
    loop {
        match reconcile.step().await? {
            Some(ReconcileStep::Done(report)) => return Ok(report),
            None => panic!("another process reconciles"),
            Some(ReconcileStep::InProgress { .. }) => {}
        }
    }
}

/// Creates the context of a process of the service.
pub(crate) fn job_context(
    pool: impl Into<Pool>,
    client_id: &str,
    timeout: Duration,
    api: Api,
    clock: &Clock,
    seed: u64,
) -> JobContext {
    let pool = pool.into();
    let store = Store::new(pool.clone(), pool, client_id, timeout);
    JobContext::new(store, api, clock.clone(), Arc::new(Metrics::default()), seed)
}

/// Creates another environment, or loads the one of a state file.
pub(crate) async fn another_workos(clock: &Clock, seed: u64, state: Option<std::path::PathBuf>) -> SimulatedWorkos {
    let listen = (Ipv4Addr::LOCALHOST, 0).into();
    let options = Options { listen, clock: clock.clone(), seed, state };
    SimulatedWorkos::start(options).await.unwrap()
}

pub(crate) fn object(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}
