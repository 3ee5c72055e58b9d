//! The complete state of a simulation: processes, two WorkOS environments and a database. It runs one random step after the other.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use authkit_sync::dev::postgres::PrivatePostgres;
use authkit_sync::domain::clock::Clock;
use authkit_sync::domain::handler::Types;
use authkit_sync::domain::timestamp::Timestamp;
use authkit_sync::store::handlers::NewHandler;
use authkit_sync::store::migrations;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};

use super::environment::Environment;
use super::invariants::Seen;
use super::replica::{JobKind, Replica, Start};

pub(super) const ALWAYS: usize = usize::MAX;

/// The database timeout, unless a fault needs another one.
pub(super) const LONG_TIMEOUT: Duration = Duration::from_secs(20);

/// The channels that deliver events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Feeds {
    WebhooksOnly,
    CatchUpOnly,
    Both,
}

pub(super) struct World<'a> {
    pub(super) seed: u64,
    pub(super) feeds: Feeds,
    pub(super) random: fastrand::Rng,
    pub(super) server: &'a mut PrivatePostgres,
    pub(super) url: String,
    /// For the checks. Reads everything and changes only leases, even on a read-only server.
    pub(super) pool: PgPool,
    pub(super) clock: Clock,
    pub(super) environments: Vec<Environment>,
    /// The index of the environment that the database is bound to.
    pub(super) bound: usize,
    pub(super) replicas: Vec<Replica>,
    /// What the checks have seen so far.
    pub(super) seen: Seen,
    /// The end of the pause that WorkOS requested for each job, and when it did by the machine's clock.
    pub(super) pauses: BTreeMap<&'static str, (Timestamp, Instant)>,
    /// Milliseconds that our clocks are ahead of the times in the database.
    unaged: i64,
}

impl<'a> World<'a> {
    pub(super) async fn begin(seed: u64, feeds: Feeds, has_members: bool, server: &'a mut PrivatePostgres) -> Self {
        let url = server.url("postgres");
        let options: PgConnectOptions = url.parse().unwrap();
        let options = options.options([("default_transaction_read_only", "off")]);
        let pool = PgPoolOptions::new().max_connections(2).connect_with(options).await.unwrap();
        // A failed seed can have left settings of the server, and sessions that hold locks.
        let reset = "alter database postgres reset default_transaction_read_only;
            select pg_terminate_backend(pid) from pg_stat_activity
            where backend_type = 'client backend' and pid <> pg_backend_pid()";
        sqlx::raw_sql(reset).execute(&pool).await.unwrap();
        migrations::run(&pool).await.unwrap();
        sqlx::raw_sql(CLEAN).execute(&pool).await.unwrap();
        // The database uses the real clock.
        let clock = Clock::manual(Clock::system().now().plus_seconds(-7_210));
        let mut random = fastrand::Rng::with_seed(seed);
        let mut environment = Environment::start(&clock, seed, false, has_members).await;
        // Some users exist before the first start.
        let before = if feeds == Feeds::WebhooksOnly { 0 } else { random.u8(0..8) };
        for _ in 0..before {
            environment.history(&mut random);
            clock.set(clock.now().plus_seconds(1));
        }
        clock.set(clock.now().plus_seconds(7_200));
        environment.heard_since = clock.now();
        environment.receives = feeds != Feeds::CatchUpOnly;
        let mut world = Self {
            seed,
            feeds,
            random,
            server,
            url,
            pool,
            clock,
            environments: vec![environment],
            bound: 0,
            replicas: Vec::new(),
            seen: Seen::default(),
            pauses: BTreeMap::new(),
            unaged: 0,
        };
        world.bind().await;
        for _ in 0..2 {
            let replica = world.replica(LONG_TIMEOUT);
            world.replicas.push(replica);
        }
        world.application().await;
        world
    }

    /// Records the client ID, as the first start does once WorkOS publishes keys for it.
    async fn bind(&self) {
        sqlx::query("insert into workos.environment (client_id) values ($1)")
            .bind(self.here().workos.client_id())
            .execute(&self.pool)
            .await
            .unwrap();
    }

