//! Settings of the actions endpoint, as an application passes them to the builder.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::error::BuildError;
use crate::action_endpoint::{ActionEndpoint, Endpoint, EndpointFailure};
use crate::actions::{Actions, DEADLINE, Handler};
use crate::domain::action_rules::Rules;
use crate::domain::clock::Clock;
use crate::http::{ACTION_BODY_LIMIT, ACTION_PATH, ActionState, BodyBudget};
use crate::metrics::Metrics;
use crate::store::Store;
use crate::workos::signature::Secret;

/// The action settings of the builder.
#[derive(Debug)]
pub(super) struct ActionSettings {
    pub(super) secrets: Vec<Secret>,
    pub(super) handler: Option<Handler>,
    pub(super) endpoint: Option<ActionEndpoint>,
    pub(super) rules: Rules,
    pub(super) deadline: Duration,
}

impl Default for ActionSettings {
    fn default() -> Self {
        let (secrets, rules) = (Vec::new(), Rules::default());
        Self { secrets, handler: None, endpoint: None, rules, deadline: DEADLINE }
    }
}

impl ActionSettings {
    /// Checks that the settings fit together, and that no secret has two purposes.
    pub(super) fn check(&self, webhook_secrets: &[Secret], webhook_path: &str) -> Result<(), BuildError> {
        let refuse = |why: &str| Err(BuildError(why.to_owned()));
        let deciders = self.handler.is_some() || self.endpoint.is_some() || !self.rules.is_empty();
        if self.secrets.is_empty() {
            let unheard = "an action handler, endpoint or rule is set without an action secret, so it would never be \
                           used; set the secret too";
            return if deciders { refuse(unheard) } else { Ok(()) };
        }
        if self.secrets.iter().any(|secret| webhook_secrets.contains(secret)) {
            return refuse(
                "an action secret is also a webhook secret; use the secret of each endpoint from the WorkOS dashboard",
            );
        }
        if webhook_path == ACTION_PATH {
            return refuse(
                "the webhook path is /workos/action, which is the path of the actions endpoint; use another path",
            );
        }
        let Some(endpoint) = &self.endpoint else { return Ok(()) };
        endpoint.check().map_err(|error| BuildError(error.to_string()))?;
        if self.secrets.iter().chain(webhook_secrets).any(|secret| *secret == endpoint.secret) {
            return refuse(
                "the action endpoint's secret is also a WorkOS secret, so the endpoint could sign as WorkOS; use another secret",
            );
        }
        Ok(())
    }

    /// Builds the state of the action route, if there is a secret.
    pub(super) fn build(
        self,
        store: &Store,
        clock: &Clock,
        metrics: &Arc<Metrics>,
        connections: usize,
    ) -> Result<Option<Arc<ActionState>>, BuildError> {
        if self.secrets.is_empty() {
            return Ok(None);
        }
        if self.endpoint.is_some() {
            metrics.asks_endpoint(EndpointFailure::ALL.map(EndpointFailure::as_str));
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
        Ok(Some(Arc::new(ActionState { secrets: ArcSwap::from_pointee(self.secrets), actions, bodies })))
    }
}
