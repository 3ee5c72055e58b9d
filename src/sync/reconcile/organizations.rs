//! Reconcile of the kinds other than users (promise 6): compares WorkOS's organizations, memberships and roles with the tables.
//!
//! It reads the memberships and roles of every listed organization. After that, it reads each live row that was not listed by ID,
//! and deletes the row only if WorkOS answers 404. One 404 of an organization confirms the end of all its memberships. They do not
//! count towards the limit, and neither do memberships of deleted users, which the write path ends.

use std::time::Duration;

pub use super::organization_run::{OrganizationsReconcileStep, OrganizationsReport};
use super::organization_run::{Phase, Run, Unlisted};
use super::{ALLOWED_DELETIONS, ALLOWED_DELETIONS_DIVISOR, BATCH, DUE_CHECK_INTERVAL, Mode, hash};
use crate::domain::decide::Effect;
use crate::domain::event::{Observation, Origin};
use crate::domain::kinds::Kinds;
use crate::domain::object::Kind;
use crate::domain::timestamp::Timestamp;
use crate::store::StoreError;
use crate::store::role_lists::ENVIRONMENT;
use crate::store::scans::{SaveScanResult, ScanCounts, ScanKind};
use crate::sync::backfill::organizations::KindCounts;
use crate::sync::backfill::{add_counts, log_completed};
use crate::sync::drift::{self, Drift, DriftKind};
use crate::sync::job::{Job, JobContext, JobError, REQUEST_INTERVAL};
use crate::sync::list_scan::{List, ListScan};
use crate::sync::role_lists::reconcile_list;
use crate::sync::runner::Runner;
use crate::sync::{Applied, apply, key_check};
use crate::workos::api::{ApiError, Found, PAGE};

/// Runs the reconcile of the kinds other than users.
pub type OrganizationsReconcile = Runner<OrganizationsReconcileJob>;

/// The reconcile of the kinds other than users, as a job.
#[derive(Debug)]
pub struct OrganizationsReconcileJob {
    context: JobContext,
    mode: Mode,
    /// Time from a completed reconcile to the next one. `None`: reconcile only after events may have been lost.
    interval: Option<Duration>,
    /// When the process began. Before the first complete scan, the interval starts at this time.
    began: Timestamp,
    run: Option<Run>,
}

impl OrganizationsReconcile {
    /// Creates a reconcile. It is due when `interval` has passed since the last complete scan.
    #[must_use]
    pub fn new(context: JobContext, mode: Mode, interval: Option<Duration>) -> Self {
        let interval = interval.map(|interval| context.jittered(interval));
        let began = context.clock.now();
        let job = OrganizationsReconcileJob { context: context.clone(), mode, interval, began, run: None };
        Self::of_job(context, job)
    }
}

impl Job for OrganizationsReconcileJob {
    const NAME: &'static str = "reconcile_organizations";

    type Output = OrganizationsReconcileStep;

    fn needs_lease(&self) -> bool {
        self.mode == Mode::Repair
    }

    async fn rest_if_idle(&mut self) -> Result<Option<Duration>, JobError> {
        let is_idle = self.run.is_none() && !self.is_due().await?;
        Ok(is_idle.then(|| self.context.jittered(DUE_CHECK_INTERVAL)))
    }

    fn reset(&mut self) {
        self.run = None;
    }

    /// Does one piece of work. An interrupted reconcile starts from the beginning.
    async fn step(&mut self) -> Result<OrganizationsReconcileStep, JobError> {
        if !self.context.kinds.organizations {
            return Ok(OrganizationsReconcileStep::Done(OrganizationsReport::default()));
        }
        let mut run = match self.run.take() {
            Some(run) => run,
            None => {
                key_check::check(&self.context).await?;
                Run::new()
            }
        };
        match self.advance(&mut run).await {
            Ok(false) => {
                let (counts, unconfirmed) = (run.report.counts, run.to_read.len());
                self.run = Some(run);
                Ok(OrganizationsReconcileStep::InProgress { counts, unconfirmed })
            }
            Ok(true) => Ok(OrganizationsReconcileStep::Done(run.report)),
            Err(error @ (JobError::TooMany { .. } | JobError::EmptyList { .. } | JobError::Endless)) => Err(error),
            Err(error @ JobError::Store(StoreError::Overtaken)) => Err(error),
            Err(error) => {
                self.run = Some(run);
                Err(error)
            }
        }
    }

