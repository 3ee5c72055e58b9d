//! Whether this process can serve this database: migrated, readable by this release, and this environment's own.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::sync::watch;

use super::migrations::{self, MigrationStatus};
use super::unfit::Unfit;
use super::{Store, StoreError, pooler};

/// Tells whether WorkOS knows this store's client ID, before a database is bound to it for good.
pub trait ClientVerifier: fmt::Debug + Send + Sync {
    /// `Ok(false)`: WorkOS answered, and does not know it. `Err`: WorkOS could not be reached; the text says why.
    fn is_known(&self) -> BoxFuture<'_, Result<bool, String>>;
}

type Check = Shared<BoxFuture<'static, Result<(), StoreError>>>;

/// Something that is checked by one task at a time. Everybody who asks meanwhile hears that task's answer.
#[derive(Debug)]
struct Checked {
    /// The first yes is remembered.
    remembers: bool,
    holds: AtomicBool,
    under_way: Mutex<Option<Check>>,
}

impl Checked {
    fn new(remembers: bool) -> Self {
        Self { remembers, holds: AtomicBool::new(false), under_way: Mutex::default() }
    }
}

/// What is known of the database. Stores of one process share it.
#[derive(Debug)]
pub(super) struct Fitness {
    fit: Checked,
    bound: Checked,
    ready: Checked,
    /// Set when a fit database turns out to be none.
    unfit: watch::Sender<Option<Unfit>>,
}

impl Default for Fitness {
    fn default() -> Self {
        Self {
            fit: Checked::new(true),
            bound: Checked::new(true),
            ready: Checked::new(false),
            unfit: watch::Sender::new(None),
        }
    }
}

impl Store {
    /// Whether this release can serve this database for this client: asked until the first yes, then remembered. Every
    /// caller is answered within the store's timeout.
    ///
    /// # Errors
    /// [`StoreError::Unfit`] when it must not be served, any other when it cannot be asked.
    pub async fn check(&self) -> Result<(), StoreError> {
        self.once(|fitness| &fitness.fit, || self.clone().check_fitness()).await
    }

    /// [`Store::check`], and whether the database is bound to this client ID. A database that is bound to none yet is bound
    /// now, if WorkOS knows the client ID.
    ///
    /// # Errors
    /// As [`Store::check`]; [`StoreError::Unbound`] when WorkOS could not be reached to find out.
    pub async fn check_bound(&self) -> Result<(), StoreError> {
        self.check().await?;
        let bound = self.once(|fitness| &fitness.bound, || self.clone().check_binding()).await;
        self.noting_unfit(bound)
    }

    /// Whether the database can be written to and our table can be read. However many ask at once, as anybody may, it costs one
    /// connection.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.check().await?;
        self.once(|fitness| &fitness.ready, || self.clone().check_writable()).await
    }

    async fn once<F: Future<Output = Result<(), StoreError>> + Send + 'static>(
        &self,
        which: fn(&Fitness) -> &Checked,
        ask: impl FnOnce() -> F,
    ) -> Result<(), StoreError> {
        let checked = which(&self.fitness);
        if checked.holds.load(Ordering::Acquire) {
            return Ok(());
        }
        let check = {
            let mut under_way = checked.under_way.lock().unwrap_or_else(PoisonError::into_inner);
            under_way
                .get_or_insert_with(|| {
                    let (asked, fitness, timeout) = (ask(), self.fitness.clone(), self.timeout);
                    let check = async move {
                        let answer = tokio::time::timeout(timeout, asked).await;
                        let outcome = answer.unwrap_or_else(|late| Err(StoreError::late(late)));
                        let checked = which(&fitness);
                        checked.holds.store(checked.remembers && outcome.is_ok(), Ordering::Release);
                        *checked.under_way.lock().unwrap_or_else(PoisonError::into_inner) = None;
                        outcome
                    };
                    // It goes on when its caller gives up: nobody else would poll it, and it may hold a connection.
                    let check = tokio::spawn(check);
                    let stopped = |_| Err(StoreError::Unavailable("the runtime is shutting down".into()));
                    async move { check.await.unwrap_or_else(stopped) }.boxed().shared()
                })
                .clone()
        };
        check.await
    }

    async fn check_fitness(self) -> Result<(), StoreError> {
        if pooler::shares_sessions(self.lookups.connections()).await? {
            return Err(Unfit::TransactionPooler.into());
        }
        let status: MigrationStatus = self.ask(migrations::status).await?;
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
            tracing::warn!(schema.newer = ?status.newer, schema.known = known, "a newer release has migrated this database; served as it is");
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
                tracing::warn!(
                    "WorkOS must be reached once before this database is bound to WORKOS_CLIENT_ID; until then webhooks are answered 503: {why}"
                );
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

    /// Resolves when a database that was found fit turns out to be none: it was given to another client ID.
    pub(crate) async fn becomes_unfit(&self) -> Unfit {
        let mut unfit = self.fitness.unfit.subscribe();
        match unfit.wait_for(Option::is_some).await.map(|unfit| unfit.clone()) {
            Ok(Some(unfit)) => unfit,
            // The sender lives as long as this store.
            _ => std::future::pending().await,
        }
    }

    /// Remembers that a write found the database unfit.
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
