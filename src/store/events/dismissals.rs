//! `workos.dismissals`: quarantined events that an operator has decided not to retry.

use std::time::Duration;

use crate::store::{Store, StoreError};

impl Store {
    /// Dismisses a quarantined event. Returns false if there is no such event in quarantine, or if it was dismissed before.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn dismiss(&self, event_id: &str, reason: &str) -> Result<bool, StoreError> {
        let dismissed = self
            .write("dismiss", || {
                sqlx::query!(
                    "-- dismissals.add
                    insert into workos.dismissals (event_id, reason)
                    select id, $2
                    from workos.events
                    where
                        id = $1
                        and outcome = 'quarantined'
                    on conflict (event_id) do nothing",
                    event_id,
                    reason
                )
            })
            .await?;
        Ok(dismissed > 0)
    }

    /// Deletes at most `limit` events that were dismissed longer than `retention` ago, and returns their number.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn expire_dismissed(&self, retention: Duration, limit: i64) -> Result<u64, StoreError> {
        self.write("expire dismissed", || {
            sqlx::query!(
                "-- dismissals.expire
                with expired as materialized (
                    select event_id
                    from workos.dismissals
                    where dismissed_at < now() - make_interval(secs => $1)
                    order by dismissed_at
                    limit $2
                ),
                deleted as (
                    delete from workos.events
                    where
                        id = any(array(select event_id from expired))
                        and outcome = 'quarantined'
                )
                delete from workos.dismissals
                where event_id = any(array(select event_id from expired))",
                retention.as_secs_f64(),
                limit
            )
        })
        .await
    }
}
