//! Differences between the table and WorkOS's list, as IDs and field names, never values.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::Applied;
use crate::domain::decide::{Effect, Stored, decide};
use crate::domain::event::Observation;
use crate::domain::object::{Kind, ObjectKey};
use crate::store::{Store, StoreError};

/// A user that differs between the table and WorkOS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Drift {
    /// The user's ID.
    pub id: String,
    /// How it differs.
    #[serde(flatten)]
    pub kind: DriftKind,
}

/// How a user differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "drift")]
pub enum DriftKind {
    /// WorkOS lists the user, but the table does not contain it.
    Missing,
    /// The table contains an earlier state of the user.
    Outdated {
        /// The names of the fields that differ.
        fields: Vec<String>,
    },
    /// The user is live here, but WorkOS does not know its ID.
    Gone,
    /// The user is deleted here, but WorkOS returns it by ID. A deleted user is never revived.
    Contradicted,
    /// WorkOS lists the user, but it cannot be applied.
    Unusable {
        /// The reason.
        reason: String,
    },
}

impl std::fmt::Display for Drift {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let id = &self.id;
        match &self.kind {
            DriftKind::Missing => write!(f, "{id}  missing here"),
            DriftKind::Outdated { fields } => write!(f, "{id}  outdated: {}", fields.join(", ")),
            DriftKind::Gone => write!(f, "{id}  live here, but WorkOS does not know it"),
            DriftKind::Contradicted => {
                write!(f, "{id}  deleted here, but live at WorkOS; a deleted user is never revived")
            }
            DriftKind::Unusable { reason } => write!(f, "{id}  cannot be applied: {reason}"),
        }
    }
}

impl Drift {
    /// Returns how a listed user differs, from the effect that applying it would have. Deleted users are not reported here, because
    /// reconcile reads them by ID first.
    pub(super) fn of(listed: &Observation, effect: &Effect) -> Option<Self> {
        let kind = match effect {
            Effect::Created => DriftKind::Missing,
            Effect::Updated { fields } => DriftKind::Outdated { fields: fields.clone() },
            Effect::Quarantined(reason) => DriftKind::Unusable { reason: reason.to_string() },
            _ => return None,
        };
        let id = listed.object().map(|(_, id)| id).or(listed.user_id()).unwrap_or_default().to_owned();
        Some(Self { id, kind })
    }
}

/// Returns the effects that applying a page would have. Writes nothing.
pub(super) async fn preview(store: &Store, observations: &[Observation]) -> Result<Vec<Applied>, StoreError> {
    let mut stored = BTreeMap::new();
    for kind in Kind::ALL {
        let named: BTreeSet<String> = observations
            .iter()
            .flat_map(Observation::locked)
            .filter(|(named, _)| *named == kind)
            .map(|(_, id)| id.to_owned())
            .collect();
        let ids: Vec<String> = named.into_iter().collect();
        if !ids.is_empty() {
            let found = store.objects(kind, &ids).await?;
            stored.extend(found.into_iter().map(|(id, object)| (ObjectKey { kind, id }, object)));
        }
    }
    let applied = observations.iter().map(|observation| {
        let user = observation.user_id().and_then(|id| stored.get(&ObjectKey::new(Kind::User, id)));
        let is_user_deleted = matches!(user, Some(Stored::Tombstone { .. }));
        let object =
            observation.object().map(|(kind, id)| stored.entry(ObjectKey::new(kind, id)).or_insert(Stored::Absent));
        Applied { effect: decide(object, is_user_deleted, observation), is_duplicate: false, is_user_deleted }
    });
    Ok(applied.collect())
}
