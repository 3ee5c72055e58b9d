//! Chooses the host that new connections use, if a URL has several hosts or sets `target_session_attrs`.
//!
//! The hosts are tested in order, and the first one that matches `target_session_attrs` is chosen. It stays chosen until a connection
//! to it fails or it no longer matches. Then it is tested first, and the others in order. Otherwise one lost connection could move
//! the service from the promoted standby to an old primary that runs again.
//!
//! Each host has its own pool of connections, so a connection to an earlier host is never used again. Each host is tested for a
//! pooler on its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use futures_util::future::join_all;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection, Executor, Row};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::cutoff::Cutoff;
use super::hosts::{Hosts, Wanted};
use super::offered_login::OfferedLogin;
use super::place::Place;
use super::pooler::Route;
use super::{Store, StoreError};

/// The pause between two rounds of tests if no host matched.
const PAUSE: Duration = Duration::from_millis(100);

/// The pause between two searches for another host, while callers wait for a connection to the chosen one.
const SEARCH_INTERVAL: Duration = Duration::from_secs(1);

/// What a host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostState {
    /// It accepts writes.
    Primary,
    /// It is not a standby, but `default_transaction_read_only` is on.
    ReadOnly,
    /// It is a standby.
    Standby,
}

impl HostState {
    /// Returns the state of the server behind a connection. Works with every pooler.
    pub(super) async fn of(connection: &mut PgConnection) -> Result<Self, sqlx::Error> {
        let row = connection
            .fetch_one(
                "-- resolver.state
                select
                    pg_catalog.pg_is_in_recovery(),
                    pg_catalog.current_setting('transaction_read_only') operator(pg_catalog.=) 'on'",
            )
            .await?;
        Ok(match (row.try_get_unchecked(0)?, row.try_get_unchecked(1)?) {
            (true, _) => Self::Standby,
            (false, true) => Self::ReadOnly,
            (false, false) => Self::Primary,
        })
    }

    /// Returns whether a host in this state matches `target_session_attrs`.
    #[must_use]
    pub fn is(self, wanted: Wanted) -> bool {
        match wanted {
            Wanted::Any => true,
            Wanted::ReadWrite => self == Self::Primary,
            Wanted::Primary => self != Self::Standby,
            Wanted::Standby => self == Self::Standby,
        }
    }
}

/// A host, for operators.
#[derive(Debug)]
pub struct HostFacts {
    /// Host, port and name of the database.
    pub address: String,
    /// What it is, or why its test failed.
    pub state: Result<HostState, StoreError>,
}

impl Store {
    /// Returns what each host of the database is, and what a host must be.
    pub async fn host_facts(&self) -> (Vec<HostFacts>, Wanted) {
        let resolver = self.lookups.resolver();
        let facts = resolver.0.hosts.iter().map(async |host| HostFacts {
            address: host.place().address().to_owned(),
            state: host.state(resolver.0.limit).await.map_err(|error| error.at(&host.place())),
        });
        (join_all(facts).await, resolver.0.wanted)
    }
}

/// The state of one host. All pools of a [`Pools`](super::pool::Pools) share it.
#[derive(Debug)]
pub(super) struct Host {
    login: ArcSwap<PgConnectOptions>,
    place: ArcSwap<Place>,
    /// Connections that must no longer be used.
    pub(super) cutoff: Cutoff,
    /// Whether there is a pooler.
    pub(super) route: Route,
    /// A login to use if the server refuses the current one.
    pub(super) offered: OfferedLogin,
}

impl Host {
    fn of(options: &PgConnectOptions) -> Self {
        Self {
            login: ArcSwap::from_pointee(options.clone()),
            place: ArcSwap::from_pointee(Place::of(options)),
            cutoff: Cutoff::default(),
            route: Route::default(),
            offered: OfferedLogin::default(),
        }
    }

    pub(super) fn place(&self) -> Arc<Place> {
        self.place.load_full()
    }

    /// Sets the login. Connections with the previous one must no longer be used.
    pub(super) fn set_login(&self, login: &PgConnectOptions) {
        self.offered.set(None);
        self.login.store(Arc::new(login.clone()));
        self.place.store(Arc::new(Place::of(login)));
        self.cutoff.set();
    }

    /// Returns what the host is.
    pub(super) async fn state(&self, limit: Duration) -> Result<HostState, StoreError> {
        let asked = async {
            let mut connection = self.offered.open(&self.login.load_full()).await?;
            let state = HostState::of(&mut connection).await?;
            // An error when closing does not matter.
            let _ = connection.close().await;
            Ok::<_, sqlx::Error>(state)
        };
        let state = timeout(limit, asked).await.map_err(|_| StoreError::unanswered())?;
        state.map_err(StoreError::from)
    }
}

/// The choice of a host, and the version of its cutoff before it was tested. A later version ends the choice.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    pub(super) index: usize,
    version: u64,
}

/// Chooses the host. All pools of [`Pools`](super::pool::Pools) share it.
#[derive(Clone, Debug)]
pub(super) struct Resolver(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    hosts: Vec<Arc<Host>>,
    wanted: Wanted,
    /// The timeout for the test of one host.
    limit: Duration,
    chosen: ArcSwapOption<Choice>,
    /// The host that was chosen last.
    latest: AtomicUsize,
    /// One caller at a time searches. Holds when the last search ended.
    search: Mutex<Option<Instant>>,
    /// Why the last search found no host.
    problem: ArcSwapOption<StoreError>,
}

