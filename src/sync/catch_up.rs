//! Catch-up: reads the Events API in ascending order after a cursor (promise 5).
//!
//! A page is applied and the cursor moved in one transaction, from the revision at which the page was read. So a stale
//! leader, a crash or a lost race can repeat a page, never skip one. Facts about the API:
//! [the guide](crate::docs::protocol#events-api).

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;

use super::job::{Job, JobContext, JobError, REQUEST_INTERVAL};
use super::runner::Runner;
use super::{Applied, FollowUp, NoFollowUp, apply, apply_with, key_check, quarantine};
use crate::domain::event::{Event, Observation, Origin};
use crate::domain::timestamp::Timestamp;
use crate::store::catch_up::{AdvanceCatchUp, CatchUpState, Cursor, OVERLAP, RestartCatchUp};
use crate::store::{Store, StoreError};
use crate::workos::api::{ApiError, PAGE, Page, Start};

/// The types read unless the settings name others: all that changes a user.
pub const EVENT_TYPES: [&str; 3] = ["user.created", "user.updated", "user.deleted"];

/// WorkOS holds events back for some seconds, so that later ones cannot overtake them. Seconds.
pub(super) const HOLD_BACK: i64 = 15;

/// Beyond this WorkOS may have forgotten events: it keeps them for 30 days at least. Seconds.
const TOO_OLD: i64 = 25 * 86_400;
const RETENTION: i64 = 30 * 86_400 - OVERLAP;

/// Times may run backwards so far without a page running backwards. Seconds.
const INVERSION: i64 = 60;

/// After so many panics on one page its events go one by one.
const PANICS: u32 = 3;

/// Runs catch-up.
pub type CatchUp = Runner<CatchUpJob>;

/// Catch-up as a job.
#[derive(Debug)]
pub struct CatchUpJob {
    context: JobContext,
    types: Vec<String>,
    interval: Duration,
    state: State,
}

/// What the process that holds the lease remembers; all of it can be determined again.
#[derive(Debug, Default)]
struct State {
    /// The key was found to be this environment's.
    trusted: bool,
    /// WorkOS's clock when the first page of this pass was asked for.
    pass_began: Option<Timestamp>,
    /// The cursor was replaced in this pass.
    replaced: bool,
    /// Types that WorkOS refuses to know.
    refused: BTreeSet<String>,
    /// A page is being applied; still set at the next step when that panicked.
    applying: bool,
    panics: u32,
}

impl CatchUp {
    /// Reads events of these types. Rests for `interval` after the last page.
    #[must_use]
    pub fn new(context: JobContext, types: Vec<String>, interval: Duration) -> Self {
        Self::run(context.clone(), CatchUpJob { context, types, interval, state: State::default() })
    }
}

impl Job for CatchUpJob {
    const NAME: &'static str = "catch_up";

    type Output = Duration;

    fn reset(&mut self) {
        self.state = State::default();
    }

    async fn step(&mut self) -> Result<Duration, JobError> {
        if std::mem::take(&mut self.state.applying) {
            self.state.panics += 1;
        }
        if !self.state.trusted {
            key_check::check(&self.context).await?;
            self.state.trusted = true;
        }
        let Some(place) = self.context.store.catch_up_state().await? else { return self.begin().await };
        let types = self.types();
        let start = place.cursor.as_ref().map_or(Start::Since(place.range_start), |cursor| Start::After(&cursor.id));
        match self.context.api.events(&types, start, PAGE).await {
            Ok(page) => self.take(&place, page).await,
            Err(error @ ApiError::Refused { .. }) => self.mend(&place, error).await,
            Err(error) => Err(error.into()),
        }
    }

    fn rest_after(&self, rest: Duration) -> Duration {
        rest
    }
}

impl CatchUpJob {
    /// The types to read, without those that WorkOS rejected.
    fn types(&self) -> Vec<String> {
        self.types.iter().filter(|name| !self.state.refused.contains(*name)).cloned().collect()
    }

    /// Records the start of the first catch-up, by WorkOS's clock.
    async fn begin(&self) -> Result<Duration, JobError> {
        // Only what WorkOS's clock says is wanted; and of the settings' types some may be unknown to it.
        let known = EVENT_TYPES.map(str::to_owned);
        let page = self.context.api.events(&known, Start::Anywhere, 1).await?;
        self.context.store.begin_catch_up(page.observed_at).await?;
        Ok(Duration::ZERO)
    }

