//! WorkOS, the network, the database, and what befalls them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use authkit_sync::dev::postgres::PrivatePostgres;
use authkit_sync::dev::workos::{ApiFaults, Faults, Held, Options, SimulatedWorkos};
use authkit_sync::domain::clock::Clock;
use authkit_sync::domain::decide::Stored;
use authkit_sync::domain::handler::Types;
use authkit_sync::domain::timestamp::Timestamp;
use authkit_sync::store::handler_admin::NewHandler;
use authkit_sync::store::migrations;
use authkit_sync::store::walks::Kind;
use authkit_sync::sync::job::{Job, JobError};
use authkit_sync::sync::reconcile::ReconcileStep;
use serde_json::{Map, Value, json};
use sqlx::postgres::{PgPool, PgPoolOptions};

use super::replica::Replica;

const ALWAYS: usize = usize::MAX;

/// What brings events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Feeds {
    WebhooksOnly,
    CatchUpOnly,
    Both,
}

pub(super) struct World<'a> {
    feeds: Feeds,
    random: fastrand::Rng,
    server: &'a mut PrivatePostgres,
    url: String,
    /// Sees everything and changes nothing but leases.
    pool: PgPool,
    clock: Clock,
    workos: SimulatedWorkos,
    replicas: Vec<Replica>,
    /// Deliveries to be made, and how often each was tried.
    deliveries: Vec<(Held, u32)>,
    /// Everybody who ever lived: their last word, and when they were deleted.
    last_words: BTreeMap<String, (Value, Option<Timestamp>)>,
    /// What ended earlier was never heard of.
    heard_since: Timestamp,
    /// Catch-up has begun.
    reads: bool,
    /// Items on a page.
    page: usize,
    /// WorkOS has forgotten events that we never read.
    forgotten: bool,
}

impl<'a> World<'a> {
    pub(super) async fn begin(seed: u64, feeds: Feeds, server: &'a mut PrivatePostgres) -> Self {
        let url = server.url("postgres");
        let pool = PgPoolOptions::new().max_connections(2).connect(&url).await.unwrap();
        migrations::run(&pool).await.unwrap();
        sqlx::raw_sql(CLEAN).execute(&pool).await.unwrap();
        let clock = Clock::manual(Timestamp::parse("2026-09-01T08:00:00Z").unwrap());
        let listen = (Ipv4Addr::LOCALHOST, 0).into();
        let workos = SimulatedWorkos::start(Options { listen, clock: clock.clone(), seed, state: None }).await.unwrap();
        workos.set_faults(Faults { hold: true, ..Faults::default() });
        let mut world = Self {
            feeds,
            random: fastrand::Rng::with_seed(seed),
            server,
            url,
            pool,
            clock: clock.clone(),
            workos,
            replicas: Vec::new(),
            deliveries: Vec::new(),
            last_words: BTreeMap::new(),
            heard_since: clock.now(),
            reads: false,
            page: usize::try_from(seed % 4).unwrap() + 1,
            forgotten: false,
        };
        world.workos.set_api_faults(world.calm());
        // Some lived before anybody listened.
        if feeds != Feeds::WebhooksOnly {
            for _ in 0..world.random.u8(0..8) {
                world.history();
            }
            world.pass(7_200_000);
        }
        world.heard_since = world.clock.now();
        world.workos.add_endpoint("http://held.invalid/");
        for _ in 0..2 {
            let replica = world.replica();
            world.replicas.push(replica);
        }
        world.application().await;
        world
    }

