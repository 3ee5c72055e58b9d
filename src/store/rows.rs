//! Rows of any kind of object, and the statements that are the same for every table of objects.

use std::collections::BTreeMap;

use crate::domain::decide::Stored;
use crate::domain::membership::Sides;
use crate::domain::object::Object;
use crate::domain::timestamp::Timestamp;
use crate::domain::version::Version;

/// The state of an object before a batch.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// The row.
    pub(crate) stored: Stored,
    /// The latest sign-in of a user according to session events. The row of a live user already contains it. An absent user can
    /// have one, too.
    pub(crate) signed_in_at: Option<Timestamp>,
    /// When the version was last written, by the database's clock.
    pub(crate) version_at: Option<Timestamp>,
    /// Identifies this version of the row (its `xmin`); `None` if the object has no row.
    pub(crate) revision: Option<String>,
}

impl Found {
    pub(super) fn absent() -> Self {
        Self { stored: Stored::Absent, signed_in_at: None, version_at: None, revision: None }
    }
}

/// A live object to write.
pub(crate) struct LiveRow<'a> {
    pub(crate) object: &'a Object,
    pub(crate) version: &'a Version,
    /// Whether the object has no row yet.
    pub(crate) is_new: bool,
}

/// A tombstone to write.
pub(crate) struct TombstoneRow<'a> {
    pub(crate) id: &'a str,
    pub(crate) deleted_at: Option<Timestamp>,
    /// The user and the organization of a membership.
    pub(crate) of: Option<&'a Sides>,
}

/// The rows of one kind, by ID.
pub(crate) type Rows = BTreeMap<String, Found>;

/// Defines the statements that are the same for every table of objects, in a module `table`. `$name` begins their names,
/// `$required` is a column that every live row has.
macro_rules! table_statements {
    ($name:literal, $table:literal, $required:literal) => {
        pub(in crate::store) mod table {
            use crate::store::DbConnection;

            use crate::store::StoreError;

            /// Locks the rows in ID order, and returns their number.
            pub(in crate::store) async fn lock(
                connection: &mut DbConnection<'_>,
                ids: &[String],
            ) -> Result<usize, StoreError> {
                let locked = sqlx::query_scalar!(
                    "-- "
                        + $name
                        + ".lock
        select id
        from " + $table
                        + "
        where id = any($1)
        order by id
        for no key update",
                    ids
                )
                .fetch_all(connection)
                .await?;
                Ok(locked.len())
            }

            /// Returns the rows that another session has locked.
            pub(in crate::store) async fn locked(
                connection: &mut DbConnection<'_>,
                ids: &[String],
            ) -> Result<Vec<String>, StoreError> {
                let locked = sqlx::query_scalar!(
                    "-- "
                        + $name
                        + ".locked
        with free as materialized (
            select id
            from "
                        + $table
                        + "
            where id = any($1)
            order by id
            for no key update skip locked
        )
        select id as \"id!\"
        from " + $table
                        + "
        where id = any($1)
        except
        select id
        from free",
                    ids
                )
                .fetch_all(connection)
                .await?;
                Ok(locked)
            }

            /// Inserts placeholders, and returns their number.
            pub(in crate::store) async fn insert_placeholders(
                connection: &mut DbConnection<'_>,
                ids: &[String],
            ) -> Result<u64, StoreError> {
                let inserted = sqlx::query!(
                    "-- "
                        + $name
                        + ".insert_placeholders
        insert into "
                        + $table
                        + " (id)
        select id
        from unnest($1::text[]) as named (id)
        on conflict (id) do nothing",
                    ids
                )
                .execute(connection)
                .await?;
                Ok(inserted.rows_affected())
            }

            /// Deletes placeholders.
            pub(in crate::store) async fn delete_placeholders(
                connection: &mut DbConnection<'_>,
                ids: &[String],
            ) -> Result<(), StoreError> {
                sqlx::query!(
                    "-- "
                        + $name
                        + ".delete_placeholders
        delete from "
                        + $table
                        + "
        where
            id = any($1)
            and "
                        + $required
                        + " is null
            and not synced_deleted",
                    ids
                )
                .execute(connection)
                .await?;
                Ok(())
            }
        }
    };
}
pub(super) use table_statements;