    async fn take(&mut self, place: &CatchUpState, page: Page<Event>) -> Result<Duration, JobError> {
        if is_misdated(place, page.latest) {
            tracing::error!(
                synced_through = ?place.synced_through.map(|at| at.to_string()),
                "catch-up's place was recorded under a wrong date, and events may have been skipped; it reads what there is, \
                 and a full reconcile follows"
            );
            let restart = RestartCatchUp {
                forget_synced_through: true,
                ..restart(&CatchUpState { synced_through: None, ..place.clone() }, page.observed_at)
            };
            return self.restart(restart).await;
        }
        if last_word(place) < page.observed_at.plus_seconds(-TOO_OLD) {
            tracing::error!(
                synced_through = ?place.synced_through.map(|at| at.to_string()),
                "catch-up was stopped for longer than WorkOS guarantees to keep events; it reads the events that are left, and a \
                 full reconcile follows"
            );
            return self.restart(restart(place, page.observed_at)).await;
        }
        let pass_began = *self.state.pass_began.get_or_insert(page.observed_at);
        let last = page.resume.clone().map(|id| {
            let created_at = page.items.iter().find(|event| event.id == id).and_then(|event| event.created_at);
            Cursor { id, created_at }
        });
        let repeats = last.is_some() && last.as_ref().map(|last| &last.id) == place.cursor.as_ref().map(|it| &it.id);
        if repeats && page.more {
            tracing::warn!(
                "the Events API repeats its last page and says that more follow; catch-up treats it as the last page"
            );
        }
        if self.starts_over(place, &page).await? {
            tracing::error!(
                "WorkOS no longer knows catch-up's cursor and lists its events from the start; the cursor is replaced"
            );
            return self.restart(restart(place, page.observed_at)).await;
        }
        let backwards = runs_backwards(&page.items);
        let end = repeats || !page.more;
        // What was done before anybody listened is not applied: it could revive a user whose deletion nobody heard of.
        let listened = |event: &Event| event.created_at.is_none_or(|at| at >= place.earliest_range_start);
        let events: Vec<Event> = page.items.into_iter().filter(listened).collect();
        if backwards {
            self.apply_events(events, &NoFollowUp).await?;
            return Err(JobError::Backwards);
        }
        let synced_through = end.then(|| pass_began.plus_seconds(-HOLD_BACK));
        let cursor = last.as_ref().filter(|_| !repeats);
        let advance = AdvanceCatchUp { revision: place.revision, cursor, synced_through };
        self.apply_events(events, &advance).await?;
        if end {
            self.state.pass_began = None;
            self.state.replaced = false;
            return Ok(self.context.about(self.interval));
        }
        Ok(REQUEST_INTERVAL)
    }

    /// Whether WorkOS lists its events from the start, because it does not know the cursor.
    ///
    /// To read on would do no harm, and would bring everything again; a new cursor is only the shorter way. So this is
    /// said of pages alone that the new cursor lies behind, and on evidence: the page repeats what catch-up has brought, or
    /// lies before all that it ever read. A late event is neither.
    async fn starts_over(&self, place: &CatchUpState, page: &Page<Event>) -> Result<bool, JobError> {
        let Some(newest) = page.items.iter().filter_map(|event| event.created_at).max() else { return Ok(false) };
        let range_start = restart(place, page.observed_at).range_start;
        if place.cursor.is_none() || range_start <= place.range_start || newest >= range_start {
            return Ok(false);
        }
        if newest < place.earliest_range_start {
            return Ok(true);
        }
        let ids: Vec<String> = page.items.iter().map(|event| event.id.clone()).collect();
        Ok(self.context.store.has_read(&ids).await?)
    }

    /// Applies the events of a page, and moves the cursor in the same transaction.
    async fn apply_events(&mut self, events: Vec<Event>, then: &impl FollowUp) -> Result<(), JobError> {
        // Some emulators give every type, whatever is asked for.
        let events = events.into_iter().filter(|event| self.types.contains(&event.event_type) || unreadable(event));
        let sign_ins = self.context.session_sign_ins;
        let observations: Vec<Observation> =
            events.map(|event| Observation::Event(event).with_sign_in(sign_ins)).collect();
        let store = &self.context.store;
        if self.state.panics >= PANICS {
            one_by_one(store, &observations).await?;
            apply_with(store, Origin::CatchUp, &[], then).await?;
            self.state.panics = 0;
            return Ok(());
        }
        self.state.applying = true;
        let applied = apply_with(store, Origin::CatchUp, &observations, then).await;
        self.state.applying = false;
        let applied = applied?;
        self.state.panics = 0;
        self.count(&observations, &applied);
        Ok(())
    }

    fn count(&self, observations: &[Observation], applied: &[Applied]) {
        for (observation, applied) in observations.iter().zip(applied) {
            let Observation::Event(event) = observation else { continue };
            self.context.metrics.event(&event.event_type, Origin::CatchUp.as_str(), applied.outcome());
        }
    }

