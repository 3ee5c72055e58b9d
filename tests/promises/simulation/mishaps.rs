//! Faults of the network, the database and the operators.

use std::time::Duration;

use authkit_sync::dev::workos::{ApiFaults, Held};
use authkit_sync::domain::timestamp::Timestamp;
use authkit_sync::store::Store;
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Executor};

use super::environment::Environment;
use super::replica::{JobKind, POOL};
use super::world::{ALWAYS, Feeds, LONG_TIMEOUT, World};

/// The database timeout of a process during a lock or a slow statement.
const SHORT_TIMEOUT: Duration = Duration::from_millis(500);

/// Maximum number of attempts in two minutes, with pauses that double from a second to a minute.
const ATTEMPTS_IN_AN_OUTAGE: usize = 10;

/// The error of a process whose database belongs to another client ID.
const NOT_OURS: &str = "belongs to the WorkOS client ID";

impl World<'_> {
    /// Changes the faults of the API.
    pub(super) fn change_api_faults(&mut self) {
        // Two reads at the same instant with different faults could not be ordered.
        self.pass(1);
        let chance = self.random.u8(0..3) * 15;
        let mut faults = ApiFaults { hold_back_ms: self.random.u64(0..12_000), ..self.here().calm() };
        match self.random.u8(0..14) {
            0 => faults.rate_limit = chance,
            1 => faults.error = chance,
            2 => faults.cut = chance,
            3 => faults.garbage = chance,
            4 => faults.refuse_key = true,
            5 => faults.lists_start_over = true,
            6 => faults.lost_cursors_start_over = true,
            7 => faults.unknown_types = vec!["session.created".to_owned()],
            8..10 => (faults.late, faults.late_by_s) = (50, self.random.u32(61..1_200)),
            10..12 => faults.date_offset_s = *self.random.choice(&[-20 * 86_400, 20 * 86_400]).unwrap(),
            // Every request fails, and WorkOS requests a pause that is longer than a lease.
            _ => (faults.error, faults.retry_after_s) = (100, Some(self.random.u32(30..120))),
        }
        self.here_mut().change(faults);
    }

    pub(super) async fn mishap(&mut self) {
        match self.random.u8(0..20) {
            // A lease expires while its holder still runs.
            0..3 => self.expire_leases().await,
            3..6 => self.cut_connections().await,
            6 => {
                self.server.pause().unwrap();
                self.server.resume().unwrap();
            }
            // A clock is set forward, back, or to the correct time.
            7..10 => {
                let at = self.some_replica();
                let wrong = [-86_400 * 40, -3_600, 0, 0, 3_600, 86_400 * 40];
                let seconds = *self.random.choice(&wrong).unwrap();
                self.replicas[at].clock.set(self.clock.now().plus_seconds(seconds));
            }
            10 => self.here().workos.lose_cursors(),
            11 => self.long_absence(),
            12..14 => self.failover().await,
            14 => self.standby().await,
            15 => self.locks().await,
            16 => self.long_erasure().await,
            17 => self.outage().await,
            18 => self.rebind().await,
            _ => self.rebind_to_the_same().await,
        }
    }

    /// The service is down for longer than WorkOS retries deliveries and keeps events.
    fn long_absence(&mut self) {
        if self.feeds != Feeds::Both || self.here().forgotten {
            return;
        }
        self.here_mut().forgotten = true;
        for _ in 0..self.random.u8(0..12) {
            self.history();
        }
        self.here_mut().deliveries.clear();
        self.pass(40 * 86_400_000);
        self.here_mut().heal();
    }

    async fn cut_connections(&self) {
        let kill = "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and datname = current_database()";
        let _ = sqlx::query(kill).execute(&self.pool).await;
    }

    /// Failover: all connections are closed. New connections reach a read-only server until it is over, and stay open.
    async fn failover(&mut self) {
        self.insist("alter database postgres set default_transaction_read_only = on").await;
        self.cut_connections().await;
        for _ in 0..self.random.u8(1..6) {
            let at = self.some_replica();
            let open = self.here().deliveries.clone();
            if let Some((held, _)) = self.random.choice(&open) {
                let status = self.replicas[at].take(held, self.clock.now(), ALWAYS).await;
                assert!(matches!(status, Some(401 | 503)), "a read-only server: {status:?}");
            }
            if self.feeds != Feeds::WebhooksOnly && !self.is_stray(at) {
                let job = self.some_job();
                self.step_job(at, job, ALWAYS).await;
            }
        }
        self.insist("alter database postgres reset default_transaction_read_only").await;
    }

    /// The server is a standby for a while. It is promoted while connections are open.
    async fn standby(&mut self) {
        self.server.pause().unwrap();
        std::fs::write(self.server.scratch().join("data/standby.signal"), "").unwrap();
        self.server.resume().unwrap();
        for at in 0..self.replicas.len() {
            let open = self.here().deliveries.clone();
            if let Some((held, _)) = self.random.choice(&open) {
                let status = self.replicas[at].take(held, self.clock.now(), ALWAYS).await;
                assert!(matches!(status, Some(401 | 503)), "a standby: {status:?}");
            }
            if self.feeds != Feeds::WebhooksOnly {
                self.replicas[at].step(JobKind::CatchUp, ALWAYS).await;
            }
        }
        for _ in 0..20 {
            let promoted = sqlx::query_scalar("select pg_promote()").fetch_one(&self.pool).await;
            if promoted.is_ok_and(|promoted: bool| promoted) {
                return;
            }
        }
        panic!("the standby is not promoted");
    }

    /// Another session locks a user, or the whole table, for longer than the database timeout.
    async fn locks(&mut self) {
        let Some(id) = self.random.choice(&self.here().live_users()).cloned() else { return };
        let at = self.some_replica();
        self.restart_with(at, SHORT_TIMEOUT).await;
        let mut session = PgConnection::connect(&self.url).await.unwrap();
        let table = self.random.bool();
        session.execute("begin").await.unwrap();
        if table {
            session.execute("lock table workos.user_records in access exclusive mode").await.unwrap();
        } else {
            let lock = "select from workos.user_records where id = $1 for update";
            sqlx::query(lock).bind(&id).execute(&mut session).await.unwrap();
        }
        self.environments[self.bound].rename(&id, &mut self.random);
        self.here_mut().note_events();
        let news = self.here().deliveries.last().map(|(held, _)| held.clone());
        self.meet_the_lock(at, &id, news.as_ref(), table).await;
        self.check_no_backend_waits().await;
        session.close().await.unwrap();
        if let Some(news) = news {
            self.taken_in_the_end(at, &news).await;
        }
        self.restart_with(at, LONG_TIMEOUT).await;
    }

    /// A process runs statements that need the locked row or table.
    async fn meet_the_lock(&mut self, at: usize, id: &str, news: Option<&Held>, table: bool) {
        let replica = &mut self.replicas[at];
        if let Some(news) = news {
            let status = replica.take(news, self.clock.now(), ALWAYS).await;
            assert!(matches!(status, Some(200 | 503)), "{status:?}");
        }
        if self.feeds != Feeds::WebhooksOnly {
            self.expire_leases().await;
            self.step_job(at, JobKind::CatchUp, ALWAYS).await;
        }
        if table {
            let store = &self.replicas[at].context.store;
            let (one, other) = tokio::join!(store.user(id), store.user(id));
            assert!(one.is_err() && other.is_err(), "the table is locked");
        }
    }

    /// Checks that no backend waits for a lock after its client has timed out.
    async fn check_no_backend_waits(&self) {
        let waiting = "select count(*) from pg_stat_activity
            where wait_event_type = 'Lock' and backend_type = 'client backend'";
        for _ in 0..400 {
            if sqlx::query_scalar(waiting).fetch_one(&self.pool).await.unwrap_or(1_i64) == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("backends wait for a lock long after their clients have timed out");
    }

    async fn taken_in_the_end(&mut self, at: usize, held: &Held) {
        for _ in 0..40 {
            if self.replicas[at].take(held, self.clock.now(), ALWAYS).await == Some(200) {
                return;
            }
        }
        panic!("{} is never taken", held.event_id);
    }

    /// A user with a long history is deleted. Erasing all of it takes longer than the database timeout.
    async fn long_erasure(&mut self) {
        let Some(id) = self.random.choice(&self.here().live_users()).cloned() else { return };
        if self.feeds == Feeds::CatchUpOnly {
            return;
        }
        let history = "insert into workos.events (id, type, user_id, created_at, payload, outcome, webhook_at)
            select 'history_' || $1 || n, 'user.updated', $1, now(), '{}', 'stale', now()
            from generate_series(1, 40) as n";
        sqlx::query(history).bind(&id).execute(&self.pool).await.unwrap();
        self.insist("insert into app_slowness values (25)").await;
        let at = self.some_replica();
        self.restart_with(at, SHORT_TIMEOUT).await;
        self.here_mut().delete(&id);
        self.here_mut().note_events();
        let (news, _) = self.here_mut().deliveries.pop().unwrap();
        self.taken_in_the_end(at, &news).await;
        self.expire_leases().await;
        for _ in 0..self.random.u8(0..4) {
            self.replicas[at].step(JobKind::Housekeeping, ALWAYS).await;
        }
        self.insist("truncate app_slowness").await;
        self.restart_with(at, LONG_TIMEOUT).await;
    }

    /// WorkOS fails for two minutes. Both processes run their jobs: a step, a pause, the next step.
    async fn outage(&mut self) {
        if self.feeds == Feeds::WebhooksOnly || (0..self.replicas.len()).any(|at| self.is_stray(at)) {
            return;
        }
        let mut faults = self.here().calm();
        match self.random.u8(0..4) {
            0 => faults.error = 100,
            1 => faults.cut = 100,
            2 => faults.garbage = 100,
            _ => faults.refuse_key = true,
        }
        self.here_mut().change(faults);
        let began = self.clock.now();
        let jobs = JobKind::all(self.here().has_members).iter().copied().filter(|job| *job != JobKind::Housekeeping);
        let mut due: Vec<(Timestamp, usize, JobKind)> =
            (0..self.replicas.len()).flat_map(|at| jobs.clone().map(move |job| (began, at, job))).collect();
        let mut attempts = 0;
        loop {
            let next = due.iter_mut().min_by_key(|(at, ..)| *at).unwrap();
            let (now, at, job) = *next;
            if now > began.plus_seconds(120) {
                break;
            }
            self.pass((now.unix_millis() - self.clock.now().unix_millis()).max(0));
            self.age_leases().await;
            let before = self.here().workos.all_requests();
            let rest = self.replicas[at].step(job, ALWAYS).await.unwrap();
            attempts += usize::from(self.here().workos.all_requests() > before);
            next.0 = self.clock.now().plus_micros(rest.as_micros().try_into().unwrap());
        }
        let bound = due.len() * ATTEMPTS_IN_AN_OUTAGE;
        assert!(attempts <= bound, "{attempts} steps asked a WorkOS that failed for two minutes");
        self.here_mut().heal();
    }

    /// The operator rebinds the database to the other environment, and restarts one of the two processes.
    async fn rebind(&mut self) {
        if self.environments.len() == 1 {
            let mut other =
                Environment::start(&self.clock, self.seed.wrapping_add(1 << 32), false, self.here().has_members).await;
            // Without the API, no event about them would ever arrive.
            let before = if self.feeds == Feeds::WebhooksOnly { 0 } else { self.random.u8(0..8) };
            for _ in 0..before {
                other.history(&mut self.random);
            }
            self.environments.push(other);
            self.pass(7_200_000);
        }
        let old = std::mem::replace(&mut self.bound, 0);
        self.bound = 1 - old;
        self.give_database_to_here().await;
        self.environments[old].left = true;
        self.pauses.clear();
        let now = self.clock.now();
        let (feeds, here) = (self.feeds, self.here_mut());
        if !here.left {
            here.heard_since = now;
        }
        (here.receives, here.read_since) = (feeds != Feeds::CatchUpOnly, None);
        self.seen.strangers = sqlx::query_scalar::<_, String>("select id from workos.users")
            .fetch_all(&self.pool)
            .await
            .unwrap()
            .into_iter()
            // A retry applies quarantined events of every environment.
            .chain(self.environments[old].users.keys().cloned())
            .collect();
        let at = self.some_replica();
        self.restart(at).await;
    }

    /// Rebinds to the same client ID, as after a restored disk snapshot. Only the positions of the feed become invalid.
    async fn rebind_to_the_same(&mut self) {
        self.give_database_to_here().await;
    }

    async fn give_database_to_here(&self) {
        let client_id = self.here().workos.client_id();
        let operator = Store::new(self.pool.clone(), self.pool.clone(), &client_id, LONG_TIMEOUT);
        for _ in 0..20 {
            // The pool may contain connections that a fault has closed.
            if operator.rebind().await.is_ok() {
                return;
            }
        }
        panic!("rebind does not succeed");
    }

    /// Runs a step in a process whose database was rebound to another environment. It changes nothing. Its next write is rejected
    /// with a reason, and it ends.
    pub(super) async fn step_stray(&mut self, at: usize, job: JobKind, polls: usize) {
        let before = self.digest().await;
        let done = self.replicas[at].step(job, polls).await;
        assert_eq!(self.digest().await, before, "changed by a process of another client ID");
        let error = self.replicas[at].error(job).unwrap_or_default();
        if done.is_none() || error.contains(NOT_OURS) {
            return self.restart(at).await;
        }
        // These two take a lease at the start of each step. A connection can be broken, or lead to a read-only server.
        self.replicas[at].unaware += u32::from(matches!(job, JobKind::CatchUp | JobKind::Housekeeping));
        let unaware = self.replicas[at].unaware;
        assert!(unaware <= POOL, "{} does not notice that the database is another's: {error}", job.name());
    }

    pub(super) async fn handle_at_stray(&mut self, at: usize, which: usize) {
        let before = self.digest().await;
        self.replicas[at].handle(which, ALWAYS).await;
        assert_eq!(self.digest().await, before, "changed by a process of another client ID");
    }

    /// Sends a delivery of another environment, or to a process of another environment. It is rejected.
    pub(super) async fn deliver_astray(&mut self, held: &Held, at: usize) {
        let before = self.digest().await;
        let status = self.replicas[at].take(held, self.clock.now(), ALWAYS).await;
        assert!(matches!(status, Some(401 | 503)), "accepted by or from another client ID: {status:?}");
        assert_eq!(self.digest().await, before, "changed by a process of another client ID");
    }
}
