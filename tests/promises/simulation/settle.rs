//! All faults end. Then the database must converge to WorkOS's state.

use authkit_sync::domain::decide::Stored;
use authkit_sync::store::scans::ScanKind;
use authkit_sync::sync::inbox;
use authkit_sync::sync::job::JobError;
use authkit_sync::sync::reconcile::ReconcileStep;
use authkit_sync::sync::reconcile::organizations::OrganizationsReconcileStep;
use authkit_sync::sync::refresh::RefreshStep;
use authkit_sync::sync::runner::BackgroundLoop;

use super::environment::LastState;
use super::replica::JobKind;
use super::world::{ALWAYS, Feeds, World};

impl World<'_> {
    /// Ends all faults, and completes all open work, often with the same processes.
    pub(super) async fn settle(&mut self) {
        self.here_mut().heal();
        for at in 0..self.replicas.len() {
            if self.is_stray(at) || self.random.bool() {
                self.restart(at).await;
            }
            self.replicas[at].clock.set(self.clock.now());
        }
        self.pass(150_000);
        self.take_deliveries().await;
        self.insist("drop trigger app_refuse on workos.user_records").await;
        self.insist("drop trigger app_refuse on workos.organization_records").await;
        self.expire_leases().await;
        if self.feeds != Feeds::WebhooksOnly {
            self.catch_up().await;
            self.retry_quarantined().await;
            if !self.here().has_gaps() {
                self.compare(false).await;
            }
            // A scan may have started long ago.
            if self.reconcile().await && self.reconcile().await {
                self.compare(true).await;
                self.check_no_foreign_users().await;
            }
        } else {
            self.retry_quarantined().await;
            self.compare(false).await;
        }
        self.look().await;
        self.erase_all().await;
        if !self.here().has_gaps() {
            self.compare_members().await;
        }
        if self.feeds != Feeds::WebhooksOnly && self.here().has_members {
            self.backfill_organizations().await;
            self.reconcile_organizations().await;
            self.reconcile_organizations().await;
            self.refresh().await;
            self.compare_everything().await;
        }
        self.handle_all().await;
        self.application_agrees().await;
    }

    async fn take_deliveries(&mut self) {
        while let Some((held, _)) = self.here_mut().deliveries.pop() {
            let mut tries = 0;
            while self.replicas[tries % 2].take(&held, self.clock.now(), ALWAYS).await != Some(200) {
                tries += 1;
                assert!(tries < 40, "{} is never taken", held.event_id);
            }
        }
    }

    /// The operator retries what PostgreSQL refused.
    async fn retry_quarantined(&self) {
        let context = &self.replicas[0].context;
        for _ in 0..20 {
            // The pool can contain connections that a fault has closed.
            if let Ok(retried) = inbox::retry(&context.store, context.kinds, None).await {
                let is_refused = |reason: &String| reason.contains("SQLSTATE");
                return assert!(!retried.quarantined.values().any(is_refused), "{retried:?}");
            }
        }
        panic!("the retry of quarantined events does not succeed");
    }

    async fn catch_up(&mut self) {
        let store = self.replicas[0].context.store.clone();
        for _ in 0..400 {
            self.pass(100);
            self.age_leases().await;
            for replica in &self.replicas {
                replica.catch_up.tick().await;
                replica.backfill.tick().await;
            }
            self.look().await;
            // Only these two jobs: the status of a reconcile can still contain an old error.
            let error = [JobKind::CatchUp, JobKind::Backfill].map(|job| self.replicas[0].error(job));
            let causes = ["another environment", "another server"];
            let is_rejected = |error: &String| causes.iter().any(|cause| error.contains(cause));
            if error.iter().flatten().any(is_rejected) {
                assert!(self.here().has_gaps(), "the key check fails: {error:?}");
                store.accept_deletions().await.unwrap();
            }
            let through = store.catch_up_state().await.unwrap().and_then(|place| place.synced_through);
            let current = through.is_some_and(|through| through > self.clock.now().plus_seconds(-60));
            if current && store.scan_state(ScanKind::Backfill).await.unwrap().completed_at.is_some() {
                return;
            }
        }
        let statuses: Vec<_> = self.replicas.iter().map(|replica| replica.context.jobs.current()).collect();
        panic!("catch-up does not reach the last page: {statuses:?}");
    }

    /// Runs a complete reconcile. Returns `false` if no deletion can be inferred because WorkOS's list is empty.
    async fn reconcile(&mut self) -> bool {
        for _ in 0..400 {
            self.pass(100);
            let replica = &self.replicas[0];
            match replica.reconcile.step().await {
                Ok(Some(ReconcileStep::Done(_))) => return true,
                Ok(None) => self.expire_leases().await,
                Ok(Some(ReconcileStep::InProgress { .. })) => {}
                Err(JobError::TooMany { .. } | JobError::WrongKey { .. } | JobError::EmptyList { .. })
                    if self.environments.iter().any(|environment| environment.has_gaps()) =>
                {
                    if self.here().workos.users().is_empty() {
                        return false;
                    }
                    replica.context.store.accept_deletions().await.unwrap();
                }
                // All users are deleted here and at WorkOS, so the list is empty.
                Err(JobError::EmptyList { live, .. }) => panic!("{live} users are live here, but none at WorkOS"),
                // A connection can still lead to a read-only server.
                Err(error) if error.is_temporary() => {}
                Err(error) => panic!("{error}"),
            }
        }
        panic!("reconcile does not complete");
    }

    /// Runs the backfill of organizations, memberships and roles to its end.
    async fn backfill_organizations(&mut self) {
        for _ in 0..400 {
            self.pass(100);
            self.age_leases().await;
            for replica in &self.replicas {
                replica.organizations_backfill.tick().await;
            }
            self.look().await;
            let (store, mut is_complete) = (&self.replicas[0].context.store, true);
            for scan in
                [ScanKind::BackfillOrganizations, ScanKind::BackfillMemberships, ScanKind::BackfillOrganizationRoles]
            {
                let state = store.scan_state(scan).await.unwrap();
                is_complete &= state.completed_at.is_some() && state.started_at.is_none();
            }
            if is_complete {
                return;
            }
        }
        let errors: Vec<_> =
            self.replicas.iter().map(|replica| replica.error(JobKind::OrganizationsBackfill)).collect();
        panic!("the backfill of organizations does not complete: {errors:?}");
    }

    /// Runs a complete reconcile of organizations, memberships and roles.
    async fn reconcile_organizations(&mut self) {
        for _ in 0..400 {
            self.pass(100);
            let replica = &self.replicas[0];
            match replica.organizations_reconcile.step().await {
                Ok(Some(OrganizationsReconcileStep::Done(_))) => return,
                Ok(None) => self.expire_leases().await,
                Ok(Some(OrganizationsReconcileStep::InProgress { .. })) => {}
                // Reconcile can infer deletions without an event only if events were lost, or if an organization was deleted.
                Err(JobError::TooMany { .. } | JobError::WrongKey { .. } | JobError::EmptyList { .. })
                    if self.environments.iter().any(|environment| environment.has_gaps()) =>
                {
                    replica.context.store.accept_deletions().await.unwrap();
                }
                Err(error) if error.is_temporary() => {}
                Err(error) => panic!("{error}"),
            }
        }
        panic!("reconcile of organizations does not complete");
    }

    /// Reads everything that events request, and the roles of the environment on the timer.
    async fn refresh(&mut self) {
        self.insist("update workos.role_lists set read_at = read_at - interval '1 day'").await;
        for _ in 0..400 {
            self.pass(2_000);
            self.expire_leases().await;
            self.insist("update workos.refreshes set due_at = now()").await;
            match self.replicas[0].refresh.step().await {
                Ok(Some(RefreshStep::Idle)) => return,
                Ok(_) => {}
                Err(error) if error.is_temporary() => {}
                Err(error) => panic!("{error}"),
            }
        }
        panic!("the refresh does not complete: {:?}", self.replicas[0].error(JobKind::Refresh));
    }

    /// Checks that every user equals WorkOS's user.
    async fn compare(&self, with_sign_ins: bool) {
        let (store, here) = (&self.replicas[0].context.store, self.here());
        for (id, LastState { user: expected, deleted_at, event_says }) in &here.users {
            match (store.user(id).await.unwrap(), deleted_at) {
                (Stored::Live { object: user, .. }, None) => {
                    let (mut found, mut expected) = (serde_json::to_value(&user).unwrap(), expected.clone());
                    if !with_sign_ins {
                        found["last_sign_in_at"].take();
                        expected["last_sign_in_at"].take();
                    }
                    assert_eq!(found, expected);
                }
                (Stored::Tombstone { deleted_at: found, .. }, Some(_)) => {
                    assert!(found == *event_says || here.has_gaps(), "{id}: deleted {event_says:?}, here {found:?}");
                }
                // A reconcile of the other environment has deleted them.
                (Stored::Tombstone { .. }, None) if here.left => {}
                // Deleted before the first webhook or read, so we never got an event.
                (Stored::Absent, Some(deleted_at)) if *deleted_at < here.heard_since || here.has_gaps() => {}
                (_, Some(_)) if self.feeds == Feeds::WebhooksOnly && here.left => {}
                (stored, deleted) => panic!("{id}: {stored:?} where WorkOS says {expected} (deleted: {deleted:?})"),
            }
        }
    }

    /// Checks that no user of another environment is live.
    async fn check_no_foreign_users(&self) {
        let live: Vec<String> = sqlx::query_scalar("select id from workos.users").fetch_all(&self.pool).await.unwrap();
        for id in live {
            assert!(self.here().users.contains_key(&id), "{id} is of another environment");
        }
    }

    /// Runs housekeeping until no erasure is pending.
    async fn erase_all(&mut self) {
        for _ in 0..100 {
            let open: i64 =
                sqlx::query_scalar("select count(*) from workos.erasures").fetch_one(&self.pool).await.unwrap();
            if open == 0 {
                // The invariants check whose payloads these are.
                return self.look().await;
            }
            self.expire_leases().await;
            self.replicas[0].housekeeping.tick().await;
        }
        panic!("erasure does not complete");
    }

    /// Runs the handlers to the end of the feed and of their backlogs.
    async fn handle_all(&mut self) {
        for _ in 0..400 {
            self.backlogs_are_due().await;
            self.expire_leases().await;
            for (along, again) in &self.replicas[0].handlers {
                along.tick().await;
                again.tick().await;
            }
            let statuses = self.replicas[0].context.store.handler_statuses().await.unwrap();
            if statuses.iter().all(|handler| handler.depth == 0 && handler.state == "running") {
                assert!(statuses.iter().all(|handler| handler.dead_lettered == 0), "{statuses:?}");
                return;
            }
        }
        let statuses = self.replicas[0].context.store.handler_statuses().await.unwrap();
        panic!("handlers do not complete: {statuses:?}");
    }

    /// Checks that each handler has written each change once, in order per user, and that its table has WorkOS's users.
    async fn application_agrees(&self) {
        let wrong: Vec<String> = sqlx::query_scalar(WRONG).fetch_all(&self.pool).await.unwrap();
        assert!(wrong.is_empty(), "{wrong:?}");
    }
}

