//! `workos.leases`: which process runs a background job, and how long the job must pause its requests to WorkOS.
//!
//! Leases are rows instead of session locks, because session locks do not work with a pooler. The database's clock decides, so the
//! clocks of replicas need not agree. A lease only avoids duplicate work. Correctness does not depend on it, because each commit
//! checks the state again.

use std::time::Duration;

use super::DbConnection;
use super::{Store, StoreError, Work};
use crate::domain::timestamp::Timestamp;

/// Duration of a lease. After this time, another process takes over from a holder that was killed.
pub const LEASE: Duration = Duration::from_secs(10);

/// Interval of renewals. Two renewals can fail before the lease expires.
pub const RENEWAL: Duration = Duration::from_secs(3);

/// Longest pause. A pause that ends later was stored with a wrong clock and is ignored.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(5 * 60);

/// The result of taking or renewing a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Whether this process holds the lease, for [`LEASE`] from now.
    pub held: bool,
    /// The remaining pause that WorkOS requested from this job, if any.
    pub pause: Option<Duration>,
    /// The current time of the database's clock.
    pub now: Timestamp,
}

impl Store {
    /// Takes or renews the lease of a job for [`LEASE`] from now, unless another process holds it.
    ///
    /// A lease that ends later than possible was stored with a wrong clock. It is taken over like an expired one.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn hold_lease(&self, job: &str, holder: &str) -> Result<Lease, StoreError> {
        self.transaction("hold lease", &HoldLease { job, holder }).await
    }

    /// Pauses a job in every process, for at most [`LONGEST_PAUSE`].
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn pause_job(&self, job: &str, pause: Duration) -> Result<(), StoreError> {
        self.write("pause job", || {
            sqlx::query!(
                "-- leases.pause
                update workos.leases
                set paused_until = now() + make_interval(secs => $2)
                where job = $1",
                job,
                pause.min(LONGEST_PAUSE).as_secs_f64()
            )
        })
        .await?;
        Ok(())
    }

    /// Releases the lease of a job, or every lease of this holder, so that other processes need not wait until it expires. A pause
    /// of the job remains.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn release_leases(&self, holder: &str, job: Option<&str>) -> Result<(), StoreError> {
        self.write("release leases", || {
            sqlx::query!(
                "-- leases.release
                with paused as (
                    update workos.leases
                    set expires_at = '-infinity'
                    where
                        holder = $1
                        and ($2::text is null or job = $2)
                        and paused_until > now()
                )
                delete from workos.leases
                where
                    holder = $1
                    and ($2::text is null or job = $2)
                    and (paused_until > now()) is not true",
                holder,
                job
            )
        })
        .await?;
        Ok(())
    }
}

struct HoldLease<'a> {
    job: &'a str,
    holder: &'a str,
}

impl Work for HoldLease<'_> {
    type Output = Lease;

    async fn run(&self, connection: &mut DbConnection<'_>) -> Result<Lease, StoreError> {
        let row = sqlx::query!(
            r#"-- leases.hold
                    with held as (
                        insert into workos.leases as lease (job, holder, expires_at)
                        values ($1, $2, now() + make_interval(secs => $3))
                        on conflict (job) do update
                        set
                            holder = excluded.holder,
                            expires_at = excluded.expires_at
                        where
                            lease.holder = excluded.holder
                            or lease.expires_at < now()
                            or lease.expires_at > now() + make_interval(secs => 2 * $3)
                        returning paused_until
                    )
                    select
                        now() as "now!",
                        exists (select from held) as "held!",
                        (
                            select extract(epoch from paused_until - now())::float8
                            from held
                            where
                                paused_until > now()
                                and paused_until <= now() + make_interval(secs => $4)
                        ) as pause_seconds"#,
            self.job,
            self.holder,
            LEASE.as_secs_f64(),
            LONGEST_PAUSE.as_secs_f64()
        )
        .fetch_one(connection)
        .await?;
        let pause = row.pause_seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        Ok(Lease { held: row.held, pause, now: row.now.into() })
    }
}
