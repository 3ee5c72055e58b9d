//! The claims of a verified token.

use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde::ser::{Serialize, SerializeStruct, Serializer};
use serde_json::value::{RawValue, to_raw_value};
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
    /// The organization that was selected when the token was issued (`org_id`). `None` if there was none.
    pub organization_id: Option<String>,
    /// Whether an administrator is impersonating the user (claim `act` or `impersonator`).
    pub impersonated: bool,
    /// Every claim, as a JSON object. [`Identity::claims`] parses it.
    claims: Arc<RawValue>,
}

impl Identity {
    /// Creates the identity from the claims of a token that passed every check.
    ///
    /// # Errors
    /// The claims cannot be written as JSON.
    pub(super) fn of(claims: &Map<String, Value>) -> serde_json::Result<Self> {
        let own = |name: &str| text(claims, name).to_owned();
        Ok(Self {
            subject: own("sub"),
            issuer: own("iss"),
            session_id: own("sid"),
            organization_id: Some(own("org_id")).filter(|id| !id.is_empty()),
            impersonated: impersonated(claims),
            claims: to_raw_value(claims)?.into(),
        })
    }

    /// The memory of its texts, in bytes.
    pub(super) fn size(&self) -> usize {
        let organization = self.organization_id.as_ref().map_or(0, String::len);
        [&self.subject, &self.issuer, &self.session_id].map(String::len).iter().sum::<usize>()
            + organization
            + self.claims.get().len()
    }

    /// Deserializes the claims, including those of your JWT template, into your own type or a [`serde_json::Map`].
    ///
    /// # Errors
    /// The claims do not fit the type.
    pub fn claims<'a, T: Deserialize<'a>>(&'a self) -> serde_json::Result<T> {
        serde_json::from_str(self.claims.get())
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
        identity.serialize_field("claims", &*self.claims)?;
        identity.end()
    }
}
