//! Why a token is refused.

use std::time::Duration;

/// Why a token is refused. The text is short printable ASCII without quotes, fit for a header.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It was good once.
    #[error("expired {seconds} s ago")]
    Expired {
        /// How long ago, beyond nothing: the leeway is not taken off.
        seconds: i64,
    },
    /// It is not ours, or not genuine.
    #[error("{description}")]
    Invalid {
        /// A short stable word for metrics and logs.
        reason: &'static str,
        /// What is wrong, and with what.
        description: String,
    },
    /// It may be good: no key to judge it by can be had.
    #[error("WorkOS's signing keys cannot be had now, so this token can be judged neither way")]
    KeysUnavailable {
        /// When asking again may help.
        retry_after: Duration,
    },
}

impl TokenError {
    pub(super) fn invalid(reason: &'static str, description: String) -> Self {
        Self::Invalid { reason, description }
    }

    /// A short stable word for metrics and logs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Expired { .. } => "token_expired",
            Self::Invalid { reason, .. } => reason,
            Self::KeysUnavailable { .. } => "keys_unavailable",
        }
    }
}
