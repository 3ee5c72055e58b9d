//! `workos.action_verdicts`: the verdict on each action, so that a repeated request gets the same answer.

use std::time::Duration;

use sha2::{Digest, Sha256};

use super::DbConnection;
use super::{Store, StoreError, Work};
use crate::domain::action::{Action, ActionKind, Verdict};

/// Retention period of a verdict: longer than a signature is valid, even if the clocks differ.
pub const KEPT: Duration = Duration::from_secs(300);

/// Identifies an action: two requests with the same kind, ID and SHA-256 of the body are the same action.
///
/// The ID alone is not enough: a verdict on one person's registration must never apply to another person's sign-in, even if both
/// have the same ID. The hash is that of the received body. WorkOS puts the time into the header, not into the body, so a repeated
/// request has the same body and a new signature. If WorkOS sends another body for the same action, the service makes a new
/// decision. To reuse the verdict on the previous body would be unsafe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActionKey {
    kind: ActionKind,
    id: String,
    payload_hash: [u8; 32],
}

impl ActionKey {
    /// Returns the key of an action.
    #[must_use]
    pub fn of(action: &Action) -> Self {
        Self { kind: action.kind(), id: action.id.clone(), payload_hash: Sha256::digest(&action.payload).into() }
    }
}

/// A verdict, and what decided it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActionDecision {
    /// The verdict in the answer to WorkOS.
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

impl From<Row> for ActionDecision {
    fn from(row: Row) -> Self {
        let verdict = if row.verdict == "allow" { Verdict::Allow } else { Verdict::Deny { message: row.message } };
        Self { verdict, decided_by: row.decided_by }
    }
}

impl Store {
    /// Returns the stored decision about an action, if there is one.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn verdict(&self, key: &ActionKey) -> Result<Option<ActionDecision>, StoreError> {
        let row = self
            .lookup(async |connection| {
                sqlx::query_as!(
                    Row,
                    "-- action_verdicts.by_key
                    select verdict, message, decided_by
                    from workos.action_verdicts
                    where id = $1 and kind = $2 and payload_hash = $3",
                    key.id,
                    key.kind.as_str(),
                    &key.payload_hash[..]
                )
                .fetch_optional(connection)
                .await
            })
            .await?;
        Ok(row.map(ActionDecision::from))
    }

    /// Stores a decision and returns it. If another process has already stored one, returns that one.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn store_verdict(&self, key: &ActionKey, decision: &ActionDecision) -> Result<StoredVerdict, StoreError> {
        self.transaction("keep verdict", &Keep { key, decision }).await
    }

    /// Deletes at most `limit` expired verdicts, and returns the number.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn expire_verdicts(&self, limit: i64) -> Result<u64, StoreError> {
        let done = self
            .write("expire verdicts", || {
                sqlx::query!(
                    "-- action_verdicts.expire
                    delete from workos.action_verdicts
                    where (id, kind, payload_hash) in (
                        select id, kind, payload_hash
                        from workos.action_verdicts
                        where decided_at < now() - make_interval(secs => $1)
                        order by decided_at
                        limit $2
                        for update skip locked
                    )",
                    KEPT.as_secs_f64(),
                    limit
                )
            })
            .await?;
        Ok(done)
    }
}

/// Which decision counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredVerdict {
    /// The given decision, which is stored now.
    New,
    /// A decision that was stored before.
    Existing(ActionDecision),
}

struct Keep<'a> {
    key: &'a ActionKey,
    decision: &'a ActionDecision,
}

impl Work for Keep<'_> {
    type Output = StoredVerdict;

    async fn run(&self, connection: &mut DbConnection<'_>) -> Result<StoredVerdict, StoreError> {
        let ActionDecision { verdict, decided_by } = self.decision;
        // The update changes nothing: it waits for another insert of the same key, and returns what that one stored.
        let row = sqlx::query!(
            r#"-- action_verdicts.store
            insert into workos.action_verdicts as stored (id, kind, payload_hash, verdict, message, decided_by)
            values ($1, $2, $3, $4, $5, $6)
            on conflict (id, kind, payload_hash) do update
            set decided_at = stored.decided_at
            returning
                verdict,
                message,
                decided_by,
                xmax = 0 as "is_new!""#,
            self.key.id,
            self.key.kind.as_str(),
            &self.key.payload_hash[..],
            verdict.as_str(),
            verdict.message(),
            decided_by
        )
        .fetch_one(connection)
        .await?;
        if row.is_new {
            return Ok(StoredVerdict::New);
        }
        let (verdict, message, decided_by) = (row.verdict, row.message, row.decided_by);
        Ok(StoredVerdict::Existing(Row { verdict, message, decided_by }.into()))
    }
}
