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
use crate::workos::api::{Api, ApiError, EventsFrom, Found, PAGE, Page};

/// Number of live users in the sample.
const SAMPLE: i64 = 20;

/// Number of our live users that are read by ID first. If none is found, a user that WorkOS lists is read.
const READ_BY_ID: i64 = 2;

/// Number of concurrent requests.
const MAX_CONCURRENT_READS: usize = 5;

/// Number of pages of delete events read to explain unknown users.
const DELETE_EVENT_PAGES: usize = 20;

/// Checks that WorkOS accepts the API key of `context`, and that the key belongs to this environment.
///
/// # Errors
/// As [`check`]; [`ApiError::KeyRefused`] if WorkOS does not accept the key.
pub(crate) async fn check_new_key(context: &JobContext) -> Result<(), JobError> {
    // If there are no live users, the check of a sample sends no request.
    context.api.users(None).await?;
    check(context).await
}

/// Checks on a sample of live users that the API key belongs to this environment. Skipped if an operator has accepted deletions.
///
/// # Errors
/// [`JobError::WrongKey`], or why the sample could not be read.
pub(crate) async fn check(context: &JobContext) -> Result<(), JobError> {
    if context.store.deletions_accepted().await? {
        return Ok(());
    }
    let mut sample: BTreeSet<String> = context.store.sample_live(SAMPLE).await?.into_iter().collect();
    // Concurrently, because callers of read-through wait for this.
    let reads = sample.clone().into_iter().map(|id| is_unknown(context.api.clone(), id));
    let answers: Vec<Option<String>> = stream::iter(reads).buffer_unordered(MAX_CONCURRENT_READS).try_collect().await?;
    let mut unknown: BTreeSet<String> = answers.into_iter().flatten().collect();
    if !is_suspicious(&unknown, &sample) {
        return Ok(());
    }
    // A user with a delete event that catch-up has not read yet is unknown to WorkOS for a valid reason.
    let state = context.store.catch_up_state().await?;
    let since = state.and_then(|state| state.synced_through.or(Some(state.range_start)));
    for id in deleted_since(context, since, &unknown).await? {
        unknown.remove(&id);
        sample.remove(&id);
    }
    if is_suspicious(&unknown, &sample) {
        return Err(JobError::WrongKey { sampled: sample.len(), unknown: unknown.len() });
    }
    Ok(())
}

/// Returns the ID if WorkOS does not know it.
async fn is_unknown(api: Api, id: String) -> Result<Option<String>, ApiError> {
    let found = api.user(&id).await?;
    Ok(matches!(found, Found::Unknown { .. }).then_some(id))
}

/// Checks that a live user can be read by ID, or that WorkOS lists no users. Without this check, a 404 that does not contain the
/// ID could come from any server.
///
/// # Errors
/// [`JobError::NotConfirmed`], or why the users could not be read.
pub(super) async fn check_reads_by_id(context: &JobContext) -> Result<(), JobError> {
    for id in context.store.sample_live(READ_BY_ID).await? {
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

fn is_suspicious(unknown: &BTreeSet<String>, sample: &BTreeSet<String>) -> bool {
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
    for _ in 0..DELETE_EVENT_PAGES {
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
        (Some(last), _) => EventsFrom::After(last),
        (None, Some(since)) => EventsFrom::Time(since),
        (None, None) => EventsFrom::Oldest,
    };
    match context.api.events(&types, start, PAGE).await {
        // WorkOS rejects a start that is too early, so read from its oldest event.
        Err(ApiError::Refused { .. }) if last.is_none() => context.api.events(&types, EventsFrom::Oldest, PAGE).await,
        other => other,
    }
}
