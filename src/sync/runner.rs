//! Runs background jobs: the lease, the backoff and the status of a job. `src/supervise.rs` handles panics and shutdown.

use std::time::Duration;

use tokio::sync::Mutex;

use super::job::{Job, JobContext, JobError};
use crate::store::leases::RENEWAL;

/// What the supervisor repeats until shutdown.
pub trait BackgroundLoop: Send + Sync + 'static {
    /// The loop's name in the log and in metrics.
    const NAME: &'static str;

    /// Does one piece of work, and returns how long to rest. It may panic, and may be dropped at any await point: neither loses
    /// anything.
    fn tick(&self) -> impl Future<Output = Duration> + Send;

    /// Renews what the loop holds, such as a lease. Called every few seconds, during a tick and between two.
    fn keep(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

/// Awaits a tick or a rest of a loop, and renews meanwhile what the loop holds: a rest, or a request that WorkOS answers slowly,
/// can take longer than a lease lasts.
pub async fn keeping<L: BackgroundLoop, T>(background_loop: &L, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            outcome = &mut work => return outcome,
            () = tokio::time::sleep(RENEWAL) => background_loop.keep().await,
        }
    }
}

/// Runs a job step by step.
#[derive(Debug)]
pub struct Runner<J> {
    context: JobContext,
    state: Mutex<State<J>>,
}

#[derive(Debug)]
struct State<J> {
    job: J,
    /// Failed steps since the last one that succeeded.
    failures: u32,
}

impl<J: Job> Runner<J> {
    /// Runs `job` with the lease, the status and the metrics of `context`.
    pub(crate) fn run(context: JobContext, job: J) -> Self {
        Self { context, state: Mutex::new(State { job, failures: 0 }) }
    }

    /// Runs one step, whether or not it is due. `None` if another process has the lease.
    ///
    /// # Errors
    /// [`JobError`]: the step can be repeated.
    pub async fn step(&self) -> Result<Option<J::Output>, JobError> {
        self.step_of(&mut self.state.lock().await.job).await
    }

    async fn step_of(&self, job: &mut J) -> Result<Option<J::Output>, JobError> {
        if job.needs_lease() && !self.context.leads(J::NAME).await? {
            job.reset();
            return Ok(None);
        }
        let output = job.step().await?;
        if job.needs_lease() && J::is_last(&output) {
            self.context.yield_job(J::NAME).await;
        }
        Ok(Some(output))
    }

    async fn step_if_due(&self, job: &mut J) -> Result<Option<Duration>, JobError> {
        if let Some(rest) = job.rest_if_idle().await? {
            return Ok(Some(rest));
        }
        Ok(self.step_of(job).await?.map(|output| job.rest_after(output)))
    }
}

impl<J: Job> BackgroundLoop for Runner<J> {
    const NAME: &'static str = J::NAME;

    async fn tick(&self) -> Duration {
        let State { job, failures } = &mut *self.state.lock().await;
        let outcome = self.step_if_due(job).await;
        self.context.rest(J::NAME, failures, outcome).await
    }

    async fn keep(&self) {
        self.context.keep(J::NAME).await;
    }
}
