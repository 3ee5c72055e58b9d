//! Catch-up: reads the Events API in ascending order after a cursor (promise 5).
//!
//! One transaction applies a page and moves the cursor, if the revision is still the one at which the page was read. So a stale
//! leader or a crash can repeat a page, never skip one. Facts about the API:
//! [the guide](crate::docs::protocol#events-api).

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;

use super::job::{Job, JobContext, JobError, REQUEST_INTERVAL};
use super::runner::Runner;
use super::{Applied, FollowUp, NoFollowUp, apply, apply_with, key_check, quarantine};
use crate::domain::event::{Event, Observation, Origin};
use crate::domain::kinds::Kinds;
use crate::domain::timestamp::Timestamp;
use crate::store::catch_up::{AdvanceCatchUp, CatchUpState, Cursor, OVERLAP, RestartCatchUp};
use crate::store::{Store, StoreError};
use crate::workos::api::{ApiError, EventsFrom, PAGE, Page};

/// WorkOS lists an event only after this delay, so that the order never changes. Seconds.
pub(super) const HOLD_BACK: i64 = 15;

/// Events that are older than this may be missing at WorkOS, which keeps events for at least 30 days. Seconds.
const TOO_OLD: i64 = 25 * 86_400;
const RETENTION: i64 = 30 * 86_400 - OVERLAP;

/// Tolerated difference of times in the wrong order within a page. Seconds.
const ORDER_TOLERANCE: i64 = 60;

/// After this number of panics on one page, its events are applied one by one.
const MAX_PANICS: u32 = 3;

/// Runs catch-up.
pub type CatchUp = Runner<CatchUpJob>;

/// Catch-up as a job.
#[derive(Debug)]
pub struct CatchUpJob {
    context: JobContext,
    types: Vec<String>,
    interval: Duration,
    leader: LeaderState,
}

/// State of the process that holds the lease. Another process can determine all of it again.
#[derive(Debug, Default)]
struct LeaderState {
    /// Whether the key check has passed.
    is_key_checked: bool,
    /// When the first page of this pass was requested, by WorkOS's clock. A pass ends at the last page.
    pass_started_at: Option<Timestamp>,
    /// Whether the cursor was replaced in this pass.
    is_cursor_replaced: bool,
    /// Event types that WorkOS rejects as unknown.
    unknown_types: BTreeSet<String>,
    /// Whether a page is being applied. If the step panics, this is still true at the next step.
    is_applying: bool,
    panics: u32,
}

impl CatchUp {
    /// Creates a catch-up for events of these types, with a pause of `interval` after the last page.
    #[must_use]
    pub fn new(context: JobContext, types: Vec<String>, interval: Duration) -> Self {
        Self::of_job(context.clone(), CatchUpJob { context, types, interval, leader: LeaderState::default() })
    }
}

impl Job for CatchUpJob {
    const NAME: &'static str = "catch_up";

    type Output = Duration;

    fn reset(&mut self) {
        self.leader = LeaderState::default();
    }

    async fn step(&mut self) -> Result<Duration, JobError> {
        if std::mem::take(&mut self.leader.is_applying) {
            self.leader.panics += 1;
        }
        if !self.leader.is_key_checked {
            key_check::check(&self.context).await?;
            self.leader.is_key_checked = true;
        }
        let Some(state) = self.context.store.catch_up_state().await? else { return self.begin().await };
        let types = self.types();
        let start =
            state.cursor.as_ref().map_or(EventsFrom::Time(state.range_start), |cursor| EventsFrom::After(&cursor.id));
        match self.context.api.events(&types, start, PAGE).await {
            Ok(page) => self.apply_page(&state, page).await,
            Err(error @ ApiError::Refused { .. }) => self.handle_rejection(&state, error).await,
            Err(error) => Err(error.into()),
        }
    }

    fn rest_after(&self, rest: Duration) -> Duration {
        rest
    }
}

impl CatchUpJob {
    /// Returns the types to read, without those that WorkOS rejected.
    fn types(&self) -> Vec<String> {
        self.types.iter().filter(|name| !self.leader.unknown_types.contains(*name)).cloned().collect()
    }

