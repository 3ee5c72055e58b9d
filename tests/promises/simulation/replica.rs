//! A process of the service, which the simulation steps, kills and restarts.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::pin;
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use authkit_sync::authkit::Builder;
use authkit_sync::dev::workos::{Held, SimulatedWorkos};
use authkit_sync::domain::change::ChangeKind;
use authkit_sync::domain::clock::Clock;
use authkit_sync::domain::handler::Types;
use authkit_sync::domain::timestamp::Timestamp;
use authkit_sync::store::Pool;
use authkit_sync::store::handlers::BoxError;
use authkit_sync::sync::backfill::Backfill;
use authkit_sync::sync::backfill::organizations::OrganizationsBackfill;
use authkit_sync::sync::catch_up::CatchUp;
use authkit_sync::sync::feed::Feed;
use authkit_sync::sync::handlers::{BacklogLoop, FeedLoop, HandlerWorker, RustHandler};
use authkit_sync::sync::housekeeping::Housekeeping;
use authkit_sync::sync::job::JobContext;
use authkit_sync::sync::reconcile::organizations::OrganizationsReconcile;
use authkit_sync::sync::reconcile::{Mode, Reconcile};
use authkit_sync::sync::refresh::Refresh;
use authkit_sync::sync::runner::BackgroundLoop;
use authkit_sync::tokens::{KeyFetchError, KeySource};
use authkit_sync::workos::api::{Api, ApiKey};
use authkit_sync::workos::signature::Secret;
use authkit_sync::{AuthKit, Change, Kinds, Tx};
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use axum::response::Response;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use serde_json::Value;
use sqlx::postgres::PgConnectOptions;
use tower::ServiceExt;

use crate::support::lab::job_context;

/// Database connections of a process. Its receiver and its jobs share them.
pub(super) const POOL: u32 = 4;

/// Maximum number of events that wait in a process. Deliveries arrive in groups of up to twelve.
const QUEUES: [usize; 3] = [3, 8, 4_096];

/// An answer to a delivery.
#[derive(Debug)]
pub(super) struct Receipt {
    pub(super) status: u16,
    /// The outcome, or the code of the error.
    pub(super) text: String,
}

impl Receipt {
    async fn of(response: Response) -> Self {
        let status = response.status().as_u16();
        let body: Value = serde_json::from_slice(&to_bytes(response.into_body(), 65_536).await.unwrap()).unwrap();
        let text = body.get("outcome").or(body.get("code")).and_then(Value::as_str);
        Self { status, text: text.unwrap_or_default().to_owned() }
    }
}

/// The simulation sends no tokens, so a process needs no HTTP client for keys.
struct NoKeys;

impl KeySource for NoKeys {
    fn fetch(&self) -> BoxFuture<'_, Result<Bytes, KeyFetchError>> {
        async { Err(KeyFetchError::new("there are no keys")) }.boxed()
    }
}

/// Polls a future at most this many times. `None`: it was dropped before its end, as by `kill -9`.
pub(super) async fn cut_off<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(move |context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}

/// The types of events that catch-up reads.
pub(super) fn types() -> impl Iterator<Item = &'static str> {
    Kinds::ALL.event_types().into_iter().chain(["session.created"])
}

/// The jobs that send requests to WorkOS, and the one that does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JobKind {
    CatchUp,
    Backfill,
    Reconcile,
    Housekeeping,
    OrganizationsBackfill,
    OrganizationsReconcile,
    Refresh,
}

impl JobKind {
    const ALL: [Self; 7] = [
        Self::CatchUp,
        Self::Backfill,
        Self::Reconcile,
        Self::Housekeeping,
        Self::OrganizationsBackfill,
        Self::OrganizationsReconcile,
        Self::Refresh,
    ];

    /// Returns the jobs of a world in which only users change, or all.
    pub(super) fn all(has_members: bool) -> &'static [Self] {
        if has_members { &Self::ALL } else { &Self::ALL[..4] }
    }

    /// Returns a random job, often catch-up.
    pub(super) fn any(random: &mut fastrand::Rng, has_members: bool) -> Self {
        let jobs = Self::all(has_members);
        let job = random.usize(0..jobs.len() + 4);
        jobs[job.saturating_sub(4)]
    }

    /// Returns its name in the status of the process.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::CatchUp => CatchUp::NAME,
            Self::Backfill => Backfill::NAME,
            Self::Reconcile => Reconcile::NAME,
            Self::Housekeeping => Housekeeping::NAME,
            Self::OrganizationsBackfill => OrganizationsBackfill::NAME,
            Self::OrganizationsReconcile => OrganizationsReconcile::NAME,
            Self::Refresh => Refresh::NAME,
        }
    }
}

