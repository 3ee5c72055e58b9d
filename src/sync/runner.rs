//! Runs background jobs: manages the lease, the backoff and the status of each job. `src/supervise.rs` handles panics and shutdown.

use std::time::Duration;

use tokio::sync::Mutex;

use super::job::{Job, JobContext, JobError};
use crate::store::leases::RENEWAL;

/// A loop that the supervisor runs until shutdown.
pub trait BackgroundLoop: Send + Sync + 'static {
    /// The loop's name in the log and in metrics.
    const NAME: &'static str;

    /// Does one piece of work, and returns the pause after it. It can panic, and it can be dropped at any await point. Neither
    /// loses data.
    fn tick(&self) -> impl Future<Output = Duration> + Send;

    /// Renews the lease of the loop, if it has one. Called every few seconds, during ticks and pauses.
    fn renew(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

/// Awaits a tick or a pause of a loop, and renews the loop's lease meanwhile. A pause, or a slow request to WorkOS, can take
/// longer than a lease lasts.
pub async fn renewing<L: BackgroundLoop, T>(background_loop: &L, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            outcome = &mut work => return outcome,
            () = tokio::time::sleep(RENEWAL) => background_loop.renew().await,
        }
    }
}

/// Runs a job step by step.
#[derive(Debug)]
pub struct Runner<J> {
    context: JobContext,
    state: Mutex<JobState<J>>,
}

#[derive(Debug)]
struct JobState<J> {
    job: J,
    /// Number of consecutive failed steps.
    failures: u32,
}

impl<J: Job> Runner<J> {
    /// Creates a runner for `job` with the lease, the status and the metrics of `context`.
    pub(crate) fn of_job(context: JobContext, job: J) -> Self {
        Self { context, state: Mutex::new(JobState { job, failures: 0 }) }
    }

    /// Runs one step now, even if it is not due. Returns `None` if another process has the lease.
    ///
    /// # Errors
    /// [`JobError`]. The step can be repeated.
    pub async fn step(&self) -> Result<Option<J::Output>, JobError> {
        self.step_of(&mut self.state.lock().await.job).await
    }

    async fn step_of(&self, job: &mut J) -> Result<Option<J::Output>, JobError> {
        if job.needs_lease() && !self.context.hold_lease(J::NAME).await? {
            job.reset();
            return Ok(None);
        }
        let now = self.context.clock.now();
        self.context.jobs.note_run(J::NAME, |run| run.began_at = Some(now));
        let output = job.step().await?;
        let compared = J::compared(&output);
        self.context.jobs.note_run(J::NAME, |run| run.compared = compared);
        if job.needs_lease() && J::is_last(&output) {
            self.context.release_lease(J::NAME).await;
        }
        Ok(Some(output))
    }

    async fn step_if_due(&self, job: &mut J) -> Result<Option<Duration>, JobError> {
        if let Some(rest) = job.rest_if_idle().await? {
            // The last step did not know that nothing was left. A command waits for the lease, and an operator reads it as work.
            self.context.release_lease_if_held(J::NAME).await;
            return Ok(Some(rest));
        }
        Ok(self.step_of(job).await?.map(|output| job.rest_after(output)))
    }
}

impl<J: Job> BackgroundLoop for Runner<J> {
    const NAME: &'static str = J::NAME;

    async fn tick(&self) -> Duration {
        let JobState { job, failures } = &mut *self.state.lock().await;
        let outcome = self.step_if_due(job).await;
        self.context.finish_step(J::NAME, failures, outcome).await
    }

    async fn renew(&self) {
        self.context.renew_lease(J::NAME).await;
    }
}
