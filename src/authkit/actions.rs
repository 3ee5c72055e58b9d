//! The builder's methods that configure who may sign in or sign up.

use std::future::Future;
use std::time::Duration;

use super::builder::Builder;
use crate::action_endpoint::ActionEndpoint;
use crate::actions::{Handler, Opinion};
use crate::domain::action::Action;
use crate::domain::action_rules::Rules;
use crate::workos::signature::Secret;

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
    /// # use authkit_sync::Builder;
    /// use authkit_sync::Verdict;
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

    /// How long handler and endpoint together may take. Default [`DEADLINE`](crate::actions::DEADLINE); WorkOS waits a second or two.
    pub fn action_deadline(mut self, deadline: Duration) -> Self {
        self.actions.deadline = deadline;
        self
    }
}
