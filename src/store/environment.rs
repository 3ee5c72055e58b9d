//! `workos.environment` and `workos.contract`: whose database this is, and whether this release can read it.

use super::migrations::{self, Status};
use super::{Store, StoreError};

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
        "this database belongs to WorkOS client {recorded}, but WORKOS_CLIENT_ID is {given}; point DATABASE_URL at this environment's own database"
    )]
    OtherClient {
        /// The client id recorded at the first start.
        recorded: String,
        /// The one configured now.
        given: String,
    },
}

/// What a database says when asked whether it can be served.
#[derive(Debug)]
pub enum Fitness {
    /// It can. `newer` holds the migrations this release does not know.
    Fit {
        /// Versions applied by a newer release.
        newer: Vec<i64>,
    },
    /// It must not be.
    Unfit(Unfit),
}

impl Store {
    /// Whether this release can serve this database for this client; records the client id when none is recorded yet.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be asked.
    pub async fn fitness(&self, client_id: &str) -> Result<Fitness, StoreError> {
        let status: Status = self.lookup(migrations::status).await?;
        if !status.pending.is_empty() {
            return Ok(Fitness::Unfit(Unfit::Pending(status.pending.join(", "))));
        }
        let wanted = self
            .lookup(async |connection| {
                sqlx::query_scalar!("-- contract.version\nselect version from workos.contract")
                    .fetch_one(connection)
                    .await
            })
            .await?;
        let known = migrations::newest();
        if wanted > known {
            return Ok(Fitness::Unfit(Unfit::TooNew { wanted, known }));
        }
        let recorded = self.claim(client_id).await?;
        if recorded != client_id {
            return Ok(Fitness::Unfit(Unfit::OtherClient { recorded, given: client_id.to_owned() }));
        }
        Ok(Fitness::Fit { newer: status.newer })
    }

    /// Records the client id unless one is recorded, and returns the recorded one. Of several first starts one wins.
    async fn claim(&self, client_id: &str) -> Result<String, StoreError> {
        self.lookup(async |connection| {
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
                client_id
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
