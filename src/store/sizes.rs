//! The number of rows of the large tables, without reading them.

use super::{Store, StoreError};

/// Up to this number, rows are counted, because PostgreSQL's statistics of a small table can be missing or very inaccurate.
const COUNTED: i64 = 10_000;

/// The number of rows of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSize {
    /// The name of the kind of rows, for example `users`.
    pub name: String,
    /// Live rows.
    pub live: i64,
    /// Tombstones. `None` for a table that has none.
    pub deleted: Option<i64>,
}

impl Store {
    /// Returns the number of live rows and tombstones of users, organizations and memberships, and the number of events in the
    /// inbox. Up to 10,000 rows of a table are counted. For a larger table the numbers are estimates from PostgreSQL's statistics.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn table_sizes(&self) -> Result<Vec<TableSize>, StoreError> {
        let rows = self
            .lookup(async |connection| {
                sqlx::query!(
                    r#"-- sizes.tables
                    with counted (name, relation, live, deleted) as (
                        select
                            'users',
                            'user_records',
                            count(*) filter (where not synced_deleted),
                            count(*) filter (where synced_deleted)
                        from (select synced_deleted from workos.user_records limit $1::bigint + 1) as users
                        union all
                        select
                            'organizations',
                            'organization_records',
                            count(*) filter (where not synced_deleted),
                            count(*) filter (where synced_deleted)
                        from (select synced_deleted from workos.organization_records limit $1::bigint + 1) as organizations
                        union all
                        select
                            'organization_memberships',
                            'organization_membership_records',
                            count(*) filter (where not synced_deleted),
                            count(*) filter (where synced_deleted)
                        from (select synced_deleted from workos.organization_membership_records limit $1::bigint + 1) as memberships
                        union all
                        select 'events', 'events', count(*), null
                        from (select from workos.events limit $1::bigint + 1) as events
                    )
                    select
                        name as "name!",
                        case
                            when is_exact then live
                            else (estimate * (1 - deleted_part))::bigint
                        end as "live!",
                        case
                            when deleted is null then null
                            when is_exact then deleted
                            else (estimate * deleted_part)::bigint
                        end as deleted
                    from counted
                    cross join lateral (
                        select
                            live + coalesce(deleted, 0) <= $1 as is_exact,
                            greatest(coalesce(pg_stat_get_live_tuples(class.oid), 0), class.reltuples::bigint, $1 + 1) as estimate,
                            coalesce(
                                (
                                    select most_common_freqs[array_position(most_common_vals::text::boolean[], true)]
                                    from pg_stats
                                    where
                                        schemaname = 'workos'
                                        and tablename = relation
                                        and attname = 'synced_deleted'
                                ),
                                0
                            ) as deleted_part
                        from pg_class as class
                        where class.oid = to_regclass('workos.' || relation)
                    ) as statistics"#,
                    COUNTED
                )
                .fetch_all(connection)
                .await
            })
            .await?;
        Ok(rows.into_iter().map(|row| TableSize { name: row.name, live: row.live, deleted: row.deleted }).collect())
    }
}
