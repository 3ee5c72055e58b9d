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
    /// Sets the secret of the actions endpoint, or several during a rotation. Enables the route.
    ///
    /// An answer is signed with the secret that signed the request. An action secret must not be a webhook secret.
    pub fn action_secrets(mut self, secrets: Vec<Secret>) -> Self {
        self.actions.secrets = secrets;
        self
    }

    /// Sets a handler that decides first.
    ///
    /// `Ok(None)` means no opinion: the HTTP endpoint decides, if there is one, and then the rules. An error, a panic or a timeout
    /// is answered 503, never allowed. The log does not contain its text. (The application's panic hook gets a panic's message.)
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

    /// Sets an HTTP endpoint of the application, which decides if the handler has no opinion.
    pub fn action_endpoint(mut self, endpoint: ActionEndpoint) -> Self {
        self.actions.endpoint = Some(endpoint);
        self
    }

    /// Sets the rules, which decide last. If no rule matches, the attempt is allowed.
    pub fn action_rules(mut self, rules: Rules) -> Self {
        self.actions.rules = rules;
        self
    }

    /// Sets the timeout of handler and endpoint together. Default 1500 ms, because WorkOS times out soon after that.
    pub fn action_deadline(mut self, deadline: Duration) -> Self {
        self.actions.deadline = deadline;
        self
    }
}
