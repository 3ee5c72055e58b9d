//! Decides about an action. The application's handler decides first, then its HTTP endpoint, then the rules. A decider without an
//! opinion passes the action on. If no decider has an opinion, the attempt is allowed.
//!
//! A verdict is stored before it is answered. The first stored verdict of an action counts, so a repeated request to any replica
//! gets the same answer. Two requests are the same action if kind, ID and body are the same. Without the database there is no
//! verdict (promise 8: an outage of ours creates no account).

use std::error::Error;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, timeout_at};

use crate::action_endpoint::{Endpoint, EndpointFailure};
use crate::domain::action::{Action, Verdict};
use crate::domain::action_rules::Rules;
use crate::domain::clock::Clock;
use crate::domain::timestamp::Timestamp;
use crate::metrics::Metrics;
use crate::store::action_verdicts::{ActionDecision, ActionKey, StoredVerdict};
use crate::store::{Store, StoreError};

/// Default timeout of handler and endpoint together. WorkOS times out after one or two seconds; the time is not documented.
pub const DEADLINE: Duration = Duration::from_millis(1_500);

/// Additional timeout for storing the verdict.
const STORE_TIMEOUT: Duration = Duration::from_millis(500);

/// The error of an application's action handler. Its text is never logged, because it can contain personal data.
pub type ActionHandlerError = Box<dyn Error + Send + Sync>;

/// The result of an action handler: a verdict, or `None` for no opinion.
pub type Opinion = Result<Option<Verdict>, ActionHandlerError>;

/// An application's action handler.
#[derive(Clone)]
pub(crate) struct Handler(Arc<dyn Fn(Action) -> BoxFuture<'static, Opinion> + Send + Sync>);

impl Handler {
    pub(crate) fn new<F, Fut>(handler: F) -> Self
    where
        F: Fn(Action) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Opinion> + Send + 'static,
    {
        Self(Arc::new(move |action| handler(action).boxed()))
    }
}

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handler")
    }
}

/// Why there is no verdict. The answer is 503, and WorkOS applies the failure setting of its dashboard.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Undecided {
    /// The verdict could not be read or stored.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The verdict could not be read or stored within the deadline.
    #[error("the database did not answer in time; retry")]
    Slow,
    /// The handler returned an error, panicked, or did not return in time.
    #[error("the application's action handler {0}; retry")]
    Handler(&'static str),
}

/// The deciders and their settings.
#[derive(Debug)]
pub(crate) struct Actions {
    pub(crate) store: Store,
    pub(crate) handler: Option<Handler>,
    pub(crate) endpoint: Option<Endpoint>,
    pub(crate) rules: Rules,
    pub(crate) deadline: Duration,
    pub(crate) clock: Clock,
    pub(crate) metrics: Arc<Metrics>,
}

/// A decision, and whether an earlier request made it.
#[derive(Debug)]
pub(crate) struct Decided {
    pub(crate) decision: ActionDecision,
    pub(crate) repeated: bool,
}

impl Actions {
    /// Returns the stored verdict on an action, or decides and stores a new one.
    pub(crate) async fn decide(&self, action: &Action) -> Result<Decided, Undecided> {
        let (key, deadline) = (ActionKey::of(action), Instant::now() + self.deadline);
        if let Some(decision) = in_time(deadline, self.store.verdict(&key)).await? {
            return Ok(Decided { decision, repeated: true });
        }
        let decision = self.ask(action, deadline).await?;
        match in_time(deadline + STORE_TIMEOUT, self.store.store_verdict(&key, &decision)).await? {
            StoredVerdict::Existing(decision) => Ok(Decided { decision, repeated: true }),
            StoredVerdict::New => {
                self.metrics.action(action.kind().as_str(), decision.verdict.as_str(), &decision.decided_by);
                Ok(Decided { decision, repeated: false })
            }
        }
    }

    /// Calls the deciders in order.
    async fn ask(&self, action: &Action, deadline: Instant) -> Result<ActionDecision, Undecided> {
        if let Some(handler) = &self.handler
            && let Some(verdict) = handled(handler, action, deadline).await?
        {
            return Ok(ActionDecision { verdict, decided_by: "handler".to_owned() });
        }
        let (endpoint, now) = (self.endpoint.as_ref(), self.clock.now());
        let (decision, failure) = by_endpoint_or_rules(endpoint, &self.rules, action, now, deadline).await;
        if let Some(failure) = failure {
            self.metrics.endpoint_failure(failure.as_str());
            tracing::warn!(
                failure = failure.as_str(),
                verdict = decision.verdict.as_str(),
                "the action endpoint failed; the configured failure verdict applies"
            );
        }
        Ok(decision)
    }
}

/// Calls the deciders that need no code of an application: the endpoint, then the rules. Returns the failure of the endpoint, too.
pub(crate) async fn by_endpoint_or_rules(
    endpoint: Option<&Endpoint>,
    rules: &Rules,
    action: &Action,
    now: Timestamp,
    deadline: Instant,
) -> (ActionDecision, Option<EndpointFailure>) {
    let decided = |verdict, by: &str| ActionDecision { verdict, decided_by: by.to_owned() };
    if let Some(endpoint) = endpoint {
        match endpoint.ask(action, now, deadline).await {
            Ok(Some(verdict)) => return (decided(verdict, "endpoint"), None),
            Ok(None) => {}
            Err(failure) => return (decided(endpoint.on_failure(), "endpoint_failure"), Some(failure)),
        }
    }
    let decision = match rules.decide(action) {
        Some((number, verdict)) => decided(verdict.clone(), &format!("rule_{number}")),
        None => decided(Verdict::Allow, "default"),
    };
    (decision, None)
}

async fn in_time<T>(deadline: Instant, asked: impl Future<Output = Result<T, StoreError>>) -> Result<T, Undecided> {
    Ok(timeout_at(deadline, asked).await.map_err(|_| Undecided::Slow)??)
}

/// Calls the handler and catches its panic, which is a defect of the application.
async fn handled(handler: &Handler, action: &Action, deadline: Instant) -> Result<Option<Verdict>, Undecided> {
    let asked = AssertUnwindSafe(async { handler.0(action.clone()).await }).catch_unwind();
    let failure = match timeout_at(deadline, asked).await {
        Ok(Ok(Ok(opinion))) => return Ok(opinion.map(Verdict::fit)),
        Ok(Ok(Err(_))) => "failed",
        Ok(Err(_)) => "panicked",
        Err(_) => "timed out",
    };
    // The text of the error or panic is not logged: it can contain personal data.
    tracing::error!(failure, "the application's action handler gave no verdict");
    Err(Undecided::Handler(failure))
}