    fn is_last(step: &OrganizationsReconcileStep) -> bool {
        matches!(step, OrganizationsReconcileStep::Done(_))
    }

    fn rest_after(&self, step: OrganizationsReconcileStep) -> Duration {
        let OrganizationsReconcileStep::Done(OrganizationsReport { counts, drift }) = step else {
            return REQUEST_INTERVAL;
        };
        log_completed("reconcile of organizations", &counts.organizations);
        log_completed("reconcile of memberships", &counts.memberships);
        for difference in drift {
            tracing::warn!(drift = %difference, "reconcile cannot repair this difference");
        }
        self.context.jittered(DUE_CHECK_INTERVAL)
    }
}

impl OrganizationsReconcileJob {
    async fn is_due(&self) -> Result<bool, JobError> {
        let store = &self.context.store;
        if !self.context.kinds.organizations {
            return Ok(false);
        }
        let is_needed = store.catch_up_state().await?.is_some_and(|state| state.needs_organization_reconcile);
        if is_needed || store.organization_deletions_accepted().await? {
            return Ok(true);
        }
        let Some(interval) = self.interval else { return Ok(false) };
        let scans = [ScanKind::BackfillMemberships, ScanKind::ReconcileOrganizations];
        // On an installation that has synced only users so far, the backfill comes first.
        let seconds = i64::try_from(interval.as_secs()).unwrap_or(i64::MAX);
        let is_new = self.context.clock.now() < self.began.plus_seconds(seconds);
        let mut was_completed = false;
        for scan in scans {
            was_completed |= store.scan_state(scan).await?.completed_at.is_some();
        }
        Ok((was_completed || !is_new) && store.is_scan_due(&scans, interval).await?)
    }

