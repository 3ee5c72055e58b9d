//! A page of a scan: only users that differ are locked and written. What that rests on is written at [`ScanStart`].

use super::batch::{Batch, Inbox};
use super::{Applied, NoFollowUp, in_parts};
use crate::domain::decide::{Decision, Seen, Stored, decide};
use crate::domain::event::{Observation, Origin, Outcome, Snapshot};
use crate::store::scans::ScanStart;
use crate::store::{Store, StoreError};

/// Applies a page of WorkOS's list, and returns the outcome of each user, in order. Every snapshot counts as observed when the
/// scan began. A row that says what WorkOS says is neither locked nor written.
///
/// # Errors
/// As [`apply`](super::apply).
pub async fn apply_scan_page(
    store: &Store,
    scan: &ScanStart,
    observations: &[Observation],
) -> Result<Vec<Applied>, StoreError> {
    let observations: Vec<Observation> = observations.iter().map(|listed| as_of(scan, listed)).collect();
    let ids: Vec<String> = observations.iter().filter_map(Observation::user_id).map(str::to_owned).collect();
    // In this order: a row that is written between the two reads shows what was written.
    let unwritten = store.unwritten_since(&ids, scan.database_started_at).await?;
    let stored = store.users(&ids).await?;
    let unchanged: Vec<Option<Applied>> = observations
        .iter()
        .map(|listed| match listed {
            Observation::Snapshot(snapshot) => {
                unchanged(scan, snapshot, stored.get(&snapshot.user.id)?, unwritten.contains(&snapshot.user.id))
            }
            _ => None,
        })
        .collect();
    let rest = observations.into_iter().zip(&unchanged).filter(|(_, unchanged)| unchanged.is_none());
    let rest: Vec<Observation> = rest.map(|(listed, _)| listed).collect();
    let mut applied = if rest.is_empty() {
        Vec::new()
    } else {
        let batch = Batch::new(Inbox::Record(Origin::Reconcile), &rest, &NoFollowUp);
        in_parts(store, &batch.of_scan(scan)).await?
    }
    .into_iter();
    Ok(unchanged.into_iter().filter_map(|unchanged| unchanged.or_else(|| applied.next())).collect())
}

fn as_of(scan: &ScanStart, listed: &Observation) -> Observation {
    let mut listed = listed.clone();
    if let Observation::Snapshot(snapshot) = &mut listed {
        snapshot.version.observed_at = scan.started_at;
    }
    listed
}

/// The outcome, where nothing has to be written.
fn unchanged(scan: &ScanStart, snapshot: &Snapshot, stored: &Stored, is_unwritten: bool) -> Option<Applied> {
    let mut after = stored.clone();
    let decision = decide(&mut after, Seen::Live(&snapshot.user, &snapshot.version));
    let outcome = match (decision, after) {
        (Decision::Confirmed, _) if is_unwritten => Outcome::Applied,
        (Decision::Older, Stored::Live { version, .. }) if version.observed_at >= scan.started_at => Outcome::Stale,
        (Decision::Deleted, _) => Outcome::Stale,
        _ => return None,
    };
    let deleted = matches!(stored, Stored::Tombstone { .. });
    Some(Applied { outcome, reason: None, duplicate: false, difference: None, changed: Vec::new(), deleted })
}