impl Resolver {
    /// `timeout` limits a request. The test of each host gets an equal part of it, so that one request can test all hosts.
    pub(super) fn new(hosts: &Hosts, timeout: Duration) -> Self {
        let count = u32::try_from(hosts.options().len()).unwrap_or(u32::MAX);
        Self(Arc::new(Inner {
            hosts: hosts.options().iter().map(Host::of).map(Arc::new).collect(),
            wanted: hosts.wanted(),
            limit: timeout / count.saturating_add(1),
            chosen: ArcSwapOption::empty(),
            latest: AtomicUsize::new(0),
            search: Mutex::default(),
            problem: ArcSwapOption::empty(),
        }))
    }

    pub(super) fn hosts(&self) -> &[Arc<Host>] {
        &self.0.hosts
    }

    pub(super) fn wanted(&self) -> Wanted {
        self.0.wanted
    }

    /// Returns whether there is nothing to choose.
    pub(super) fn is_fixed(&self) -> bool {
        self.0.hosts.len() == 1 && self.0.wanted == Wanted::Any
    }

    /// Returns the host that was chosen last, or the first one.
    pub(super) fn latest(&self) -> usize {
        self.0.latest.load(Ordering::Relaxed)
    }

    /// Returns why the last search found no host. `None`: the search found a host, or no search has run.
    pub(super) fn problem(&self) -> Option<StoreError> {
        self.0.problem.load_full().map(|problem| (*problem).clone())
    }

    /// Returns the current choice. If there is none, tries the hosts until `deadline`.
    ///
    /// # Errors
    /// [`StoreError`] that names each host and why it is not used.
    pub(super) async fn choice(&self, deadline: Instant) -> Result<Choice, StoreError> {
        if let Some(choice) = self.current() {
            return Ok(choice);
        }
        let Ok(mut ended) = timeout_at(deadline, self.0.search.lock()).await else {
            return Err(self.problem().unwrap_or_else(StoreError::unanswered));
        };
        loop {
            if let Some(choice) = self.current() {
                return Ok(choice);
            }
            // Boxed, because it is large and rare.
            let found = timeout_at(deadline, Box::pin(self.search())).await;
            *ended = Some(Instant::now());
            match found {
                Ok(Ok(choice)) => return Ok(choice),
                // A wrong password or a missing database stays wrong.
                Ok(Err(error @ StoreError::Unavailable(_))) => return Err(error),
                Ok(Err(error)) if Instant::now() + PAUSE >= deadline => return Err(error),
                Ok(Err(_)) => sleep(PAUSE).await,
                Err(_) => return Err(self.problem().unwrap_or_else(StoreError::unanswered)),
            }
        }
    }

    /// Returns the choice, unless its host's cutoff was set after the choice.
    fn current(&self) -> Option<Choice> {
        let choice = |index| Choice { index, version: self.0.hosts[index].cutoff.version() };
        if self.is_fixed() {
            return Some(choice(0));
        }
        let chosen = *self.0.chosen.load_full()?;
        (choice(chosen.index).version == chosen.version).then_some(chosen)
    }

    /// Resolves when `choice` is no longer current. Until then, it tests the hosts again every second, because the caller waits for
    /// a connection. If the chosen host still matches, or no host does, the choice stays.
    pub(super) async fn is_outdated(&self, choice: Choice) {
        if self.is_fixed() {
            return std::future::pending().await;
        }
        let host = &self.0.hosts[choice.index];
        loop {
            tokio::select! {
                () = host.cutoff.exceeds(choice.version) => return,
                () = sleep(PAUSE * 2) => {}
            }
            let mut ended = self.0.search.lock().await;
            if self.current().is_some() && ended.is_none_or(|ended| ended.elapsed() >= SEARCH_INTERVAL) {
                let found = Box::pin(self.search()).await;
                *ended = Some(Instant::now());
                if found.is_ok_and(|found| found.index != choice.index) {
                    host.cutoff.set();
                }
            }
        }
    }

    /// Tests each host once, the latest choice first, and chooses the first one that matches.
    async fn search(&self) -> Result<Choice, StoreError> {
        let mut failures = Vec::new();
        let latest = self.latest();
        let others = (0..self.0.hosts.len()).filter(|index| *index != latest);
        for index in std::iter::once(latest).chain(others) {
            let host = &self.0.hosts[index];
            let choice = Choice { index, version: host.cutoff.version() };
            let error = match host.state(self.0.limit).await {
                Ok(state) if state.is(self.0.wanted) => {
                    self.choose(choice);
                    return Ok(choice);
                }
                Ok(_) => StoreError::unwanted_host(self.0.wanted),
                Err(error) => error,
            };
            failures.push(error.at(&host.place()));
        }
        let problem = StoreError::of_hosts(failures);
        self.0.problem.store(Some(Arc::new(problem.clone())));
        Err(problem)
    }

    fn choose(&self, choice: Choice) {
        let is_first = self.0.chosen.swap(Some(Arc::new(choice))).is_none();
        self.0.problem.store(None);
        let previous = self.0.latest.swap(choice.index, Ordering::Relaxed);
        if previous != choice.index && !is_first {
            let at = |index: usize| self.0.hosts[index].place().address().to_owned();
            tracing::warn!(host = at(choice.index), previous = at(previous), "new connections use another host");
        }
    }
}
