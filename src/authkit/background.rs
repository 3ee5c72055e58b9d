//! What runs behind the requests.

use std::time::Duration;

use super::dispatcher::Dispatcher;
use crate::store::Store;
use crate::supervise::Supervisor;
use crate::sync::backfill::Backfill;
use crate::sync::catch_up::CatchUp;
use crate::sync::handlers::RustHandler;
use crate::sync::housekeeping::Housekeeping;
use crate::sync::job::JobContext;
use crate::sync::reconcile::{Mode, Reconcile};

/// Which jobs this process takes part in.
#[derive(Clone, Debug)]
pub(super) struct Jobs {
    /// Read the Events API.
    pub(super) catch_up: bool,
    /// Rest at its end.
    pub(super) catch_up_interval: Duration,
    /// Fill the table once.
    pub(super) backfill: bool,
    /// From one complete reconcile to the next.
    pub(super) reconcile_interval: Option<Duration>,
    /// How long the inbox keeps events.
    pub(super) retention: Duration,
    /// The types catch-up reads.
    pub(super) event_types: Vec<String>,
    /// Webhooks are received, so that the two feeds can be held against each other.
    pub(super) webhooks: bool,
    /// What the application does when something changes.
    pub(super) handlers: Vec<RustHandler>,
}

impl Jobs {
    /// What a handler names whole, and what tells of sign-ins, is worth reading, whether or not webhooks bring it.
    pub(super) fn read_what_is_wanted(&mut self, sign_ins: bool) {
        let handled = self.handlers.iter().flat_map(|handler| handler.types.whole());
        for name in handled.chain(sign_ins.then_some("session.created")) {
            if !self.event_types.iter().any(|read| read == name) {
                self.event_types.push(name.to_owned());
            }
        }
    }

    /// Starts every loop that works with WorkOS's API, housekeeping, and on a pool of their own the handlers.
    pub(super) fn start(&self, loops: &mut Supervisor, context: &JobContext, handlers: &Store) {
        if self.catch_up {
            loops.start(CatchUp::new(context.clone(), self.event_types.clone(), self.catch_up_interval));
        }
        if self.backfill {
            loops.start(Backfill::new(context.clone(), false));
        }
        // Without a schedule it still makes up for events that catch-up lost.
        if self.catch_up || self.reconcile_interval.is_some() {
            loops.start(Reconcile::new(context.clone(), Mode::Repair, self.reconcile_interval));
        }
        let audited = (self.webhooks && self.catch_up).then(|| self.event_types.clone());
        loops.start(Housekeeping::new(context.clone(), self.retention, audited));
        loops.start(Dispatcher::new(context.on_store(handlers.clone()), self.handlers.clone()));
    }
}
