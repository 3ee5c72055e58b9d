//! Whether the tables contain exactly what was sent.

use super::database::Database;
use super::requests::{CREATED_AT, FIRST, Kind};

/// What was verified so far.
#[derive(Debug, Default)]
pub(crate) struct Verified {
    pub(crate) events: u64,
    pub(crate) users: u64,
    pub(crate) changes: u64,
    /// What differs from what was sent.
    pub(crate) differences: Vec<String>,
}

/// The last position of the feed, before a measurement.
pub(crate) fn feed_position(database: &Database) -> i64 {
    database.count("select coalesce(max(position), 0) from workos.changes", &[])
}

const EVENTS: &str = "select count(*) from workos.events where id >= $1 and id < $1 || '~'";

const CREATED: &str = "
    select count(*) from workos.users
    where id >= $1 and id < $1 || '~' and email = id || '@example.test' and first_name = 'Ada'
        and external_id = 'crm-' || id and updated_at = $2::timestamptz";

const UPDATED: &str = "
    select count(*)
    from generate_series(0, least($2::bigint, $3::bigint) - 1) as number
    join workos.users on id = 'user_seed_' || ($4::bigint + number)
    where first_name = $1 || '-' || (number + $3::bigint * (($2::bigint - 1 - number) / $3::bigint))";

const APPLIED: &str = "select count(*) from workos.events where id >= $1 and id < $1 || '~' and outcome = 'applied'";

const CHANGES: &str = "select count(*) from workos.changes where position > $1::bigint";

impl Verified {
    /// Compares the tables with `sent` events of a run.
    pub(crate) fn check(&mut self, database: &Database, kind: &Kind, run: &str, sent: u64, position: i64) {
        let (events, users) = (format!("event_{run}_"), format!("user_{run}_"));
        let distinct = match kind {
            Kind::Created | Kind::Updated { .. } => sent,
            Kind::Duplicates { events } => sent.min(*events),
            _ => return,
        };
        let stored = database.count(EVENTS, &[&events]);
        self.events += self.equal(run, "events", distinct, stored);
        let (latest, expected) = match kind {
            Kind::Updated { users } => {
                let arguments = [run, &sent.to_string(), &users.to_string(), &FIRST.to_string()];
                (database.count(UPDATED, &arguments), sent.min(*users))
            }
            _ => (database.count(CREATED, &[&users, CREATED_AT]), distinct),
        };
        self.users += self.equal(run, "users with their latest state", expected, latest);
        // An update that came after a later one of the same user changes nothing.
        let applied = u64::try_from(database.count(APPLIED, &[&events])).unwrap();
        let applied = if matches!(kind, Kind::Updated { .. }) { applied } else { distinct };
        let changes = database.count(CHANGES, &[&position.to_string()]);
        self.changes += self.equal(run, "changes", applied, changes);
    }

    fn equal(&mut self, run: &str, what: &str, expected: u64, found: i64) -> u64 {
        let found = u64::try_from(found).unwrap();
        if found != expected {
            self.differences.push(format!("{run}: {expected} {what} expected, {found} found"));
        }
        found
    }
}
