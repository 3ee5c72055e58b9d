//! Who decides about an action, in this order: the application's handler, its HTTP endpoint, the rules. One that has no
//! opinion leaves it to the next; where nobody has, the attempt is allowed.
//!
//! A verdict is stored before it is answered, and the first one stored for an action counts: a repeated request, to any
//! replica, gets the same answer. Two requests are the same action when kind, ID and body are the same. So without the database there is no verdict (promise 8: our outage creates no account).

use std::error::Error;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, timeout_at};

use crate::action_endpoint::Endpoint;
use crate::domain::action::{Action, Verdict};
use crate::domain::action_rules::Rules;
use crate::domain::clock::Clock;
use crate::metrics::Metrics;
use crate::store::action_verdicts::{ActionDecision, ActionKey, StoredVerdict};
use crate::store::{Store, StoreError};

/// How long handler and endpoint together may take by default. WorkOS waits a second or two, and does not say how long.
pub const DEADLINE: Duration = Duration::from_millis(1_500);

/// How long storing the verdict may take on top.
const STORING: Duration = Duration::from_millis(500);

/// Whatever an application's handler fails with. Its text is never logged: it may quote the person.
pub type HandlerError = Box<dyn Error + Send + Sync>;

/// What a handler comes to: a verdict, or no opinion.
pub type Opinion = Result<Option<Verdict>, HandlerError>;

/// An application's own decision.
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

/// Why there is no verdict. All of it is ours: WorkOS hears 503, and its own dashboard setting decides.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Undecided {
    /// The verdict could not be looked up or stored.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The same, in time.
    #[error("the database did not answer in time; try again")]
    Slow,
    /// The handler returned an error, panicked, or did not return in time.
    #[error("the application's own decision {0}; try again")]
    Handler(&'static str),
}

/// The deciders.
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

/// A decision, and whether it was made now.
#[derive(Debug)]
pub(crate) struct Decided {
    pub(crate) decision: ActionDecision,
    pub(crate) repeated: bool,
}

impl Actions {
    /// The verdict on an action: the stored one, or a new one that is stored when this returns.
    pub(crate) async fn decide(&self, action: &Action) -> Result<Decided, Undecided> {
        let (key, deadline) = (ActionKey::of(action), Instant::now() + self.deadline);
        if let Some(decision) = in_time(deadline, self.store.verdict(&key)).await? {
            return Ok(Decided { decision, repeated: true });
        }
        let decision = self.ask(action, deadline).await?;
        match in_time(deadline + STORING, self.store.store_verdict(&key, &decision)).await? {
            StoredVerdict::Existing(decision) => Ok(Decided { decision, repeated: true }),
            StoredVerdict::New => {
                self.metrics.action(action.kind().as_str(), decision.verdict.as_str(), &decision.decided_by);
                Ok(Decided { decision, repeated: false })
            }
        }
    }

    /// Asks one decider after the other.
    async fn ask(&self, action: &Action, deadline: Instant) -> Result<ActionDecision, Undecided> {
        let decided = |verdict, by: &str| Ok(ActionDecision { verdict, decided_by: by.to_owned() });
        if let Some(handler) = &self.handler
            && let Some(verdict) = handled(handler, action, deadline).await?
        {
            return decided(verdict, "handler");
        }
        if let Some(endpoint) = &self.endpoint {
            match endpoint.ask(action, self.clock.now(), deadline).await {
                Ok(Some(verdict)) => return decided(verdict, "endpoint"),
                Ok(None) => {}
                Err(failure) => {
                    self.metrics.endpoint_failure(failure.as_str());
                    tracing::warn!(
                        failure = failure.as_str(),
                        verdict = endpoint.on_failure().as_str(),
                        "the action endpoint failed; the configured verdict stands in for its own"
                    );
                    return decided(endpoint.on_failure(), "endpoint_failure");
                }
            }
        }
        match self.rules.decide(action) {
            Some((number, verdict)) => decided(verdict.clone(), &format!("rule_{number}")),
            None => decided(Verdict::Allow, "default"),
        }
    }
}

async fn in_time<T>(deadline: Instant, asked: impl Future<Output = Result<T, StoreError>>) -> Result<T, Undecided> {
    Ok(timeout_at(deadline, asked).await.map_err(|_| Undecided::Slow)??)
}

/// Asks the handler. Its panic is caught: it is the application's, and must not look like ours.
async fn handled(handler: &Handler, action: &Action, deadline: Instant) -> Result<Option<Verdict>, Undecided> {
    let asked = AssertUnwindSafe(async { handler.0(action.clone()).await }).catch_unwind();
    let failure = match timeout_at(deadline, asked).await {
        Ok(Ok(Ok(opinion))) => return Ok(opinion.map(Verdict::fit)),
        Ok(Ok(Err(_))) => "failed",
        Ok(Err(_)) => "panicked",
        Err(_) => "took too long",
    };
    // Neither the error nor the panic is quoted: only the application knows whether it names somebody.
    tracing::error!(failure, "the application's action handler gave no verdict");
    Err(Undecided::Handler(failure))
}