    /// Stores the start of the first catch-up, by WorkOS's clock.
    async fn begin(&self) -> Result<Duration, JobError> {
        // Only WorkOS's clock is needed. The default types are used, because WorkOS may not know all configured types.
        let known: Vec<String> = Kinds::USERS.event_types().into_iter().map(str::to_owned).collect();
        let page = self.context.api.events(&known, EventsFrom::Oldest, 1).await?;
        self.context.store.begin_catch_up(page.observed_at).await?;
        Ok(Duration::ZERO)
    }

    async fn apply_page(&mut self, state: &CatchUpState, page: Page<Event>) -> Result<Duration, JobError> {
        if is_misdated(state, page.latest) {
            tracing::error!(
                synced_through = ?state.synced_through.map(|at| at.to_string()),
                "the state of catch-up was stored with a wrong clock, so events may have been skipped; catch-up reads all events \
                 that WorkOS still has, and a full reconcile follows"
            );
            let restart = RestartCatchUp {
                clears_synced_through: true,
                ..restart_from(&CatchUpState { synced_through: None, ..state.clone() }, page.observed_at)
            };
            return self.restart(restart).await;
        }
        if last_correct_at(state) < page.observed_at.plus_seconds(-TOO_OLD) {
            tracing::error!(
                synced_through = ?state.synced_through.map(|at| at.to_string()),
                "catch-up did not run for longer than WorkOS keeps events; it reads all events that WorkOS still has, and a full \
                 reconcile follows"
            );
            return self.restart(restart_from(state, page.observed_at)).await;
        }
        let pass_started_at = *self.leader.pass_started_at.get_or_insert(page.observed_at);
        let last = page.resume.clone().map(|id| {
            let created_at = page.items.iter().find(|event| event.id == id).and_then(|event| event.created_at);
            Cursor { id, created_at }
        });
        let repeats = last.is_some() && last.as_ref().map(|last| &last.id) == state.cursor.as_ref().map(|it| &it.id);
        if repeats && page.more {
            tracing::warn!(
                "the Events API returned the same page again, although it announced more events; catch-up treats it \
                 as the last page"
            );
        }
        if self.starts_over(state, &page).await? {
            tracing::error!(
                "WorkOS does not know catch-up's cursor and lists its events from the start; the cursor is replaced"
            );
            return self.restart(restart_from(state, page.observed_at)).await;
        }
        let is_newest_first = is_newest_first(&page.items);
        let end = repeats || !page.more;
        // Events before the first start are not applied. They could create a user whose deletion was never received.
        let is_in_range = |event: &Event| event.created_at.is_none_or(|at| at >= state.earliest_range_start);
        let events: Vec<Event> = page.items.into_iter().filter(is_in_range).collect();
        if is_newest_first {
            self.apply_events(events, &NoFollowUp).await?;
            return Err(JobError::NewestFirst);
        }
        let synced_through = end.then(|| pass_started_at.plus_seconds(-HOLD_BACK));
        let cursor = last.as_ref().filter(|_| !repeats);
        let advance = AdvanceCatchUp { revision: state.revision, cursor, synced_through };
        self.apply_events(events, &advance).await?;
        if end {
            self.leader.pass_started_at = None;
            self.leader.is_cursor_replaced = false;
            return Ok(self.context.jittered(self.interval));
        }
        Ok(REQUEST_INTERVAL)
    }

    /// Returns whether WorkOS lists its events from the start, because it does not know the cursor.
    ///
    /// Reading all events again would be correct, but a new cursor is faster. So this returns true only if the new cursor would
    /// be after the page, and the page contains events that catch-up has read before, or only events before its first start. A
    /// single late event fulfills neither condition.
    async fn starts_over(&self, state: &CatchUpState, page: &Page<Event>) -> Result<bool, JobError> {
        let Some(newest) = page.items.iter().filter_map(|event| event.created_at).max() else { return Ok(false) };
        let range_start = restart_from(state, page.observed_at).range_start;
        if state.cursor.is_none() || range_start <= state.range_start || newest >= range_start {
            return Ok(false);
        }
        if newest < state.earliest_range_start {
            return Ok(true);
        }
        let ids: Vec<String> = page.items.iter().map(|event| event.id.clone()).collect();
        Ok(self.context.store.has_read(&ids).await?)
    }

