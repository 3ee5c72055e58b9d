//! One process of ours, which can be stepped, crash and start again.

use std::future::poll_fn;
use std::pin::pin;
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use authkit_sync::dev::workos::{Held, SimulatedWorkos};
use authkit_sync::domain::change::ChangeKind;
use authkit_sync::domain::clock::Clock;
use authkit_sync::domain::handler::Types;
use authkit_sync::domain::timestamp::Timestamp;
use authkit_sync::metrics::Metrics;
use authkit_sync::store::Store;
use authkit_sync::store::lent::BoxError;
use authkit_sync::sync::backfill::Backfill;
use authkit_sync::sync::catch_up::CatchUp;
use authkit_sync::sync::feed::Feed;
use authkit_sync::sync::handlers::{BacklogLoop, FeedLoop, HandlerWorker, RustHandler};
use authkit_sync::sync::housekeeping::Housekeeping;
use authkit_sync::sync::job::{Job, JobContext};
use authkit_sync::sync::reconcile::{Mode, Reconcile};
use authkit_sync::workos::api::{Api, ApiKey};
use authkit_sync::workos::signature::Secret;
use authkit_sync::{AuthKit, Change, Tx};
use axum::Router;
use axum::body::Body;
use axum::http::Request;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use tower::ServiceExt;

/// Polls a future so often at most; `None` when it was cut off, as by `kill -9`.
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

pub(super) struct Replica {
    pub(super) clock: Clock,
    pub(super) context: JobContext,
    pub(super) catch_up: CatchUp,
    pub(super) backfill: Backfill,
    pub(super) reconcile: Reconcile,
    pub(super) housekeeping: Housekeeping,
    /// Each handler's two loops.
    pub(super) handlers: Vec<(FeedLoop, BacklogLoop)>,
    pool: PgPool,
    router: Router,
}

impl Replica {
    pub(super) fn start(url: &str, workos: &SimulatedWorkos, now: Timestamp, seed: u64, both_feeds: bool) -> Self {
        let options = PgConnectOptions::from_str(url).unwrap();
        let pool = PgPoolOptions::new().max_connections(4).connect_lazy_with(options);
        let clock = Clock::manual(now);
        let metrics = Arc::new(Metrics::default());
        let store = Store::new(pool.clone(), pool.clone(), &workos.client_id(), Duration::from_secs(20));
        let api = Api::new(workos.base_url(), ApiKey::new(workos.api_key()), clock.clone()).unwrap();
        let context = JobContext::new(store, api, clock.clone(), metrics, seed);
        let types = ["user.created", "user.updated", "user.deleted", "session.created"].map(str::to_owned).to_vec();
        let authkit = AuthKit::builder(pool.clone(), workos.client_id())
            .webhook_secrets(vec![Secret::new(workos.webhook_secret())])
            .clock(clock.clone())
            .build()
            .unwrap();
        let day = Duration::from_secs(86_400);
        Self {
            clock,
            catch_up: CatchUp::new(context.clone(), types.clone(), Duration::ZERO),
            backfill: Backfill::new(context.clone(), false),
            // The database's clock, which no world can set, says when one is due: always.
            reconcile: Reconcile::new(context.clone(), Mode::Repair, Some(Duration::ZERO)),
            housekeeping: Housekeeping::new(context.clone(), 90 * day, both_feeds.then_some(types)),
            handlers: handlers(&context, seed),
            context,
            router: authkit.router(),
            pool,
        }
    }

    /// One step of one job; `None` when it was cut off.
    pub(super) async fn step(&self, job: u64, polls: usize) -> Option<Duration> {
        match job % 8 {
            0..5 => cut_off(polls, self.catch_up.tick()).await,
            5 => cut_off(polls, self.backfill.tick()).await,
            6 => cut_off(polls, self.reconcile.tick()).await,
            _ => cut_off(polls, self.housekeeping.tick()).await,
        }
    }

    /// One step of a handler, along the feed or through its backlog; `None` when it was cut off.
    pub(super) async fn handle(&self, which: usize, polls: usize) -> Option<Duration> {
        let (along, again) = &self.handlers[which / 2 % self.handlers.len()];
        if which.is_multiple_of(2) { cut_off(polls, along.tick()).await } else { cut_off(polls, again.tick()).await }
    }

    /// Takes a webhook that was signed at `now`; the status, or `None` when the process died under it.
    pub(super) async fn take(&self, held: &Held, now: Timestamp, polls: usize) -> Option<u16> {
        let request = Request::post("/workos/webhook").header("workos-signature", held.sign(now));
        let request = request.body(Body::from(held.body.clone())).unwrap();
        let answer = cut_off(polls, self.router.clone().oneshot(request)).await?;
        Some(answer.unwrap().status().as_u16())
    }

    pub(super) async fn end(self) {
        self.pool.close().await;
    }
}

/// The application's handlers: one in Rust that keeps its own table of users and a log, and fails now and then, also behind
/// its writes; one in SQL that keeps a log, and fails as often.
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
                (ChangeKind::Event(_), _) => {}
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
