//! The state that the HTTP handlers share.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::http::HeaderValue;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::body::BodyBudget;
use super::drain::Drain;
use super::rejected_secrets::RejectedSecrets;
use super::service_keys::ServiceKeys;
use super::status::StatusPage;
use crate::actions::Actions;
use crate::domain::clock::Clock;
use crate::domain::kinds::Kinds;
use crate::lookup::Lookups;
use crate::metrics::Metrics;
use crate::store::Store;
use crate::sync::feed::Feed;
use crate::sync::group_commit::GroupCommit;
use crate::sync::job::JobStatuses;
use crate::sync::mirror::Mirror;
use crate::sync::progress::SyncProgress;
use crate::tokens::KeyCache;
use crate::workos::signature::Secret;

/// The state of every route.
#[derive(Debug)]
pub(crate) struct HttpState {
    /// Answers reads.
    pub(crate) store: Store,
    /// Reads for the routes in WorkOS's format, from the standby or the primary.
    pub(crate) mirror: Arc<Mirror>,
    /// Applies webhooks.
    pub(crate) webhooks: GroupCommit,
    /// Looks users up by token or ID.
    pub(crate) lookups: Lookups,
    /// Secrets of the webhook endpoint. If there is none, there is no webhook route.
    pub(crate) webhook_secrets: ArcSwap<Vec<Secret>>,
    /// The state of the action route. If it is `None`, there is no action route.
    pub(crate) actions: Option<Arc<ActionState>>,
    /// Keys of the backends that read users. If there is none, these routes do not exist.
    pub(crate) service_keys: ArcSwap<ServiceKeys>,
    /// New secrets that cannot be used. The operator's readiness page shows them.
    pub(crate) rejected_secrets: RejectedSecrets,
    /// What is synced.
    pub(crate) kinds: Kinds,
    /// Origins whose pages may call the lookups from a browser.
    pub(crate) cors_origins: Vec<HeaderValue>,
    /// Path of the webhook route.
    pub(crate) webhook_path: String,
    /// Tolerated difference between the time of a webhook's signature and our clock.
    pub(crate) signature_tolerance: Duration,
    /// Timeout for receiving a body.
    pub(crate) body_timeout: Duration,
    /// Memory for the bodies of webhooks.
    pub(crate) webhook_bodies: Arc<BodyBudget>,
    /// The clock.
    pub(crate) clock: Clock,
    /// Counts events, requests and rejections.
    pub(crate) metrics: Arc<Metrics>,
    /// The time up to which the users table is complete, and the progress of the sync.
    pub(crate) watch: SyncProgress,
    /// Status of the background jobs of this process.
    pub(crate) jobs: Arc<JobStatuses>,
    /// Whether this process polls the Events API.
    pub(crate) catches_up: bool,
    /// The change feed.
    pub(crate) feed: Feed,
    /// Cancelled at shutdown, so that requests stop waiting for changes.
    pub(crate) closing: CancellationToken,
    /// Whether this process drains, so that it is not ready.
    pub(crate) drain: Drain,
    /// The text of `/openapi.json`, written when the routes are built.
    pub(crate) document: OnceLock<Bytes>,
    /// WorkOS's signing keys. The operator's readiness page shows their status.
    pub(crate) keys: KeyCache,
    /// What the operator's status page needs in addition to the other fields.
    pub(crate) status: StatusPage,
}

/// The state of the action route.
#[derive(Debug)]
pub(crate) struct ActionState {
    /// Secrets of the actions endpoint. None of them is a webhook secret.
    pub(crate) secrets: ArcSwap<Vec<Secret>>,
    /// Decides who may sign in or sign up.
    pub(crate) actions: Actions,
    /// Memory for the bodies of actions.
    pub(crate) bodies: Arc<BodyBudget>,
}
