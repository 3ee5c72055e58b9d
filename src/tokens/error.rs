//! Why a token is refused.

use std::time::Duration;

/// Why a token is refused. The text is short printable ASCII without quotes, fit for a header.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The token has expired.
    #[error("the token expired {seconds} s ago")]
    Expired {
        /// Seconds since `exp`, without the tolerance.
        seconds: i64,
    },
    /// The token is not genuine, or not for this environment.
    #[error("{description}")]
    Invalid {
        /// A short stable word for metrics and logs.
        reason: &'static str,
        /// What is wrong and what to do.
        description: String,
    },
    /// The token cannot be checked, because the signing keys are unreachable.
    #[error("WorkOS's signing keys are unreachable, so the token cannot be checked; retry")]
    KeysUnavailable {
        /// Pause before a retry.
        retry_after: Duration,
    },
}

impl TokenError {
    pub(super) fn invalid(reason: &'static str, description: String) -> Self {
        Self::Invalid { reason, description }
    }

    /// Returns a short stable word for metrics and logs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Expired { .. } => "token_expired",
            Self::Invalid { reason, .. } => reason,
            Self::KeysUnavailable { .. } => "keys_unavailable",
        }
    }
}