    /// Registers the application's handlers. See `Replica`.
    async fn application(&self) {
        let store = &self.replicas[0].context.store;
        assert!(store.register_handler("mirror", &Types::parse("*").unwrap(), true).await.unwrap());
        let log = NewHandler {
            name: Some("log".to_owned()),
            function: "public.app_log".to_owned(),
            role: None,
            types: Types::parse("user.*,session.created").unwrap(),
            timeout: Duration::from_secs(20),
            from_start: false,
        };
        store.add_handler(&log).await.unwrap();
    }

    /// Returns the environment that the database is bound to.
    pub(super) fn here(&self) -> &Environment {
        &self.environments[self.bound]
    }

    pub(super) fn here_mut(&mut self) -> &mut Environment {
        &mut self.environments[self.bound]
    }

    /// Starts a process of the environment that the database is bound to.
    fn replica(&mut self, timeout: Duration) -> Replica {
        let seed = self.random.u64(..);
        Replica::start(&Start {
            url: &self.url,
            workos: &self.here().workos,
            environment: self.bound,
            now: self.clock.now(),
            seed,
            both_feeds: self.feeds == Feeds::Both,
            timeout,
        })
    }

    /// Returns whether the process was started for an environment that the database is no longer bound to.
    pub(super) fn is_stray(&self, at: usize) -> bool {
        self.replicas[at].environment != self.bound
    }

    pub(super) fn pass(&mut self, millis: i64) {
        self.clock.set(self.clock.now().plus_micros(millis * 1_000));
        for replica in &self.replicas {
            replica.clock.set(replica.clock.now().plus_micros(millis * 1_000));
        }
        self.unaged += millis;
    }

    /// Runs random steps.
    pub(super) async fn live(&mut self) {
        for _ in 0..self.random.u16(80..160) {
            match self.random.u8(0..100) {
                0..22 => self.history(),
                22..42 => self.step().await,
                42..56 => self.handle().await,
                56..78 => self.deliver().await,
                78..88 => self.pass_some(),
                88..92 => self.change_api_faults(),
                92..96 => {
                    let at = self.some_replica();
                    self.restart(at).await;
                }
                _ => Box::pin(self.mishap()).await,
            }
            self.look().await;
        }
    }

    pub(super) fn some_replica(&mut self) -> usize {
        self.random.usize(0..self.replicas.len())
    }

    /// Returns a random job.
    pub(super) fn some_job(&mut self) -> JobKind {
        let has_members = self.here().has_members;
        JobKind::any(&mut self.random, has_members)
    }

    fn pass_some(&mut self) {
        let millis = match self.random.u8(0..10) {
            0 => self.random.i64(60_000..86_400_000),
            1..4 => self.random.i64(1_000..60_000),
            _ => self.random.i64(1..1_000),
        };
        self.pass(millis);
    }

    /// Changes a user at WorkOS, often in the same millisecond as the last change.
    pub(super) fn history(&mut self) {
        let faults = &self.here().faults;
        // Late events and snapshots with a wrong date cannot be ordered among changes of the same millisecond.
        let must_pass = faults.late > 0 || faults.date_offset_s != 0;
        if must_pass || self.random.u8(0..4) > 0 {
            let millis = self.random.i64(1..2_000);
            self.pass(millis);
        }
        self.environments[self.bound].history(&mut self.random);
    }

    /// Runs a step of a job in a replica, or kills the replica during the step.
    async fn step(&mut self) {
        if self.feeds == Feeds::WebhooksOnly {
            return;
        }
        let (at, job) = (self.some_replica(), self.some_job());
        let polls = if self.random.u8(0..8) == 0 { self.random.usize(1..60) } else { ALWAYS };
        self.step_job(at, job, polls).await;
    }

