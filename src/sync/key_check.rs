//! Is the API key this environment's? (Promise 6.)
//!
//! To the key of another environment, every one of our users is unknown, and its list of users and its events are
//! somebody else's. So before anything is inferred from what it says, some of our live users are read by id.

use std::collections::BTreeSet;

use futures_util::{StreamExt, TryStreamExt, stream};

use super::job::{JobContext, JobError};
use crate::domain::event::{Event, Observation};
use crate::domain::timestamp::Timestamp;
use crate::store::catch_up::OVERLAP;
use crate::workos::api::{Api, ApiError, Found, PAGE, Page, Start};

/// Live users asked about.
const SAMPLE: i64 = 20;

/// Live users tried before one that WorkOS lists.
const WITNESSES: i64 = 2;

/// Questions under way at once.
const AT_ONCE: usize = 5;

/// Pages of deletions read to explain unknown users. A thousand deletions explain more than a sample can hold.
const PAGES: usize = 20;

/// Passes when the key is this environment's, as far as a sample can tell, or the operator said that deletions are meant.
///
/// # Errors
/// [`JobError::WrongKey`], or why it could not be told.
pub(super) async fn check(context: &JobContext) -> Result<(), JobError> {
    if context.store.deletions_accepted().await? {
        return Ok(());
    }
    let mut sample: BTreeSet<String> = context.store.sample_live(SAMPLE).await?.into_iter().collect();
    // Some at once: whoever reads through waits for this.
    let questions = sample.clone().into_iter().map(|id| ask(context.api.clone(), id));
    let answers: Vec<Option<String>> = stream::iter(questions).buffer_unordered(AT_ONCE).try_collect().await?;
    let mut unknown: BTreeSet<String> = answers.into_iter().flatten().collect();
    if !suspicious(&unknown, &sample) {
        return Ok(());
    }
    // Users whose deletion is still to be read are unknown for a good reason.
    let place = context.store.catch_up_state().await?;
    let since = place.and_then(|place| place.synced_through.or(Some(place.range_start)));
    for id in deleted_since(context, since, &unknown).await? {
        unknown.remove(&id);
        sample.remove(&id);
    }
    if suspicious(&unknown, &sample) {
        return Err(JobError::WrongKey { sampled: sample.len(), unknown: unknown.len() });
    }
    Ok(())
}

/// The id, when WorkOS does not know it.
async fn ask(api: Api, id: String) -> Result<Option<String>, ApiError> {
    let found = api.user(&id).await?;
    Ok(matches!(found, Found::Unknown { .. }).then_some(id))
}

/// Passes when a live user can be read by ID, or when WorkOS lists none. Until then a 404 that does not name the ID may be
/// any server's answer to any path.
///
/// # Errors
/// [`JobError::NotConfirmed`], or why it could not be told.
pub(super) async fn check_reads_by_id(context: &JobContext) -> Result<(), JobError> {
    for id in context.store.sample_live(WITNESSES).await? {
        if let Found::Live(_) = context.api.user(&id).await? {
            return Ok(());
        }
    }
    let listed = context.api.users(None).await?.items;
    let Some(id) = listed.iter().find_map(Observation::user_id) else {
        return if listed.is_empty() { Ok(()) } else { Err(JobError::NotConfirmed) };
    };
    match context.api.user(id).await? {
        Found::Live(_) => Ok(()),
        Found::Unknown { .. } => Err(JobError::NotConfirmed),
    }
}

fn suspicious(unknown: &BTreeSet<String>, sample: &BTreeSet<String>) -> bool {
    unknown.len() * 2 > sample.len()
}

/// Those of `unknown` whose deletion the Events API lists.
async fn deleted_since(
    context: &JobContext,
    since: Option<Timestamp>,
    unknown: &BTreeSet<String>,
) -> Result<BTreeSet<String>, JobError> {
    let since = since.map(|since| since.plus_seconds(-OVERLAP));
    let mut deleted = BTreeSet::new();
    let mut last: Option<String> = None;
    for _ in 0..PAGES {
        let page = deletions(context, since, last.as_deref()).await?;
        let ids = page.items.iter().filter(|event| event.event_type == "user.deleted");
        deleted.extend(ids.filter_map(|event| event.user_id.clone()).filter(|id| unknown.contains(id)));
        if !page.more || page.resume == last || deleted.len() == unknown.len() {
            break;
        }
        last = page.resume;
    }
    Ok(deleted)
}

async fn deletions(
    context: &JobContext,
    since: Option<Timestamp>,
    last: Option<&str>,
) -> Result<Page<Event>, ApiError> {
    let types = ["user.deleted".to_owned()];
    let start = match (last, since) {
        (Some(last), _) => Start::After(last),
        (None, Some(since)) => Start::Since(since),
        (None, None) => Start::Anywhere,
    };
    match context.api.events(&types, start, PAGE).await {
        // Too far back for WorkOS: whatever it still has.
        Err(ApiError::Refused { .. }) if last.is_none() => context.api.events(&types, Start::Anywhere, PAGE).await,
        other => other,
    }
}
