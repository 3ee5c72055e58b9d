//! `workos.environment`: the WorkOS environment that the database belongs to, and decisions of the operator.

use super::DbConnection;
use super::unfit::Unfit;
use super::{Store, StoreError, Work, changes, pool};

impl Store {
    /// Returns the client ID that the database is bound to, if any.
    pub(super) async fn recorded_client(connection: &mut DbConnection<'_>) -> Result<Option<String>, sqlx::Error> {
        sqlx::query_scalar!("-- environment.client_id\nselect client_id from workos.environment")
            .fetch_optional(connection)
            .await
    }

    /// Binds the database to this store's client ID if it is not bound yet, and returns the client ID that it is bound to. If
    /// several processes do this at the same time, the first one wins.
    pub(super) async fn bind(&self) -> Result<String, StoreError> {
        self.attempt(&pool::begin_write(self.timeout, ""), &Bind { client_id: &self.client_id }).await
    }

    pub(super) async fn check_writable(self) -> Result<(), StoreError> {
        self.attempt(&pool::begin_write(self.timeout, ""), &CheckWritable).await
    }
}

struct Bind<'a> {
    client_id: &'a str,
}

impl Work for Bind<'_> {
    type Output = String;

    async fn run(&self, connection: &mut DbConnection<'_>) -> Result<String, StoreError> {
        sqlx::query!(
            "-- environment.bind
            insert into workos.environment (client_id)
            values ($1)
            on conflict do nothing",
            self.client_id
        )
        .execute(&mut *connection)
        .await?;
        Store::recorded_client(connection).await?.ok_or(StoreError::Unbound)
    }
}

struct CheckWritable;

impl Work for CheckWritable {
    type Output = ();

    async fn run(&self, connection: &mut DbConnection<'_>) -> Result<(), StoreError> {
        let is_read_only = sqlx::query_scalar!(
            r#"-- environment.ping
            select
                (
                    pg_catalog.pg_is_in_recovery()
                    or pg_catalog.current_setting('transaction_read_only') = 'on'
                ) as "is_read_only!"
            from (select) as one
            left join workos.environment on true"#
        );
        let is_read_only = is_read_only.fetch_one(connection).await?;
        if is_read_only { Err(StoreError::read_only()) } else { Ok(()) }
    }
}

impl Store {
    /// Returns whether an operator has accepted any number of deletions for the next reconcile.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn deletions_accepted(&self) -> Result<bool, StoreError> {
        let accepted = self
            .lookup(async |connection| {
                sqlx::query_scalar!(
                    "-- environment.deletions_accepted\nselect deletions_accepted from workos.environment"
                )
                .fetch_optional(connection)
                .await
            })
            .await?;
        Ok(accepted.unwrap_or_default())
    }

    /// Returns whether an operator has accepted any number of deletions for the next reconcile of organizations and memberships.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn organization_deletions_accepted(&self) -> Result<bool, StoreError> {
        let accepted = self
            .lookup(async |connection| {
                sqlx::query_scalar!(
                    "-- environment.organization_deletions_accepted
                    select organization_deletions_accepted
                    from workos.environment"
                )
                .fetch_optional(connection)
                .await
            })
            .await?;
        Ok(accepted.unwrap_or_default())
    }

    /// Accepts any number of deletions for the next reconcile of each kind. A complete reconcile resets this.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn accept_deletions(&self) -> Result<(), StoreError> {
        self.write("accept deletions", || {
            sqlx::query!(
                "-- environment.accept_deletions
                update workos.environment
                set
                    deletions_accepted = true,
                    organization_deletions_accepted = true"
            )
        })
        .await?;
        Ok(())
    }

    /// Returns the release that last retried the quarantined events.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn quarantine_retried_by(&self) -> Result<Option<String>, StoreError> {
        let release = self
            .lookup(async |connection| {
                sqlx::query_scalar!(
                    "-- environment.quarantine_retried_by\nselect quarantine_retried_by from workos.environment"
                )
                .fetch_optional(connection)
                .await
            })
            .await?;
        Ok(release.flatten())
    }

    /// Stores that this release has retried the quarantined events.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn set_quarantine_retried_by(&self, release: &str) -> Result<(), StoreError> {
        self.write("set quarantine retried by", || {
            sqlx::query!(
                "-- environment.set_quarantine_retried_by\nupdate workos.environment set quarantine_retried_by = $1",
                release
            )
        })
        .await?;
        Ok(())
    }

    /// Binds the database to this store's client ID, and returns the old client ID. Resets the progress of catch-up and of scans,
    /// and accepts the deletions of the reconcile that deletes the users of the old environment.
    ///
    /// All positions in the change feed become invalid. If the client ID is the current one, this is the only effect.
    ///
    /// # Errors
    /// [`StoreError`], also if migrations are pending.
    pub async fn rebind(&self) -> Result<Option<String>, StoreError> {
        match self.check().await {
            Ok(()) | Err(StoreError::Unfit(Unfit::OtherClient { .. })) => {}
            Err(error) => return Err(error),
        }
        if self.ask(Self::recorded_client).await?.as_deref() != Some(&*self.client_id) {
            self.verify_client().await?;
        }
        self.attempt(&pool::begin_write(self.timeout, ""), &Rebind { client_id: &self.client_id }).await
    }
}

struct Rebind<'a> {
    client_id: &'a str,
}

impl Work for Rebind<'_> {
    type Output = Option<String>;

    async fn run(&self, connection: &mut DbConnection<'_>) -> Result<Option<String>, StoreError> {
        // Waits for every write of the old client ID; see workos.check_client.
        sqlx::query!("-- environment.lock\nlock table workos.environment in exclusive mode")
            .execute(&mut *connection)
            .await?;
        let old =
            sqlx::query_scalar!("-- environment.rebind_from\nselect client_id from workos.environment for update")
                .fetch_optional(&mut *connection)
                .await?;
        changes::renew_epoch(connection).await?;
        if old.as_deref() == Some(self.client_id) {
            return Ok(old);
        }
        sqlx::query!(
            "-- environment.rebind
            insert into workos.environment (client_id, deletions_accepted, organization_deletions_accepted)
            values ($1, true, true)
            on conflict (singleton) do update
            set
                client_id = excluded.client_id,
                deletions_accepted = true,
                organization_deletions_accepted = true,
                recorded_at = now()",
            self.client_id
        )
        .execute(&mut *connection)
        .await?;
        sqlx::query!("-- catch_up.reset\ndelete from workos.catch_up").execute(&mut *connection).await?;
        sqlx::query!("-- scans.reset\ndelete from workos.scans").execute(&mut *connection).await?;
        Ok(old)
    }
}
