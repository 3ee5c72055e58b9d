//! `workos.leases`: which process does a background job, and until when the job must leave WorkOS alone.
//!
//! Rows, not session locks: those fail behind a pooler. The database's clock decides, so that replicas need not agree on
//! theirs. A lease keeps work from being done twice; what must not go wrong is checked again where it is committed.

use std::time::Duration;

use sqlx::postgres::PgConnection;

use super::{Store, StoreError, Work};
use crate::domain::timestamp::Timestamp;

/// How long a job stays its holder's without another word. A killed holder is replaced after that long.
pub const LEASE: Duration = Duration::from_secs(10);

/// How often a holder renews a lease that it keeps: a renewal may fail twice before the lease runs out.
pub const RENEWAL: Duration = Duration::from_secs(3);

/// The longest pause that is kept. One that ends later was written under a wrong clock.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(5 * 60);

/// What a process learns that asked for a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The job is its own for [`LEASE`] from now.
    pub held: bool,
    /// What is left of the pause that WorkOS asked this job for; `None` when there is none.
    pub pause: Option<Duration>,
    /// The database's clock.
    pub now: Timestamp,
}

impl Store {
    /// Takes the job, or keeps it, for [`LEASE`] from now, unless another holder has it.
    ///
    /// A lease that ends later than any lease can was written under a wrong clock; it is taken over like one that has run
    /// out.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn hold_lease(&self, job: &str, holder: &str) -> Result<Lease, StoreError> {
        self.transaction("hold lease", &HoldLease { job, holder }).await
    }

    /// Keeps every process from doing the job for so long, [`LONGEST_PAUSE`] at most.
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

    /// Gives up a job, or every job, of a holder that has done with it, so that nobody waits for a lease to run out. A pause
    /// stays.
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

    async fn run(&self, connection: &mut PgConnection) -> Result<Lease, StoreError> {
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
