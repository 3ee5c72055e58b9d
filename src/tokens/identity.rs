//! The claims of a verified token.

use std::fmt;

use serde::ser::{Serialize, SerializeStruct, Serializer};
use serde_json::{Map, Value};

use super::text::text;

/// The claims of a token that passed every check. `Debug` shows only the subject.
#[derive(Clone)]
pub struct Identity {
    /// The user ID (`sub`).
    pub subject: String,
    /// The issuer (`iss`), unchanged.
    pub issuer: String,
    /// The session ID (`sid`).
    pub session_id: String,
    /// An administrator is impersonating the user (`act` or `impersonator`).
    pub impersonated: bool,
    /// Every claim, including those of your JWT template.
    pub claims: Map<String, Value>,
}

impl Identity {
    /// Creates the identity from the claims of a token that passed every check.
    pub(super) fn of(claims: Map<String, Value>) -> Self {
        let own = |name: &str| text(&claims, name).to_owned();
        let (subject, issuer, session_id) = (own("sub"), own("iss"), own("sid"));
        let impersonated = impersonated(&claims);
        Self { subject, issuer, session_id, impersonated, claims }
    }

    /// Returns the organization that was selected when the token was issued (`org_id`). `None` if there was none.
    #[must_use]
    pub fn organization_id(&self) -> Option<&str> {
        self.claims.get("org_id").and_then(Value::as_str).filter(|id| !id.is_empty())
    }

    /// Returns `issuer|subject`, the identifier of a user in Convex.
    #[must_use]
    pub fn token_identifier(&self) -> String {
        format!("{}|{}", self.issuer, self.subject)
    }
}

/// Returns true if an administrator is impersonating the user: `act` (documented) or `impersonator` (read by some SDKs).
pub(super) fn impersonated(claims: &Map<String, Value>) -> bool {
    ["act", "impersonator"].iter().any(|name| claims.get(*name).is_some_and(Value::is_object))
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("subject", &self.subject).finish_non_exhaustive()
    }
}

impl Serialize for Identity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut identity = serializer.serialize_struct("Identity", 5)?;
        identity.serialize_field("subject", &self.subject)?;
        identity.serialize_field("issuer", &self.issuer)?;
        identity.serialize_field("token_identifier", &self.token_identifier())?;
        identity.serialize_field("impersonated", &self.impersonated)?;
        identity.serialize_field("claims", &self.claims)?;
        identity.end()
    }
}
