//! How the table differs from what WorkOS lists, without changing anything. Ids and field names, never values.

use serde::Serialize;

use super::job::JobError;
use crate::domain::decide::{Decision, Seen, Stored, decide};
use crate::domain::event::{Observation, Snapshot};
use crate::store::Store;
use crate::store::scans::ScanCounts;

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

/// Compares a page, and counts what applying it would do. Deleted users are counted, and told as drift by nobody but
/// reconcile, which asks WorkOS about them first.
pub(super) async fn compare(
    store: &Store,
    observations: &[Observation],
    counts: &mut ScanCounts,
) -> Result<Vec<Drift>, JobError> {
    let ids: Vec<String> = observations.iter().filter_map(Observation::user_id).map(str::to_owned).collect();
    let mut stored = store.users(&ids).await?;
    let mut drift = Vec::new();
    for observation in observations {
        let id = observation.user_id().unwrap_or_default().to_owned();
        let kind = match observation {
            Observation::Snapshot(snapshot) => {
                let standing = stored.remove(&id).unwrap_or(Stored::Absent);
                differs(standing, snapshot, counts)
            }
            Observation::Event(unusable) => {
                counts.quarantined += 1;
                let reason = match &unusable.content {
                    crate::domain::event::Content::Unusable(reason) => (*reason).to_owned(),
                    _ => String::new(),
                };
                Some(DriftKind::Unusable { reason })
            }
            Observation::Gone { .. } => None,
        };
        drift.extend(kind.map(|kind| Drift { id, kind }));
    }
    Ok(drift)
}

fn differs(mut standing: Stored, snapshot: &Snapshot, counts: &mut ScanCounts) -> Option<DriftKind> {
    let known = matches!(standing, Stored::Live { .. });
    match decide(&mut standing, Seen::Live(&snapshot.user, &snapshot.version)) {
        Decision::Applied { changed } if known => {
            counts.updated += 1;
            Some(DriftKind::Outdated { fields: changed })
        }
        Decision::Applied { .. } => {
            counts.new += 1;
            Some(DriftKind::Missing)
        }
        Decision::Deleted => {
            counts.tombstoned += 1;
            None
        }
        Decision::Confirmed | Decision::Older => {
            counts.unchanged += 1;
            None
        }
    }
}
