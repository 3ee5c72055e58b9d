//! Checks whether the API key belongs to this environment (promise 6).
//!
//! With the key of another environment, WorkOS knows none of our users, and lists the users and events of that environment. So
//! a sample of our live users is read by ID before anything is inferred from a response.

use std::collections::BTreeSet;

use futures_util::{StreamExt, TryStreamExt, stream};

use super::job::{JobContext, JobError};
use crate::domain::event::{Event, Observation};
use crate::domain::timestamp::Timestamp;
use crate::store::catch_up::OVERLAP;
use crate::workos::api::{Api, ApiError, Found, PAGE, Page, Start};

/// Number of live users in the sample.
const SAMPLE: i64 = 20;

/// Number of live users read by ID before one that WorkOS lists.
const WITNESSES: i64 = 2;

/// Number of concurrent requests.
const AT_ONCE: usize = 5;

/// Number of pages of delete events read to explain unknown users.
const PAGES: usize = 20;

/// Passes when the key is this environment's, as far as a sample can tell, or the operator has accepted deletions.
///
/// # Errors
/// [`JobError::WrongKey`], or why the check failed.
pub(super) async fn check(context: &JobContext) -> Result<(), JobError> {
    if context.store.deletions_accepted().await? {
        return Ok(());
    }
    let mut sample: BTreeSet<String> = context.store.sample_live(SAMPLE).await?.into_iter().collect();
    // Concurrently, because callers of read-through wait for this.
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

/// Returns the ID if WorkOS does not know it.
async fn ask(api: Api, id: String) -> Result<Option<String>, ApiError> {
    let found = api.user(&id).await?;
    Ok(matches!(found, Found::Unknown { .. }).then_some(id))
}

/// Passes when a live user can be read by ID, or when WorkOS lists none. Until then a 404 that does not name the ID may be
/// any server's answer to any path.
///
/// # Errors
/// [`JobError::NotConfirmed`], or why the check failed.
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

/// Returns the users of `unknown` that have a delete event.
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
        // WorkOS rejects a start this early: read from the oldest event that it has.
        Err(ApiError::Refused { .. }) if last.is_none() => context.api.events(&types, Start::Anywhere, PAGE).await,
        other => other,
    }
}
