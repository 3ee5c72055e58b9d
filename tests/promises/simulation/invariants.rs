//! Invariants that hold at every instant.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use authkit_sync::dev::workos::Held;
use authkit_sync::domain::timestamp::Timestamp;
use sqlx::FromRow;
use time::OffsetDateTime;

use super::environment::can_be_quarantined;
use super::replica::{JobKind, Receipt, types};
use super::world::{Feeds, World};

/// What the checks have seen in the database so far.
#[derive(Default)]
pub(super) struct Seen {
    /// All users, organizations and memberships that were ever seen as deleted.
    deleted: BTreeSet<String>,
    /// Live users of another environment.
    pub(super) strangers: BTreeSet<String>,
    /// Numbers of rows of the inbox and of the feed.
    inbox: usize,
    changes: i64,
    /// At the last check: whether a walk over the organizations was running, and the number of deleted organizations.
    is_walking: bool,
    deleted_organizations: usize,
    pub(super) coverage: Coverage,
}

/// How often each required situation has occurred.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Coverage {
    /// Deliveries that found a full queue.
    busy: usize,
    /// Groups with an event that PostgreSQL refused and with one that was applied.
    with_refused: usize,
    /// Organizations that were deleted during a walk over the organizations.
    deleted_in_walk: usize,
}

impl Coverage {
    /// Records the outcomes of deliveries that arrived at the same time.
    pub(super) fn add_group(&mut self, group: &[Held], receipts: &[Receipt]) {
        for (held, receipt) in group.iter().zip(receipts) {
            match (receipt.status, &*receipt.text) {
                // An event that PostgreSQL would refuse is applied if a later event of the group replaces its state before the
                // write.
                (200, "quarantined") => assert!(can_be_quarantined(held), "{}: {receipt:?}", held.event_id),
                (200 | 401 | 503, _) => {}
                _ => panic!("{}: {receipt:?}", held.event_id),
            }
        }
        let has = |text| receipts.iter().any(|receipt| receipt.text == text);
        self.busy += receipts.iter().filter(|receipt| receipt.text == "busy").count();
        self.with_refused += usize::from(has("quarantined") && has("applied"));
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            busy: self.busy + other.busy,
            with_refused: self.with_refused + other.with_refused,
            deleted_in_walk: self.deleted_in_walk + other.deleted_in_walk,
        }
    }

    /// Returns whether every required situation has occurred.
    pub(super) fn is_complete(self) -> bool {
        self.busy > 0 && self.with_refused > 0 && self.deleted_in_walk > 0
    }
}

#[derive(FromRow)]
struct Now {
    cursor: Option<String>,
    synced_through: Option<OffsetDateTime>,
    range_start: Option<OffsetDateTime>,
    inbox: Vec<String>,
    live: Vec<String>,
    /// Organizations and memberships.
    live_others: Vec<String>,
    deleted: Vec<String>,
    changes: i64,
    /// Whether a walk over the organizations is running.
    is_walking: bool,
    /// Payloads and memberships of deleted users that are not in the list of pending erasures.
    left_behind: Vec<String>,
    /// Erased payloads of users that are not deleted.
    emptied: Vec<String>,
}

const NOW: &str = "
    select
        place.*,
        (select array(select id from workos.events)) as inbox,
        (select array(select id from workos.users)) as live,
        (
            select array(
                select id from workos.user_records where synced_deleted
                union all
                select id from workos.organization_records where synced_deleted
                union all
                select id from workos.organization_membership_records where synced_deleted
            )
        ) as deleted,
        (
            select array(
                select id from workos.organization_records where not synced_deleted
                union all
                select id from workos.organization_membership_records where not synced_deleted
            )
        ) as live_others,
        (select count(*) from workos.changes) as changes,
        exists (
            select from workos.scans
            where started_at is not null and kind in ('backfill_memberships', 'reconcile_organizations')
        ) as is_walking,
        (
            select array(
                select events.id from workos.events join workos.user_records as users on users.id = events.user_id
                where payload is not null and synced_deleted
                    and not exists (select from workos.erasures where erasures.user_id = events.user_id)
                union all
                select member.id
                from workos.organization_membership_records as member
                join workos.user_records as users on users.id = member.user_id
                where not member.synced_deleted and users.synced_deleted
                    and not exists (select from workos.erasures where erasures.user_id = member.user_id)
            )
        ) as left_behind,
        (
            select array(
                select events.id from workos.events left join workos.user_records as users on users.id = events.user_id
                where payload is null and synced_deleted is distinct from true
            )
        ) as emptied
    from (values (1)) as one
    left join (select cursor, synced_through, range_start from workos.catch_up) as place on true";

/// Maximum difference between a `Date` header and one of our clocks for the header to be used, in seconds. Our clocks can therefore
/// be this far ahead of WorkOS's when they are used instead. See `workos/clocks.rs`.
const DATE_TOLERANCE_S: i64 = 30 * 60;

