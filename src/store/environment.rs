//! `workos.environment` and `workos.contract`: whose database this is, and whether this release can read it.

use super::migrations::{self, Status};
use sqlx::postgres::PgConnection;

use super::{Store, StoreError, Work, changes};

/// Why this process must not serve this database. Each names the way out.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// Migrations are pending.
    #[error("the database has pending migrations ({0}); run `authkit-sync migrate`, or start with `serve --migrate`")]
    Pending(String),
    /// A contract migration took away what this release reads.
    #[error(
        "the database's schema is too new for this release: it asks for version {wanted}, this release knows {known}; install a newer release"
    )]
    TooNew {
        /// The oldest schema version that can still read it.
        wanted: i64,
        /// The newest this release knows.
        known: i64,
    },
    /// Another environment's users live here.
    #[error(
        "this database belongs to WorkOS client {recorded}, but WORKOS_CLIENT_ID is {given}; point DATABASE_URL at this environment's own database, or, if this one was copied from the other environment, run `authkit-sync rebind`"
    )]
    OtherClient {
        /// The client id recorded at the first start.
        recorded: String,
        /// The one configured now.
        given: String,
    },
}

impl Store {
    /// Whether this release can serve this database for this client: asked until the first yes, then remembered. Records
    /// the client id when none is recorded yet.
    ///
    /// # Errors
    /// [`StoreError::Unfit`] when it must not be served, any other when it cannot be asked.
    pub async fn check(&self) -> Result<(), StoreError> {
        self.fit.get_or_try_init(|| self.ask_fitness()).await.copied()
    }

    async fn ask_fitness(&self) -> Result<(), StoreError> {
        let status: Status = self.ask(migrations::status).await?;
        if !status.pending.is_empty() {
            return Err(Unfit::Pending(status.pending.join(", ")).into());
        }
        let wanted = self
            .ask(async |connection| {
                sqlx::query_scalar!("-- contract.version\nselect version from workos.contract")
                    .fetch_one(connection)
                    .await
            })
            .await?;
        let known = migrations::newest();
        if wanted > known {
            return Err(Unfit::TooNew { wanted, known }.into());
        }
        if !self.client_id.is_empty() {
            let recorded = self.claim().await?;
            if recorded != *self.client_id {
                return Err(Unfit::OtherClient { recorded, given: self.client_id.to_string() }.into());
            }
        }
        if !status.newer.is_empty() {
            tracing::warn!(schema.newer = ?status.newer, schema.known = known, "a newer release has migrated this database; served as it is");
        }
        Ok(())
    }

    /// Records the client id unless one is recorded, and returns the recorded one. Of several first starts one wins.
    async fn claim(&self) -> Result<String, StoreError> {
        self.ask(async |connection| {
            let recorded = sqlx::query_scalar!("-- environment.client_id\nselect client_id from workos.environment")
                .fetch_optional(&mut *connection)
                .await?;
            if let Some(recorded) = recorded {
                return Ok(recorded);
            }
            sqlx::query!(
                "-- environment.claim
                insert into workos.environment (client_id)
                values ($1)
                on conflict do nothing",
                &*self.client_id
            )
            .execute(&mut *connection)
            .await?;
            sqlx::query_scalar!("-- environment.client_id\nselect client_id from workos.environment")
                .fetch_one(connection)
                .await
        })
        .await
    }

    /// One round trip, to see whether the database answers and our table can be read.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.lookup(async |connection| {
            sqlx::query!("-- environment.ping\nselect singleton from workos.environment")
                .fetch_optional(connection)
                .await
        })
        .await?;
        Ok(())
    }
}

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
        self.lookup(async |connection| {
            sqlx::query!("-- environment.accept_deletions\nupdate workos.environment set deletions_accepted = true")
                .execute(connection)
                .await
        })
        .await?;
        Ok(())
    }

    /// The release that last tried the quarantine again.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn retried_by(&self) -> Result<Option<String>, StoreError> {
        let release = self
            .lookup(async |connection| {
                sqlx::query_scalar!("-- environment.retried_by\nselect retried_by from workos.environment")
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
    pub async fn note_retried(&self, release: &str) -> Result<(), StoreError> {
        self.lookup(async |connection| {
            sqlx::query!("-- environment.note_retried\nupdate workos.environment set retried_by = $1", release)
                .execute(connection)
                .await
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
        self.durably(&Rebind { client_id: &self.client_id }).await
    }
}

struct Rebind<'a> {
    client_id: &'a str,
}

impl Work for Rebind<'_> {
    type Output = Option<String>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Option<String>, StoreError> {
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
        sqlx::query!("-- walks.forget\ndelete from workos.walks").execute(&mut *connection).await?;
        Ok(old)
    }
}