    /// The application's handlers; see `Replica`.
    async fn application(&self) {
        let store = &self.replicas[0].context.store;
        assert!(store.enrol_handler("mirror", &Types::parse("*").unwrap(), true).await.unwrap());
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

    fn replica(&mut self) -> Replica {
        let seed = self.random.u64(..);
        Replica::start(&self.url, &self.workos, self.clock.now(), seed, self.feeds == Feeds::Both)
    }

    fn pass(&self, millis: i64) {
        self.clock.set(self.clock.now().plus_micros(millis * 1_000));
        for replica in &self.replicas {
            replica.clock.set(replica.clock.now().plus_micros(millis * 1_000));
        }
    }

    /// Everything that can happen, in any order.
    pub(super) async fn live(&mut self) {
        for _ in 0..self.random.u16(80..160) {
            match self.random.u8(0..100) {
                0..22 => self.history(),
                22..42 => self.step().await,
                42..56 => self.handle().await,
                56..78 => self.deliver().await,
                78..88 => self.pass_some(),
                88..92 => self.weather(),
                92..96 => self.crash().await,
                _ => self.mishap().await,
            }
            self.look().await;
        }
    }

    fn pass_some(&mut self) {
        let millis = match self.random.u8(0..10) {
            0 => self.random.i64(60_000..86_400_000),
            1..4 => self.random.i64(1_000..60_000),
            _ => self.random.i64(1..1_000),
        };
        self.pass(millis);
    }

    /// Something happens to a user at WorkOS; often in the same millisecond as what was before.
    fn history(&mut self) {
        if self.random.u8(0..4) > 0 {
            let millis = self.random.i64(1..2_000);
            self.pass(millis);
        }
        let alive: Vec<String> =
            self.last_words.iter().filter(|(_, (_, deleted))| deleted.is_none()).map(|(id, _)| id.clone()).collect();
        let somebody = self.random.choice(&alive).cloned();
        let name = format!("name {}", self.random.u16(..));
        match (somebody, self.random.u8(0..20)) {
            (None, _) | (_, 0..6) if self.last_words.len() < 14 => {
                let email = format!("{}@example.test", self.random.u64(..));
                let user = self.workos.create_user(&object(json!({"email": email, "first_name": name}))).unwrap();
                self.last_words.insert(user["id"].as_str().unwrap().to_owned(), (user, None));
            }
            (Some(id), 0..15) => {
                let user = self.workos.update_user(&id, &object(json!({"first_name": name}))).unwrap();
                self.last_words.insert(id, (user, None));
            }
            (Some(id), 15..17) => {
                self.workos.delete_user(&id).unwrap();
                let (word, _) = self.last_words.remove(&id).unwrap();
                self.last_words.insert(id, (word, Some(self.clock.now())));
            }
            (Some(id), 17..19) => {
                self.workos.sign_in(&id).unwrap();
                let now = json!(self.clock.now());
                self.last_words.get_mut(&id).unwrap().0["last_sign_in_at"] = now;
            }
            (Some(id), _) => {
                let data = json!({"object": "organization_membership", "id": "om_1", "user_id": id});
                let _ = self.workos.emit("organization_membership.created", data);
            }
            (None, _) => {}
        }
        let made = self.workos.take_held();
        if self.feeds != Feeds::CatchUpOnly {
            self.deliveries.extend(made.into_iter().map(|held| (held, 0)));
        }
    }

    /// A replica does a step of a job, or begins to.
    async fn step(&mut self) {
        if self.feeds == Feeds::WebhooksOnly {
            return;
        }
        let at = self.random.usize(0..self.replicas.len());
        let polls = if self.random.u8(0..8) == 0 { self.random.usize(1..60) } else { ALWAYS };
        let job = self.random.u64(..);
        let done = self.replicas[at].step(job, polls).await;
        if done.is_none() {
            self.restart(at).await;
        }
    }

    /// A handler does a step, or begins to.
    async fn handle(&mut self) {
        let at = self.random.usize(0..self.replicas.len());
        let polls = if self.random.u8(0..4) == 0 { self.random.usize(1..120) } else { ALWAYS };
        let which = self.random.usize(..);
        if self.random.bool() {
            self.backlogs_are_due().await;
        }
        if self.random.u8(0..4) > 0 {
            if self.replicas[at].handle(which, polls).await.is_none() {
                self.restart(at).await;
            }
            return;
        }
        // Both at once: one of them has lost its lease without noticing.
        self.expire_leases().await;
        let [one, other] = &self.replicas[..] else { panic!("two replicas") };
        let (_, done) = tokio::join!(one.handle(which, ALWAYS), other.handle(which, polls));
        if done.is_none() {
            self.restart(1).await;
        }
    }

    /// A delivery is tried: any of those that are open, perhaps at a process that dies under it, perhaps once too often.
    async fn deliver(&mut self) {
        if self.deliveries.is_empty() {
            return;
        }
        let which = self.random.usize(0..self.deliveries.len());
        let at = self.random.usize(0..self.replicas.len());
        let polls = if self.random.u8(0..10) == 0 { self.random.usize(1..60) } else { ALWAYS };
        let (held, tried) = &mut self.deliveries[which];
        *tried += 1;
        let status = self.replicas[at].take(held, self.clock.now(), polls).await;
        let gives_up = *tried >= 6 && self.feeds == Feeds::Both;
        if (status == Some(200) && self.random.u8(0..6) > 0) || gives_up {
            self.deliveries.swap_remove(which);
        } else if status.is_some_and(|status| status != 200) {
            assert!(matches!(status, Some(401 | 503)), "{status:?}");
        }
        if status.is_none() {
            self.restart(at).await;
        }
    }

    /// The API behaves differently from now on.
    fn weather(&mut self) {
        let chance = self.random.u8(0..3) * 15;
        let mut faults = ApiFaults { hold_back_ms: self.random.u64(0..12_000), ..self.calm() };
        match self.random.u8(0..8) {
            0 => faults.rate_limit = chance,
            1 => faults.error = chance,
            2 => faults.cut = chance,
            3 => faults.garbage = chance,
            4 => faults.refuse_key = true,
            5 => faults.lists_start_over = true,
            6 => faults.lost_cursors_start_over = true,
            _ => faults.unknown_types = vec!["session.created".to_owned()],
        }
        self.workos.set_api_faults(faults);
    }

    /// Nothing goes wrong; but pages are short, so that there are many.
    fn calm(&self) -> ApiFaults {
        let retention_s = self.forgotten.then_some(31 * 86_400);
        // Whoever forgets may refuse the cursor, or say nothing and begin anew.
        let lost_cursors_start_over = self.forgotten && self.page.is_multiple_of(2);
        ApiFaults { page_limit: Some(self.page), retention_s, lost_cursors_start_over, ..ApiFaults::default() }
    }

    async fn crash(&mut self) {
        let at = self.random.usize(0..self.replicas.len());
        self.restart(at).await;
    }

    /// Another process in its place; often it takes a while until its leases have run out.
    async fn restart(&mut self, at: usize) {
        let fresh = self.replica();
        std::mem::replace(&mut self.replicas[at], fresh).end().await;
        if self.random.bool() {
            self.expire_leases().await;
        }
    }

    async fn expire_leases(&self) {
        let expire = "update workos.leases set expires_at = now() - interval '1 second', not_before = null";
        // The pool may hold a connection that a mishap has closed.
        while sqlx::query(expire).execute(&self.pool).await.is_err() {}
    }

    async fn mishap(&mut self) {
        match self.random.u8(0..12) {
            // A lease runs out under its holder.
            0..3 => self.expire_leases().await,
            // Every connection breaks.
            3..6 => {
                let kill = "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and datname = current_database()";
                let _ = sqlx::query(kill).execute(&self.pool).await;
            }
            6 => {
                self.server.pause().unwrap();
                self.server.resume().unwrap();
            }
            // A clock is wrong, either way, or right again.
            7..9 => {
                let at = self.random.usize(0..self.replicas.len());
                let wrong = [-86_400 * 40, -3_600, 0, 0, 3_600, 86_400 * 40];
                let seconds = *self.random.choice(&wrong).unwrap();
                self.replicas[at].clock.set(self.clock.now().plus_seconds(seconds));
            }
            9 => self.workos.lose_cursors(),
            // We are away for longer than WorkOS retries deliveries and keeps events.
            _ if self.feeds == Feeds::Both && !self.forgotten => {
                self.forgotten = true;
                for _ in 0..self.random.u8(0..12) {
                    self.history();
                }
                self.deliveries.clear();
                self.pass(40 * 86_400_000);
                self.workos.set_api_faults(self.calm());
            }
            _ => {}
        }
    }

    /// What holds at any instant.
    async fn look(&mut self) {
        if self.feeds == Feeds::WebhooksOnly || self.forgotten {
            return;
        }
        let place: Option<(Option<String>, Option<time::OffsetDateTime>, time::OffsetDateTime)> = loop {
            let place = "select cursor, synced_through, range_start from workos.catch_up";
            if let Ok(place) = sqlx::query_as(place).fetch_optional(&self.pool).await {
                break place;
            }
        };
        let Some((cursor, synced_through, range_start)) = place else { return };
        if self.feeds == Feeds::CatchUpOnly && !self.reads {
            self.heard_since = range_start.into();
        }
        self.reads = true;
        let inbox: Vec<String> =
            sqlx::query_scalar("select id from workos.events").fetch_all(&self.pool).await.unwrap();
        for event in self.workos.events() {
            let (id, event_type) = (event["id"].as_str().unwrap(), event["event"].as_str().unwrap());
            let created_at = Timestamp::parse(event["created_at"].as_str().unwrap()).unwrap();
            let promised = cursor.as_deref().is_some_and(|cursor| id <= cursor)
                || synced_through.is_some_and(|through| created_at <= Timestamp::from(through));
            let read = event_type.starts_with("user.") && created_at >= Timestamp::from(range_start);
            assert!(!(promised && read) || inbox.iter().any(|known| known == id), "{id} was skipped");
        }
    }

    /// Everything heals, and all that is open is done.
    pub(super) async fn settle(&mut self) {
        self.workos.set_api_faults(self.calm());
        for at in 0..self.replicas.len() {
            self.restart(at).await;
        }
        self.pass(60_000);
        while let Some((held, _)) = self.deliveries.pop() {
            let mut tries = 0;
            while self.replicas[0].take(&held, self.clock.now(), ALWAYS).await != Some(200) {
                tries += 1;
                assert!(tries < 20, "{} is never taken", held.event_id);
            }
        }
        self.expire_leases().await;
        if self.feeds != Feeds::WebhooksOnly {
            self.catch_up().await;
            if !self.forgotten {
                self.compare(false).await;
            }
            self.reconcile().await;
        }
        self.compare(self.feeds != Feeds::WebhooksOnly).await;
        self.look().await;
        self.handle_all().await;
        self.application_agrees().await;
    }

    /// As if the rests after failures were over.
    async fn backlogs_are_due(&self) {
        let due = "update workos.handler_backlog set due_at = now() where due_at > now()";
        while sqlx::query(due).execute(&self.pool).await.is_err() {}
    }

    /// Handlers come to the end of the feed and of their backlogs.
    async fn handle_all(&mut self) {
        for _ in 0..400 {
            self.backlogs_are_due().await;
            self.expire_leases().await;
            for (along, again) in &self.replicas[0].handlers {
                along.tick().await;
                again.tick().await;
            }
            let standings = self.replicas[0].context.store.handler_standings().await.unwrap();
            if standings.iter().all(|handler| handler.depth == 0 && handler.state == "running") {
                assert!(standings.iter().all(|handler| handler.set_aside == 0), "{standings:?}");
                return;
            }
        }
        let standings = self.replicas[0].context.store.handler_standings().await.unwrap();
        panic!("handlers do not come to an end: {standings:?}");
    }

    /// What each handler should have written is there once, in each user's order, and its table has WorkOS's users.
    async fn application_agrees(&self) {
        let wrong: Vec<String> = sqlx::query_scalar(WRONG).fetch_all(&self.pool).await.unwrap();
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    async fn catch_up(&mut self) {
        let store = self.replicas[0].context.store.clone();
        for _ in 0..400 {
            self.pass(100);
            for replica in &self.replicas {
                replica.catch_up.tick().await;
                replica.backfill.tick().await;
            }
            self.look().await;
            let trouble = self.replicas[0].context.jobs.standing();
            let suspect = trouble.values().any(|job| job.trouble.as_ref().is_some_and(|it| it.contains("suspect")));
            if suspect {
                assert!(self.forgotten, "the key is suspected: {trouble:?}");
                store.accept_deletions().await.unwrap();
            }
            let through = store.place().await.unwrap().and_then(|place| place.synced_through);
            let current = through.is_some_and(|through| through > self.clock.now().plus_seconds(-60));
            if current && store.standing(Kind::Backfill).await.unwrap().completed_at.is_some() {
                return;
            }
        }
        panic!("catch-up does not come to an end: {:?}", self.replicas[0].context.jobs.standing());
    }

    async fn reconcile(&mut self) {
        let replica = &self.replicas[0];
        for _ in 0..400 {
            self.pass(100);
            match replica.reconcile.step().await {
                Ok(ReconcileStep::Done(_)) => return,
                Ok(ReconcileStep::Standby) => self.expire_leases().await,
                Ok(ReconcileStep::Going { .. }) => {}
                Err(JobError::TooMany { .. } | JobError::WrongKey { .. } | JobError::NobodyListed { .. })
                    if self.forgotten =>
                {
                    // Nobody is left at WorkOS to list; then nothing can be inferred, and this world ends undecided.
                    if self.workos.users().is_empty() {
                        return;
                    }
                    replica.context.store.accept_deletions().await.unwrap();
                }
                // A world in which everybody was deleted, and we know it, lists nobody.
                Err(JobError::NobodyListed { live }) => panic!("{live} alive here, nobody at WorkOS"),
                Err(trouble) => panic!("{trouble}"),
            }
        }
        panic!("reconcile does not come to an end");
    }

    async fn compare(&self, with_sign_ins: bool) {
        let store = &self.replicas[0].context.store;
        for (id, (word, deleted_at)) in &self.last_words {
            match (store.user(id).await.unwrap(), deleted_at) {
                (Stored::Live { user, .. }, None) => {
                    let (mut here, mut there) = (serde_json::to_value(&user).unwrap(), word.clone());
                    if !with_sign_ins {
                        here["last_sign_in_at"].take();
                        there["last_sign_in_at"].take();
                    }
                    assert_eq!(here, there);
                }
                (Stored::Tombstone { deleted_at: here }, Some(there)) => {
                    assert!(here == Some(*there) || self.forgotten, "{id}: deleted {there}, here {here:?}");
                }
                // Gone before anybody listened or read: nobody ever heard of them.
                (Stored::Absent, Some(there)) if *there < self.heard_since || self.forgotten => {}
                (_, Some(_)) if self.forgotten && self.workos.users().is_empty() => {}
                (stored, deleted) => panic!("{id}: {stored:?} where WorkOS says {word} (deleted: {deleted:?})"),
            }
        }
    }

    pub(super) async fn end(self) {
        for replica in self.replicas {
            replica.end().await;
        }
        self.pool.close().await;
        self.workos.stop().await;
    }
}

/// A world begins with nothing.
const CLEAN: &str = "
    truncate workos.user_records, workos.events, workos.catch_up, workos.walks, workos.leases, workos.environment,
        workos.changes, workos.handlers cascade;
    create table if not exists app_users (id text collate \"C\" primary key, name text);
    create table if not exists app_log (
        n bigint generated always as identity primary key,
        handler text not null, position bigint not null, user_id text not null, kind text not null
    );
    truncate app_users, app_log;
    create sequence if not exists app_flaky;
    create or replace function app_log(change jsonb) returns void language plpgsql as $$
    begin
        insert into app_log (handler, position, user_id, kind)
        values ('log', split_part(change ->> 'position', '-', 2)::bigint, change ->> 'user_id', change ->> 'kind');
        if nextval('app_flaky') % 5 = 0 then
            raise exception 'now and then';
        end if;
    end
    $$";

/// Everything that is not as it should be between the feed, the table, and what the application wrote.
const WRONG: &str = "
    with due as (
        select name as handler, changes.position, user_id, kind
        from workos.handlers, workos.changes
        where changes.position > started_at and (name = 'mirror' or event_type like 'user.%' or kind in ('created', 'updated', 'deleted', 'session.created'))
    ),
    changed as (
        select *, row_number() over (partition by user_id order by position) as nth, count(*) over (partition by user_id) as many
        from workos.changes where kind in ('created', 'updated', 'deleted')
    )
    select 'not done: ' || due::text from due
    where not exists (select from app_log as done where done.handler = due.handler and done.position = due.position)
    union all
    select 'done twice: ' || handler || ' ' || position from app_log group by handler, position, user_id having count(*) > 1
    union all
    select 'out of order: ' || step::text
    from (select *, lag(position) over (partition by handler, user_id order by n) as before from app_log where user_id <> '') as step
    where position < before
    union all
    select 'created late, or twice: ' || changed::text from changed where kind = 'created' and nth > 1
    union all
    select 'changed behind its deletion: ' || changed::text from changed where kind = 'deleted' and nth < many
    union all
    select 'first told as an update: ' || changed::text from changed where kind = 'updated' and nth = 1
    union all
    select 'the application has another: ' || coalesce(ours.id, theirs.id)
    from app_users as ours full join workos.users as theirs on theirs.id = ours.id
    where ours.name is distinct from theirs.first_name";

fn object(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}
