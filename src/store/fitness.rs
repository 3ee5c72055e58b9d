//! Checks whether this process may serve the database: it is migrated, this release can read it, and it belongs to this
//! environment.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::sync::watch;
use tokio::time::Instant;

use super::migrations::{self, MigrationStatus};
use super::pooler::Mode;
use super::unfit::Unfit;
use super::{Store, StoreError};

/// Checks whether WorkOS knows this store's client ID, before the database is bound to it.
pub trait ClientVerifier: fmt::Debug + Send + Sync {
    /// Returns false if WorkOS does not know the client ID.
    ///
    /// # Errors
    /// Why WorkOS could not be reached.
    fn is_known(&self) -> BoxFuture<'_, Result<bool, String>>;
}

type Check = Shared<BoxFuture<'static, Result<(), StoreError>>>;

/// A check that runs in one task at a time. All concurrent callers get the result of that task.
#[derive(Debug)]
struct SharedCheck {
    /// Whether the first success is final.
    is_final: bool,
    has_passed: AtomicBool,
    running: Mutex<Option<Check>>,
}

impl SharedCheck {
    fn new(is_final: bool) -> Self {
        Self { is_final, has_passed: AtomicBool::new(false), running: Mutex::default() }
    }
}

/// The checks of the database, shared by all stores of a process.
#[derive(Debug)]
pub(super) struct Fitness {
    fit: SharedCheck,
    bound: SharedCheck,
    ready: SharedCheck,
    /// Set when a database that passed the checks becomes unfit.
    unfit: watch::Sender<Option<Unfit>>,
}

impl Default for Fitness {
    fn default() -> Self {
        Self {
            fit: SharedCheck::new(true),
            bound: SharedCheck::new(true),
            ready: SharedCheck::new(false),
            unfit: watch::Sender::new(None),
        }
    }
}

impl Store {
    /// Checks whether this process may serve the database. The first success is final. Returns within the store's timeout.
    ///
    /// # Errors
    /// [`StoreError::Unfit`] if this process must not serve the database, any other error if the check could not run.
    pub async fn check(&self) -> Result<(), StoreError> {
        self.once(|fitness| &fitness.fit, || self.clone().check_fitness()).await
    }

    /// Runs [`Store::check`], and checks that the database is bound to this client ID. If it is not bound yet, binds it, if WorkOS
    /// knows the client ID.
    ///
    /// # Errors
    /// As [`Store::check`], and [`StoreError::Unbound`] if WorkOS could not be reached.
    pub async fn check_bound(&self) -> Result<(), StoreError> {
        self.check().await?;
        self.once(|fitness| &fitness.bound, || self.clone().check_binding()).await
    }

