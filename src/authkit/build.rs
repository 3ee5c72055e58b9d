//! Builds an [`AuthKit`] from its settings.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use super::AuthKit;
use super::background::Jobs;
use super::binding::PublishedKeys;
use super::builder::{Builder, KeySourceArgument, WEBHOOK_MEMORY};
use super::error::BuildError;
use crate::domain::event::Origin;
use crate::domain::kinds::Kinds;
use crate::http::{BodyBudget, Drain, HttpState, Limits, RejectedSecrets, StatusPage};
use crate::lookup::Lookups;
use crate::metrics::Metrics;
use crate::store::{Pool, Store};
use crate::sync::feed::Feed;
use crate::sync::group_commit::GroupCommit;
use crate::sync::health::Expected;
use crate::sync::job::JobContext;
use crate::sync::mirror::Mirror;
use crate::sync::progress::SyncProgress;
use crate::sync::read_through::ReadThrough;
use crate::sync::standby::Standby;
use crate::tokens::{HttpKeySource, KeyCache, KeySource, TokenPolicy, TokenVerifier};
use crate::workos::api::{Api, ApiKey};

/// Returns the settings that the status page compares the sync state with.
fn expected(jobs: &Jobs, kinds: Kinds) -> Expected {
    Expected {
        polls: jobs.catch_up,
        poll_interval: jobs.catch_up_interval,
        reconcile_interval: jobs.reconcile_interval,
        retention: jobs.retention,
        kinds,
    }
}

impl Builder {
    /// Builds the [`AuthKit`]. It opens no connection yet.
    ///
    /// # Errors
    /// [`BuildError`] if a setting is invalid.
    pub fn build(self) -> Result<AuthKit, BuildError> {
        self.check()?;
        let keys = self.keys()?;
        let migrate = self.migrate.then(|| self.receipts.clone());
        let metrics = Arc::new(Metrics::default());
        keys.measure(&metrics, self.api_key.is_none());
        let webhook_pool = self.receipts.measured("webhooks", &metrics).measuring_hosts(&metrics);
        let lookup_pool = self.lookups.measured("lookups", &metrics);
        let store = Store::new(webhook_pool, lookup_pool, &self.client_id, self.database_timeout)
            .verifying_client(Arc::new(PublishedKeys(keys.clone())))
            .logging_failures();
        let policy = TokenPolicy::new(&self.client_id, &self.api_base)
            .issuers(self.issuers)
            .audiences(self.audiences)
            .allow_shared_issuer(self.allow_shared_issuer);
        let tokens = Arc::new(TokenVerifier::new(policy, keys.clone(), self.clock.clone()));
        let background = store.on_pool(self.background.measured("background", &metrics));
        let handlers = background.handlers_on(self.handlers.measured("handlers", &metrics));
        let watch = SyncProgress::new(background.clone(), metrics.clone(), self.jobs.catch_up_interval);
        let has_key = self.api_key.is_some();
        let mut jobs = Jobs { webhooks: !self.webhook_secrets.is_empty(), ..self.jobs };
        let kinds = Kinds { sign_ins: self.session_sign_ins, ..self.kinds };
        jobs.add_event_types(kinds);
        if !has_key {
            (jobs.catch_up, jobs.backfill, jobs.refresh, jobs.reconcile_interval) = (false, false, false, None);
        }
        let api = Api::new(&self.api_base, self.api_key.unwrap_or_else(|| ApiKey::new("")), self.clock.clone());
        let api = api.map_err(|error| BuildError(error.to_string()))?.measured(metrics.clone());
        let context = JobContext::new(background, api, self.clock.clone(), metrics.clone(), seed()).syncing(kinds);
        let read_through = (self.read_through && has_key).then(|| ReadThrough::new(context.clone()));
        let actions = self.actions.build(&store, &self.clock, &metrics, self.connections)?;
        let standby = self.standby.map(|standby| build_standby(standby, &context, jobs.backfill));
        let mirror = Arc::new(Mirror::new(store.clone(), standby, watch.clone(), metrics.clone()));
        let awaited = jobs.backfill.then(|| watch.clone());
        Ok(AuthKit {
            migrate,
            limits: Limits { connections: self.connections, write: self.write_timeout, ..Limits::default() },
            state: Arc::new(HttpState {
                webhooks: GroupCommit::new(store.clone(), Origin::Webhook, self.webhook_queue, metrics.clone()),
                lookups: Lookups::new(store.clone(), tokens, kinds)
                    .checking_memberships(has_key)
                    .awaiting_backfill(awaited)
                    .reading_through(read_through),
                kinds,
                service_keys: ArcSwap::from_pointee(self.service_keys),
                rejected_secrets: RejectedSecrets::default(),
                cors_origins: self.cors_origins,
                watch,
                jobs: context.jobs.clone(),
                status: StatusPage::new(context.clone(), expected(&jobs, kinds), Arc::default()),
                catches_up: jobs.catch_up,
                feed: Feed::new(store.clone()),
                mirror,
                closing: CancellationToken::new(),
                drain: Drain::new(self.drain_delay),
                store,
                webhook_secrets: ArcSwap::from_pointee(self.webhook_secrets),
                actions,
                webhook_path: self.webhook_path,
                signature_tolerance: self.signature_tolerance,
                body_timeout: self.body_timeout,
                webhook_bodies: BodyBudget::new(self.body_limit, WEBHOOK_MEMORY),
                clock: self.clock,
                metrics,
                keys,
                document: OnceLock::new(),
            }),
            context,
            handlers,
            jobs,
        })
    }

    /// Checks the settings.
    fn check(&self) -> Result<(), BuildError> {
        if !self.webhook_path.starts_with('/') || self.webhook_path.contains(['{', '}', '?', '#']) {
            return Err(BuildError("the webhook path must begin with / and must not contain {, }, ? or #".to_owned()));
        }
        if let Some(mistake) = self.mistakes.first() {
            return Err(BuildError(mistake.clone()));
        }
        self.actions.check(&self.webhook_secrets, &self.webhook_path)
    }

    fn keys(&self) -> Result<KeyCache, BuildError> {
        let source = match (&self.key_source, &self.jwks_url) {
            (Some(KeySourceArgument(source)), _) => Ok(source.clone()),
            (None, Some(url)) => HttpKeySource::new(url).map(|source| Arc::new(source) as Arc<dyn KeySource>),
            (None, None) => HttpKeySource::of_client(&self.client_id, &self.api_base)
                .map(|source| Arc::new(source) as Arc<dyn KeySource>),
        };
        let source = source.map_err(|error| BuildError(error.to_string()))?;
        Ok(KeyCache::new(source, self.clock.clone()))
    }
}

/// Builds the standby from its pool and the maximum age of its data.
fn build_standby((pool, staleness): (Pool, Duration), context: &JobContext, backfills: bool) -> Arc<Standby> {
    let kinds = context.kinds;
    let needed = [
        ("backfill", true),
        ("backfill_organizations", kinds.organizations),
        ("backfill_memberships", kinds.memberships),
    ];
    let needed = needed.into_iter().filter(|(_, is_synced)| backfills && *is_synced).map(|(kind, _)| kind).collect();
    let pool = pool.measured("standby", &context.metrics);
    Arc::new(Standby::new(context.store.clone(), pool, staleness, needed, context.metrics.clone()))
}

/// Returns a random number. It identifies this process.
fn seed() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}