    /// Does the next piece of work. Returns whether the reconcile is complete.
    async fn advance(&self, run: &mut Run) -> Result<bool, JobError> {
        match run.phase.clone() {
            Phase::List => self.next_organizations(run).await?,
            Phase::Walk => self.walk(run).await?,
            Phase::Compare(Kind::Membership, after) => self.compare_memberships(run, &after).await?,
            Phase::Compare(_, after) => self.compare_organizations(run, &after).await?,
            Phase::ConfirmDeleted => self.confirm_deleted(run).await?,
            Phase::ReadById(kind) => self.read_by_id(run, kind).await?,
            Phase::Finish => {
                self.finish(run).await?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn next_organizations(&self, run: &mut Run) -> Result<(), JobError> {
        let mut scan = run.organizations.clone();
        let Some(page) = scan.next(&self.context.api).await? else {
            run.organizations = scan;
            return Ok(());
        };
        if run.started_at.is_none() && self.mode == Mode::Repair {
            for kind in [ScanKind::ReconcileOrganizations, ScanKind::ReconcileMemberships] {
                self.context.store.begin_scan(kind, page.observed_at).await?;
            }
        }
        run.started_at.get_or_insert(page.observed_at);
        let applied = self.apply_listed(run, Kind::Organization, &page.observations).await?;
        for (listed, applied) in page.observations.iter().zip(&applied) {
            let Some((_, id)) = listed.object() else { continue };
            run.has_organizations = true;
            if matches!(applied.effect, Effect::AlreadyDeleted { .. }) {
                run.deleted_here.entry(id.to_owned()).or_default();
            } else {
                run.queue.push_back(id.to_owned());
            }
        }
        run.organizations = scan;
        if page.end {
            run.phase = Phase::Walk;
        }
        Ok(())
    }

    /// Reads one page of memberships, or one list of roles.
    async fn walk(&self, run: &mut Run) -> Result<(), JobError> {
        let Kinds { memberships, roles, .. } = self.context.kinds;
        let Some(organization) = run.queue.front().cloned() else {
            run.phase = Phase::Compare(Kind::Organization, String::new());
            return Ok(());
        };
        if memberships && !run.are_memberships_read && organization != ENVIRONMENT {
            return self.walk_memberships(run, organization).await;
        }
        if roles {
            let drift = reconcile_list(&self.context, &organization, self.mode == Mode::Repair).await?;
            run.report.drift.extend(drift);
        }
        run.queue.pop_front();
        run.are_memberships_read = false;
        Ok(())
    }

    async fn walk_memberships(&self, run: &mut Run, organization: String) -> Result<(), JobError> {
        let mut scan = run.memberships.clone().unwrap_or_else(|| ListScan::of(List::Memberships(organization.clone())));
        let page = match scan.next(&self.context.api).await {
            Err(JobError::Api(ApiError::Refused { status: 404, .. })) => {
                // The organization has probably been deleted since it was listed. The next reconcile reads it by ID.
                run.unread.insert(organization);
                (run.memberships, run.are_memberships_read) = (None, true);
                return Ok(());
            }
            other => other?,
        };
        if let Some(page) = &page {
            self.apply_listed(run, Kind::Membership, &page.observations).await?;
        }
        let is_end = page.is_some_and(|page| page.end);
        run.are_memberships_read = is_end;
        run.memberships = (!is_end).then_some(scan);
        Ok(())
    }

    /// Applies listed objects that differ, counts them, and records that they were listed.
    async fn apply_listed(
        &self,
        run: &mut Run,
        kind: Kind,
        observations: &[Observation],
    ) -> Result<Vec<Applied>, JobError> {
        let store = &self.context.store;
        let applied = if self.mode == Mode::Repair {
            drift::apply_differing(store, observations).await?
        } else {
            let applied = drift::preview(store, observations).await?;
            let listed = observations.iter().zip(&applied);
            run.report.drift.extend(listed.filter_map(|(listed, applied)| Drift::of(listed, &applied.effect)));
            applied
        };
        let mut counts = ScanCounts::default();
        add_counts(&mut counts, &applied);
        // For a reconcile, this is the number of objects that it deletes.
        counts.tombstoned = 0;
        run.counts_of(kind).add(counts);
        for (_, id) in observations.iter().filter_map(Observation::object) {
            run.seen.insert(hash(id));
            run.samples.entry(kind).or_insert_with(|| id.to_owned());
        }
        Ok(applied)
    }

    async fn compare_organizations(&self, run: &mut Run, after: &str) -> Result<(), JobError> {
        let rows = self.context.store.live_organizations(after, BATCH).await?;
        let last = rows.last().map(|row| row.id.clone());
        for row in rows {
            run.live += 1;
            if !run.seen.contains(&hash(&row.id)) && run.is_expected(row.created_at) {
                run.to_read.push_back(Unlisted { id: row.id, of: None });
            }
        }
        run.phase = match last {
            Some(last) => Phase::Compare(Kind::Organization, last),
            None => {
                let accepted = self.limit(run).await?;
                if !run.has_organizations && !run.to_read.is_empty() && !accepted {
                    let live = i64::try_from(run.live).unwrap_or(i64::MAX);
                    return Err(JobError::EmptyList { live, kind: Kind::Organization });
                }
                Phase::ReadById(Kind::Organization)
            }
        };
        Ok(())
    }

    /// Sets the limit of deletions from the number of live rows. Returns whether an operator has accepted all.
    async fn limit(&self, run: &mut Run) -> Result<bool, JobError> {
        let accepted = self.mode == Mode::Check || self.context.store.organization_deletions_accepted().await?;
        run.max_deletions = (!accepted).then_some((run.live / ALLOWED_DELETIONS_DIVISOR).max(ALLOWED_DELETIONS));
        Ok(accepted)
    }

    async fn compare_memberships(&self, run: &mut Run, after: &str) -> Result<(), JobError> {
        let rows = self.context.store.live_memberships(after, BATCH).await?;
        let last = rows.last().map(|row| row.id.clone());
        for row in rows {
            run.live += 1;
            let Some(organization) = row.of.as_ref().map(|of| of.organization_id.clone()) else { continue };
            let unlisted = Unlisted { id: row.id, of: row.of };
            if let Some(at) = run.gone_organizations.get(&organization) {
                run.ended.push((unlisted, *at));
            } else if row.is_organization_deleted {
                run.deleted_here.entry(organization).or_default().push(unlisted);
            } else if !run.seen.contains(&hash(&unlisted.id))
                && run.is_expected(row.created_at)
                && !run.unread.contains(&organization)
            {
                run.to_read.push_back(unlisted);
            }
        }
        run.phase = match last {
            Some(last) => Phase::Compare(Kind::Membership, last),
            None => {
                self.limit(run).await?;
                Phase::ReadById(Kind::Membership)
            }
        };
        Ok(())
    }

    async fn read_by_id(&self, run: &mut Run, kind: Kind) -> Result<(), JobError> {
        let Some(unlisted) = run.to_read.front().cloned() else {
            run.live = 0;
            run.phase = match kind {
                Kind::Organization if self.context.kinds.memberships => Phase::Compare(Kind::Membership, String::new()),
                _ => Phase::ConfirmDeleted,
            };
            return Ok(());
        };
        match self.context.api.object(kind, &unlisted.id).await? {
            Found::Unknown { at, has_id } => {
                run.note_unknown(kind, has_id);
                if kind == Kind::Organization {
                    run.gone_organizations.insert(unlisted.id, at);
                } else {
                    run.gone_memberships.push((unlisted, at));
                }
            }
            Found::Live(listed) => {
                run.read_by_id.insert(kind);
                if self.mode == Mode::Repair {
                    apply(&self.context.store, Origin::Reconcile, &[*listed]).await?;
                }
            }
        }
        run.to_read.pop_front();
        let gone = if kind == Kind::Organization { run.gone_organizations.len() } else { run.gone_memberships.len() };
        match run.max_deletions {
            Some(bound) if gone > bound => Err(JobError::TooMany { bound, kind }),
            _ => Ok(()),
        }
    }

    /// Reads one organization by ID that is deleted in the table. A 404 confirms that all its memberships have ended.
    async fn confirm_deleted(&self, run: &mut Run) -> Result<(), JobError> {
        let Some(organization) = run.deleted_here.keys().next().cloned() else {
            run.phase = Phase::Finish;
            return Ok(());
        };
        let found = self.context.api.object(Kind::Organization, &organization).await?;
        let memberships = run.deleted_here.remove(&organization).unwrap_or_default();
        match found {
            Found::Unknown { at, has_id } => {
                run.note_unknown(Kind::Organization, has_id);
                run.ended.extend(memberships.into_iter().map(|membership| (membership, at)));
            }
            Found::Live(_) => {
                run.read_by_id.insert(Kind::Organization);
                run.report.drift.push(Drift { id: organization, kind: DriftKind::Contradicted });
            }
        }
        Ok(())
    }

    async fn finish(&self, run: &mut Run) -> Result<(), JobError> {
        for kind in run.needs_confirmation.iter().filter(|kind| !run.read_by_id.contains(*kind)) {
            match run.samples.get(kind) {
                Some(id) => {
                    if !matches!(self.context.api.object(*kind, id).await?, Found::Live(_)) {
                        return Err(JobError::NotConfirmed);
                    }
                }
                None => key_check::check_reads_by_id(&self.context).await?,
            }
        }
        let gone = run.deletions();
        if self.mode == Mode::Check {
            let gone = gone.into_iter().map(|(gone, _)| Drift { id: gone.id, kind: DriftKind::Gone });
            run.report.drift.extend(gone);
            return Ok(());
        }
        for slice in gone.chunks(PAGE) {
            let gone: Vec<Observation> = slice
                .iter()
                .map(|(object, at)| Observation::Gone { object: object.clone(), confirmed_at: *at })
                .collect();
            apply(&self.context.store, Origin::Reconcile, &gone).await?;
        }
        let KindCounts { organizations, memberships } = run.report.counts;
        let scans = [
            (self.context.kinds.memberships, ScanKind::ReconcileMemberships, memberships),
            (true, ScanKind::ReconcileOrganizations, organizations),
        ];
        for (_, kind, counts) in scans.into_iter().filter(|(is_enabled, ..)| *is_enabled) {
            self.context.store.complete_scan(&SaveScanResult { kind, counts, is_complete: true }).await?;
        }
        Ok(())
    }
}
