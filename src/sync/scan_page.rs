//! Applies a page of a scan. Only users that differ are locked and written. [`ScanStart`] explains why this is safe.

use super::batch::Batch;
use super::records::Inbox;
use super::{Applied, ONLY, in_parts};
use crate::domain::decide::{Effect, Stored, decide};
use crate::domain::event::{Observation, Origin};
use crate::domain::object::Kind;
use crate::store::scans::ScanStart;
use crate::store::{Store, StoreError};

/// Applies a page of WorkOS's list, and returns the outcome of each user, in order. The observation time of every snapshot is the
/// start of the scan. A row that equals WorkOS's user is neither locked nor written.
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
    // This order is required: a row that is written between the two reads is then read with its new content.
    let unwritten = store.unwritten_since(&ids, scan.database_started_at).await?;
    let stored = store.objects(Kind::User, &ids).await?;
    let unchanged: Vec<Option<Applied>> = observations
        .iter()
        .map(|listed| match listed {
            Observation::Snapshot(snapshot) => {
                let id = snapshot.object.id();
                unchanged(scan, listed, stored.get(id)?, unwritten.contains(id))
            }
            _ => None,
        })
        .collect();
    let rest = observations.into_iter().zip(&unchanged).filter(|(_, unchanged)| unchanged.is_none());
    let rest: Vec<Observation> = rest.map(|(listed, _)| listed).collect();
    let mut applied = if rest.is_empty() {
        Vec::new()
    } else {
        let batch = Batch::new(Inbox::Record(Origin::Reconcile), &rest, ONLY);
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

/// Returns the result for a user whose row needs no write, or `None`.
fn unchanged(scan: &ScanStart, listed: &Observation, stored: &Stored, is_unwritten: bool) -> Option<Applied> {
    let mut after = stored.clone();
    let effect = decide(Some(&mut after), false, listed);
    let is_unchanged = match (&effect, &after) {
        (Effect::Confirmed, _) => is_unwritten,
        (Effect::Stale, Stored::Live { version, .. }) => version.observed_at >= scan.started_at,
        (Effect::AlreadyDeleted { .. }, _) => true,
        _ => false,
    };
    let is_user_deleted = matches!(stored, Stored::Tombstone { .. });
    is_unchanged.then_some(Applied { effect, is_duplicate: false, is_user_deleted })
}
