//! Replaces secrets while the service runs. The replacement fails no request: each request uses either the previous or the new
//! secrets.

use std::sync::Arc;

use super::AuthKit;
use super::error::SecretError;
use crate::http::{KEY_LENGTH, ServiceKeys};
use crate::store::Store;
use crate::store::hosts::Hosts;
use crate::store::login::{self, LoginError};
use crate::sync::job::JobError;
use crate::sync::key_check;
use crate::workos::api::ApiKey;
use crate::workos::signature::Secret;

/// # Replacing secrets while the service runs
impl AuthKit {
    /// Replaces the secrets of the webhook endpoint. During a rotation, give the new one and the previous one.
    ///
    /// # Errors
    /// [`SecretError::Invalid`]: the list or a secret is empty, there was no secret when this was built, or a secret also has
    /// another purpose.
    pub fn set_webhook_secrets(&self, secrets: Vec<Secret>) -> Result<(), SecretError> {
        if self.state.webhook_secrets.load().is_empty() {
            return Err(not_enabled("the webhook route"));
        }
        let actions = self.state.actions.as_ref();
        let of_actions = actions.map(|actions| actions.secrets.load_full()).unwrap_or_default();
        check_secrets(&secrets, &of_actions, self.endpoint_secret().as_deref())?;
        self.state.metrics.accepts_secrets("webhook", secrets.len());
        self.state.webhook_secrets.store(Arc::new(secrets));
        Ok(())
    }

    /// Replaces the secrets of the actions endpoint. During a rotation, give the new one and the previous one.
    ///
    /// # Errors
    /// As [`AuthKit::set_webhook_secrets`].
    pub fn set_action_secrets(&self, secrets: Vec<Secret>) -> Result<(), SecretError> {
        let actions = self.state.actions.as_ref().ok_or_else(|| not_enabled("the action route"))?;
        check_secrets(&secrets, &self.state.webhook_secrets.load(), self.endpoint_secret().as_deref())?;
        actions.secrets.store(Arc::new(secrets));
        Ok(())
    }

    /// Replaces the secret that signs requests to the action endpoint of the application.
    ///
    /// # Errors
    /// [`SecretError::Invalid`]: there is no such endpoint, the secret is too short, or it is a secret of WorkOS.
    pub fn set_action_endpoint_secret(&self, secret: Secret) -> Result<(), SecretError> {
        let actions = self.state.actions.as_ref();
        let asked = actions.and_then(|actions| Some((actions, actions.actions.endpoint.as_ref()?)));
        let (actions, endpoint) = asked.ok_or_else(|| not_enabled("an action endpoint"))?;
        if self.state.webhook_secrets.load().contains(&secret) || actions.secrets.load().contains(&secret) {
            return Err(SecretError::Invalid("the secret is also a secret of WorkOS. Use a separate one".to_owned()));
        }
        endpoint.set_secret(secret).map_err(|error| SecretError::Invalid(error.to_string()))
    }

