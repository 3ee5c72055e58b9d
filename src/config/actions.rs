//! The settings of actions: who may sign in or sign up.

use super::{Reader, value};
use crate::action_endpoint::{ActionEndpoint, EndpointError};
use crate::authkit::ACTION_PATH;
use crate::domain::action_rules::Rules;
use crate::workos::signature::Secret;

/// The settings of actions.
#[derive(Debug)]
pub struct Actions {
    /// `WORKOS_ACTION_SECRET`
    pub secrets: Vec<Secret>,
    /// `AUTHKIT_SYNC_ACTION_URL` and the settings that begin with it.
    pub endpoint: Option<ActionEndpoint>,
    /// `AUTHKIT_SYNC_ACTION_RULES`
    pub rules: Rules,
}

impl Actions {
    /// Returns true if the endpoint is enabled and allows every action.
    #[must_use]
    pub fn nobody_decides(&self) -> bool {
        !self.secrets.is_empty() && self.endpoint.is_none() && self.rules.is_empty()
    }
}

/// Settings that have no effect without `WORKOS_ACTION_SECRET`.
const DECIDERS: [&str; 2] = ["AUTHKIT_SYNC_ACTION_URL", "AUTHKIT_SYNC_ACTION_RULES"];

impl Reader<'_> {
    pub(super) fn actions(&mut self, webhook_secrets: &[Secret]) -> Actions {
        let secrets = self.secrets("WORKOS_ACTION_SECRET", "Actions");
        if secrets.iter().any(|secret| webhook_secrets.contains(secret)) {
            self.problems.push(
                "WORKOS_ACTION_SECRET and WORKOS_WEBHOOK_SECRET contain the same secret. Copy the secret of each endpoint from the WorkOS dashboard"
                    .to_owned(),
            );
        }
        for name in DECIDERS {
            if secrets.is_empty() && self.text(name).is_some() {
                self.problems.push(format!(
                    "{name} has no effect, because WORKOS_ACTION_SECRET is not set. Set it, or remove {name}"
                ));
            }
        }
        if !secrets.is_empty() && self.text("AUTHKIT_SYNC_WEBHOOK_PATH") == Some(ACTION_PATH) {
            self.problems
                .push(format!("AUTHKIT_SYNC_WEBHOOK_PATH is {ACTION_PATH}, the path of actions. Choose another path"));
        }
        let rules = self.text("AUTHKIT_SYNC_ACTION_RULES").unwrap_or_default().parse();
        let rules = rules.unwrap_or_else(|error| {
            self.problems.push(format!("AUTHKIT_SYNC_ACTION_RULES is malformed: {error}"));
            Rules::default()
        });
        let endpoint = self.action_endpoint();
        let theirs = |secret: &Secret| secrets.contains(secret) || webhook_secrets.contains(secret);
        if endpoint.as_ref().is_some_and(|endpoint| theirs(&endpoint.secret)) {
            self.problems.push(
                "AUTHKIT_SYNC_ACTION_URL_SECRET is also a secret of WorkOS, so your endpoint could send requests as WorkOS. Create a separate secret".to_owned(),
            );
        }
        Actions { secrets, endpoint, rules }
    }

    fn action_endpoint(&mut self) -> Option<ActionEndpoint> {
        let timeout = self.parsed("AUTHKIT_SYNC_ACTION_URL_TIMEOUT", value::action_timeout);
        let private_addresses = self.parsed("AUTHKIT_SYNC_ACTION_URL_PRIVATE", value::boolean);
        let on_failure = self.parsed("AUTHKIT_SYNC_ACTION_URL_FAILURE", value::allow_deny);
        let url = self.text("AUTHKIT_SYNC_ACTION_URL")?;
        let secret = Secret::new(self.required("AUTHKIT_SYNC_ACTION_URL_SECRET"));
        self.required("AUTHKIT_SYNC_ACTION_URL_FAILURE");
        let endpoint = ActionEndpoint {
            url: url.to_owned(),
            secret,
            on_failure: on_failure?,
            timeout: timeout?,
            private_addresses: private_addresses?,
        };
        if let Err(error) = endpoint.check() {
            let allow = match error {
                EndpointError::Plain | EndpointError::Private => "; AUTHKIT_SYNC_ACTION_URL_PRIVATE=true allows it",
                _ => "",
            };
            self.problems.push(format!("AUTHKIT_SYNC_ACTION_URL cannot be used: {error}{allow}"));
        }
        Some(endpoint)
    }
}