/// The parameters of a process.
pub(super) struct Start<'a> {
    pub(super) url: &'a str,
    pub(super) workos: &'a SimulatedWorkos,
    /// The index of that environment.
    pub(super) environment: usize,
    pub(super) now: Timestamp,
    pub(super) seed: u64,
    /// Whether both webhooks and catch-up deliver events.
    pub(super) both_feeds: bool,
    /// The database timeout.
    pub(super) timeout: Duration,
}

pub(super) struct Replica {
    /// The index of the environment whose client ID it has.
    pub(super) environment: usize,
    pub(super) clock: Clock,
    pub(super) context: JobContext,
    pub(super) catch_up: CatchUp,
    pub(super) backfill: Backfill,
    pub(super) reconcile: Reconcile,
    pub(super) housekeeping: Housekeeping,
    pub(super) organizations_backfill: OrganizationsBackfill,
    pub(super) organizations_reconcile: OrganizationsReconcile,
    pub(super) refresh: Refresh,
    /// The two loops of each handler.
    pub(super) handlers: Vec<(FeedLoop, BacklogLoop)>,
    /// Number of steps since its database was rebound to another environment.
    pub(super) unaware: u32,
    /// The end of the pause of each job.
    due: BTreeMap<&'static str, Timestamp>,
    pool: Pool,
    receiver: Receiver,
}

/// The HTTP side of a process. It is built at the first request, because building takes time and many processes get none.
enum Receiver {
    Configured(Option<Box<Builder>>),
    Built(Router),
}

impl Receiver {
    fn router(&mut self) -> Router {
        if let Self::Configured(builder) = self {
            *self = Self::Built(builder.take().unwrap().build().unwrap().router());
        }
        let Self::Built(router) = self else { unreachable!("it was built") };
        router.clone()
    }
}

impl Replica {
    pub(super) fn start(start: &Start<'_>) -> Self {
        let Start { workos, seed, timeout, .. } = *start;
        let options = PgConnectOptions::from_str(start.url).unwrap();
        let pool = Pool::connect(options, POOL, timeout);
        let clock = Clock::manual(start.now);
        let api = Api::new(workos.base_url(), ApiKey::new(workos.api_key()), clock.clone()).unwrap();
        let context = job_context(pool.clone(), &workos.client_id(), timeout, api, &clock, seed);
        let types = types().map(str::to_owned).collect::<Vec<_>>();
        let receiver = AuthKit::builder(pool.clone(), workos.client_id())
            .webhook_secrets(vec![Secret::new(workos.webhook_secret())])
            .key_source(Arc::new(NoKeys))
            .database_timeout(timeout)
            .webhook_queue(QUEUES[usize::try_from(seed % 3).unwrap()])
            .clock(clock.clone());
        let day = Duration::from_secs(86_400);
        Self {
            environment: start.environment,
            clock,
            catch_up: CatchUp::new(context.clone(), types.clone(), Duration::ZERO),
            backfill: Backfill::new(context.clone(), false),
            // A reconcile is due by the database's clock, which the simulation cannot set. So it is always due.
            reconcile: Reconcile::new(context.clone(), Mode::Repair, Some(Duration::ZERO)),
            organizations_backfill: OrganizationsBackfill::new(context.clone(), false),
            organizations_reconcile: OrganizationsReconcile::new(context.clone(), Mode::Repair, Some(Duration::ZERO)),
            refresh: Refresh::new(context.clone()),
            housekeeping: Housekeeping::new(context.clone(), 30 * day, start.both_feeds.then_some(types)),
            handlers: handlers(&context, seed),
            unaware: 0,
            due: BTreeMap::new(),
            context,
            receiver: Receiver::Configured(Some(Box::new(receiver))),
            pool,
        }
    }

    /// Runs a step of a job. `None`: the process was killed.
    pub(super) async fn step(&self, job: JobKind, polls: usize) -> Option<Duration> {
        match job {
            JobKind::CatchUp => cut_off(polls, self.catch_up.tick()).await,
            JobKind::Backfill => cut_off(polls, self.backfill.tick()).await,
            JobKind::Reconcile => cut_off(polls, self.reconcile.tick()).await,
            JobKind::Housekeeping => cut_off(polls, self.housekeeping.tick()).await,
            JobKind::OrganizationsBackfill => cut_off(polls, self.organizations_backfill.tick()).await,
            JobKind::OrganizationsReconcile => cut_off(polls, self.organizations_reconcile.tick()).await,
            JobKind::Refresh => cut_off(polls, self.refresh.tick()).await,
        }
    }

    /// Renews the leases, as a process does every few seconds, also during a pause.
    pub(super) async fn renew(&self) {
        self.catch_up.renew().await;
        self.backfill.renew().await;
        self.reconcile.renew().await;
        self.housekeeping.renew().await;
        self.organizations_backfill.renew().await;
        self.organizations_reconcile.renew().await;
        self.refresh.renew().await;
    }

    /// Returns whether a job pauses because its last step failed.
    pub(super) fn rests(&self, job: JobKind, now: Timestamp) -> bool {
        self.due.get(job.name()).is_some_and(|due| now < *due)
    }