    /// Applies the events of a page, and runs `follow_up` in the same transaction.
    async fn apply_events(&mut self, events: Vec<Event>, follow_up: &impl FollowUp) -> Result<(), JobError> {
        // Some emulators return events of every type.
        let events = events.into_iter().filter(|event| self.types.contains(&event.event_type) || is_unreadable(event));
        let kinds = self.context.kinds;
        let observations: Vec<Observation> = events.map(|event| kinds.restrict(Observation::Event(event))).collect();
        let store = &self.context.store;
        if self.leader.panics >= MAX_PANICS {
            one_by_one(store, &observations).await?;
            apply_with(store, Origin::CatchUp, &[], follow_up).await?;
            self.leader.panics = 0;
            return Ok(());
        }
        self.leader.is_applying = true;
        let applied = apply_with(store, Origin::CatchUp, &observations, follow_up).await;
        self.leader.is_applying = false;
        let applied = applied?;
        self.leader.panics = 0;
        self.count(&observations, &applied);
        Ok(())
    }

    fn count(&self, observations: &[Observation], applied: &[Applied]) {
        for (observation, applied) in observations.iter().zip(applied) {
            let Observation::Event(event) = observation else { continue };
            self.context.metrics.event(&event.event_type, Origin::CatchUp.as_str(), applied.outcome());
            if let Some(created_at) = event.created_at.filter(|_| !applied.is_duplicate) {
                let delay = self.context.clock.now().unix_micros() - created_at.unix_micros();
                self.context.metrics.event_delay(Origin::CatchUp.as_str(), delay);
            }
        }
    }

