//! Backfill of the kinds other than users: organizations, then their memberships, then their roles.
//!
//! It starts by itself on an installation that has synced only users so far.

use std::time::Duration;

use super::walk::{Subject, WalkBackfill};
use super::{BackfillStep, COMPLETED_CHECK_INTERVAL, ListBackfill, log_completed};
use crate::domain::kinds::Kinds;
use crate::store::scans::{ScanCounts, ScanKind};
use crate::sync::job::{Job, JobContext, JobError, REQUEST_INTERVAL};
use crate::sync::list_scan::List;
use crate::sync::runner::Runner;

/// Runs the backfill of the kinds other than users.
pub type OrganizationsBackfill = Runner<OrganizationsBackfillJob>;

/// The backfill of the kinds other than users, as a job.
#[derive(Debug)]
pub struct OrganizationsBackfillJob {
    context: JobContext,
    dry_run: bool,
    organizations: ListBackfill,
    memberships: WalkBackfill,
    roles: WalkBackfill,
    /// The position of the current scan in `SCANS`.
    at: usize,
    /// Whether each scan is complete and is not repeated.
    skipped: [bool; SCANS.len()],
    counts: KindCounts,
}

/// The scans of this job, in order.
const SCANS: [ScanKind; 3] =
    [ScanKind::BackfillOrganizations, ScanKind::BackfillMemberships, ScanKind::BackfillOrganizationRoles];

/// The counts of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct KindCounts {
    /// Of organizations.
    pub organizations: ScanCounts,
    /// Of memberships.
    pub memberships: ScanCounts,
}

impl KindCounts {
    /// Returns the counts of all kinds together.
    #[must_use]
    pub fn total(&self) -> ScanCounts {
        let mut total = self.organizations;
        total.add(self.memberships);
        total
    }
}

/// The result of a step.
#[derive(Clone, Debug)]
pub enum OrganizationsStep {
    /// A page was applied, or must be read again.
    Page {
        /// The counts so far.
        counts: KindCounts,
        /// The last organization that was read completely.
        position: Option<String>,
    },
    /// Everything was read.
    Done(KindCounts),
}

impl OrganizationsBackfill {
    /// Creates a backfill. With `dry_run` it writes nothing and only counts the changes.
    #[must_use]
    pub fn new(context: JobContext, dry_run: bool) -> Self {
        let job = OrganizationsBackfillJob {
            context: context.clone(),
            dry_run,
            organizations: ListBackfill::new(List::Organizations, ScanKind::BackfillOrganizations, dry_run),
            memberships: WalkBackfill::new(Subject::Memberships, ScanKind::BackfillMemberships),
            roles: WalkBackfill::new(Subject::Roles, ScanKind::BackfillOrganizationRoles),
            at: 0,
            skipped: [false; SCANS.len()],
            counts: KindCounts::default(),
        };
        Self::of_job(context, job)
    }
}

impl OrganizationsBackfillJob {
    /// Returns whether a scan is complete, or its kind is disabled.
    fn is_skipped(&self, at: usize) -> bool {
        let Kinds { organizations, memberships, roles, .. } = self.context.kinds;
        let is_enabled = match at {
            0 => organizations,
            1 => organizations && memberships,
            2 => organizations && roles,
            _ => return false,
        };
        !is_enabled || self.skipped.get(at).is_some_and(|skipped| *skipped)
    }

    /// Passes over the scans that are skipped. Returns the last step if no scan is left.
    fn end(&mut self) -> Option<OrganizationsStep> {
        while self.is_skipped(self.at) {
            self.at += 1;
        }
        if self.at < SCANS.len() {
            return None;
        }
        let counts = self.counts;
        self.reset();
        Some(OrganizationsStep::Done(counts))
    }

    fn scan_completed(&mut self) {
        if self.at == 0 && self.dry_run {
            let organizations = std::mem::take(&mut self.organizations.listed);
            self.memberships.dry_run(organizations);
            // The roles of organizations are not counted.
            self.roles.dry_run(Vec::new());
        }
        self.at += 1;
    }
}

impl Job for OrganizationsBackfillJob {
    const NAME: &'static str = "backfill_organizations";

    type Output = OrganizationsStep;

    fn needs_lease(&self) -> bool {
        !self.dry_run
    }

    async fn rest_if_idle(&mut self) -> Result<Option<Duration>, JobError> {
        for (scan, skipped) in SCANS.into_iter().zip(&mut self.skipped) {
            let state = self.context.store.scan_state(scan).await?;
            *skipped = state.completed_at.is_some() && state.started_at.is_none();
        }
        let is_idle = (0..SCANS.len()).all(|at| self.is_skipped(at));
        Ok(is_idle.then_some(COMPLETED_CHECK_INTERVAL))
    }

    fn reset(&mut self) {
        self.at = 0;
        self.counts = KindCounts::default();
        self.organizations.run = None;
        self.memberships.reset();
        self.roles.reset();
    }

    /// Applies one page of organizations or memberships, or one list of roles.
    async fn step(&mut self) -> Result<OrganizationsStep, JobError> {
        if let Some(done) = self.end() {
            return Ok(done);
        }
        let step = match self.at {
            0 => self.organizations.step(&self.context).await?,
            1 => self.memberships.step(&self.context).await?,
            _ => self.roles.step(&self.context).await?,
        };
        let (counts, position, is_complete) = match step {
            BackfillStep::Page { counts, position } => (counts, position, false),
            BackfillStep::Done(counts) => (counts, None, true),
        };
        match self.at {
            0 => self.counts.organizations = counts,
            1 => self.counts.memberships = counts,
            _ => {}
        }
        if is_complete {
            self.scan_completed();
            // A further step would not come: `rest_if_idle` finds that every scan is complete.
            if let Some(done) = self.end() {
                return Ok(done);
            }
        }
        Ok(OrganizationsStep::Page { counts: self.counts, position })
    }

    fn is_last(step: &OrganizationsStep) -> bool {
        matches!(step, OrganizationsStep::Done(_))
    }

    fn rest_after(&self, step: OrganizationsStep) -> Duration {
        let OrganizationsStep::Done(counts) = step else { return REQUEST_INTERVAL };
        log_completed("backfill of organizations", &counts.organizations);
        log_completed("backfill of memberships", &counts.memberships);
        COMPLETED_CHECK_INTERVAL
    }
}