    /// Finds out what WorkOS rejects in a request: the cursor, the start, or the name of a type.
    async fn mend(&mut self, place: &CatchUpState, error: ApiError) -> Result<Duration, JobError> {
        let types = self.types();
        match self.context.api.events(&types, Start::Anywhere, 1).await {
            Ok(page) => return self.replace(place, error, page.observed_at).await,
            Err(ApiError::Refused { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let mut culprits = BTreeSet::new();
        for name in &types {
            match self.context.api.events(std::slice::from_ref(name), Start::Anywhere, 1).await {
                Ok(_) => {}
                Err(ApiError::Refused { .. }) => {
                    culprits.insert(name.clone());
                }
                Err(error) => return Err(error.into()),
            }
        }
        if culprits.is_empty() || culprits.len() == types.len() {
            return Err(error.into());
        }
        tracing::error!(
            types = ?culprits,
            "WorkOS does not know these event types; catch-up continues without them (correct AUTHKIT_SYNC_EVENT_TYPES)"
        );
        self.state.refused.extend(culprits);
        Ok(REQUEST_INTERVAL)
    }

    /// Replaces the cursor that WorkOS rejects, or the start.
    async fn replace(&mut self, place: &CatchUpState, refusal: ApiError, now: Timestamp) -> Result<Duration, JobError> {
        key_check::check(&self.context).await?;
        if place.cursor.is_some() {
            tracing::error!(
                synced_through = ?place.synced_through.map(|at| at.to_string()),
                "WorkOS no longer serves catch-up's cursor; it is replaced"
            );
            return self.restart(restart(place, now)).await;
        }
        // Halfway between then and now, until WorkOS accepts it. It never lies after now less an hour.
        let distance = now.unix_seconds() - place.range_start.unix_seconds();
        if distance / 2 < OVERLAP {
            return Err(refusal.into());
        }
        let range_start = now.plus_seconds(-distance / 2);
        tracing::error!(
            refused = %place.range_start,
            range_start = %range_start,
            "WorkOS does not list events from so long ago; catch-up begins later, and a full reconcile follows"
        );
        let restart = RestartCatchUp { range_start, needs_reconcile: true, ..restart(place, now) };
        self.context.store.transaction("restart catch-up", &restart).await?;
        Ok(REQUEST_INTERVAL)
    }

    async fn restart(&mut self, restart: RestartCatchUp) -> Result<Duration, JobError> {
        key_check::check(&self.context).await?;
        self.context.store.transaction("restart catch-up", &restart).await?;
        self.state.pass_began = None;
        // A cursor that WorkOS gives and refuses must not have us ask without a rest.
        if std::mem::replace(&mut self.state.replaced, true) {
            Err(JobError::CursorRefused)
        } else {
            Ok(REQUEST_INTERVAL)
        }
    }
}

/// The latest time at which the state was correct.
fn last_word(place: &CatchUpState) -> Timestamp {
    place.synced_through.map_or(place.range_decided_at, |at| at.max(place.range_decided_at))
}

/// The place was recorded under a wrong clock: it lies ahead of every clock. Releases that believed every `Date` header left such.
fn is_misdated(place: &CatchUpState, latest: Timestamp) -> bool {
    let ahead = |at: Timestamp| at > latest.plus_seconds(OVERLAP);
    place.synced_through.is_some_and(ahead)
        || ahead(place.range_decided_at)
        || (place.cursor.is_none() && place.range_start > latest)
}

/// The start that replaces a cursor (promise 5).
fn restart(place: &CatchUpState, now: Timestamp) -> RestartCatchUp {
    let recent = place.synced_through.filter(|at| *at >= now.plus_seconds(-TOO_OLD));
    let from = recent.map_or_else(|| now.plus_seconds(-RETENTION), |at| at.min(now).plus_seconds(-OVERLAP));
    RestartCatchUp {
        revision: place.revision,
        range_start: from,
        now,
        needs_reconcile: recent.is_none(),
        forget_synced_through: false,
    }
}

/// The page lists its newest event first. Its direction as a whole decides, because single events may be late; and IDs that
/// rise from event to event are those of a list in order, however late its events.
fn runs_backwards(events: &[Event]) -> bool {
    let dated: Vec<(Timestamp, &str)> =
        events.iter().filter_map(|event| Some((event.created_at?, event.id.as_str()))).collect();
    let (Some((first, _)), Some((last, _))) = (dated.first(), dated.last()) else { return false };
    let pairs = || dated.iter().zip(dated.iter().skip(1));
    let rises = pairs().filter(|((before, _), (after, _))| before < after).count();
    let falls = pairs().filter(|((before, _), (after, _))| before > after).count();
    let in_order = dated.is_sorted_by(|(_, before), (_, after)| before < after);
    *last < first.plus_seconds(-INVERSION) && falls > rises && !in_order
}

fn unreadable(event: &Event) -> bool {
    event.event_type == crate::workos::wire::UNREADABLE
}

/// Takes observations singly.
trait Singly: Sync {
    fn apply(&self, alone: &[Observation]) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// What made us panic.
    fn quarantine(&self, culprit: &[Observation]) -> impl Future<Output = Result<(), StoreError>> + Send;
}

impl Singly for Store {
    async fn apply(&self, alone: &[Observation]) -> Result<(), StoreError> {
        apply(self, Origin::CatchUp, alone).await.map(drop)
    }

    async fn quarantine(&self, culprit: &[Observation]) -> Result<(), StoreError> {
        for observation in culprit {
            tracing::error!(event.id = printable(observation), "an event made authkit-sync panic and is quarantined");
        }
        quarantine(self, Origin::CatchUp, culprit, "it made authkit-sync panic", &NoFollowUp).await
    }
}

/// Applies each alone, so that what makes us panic stops nothing else.
async fn one_by_one(to: &impl Singly, observations: &[Observation]) -> Result<(), StoreError> {
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
    fn a_page_runs_backwards_as_a_whole_or_not_at_all() {
        for (events, expected) in [
            (&[("a", 1_001), ("b", 1_002)][..], false),
            (&[("a", 1_050), ("b", 1_000), ("c", 1_049)], false),
            (&[("b", 1_000), ("a", 950)], false),
            (&[], false),
            (&[("a", 500)], false),
            // One late event, wherever it stands, even where the IDs tell nothing.
            (&[("c", 300), ("b", 1_000), ("a", 1_100), ("d", 1_200)], false),
            (&[("c", 1_000), ("b", 300), ("a", 1_100), ("d", 1_200)], false),
            (&[("c", 1_000), ("b", 1_100), ("a", 1_200), ("d", 300)], false),
            // Only the IDs can tell a late event from a short page that runs backwards.
            (&[("a", 1_000), ("b", 300)], false),
            (&[("b", 1_000), ("a", 300)], true),
            (&[("d", 1_200), ("c", 1_100), ("b", 1_100), ("a", 1_000)], true),
            // A late event in a list that runs backwards, and a small inversion there.
            (&[("d", 1_200), ("c", 300), ("b", 1_100), ("a", 1_000)], true),
            (&[("d", 1_200), ("c", 1_100), ("b", 1_110), ("a", 1_000)], true),
        ] {
            let page: Vec<Event> = events.iter().map(|(id, seconds)| event(id, *seconds)).collect();
            assert_eq!(runs_backwards(&page), expected, "{events:?}");
        }
    }

    #[test]
    fn a_replaced_cursor_goes_back_an_hour_or_to_the_retention_window() {
        let now = at(100 * 86_400);
        let place = |days: Option<i64>| CatchUpState {
            revision: 1,
            cursor: None,
            range_start: at(0),
            earliest_range_start: at(0),
            range_decided_at: at(0),
            synced_through: days.map(|days| now.plus_seconds(-days * 86_400)),
            needs_reconcile: false,
        };
        for (days, back, wanted) in
            [(Some(3), 3 * 86_400 + OVERLAP, false), (Some(26), RETENTION, true), (None, RETENTION, true)]
        {
            let restart = restart(&place(days), now);
            assert_eq!((restart.range_start, restart.needs_reconcile), (now.plus_seconds(-back), wanted), "{days:?}");
        }
    }

    /// Panics at an event named `bad`, as a defect of ours would.
    #[derive(Default)]
    struct Fragile {
        applied: Mutex<Vec<String>>,
        quarantined: Mutex<Vec<String>>,
    }

    fn ids(observations: &[Observation]) -> Vec<String> {
        observations.iter().map(printable).collect()
    }

    impl Singly for Fragile {
        async fn apply(&self, alone: &[Observation]) -> Result<(), StoreError> {
            assert_ne!(ids(alone), ["bad"]);
            self.applied.lock().unwrap().extend(ids(alone));
            Ok(())
        }

        async fn quarantine(&self, culprit: &[Observation]) -> Result<(), StoreError> {
            self.quarantined.lock().unwrap().extend(ids(culprit));
            Ok(())
        }
    }

    #[tokio::test]
    async fn what_panics_is_condemned_and_the_rest_is_applied() {
        let page = ["a", "bad", "c"].map(|id| Observation::Event(event(id, 0)));
        let fragile = Fragile::default();
        one_by_one(&fragile, &page).await.unwrap();
        assert_eq!(fragile.applied.into_inner().unwrap(), ["a", "c"]);
        assert_eq!(fragile.quarantined.into_inner().unwrap(), ["bad"]);
    }
}
