//! How the table differs from what WorkOS lists, without changing anything. Ids and field names, never values.

use serde::Serialize;

use super::Applied;
use crate::domain::decide::{Effect, Stored, decide};
use crate::domain::event::Observation;
use crate::store::{Store, StoreError};

/// One user in which the table and WorkOS differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Drift {
    /// The user.
    pub id: String,
    /// How.
    #[serde(flatten)]
    pub kind: DriftKind,
}

/// How a user differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "drift")]
pub enum DriftKind {
    /// WorkOS lists it; here it is unknown.
    Missing,
    /// Here it is as it was earlier.
    Outdated {
        /// The fields in which it differs.
        fields: Vec<String>,
    },
    /// Alive here; WorkOS, asked by id, does not know it.
    Gone,
    /// A tombstone here; WorkOS, asked by id, says it lives. Nothing undoes a tombstone.
    Contradicted,
    /// What WorkOS lists cannot be applied.
    Unusable {
        /// Why.
        reason: String,
    },
}

impl std::fmt::Display for Drift {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let id = &self.id;
        match &self.kind {
            DriftKind::Missing => write!(f, "{id}  missing here"),
            DriftKind::Outdated { fields } => write!(f, "{id}  outdated: {}", fields.join(", ")),
            DriftKind::Gone => write!(f, "{id}  alive here, gone at WorkOS"),
            DriftKind::Contradicted => write!(f, "{id}  deleted here, alive at WorkOS; a tombstone is never undone"),
            DriftKind::Unusable { reason } => write!(f, "{id}  cannot be applied: {reason}"),
        }
    }
}

impl Drift {
    /// How a user that WorkOS lists differs from the table, from what applying it would do. A deleted user is not reported here:
    /// reconcile reads it by ID first.
    pub(super) fn of(listed: &Observation, effect: &Effect) -> Option<Self> {
        let kind = match effect {
            Effect::Created => DriftKind::Missing,
            Effect::Updated { fields } => DriftKind::Outdated { fields: fields.clone() },
            Effect::Quarantined(reason) => DriftKind::Unusable { reason: reason.to_string() },
            _ => return None,
        };
        Some(Self { id: listed.user_id().unwrap_or_default().to_owned(), kind })
    }
}

/// Returns what applying a page would do, without writing anything.
pub(super) async fn preview(store: &Store, observations: &[Observation]) -> Result<Vec<Applied>, StoreError> {
    let ids: Vec<String> = observations.iter().filter_map(Observation::user_id).map(str::to_owned).collect();
    let mut stored = store.users(&ids).await?;
    let applied = observations.iter().map(|observation| {
        let user = observation.user_id().map(|id| stored.entry(id.to_owned()).or_insert(Stored::Absent));
        let is_user_deleted = matches!(user, Some(Stored::Tombstone { .. }));
        Applied { effect: decide(user, observation), is_duplicate: false, is_user_deleted }
    });
    Ok(applied.collect())
}
