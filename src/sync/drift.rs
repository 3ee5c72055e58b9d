//! Differences between the table and WorkOS's list, as IDs and field names, never values.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{Applied, apply};
use crate::domain::decide::{Effect, Stored, decide};
use crate::domain::event::{Observation, Origin};
use crate::domain::object::{Kind, ObjectKey};
use crate::domain::user::LAST_SIGN_IN_AT;
use crate::domain::version::Version;
use crate::store::{Store, StoreError};

/// An object that differs between the table and WorkOS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Drift {
    /// The object's ID.
    pub id: String,
    /// How it differs.
    #[serde(flatten)]
    pub kind: DriftKind,
}

/// How an object differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "drift")]
pub enum DriftKind {
    /// WorkOS lists the object, but the table does not contain it.
    Missing,
    /// The table contains an earlier state of the object.
    Outdated {
        /// The names of the fields that differ.
        fields: Vec<String>,
    },
    /// The object is live here, but WorkOS does not know its ID.
    Gone,
    /// The object is deleted here, but WorkOS returns it by ID. A deleted object is never revived.
    Contradicted,
    /// WorkOS lists the object, but it cannot be applied.
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
                write!(f, "{id}  deleted here, but live at WorkOS; a deleted object is never revived")
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

/// Maximum time from the `updated_at` of a state to the last event that describes it, in seconds.
const EVENT_DELAY: i64 = 86_400;

/// Returns the effects that applying a page would have. Writes nothing. A change of `last_sign_in_at` alone is not a difference,
/// because WorkOS sends no event for it.
pub(super) async fn preview(store: &Store, observations: &[Observation]) -> Result<Vec<Applied>, StoreError> {
    let mut previewed: Vec<Applied> =
        preview_with_versions(store, observations).await?.into_iter().map(|(applied, _)| applied).collect();
    for applied in &mut previewed {
        if matches!(&applied.effect, Effect::Updated { fields } if is_sign_in(fields)) {
            applied.effect = Effect::Confirmed;
        }
    }
    Ok(previewed)
}

/// Returns whether a sign-in alone changes these fields.
fn is_sign_in(fields: &[String]) -> bool {
    let is_moved = |field: &String| field == LAST_SIGN_IN_AT || field == "updated_at";
    fields.iter().any(|field| field == LAST_SIGN_IN_AT) && fields.iter().all(is_moved)
}

/// Applies those objects of a page that differ from their rows, and returns the result of each one.
///
/// A row that equals WorkOS's object is written only if an event with the same `updated_at` could still replace it, because the row
/// was observed soon after that time. So a reconcile does not write the rows of all objects that change rarely.
pub(super) async fn apply_differing(store: &Store, observations: &[Observation]) -> Result<Vec<Applied>, StoreError> {
    let previewed = preview_with_versions(store, observations).await?;
    let is_written = |(applied, version): &(Applied, Option<Version>)| match &applied.effect {
        Effect::Confirmed => {
            version.as_ref().is_none_or(|version| version.observed_at < version.updated_at.plus_seconds(EVENT_DELAY))
        }
        Effect::Stale | Effect::AlreadyDeleted { is_written: false } => false,
        _ => true,
    };
    let rest: Vec<Observation> = observations
        .iter()
        .zip(&previewed)
        .filter(|(_, previewed)| is_written(previewed))
        .map(|(listed, _)| listed.clone())
        .collect();
    let mut applied =
        if rest.is_empty() { Vec::new() } else { apply(store, Origin::Reconcile, &rest).await? }.into_iter();
    let outcomes = previewed
        .into_iter()
        .filter_map(|previewed| if is_written(&previewed) { applied.next() } else { Some(previewed.0) });
    Ok(outcomes.collect())
}

/// Returns the effects that applying a page would have, each with the version of the row before.
async fn preview_with_versions(
    store: &Store,
    observations: &[Observation],
) -> Result<Vec<(Applied, Option<Version>)>, StoreError> {
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
        let before = match &object {
            Some(Stored::Live { version, .. }) => Some(version.clone()),
            _ => None,
        };
        (Applied { effect: decide(object, is_user_deleted, observation), is_duplicate: false, is_user_deleted }, before)
    });
    Ok(applied.collect())
}