/// Selects every difference between the feed, the table, and the tables of the application.
const WRONG: &str = "
    with due as (
        select name as handler, changes.position, user_id, kind
        from workos.handlers, workos.changes
        where changes.position > start_position and (name = 'mirror' or event_type like 'user.%' or kind in ('created', 'updated', 'deleted', 'session.created'))
    ),
    changed as (
        select *, row_number() over (partition by user_id order by position) as nth, count(*) over (partition by user_id) as many
        from workos.changes where kind in ('created', 'updated', 'deleted')
    ),
    of_object as (
        select *, row_number() over (partition by object_id order by position) as nth, count(*) over (partition by object_id) as many
        from workos.changes where kind like 'organization.%' or kind like 'organization_membership.%'
    ),
    -- WorkOS can reuse the slug of a deleted role or permission.
    of_slug as (
        select *, coalesce(lag(kind) over same_slug, 'deleted') like '%deleted' as is_new
        from workos.changes
        where kind like 'role.%' or kind like 'organization_role.%' or kind like 'permission.%'
        window same_slug as (partition by split_part(kind, '.', 1), object_id order by position)
    )
    select 'not done: ' || due::text from due
    where not exists (select from app_log as done where done.handler = due.handler and done.position = due.position)
    union all
    select 'done twice: ' || handler || ' ' || position from app_log group by handler, position, user_id having count(*) > 1
    union all
    select 'out of order: ' || step::text
    from (select *, lag(position) over (partition by handler, user_id order by n) as before from app_log where user_id <> '') as step
    where position < before
    union all
    select 'created late, or twice: ' || changed::text from changed where kind = 'created' and nth > 1
    union all
    select 'changed behind its deletion: ' || changed::text from changed where kind = 'deleted' and nth < many
    union all
    select 'first told as an update: ' || changed::text from changed where kind = 'updated' and nth = 1
    union all
    select 'the application has another: ' || coalesce(ours.id, theirs.id)
    from app_users as ours full join workos.users as theirs on theirs.id = ours.id
    where ours.name is distinct from theirs.first_name
    union all
    select 'the application has another: ' || coalesce(ours.id, theirs.id)
    from app_members as ours
    full join (select * from workos.organization_membership_records where not synced_deleted) as theirs on theirs.id = ours.id
    where ours.status is distinct from theirs.status
    union all
    select 'created late, or twice: ' || of_object::text from of_object where kind like '%.created' and nth > 1
    union all
    select 'changed behind its deletion: ' || of_object::text from of_object where kind like '%.deleted' and nth < many
    union all
    select 'first told as an update: ' || of_object::text from of_object where kind like '%.updated' and nth = 1
    union all
    select 'created twice, or changed while it does not exist: ' || of_slug::text
    from of_slug where (kind like '%.created') <> is_new";
