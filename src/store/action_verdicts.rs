//! `workos.action_verdicts`: what was decided about an action, so that whoever asks again is told the same.

use std::time::Duration;

use sqlx::postgres::PgConnection;

use super::{Store, StoreError, Work};
use crate::domain::action::Verdict;

/// How long a verdict is kept: longer than a signature is fresh, whichever way the clocks differ.
pub const KEPT: Duration = Duration::from_secs(300);

/// A verdict, and what decided it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What WorkOS is answered.
    pub verdict: Verdict,
    /// `handler`, `endpoint`, `endpoint_failure`, `rule_<n>` or `default`.
    pub decided_by: String,
}

/// A decision as it is stored.
struct Row {
    verdict: String,
    message: Option<String>,
    decided_by: String,
}

impl From<Row> for Decision {
    fn from(row: Row) -> Self {
        let verdict = if row.verdict == "allow" { Verdict::Allow } else { Verdict::Deny { message: row.message } };
        Self { verdict, decided_by: row.decided_by }
    }
}

impl Store {
    /// What was decided about this action, if anything was.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn verdict(&self, action_id: &str) -> Result<Option<Decision>, StoreError> {
        let row = self
            .lookup(async |connection| {
                sqlx::query_as!(
                    Row,
                    "-- action_verdicts.by_id
                    select verdict, message, decided_by
                    from workos.action_verdicts
                    where id = $1",
                    action_id
                )
                .fetch_optional(connection)
                .await
            })
            .await?;
        Ok(row.map(Decision::from))
    }

    /// Stores a decision, unless one is there: then that one is returned, whoever decided it.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn keep_verdict(&self, action_id: &str, decision: &Decision) -> Result<Kept, StoreError> {
        self.transaction("keep verdict", &Keep { action_id, decision }).await
    }

    /// Drops verdicts that nobody can ask for any more, `limit` at most, and returns how many.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn expire_verdicts(&self, limit: i64) -> Result<u64, StoreError> {
        let done = self
            .lookup(async |connection| {
                sqlx::query!(
                    "-- action_verdicts.expire
                    delete from workos.action_verdicts
                    where id in (
                        select id
                        from workos.action_verdicts
                        where decided_at < now() - make_interval(secs => $1)
                        order by decided_at
                        limit $2
                        for update skip locked
                    )",
                    KEPT.as_secs_f64(),
                    limit
                )
                .execute(connection)
                .await
            })
            .await?;
        Ok(done.rows_affected())
    }
}

/// Which decision counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// The one that was given.
    Given,
    /// One that was stored before.
    Earlier(Decision),
}

struct Keep<'a> {
    action_id: &'a str,
    decision: &'a Decision,
}

impl Work for Keep<'_> {
    type Output = Kept;

    async fn run(&self, connection: &mut PgConnection) -> Result<Kept, StoreError> {
        let Decision { verdict, decided_by } = self.decision;
        // The update changes nothing: it waits for another insert of the same id, and returns what that one stored.
        let row = sqlx::query!(
            r#"-- action_verdicts.keep
            insert into workos.action_verdicts as stored (id, verdict, message, decided_by)
            values ($1, $2, $3, $4)
            on conflict (id) do update
            set decided_at = stored.decided_at
            returning
                verdict,
                message,
                decided_by,
                xmax = 0 as "is_new!""#,
            self.action_id,
            verdict.as_str(),
            verdict.message(),
            decided_by
        )
        .fetch_one(connection)
        .await?;
        if row.is_new {
            return Ok(Kept::Given);
        }
        let (verdict, message, decided_by) = (row.verdict, row.message, row.decided_by);
        Ok(Kept::Earlier(Row { verdict, message, decided_by }.into()))
    }
}