    /// Runs a step of a job, unless the job pauses after a failure. Restarts a process that was killed.
    pub(super) async fn step_job(&mut self, at: usize, job: JobKind, polls: usize) {
        if self.replicas[at].rests(job, self.clock.now()) {
            return;
        }
        self.age_leases().await;
        if self.is_stray(at) {
            return self.step_stray(at, job, polls).await;
        }
        let before = self.here().workos.all_requests();
        let done = self.replicas[at].step(job, polls).await;
        let asked = self.here().workos.all_requests() > before;
        self.pause_is_kept(job, asked, done.is_some());
        match done {
            Some(rest) => self.replicas[at].note_rest(job, self.clock.now(), rest),
            None => self.restart(at).await,
        }
    }

    /// Runs a step of a handler, or kills the replica during the step.
    async fn handle(&mut self) {
        let at = self.some_replica();
        let polls = if self.random.u8(0..4) == 0 { self.random.usize(1..120) } else { ALWAYS };
        let which = self.random.usize(..);
        if self.random.bool() {
            self.backlogs_are_due().await;
        }
        if self.is_stray(at) {
            return self.handle_at_stray(at, which).await;
        }
        if self.random.u8(0..4) > 0 || (0..self.replicas.len()).any(|at| self.is_stray(at)) {
            if self.replicas[at].handle(which, polls).await.is_none() {
                self.restart(at).await;
            }
            return;
        }
        // Both processes run at the same time, because one of them has lost its lease and does not know it yet.
        self.expire_leases().await;
        let [one, other] = &self.replicas[..] else { panic!("two replicas") };
        let (_, done) = tokio::join!(one.handle(which, ALWAYS), other.handle(which, polls));
        if done.is_none() {
            self.restart(1).await;
        }
    }

    /// Attempts an open delivery. The process can be killed, and a delivery can be repeated after its success.
    async fn deliver(&mut self) {
        // The endpoint stays configured at an environment that the database is no longer bound to.
        let elsewhere = self.random.u8(0..8) == 0;
        let from = if elsewhere { self.random.usize(0..self.environments.len()) } else { self.bound };
        if self.environments[from].deliveries.is_empty() {
            return;
        }
        let which = self.random.usize(0..self.environments[from].deliveries.len());
        let at = self.some_replica();
        let polls = if self.random.u8(0..10) == 0 { self.random.usize(1..60) } else { ALWAYS };
        self.environments[from].deliveries[which].1 += 1;
        let (held, tried) = self.environments[from].deliveries[which].clone();
        if from != self.bound || self.is_stray(at) {
            return self.deliver_astray(&held, at).await;
        }
        // Other deliveries can arrive at the same time. They do not count as attempts.
        let others = if self.random.u8(0..3) == 0 { self.random.usize(1..12) } else { 0 };
        let mut group = vec![held];
        for _ in 0..others {
            let open = &self.environments[from].deliveries;
            group.push(open[self.random.usize(0..open.len())].0.clone());
        }
        let receipts = self.replicas[at].take_all(&group, self.clock.now(), polls).await;
        if let Some(receipts) = &receipts {
            self.seen.coverage.add_group(&group, receipts);
        }
        let is_committed = receipts.as_ref().is_some_and(|receipts| receipts[0].status == 200);
        let gives_up = tried >= 6 && self.feeds == Feeds::Both;
        if (is_committed && self.random.u8(0..6) > 0) || gives_up {
            self.here_mut().deliveries.swap_remove(which);
        }
        if receipts.is_none() {
            self.restart(at).await;
        }
    }

    /// Starts another process in its place, often after its leases have expired.
    pub(super) async fn restart(&mut self, at: usize) {
        self.restart_with(at, LONG_TIMEOUT).await;
        if self.random.bool() {
            self.expire_leases().await;
        }
    }

    pub(super) async fn restart_with(&mut self, at: usize, timeout: Duration) {
        let fresh = self.replica(timeout);
        std::mem::replace(&mut self.replicas[at], fresh).end().await;
    }

    pub(super) async fn expire_leases(&self) {
        self.insist("update workos.leases set expires_at = now() - interval '1 second'").await;
    }