    /// Replaces all service keys, each given as its label and the key. Give the previous ones too, as long as backends use them.
    ///
    /// # Errors
    /// [`SecretError::Invalid`]: the list is empty, a key is too short, or there was no key when this was built.
    pub fn set_service_keys<'a>(&self, keys: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<(), SecretError> {
        if self.state.service_keys.load().is_empty() {
            return Err(not_enabled("the routes of service keys"));
        }
        let mut accepted = ServiceKeys::default();
        for (label, key) in keys {
            if key.len() < KEY_LENGTH {
                let why = format!("a service key is shorter than {KEY_LENGTH} bytes. Use a longer one");
                return Err(SecretError::Invalid(why));
            }
            accepted.add(label, key);
        }
        if accepted.is_empty() {
            return Err(SecretError::Invalid("there is no service key; keep at least one".to_owned()));
        }
        self.state.service_keys.store(Arc::new(accepted));
        Ok(())
    }

    /// Replaces the API key, after WorkOS has accepted it and a sample of our live users shows that it belongs to this environment.
    ///
    /// # Errors
    /// [`SecretError::Invalid`]: there was no key when this was built, or the key belongs to another environment.
    /// [`SecretError::NotAccepted`]: WorkOS refused the key or was not reached.
    pub async fn set_api_key(&self, key: ApiKey) -> Result<(), SecretError> {
        if !self.context.api.has_key() {
            return Err(not_enabled("polling"));
        }
        let mut context = self.context.clone();
        context.api = context.api.with_key(key.clone());
        key_check::check_new_key(&context).await.map_err(|error| match error {
            JobError::WrongKey { .. } => SecretError::Invalid(error.to_string()),
            error => SecretError::NotAccepted(error.to_string()),
        })?;
        self.context.api.set_key(key);
        Ok(())
    }

    /// Replaces the role and the password of all database connections, after a test. Hosts, ports and name of the database must stay
    /// the same.
    ///
    /// An open connection is closed when it is next idle. If the server refuses the previous login before it accepts the new
    /// one in this test, connections use the new one as soon as the server accepts it.
    ///
    /// # Errors
    /// [`SecretError::Invalid`]: it is another database, or the role lacks privileges. [`SecretError::NotAccepted`]: the server
    /// refused the login or was not reached.
    pub async fn set_database_login(&self, login: impl Into<Hosts>) -> Result<(), SecretError> {
        replace_login(&self.stores(), &login.into()).await
    }

    /// Replaces the role and the password of the connections to the standby, as [`AuthKit::set_database_login`] does. The role needs
    /// the same privileges as on the primary, although reads need fewer.
    ///
    /// # Errors
    /// As [`AuthKit::set_database_login`], or [`SecretError::Invalid`] if there was no standby when this was built.
    pub async fn set_standby_login(&self, login: impl Into<Hosts>) -> Result<(), SecretError> {
        let standby = self.state.mirror.standby.as_ref().ok_or_else(|| not_enabled("the standby"))?;
        replace_login(&[standby.store()], &login.into()).await
    }

    /// Discards a login that [`AuthKit::set_database_login`] did not accept.
    pub(crate) fn withdraw_database_login(&self) {
        login::withdraw(&self.stores());
    }

    /// Discards a login that [`AuthKit::set_standby_login`] did not accept.
    pub(crate) fn withdraw_standby_login(&self) {
        if let Some(standby) = &self.state.mirror.standby {
            login::withdraw(&[standby.store()]);
        }
    }

    /// Records that a setting has a new secret, or why its new secret cannot be used.
    pub(crate) fn note_secret(&self, setting: &'static str, problem: Option<String>) {
        self.state.metrics.rejected_secret(setting, problem.is_some());
        self.state.rejected_secrets.set(setting, problem);
    }

    /// Counts a replaced secret.
    pub(crate) fn count_replaced_secret(&self, setting: &'static str) {
        self.state.metrics.replaced_secret(setting);
    }

    fn stores(&self) -> [&Store; 3] {
        [&self.state.store, &self.context.store, &self.handlers]
    }

    fn endpoint_secret(&self) -> Option<Arc<Secret>> {
        Some(self.state.actions.as_ref()?.actions.endpoint.as_ref()?.secret())
    }
}

async fn replace_login(stores: &[&Store], login: &Hosts) -> Result<(), SecretError> {
    // The stores of one server have the same timeout.
    let timeout = stores.first().map(|store| store.timeout()).unwrap_or_default();
    login::replace(stores, login, timeout).await.map_err(|error| match error {
        LoginError::OtherDatabase { .. } | LoginError::Privileges { .. } => SecretError::Invalid(error.to_string()),
        LoginError::Refused { .. } => SecretError::NotAccepted(error.to_string()),
    })
}

fn not_enabled(what: &str) -> SecretError {
    SecretError::Invalid(format!("{what} was not enabled at the start; restart to enable it"))
}

/// Checks signing secrets of WorkOS: there is one, none is empty, and none has another purpose.
fn check_secrets(secrets: &[Secret], others: &[Secret], of_endpoint: Option<&Secret>) -> Result<(), SecretError> {
    let why = if secrets.is_empty() || secrets.iter().any(|secret| secret.length() == 0) {
        "a secret is empty; keep at least one secret"
    } else if secrets.iter().any(|secret| others.contains(secret)) {
        "an action secret is also a webhook secret. Use the secret of each endpoint from the WorkOS dashboard"
    } else if secrets.iter().any(|secret| of_endpoint == Some(secret)) {
        "the action endpoint's secret is also a WorkOS secret, so the endpoint could sign as WorkOS. Use another secret"
    } else {
        return Ok(());
    };
    Err(SecretError::Invalid(why.to_owned()))
}
