//! The checked parts: the settings of `serve`, and the database and WorkOS if the settings name them.

use std::sync::Arc;
use std::time::Duration;

use crate::cli::database::pool;
use crate::config::{self, CATCH_UP, DB_POOL, EVENT_TYPES, JWKS_URL, RECONCILE_INTERVAL, Source, WEBHOOK_SECRETS};
use crate::config::{CATCH_UP_INTERVAL, Database, READ_DATABASE_URL, READ_STALENESS, RETENTION, WORKOS_API_KEY};
use crate::domain::clock::Clock;
use crate::domain::kinds::Kinds;
use crate::metrics::Metrics;
use crate::store::Store;
use crate::sync::health::Expected;
use crate::sync::job::JobContext;
use crate::tokens::{HttpKeySource, KeyCache};
use crate::workos::api::Api;
use crate::workos::signature::Secret;

pub(super) struct Subject<'a> {
    pub(super) source: &'a Source,
    pub(super) clock: Clock,
    /// `None` without a usable `DATABASE_URL`.
    pub(super) store: Option<Store>,
    /// The standby, and the greatest age of its answers. `None` if it is not configured.
    pub(super) standby: Option<(Store, Duration)>,
    pub(super) client_id: Option<String>,
    pub(super) keys: Option<KeyCache>,
    /// `None` without `WORKOS_API_KEY`.
    pub(super) api: Option<Api>,
    pub(super) webhook_secrets: Vec<Secret>,
    polls: bool,
    poll_interval: Duration,
    reconcile_interval: Option<Duration>,
    retention: Duration,
    /// Connections of one `serve` process.
    pub(super) pool_size: u32,
    /// What is synced.
    pub(super) kinds: Kinds,
    /// Event types that webhooks must deliver.
    pub(super) needed_types: Vec<&'static str>,
    /// Event types that catch-up reads.
    pub(super) polled_types: Vec<String>,
}

impl<'a> Subject<'a> {
    pub(super) fn new(source: &'a Source) -> Self {
        let clock = Clock::system();
        let database = config::database_if_set(source).ok().flatten();
        let environment = config::environment(source).ok();
        let keys = match (source.find(&JWKS_URL), &environment) {
            (Some(url), _) => HttpKeySource::new(&url).ok(),
            (None, Some(environment)) => HttpKeySource::of_client(&environment.client_id, &environment.api_base).ok(),
            (None, None) => None,
        };
        let api = source.find(&WORKOS_API_KEY).zip(config::api_base(source).ok());
        let more = source.find(&EVENT_TYPES).unwrap_or_default();
        let kinds = config::kinds(source).unwrap_or(Kinds::ALL);
        let needed_types = kinds.event_types();
        let standby = source.find(&READ_DATABASE_URL).zip(database.as_ref()).map(|(hosts, database)| {
            let standby = Database { hosts, ..database.clone() };
            let staleness = source.find(&READ_STALENESS).unwrap_or(crate::authkit::STALENESS);
            (Store::of_any_client(pool(&standby), database.timeout), staleness)
        });
        Self {
            store: database.map(|database| Store::of_any_client(pool(&database), database.timeout)),
            standby,
            client_id: environment.map(|environment| environment.client_id),
            keys: keys.map(|keys| KeyCache::new(Arc::new(keys), clock.clone())),
            api: api.and_then(|(key, base)| Api::new(&base, key, clock.clone()).ok()),
            webhook_secrets: source.find(&WEBHOOK_SECRETS).unwrap_or_default(),
            polls: source.find(&CATCH_UP).unwrap_or(true) && source.find(&WORKOS_API_KEY).is_some(),
            poll_interval: source.find(&CATCH_UP_INTERVAL).unwrap_or(crate::authkit::CATCH_UP_INTERVAL),
            reconcile_interval: source.find(&RECONCILE_INTERVAL).flatten(),
            retention: source.find(&RETENTION).unwrap_or(crate::authkit::RETENTION),
            pool_size: source.find(&DB_POOL).unwrap_or_default(),
            polled_types: needed_types.iter().map(|name| (*name).to_owned()).chain(more).collect(),
            needed_types,
            kinds,
            clock,
            source,
        }
    }

    /// Returns the settings of `serve` that the checks compare the sync state with.
    pub(super) fn expected(&self) -> Expected {
        Expected {
            polls: self.polls,
            poll_interval: self.poll_interval,
            reconcile_interval: self.reconcile_interval,
            retention: self.retention,
            kinds: self.kinds,
        }
    }

    /// Returns the context of a background job, for the checks that a job does, too. It only reads.
    pub(super) fn job_context(&self) -> Option<JobContext> {
        let (store, api) = (self.store.clone()?, self.api.clone()?);
        Some(JobContext::new(store, api, self.clock.clone(), Arc::new(Metrics::default()), fastrand::u64(..)))
    }
}
