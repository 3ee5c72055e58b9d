//! Backfill: every user WorkOS has, into the table.
//!
//! Each page is applied and the position behind it stored in one transaction, so that an interrupted backfill goes on where
//! it was. It is safe beside webhooks and catch-up, because versions decide; and running it again changes nothing.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use tokio::sync::Mutex;

use super::driver::{BREATH, Context, Driver, Trouble};
use super::walk::{Leg, Position, Walk};
use super::{Applied, Then, apply_then, drift, guard};
use crate::domain::change::Difference;
use crate::domain::event::{Origin, Outcome};
use crate::store::walks::{Counts, Kind, Standing, Step as Move, Tally};
use crate::store::{StoreError, Work};

/// How often a process looks whether a completed backfill is still the truth (`rebind` undoes it).
const COMPLETED: Duration = Duration::from_secs(60);

/// The driver.
#[derive(Debug)]
pub struct Backfill {
    context: Context,
    dry_run: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    under_way: Option<UnderWay>,
    failures: u32,
}

#[derive(Debug)]
struct UnderWay {
    walk: Walk,
    /// The position in the database; `None` at the beginning.
    position: Option<Position>,
    counts: Counts,
    /// The walk is in the database.
    recorded: bool,
}

/// What a step did.
#[derive(Clone, Debug)]
pub enum Step {
    /// Another process does it.
    Standby,
    /// A page was applied, or is to be asked for again.
    Page {
        /// So far.
        counts: Counts,
        /// The last user of the page.
        position: Option<String>,
    },
    /// The last page was.
    Done(Counts),
}

impl Driver for Backfill {
    const JOB: &'static str = "backfill";

    async fn tick(&self) -> Duration {
        let outcome = self.unless_completed().await;
        let mut state = self.state.lock().await;
        self.context.rest(Self::JOB, &mut state.failures, outcome).await
    }

    async fn keep(&self) {
        self.context.keep(Self::JOB).await;
    }
}

impl Backfill {
    /// With `dry_run` nothing is written: it only counts what it would do.
    #[must_use]
    pub fn new(context: Context, dry_run: bool) -> Self {
        Self { context, dry_run, state: Mutex::default() }
    }

    async fn unless_completed(&self) -> Result<Option<Duration>, Trouble> {
        if self.context.store.standing(Kind::Backfill).await?.completed_at.is_some() {
            return Ok(Some(COMPLETED));
        }
        match self.step().await? {
            Step::Standby => Ok(None),
            Step::Page { .. } => Ok(Some(BREATH)),
            Step::Done(counts) => {
                tracing::info!(
                    new = counts.new,
                    updated = counts.updated,
                    unchanged = counts.unchanged,
                    tombstoned = counts.tombstoned,
                    quarantined = counts.quarantined,
                    "backfill completed"
                );
                Ok(Some(COMPLETED))
            }
        }
    }

    /// One step: a page. A backfill that was interrupted goes on; else one begins.
    ///
    /// # Errors
    /// [`Trouble`]: this step can be tried again.
    pub async fn step(&self) -> Result<Step, Trouble> {
        let mut state = self.state.lock().await;
        if !self.dry_run && !self.context.leads(Self::JOB).await? {
            state.under_way = None;
            return Ok(Step::Standby);
        }
        let mut under_way = match state.under_way.take() {
            Some(under_way) => under_way,
            None => self.begin().await?,
        };
        match self.advance(&mut under_way).await {
            Ok(false) => {
                let step = Step::Page {
                    counts: under_way.counts,
                    position: under_way.position.as_ref().map(|(id, _)| id.clone()),
                };
                state.under_way = Some(under_way);
                Ok(step)
            }
            Ok(true) => {
                self.context.yield_job(Self::JOB).await;
                Ok(Step::Done(under_way.counts))
            }
            // What another process did meanwhile has to be read anew.
            Err(trouble @ (Trouble::Store(StoreError::Overtaken) | Trouble::Endless)) => Err(trouble),
            Err(trouble) => {
                state.under_way = Some(under_way);
                Err(trouble)
            }
        }
    }

    async fn begin(&self) -> Result<UnderWay, Trouble> {
        guard::check(&self.context).await?;
        let Standing { position, started_at, counts, .. } = self.context.store.standing(Kind::Backfill).await?;
        if started_at.is_some() && !self.dry_run {
            tracing::info!(position = position.as_ref().map(|(id, _)| id.as_str()), "an interrupted backfill goes on");
            return Ok(UnderWay { walk: Walk::from(position.clone()), position, counts, recorded: true });
        }
        Ok(UnderWay { walk: Walk::default(), position: None, counts: Counts::default(), recorded: false })
    }

    /// Takes the next page; `true` when it was the last.
    async fn advance(&self, under_way: &mut UnderWay) -> Result<bool, Trouble> {
        let store = &self.context.store;
        // The walk moves with the database: a page that could not be applied is asked for again.
        let mut walk = under_way.walk.clone();
        let leg = walk.next(&self.context.api).await?;
        let Some(leg) = leg else {
            under_way.walk = walk;
            return Ok(false);
        };
        if self.dry_run {
            drift::compare(store, &leg.observations, &mut under_way.counts).await?;
        } else {
            if !under_way.recorded {
                store.begin_walk(Kind::Backfill, leg.observed_at).await?;
                under_way.recorded = true;
            }
            let from = under_way.position.as_ref().map(|(id, _)| id.as_str());
            let page_done = PageDone { before: under_way.counts, from, leg: &leg };
            let applied = apply_then(store, Origin::Backfill, &leg.observations, &page_done).await?;
            tally(&mut under_way.counts, &applied);
        }
        under_way.walk = walk;
        under_way.position = leg.position;
        Ok(leg.end)
    }
}

/// Counts what became of a page.
pub(super) fn tally(counts: &mut Counts, applied: &[Applied]) {
    for applied in applied {
        match (applied.outcome, applied.difference) {
            (Outcome::Quarantined, _) => counts.quarantined += 1,
            (_, Some(Difference::Created)) => counts.new += 1,
            (_, Some(Difference::Updated)) => counts.updated += 1,
            _ if applied.deleted => counts.tombstoned += 1,
            _ => counts.unchanged += 1,
        }
    }
}

/// Moves the backfill behind a page, in the page's own transaction.
struct PageDone<'a> {
    before: Counts,
    from: Option<&'a str>,
    leg: &'a Leg,
}

impl Then for PageDone<'_> {
    async fn after(&self, connection: &mut PgConnection, applied: &[Applied]) -> Result<(), StoreError> {
        let mut counts = self.before;
        tally(&mut counts, applied);
        let position = self.leg.position.as_ref();
        Move { kind: Kind::Backfill, from: self.from, position }.run(connection).await?;
        Tally { kind: Kind::Backfill, counts, is_complete: self.leg.end }.run(connection).await
    }
}
