//! The metrics of secrets: which ones are in use, and whether a new one was accepted.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct VerifiedLabels {
    pub(super) endpoint: &'static str,
    pub(super) secret: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct KeyLabels {
    pub(super) key: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct SettingLabels {
    pub(super) setting: &'static str,
}

/// The metrics of secrets.
pub(super) struct Secrets {
    pub(super) verified: Family<VerifiedLabels, Counter>,
    pub(super) keys: Family<KeyLabels, Counter>,
    pub(super) replaced: Family<SettingLabels, Counter>,
    pub(super) rejected: Family<SettingLabels, Gauge>,
}

impl Secrets {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let (verified, keys, replaced, rejected) =
            (Family::default(), Family::default(), Family::default(), Family::default());
        registry.register(
            "verified_signatures",
            "Verified signatures of WorkOS by endpoint and position of the secret in its setting, from 1",
            verified.clone(),
        );
        registry.register("service_key_requests", "Requests with a service key, by its label", keys.clone());
        registry.register("secret_replacements", "Secrets replaced without a restart, by setting", replaced.clone());
        registry.register(
            "secret_rejected",
            "Whether the new secret of the setting cannot be used, so that the previous one stays in use (1 or 0)",
            rejected.clone(),
        );
        Self { verified, keys, replaced, rejected }
    }
}

impl super::Metrics {
    /// Adds the counter of each secret of an endpoint, because a counter that begins with its first event shows no increase.
    pub fn accepts_secrets(&self, endpoint: &'static str, secrets: usize) {
        for secret in 1..=secrets {
            drop(self.secrets.verified.get_or_create(&VerifiedLabels { endpoint, secret }));
        }
    }

    /// Counts a verified signature. `position` is that of the secret in its setting, from 0.
    pub fn verified_signature(&self, endpoint: &'static str, position: usize) {
        self.secrets.verified.get_or_create(&VerifiedLabels { endpoint, secret: position + 1 }).inc();
    }

    /// Counts a request with a service key. Labels of keys are configuration, so their number is limited.
    pub fn service_key(&self, label: &str) {
        self.secrets.keys.get_or_create(&KeyLabels { key: label.to_owned() }).inc();
    }

    /// Counts a replaced secret.
    pub fn replaced_secret(&self, setting: &'static str) {
        self.secrets.replaced.get_or_create(&SettingLabels { setting }).inc();
    }

    /// Records whether the new secret of a setting cannot be used.
    pub fn rejected_secret(&self, setting: &'static str, is_rejected: bool) {
        self.secrets.rejected.get_or_create(&SettingLabels { setting }).set(i64::from(is_rejected));
    }
}