impl World<'_> {
    async fn now(&self) -> Now {
        loop {
            // The pool can contain connections that a fault has closed.
            if let Ok(now) = sqlx::query_as(NOW).fetch_one(&self.pool).await {
                return now;
            }
        }
    }

    /// Checks all invariants.
    pub(super) async fn look(&mut self) {
        let now = self.now().await;
        self.nothing_is_dropped_early(&now);
        assert_eq!(now.left_behind, Vec::<String>::new(), "payloads of deleted users");
        if let Some(through) = now.synced_through.map(Timestamp::from) {
            assert!(through <= self.clock.now(), "synced through {through}, but now is {}", self.clock.now());
        }
        if self.feeds != Feeds::WebhooksOnly {
            self.nothing_is_skipped(&now);
        }
        self.check_no_deleted_user_returns(&now);
        let deleted = self.here().members.deleted_organizations();
        let newly = deleted.saturating_sub(self.seen.deleted_organizations);
        self.seen.coverage.deleted_in_walk += if self.seen.is_walking { newly } else { 0 };
        (self.seen.is_walking, self.seen.deleted_organizations) = (now.is_walking, deleted);
    }

    /// Checks that deleted users stay deleted, and that users deleted before the first start never appear.
    fn check_no_deleted_user_returns(&mut self, now: &Now) {
        let live: BTreeSet<&String> = now.live.iter().chain(&now.live_others).collect();
        let returned: Vec<&String> = self.seen.deleted.iter().filter(|id| live.contains(id)).collect();
        assert!(returned.is_empty(), "deleted objects are live again: {returned:?}");
        self.seen.deleted.extend(now.deleted.iter().cloned());
        let here = self.here();
        for id in &now.live {
            let Some(user) = here.users.get(id) else {
                assert!(self.seen.strangers.contains(id), "{id} is of another environment");
                continue;
            };
            let gone = user.deleted_at.is_some_and(|at| at < here.heard_since);
            assert!(!gone || self.seen.strangers.contains(id), "{id} was deleted before anybody listened");
        }
    }

    /// Checks that retention deletes nothing: by the database's clock, all rows are new.
    fn nothing_is_dropped_early(&mut self, now: &Now) {
        assert!(now.inbox.len() >= self.seen.inbox, "{} of {} events", now.inbox.len(), self.seen.inbox);
        assert!(now.changes >= self.seen.changes, "{} of {} changes", now.changes, self.seen.changes);
        assert_eq!(now.emptied, Vec::<String>::new(), "payloads are erased, but their users are not deleted");
        (self.seen.inbox, self.seen.changes) = (now.inbox.len(), now.changes);
    }

    /// Checks that the inbox contains all events before the cursor and before `synced_through`.
    fn nothing_is_skipped(&mut self, now: &Now) {
        let Some(range_start) = now.range_start.map(Timestamp::from) else { return };
        let catch_up_only = self.feeds == Feeds::CatchUpOnly;
        let here = self.here_mut();
        if here.forgotten {
            return;
        }
        if catch_up_only && here.read_since.is_none() {
            here.heard_since = range_start;
        }
        // If no two clocks agree, catch-up starts at the earliest one, and reads events of users deleted long ago.
        here.heard_since = here.heard_since.min(range_start);
        // Only events that were created since then are guaranteed, even if catch-up restarts at an earlier instant.
        let read_since = *here.read_since.get_or_insert(range_start);
        let inbox: BTreeSet<&String> = now.inbox.iter().collect();
        let tolerance = if here.misdated { DATE_TOLERANCE_S } else { 0 };
        let through = now.synced_through.map(|through| Timestamp::from(through).plus_seconds(-tolerance));
        for event in &here.events {
            let passed = now.cursor.as_ref().is_some_and(|cursor| event.id <= *cursor);
            let promised = passed || through.is_some_and(|through| event.happened_at <= through);
            // The simulated WorkOS sometimes refuses the type `session.created`.
            let is_read = event.event_type != "session.created" && types().any(|read| read == event.event_type);
            let read = is_read && event.created_at >= read_since;
            assert!(
                !(promised && read) || inbox.contains(&event.id),
                "{event:?} was skipped: cursor {:?}, synced through {through:?}, read since {read_since}",
                now.cursor
            );
        }
    }

    /// Checks that no process sends requests for a job during a pause that WorkOS requested for it. A process that was killed
    /// before the end of its step may not have stored the pause.
    pub(super) fn pause_is_kept(&mut self, job: JobKind, asked: bool, done: bool) {
        let now = self.clock.now();
        if !asked {
            return;
        }
        // The database's clock advances, too.
        let until = self.pauses.get(job.name()).map(|(until, since)| until.minus(since.elapsed()));
        let until = until.filter(|until| now < *until);
        assert!(until.is_none(), "{} asks WorkOS, which asked for a pause until {until:?}", job.name());
        let pause = self.here().faults.retry_after_s;
        if let Some(seconds) = pause.filter(|_| done) {
            // The database's times are moved by whole seconds.
            self.pauses.insert(job.name(), (now.plus_seconds(i64::from(seconds) - 1), Instant::now()));
        }
    }

    /// Returns a digest of our tables, once no statement is running.
    pub(super) async fn digest(&self) -> String {
        let busy = "select count(*) from pg_stat_activity
            where backend_type = 'client backend' and pid <> pg_backend_pid() and state <> 'idle'";
        for _ in 0..2_000 {
            if sqlx::query_scalar(busy).fetch_one(&self.pool).await.unwrap_or(1_i64) == 0
                && let Ok(digest) = sqlx::query_scalar("select app_digest()").fetch_one(&self.pool).await
            {
                return digest;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("statements in the database do not end");
    }
}