    /// Records the pause after a failed step. Other pauses are skipped, to save time.
    pub(super) fn note_rest(&mut self, job: JobKind, now: Timestamp, rest: Duration) {
        if self.error(job).is_some() {
            self.due.insert(job.name(), now.plus_micros(rest.as_micros().try_into().unwrap()));
        } else {
            self.due.remove(job.name());
        }
    }

    /// Returns the error of the last step of a job.
    pub(super) fn error(&self, job: JobKind) -> Option<String> {
        self.context.jobs.current().get(job.name()).and_then(|status| status.error.clone())
    }

    /// Runs a step of a handler, on the feed or on its backlog. `None`: the process was killed.
    pub(super) async fn handle(&self, which: usize, polls: usize) -> Option<Duration> {
        let (along, again) = &self.handlers[which / 2 % self.handlers.len()];
        if which.is_multiple_of(2) { cut_off(polls, along.tick()).await } else { cut_off(polls, again.tick()).await }
    }

    /// Receives a webhook that was signed at `now`. Returns the status, or `None` if the process was killed.
    pub(super) async fn take(&mut self, held: &Held, now: Timestamp, polls: usize) -> Option<u16> {
        self.take_all(std::slice::from_ref(held), now, polls).await?.pop().map(|receipt| receipt.status)
    }

    /// Receives several webhooks at the same time. Returns the answers, or `None` if the process was killed.
    pub(super) async fn take_all(&mut self, held: &[Held], now: Timestamp, polls: usize) -> Option<Vec<Receipt>> {
        let router = self.receiver.router();
        let answers = held.iter().map(|held| {
            let request = Request::post("/workos/webhook").header("workos-signature", held.sign(now));
            router.clone().oneshot(request.body(Body::from(held.body.clone())).unwrap())
        });
        let answers = cut_off(polls, join_all(answers)).await?;
        Some(join_all(answers.into_iter().map(|answer| Receipt::of(answer.unwrap()))).await)
    }

    pub(super) async fn end(self) {
        self.pool.connections().close().await;
    }
}

/// Writes the current membership of a change to the application's table.
async fn keep_member(change: &Change, tx: &mut Tx) -> Result<(), BoxError> {
    let id = change.object_id.as_ref().unwrap();
    if let Some(membership) = &change.membership {
        let keep = "insert into app_members values ($1, $2) on conflict (id) do update set status = excluded.status";
        sqlx::query(keep).bind(id).bind(&membership.status).execute(&mut **tx).await?;
    } else {
        sqlx::query("delete from app_members where id = $1").bind(id).execute(&mut **tx).await?;
    }
    Ok(())
}

/// Creates the application's handlers. One in Rust writes tables of users and memberships and a log, and sometimes fails before or
/// after its writes. One in SQL writes a log, and fails as often.
fn handlers(context: &JobContext, seed: u64) -> Vec<(FeedLoop, BacklogLoop)> {
    let random = Arc::new(Mutex::new(fastrand::Rng::with_seed(seed)));
    let mirror = move |change: Change, mut tx: Tx| {
        let random = random.clone();
        async move {
            let id = change.user_id.clone().unwrap_or_default();
            let (fails_before, fails_after) = {
                let mut random = random.lock().unwrap();
                (random.u8(0..8) == 0, random.u8(0..8) == 0)
            };
            if fails_before {
                return Err("before it wrote".into());
            }
            match (&change.kind, &change.user) {
                (ChangeKind::User(_), Some(user)) => {
                    let keep =
                        "insert into app_users values ($1, $2) on conflict (id) do update set name = excluded.name";
                    sqlx::query(keep).bind(&id).bind(&user.first_name).execute(&mut *tx).await?;
                }
                (ChangeKind::User(_), None) => {
                    sqlx::query("delete from app_users where id = $1").bind(&id).execute(&mut *tx).await?;
                }
                (ChangeKind::Membership(_), _) => keep_member(&change, &mut tx).await?,
                _ => {}
            }
            sqlx::query("insert into app_log (handler, position, user_id, kind) values ('mirror', $1, $2, $3)")
                .bind(change.position.number)
                .bind(id)
                .bind(change.kind.as_str())
                .execute(&mut *tx)
                .await?;
            if fails_after { Err::<(), BoxError>("after it wrote".into()) } else { Ok(()) }
        }
    };
    let feed = Feed::new(context.store.clone());
    let mirror = RustHandler {
        name: "mirror".into(),
        types: Types::parse("*").unwrap(),
        from_start: true,
        timeout: Duration::from_secs(20),
        handle: Arc::new(mirror),
    };
    let workers = [("mirror", Some(mirror)), ("log", None)];
    let workers = workers.map(|(name, rust)| Arc::new(HandlerWorker::new(context.clone(), feed.clone(), name, rust)));
    workers.into_iter().map(|worker| (FeedLoop(worker.clone()), BacklogLoop(worker))).collect()
}
