//! `workos.environment` and `workos.contract`: whose database this is, and whether this release can read it.

use sqlx::postgres::PgConnection;

use super::unfit::Unfit;
use super::{Store, StoreError, Work, changes, pool};

impl Store {
    /// The client ID that the database belongs to, if any is recorded.
    pub(super) async fn recorded_client(connection: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
        sqlx::query_scalar!("-- environment.client_id\nselect client_id from workos.environment")
            .fetch_optional(connection)
            .await
    }

    /// Records this store's client ID unless one is recorded, and returns the recorded one. Of several first starts one wins.
    pub(super) async fn bind(&self) -> Result<String, StoreError> {
        self.attempt(&pool::begin_write(self.timeout, ""), &Bind { client_id: &self.client_id }).await
    }

    pub(super) async fn check_writable(self) -> Result<(), StoreError> {
        self.attempt(&pool::begin_write(self.timeout, ""), &Ping).await
    }
}

struct Bind<'a> {
    client_id: &'a str,
}

impl Work for Bind<'_> {
    type Output = String;

    async fn run(&self, connection: &mut PgConnection) -> Result<String, StoreError> {
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

struct Ping;

impl Work for Ping {
    type Output = ();

    async fn run(&self, connection: &mut PgConnection) -> Result<(), StoreError> {
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
        if is_read_only { Err(StoreError::Disconnected(READ_ONLY.into())) } else { Ok(()) }
    }
}

/// Said of a standby, and of a primary that an operator has closed for writes.
const READ_ONLY: &str = "the server is read-only (a standby, or default_transaction_read_only is on)";

impl Store {
    /// Whether the operator has said that deletions beyond the bound are meant.
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

    /// Records the operator's word that deletions beyond the bound are meant; a complete reconcile uses it up.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn accept_deletions(&self) -> Result<(), StoreError> {
        self.write("accept deletions", || {
            sqlx::query!("-- environment.accept_deletions\nupdate workos.environment set deletions_accepted = true")
        })
        .await?;
        Ok(())
    }

    /// The release that last tried the quarantine again.
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

    /// Notes that this release has tried the quarantine again.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn set_quarantine_retried_by(&self, release: &str) -> Result<(), StoreError> {
        self.write("note retried", || {
            sqlx::query!(
                "-- environment.set_quarantine_retried_by\nupdate workos.environment set quarantine_retried_by = $1",
                release
            )
        })
        .await?;
        Ok(())
    }

    /// Gives the database to this store's client id, whatever is recorded: forgets every position in the old environment,
    /// and gives the operator's word for the reconcile that will make tombstones of its users. Returns the old client id.
    ///
    /// Positions in the change feed become void in any case; to the same client id nothing else happens.
    ///
    /// # Errors
    /// [`StoreError`], also when migrations are pending.
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

    async fn run(&self, connection: &mut PgConnection) -> Result<Option<String>, StoreError> {
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
            insert into workos.environment (client_id, deletions_accepted)
            values ($1, true)
            on conflict (singleton) do update
            set
                client_id = excluded.client_id,
                deletions_accepted = true,
                recorded_at = now()",
            self.client_id
        )
        .execute(&mut *connection)
        .await?;
        sqlx::query!("-- catch_up.forget\ndelete from workos.catch_up").execute(&mut *connection).await?;
        sqlx::query!("-- scans.forget\ndelete from workos.scans").execute(&mut *connection).await?;
        Ok(old)
    }
}
