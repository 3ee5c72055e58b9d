//! `workos.leases`: which process does a background job.
//!
//! Rows, not session locks: those fail behind a pooler. The database's clock decides, so that replicas need not agree on
//! theirs. A lease keeps work from being done twice; what must not go wrong is checked again where it is committed.

use std::time::Duration;

use super::{Store, StoreError};

/// How long a job stays its holder's without another word. A killed holder is replaced after that long.
pub const LEASE: Duration = Duration::from_secs(10);

impl Store {
    /// Takes the job, or keeps it, for [`LEASE`] from now. `false` when another holder has it.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn hold_lease(&self, job: &str, holder: &str) -> Result<bool, StoreError> {
        let held = self
            .lookup(async |connection| {
                sqlx::query_scalar!(
                    r#"-- leases.hold
                    insert into workos.leases as lease (job, holder, expires_at)
                    values ($1, $2, now() + make_interval(secs => $3))
                    on conflict (job) do update
                    set
                        holder = excluded.holder,
                        expires_at = excluded.expires_at
                    where
                        lease.holder = excluded.holder
                        or lease.expires_at < now()
                    returning true as "held!""#,
                    job,
                    holder,
                    LEASE.as_secs_f64()
                )
                .fetch_optional(connection)
                .await
            })
            .await?;
        Ok(held.is_some())
    }

    /// Gives up a job, or every job, of a holder that has done with it, so that nobody waits for a lease to run out.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn release_leases(&self, holder: &str, job: Option<&str>) -> Result<(), StoreError> {
        self.lookup(async |connection| {
            sqlx::query!(
                "-- leases.release
                delete from workos.leases
                where
                    holder = $1
                    and ($2::text is null or job = $2)",
                holder,
                job
            )
            .execute(connection)
            .await
        })
        .await?;
        Ok(())
    }
}