    /// Checks that the database is writable and that our table can be read. Concurrent calls use one connection.
    ///
    /// # Errors
    /// [`StoreError`], also if a write has found that this process must not serve the database any more.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.check().await?;
        if let Some(unfit) = self.fitness.unfit.borrow().clone() {
            return Err(unfit.into());
        }
        self.once(|fitness| &fitness.ready, || self.clone().check_writable()).await
    }

    async fn once<F: Future<Output = Result<(), StoreError>> + Send + 'static>(
        &self,
        which: fn(&Fitness) -> &SharedCheck,
        ask: impl FnOnce() -> F,
    ) -> Result<(), StoreError> {
        let checked = which(&self.fitness);
        if checked.has_passed.load(Ordering::Acquire) {
            return Ok(());
        }
        let check = {
            let mut running = checked.running.lock().unwrap_or_else(PoisonError::into_inner);
            running
                .get_or_insert_with(|| {
                    let (asked, fitness, store) = (ask(), self.fitness.clone(), self.clone());
                    let check = async move {
                        let answer = tokio::time::timeout(store.timeout, asked).await;
                        let outcome = answer.unwrap_or_else(|late| Err(StoreError::late(late)));
                        let outcome = outcome.map_err(|error| error.at(&store.lookups.place()));
                        store.log_failure(&outcome);
                        let checked = which(&fitness);
                        checked.has_passed.store(checked.is_final && outcome.is_ok(), Ordering::Release);
                        *checked.running.lock().unwrap_or_else(PoisonError::into_inner) = None;
                        outcome
                    };
                    // It continues when its caller is dropped, because other callers wait for it and it may hold a connection.
                    let check = tokio::spawn(check);
                    let stopped = |_| Err(StoreError::Unavailable("the runtime is shutting down".into()));
                    async move { check.await.unwrap_or_else(stopped) }.boxed().shared()
                })
                .clone()
        };
        check.await
    }

    async fn check_fitness(self) -> Result<(), StoreError> {
        let mode = self.lookups.mode(Instant::now() + self.timeout).await?;
        let status: MigrationStatus = self.ask(migrations::current_status).await?;
        if !status.pending.is_empty() {
            return Err(Unfit::Pending(status.pending.join(", ")).into());
        }
        let wanted = self
            .ask(async |connection| {
                sqlx::query_scalar!("-- contract.version\nselect version from workos.contract")
                    .fetch_one(connection)
                    .await
            })
            .await?;
        let known = migrations::newest();
        if wanted > known {
            return Err(Unfit::TooNew { wanted, known }.into());
        }
        if let Some(recorded) = self.ask(Self::recorded_client).await? {
            self.require_client(recorded)?;
        }
        if !status.newer.is_empty() {
            tracing::warn!(schema.newer = ?status.newer, schema.known = known, "a newer release has migrated the database; this release can still serve it");
        }
        // Last, because this check is repeated while migrations run, and only its first success is final.
        if mode == Mode::Pooler {
            tracing::info!("DATABASE_URL is the address of a connection pooler; every statement runs in a transaction");
        }
        Ok(())
    }

    async fn check_binding(self) -> Result<(), StoreError> {
        if self.client_id.is_empty() {
            return Ok(());
        }
        let recorded = match self.ask(Self::recorded_client).await? {
            Some(recorded) => recorded,
            None => {
                self.verify_client().await?;
                self.bind().await?
            }
        };
        self.require_client(recorded)
    }

    pub(super) async fn verify_client(&self) -> Result<(), StoreError> {
        let Some(verifier) = &self.verifier else { return Ok(()) };
        match verifier.is_known().await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Unfit::UnknownClient(self.client_id.to_string()).into()),
            Err(why) => {
                let text = format!(
                    "WorkOS is unreachable: {why}. The database is not bound to WORKOS_CLIENT_ID before WorkOS confirms the client ID; until then, webhooks get 503"
                );
                if self.failure_log.as_ref().is_none_or(|log| log.count(&text).is_some()) {
                    tracing::warn!("{text}");
                }
                Err(StoreError::Unbound)
            }
        }
    }

    fn require_client(&self, recorded: String) -> Result<(), StoreError> {
        if self.client_id.is_empty() || recorded == *self.client_id {
            return Ok(());
        }
        Err(Unfit::OtherClient { recorded, given: self.client_id.to_string() }.into())
    }

    /// Waits until a database that passed the checks becomes unfit, because it was bound to another client ID.
    pub(crate) async fn becomes_unfit(&self) -> Unfit {
        let mut unfit = self.fitness.unfit.subscribe();
        match unfit.wait_for(Option::is_some).await.map(|unfit| unfit.clone()) {
            Ok(Some(unfit)) => unfit,
            // The sender exists as long as this store.
            _ => std::future::pending().await,
        }
    }

    /// Records if a write found the database unfit.
    pub(super) fn noting_unfit<T>(&self, outcome: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(StoreError::Unfit(unfit)) = &outcome {
            self.fitness.unfit.send_if_modified(|known| {
                let is_new = known.is_none();
                known.get_or_insert_with(|| unfit.clone());
                is_new
            });
        }
        outcome
    }
}
