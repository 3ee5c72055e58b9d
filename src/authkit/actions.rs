//! Who decides about actions, as an application puts it together.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use super::builder::{BuildError, Builder};
use crate::actions::endpoint::{ActionEndpoint, Endpoint};
use crate::actions::{Actions, DEADLINE, Handler, Opinion};
use crate::domain::action::Action;
use crate::domain::action_rules::Rules;
use crate::domain::clock::Clock;
use crate::http::{ACTION_BODY_LIMIT, ACTION_PATH, ActionEdge, BodyBudget};
use crate::metrics::Metrics;
use crate::store::Store;
use crate::workos::signature::Secret;

/// What [`Builder`] knows about actions.
#[derive(Debug)]
pub(super) struct ActionSettings {
    secrets: Vec<Secret>,
    handler: Option<Handler>,
    endpoint: Option<ActionEndpoint>,
    rules: Rules,
    deadline: Duration,
}

impl Default for ActionSettings {
    fn default() -> Self {
        let (secrets, rules) = (Vec::new(), Rules::default());
        Self { secrets, handler: None, endpoint: None, rules, deadline: DEADLINE }
    }
}

impl ActionSettings {
    /// What would leave people undecided about, or decided about by whoever may only send events.
    pub(super) fn check(&self, webhook_secrets: &[Secret], webhook_path: &str) -> Result<(), BuildError> {
        let refuse = |why: &str| Err(BuildError(why.to_owned()));
        let deciders = self.handler.is_some() || self.endpoint.is_some() || !self.rules.is_empty();
        if self.secrets.is_empty() {
            let unheard = "there are deciders about actions but no action secret: nobody would ever ask them";
            return if deciders { refuse(unheard) } else { Ok(()) };
        }
        if self.secrets.iter().any(|secret| webhook_secrets.contains(secret)) {
            return refuse(
                "an action secret is a webhook secret too: each endpoint has its own in the WorkOS dashboard",
            );
        }
        if webhook_path == ACTION_PATH {
            return refuse("the webhook path is /workos/action, where WorkOS asks about actions");
        }
        let Some(endpoint) = &self.endpoint else { return Ok(()) };
        endpoint.check().map_err(|error| BuildError(error.to_string()))?;
        if self.secrets.iter().chain(webhook_secrets).any(|secret| *secret == endpoint.secret) {
            return refuse("the action endpoint's secret is one of WorkOS's: whoever holds it could speak for WorkOS");
        }
        Ok(())
    }

    /// The edge, where there is a secret.
    pub(super) fn build(
        self,
        store: &Store,
        clock: &Clock,
        metrics: &Arc<Metrics>,
        connections: usize,
    ) -> Result<Option<Arc<ActionEdge>>, BuildError> {
        if self.secrets.is_empty() {
            return Ok(None);
        }
        let endpoint = self.endpoint.map(Endpoint::new).transpose();
        let actions = Actions {
            store: store.clone(),
            handler: self.handler,
            endpoint: endpoint.map_err(|error| BuildError(error.to_string()))?,
            rules: self.rules,
            deadline: self.deadline,
            clock: clock.clone(),
            metrics: metrics.clone(),
        };
        let bodies = BodyBudget::new(ACTION_BODY_LIMIT, connections.saturating_mul(ACTION_BODY_LIMIT));
        Ok(Some(Arc::new(ActionEdge { secrets: self.secrets, actions, bodies })))
    }
}

/// # Deciding who may sign in or up
impl Builder {
    /// The actions endpoint's secret, or several while rotating; an answer is signed with the one that signed the question.
    /// Without one there is no such endpoint. It must not be a webhook secret.
    pub fn action_secrets(mut self, secrets: Vec<Secret>) -> Self {
        self.actions.secrets = secrets;
        self
    }

    /// Asked first. `Ok(None)` is no opinion: then the HTTP endpoint is asked, if there is one, and then the rules. An error,
    /// a panic or a missed deadline is answered 503, never allowed; the log does not quote it (what a panic says goes to the
    /// application's own panic hook).
    ///
    /// ```
    /// # use authkit_sync::authkit::Builder;
    /// use authkit_sync::domain::action::Verdict;
    ///
    /// # fn example(builder: Builder) -> Builder {
    /// builder.on_action(|action| async move {
    ///     let gmail = action.is_registration() && action.email_domain() == "gmail.com";
    ///     Ok(gmail.then(|| Verdict::deny("Please sign up with your work address.")))
    /// })
    /// # }
    /// ```
    pub fn on_action<F, Fut>(mut self, handler: F) -> Self
    where
        F: Fn(Action) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Opinion> + Send + 'static,
    {
        self.actions.handler = Some(Handler::new(handler));
        self
    }

    /// Asked second, over HTTP.
    pub fn action_endpoint(mut self, endpoint: ActionEndpoint) -> Self {
        self.actions.endpoint = Some(endpoint);
        self
    }

    /// Asked last; where none matches, the attempt is allowed.
    pub fn action_rules(mut self, rules: Rules) -> Self {
        self.actions.rules = rules;
        self
    }

    /// How long handler and endpoint together may take. Default [`DEADLINE`]; WorkOS waits a second or two.
    pub fn action_deadline(mut self, deadline: Duration) -> Self {
        self.actions.deadline = deadline;
        self
    }
}