    /// Finds out what WorkOS rejects (the cursor, the start, or an event type), and replaces it.
    async fn handle_rejection(&mut self, state: &CatchUpState, error: ApiError) -> Result<Duration, JobError> {
        let types = self.types();
        match self.context.api.events(&types, EventsFrom::Oldest, 1).await {
            Ok(page) => return self.replace_cursor(state, error, page.observed_at).await,
            Err(ApiError::Refused { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let mut rejected = BTreeSet::new();
        for name in &types {
            match self.context.api.events(std::slice::from_ref(name), EventsFrom::Oldest, 1).await {
                Ok(_) => {}
                Err(ApiError::Refused { .. }) => {
                    rejected.insert(name.clone());
                }
                Err(error) => return Err(error.into()),
            }
        }
        if rejected.is_empty() || rejected.len() == types.len() {
            return Err(error.into());
        }
        tracing::error!(
            types = ?rejected,
            "WorkOS does not know these event types; catch-up continues without them (correct AUTHKIT_SYNC_EVENT_TYPES)"
        );
        self.leader.unknown_types.extend(rejected);
        Ok(REQUEST_INTERVAL)
    }

    /// Replaces the cursor that WorkOS rejects, or the start if there is no cursor.
    async fn replace_cursor(
        &mut self,
        state: &CatchUpState,
        rejection: ApiError,
        now: Timestamp,
    ) -> Result<Duration, JobError> {
        key_check::check(&self.context).await?;
        if state.cursor.is_some() {
            tracing::error!(
                synced_through = ?state.synced_through.map(|at| at.to_string()),
                "WorkOS no longer accepts catch-up's cursor; the cursor is replaced"
            );
            return self.restart(restart_from(state, now)).await;
        }
        // Halves the distance to now until WorkOS accepts the start. The start is never later than an hour ago.
        let distance = now.unix_seconds() - state.range_start.unix_seconds();
        if distance / 2 < OVERLAP {
            return Err(rejection.into());
        }
        let range_start = now.plus_seconds(-distance / 2);
        tracing::error!(
            rejected = %state.range_start,
            range_start = %range_start,
            "WorkOS rejects this early start time for events; catch-up starts at a later time, and a full reconcile follows"
        );
        let restart = RestartCatchUp { range_start, needs_reconcile: true, ..restart_from(state, now) };
        self.context.store.transaction("restart catch-up", &restart).await?;
        Ok(REQUEST_INTERVAL)
    }

    async fn restart(&mut self, restart: RestartCatchUp) -> Result<Duration, JobError> {
        key_check::check(&self.context).await?;
        self.context.store.transaction("restart catch-up", &restart).await?;
        self.leader.pass_started_at = None;
        // If WorkOS rejects each new cursor, catch-up must pause between the requests.
        if std::mem::replace(&mut self.leader.is_cursor_replaced, true) {
            Err(JobError::CursorRejected)
        } else {
            Ok(REQUEST_INTERVAL)
        }
    }
}

/// Returns the latest time at which the state was correct.
fn last_correct_at(state: &CatchUpState) -> Timestamp {
    state.synced_through.map_or(state.range_decided_at, |at| at.max(state.range_decided_at))
}

/// Returns whether the state was stored with a wrong clock, because it is ahead of every clock. Releases that trusted every `Date`
/// header could store such a state.
fn is_misdated(state: &CatchUpState, latest: Timestamp) -> bool {
    let ahead = |at: Timestamp| at > latest.plus_seconds(OVERLAP);
    state.synced_through.is_some_and(ahead)
        || ahead(state.range_decided_at)
        || (state.cursor.is_none() && state.range_start > latest)
}

/// Returns the start that replaces a cursor (promise 5).
fn restart_from(state: &CatchUpState, now: Timestamp) -> RestartCatchUp {
    let recent = state.synced_through.filter(|at| *at >= now.plus_seconds(-TOO_OLD));
    let from = recent.map_or_else(|| now.plus_seconds(-RETENTION), |at| at.min(now).plus_seconds(-OVERLAP));
    RestartCatchUp {
        revision: state.revision,
        range_start: from,
        now,
        needs_reconcile: recent.is_none(),
        clears_synced_through: false,
    }
}

/// Returns whether the page lists its newest event first. Single events can be late, so the page as a whole decides. A page with
/// ascending IDs is in order, even if its times are not.
fn is_newest_first(events: &[Event]) -> bool {
    let dated: Vec<(Timestamp, &str)> =
        events.iter().filter_map(|event| Some((event.created_at?, event.id.as_str()))).collect();
    let (Some((first, _)), Some((last, _))) = (dated.first(), dated.last()) else { return false };
    let pairs = || dated.iter().zip(dated.iter().skip(1));
    let rises = pairs().filter(|((before, _), (after, _))| before < after).count();
    let falls = pairs().filter(|((before, _), (after, _))| before > after).count();
    let in_order = dated.is_sorted_by(|(_, before), (_, after)| before < after);
    *last < first.plus_seconds(-ORDER_TOLERANCE) && falls > rises && !in_order
}

fn is_unreadable(event: &Event) -> bool {
    event.event_type == crate::workos::wire::UNREADABLE
}

/// Applies single observations.
trait ApplySingle: Sync {
    fn apply(&self, alone: &[Observation]) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Quarantines an observation that caused a panic.
    fn quarantine(&self, alone: &[Observation]) -> impl Future<Output = Result<(), StoreError>> + Send;
}

impl ApplySingle for Store {
    async fn apply(&self, alone: &[Observation]) -> Result<(), StoreError> {
        apply(self, Origin::CatchUp, alone).await.map(drop)
    }

    async fn quarantine(&self, alone: &[Observation]) -> Result<(), StoreError> {
        for observation in alone {
            tracing::error!(
                event.id = printable(observation),
                "authkit-sync panicked while it applied this event, so the event is quarantined; this is a defect, please report it"
            );
        }
        quarantine(self, Origin::CatchUp, alone, "it made authkit-sync panic", &NoFollowUp).await
    }
}

/// Applies each observation alone, so that one that causes a panic blocks no other.
async fn one_by_one(to: &impl ApplySingle, observations: &[Observation]) -> Result<(), StoreError> {
    for alone in observations.chunks(1) {
        match AssertUnwindSafe(to.apply(alone)).catch_unwind().await {
            Ok(applied) => applied?,
            Err(_panic) => to.quarantine(alone).await?,
        }
    }
    Ok(())
}

fn printable(observation: &Observation) -> String {
    let Observation::Event(event) = observation else { return String::new() };
    event.id.chars().take(64).filter(char::is_ascii_graphic).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use bytes::Bytes;

    use super::*;
    use crate::domain::event::Content;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_unix_micros(seconds * 1_000_000)
    }

    fn event(id: &str, seconds: i64) -> Event {
        Event {
            id: id.to_owned(),
            event_type: "user.deleted".to_owned(),
            created_at: Some(at(seconds)),
            user_id: None,
            content: Content::Other,
            payload: Bytes::new(),
        }
    }

    #[test]
    fn the_order_of_the_whole_page_decides_whether_it_is_newest_first() {
        for (events, expected) in [
            (&[("a", 1_001), ("b", 1_002)][..], false),
            (&[("a", 1_050), ("b", 1_000), ("c", 1_049)], false),
            (&[("b", 1_000), ("a", 950)], false),
            (&[], false),
            (&[("a", 500)], false),
            // One late event at any state, even if the IDs are not ascending.
            (&[("c", 300), ("b", 1_000), ("a", 1_100), ("d", 1_200)], false),
            (&[("c", 1_000), ("b", 300), ("a", 1_100), ("d", 1_200)], false),
            (&[("c", 1_000), ("b", 1_100), ("a", 1_200), ("d", 300)], false),
            // In a short page, only the IDs distinguish a late event from newest first.
            (&[("a", 1_000), ("b", 300)], false),
            (&[("b", 1_000), ("a", 300)], true),
            (&[("d", 1_200), ("c", 1_100), ("b", 1_100), ("a", 1_000)], true),
            // A late event in a page that is newest first, and two swapped events in one.
            (&[("d", 1_200), ("c", 300), ("b", 1_100), ("a", 1_000)], true),
            (&[("d", 1_200), ("c", 1_100), ("b", 1_110), ("a", 1_000)], true),
        ] {
            let page: Vec<Event> = events.iter().map(|(id, seconds)| event(id, *seconds)).collect();
            assert_eq!(is_newest_first(&page), expected, "{events:?}");
        }
    }

    #[test]
    fn a_replaced_cursor_starts_an_hour_earlier_or_at_the_retention_limit() {
        let now = at(100 * 86_400);
        let state = |days: Option<i64>| CatchUpState {
            revision: 1,
            cursor: None,
            range_start: at(0),
            earliest_range_start: at(0),
            range_decided_at: at(0),
            synced_through: days.map(|days| now.plus_seconds(-days * 86_400)),
            needs_reconcile: false,
            needs_organization_reconcile: false,
        };
        for (days, back, wanted) in
            [(Some(3), 3 * 86_400 + OVERLAP, false), (Some(26), RETENTION, true), (None, RETENTION, true)]
        {
            let restart = restart_from(&state(days), now);
            assert_eq!((restart.range_start, restart.needs_reconcile), (now.plus_seconds(-back), wanted), "{days:?}");
        }
    }

    /// Panics at an event with the ID `bad`, as a defect would.
    #[derive(Default)]
    struct Fragile {
        applied: Mutex<Vec<String>>,
        quarantined: Mutex<Vec<String>>,
    }

    fn ids(observations: &[Observation]) -> Vec<String> {
        observations.iter().map(printable).collect()
    }

    impl ApplySingle for Fragile {
        async fn apply(&self, alone: &[Observation]) -> Result<(), StoreError> {
            assert_ne!(ids(alone), ["bad"]);
            self.applied.lock().unwrap().extend(ids(alone));
            Ok(())
        }

        async fn quarantine(&self, alone: &[Observation]) -> Result<(), StoreError> {
            self.quarantined.lock().unwrap().extend(ids(alone));
            Ok(())
        }
    }

    #[tokio::test]
    async fn an_event_that_causes_a_panic_is_quarantined_and_the_others_are_applied() {
        let page = ["a", "bad", "c"].map(|id| Observation::Event(event(id, 0)));
        let fragile = Fragile::default();
        one_by_one(&fragile, &page).await.unwrap();
        assert_eq!(fragile.applied.into_inner().unwrap(), ["a", "c"]);
        assert_eq!(fragile.quarantined.into_inner().unwrap(), ["bad"]);
    }
}