    /// Moves the times in the database, so that they expire by our clocks although the database's clock is slower. Processes renew
    /// their leases, unless they have stalled.
    pub(super) async fn age_leases(&mut self) {
        if self.unaged < 1_000 {
            return;
        }
        let millis = std::mem::take(&mut self.unaged);
        let age = "update workos.leases set
            expires_at = expires_at - interval '1 millisecond' * $1,
            paused_until = paused_until - interval '1 millisecond' * $1";
        while sqlx::query(age).bind(millis).execute(&self.pool).await.is_err() {}
        for at in 0..self.replicas.len() {
            if !self.is_stray(at) && self.random.u8(0..4) > 0 {
                self.replicas[at].renew().await;
            }
        }
    }

    /// Ends the pauses before the next attempts.
    pub(super) async fn backlogs_are_due(&self) {
        self.insist("update workos.handler_backlog set due_at = now() where due_at > now()").await;
    }

    /// Executes a statement. Retries, because the pool can contain connections that a fault has closed.
    pub(super) async fn insist(&self, sql: &'static str) {
        for _ in 0..20 {
            if sqlx::raw_sql(sql).execute(&self.pool).await.is_ok() {
                return;
            }
        }
        panic!("the database does not execute: {sql}");
    }

    pub(super) async fn end(self) {
        for replica in self.replicas {
            replica.end().await;
        }
        self.pool.close().await;
        for environment in self.environments {
            environment.workos.stop().await;
        }
    }
}

/// Creates the tables of the application (a mirror of users and memberships, and a log), a trigger that refuses some names as data,
/// a trigger that slows down erasing, and a digest that shows whether one of our tables has changed.
const CLEAN: &str = "
    truncate workos.user_records, workos.organization_records, workos.organization_membership_records,
        workos.revoked_sessions, workos.refreshes, workos.role_lists, workos.role_records,
        workos.organization_role_records, workos.permission_records, workos.events, workos.catch_up, workos.scans, workos.leases, workos.environment,
        workos.changes, workos.handlers, workos.erasures cascade;
    create table if not exists app_users (id text collate \"C\" primary key, name text);
    create table if not exists app_log (
        n bigint generated always as identity primary key,
        handler text not null, position bigint not null, user_id text not null, kind text not null
    );
    create table if not exists app_members (id text collate \"C\" primary key, status text);
    truncate app_users, app_members, app_log;
    create sequence if not exists app_flaky;
    create or replace function app_log(change jsonb) returns void language plpgsql as $$
    begin
        insert into app_log (handler, position, user_id, kind)
        values ('log', split_part(change ->> 'position', '-', 2)::bigint, change ->> 'user_id', change ->> 'kind');
        if nextval('app_flaky') % 5 = 0 then
            raise exception 'now and then';
        end if;
    end
    $$;
    create or replace function app_refuse() returns trigger language plpgsql as $$
    begin
        raise exception 'refused' using errcode = '22023';
    end
    $$;
    create or replace trigger app_refuse before insert or update on workos.user_records
        for each row when (new.first_name like 'refused %') execute function public.app_refuse();
    create or replace trigger app_refuse before insert or update on workos.organization_records
        for each row when (new.name like 'refused %') execute function public.app_refuse();
    create table if not exists app_slowness (erasing_ms integer);
    truncate app_slowness;
    create or replace function app_slowly() returns trigger language plpgsql as $$
    begin
        perform pg_sleep(erasing_ms / 1000.0) from public.app_slowness;
        return new;
    end
    $$;
    create or replace trigger app_slowly before update of payload on workos.events
        for each row when (old.payload is not null and new.payload is null) execute function public.app_slowly();
    create or replace function app_digest() returns text language plpgsql as $$
    declare
        name text;
        part text;
        digest text := '';
    begin
        for name in
            select relname from pg_class where relnamespace = 'workos'::regnamespace and relkind = 'r' order by 1
        loop
            execute format('select md5(string_agg(t::text, '','' order by t::text)) from workos.%I as t', name) into part;
            digest := digest || ' ' || name || ' ' || coalesce(part, '');
        end loop;
        return digest;
    end
    $$";
