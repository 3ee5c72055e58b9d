//! A walk over the stored organizations. WorkOS lists memberships and roles only for one organization at a time.
//!
//! The position is the last organization that was read completely. The walk skips an organization that WorkOS no longer knows.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::{BackfillStep, StorePosition, add_counts};
use crate::domain::event::{Observation, Origin};
use crate::store::scans::{ScanCounts, ScanKind, ScanState};
use crate::store::{Store, StoreError};
use crate::sync::job::{JobContext, JobError};
use crate::sync::list_scan::{List, ListPosition, ListScan};
use crate::sync::role_lists::read_list;
use crate::sync::{apply_with, drift};
use crate::workos::api::ApiError;

/// Number of organizations that are read together from the table.
const BATCH: i64 = 500;

/// What a walk reads for each organization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// The memberships in every status.
    Memberships,
    /// The organization's own roles.
    Roles,
}

/// A walk.
#[derive(Debug)]
pub(super) struct WalkBackfill {
    subject: Subject,
    kind: ScanKind,
    /// The organizations of a dry run. It does not write them, so the table may not contain them.
    dry_run: Option<VecDeque<String>>,
    run: Option<WalkRun>,
}

#[derive(Debug)]
struct WalkRun {
    /// The organizations that the walk reads next, in the order of the table.
    queue: VecDeque<String>,
    /// The scan of the memberships of the first organization in `queue`.
    scan: Option<ListScan>,
    position: Option<ListPosition>,
    counts: ScanCounts,
    began: Instant,
    /// Number of organizations that this process has completed.
    done: u32,
}

impl WalkBackfill {
    pub(super) fn new(subject: Subject, kind: ScanKind) -> Self {
        Self { subject, kind, dry_run: None, run: None }
    }

    /// Counts the changes for these organizations, and writes nothing.
    pub(super) fn dry_run(&mut self, organizations: Vec<String>) {
        self.dry_run = Some(organizations.into());
    }

    pub(super) fn reset(&mut self) {
        self.run = None;
    }

    /// Reads one page of memberships, or one list of roles.
    pub(super) async fn step(&mut self, context: &JobContext) -> Result<BackfillStep, JobError> {
        let mut run = match self.run.take() {
            Some(run) => run,
            None => self.begin(&context.store).await?,
        };
        match self.advance(context, &mut run).await {
            Ok(false) => {
                let position = run.position.as_ref().map(|(id, _)| id.clone());
                let step = BackfillStep::Page { counts: run.counts, position };
                self.run = Some(run);
                Ok(step)
            }
            Ok(true) => Ok(BackfillStep::Done(run.counts)),
            // Another process made progress, which must be read from the database.
            Err(error @ (JobError::Store(StoreError::Overtaken) | JobError::Endless)) => Err(error),
            Err(error) => {
                self.run = Some(run);
                Err(error)
            }
        }
    }

    async fn begin(&self, store: &Store) -> Result<WalkRun, JobError> {
        let ScanState { position, started_at, counts, .. } = store.scan_state(self.kind).await?;
        let (began, done) = (Instant::now(), 0);
        let mut run =
            WalkRun { queue: VecDeque::new(), scan: None, position: None, counts: ScanCounts::default(), began, done };
        if self.dry_run.is_none() && started_at.is_some() {
            (run.position, run.counts) = (position, counts);
        }
        Ok(run)
    }

    /// Returns whether the walk is complete.
    async fn advance(&mut self, context: &JobContext, run: &mut WalkRun) -> Result<bool, JobError> {
        if run.queue.is_empty() && !self.next_organizations(context, run).await? {
            return Ok(true);
        }
        let Some(organization) = run.queue.front().cloned() else { return Ok(true) };
        match self.subject {
            Subject::Memberships => self.read_memberships(context, run, organization).await?,
            Subject::Roles => {
                if self.dry_run.is_none() {
                    read_list(context, &organization, Origin::Backfill).await?;
                }
                self.finish_organization(context, run, organization, &[]).await?;
            }
        }
        Ok(false)
    }

    /// Reads the next organizations from the table. Returns false, and completes the walk, if there are none.
    async fn next_organizations(&mut self, context: &JobContext, run: &mut WalkRun) -> Result<bool, JobError> {
        let store = &context.store;
        if let Some(organizations) = &mut self.dry_run {
            run.queue = std::mem::take(organizations);
            return Ok(!run.queue.is_empty());
        }
        if run.position.is_none() {
            store.begin_scan(self.kind, context.clock.now()).await?;
        }
        let after = run.position.as_ref().map_or("", |(id, _)| id.as_str());
        run.queue = store.live_organization_ids(after, BATCH).await?.into();
        if run.queue.is_empty() {
            let position = run.position.as_ref();
            let complete =
                StorePosition { kind: self.kind, before: run.counts, from: position, to: position, is_complete: true };
            apply_with(store, Origin::Backfill, &[], &complete).await?;
            return Ok(false);
        }
        let left = store.live_organizations_after(after).await?;
        // Before the first organization there is nothing to estimate from.
        let estimate =
            run.began.elapsed().saturating_mul(u32::try_from(left).unwrap_or(u32::MAX)).checked_div(run.done);
        tracing::info!(
            scan = self.kind.as_str(),
            organizations_left = left,
            objects = run.counts.total(),
            estimated_seconds = estimate.map(|estimate| estimate.as_secs()),
            "backfill of organizations continues"
        );
        Ok(true)
    }

    async fn read_memberships(
        &self,
        context: &JobContext,
        run: &mut WalkRun,
        organization: String,
    ) -> Result<(), JobError> {
        // The scan moves only after the commit, so that a page that could not be applied is requested again.
        let mut scan = run.scan.clone().unwrap_or_else(|| ListScan::of(List::Memberships(organization.clone())));
        let page = match scan.next(&context.api).await {
            // WorkOS does not know the organization any more. A delete event or a reconcile deletes its row.
            Err(JobError::Api(ApiError::Refused { status: 404, .. })) => None,
            Ok(None) => {
                run.scan = Some(scan);
                return Ok(());
            }
            other => other?,
        };
        match page {
            Some(page) if !page.end => {
                self.apply(context, run, &page.observations, None).await?;
                run.scan = Some(scan);
                Ok(())
            }
            page => {
                let observations = page.map(|page| page.observations).unwrap_or_default();
                self.finish_organization(context, run, organization, &observations).await
            }
        }
    }

    /// Applies memberships. With `position`, they are the last ones of the organization, and the position moves to it.
    async fn apply(
        &self,
        context: &JobContext,
        run: &mut WalkRun,
        observations: &[Observation],
        position: Option<&ListPosition>,
    ) -> Result<(), JobError> {
        let store = &context.store;
        let applied = if self.dry_run.is_some() {
            drift::preview(store, observations).await?
        } else {
            let from = run.position.as_ref();
            let store_position =
                StorePosition { kind: self.kind, before: run.counts, from, to: position.or(from), is_complete: false };
            apply_with(store, Origin::Backfill, observations, &store_position).await?
        };
        add_counts(&mut run.counts, &applied);
        Ok(())
    }

    /// Applies the last memberships of an organization, and moves the position after it.
    async fn finish_organization(
        &self,
        context: &JobContext,
        run: &mut WalkRun,
        organization: String,
        observations: &[Observation],
    ) -> Result<(), JobError> {
        let position = (organization, None);
        self.apply(context, run, observations, Some(&position)).await?;
        run.position = Some(position);
        run.queue.pop_front();
        run.scan = None;
        run.done = run.done.saturating_add(1);
        Ok(())
    }
}
