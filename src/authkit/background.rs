//! The background jobs of this process.

use std::time::Duration;

use super::dispatcher::Dispatcher;
use crate::domain::kinds::Kinds;
use crate::store::Store;
use crate::supervise::Supervisor;
use crate::sync::backfill::Backfill;
use crate::sync::backfill::organizations::OrganizationsBackfill;
use crate::sync::catch_up::CatchUp;
use crate::sync::handlers::RustHandler;
use crate::sync::housekeeping::Housekeeping;
use crate::sync::job::JobContext;
use crate::sync::reconcile::organizations::OrganizationsReconcile;
use crate::sync::reconcile::{Mode, Reconcile};
use crate::sync::refresh::Refresh;

/// The settings of the background jobs.
#[derive(Clone, Debug)]
pub(super) struct Jobs {
    /// Whether to poll the Events API.
    pub(super) catch_up: bool,
    /// Pause at the end of the Events API.
    pub(super) catch_up_interval: Duration,
    /// Whether to read all existing users once.
    pub(super) backfill: bool,
    /// Whether to read from WorkOS what events report as changed, and the roles on a timer. Needs an API key.
    pub(super) refresh: bool,
    /// Interval between two reconciles.
    pub(super) reconcile_interval: Option<Duration>,
    /// Retention period of events in the inbox.
    pub(super) retention: Duration,
    /// The event types that catch-up reads.
    pub(super) event_types: Vec<String>,
    /// Whether webhooks are received. Then housekeeping compares the events of webhooks and catch-up.
    pub(super) webhooks: bool,
    /// The handlers in Rust.
    pub(super) handlers: Vec<RustHandler>,
}

impl Jobs {
    /// Adds the types of what is synced, and those that handlers name completely, to the event types that catch-up reads.
    pub(super) fn add_event_types(&mut self, kinds: Kinds) {
        let handled = self.handlers.iter().flat_map(|handler| handler.types.exact());
        let named = self.event_types.iter().map(String::as_str).chain(handled);
        let mut types: Vec<String> = Vec::new();
        for name in kinds.event_types().into_iter().chain(named) {
            if !types.iter().any(|read| read == name) {
                types.push(name.to_owned());
            }
        }
        self.event_types = types;
    }

    /// Logs that nothing is read from WorkOS, if there is no API key.
    pub(super) fn report_missing_key(&self) {
        if self.refresh {
            return;
        }
        let webhooks = if self.webhooks {
            "Only webhooks are synced."
        } else {
            "There is no webhook secret either, so nothing is synced."
        };
        tracing::warn!(
            "there is no API key, so this process does not poll, backfill, reconcile or read unknown users. {webhooks} \
             Set WORKOS_API_KEY, or call Builder::api_key in an application"
        );
    }

    /// Starts the enabled jobs, and the handlers on their own pool.
    pub(super) fn start(&self, loops: &mut Supervisor, context: &JobContext, handlers: &Store) {
        if self.catch_up {
            loops.start(CatchUp::new(context.clone(), self.event_types.clone(), self.catch_up_interval));
        }
        // A job of a kind that is not synced would be shown as working.
        let kinds = context.kinds;
        if self.backfill {
            loops.start(Backfill::new(context.clone(), false));
            if kinds.organizations {
                loops.start(OrganizationsBackfill::new(context.clone(), false));
            }
        }
        if self.refresh && (kinds.organizations || kinds.roles) {
            loops.start(Refresh::new(context.clone()));
        }
        // Without an interval it still reconciles after catch-up has lost events.
        if let Some(interval) = self.reconcile_interval {
            context.metrics.reconcile_interval(i64::try_from(interval.as_secs()).unwrap_or(i64::MAX));
        }
        if self.catch_up || self.reconcile_interval.is_some() {
            loops.start(Reconcile::new(context.clone(), Mode::Repair, self.reconcile_interval));
            if kinds.organizations {
                loops.start(OrganizationsReconcile::new(context.clone(), Mode::Repair, self.reconcile_interval));
            }
        }
        let audited = (self.webhooks && self.catch_up).then(|| self.event_types.clone());
        loops.start(Housekeeping::new(context.clone(), self.retention, audited));
        loops.start(Dispatcher::runner(context.on_store(handlers.clone()), self.handlers.clone()));
    }
}
